"""Stages of a recipe: what is refused when something changed between two launches, and what is kept together."""

import json

import pytest

from jaxalign.annotation.flat import file_identity
from jaxalign.errors import UserError
from jaxalign.recipes import round_labels
from jaxalign.recipes.stages import RESULT, Stage, run_stages


def test_a_begun_stage_whose_input_was_made_anew_is_refused(tmp_path):
    def stops(folder):
        (folder / "partial").write_text("half")
        raise UserError("stopped")

    def two(value, run):
        return [Stage("a", lambda folder: {"value": value}, {}), Stage("b", run, {}, ("a",))]

    with pytest.raises(UserError, match="stopped"):
        run_stages(tmp_path, two(1, stops))
    # The same input made anew is the same input.
    for value in (1, 2):
        (tmp_path / "a" / RESULT).unlink()
        run_stages(tmp_path, two(value, stops)[:1])
        expected = "stopped" if value == 1 else "begun with an input"
        with pytest.raises(UserError, match=expected):
            run_stages(tmp_path, two(value, stops))


def test_lines_of_a_comparison_stay_together_when_files_are_mixed(tmp_path):
    line = {"prompt": "p", "response": "good", "feedback": 1.0, "comparison": 0}
    parts = {}
    for name, loser in (("a", "bad"), ("b", "worse")):
        lines = [line, {**line, "response": loser, "feedback": 0.0}]
        parts[name] = tmp_path / f"{name}.jsonl"
        parts[name].write_text("".join(json.dumps(each) + "\n" for each in lines))
    path, _, counts = round_labels.mix(tmp_path, parts, dict.fromkeys(parts, "triplet"))
    found = [json.loads(each)["response"] for each in path.read_text().splitlines()]
    assert found == ["good", "bad", "good", "worse"]
    assert counts == {"a": 2, "b": 2}


def test_a_finished_stage_is_refused_if_a_file_that_it_read_has_changed(tmp_path):
    labels = tmp_path / "labels.jsonl"
    labels.write_text("a\n")
    stage = Stage("a", lambda folder: {"identity": {"labels": file_identity(labels)}}, {})
    run_stages(tmp_path, [stage])
    run_stages(tmp_path, [stage])
    labels.write_text("b\n")
    with pytest.raises(UserError, match=r"labels.jsonl that it has read was changed since"):
        run_stages(tmp_path, [stage])
    # A finished stage does not need its files.
    labels.unlink()
    run_stages(tmp_path, [stage])
