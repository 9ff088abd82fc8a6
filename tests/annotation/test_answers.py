"""Answers that are read from responses, and correct answers from fields, files and annotations."""

import numpy as np
import pytest

from jaxalign.annotation.answers import get_answer_extractor
from jaxalign.annotation.correct_answers import correct_answers
from jaxalign.data.candidates import Annotation, Candidates
from jaxalign.errors import UserError


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("A: 90,000", "90000"),
        ("He pays $1,250.50.", "1250.5"),
        ("75.00", "75"),
        ("007", "7"),
        ("0.50", "0.5"),
        (".5", "0.5"),
        ("10", "10"),
        ("-0", "0"),
        ("minus it is -12", "-12"),
        ("5-3", "3"),
        ("1, 2,3", "3"),
        ("12,34", "34"),
        ("1,000,000.", "1000000"),
        ("so 1e5", "100000"),
        ("2.5E-3 g", "0.0025"),
        ("none", None),
    ],
)
def test_equal_numbers_are_equal_answers(text, answer):
    assert get_answer_extractor("last_number")(text) == answer


def test_a_mark_limits_where_the_number_is_read():
    extract = get_answer_extractor("last_number:after=####")
    assert extract("3 and 4 #### 7 apples") == "7"
    assert extract("3 and 4") is None and extract("3 #### none") is None


def test_a_regular_expression_takes_its_last_match_or_group():
    assert get_answer_extractor(r"regex:A: (.+)")("A: 1\nA:  yes \n") == "yes"
    assert get_answer_extractor(r"regex:[ab]+")("ab x ba") == "ba"
    assert get_answer_extractor(r"regex:(a)?b")("b") is None
    with pytest.raises(UserError, match="is not a regular expression"):
        get_answer_extractor("regex:(")


def test_the_whole_text_ignores_case_and_white_space():
    assert get_answer_extractor("whole_text")(" Yes,\n it is ") == "yes, it is"
    assert get_answer_extractor("whole_text")(" ") is None


def test_accents_that_are_written_in_two_ways_are_the_same():
    for spec in ("whole_text", r"regex:caf\S+"):
        extract = get_answer_extractor(spec)
        assert extract("cafe\u0301") == extract("caf\u00e9") is not None
    assert get_answer_extractor("whole_text")("Straße") == "strasse"


def test_a_function_of_the_user_is_called_and_its_answers_are_checked(monkeypatch, tmp_path):
    (tmp_path / "own_answers.py").write_text(
        "def first(text):\n    return text[:1]\ndef wrong(text):\n    return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert get_answer_extractor("own_answers:first")("bc") == "b"
    assert get_answer_extractor("own_answers:first")("") is None
    with pytest.raises(UserError, match="gave int for 'x'; it must give a text"):
        get_answer_extractor("own_answers:wrong")("x")
    with pytest.raises(UserError, match="no answer extractor named 'last'"):
        get_answer_extractor("last")


def asked(**fields):
    return Candidates(
        ["p", "q"],
        [["1", "2"], ["3", "4"]],
        {"feedback": Annotation("scores", [np.array([0.0, 1.0]), np.array([-1.0, np.nan])])},
        [{"id": index, **{k: v[index] for k, v in fields.items()}} for index in range(2)],
        "c.jsonl",
    )


def truths(spec, candidates, extractor="last_number"):
    return correct_answers(spec, candidates, candidates.responses, get_answer_extractor(extractor))


def test_correct_answers_come_from_fields_files_and_annotations(write_lines):
    assert truths("field:gold", asked(gold=["#### 2.0", [3, "4"]])) == [{"2"}, {"3", "4"}]
    assert truths("annotation:feedback", asked()) == [{"2"}, set()]
    lines = [{"prompt": "q", "answer": 4}, {"prompt": "p", "response": "so 1"}]
    path = write_lines("gold.jsonl", [*lines, {"prompt": "p", "answer": "2"}])
    assert truths(f"file:{path}", asked()) == [{"1", "2"}, {"4"}]


@pytest.mark.parametrize(
    ("spec", "fields", "message"),
    [
        ("gold", {}, "write field:NAME"),
        ("field:gold", {}, r"prompt 0: there is no field gold \(fields there: id\)"),
        ("field:gold", {"gold": ["1", "x"]}, "prompt 1: .* no answer in the correct answer 'x'"),
        ("field:gold", {"gold": [True, "1"]}, "must hold a text, a number"),
        ("annotation:judge", {}, "has no annotation 'judge'"),
        ("file:/nowhere", {}, "no such file"),
    ],
)
def test_bad_correct_answers_are_one_line(spec, fields, message):
    with pytest.raises(UserError, match=message):
        truths(spec, asked(**fields))


def test_every_prompt_needs_a_correct_answer_in_a_file(write_lines):
    path = write_lines("gold.jsonl", [{"prompt": "p", "answer": 1}])
    with pytest.raises(UserError, match=r"no correct answer to 1 of 2 prompts .* to 'q'"):
        truths(f"file:{path}", asked())
