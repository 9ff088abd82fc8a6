"""docs/adding_a_method.md, followed literally: its blocks become files, its commands run."""

import json

import pytest

from tests.fixtures import pages

PAGE = "adding_a_method.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("method")
    for name, content in pages.files_of(PAGE).items():
        (made / name).write_text(content)
    return made


def test_the_page_has_one_function_one_gin_file_and_one_test(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["cpo.gin", "cpo.py", "test_cpo.py"]


def test_its_commands_run(folder):
    commands = pages.commands_of(PAGE)
    assert len(commands) == 2
    for command in commands:
        done = pages.run(command, folder)
        assert done.returncode == 0, done.stdout + done.stderr
    lines = (folder / "runs" / "cpo" / "metrics.jsonl").read_text().splitlines()
    metrics = json.loads(lines[-1])
    assert {"loss", "accuracy", "margin", "log_prob", "response_length"} <= metrics.keys()
    assert json.loads((folder / "runs/cpo/summary.json").read_text())["objective"] == "cpo"
