"""Candidates: what a file holds comes back unchanged, and every mistake in it is told with its place."""

import json
import math

import numpy as np
import pytest

from jaxalign.data.candidates import Annotation, Candidates, read_candidates, write_candidates
from jaxalign.data.rejections import DataError

NAN = math.nan


@pytest.fixture
def candidates():
    return Candidates(
        ["one", "two"],
        [["a", "b"], ["c", "d", "é"]],
        {
            "log_probs": Annotation("scores", [np.array([-1.0, -2]), np.array([-3.0, -4, -5])]),
            "judge": Annotation("scores", [np.array([0.5, NAN]), np.array([1.0, 0, NAN])]),
            "pairs": Annotation(
                "preferences",
                [
                    np.array([[NAN, 0.7], [0.3, NAN]]),
                    np.array([[NAN, 1, NAN], [0, NAN, 0.5], [NAN, 0.5, NAN]]),
                ],
            ),
            "features": Annotation("vectors", [np.ones((2, 2)), np.zeros((3, 2))], ("length", "x")),
        },
        [{"id": 7, "group": "g"}, {"id": 8}],
    )


def test_a_file_returns_what_was_written(candidates, tmp_path):
    path = tmp_path / "c.jsonl"
    write_candidates(path, candidates)
    again = read_candidates(path)
    assert again.prompts == candidates.prompts and again.responses == candidates.responses
    assert list(again.fields) == list(candidates.fields)
    assert again.annotations.keys() == candidates.annotations.keys()
    for name, found in again.annotations.items():
        wanted = candidates.annotations[name]
        assert (found.kind, tuple(found.names)) == (wanted.kind, tuple(wanted.names))
        for one, other in zip(found.values, wanted.values, strict=True):
            np.testing.assert_array_equal(one, other)


def test_log_probs_are_a_field_of_the_line_and_missing_values_are_null(candidates):
    line = candidates.line(0)
    assert line["log_probs"] == [-1.0, -2.0]
    assert line["annotations"]["judge"] == {"scores": [0.5, None]}
    assert line["annotations"]["pairs"] == {"preferences": [[None, 0.7], [0.3, None]]}
    assert line["annotations"]["features"] == {
        "vectors": [[1, 1], [1, 1]],
        "names": ["length", "x"],
    }
    assert (line["id"], line["group"]) == (7, "g")


def test_missing_values_are_counted_without_the_diagonal(candidates):
    counts = {name: found.missing for name, found in candidates.annotations.items()}
    assert counts == {"log_probs": 0, "judge": 2, "pairs": 2, "features": 0}


def test_a_column_of_named_vectors_is_an_annotation_of_its_own(candidates):
    column = candidates.annotation("features.length", "scores")
    assert [array.tolist() for array in column.values] == [[1, 1], [0, 0, 0]]
    with pytest.raises(DataError, match=r"no annotation 'features.width' .it has: log_probs"):
        candidates.annotation("features.width")


def test_prompts_are_taken_in_the_given_order_with_their_annotations(candidates):
    taken = candidates.take([1])
    assert (taken.prompts, taken.responses, taken.fields[0]["id"]) == (
        ["two"],
        [["c", "d", "é"]],
        8,
    )
    assert taken.annotation("judge").values[0][0] == 1.0
    assert taken.annotation("features").names == ("length", "x")


def test_an_absent_annotation_and_one_of_another_kind_are_told(candidates):
    with pytest.raises(DataError, match=r"no annotation 'elo' .*add it with jaxalign annotate"):
        candidates.annotation("elo")
    with pytest.raises(DataError, match="'judge' holds scores; preferences are needed"):
        candidates.annotation("judge", "preferences")


