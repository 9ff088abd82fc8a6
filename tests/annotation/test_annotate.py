"""`annotate`: what the output holds, that it can be resumed, and that it never replaces what it did not make."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from jaxalign import locks
from jaxalign.annotation.annotate import annotate, annotate_candidates, default_name
from jaxalign.data.candidates import Annotation, read_candidates, write_candidates
from jaxalign.data.logged_responses import read_responses
from jaxalign.errors import UserError


class Counting:
    """Scores of response lengths that remember the blocks and stop after some of them."""

    kind = "scores"
    whole_file = False

    def __init__(self, stop_after=99, setting=1):
        self.blocks, self.stop_after, self.setting = [], stop_after, setting

    def identity(self):
        return {"setting": self.setting}

    def annotate(self, candidates):
        if len(self.blocks) == self.stop_after:
            raise UserError("the server is away")
        self.blocks.append(list(candidates.prompts))
        return [np.array([float(len(text)) for text in texts]) for texts in candidates.responses]


@pytest.fixture
def given(candidates, tmp_path):
    """The path of the candidates, and the candidates as read from it."""
    path = tmp_path / "in.jsonl"
    write_candidates(path, candidates)
    return path, read_candidates(path)


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_output_has_the_annotation_and_everything_else(given, tmp_path):
    path, _ = given
    output = tmp_path / "out.jsonl"
    result = annotate(str(path), "length", str(output), name="chars")
    assert [line["annotations"]["chars"]["scores"] for line in lines_of(output)] == [
        [1, 2],
        [3, 1, 3],
        [1, 1],
    ]
    for before, after in zip(lines_of(path), lines_of(output), strict=True):
        assert {**after, "annotations": None} == {**before, "annotations": None}
    assert (result["prompts"], result["new"], result["missing"]) == (3, 3, 0)
    assert "3 prompts with the annotation 'chars' (scores), 3 of them new" in result["report"]


@pytest.mark.parametrize("stop_after", [0, 1, 2])
def test_an_interrupted_command_continues_after_the_last_block(given, tmp_path, stop_after):
    _, candidates = given
    output = tmp_path / "out.jsonl"
    options = {"block_size": 1}
    with pytest.raises(UserError, match="the server is away"):
        annotate_candidates(Counting(stop_after), candidates, output, "n", **options)
    assert not output.exists()
    again = Counting()
    result = annotate_candidates(again, candidates, output, "n", **options)
    assert again.blocks == [[prompt] for prompt in candidates.prompts[stop_after:]]
    assert result["new"] == 3 - stop_after
    whole = tmp_path / "whole.jsonl"
    annotate_candidates(Counting(), candidates, whole, "n", **options)
    assert output.read_bytes() == whole.read_bytes()
    assert not [path for path in tmp_path.iterdir() if "unfinished" in path.name]


def test_an_interrupted_command_with_other_settings_is_refused(given, tmp_path):
    _, candidates = given
    output = tmp_path / "out.jsonl"
    with pytest.raises(UserError, match="the server is away"):
        annotate_candidates(Counting(1), candidates, output, "n", block_size=1)
    with pytest.raises(UserError, match=r"written with other settings .*--overwrite"):
        annotate_candidates(Counting(setting=2), candidates, output, "n", block_size=1)
    annotate_candidates(Counting(setting=2), candidates, output, "n", overwrite=True)


def test_a_finished_annotation_is_not_computed_again(given, tmp_path):
    _, candidates = given
    output = tmp_path / "out.jsonl"
    annotate_candidates(Counting(), candidates, output, "n")
    again = Counting()
    assert annotate_candidates(again, candidates, output, "n")["new"] == 0
    assert again.blocks == []
    with pytest.raises(UserError, match=r"otherwise \(setting: 1 then, 2 now\); give another"):
        annotate_candidates(Counting(setting=2), candidates, output, "n")
    with pytest.raises(UserError, match="of other prompts or responses"):
        annotate_candidates(Counting(), candidates.take([0]), output, "n")
    with pytest.raises(
        UserError, match=r"other annotations \(n\) and without 'm'; to add .*--input"
    ):
        annotate_candidates(Counting(), candidates, output, "m")


def test_a_finished_output_that_lacks_newer_annotations_of_its_input_says_so(given, tmp_path):
    path, candidates = given
    output = tmp_path / "out.jsonl"
    annotate_candidates(Counting(), candidates, output, "n")
    report = annotate_candidates(Counting(), candidates, output, "n")["report"]
    assert "lacks" not in report
    annotate_candidates(Counting(), candidates, path, "later")
    result = annotate_candidates(Counting(), read_candidates(path), output, "n")
    assert (
        result["new"] == 0 and "it lacks what" in result["report"] and "(later)" in result["report"]
    )


def test_annotations_are_added_to_a_file_in_place_in_any_order(given):
    path, _ = given
    for name in ("one", "two", "one"):
        annotator = Counting()
        result = annotate_candidates(annotator, read_candidates(path), path, name)
        known = list(read_candidates(path).annotations)
    assert known == ["feedback", "one", "two"]
    assert result["new"] == 0 and annotator.blocks == []
    recorded = json.loads(path.with_name("in.jsonl.annotations.json").read_text())
    assert list(recorded) == ["one", "two"]
    with pytest.raises(
        UserError, match="with an annotation 'feedback' that was made from something"
    ):
        annotate_candidates(Counting(), read_candidates(path), path, "feedback")
    annotate_candidates(Counting(), read_candidates(path), path, "feedback", overwrite=True)
    assert read_candidates(path).annotation("feedback").values[0].tolist() == [1, 2]


def test_what_made_earlier_annotations_is_kept_in_another_output(given, tmp_path):
    path, _ = given
    first, second = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    annotate(str(path), "length", str(first), name="one")
    annotate(str(first), "length", str(second), name="two")
    recorded = json.loads(second.with_name("2.jsonl.annotations.json").read_text())
    assert {name: each["annotator"] for name, each in recorded.items()} == {
        "one": {"judge": "length"},
        "two": {"judge": "length"},
    }


def test_an_annotator_of_the_whole_file_sees_all_prompts_at_once(given, tmp_path):
    _, candidates = given
    annotator = Counting()
    annotator.whole_file = True
    annotate_candidates(annotator, candidates, tmp_path / "out.jsonl", "n", block_size=1)
    assert annotator.blocks == [candidates.prompts]


@pytest.mark.parametrize(
    ("records", "responses", "feedback"),
    [
        ([{"prompt": "p", "response": "r", "feedback": 2}], [["r"]], [[2]]),
        ([{"prompt": "p", "chosen": "r", "rejected": "s"}], [["r", "s"]], [[1, 0]]),
        ([{"prompt": "p", "response": "r"}], [["r"]], None),
        ([{"prompt": "p", "responses": ["r", "s"]}], [["r", "s"]], None),
        ([{"prompt": "p", "responses": ["r", "s"], "feedback": [3, 1]}], [["r", "s"]], [[3, 1]]),
        ([{"question": "p", "completion": "r", "label": True}], [["r"]], [[1]]),
        (
            [
                {
                    "prompt": "p",
                    "response": "r",
                    "feedback": 1,
                    "references": ["x"],
                    "id": "a",
                    "annotator": {"age": 30},
                    "finished": "by me",
                }
            ]
            * 2,
            [["r"], ["r"]],
            [[1], [1]],
        ),
    ],
)
def test_logged_records_of_any_kind_become_candidates(
    write_lines, tmp_path, records, responses, feedback
):
    output = tmp_path / "out.jsonl"
    annotate(write_lines("in.jsonl", records), "length", str(output))
    lines = lines_of(output)
    assert [line["responses"] for line in lines] == responses
    assert ([line["feedback"] for line in lines] if feedback else None) == feedback
    assert [line["id"] for line in lines] == list(range(len(lines)))
    if "references" in records[0]:
        assert (lines[1]["references"], lines[1]["source_id"]) == (["x"], "a")
        # A field of the file's own is kept, unless it means something else in a line of candidates.
        assert lines[1]["annotator"] == {"age": 30} and "finished" not in lines[1]
    assert [line["annotations"]["length"]["scores"] for line in lines] == [
        [1] * len(texts) for texts in responses
    ]


def test_lines_of_a_prompt_can_be_joined(write_lines, tmp_path):
    records = [
        {"prompt": p, "response": r, "feedback": len(r)}
        for p, r in (("p", "a"), ("q", "b"), ("p", "cc"))
    ]
    output = tmp_path / "out.jsonl"
    annotate(write_lines("in.jsonl", records), "length", str(output), join_prompts=True)
    assert [(line["prompt"], line["responses"], line["feedback"]) for line in lines_of(output)] == [
        ("p", ["a", "cc"], [1, 2]),
        ("q", ["b"], [1]),
    ]


def test_named_scores_become_annotations(write_lines, tmp_path):
    records = [{"prompt": "p", "response": "r", "scores": {"honesty": 1, "style": 2}}]
    output = tmp_path / "out.jsonl"
    annotate(write_lines("in.jsonl", records), "length", str(output))
    found = read_candidates(output)
    assert set(found.annotations) == {"honesty", "style", "length"}
    assert found.annotation("style").values[0].tolist() == [2]


def test_unusable_records_are_counted_and_too_many_are_refused(write_lines, tmp_path):
    good = [{"prompt": f"p{i}", "response": "r", "feedback": 1} for i in range(30)]
    output = str(tmp_path / "out.jsonl")
    result = annotate(write_lines("in.jsonl", [*good, "{torn"]), "length", output)
    assert result["rejected"] == {"invalid_json": 1}
    assert "records left out: 1 invalid_json" in result["report"]
    with pytest.raises(UserError, match=r"2 of 3 records .*bad.jsonl:2"):
        annotate(write_lines("bad.jsonl", [good[0], "{", "{"]), "length", output)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"annotator": "elo"}, "no annotator named 'elo'"),
        ({"name": "a.b"}, "letters, digits, underscores and hyphens"),
        ({"annotator": "features:words", "name": "log_probs"}, "'log_probs' holds scores"),
        ({"kind": "tripel"}, "kind='tripel'; known: triplet"),
        ({"block_size": 0}, "annotate.block_size is 0"),
        ({"input": "absent.jsonl"}, "absent.jsonl"),
    ],
)
def test_mistakes_are_told_in_one_line(given, tmp_path, options, message):
    path, _ = given
    arguments = {"input": str(path), "annotator": "length", "output": str(tmp_path / "out.jsonl")}
    with pytest.raises(UserError, match=message):
        annotate(**{**arguments, **options})


def test_prompts_alone_and_unknown_files_are_refused(write_lines, tmp_path):
    output = str(tmp_path / "out.jsonl")
    with pytest.raises(UserError, match="prompts without responses; let a policy answer"):
        annotate(write_lines("p.jsonl", [{"prompt": "p"}]), "length", output)
    with pytest.raises(UserError, match="could be recognised; say how to read it"):
        annotate(write_lines("x.jsonl", [{"a": 1}]), "length", output)


def test_names_of_annotations_are_those_of_their_annotators():
    assert default_name("slot_error:acts.jsonl") == "slot_error"
    assert default_name("log_prob:policy=runs/a,per_token=true") == "log_prob"
    assert default_name("my.judges:vowels") == "vowels"
    assert default_name("judges_of_mine:vowels") == "vowels"
    assert default_name("llm:pairwise") == "llm"


def test_the_command_prints_counts_and_tells_mistakes_in_one_line(given, tmp_path, repository):
    path, _ = given
    command = [sys.executable, "-m", "jaxalign", "annotate", f"--input={path}"]
    env = {**os.environ, "PYTHONPATH": str(repository), "JAX_PLATFORMS": "cpu"}
    output = tmp_path / "out.jsonl"
    done = subprocess.run(
        [*command, "--annotator=features:words,overlap", f"--output={output}"],
        capture_output=True,
        text=True,
        env=env,
        check=True,
    )
    assert "3 prompts with the annotation 'features' (vectors), 3 of them new" in done.stdout
    assert read_candidates(output).annotation("features.words").values[1].tolist() == [2, 1, 1]
    wrong = subprocess.run(
        [*command, "--annotator=labels:absent.jsonl", f"--output={output}"],
        capture_output=True,
        text=True,
        env=env,
    )
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines() == [
        "jaxalign: absent.jsonl: no such file of labels (labels_wanted writes one to fill in)"
    ]


def test_an_output_that_was_replaced_is_not_taken_for_the_annotated_one(given, tmp_path):
    path, candidates = given
    output = tmp_path / "out.jsonl"
    annotate_candidates(Counting(), candidates, output, "n")
    write_candidates(output, candidates)
    with pytest.raises(UserError, match=r"was replaced after the annotation 'n' .*--overwrite"):
        annotate_candidates(Counting(), candidates, output, "n")
    # In place, a file that was generated again has lost its annotation, and gets it anew.
    annotate_candidates(Counting(), candidates, path, "n")
    write_candidates(path, candidates)
    assert annotate_candidates(Counting(), read_candidates(path), path, "n")["new"] == 3
    assert "n" in read_candidates(path).annotations


@pytest.mark.parametrize("in_place", [True, False])
def test_a_process_killed_before_it_recorded_its_output_knows_it_again(
    given, tmp_path, monkeypatch, in_place
):
    path, candidates = given
    output = path if in_place else tmp_path / "out.jsonl"
    annotate_candidates(Counting(setting=1), candidates, output, "n")
    with monkeypatch.context() as patch:
        patch.setattr(
            "jaxalign.annotation.annotated_output.Output._write_record", lambda job: 1 / 0
        )
        with pytest.raises(ZeroDivisionError):
            annotate_candidates(Counting(setting=2), candidates, output, "n", overwrite=True)
    # The values are those of setting 2, so that those of setting 1 are refused.
    with pytest.raises(UserError, match="not recorded"):
        annotate_candidates(Counting(setting=1), read_candidates(output), output, "n")
    again = read_candidates(path) if in_place else candidates
    assert annotate_candidates(Counting(setting=2), again, output, "n")["new"] == 0
    recorded = json.loads(output.with_name(f"{output.name}.annotations.json").read_text())
    assert recorded["n"]["annotator"] == {"setting": 2}
    assert not [each for each in tmp_path.iterdir() if "finishing" in each.name]


def test_lines_of_two_versions_of_the_input_are_not_mixed(given, tmp_path):
    _, candidates = given
    output = tmp_path / "out.jsonl"
    with pytest.raises(UserError, match="the server is away"):
        annotate_candidates(Counting(1), candidates, output, "n", block_size=1)
    values = [np.zeros(len(texts)) for texts in candidates.responses]
    changed = candidates.with_annotation("feedback", Annotation("scores", values))
    with pytest.raises(UserError, match="written with other settings"):
        annotate_candidates(Counting(), changed, output, "n", block_size=1)


def test_the_output_is_locked_before_the_input_is_read(given, monkeypatch):
    path, _ = given
    held = []

    def read(*args, **options):
        held.extend(locks._held)
        return read_responses(*args, **options)

    monkeypatch.setattr("jaxalign.annotation.annotate.read_responses", read)
    annotate(str(path), "length", str(path))
    assert [os.path.basename(each) for each in held] == [".in.jsonl.lock"]


def test_a_side_file_that_is_a_pipe_is_not_waited_for(given, tmp_path):
    _, candidates = given
    os.mkfifo(tmp_path / "in.jsonl.annotations.json")
    assert annotate_candidates(Counting(), candidates, tmp_path / "out.jsonl", "n")["new"] == 3
