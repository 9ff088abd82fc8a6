"""docs/adding_a_network.md, followed literally: its blocks become files, its commands run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.processes import with_devices

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding_a_network.md"


def blocks():
    """The named files of the page, and the commands."""
    text = PAGE.read_text()
    files = dict(re.findall(r"^`([\w.]+)`:\n\n```\w+\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    (commands,) = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return files, commands.replace("\\\n", " ").strip().splitlines()


def run(command, folder):
    # `jaxalign` may not be on the path of an installation that runs from its source.
    command = re.sub(r"^PYTHONPATH=\. jaxalign", f"{sys.executable} -m jaxalign", command)
    command = re.sub(r"^python ", f"{sys.executable} ", command)
    path = os.pathsep.join([str(folder), str(PAGE.parents[1])])
    environment = with_devices(1, PYTHONPATH=path)
    return subprocess.run(
        command, shell=True, cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.mark.slow
def test_the_page_adds_a_network_that_trains_and_is_read_back(tmp_path):
    assert len(PAGE.read_text().splitlines()) <= 120
    files, commands = blocks()
    assert sorted(files) == ["shared_t5.gin", "shared_t5.py", "test_shared_t5.py"]
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert len(commands) == 3
    for command in commands:
        done = run(command, tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    for folder in ("shared", "copy"):
        described = json.loads((tmp_path / "runs" / folder / "networks.json").read_text())
        assert described["networks"]["policy"]["config"]["family"] == "shared_t5"
    done = run(commands[2].replace("--gin_import=shared_t5 ", ""), tmp_path)
    assert done.returncode == 2
    assert "its family is 'shared_t5'; known: t5, t5gemma" in done.stderr
