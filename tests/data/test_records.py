import hypothesis
import pytest
from hypothesis import strategies as st

from jaxalign.data import derived, record_fields, records, rejections, validation
from jaxalign.data.record_fields import RecordError
from jaxalign.data.records import parse_record
from jaxalign.selection import from_feedback


def test_every_kind_becomes_the_same_shape():
    triplet = parse_record({"prompt": "p", "response": "r", "feedback": 2}, "triplet")
    assert (triplet.responses, triplet.feedback) == (("r",), (2.0,))
    pair = parse_record({"prompt": "p", "chosen": "a", "rejected": "b", "margin": 0.5}, "pair")
    assert (pair.responses, pair.feedback) == (("a", "b"), (0.5, 0.0))
    plain = parse_record({"prompt": "p", "chosen": "a", "rejected": "b"}, "pair")
    assert plain.feedback == (1.0, 0.0)
    ranked = parse_record({"prompt": "p", "responses": ["a", "b", "c"]}, "ranked")
    assert ranked.feedback == (1.0, 0.5, 0.0)
    seq2seq = parse_record({"prompt": "p", "response": "r"}, "seq2seq")
    assert seq2seq.feedback is None
    multi = parse_record(
        {"prompt": "p", "response": "r", "scores": {"b": 1, "a": 3}, "group": 7}, "multi"
    )
    assert (multi.scores, multi.feedback, multi.group) == (((3.0, 1.0),), (2.0,), "7")


@pytest.mark.parametrize(
    ("given", "wanted"), [("up", 1.0), ("down", 0.0), (True, 1.0), (False, 0.0), (-1, -1.0)]
)
def test_feedback_may_be_a_number_a_boolean_or_a_thumb(given, wanted):
    record = parse_record({"prompt": "p", "response": "r", "feedback": given}, "triplet")
    assert record.feedback == (wanted,)


def test_field_names_can_be_those_of_the_file():
    record = parse_record(
        {"question": "p", "answer": "r", "reward": 1.5},
        "triplet",
        fields={"prompt": "question", "response": "answer", "feedback": "reward"},
    )
    assert (record.prompt, record.responses, record.feedback) == ("p", ("r",), (1.5,))


BAD = [
    ("triplet", '{"prompt": "p", "response": "r"', "invalid_json"),
    ("triplet", "[1, 2]", "wrong_type"),
    ("triplet", '{"response": "r", "feedback": 1}', "missing_field"),
    ("triplet", '{"prompt": "p", "response": "r"}', "missing_field"),
    ("triplet", '{"prompt": "p", "response": "r", "feedback": null}', "missing_field"),
    ("triplet", '{"prompt": 3, "response": "r", "feedback": 1}', "wrong_type"),
    ("triplet", '{"prompt": "p", "response": ["r"], "feedback": 1}', "wrong_type"),
    ("triplet", '{"prompt": "p", "response": "r", "feedback": "good"}', "wrong_type"),
    ("triplet", '{"prompt": "p", "response": "r", "feedback": NaN}', "nonfinite_feedback"),
    ("triplet", '{"prompt": "p", "response": "r", "feedback": -Infinity}', "nonfinite_feedback"),
    ("triplet", '{"prompt": "p", "response": "r", "feedback": 1e999}', "nonfinite_feedback"),
    ("triplet", '{"prompt": "p", "response": "  ", "feedback": 1}', "empty_response"),
    ("triplet", '{"prompt": "", "response": "r", "feedback": 1}', "empty_prompt"),
    ("pair", '{"prompt": "p", "chosen": "a"}', "missing_field"),
    ("pair", '{"prompt": "p", "chosen": "a", "rejected": ""}', "empty_response"),
    ("ranked", '{"prompt": "p", "responses": ["a"]}', "wrong_type"),
    ("ranked", '{"prompt": "p", "responses": ["a", "b"], "feedback": [1]}', "wrong_type"),
    ("multi", '{"prompt": "p", "response": "r", "scores": {}}', "wrong_type"),
    ("multi", '{"prompt": "p", "response": "r", "scores": {"a": NaN}}', "nonfinite_feedback"),
]


@pytest.mark.parametrize(("kind", "line", "reason"), BAD)
def test_every_bad_line_is_reported_with_file_and_line(kind, line, reason, write_lines):
    path = write_lines(["", line])
    log = rejections.RejectionLog()
    assert list(validation.read_jsonl(path, kind, log=log)) == []
    (entry,) = log.entries
    assert (entry["file"], entry["line"], entry["reason"]) == (path, 2, reason)
    assert entry["reason"] in record_fields.REASONS
    assert log.counts == {reason: 1}
    assert log.seen == 1
    with pytest.raises(rejections.DataError, match=r"data\.jsonl:2: "):
        list(validation.read_jsonl(path, kind))


