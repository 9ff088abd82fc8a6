import dataclasses
import importlib
import sys
from pathlib import Path

import pytest

from jaxalign.cli import commands

_FOLDER = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class _ExampleCommand(commands.Command):
    @property
    def source(self) -> Path:
        return _FOLDER / "example_command.py"


@pytest.fixture
def calls(monkeypatch):
    """Registers the command `drive` of `example_command.py`, and gives the list of its calls' arguments."""
    monkeypatch.syspath_prepend(str(_FOLDER))
    command = _ExampleCommand("drive", "example_command", "drive", "drives")
    monkeypatch.setitem(commands.COMMANDS, "drive", command)
    module = importlib.import_module("example_command")
    module.CALLS.clear()
    yield module.CALLS
    import gin

    gin.clear_config()
    assert "example_command" in sys.modules


@pytest.fixture
def gin_file(tmp_path):
    """Writes a gin file for the example command: the usual header, then the given lines."""

    def write(body: str, name: str = "drive.gin") -> str:
        path = tmp_path / name
        header = "from __gin__ import dynamic_registration\nimport example_command\n"
        path.write_text(header + body)
        return str(path)

    return write
