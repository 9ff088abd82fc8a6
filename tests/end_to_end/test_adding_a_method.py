"""docs/adding_a_method.md, followed literally: its blocks become files, its commands run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.processes import with_devices

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding_a_method.md"


def blocks():
    """The named files of the page, and the commands."""
    text = PAGE.read_text()
    files = dict(re.findall(r"^`([\w.]+)`:\n\n```\w+\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    (commands,) = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return files, commands.replace("\\\n", " ").strip().splitlines()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("method")
    for name, content in blocks()[0].items():
        (made / name).write_text(content)
    return made


def test_the_page_has_one_function_one_gin_file_and_one_test(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["cpo.gin", "cpo.py", "test_cpo.py"]


def test_its_commands_run(folder):
    environment = with_devices(
        1,
        PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        PYTHONPATH=os.pathsep.join([str(folder), str(PAGE.parents[1])]),
    )
    _, commands = blocks()
    assert len(commands) == 2
    for command in commands:
        # `jaxalign` may not be on the path of an installation that runs from its source.
        command = command.replace("jaxalign train", f"{sys.executable} -m jaxalign train")
        command = re.sub(r"^python ", f"{sys.executable} ", command)
        command = command.replace("PYTHONPATH=. ", "")
        done = subprocess.run(
            command, shell=True, cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    lines = (folder / "runs" / "cpo" / "metrics.jsonl").read_text().splitlines()
    metrics = json.loads(lines[-1])
    assert {"loss", "accuracy", "margin", "log_prob", "response_length"} <= metrics.keys()
    assert json.loads((folder / "runs/cpo/summary.json").read_text())["objective"] == "cpo"