def test_invalid_utf8_is_invalid_json(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"prompt": "\xff", "response": "r"}\n')
    log = rejections.RejectionLog()
    assert list(validation.read_jsonl(str(path), "seq2seq", log=log)) == []
    assert log.counts == {"invalid_json": 1}


def test_a_score_that_other_records_have_must_not_be_missing(write_lines):
    path = write_lines(
        [
            {"prompt": "p", "response": "r", "scores": {"a": 1, "b": 2}},
            {"prompt": "q", "response": "r", "scores": {"a": 1}},
        ]
    )
    log = rejections.RejectionLog()
    assert len(list(validation.read_jsonl(path, "multi", log=log))) == 1
    assert log.entries[0]["message"] == "scores lacks 'b'"


def test_duplicates_name_the_first(write_lines):
    row = {"prompt": "p", "response": "r", "feedback": 1}
    path = write_lines([row, row | {"feedback": 0}, row])
    log = rejections.RejectionLog()
    duplicates = validation.Duplicates()
    kept = [r for r in validation.read_jsonl(path, "triplet", log=log) if duplicates.is_new(r, log)]
    assert [record.line for record in kept] == [1, 2]
    assert log.entries[0]["line"] == 3
    assert log.entries[0]["message"] == f"the same record as {path}:1"


@hypothesis.given(st.text())
def test_prompt_ids_are_positive_int32(prompt):
    assert 0 < records.prompt_id(prompt) < 2**31
    assert records.prompt_id(prompt) == records.prompt_id(str(prompt))


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="Unknown record kind 'tripel'"):
        parse_record({"prompt": "p"}, "tripel")
    with pytest.raises(RecordError):
        parse_record(3, "triplet")


def triplets(*rows):
    return [records.Record(p, (r,), (f,)) for p, r, f in rows]


def test_pairs_from_groups():
    data = triplets(("p", "a", 1), ("p", "b", 3), ("q", "c", 2), ("p", "d", 1), ("q", "e", 2))
    (best_worst,) = from_feedback.pairs_from_groups(data)
    assert (best_worst.responses, best_worst.feedback) == (("b", "a"), (2.0, 0.0))
    every = from_feedback.pairs_from_groups(data, mode="all")
    assert [pair.responses for pair in every] == [("b", "a"), ("b", "d")]


def test_filter_and_best_of_n():
    data = triplets(("p", "a", 1), ("p", "b", 3), ("q", "c", 2), ("q", "d", 2))

    def kept(**options):
        return ["".join(r.responses) for r in from_feedback.filter_by_feedback(data, **options)]

    # As the loss does it: strictly above.
    assert kept(threshold=2) == ["b"] and kept(threshold=1) == ["b", "c", "d"]
    assert kept(quantile=0.75) == kept(quantile=0.5) == ["b"]
    hundred = triplets(*(("p", str(i), i) for i in range(100)))
    for share in (0.07, 0.28, 0.55):
        assert len(from_feedback.filter_by_feedback(hundred, quantile=share)) == round(
            100 * (1 - share)
        )
    assert kept(quantile=0.25) == ["b", "c", "d"]
    assert kept(quantile=0.0) == ["a", "b", "c", "d"] and kept(quantile=1.0) == []
    best = from_feedback.best_of_n(data)
    assert [(r.prompt, r.responses, r.feedback) for r in best] == [
        ("p", ("b",), None),
        ("q", ("c",), None),
    ]


def test_group_by_prompt_keeps_every_response_and_the_limit():
    data = triplets(("p", "a", 1), ("q", "c", 2), ("p", "b", 3), ("p", "d", 4))
    joined = derived.group_by_prompt(data, 2)
    assert [(r.prompt, r.responses, r.feedback) for r in joined] == [
        ("p", ("a", "b"), (1, 3)),
        ("p", ("d",), (4,)),
        ("q", ("c",), (2,)),
    ]


@pytest.mark.parametrize("kind", ["triplet", "pair", "ranked", "seq2seq", "multi"])
def test_written_records_read_back_equal(kind, tmp_path):
    obj = {
        "prompt": "p é",
        "response": "r",
        "feedback": [2.0, 1.0] if kind == "ranked" else 2.0,
        "chosen": "a",
        "rejected": "b",
        "margin": 2.0,
        "responses": ["a", "b"] if kind == "ranked" else None,
        "scores": {"x": 1.0, "y": 3.0},
        "group": "g",
    }
    record = parse_record(obj, kind)
    path = str(tmp_path / "out.jsonl")
    derived.write_jsonl([record], path, kind, score_names=("x", "y"))
    (again,) = validation.read_jsonl(path, kind)
    assert again.key == record.key
    assert again.group == "g"