def test_feedback_is_an_annotation_only_as_a_list(tmp_path):
    path = tmp_path / "c.jsonl"
    # `generate` keeps the other fields of a logged triplet, whose feedback is that of the logged response.
    path.write_text(json.dumps({"prompt": "p", "responses": ["a"], "feedback": 1.0}) + "\n")
    assert read_candidates(path).annotations == {}
    assert read_candidates(path).fields[0]["feedback"] == 1.0
    path.write_text(json.dumps({"prompt": "p", "responses": ["a"], "feedback": [1.0]}) + "\n")
    assert read_candidates(path).annotation("feedback").values[0].tolist() == [1.0]


GOOD = {"prompt": "p", "responses": ["a", "b"]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": " ", "responses": []}, "'prompt' must be a text that is not empty"),
        ({"prompt": "p", "responses": "a"}, "'responses' must be a list of texts"),
        ({"prompt": "p", "responses": ["a", 3]}, "'responses' must be a list of texts"),
        ({**GOOD, "annotations": []}, "'annotations' must be an object"),
        ({**GOOD, "annotations": {"j": [1, 2]}}, "'j' must be an object with one of scores"),
        ({**GOOD, "annotations": {"j": {"marks": [1, 2]}}}, "'j' must be an object with one of"),
        ({**GOOD, "annotations": {"j": {"scores": [1, "x"]}}}, "finite numbers or null, not 'x'"),
        ({**GOOD, "annotations": {"j": {"scores": [1, True]}}}, "finite numbers or null"),
        ({**GOOD, "annotations": {"j": {"scores": [1, float("nan")]}}}, "finite numbers or null"),
        ({**GOOD, "annotations": {"j": {"scores": [1]}}}, r"shape \[1\]; its kind scores needs"),
        ({**GOOD, "annotations": {"j": {"preferences": [[1, 0]]}}}, r"needs \[2, 2\]"),
        ({**GOOD, "annotations": {"j": {"vectors": [[1], [1, 2]]}}}, "differ in length"),
        (
            {**GOOD, "annotations": {"j": {"vectors": [[1], [1]], "names": ["a", "b"]}}},
            r"needs \[2, 2\]",
        ),
        ({**GOOD, "annotations": {"j": {"scores": [1, 2], "names": ["a"]}}}, "only vectors have"),
        ({**GOOD, "log_probs": 3}, "'log_probs' must hold lists"),
        ({**GOOD, "annotations": {"j": {"scores": [1, 2]}}}, "are not those of the lines before"),
        ("{broken", "not valid JSON"),
        ("[1]", "expected an object"),
    ],
)
def test_a_malformed_line_is_told_with_file_and_line(write_lines, line, message):
    lines = [GOOD, line] if "lines before" in message else ["", line]
    path = write_lines(lines, "bad.jsonl")
    with pytest.raises(DataError, match=r"bad\.jsonl:2.*" + message):
        read_candidates(path)


def test_an_empty_file_and_a_missing_one_are_told(write_lines, tmp_path):
    with pytest.raises(DataError, match="holds no candidates"):
        read_candidates(write_lines([""], "empty.jsonl"))
    with pytest.raises(DataError, match="no such file"):
        read_candidates(tmp_path / "absent.jsonl")


def test_an_annotation_of_another_number_of_responses_is_refused(candidates):
    with pytest.raises(DataError, match="'x' has 1 entries for 2 prompts"):
        candidates.with_annotation("x", Annotation("scores", [np.zeros(2)]))
    with pytest.raises(DataError, match=r"prompt 1: the annotation 'x' has the shape \[2\]"):
        candidates.with_annotation("x", Annotation("scores", [np.zeros(2), np.zeros(2)]))
    with pytest.raises(ValueError, match="unknown kind"):
        Annotation("ranks", [])


def test_preferences_that_are_no_probabilities_are_refused():
    for value in (-0.5, 1.5):
        matrix = np.array([[math.nan, value], [0.5, math.nan]])
        with pytest.raises(DataError, match=r"outside \[0, 1\]"):
            Candidates(["p"], [["a", "b"]], {"judge": Annotation("preferences", [matrix])})
