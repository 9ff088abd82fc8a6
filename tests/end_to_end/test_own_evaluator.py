"""docs/trackers.md, followed literally: an evaluator of one's own measures a run, and goes on with it."""

import json

import pytest

from tests.fixtures import pages

PAGE = "trackers.md"


@pytest.mark.slow
def test_an_evaluator_of_ones_own_ranks_checkpoints_and_its_error_keeps_the_newest(tmp_path):
    files, (command,) = pages.files_of(PAGE), pages.commands_of(PAGE)
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    without = files["full_stops.gin"].replace("from __gin__ import dynamic_registration", "")
    (tmp_path / "full_stops.gin").write_text(without)
    done = pages.run(command, tmp_path)
    assert done.returncode == 2 and "from __gin__ import dynamic_registration" in done.stderr
    (tmp_path / "full_stops.gin").write_text(files["full_stops.gin"])
    done = pages.run(command, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "runs/stops"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (measured,) = [line for line in lines if line["split"] == "full_stops"]
    assert measured["step"] == 2 and measured["share"] == 0.0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["best"]["metric"] == "full_stops/share"
    # A later evaluation that fails keeps the checkpoint of its step, and the mended code measures it.
    longer = command.replace("TRAIN_STEPS=2", "TRAIN_STEPS=3")
    broken = files["full_stops.py"].replace("settings = ", "raise ValueError('no judge')  # ")
    (tmp_path / "full_stops.py").write_text(broken)
    done = pages.run(longer, tmp_path)
    assert done.returncode != 0 and "no judge" in done.stderr
    (tmp_path / "full_stops.py").write_text(files["full_stops.py"])
    done = pages.run(longer, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "full_stops"] == [2, 3]
