"""Records of others become ours, and a file of another layout is refused in one message whose flags work."""

import re

import pytest

from jaxalign.data import cache, layouts, recognition, sources, validation
from jaxalign.data.recognition import Found
from jaxalign.data.record_fields import RecordError
from jaxalign.data.records import parse_record
from jaxalign.data.rejections import DataError, RejectionLog

USER, REPLY, OTHER = (
    {"role": "user", "content": "Hi, who are you?"},
    {"role": "assistant", "content": "A T5."},
    {"role": "assistant", "content": "Guess."},
)
HH = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Who are you?\n\nAssistant:"
PROMPT = "user: Hi, who are you?"

# An object, how it is recognised, and the prompt, responses and feedback of its record.
CASES = {
    "ours": (
        {"prompt": "p", "response": "r", "feedback": 1},
        Found("triplet"),
        ("p", ("r",), (1.0,)),
    ),
    "completion and label": (
        {"prompt": "p", "completion": "r", "label": True},
        Found("triplet", fields=(("response", "completion"), ("feedback", "label"))),
        ("p", ("r",), (1.0,)),
    ),
    "question and answer": (
        {"question": "p", "answer": "r"},
        Found("seq2seq", fields=(("prompt", "question"), ("response", "answer"))),
        ("p", ("r",), None),
    ),
    "messages": (
        {"messages": [USER, REPLY]},
        Found("seq2seq", "trl"),
        (PROMPT, ("A T5.",), None),
    ),
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes?"}]},
        Found("seq2seq", "trl"),
        ("user: Hi", ("Yes?",), None),
    ),
    "messages and label": (
        {"prompt": [USER], "completion": [REPLY], "label": False},
        Found("triplet", "trl"),
        (PROMPT, ("A T5.",), (0.0,)),
    ),
    "pair of messages": (
        {"prompt": [USER], "chosen": [REPLY], "rejected": [OTHER]},
        Found("pair", "trl"),
        (PROMPT, ("A T5.", "Guess."), (1.0, 0.0)),
    ),
    "pair of messages with an implicit prompt": (
        {
            "chosen": [USER, REPLY],
            "rejected": [USER, OTHER],
            "score_chosen": 8,
            "score_rejected": 6,
        },
        Found("pair", "trl"),
        (PROMPT, ("A T5.", "Guess."), (2.0, 0.0)),
    ),
    "pair with the prompt twice": (
        {"prompt": "Hi, who are you?", "chosen": [USER, REPLY], "rejected": [USER, OTHER]},
        Found("pair", "trl"),
        (PROMPT, ("A T5.", "Guess."), (1.0, 0.0)),
    ),
    "pair of texts with an implicit prompt": (
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        Found("pair", "trl"),
        ("The sky is", ("blue.", "green."), (1.0, 0.0)),
    ),
    "HH": (
        {"chosen": f"{HH} An assistant.", "rejected": f"{HH} Guess.\n\nHuman: No"},
        Found("pair", "hh"),
        (HH.strip(), ("An assistant.", "Guess.\n\nHuman: No"), (1.0, 0.0)),
    ),
    "instructions": (
        {"instruction": "Translate", "input": "Haus", "output": "house"},
        Found("seq2seq", "instructions"),
        ("Translate\nHaus", ("house",), None),
    ),
    "three people": (
        {"prompt": "p", "response_a": "a", "response_b": "b", "human_labels": [2, 2, 1]},
        Found("pair", "compared"),
        ("p", ("b", "a"), (pytest.approx(1 / 3), 0.0)),
    ),
    "arena": (
        {"prompt": "p", "response_a": "a", "response_b": "b", "winner": "model_a"},
        Found("pair", "compared"),
        ("p", ("a", "b"), (1.0, 0.0)),
    ),
    "SHP": (
        {"history": "p", "human_ref_A": "a", "human_ref_B": "b", "labels": 0, "score_A": 2},
        Found("pair", "compared"),
        ("p", ("b", "a"), (1.0, 0.0)),
    ),
    "HALOs, binary": (
        {"prompt": [USER], "output": [REPLY], "label": 0, "reward": 3, "type": "binary_feedback"},
        Found("triplet", "halos"),
        (PROMPT, ("A T5.",), (0.0,)),
    ),
    "HALOs, scalar": (
        {"prompt": [USER], "output": [REPLY], "reward": 3.5, "type": "scalar_feedback"},
        Found("triplet", "halos"),
        (PROMPT, ("A T5.",), (3.5,)),
    ),
    "HALOs, samples": (
        {"prompt": [USER], "output": "A T5."},
        Found("seq2seq", "halos"),
        (PROMPT, ("A T5.",), None),
    ),
    "HALOs, pairwise": (
        {
            "prompt": [USER],
            "output_A": [OTHER],
            "output_B": [REPLY],
            "label": 0,
            "reward_A": 1,
            "reward_B": 3,
        },
        Found("pair", "halos"),
        (PROMPT, ("A T5.", "Guess."), (2.0, 0.0)),
    ),
    "OpenAI's preferences": (
        {
            "input": {"messages": [USER], "tools": []},
            "preferred_output": [REPLY],
            "non_preferred_output": [OTHER],
        },
        Found("pair", "openai"),
        (PROMPT, ("A T5.", "Guess."), (1.0, 0.0)),
    ),
    "ratings of a pair": (
        {
            "prompt": "p",
            "chosen": [REPLY],
            "rejected": [OTHER],
            "chosen-rating": 5,
            "rejected-rating": 3.5,
        },
        Found("pair", "trl"),
        ("p", ("A T5.", "Guess."), (1.5, 0.0)),
    ),
    "ranked": (
        {"question": "p", "responses": ["a", "b"]},
        Found("ranked", fields=(("prompt", "question"),)),
        ("p", ("a", "b"), (1.0, 0.0)),
    ),
    "scores": (
        {"prompt": "p", "response": "a", "scores": {"x": 1, "y": 2}},
        Found("multi"),
        ("p", ("a",), (1.5,)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_layout_is_recognised_and_read(name):
    obj, found, (prompt, responses, feedback) = CASES[name]
    assert recognition.layout_of(obj) == found
    fields = layouts.parse_fields(found.fields_text)
    ours = layouts.to_record_fields(obj, found.layout, fields)
    record = parse_record(ours, found.kind, fields=fields if found.layout == "records" else {})
    assert (record.prompt, record.responses, record.feedback) == (prompt, responses, feedback)


def test_prompts_alone_and_strange_objects_are_recognised_as_such():
    assert recognition.layout_of({"prompt": "p", "domain": "x"}) == Found("prompts")
    # Feedback that cannot be read is reported, record by record; the responses are not taken for good ones.
    unread = {"prompt": "p", "response": "r", "feedback": "yes"}
    assert recognition.layout_of(unread) == Found("triplet")
    assert recognition.layout_of(unread | {"feedback": None}) == Found("seq2seq")
    for strange in (None, [], 3, {}, {"a": 1}, {"prompt": 3, "response": "r"}):
        assert recognition.layout_of(strange) is None


@pytest.mark.parametrize(
    ("layout", "obj", "message"),
    [
        ("trl", {"messages": [USER]}, "not the assistant's"),
        ("trl", {"messages": [REPLY]}, "no message before"),
        ("trl", {"messages": [USER, {"role": "assistant", "content": 3}]}, "no text"),
        ("hh", {"chosen": "a", "rejected": "b"}, "do not begin with the same dialogue"),
        ("hh", {"chosen": 1, "rejected": "b"}, "must be dialogues"),
        ("instructions", {"output": "x"}, "'instruction' is missing"),
        ("compared", {"response_a": "a", "response_b": "b"}, "are missing"),
        ("halos", {"prompt": [USER], "output_A": [REPLY], "output_B": [OTHER]}, "label is a null"),
        ("openai", {"input": "p", "preferred_output": [REPLY]}, "input.messages' is missing"),
    ],
)
def test_what_is_not_of_the_layout_is_a_bad_record(layout, obj, message):
    with pytest.raises(RecordError, match=message):
        layouts.to_record_fields(obj, layout, {})


def test_fields_are_written_as_ours_and_theirs():
    assert layouts.parse_fields("response=completion, feedback=a.b") == {
        "response": "completion",
        "feedback": "a.b",
    }
    record = parse_record(
        {"prompt": "p", "out": {"text": "r"}}, "seq2seq", fields={"response": "out.text"}
    )
    assert record.responses == ("r",)
    with pytest.raises(DataError, match="'completion' must be written ours=theirs"):
        layouts.parse_fields("completion")
    with pytest.raises(DataError, match="'answer' is not a field of records; known: prompt"):
        layouts.parse_fields("answer=completion")
    with pytest.raises(DataError, match="Unknown layout 'tlr'; known: records, trl"):
        sources.JsonlSource({"train": "x"}, "pair", layout="tlr")


def test_a_file_of_another_layout_gives_one_message_whose_flags_read_it(write_lines, tmp_path):
    rows = [{"prompt": f"p{i}", "completion": f"r{i}", "label": bool(i % 2)} for i in range(60)]
    path = write_lines(rows)
    with pytest.raises(DataError) as caught:
        cache.cache("mine", str(tmp_path / "a"), train_file=path)
    message = str(caught.value)
    assert (
        "as in 19 records before; the record looks like kind 'triplet' with the fields" in message
    )
    flags = dict(re.findall(r"--(kind|layout|fields)=(\S+)", message.split("(jaxalign cache)")[0]))
    assert flags == {"kind": "triplet", "fields": "response=completion,feedback=label"}
    metadata = cache.cache("mine", str(tmp_path / "b"), train_file=path, **flags)
    assert sum(metadata.num_examples.values()) == 60


def test_a_bad_first_line_of_another_layout_does_not_reject_the_others(write_lines):
    rows = [{"prompt": f"p{i}", "response": "r", "feedback": 1} for i in range(60)]
    path = write_lines([{"prompt": "p", "completion": "r", "label": 1}] * 5 + rows)
    log = RejectionLog()
    assert len(list(validation.read_jsonl(path, "triplet", log=log))) == 60
    assert log.counts == {"missing_field": 5}
    assert ["looks like" in entry["message"] for entry in log.entries] == [True] + [False] * 4


def test_ultrafeedback_is_a_layout_of_any_file(write_lines, tmp_path):
    completion = {
        "response": "r",
        "annotations": {
            name: {"Rating": "4"}
            for name in ("instruction_following", "truthfulness", "honesty", "helpfulness")
        },
    }
    rows = [{"instruction": f"p{i}", "completions": [completion]} for i in range(40)]
    path = write_lines(rows)
    assert recognition.recognise(rows) == Found("triplet", "ultrafeedback")
    metadata = cache.cache("uf", str(tmp_path / "c"), train_file=path, layout="ultrafeedback")
    assert sum(metadata.num_examples.values()) == 40
    with pytest.raises(DataError, match="not 'pair'"):
        sources.JsonlSource({"train": path}, "pair", layout="ultrafeedback")


class TestFeedback:
    """Numbers that would harm training."""

    @pytest.mark.parametrize("value", ["1e39", "-1e39", "1e400", '"inf"', '"nan"'])
    def test_what_float32_cannot_hold_is_rejected(self, value, write_lines):
        path = write_lines([f'{{"prompt": "p", "response": "r", "feedback": {value}}}'])
        log = RejectionLog()
        assert list(validation.read_jsonl(path, "triplet", log=log)) == []
        assert log.counts == {"nonfinite_feedback": 1}

    def test_numbers_may_be_text_as_tables_hold_them(self):
        values = {"3.5": 3.5, " -1e-2 ": -0.01, "True": 1.0, "down": 0.0, "4": 4.0}
        for text, wanted in values.items():
            obj = {"prompt": "p", "response": "r", "feedback": text}
            assert parse_record(obj, "triplet").feedback == (wanted,)

    def test_extreme_values_are_told_of(self, write_lines, tmp_path):
        rows = [{"prompt": f"p{i}", "response": "r", "feedback": i % 5} for i in range(100)]
        usual = cache.cache("a", str(tmp_path / "a"), train_file=write_lines(rows, "a.jsonl"))
        assert "extreme" not in usual.report
        rows[7]["feedback"] = 1e30
        odd = cache.cache("b", str(tmp_path / "b"), train_file=write_lines(rows, "b.jsonl"))
        assert sum(split.feedback_outliers for split in odd.splits.values()) == 1
        assert "warning: 1 of 100 responses have extreme feedback (from 0 to 1e+30)" in odd.report

    @pytest.mark.parametrize("first", [{"x": 1}, {"x": 1, "y": 2, "z": 3}, {}, "none"])
    def test_no_single_line_decides_which_scores_there_are(self, first, write_lines, tmp_path):
        rows = [{"prompt": f"p{i}", "response": "r", "scores": {"x": 1, "y": i}} for i in range(50)]
        path = write_lines([{"prompt": "first", "response": "r", "scores": first}, *rows])
        metadata = cache.cache("m", str(tmp_path / "c"), kind="multi", train_file=path)
        assert metadata.score_names == ("x", "y")
        assert sum(metadata.num_examples.values()) >= 50
        assert ("'z' (in 1 records)" in metadata.report) == ("z" in first)


class TestLosses:
    """What is lost at tokenisation is rejected, or counted and printed with the option that keeps it."""

    def test_pairs_without_a_difference_are_rejected(self, write_lines, tmp_path, small_vocabulary):
        rows = [
            {"prompt": f"p {i}", "chosen": "the\n  golden\n  lion", "rejected": "the golden lion"}
            for i in range(3)
        ] + [
            {"prompt": f"q {i}", "chosen": "thai food", "rejected": "cheap food"} for i in range(50)
        ]
        rows.append({"prompt": "q", "chosen": "thai food", "rejected": "thai food"})
        options = {
            "kind": "pair",
            "train_file": write_lines(rows),
            "max_rejected_fraction": 0.5,
            "max_unknown_fraction": 1.0,
        }
        pieces = cache.cache("m", str(tmp_path / "a"), vocabulary=small_vocabulary, **options)
        assert pieces.rejected_because("identical") == 4
        whole = cache.cache("m", str(tmp_path / "b"), **options)
        assert whole.rejected_because("identical") == 1

    def test_text_that_does_not_come_back_is_counted(self, write_lines, tmp_path, small_vocabulary):
        rows = [
            {"prompt": f"golden lion {i}", "response": "thai food" if i % 4 else "thai\nfood {"}
            for i in range(80)
        ]
        options = {"kind": "seq2seq", "train_file": write_lines(rows), "max_unknown_fraction": 0.5}
        pieces = cache.cache("m", str(tmp_path / "a"), vocabulary=small_vocabulary, **options)
        assert pieces.noted("changed_responses") == pieces.noted("unknown_responses") == 20
        assert "20 of 80 responses (25%): line breaks" in pieces.report
        whole = cache.cache("m", str(tmp_path / "b"), **options)
        assert whole.noted("changed_responses") == whole.noted("unknown_responses") == 0

    @pytest.mark.parametrize("end", ["truncate", "truncate_left"])
    def test_cut_prompts_are_counted_and_the_options_named(self, end, write_lines, tmp_path):
        rows = [{"prompt": "p" * (30 if i % 2 else 5) + str(i), "response": "r"} for i in range(60)]
        metadata = cache.cache(
            "m",
            str(tmp_path / "c"),
            kind="seq2seq",
            train_file=write_lines(rows),
            max_input_length=16,
            long_prompts=end,
        )
        side = "end" if end == "truncate" else "beginning"
        assert (
            f"30 of 60 prompts were cut at their {side} (max_input_length=16; --max_input_length and"
            in metadata.report
        )
