"""docs/adding_a_network.md, followed literally: its blocks become files, its commands run."""

import json

import pytest

from tests.fixtures import pages

PAGE = "adding_a_network.md"


@pytest.mark.slow
def test_the_page_adds_a_network_that_trains_and_is_read_back(tmp_path):
    assert len((pages.DOCS / PAGE).read_text().splitlines()) <= 120
    files, commands = pages.files_of(PAGE), pages.commands_of(PAGE)
    assert sorted(files) == ["shared_t5.gin", "shared_t5.py", "test_shared_t5.py"]
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert len(commands) == 3
    for command in commands:
        done = pages.run(command, tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    for folder in ("shared", "copy"):
        described = json.loads((tmp_path / "runs" / folder / "networks.json").read_text())
        assert described["networks"]["policy"]["config"]["family"] == "shared_t5"
    done = pages.run(commands[2].replace("--gin_import=shared_t5 ", ""), tmp_path)
    assert done.returncode == 2
    assert "its family is 'shared_t5'; known: t5, t5gemma, t5gemma2" in done.stderr
