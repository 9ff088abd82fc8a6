"""Settings from a YAML file: they are those of flags, flags win, and what the file hides or misspells is one line."""

import pytest

from jaxalign.cli.main import main
from tests.cli.test_main import STANDARD, error_line


@pytest.fixture
def config(tmp_path):
    def write(text, name="run.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return f"--config={path}"

    return write


def test_macros_parameters_and_flags_are_set_and_shown_as_gin(calls, gin_file, config, capsys):
    file = gin_file(STANDARD)
    text = f"gin_file: {file}\nMODEL_DIR: runs/x\nSTEPS: 1_0\nEngine.fuel: coal\nplaces: [a, b]\nloud: yes\nrate: 1e-3\n"
    assert main(["drive", config(text)]) == 0
    assert (calls[0]["model_dir"], calls[0]["steps"]) == ("runs/x", 10)
    assert (calls[0]["engine"].fuel, calls[0]["places"]) == ("coal", ["a", "b"])
    assert (calls[0]["loud"], calls[0]["rate"]) == (True, 1e-3)
    shown = capsys.readouterr().err.splitlines()
    assert shown[0].startswith("# ") and shown[0].endswith("run.yaml as gin:")
    assert shown[1:4] == [f"include {file!r}", "MODEL_DIR = 'runs/x'", "STEPS = 10"]


def test_flags_win_wherever_they_stand_and_later_files_win(calls, gin_file, config):
    file = gin_file(STANDARD)
    first = config(f"gin_file: [{file}]\nMODEL_DIR: a\nSTEPS: 5\nplaces: [x]\n", "first.yaml")
    second = config("STEPS: 6\nlimit: null\n", "second.yaml")
    assert main(["drive", "--MODEL_DIR=b", first, second, "--places=y"]) == 0
    assert (calls[0]["model_dir"], calls[0]["steps"]) == ("b", 6)
    assert (calls[0]["places"], calls[0]["limit"]) == (["y"], None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("setps: 3\n", "unknown name setps; did you mean --steps?"),
        ("steps: 3\nsteps: 4\n", "line 2: 'steps' is given twice"),
        ("model_dir: &a x\nplaces: [*a]\n", "line 2: aliases are not read"),
        ("steps: [\n", "line 2: "),
        ("- steps\n", "must be lines of the form NAME: value"),
        ("steps: 2026-01-01\n", "must be a number, a text"),
        ("steps: {a: 1}\n", "steps takes no mapping"),
        ("places: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
        ("dry_run: true\n", "dry_run is given on the command line only"),
        ("steps: many\n", "--steps=many is not of type int"),
        ("example_command.driev.steps: 3\n", "run.yaml, example_command.driev.steps"),
        ("? [a]\n: 1\n", "found unhashable key"),
        ("1: 2\n", "must be lines of the form NAME: value"),
    ],
)
def test_what_is_wrong_in_a_file_is_one_line(calls, config, capsys, text, message):
    assert main(["drive", "--model_dir=x", config(text)]) == 2
    assert message in error_line(capsys)
    assert calls == []


def test_a_missing_file_is_one_line(calls, capsys):
    assert main(["drive", "--config=missing.yaml"]) == 2
    assert "missing.yaml: cannot be read" in error_line(capsys)
