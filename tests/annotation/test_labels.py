"""Human labels: every form of a line, their means, and the file that asks for them."""

import json

import numpy as np
import pytest

from jaxalign.annotation import annotators
from jaxalign.annotation.annotators import get_annotator
from jaxalign.annotation.labels_wanted import labels_missing, labels_wanted
from jaxalign.data.candidates import Candidates
from jaxalign.errors import UserError

NAN = np.nan


@pytest.fixture
def annotate(candidates, write_lines):
    def run(lines, settings=""):
        made = get_annotator(f"labels:file={write_lines('labels.jsonl', lines)}{settings}")
        made.check(candidates)
        found = annotators.apply(made, candidates, "human").annotation("human")
        return found.kind, [array.tolist() for array in found.values], made.counts()

    return run


def equal(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


def test_labels_of_single_responses_are_averaged_and_equal_texts_share_them(annotate):
    kind, values, counts = annotate(
        [
            {"prompt": "one", "response": "a", "feedback": 1},
            {"id": 0, "response": "a", "feedback": 0},
            {"prompt": "two words", "responses": ["d", "eee"], "feedback": ["up", None]},
            {"prompt": "three", "response": "f", "feedback": True},
        ]
    )
    assert kind == "scores"
    equal(values, [[0.5, NAN], [NAN, 1, NAN], [1, 1]])
    assert counts == {"labels": 4, "labels that are null": 1}


def test_comparisons_give_preferences(annotate):
    kind, values, _ = annotate(
        [
            {"prompt": "one", "chosen": "a", "rejected": "bb"},
            {"prompt": "one", "response_a": "a", "response_b": "bb", "winner": "b"},
            {"prompt": "one", "response_a": "a", "response_b": "bb", "winner": "tie"},
            {"prompt": "two words", "response_a": "d", "response_b": "eee", "winner": "A"},
            {"prompt": "two words", "response_a": "c c", "response_b": "eee", "winner": None},
        ]
    )
    assert kind == "preferences"
    equal(values[0], [[NAN, 0.5], [0.5, NAN]])
    equal(values[1], [[NAN, NAN, NAN], [NAN, NAN, 1], [NAN, 0, NAN]])
    assert np.isnan(values[2]).all()


def test_comparisons_as_scores_are_the_share_of_won_comparisons(annotate):
    lines = [
        {"prompt": "two words", "chosen": "d", "rejected": "eee"},
        {"prompt": "two words", "chosen": "d", "rejected": "c c"},
        {"prompt": "two words", "chosen": "eee", "rejected": "c c"},
    ]
    kind, values, _ = annotate(lines, ",kind=scores")
    assert kind == "scores"
    equal(values[1], [0, 1, 0.5])


def test_scores_as_preferences_are_compared(annotate):
    lines = [{"prompt": "two words", "responses": ["c c", "d", "eee"], "feedback": [1, 2, 1]}]
    _, values, _ = annotate(lines, ",kind=preferences")
    equal(values[1], [[NAN, 0, 0.5], [1, NAN, 1], [0.5, 0, NAN]])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": "four", "response": "a", "feedback": 1}, "labels the unknown prompt 'four'"),
        ({"id": 9, "response": "a", "feedback": 1}, "labels the unknown prompt 9"),
        ({"prompt": "one", "response": "x", "feedback": 1}, "labels the response 'x', which"),
        ({"prompt": "one", "response": "a", "feedback": "good"}, "feedback is the text 'good'"),
        ({"prompt": "one", "response": "a", "feedback": float("inf")}, "feedback is inf"),
        ({"prompt": "one", "responses": ["a"], "feedback": [1, 2]}, "of equal length"),
        ({"prompt": "one", "winner": "a"}, "a label needs 'response' and 'feedback'"),
        ({"prompt": "one", "chosen": "a"}, "'rejected' must be a text"),
        ({"prompt": "three", "chosen": "f", "rejected": "f"}, "compares two responses that are"),
        (
            {"prompt": "one", "response_a": "a", "response_b": "bb", "winner": "c"},
            "'winner' is 'c'; write",
        ),
        ({"response": "a", "feedback": 1}, "'prompt' must be a text, or 'id' an id"),
    ],
)
def test_a_wrong_label_is_told_with_file_and_line(annotate, line, message):
    good = {"prompt": "one", "response": "a", "feedback": 1}
    with pytest.raises(UserError, match=r"labels\.jsonl:2.*" + message):
        annotate([good, line])


def test_a_file_without_labels_is_told(annotate):
    with pytest.raises(UserError, match=r"holds no labels \(2 are null\); fill them in"):
        annotate([{"prompt": "one", "responses": ["a", "bb"], "feedback": [None, None]}])


@pytest.mark.parametrize(("form", "count", "missing"), [("scores", 3, 7), ("pairs", 4, 4)])
def test_what_is_wanted_can_be_filled_in_and_read(candidates, tmp_path, form, count, missing):
    path = tmp_path / "wanted.jsonl"
    assert labels_wanted(candidates, path, form=form) == count
    assert labels_missing(path) == missing
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    filled = {"feedback": lambda line: [1] * len(line["responses"]), "winner": lambda line: "a"}
    for line in lines:
        line.update({key: make(line) for key, make in filled.items() if key in line})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert labels_missing(path) == 0
    found = annotators.apply(get_annotator(f"labels:{path}"), candidates, "human")
    assert found.annotation("human").kind == {"scores": "scores", "pairs": "preferences"}[form]
    with pytest.raises(UserError, match="exists already and may hold labels"):
        labels_wanted(candidates, path)


def test_nobody_is_asked_about_an_empty_response(tmp_path):
    candidates = Candidates(["p", "q"], [["a", " ", "b"], ["", "\n"]])
    for form, wanted in (("scores", [["a", "b"]]), ("pairs", [["a", "b"]])):
        path = tmp_path / f"{form}.jsonl"
        assert labels_wanted(candidates, path, form=form) == 1
        (line,) = map(json.loads, path.read_text().splitlines())
        assert [line.get("responses") or [line["response_a"], line["response_b"]]] == wanted


def test_only_chosen_pairs_can_be_asked_for(candidates, tmp_path):
    path = tmp_path / "wanted.jsonl"
    labels_wanted(candidates, path, form="pairs", pairs=[(1, 2, 0)])
    (line,) = map(json.loads, path.read_text().splitlines())
    assert (line["id"], line["response_a"], line["response_b"]) == (1, "eee", "c c")


def test_ratings_on_another_scale_are_not_averaged_with_comparisons(annotate, candidates):
    prompt, texts = candidates.prompts[0], candidates.responses[0]
    rows = [
        {"prompt": prompt, "response": texts[0], "feedback": 5},
        {"prompt": prompt, "chosen": texts[0], "rejected": texts[1]},
    ]
    with pytest.raises(UserError, match=r"the rating 5 cannot be averaged"):
        annotate(rows)
