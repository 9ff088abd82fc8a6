"""Candidates as training records of every kind."""

import pytest

from jaxalign.data import sources
from jaxalign.data.evaluation_records import read_evaluation_records
from jaxalign.data.recognition import Found, layout_of
from jaxalign.data.rejections import RejectionLog
from jaxalign.errors import UserError

LINE = {
    "id": 0,
    "prompt": "p",
    "responses": ["a", "b", "c"],
    "log_probs": [-1, -2, -3],
    "group": "g",
    "annotations": {
        "judge": {"scores": [0.5, 2.0, None]},
        "other": {"scores": [1, 1, 1]},
        "features": {"vectors": [[3, 0.1], [4, 0.2], [5, 0.3]], "names": ["length", "overlap"]},
        "embeddings": {"vectors": [[1], [2], [3]]},
    },
}
JUDGE = "feedback=annotations.judge.scores"


@pytest.fixture
def read(write_lines):
    def records(kind, fields="", lines=(LINE,), **options):
        log = RejectionLog()
        source = sources.JsonlSource(
            {"all": write_lines(list(lines))}, kind, layout="candidates", fields=fields, **options
        )
        return list(source.records("all", log)), log, source

    return records


def test_triplets_are_the_responses_with_feedback_and_missing_values_are_counted(read):
    records, log, _ = read("triplet", JUDGE)
    assert [(r.prompt, r.responses, r.feedback) for r in records] == [
        ("p", ("a",), (0.5,)),
        ("p", ("b",), (2.0,)),
    ]
    assert {record.group for record in records} == {"g"}
    assert log.counts == {"missing_rating": 1} and log.seen == 3
    assert "response 2" in log.entries[0]["message"]


@pytest.mark.parametrize("name", ["annotations.judge", "annotations.judge.scores"])
def test_a_pair_is_the_best_against_the_worst_of_the_labelled_responses(read, name):
    (record,), log, _ = read("pair", f"feedback={name}")
    assert (record.responses, record.feedback) == (("b", "a"), (1.5, 0.0))
    assert log.counts == {"missing_rating": 1}


def test_ranked_records_hold_the_labelled_responses(read):
    (record,), _, _ = read("ranked", JUDGE)
    assert (record.responses, record.feedback) == (("a", "b"), (0.5, 2.0))


def test_seq2seq_records_are_all_responses(read):
    records, log, _ = read("seq2seq")
    assert [record.responses for record in records] == [("a",), ("b",), ("c",)]
    assert not log.entries


def test_scores_are_all_annotations_that_are_not_the_feedback(read):
    records, log, source = read("multi", JUDGE)
    assert source.score_names == ("length", "other", "overlap")
    assert [(r.scores, r.feedback) for r in records] == [
        (((3.0, 1.0, 0.1),), (0.5,)),
        (((4.0, 1.0, 0.2),), (2.0,)),
    ]
    assert log.counts == {"missing_rating": 1}


def test_scores_can_be_the_columns_of_one_annotation(read):
    records, _, source = read("multi", "scores=annotations.features", responses_per_example=3)
    assert source.score_names == ("length", "overlap")
    assert records[0].scores == ((3.0, 0.1), (4.0, 0.2), (5.0, 0.3))


def test_a_column_can_be_the_feedback(read):
    records, _, _ = read("triplet", "feedback=annotations.features.length")
    assert [record.feedback for record in records] == [(3.0,), (4.0,), (5.0,)]


def test_an_absent_annotation_is_told_with_those_that_exist(read):
    records, log, _ = read("triplet", "feedback=annotations.elo.scores")
    assert not records and log.counts == {"missing_field": 1}
    assert (
        "'annotations.elo.scores'; annotations of kind scores: judge, other"
        in (log.entries[0]["message"])
    )


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({**LINE, "prompt": " "}, "empty_prompt"),
        ({**LINE, "responses": "a"}, "missing_field"),
        ({**LINE, "annotations": {"judge": {"scores": [1, None, None]}}}, "missing_rating"),
        ({**LINE, "annotations": {"judge": {"scores": [1, "x", 2]}}}, "wrong_type"),
        ({**LINE, "annotations": [1]}, "missing_field"),
        ([1], "wrong_type"),
    ],
)
def test_unusable_lines_are_counted_by_reason(read, line, reason):
    records, log, _ = read("pair", JUDGE, [LINE, line])
    assert len(records) == 1
    assert log.entries[-1]["reason"] == reason


def test_another_file_content_is_another_cache(read, write_lines):
    _, _, source = read("seq2seq")
    before = source.fingerprint()
    write_lines([{**LINE, "responses": ["a", "b", "d"]}])
    assert before is not None and source.fingerprint() != before


def test_candidates_are_recognised_and_read_as_recognised(read):
    assert layout_of(LINE) == Found("triplet", "candidates", (("feedback", JUDGE.split("=")[1]),))
    assert layout_of({**LINE, "feedback": [1, 2, 3]}) == Found("triplet", "candidates")
    generated = {key: LINE[key] for key in ("prompt", "responses", "log_probs")}
    assert layout_of(generated) == Found("seq2seq", "candidates")
    assert layout_of({"prompt": "p", "responses": ["a", "b"]}) == Found("ranked")


def test_an_evaluation_says_that_it_does_not_read_them(write_lines, tmp_path):
    path = write_lines([LINE])
    with pytest.raises(UserError, match="does not read the layout 'candidates'"):
        read_evaluation_records(path, side_file=str(tmp_path / "bad"), layout="candidates")
