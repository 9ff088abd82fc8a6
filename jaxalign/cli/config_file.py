"""Reads the settings of a command from a YAML file with flat names, as ``--config=run.yaml`` gives them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from jaxalign import untrusted
from jaxalign.cli.commands import UsageError

_MOST_BYTES = 1 << 20
_PLAIN = (bool, int, float, str, type(None))


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which refuses repeated names and aliases: both hide what a file says."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(problem="aliases are not read", problem_mark=event.start_mark)  # fmt: skip
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names: list[Any] = []
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if name in names:
                raise yaml.MarkedYAMLError(
                    problem=f"{name!r} is given twice", problem_mark=key.start_mark
                )
            names.append(name)
        return super().construct_mapping(node, deep)


def read(path: str) -> dict[str, Any]:
    """Returns the settings of a file, by name in the order of the file.

    Raises:
      UsageError: the file cannot be read, is no mapping of names, or has a value that no setting can have.
    """
    where = f"--config={path}"
    try:
        content = untrusted.read_bytes(Path(path).expanduser(), _MOST_BYTES)
        found = yaml.load(content.decode("utf-8-sig"), _Loader)
    except OSError as error:
        raise UsageError(f"{where}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}: is not UTF-8 text") from error
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise UsageError(f"{where}{line}: {error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{where}: is no YAML that can be read") from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise UsageError(f"{where}: must be lines of the form NAME: value")
    for name, value in found.items():
        if not _is_setting(value):
            raise UsageError(
                f"{where}: the value of {name} must be a number, a text, a list of them, or a mapping of names to them"
            )
    return found


def as_text(value: Any) -> str:
    """Returns a macro's or gin parameter's value as it is written after a flag's ``=``: text as it stands, anything else as a literal."""
    return value if isinstance(value, str) else repr(value)


def as_flag(name: str, value: Any, where: str) -> str:
    """Returns the value of a command's own flag as it is written after its ``=``."""
    if isinstance(value, dict):
        raise UsageError(f"{where}: {name} takes no mapping; write name=value in a list")
    if isinstance(value, list):
        return ",".join(as_flag(name, item, where) for item in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _is_setting(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, _PLAIN) for item in value)
    if isinstance(value, dict):
        return all(isinstance(name, str) and isinstance(item, _PLAIN) for name, item in value.items())  # fmt: skip
    return isinstance(value, _PLAIN)
