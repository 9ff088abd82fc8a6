"""`vote`: majority, weighted and filtered votes, what is written, and what is refused."""

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from jaxalign.annotation.prefixes import PrefixScores, lowest_scores, threshold_that_drops
from jaxalign.errors import UserError
from jaxalign.evaluation.vote import vote
from jaxalign.evaluation.vote_methods import filtered_outcome, matched_threshold, softmax_weights

LINES = [
    {
        "prompt": "one",
        "responses": ["it is 1", "so 2", "2.0", "no idea"],
        "annotations": {"judge": {"scores": [9.0, 0.0, None, 0.0]}},
        "gold": "1",
    },
    {
        "prompt": "two",
        "responses": ["3", "3", "4", "4"],
        "annotations": {"judge": {"scores": [0.0, 0.0, 1.0, 1.0]}},
        "gold": "4",
    },
]
PAIRS = [{"prompt": "p", "chosen": "yes 1", "rejected": "no 2"}, {"prompt": "q", "chosen": "a", "rejected": "b"}]  # fmt: skip


@pytest.fixture
def given(write_lines):
    return write_lines("in.jsonl", LINES)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_majority_and_weighted_votes_with_accuracies(given, tmp_path):
    output = tmp_path / "out" / "votes.jsonl"
    result = vote(given, str(output), correct="field:gold", weights="judge")
    one, two = read(output)
    assert one["answers"] == ["1", "2", "2", None] and one["correct"] == ["1"]
    assert one["votes"]["majority"] == {"winners": ["2"], "votes": 2.0, "correct": 0.0}
    assert one["votes"]["weighted"]["winners"] == ["1"] and two["votes"]["weighted"]["correct"] == 1
    assert two["votes"]["majority"] == {"winners": ["3", "4"], "votes": 2.0, "correct": 0.5}
    rows = {row["method"]: row for row in result["methods"]}
    assert rows["majority"]["accuracy"] == "0.250"
    assert rows["majority"]["ties"] == 1
    assert rows["weighted"]["minus majority"] == "0.750"
    assert rows["one response"]["accuracy"].startswith("0.375")
    assert rows["any response"]["accuracy"].startswith("1.000")
    assert "responses without an answer: 1" in result["report"] and "0.250" in result["report"]
    summary = json.loads((tmp_path / "out" / "votes.jsonl.votes.json").read_text())
    assert summary["weights"] == "judge" and summary["methods"] == result["methods"]


def test_without_correct_answers_there_are_votes_but_no_accuracy(given, tmp_path):
    result = vote(given, str(tmp_path / "votes.jsonl"), num_responses=2)
    assert [row["method"] for row in result["methods"]] == ["majority"]
    assert "accuracy" not in result["methods"][0]
    assert [line["answers"] for line in read(tmp_path / "votes.jsonl")] == [["1", "2"], ["3", "3"]]


def test_a_reward_run_filters_and_the_control_drops_as_many(given, runs, write_lines, tmp_path):
    output = tmp_path / "votes.jsonl"
    options = {
        "reward_run": runs["prefixes"],
        "goal_file": write_lines("pairs.jsonl", PAIRS),
        "ignored_tokens": 0,
        "correct": "field:gold",
    }
    # A random network has cosines on both sides of this threshold.
    result = vote(given, str(output), threshold=0.5, **options)
    rows = {row["method"]: row for row in result["methods"]}
    assert 0 < rows["Q filter"]["dropped"] == rows["reward filter"]["dropped"] < 8
    assert 0 < rows["Q filter"]["tokens saved"] < 1
    for line, text in zip(read(output), LINES, strict=True):
        found = line["votes"]["q_filter"]
        assert found["tokens"] == [len(each) + 1 for each in text["responses"]]
        for kept, read_tokens, tokens in zip(
            found["kept"], found["tokens_read"], found["tokens"], strict=True
        ):
            assert read_tokens == tokens if kept else read_tokens < tokens
        assert list(line["votes"]) == ["majority", "q_filter", "reward_filter", "weighted"]
    # A cosine is never below -1: nothing is dropped. It is always below 2: all are dropped, so all vote and must be read.
    for threshold, dropped in ((-1.01, 0), (2.0, 8)):
        every = vote(given, str(output), threshold=threshold, **options)
        rows = {row["method"]: row for row in every["methods"]}
        assert rows["Q filter"]["dropped"] == rows["reward filter"]["dropped"] == dropped
        assert rows["Q filter"]["tokens saved"] == rows["reward filter"]["tokens saved"] == 0
        assert rows["Q filter"]["accuracy"] == rows["majority"]["accuracy"]


def test_a_reward_run_that_gives_nan_is_refused(given, runs, write_lines, tmp_path, monkeypatch):
    shape = (8, 30)
    broken = PrefixScores(np.full(shape, np.nan), np.zeros(shape), np.ones(shape, bool))
    monkeypatch.setattr("jaxalign.annotation.prefixes.score_prefixes", lambda *_, **__: broken)
    options = {
        "reward_run": runs["prefixes"],
        "goal_file": write_lines("pairs.jsonl", PAIRS),
    }
    with pytest.raises(UserError, match="gives NaN or infinite scores of prefixes"):
        vote(given, str(tmp_path / "votes.jsonl"), **options)


def test_a_filter_reads_up_to_the_first_low_token_behind_the_ignored_ones():
    values = np.array([[-1.0, 0.5, -0.2, 0.9], [0.1, 0.2, 0.3, 0.0]])
    mask = np.array([[True] * 4, [True, True, True, False]])
    found = filtered_outcome([["a", "b"]], [{"b"}], values, mask, threshold=0.0, ignored_tokens=0)
    assert found.kept.tolist() == [[False, True]] and found.tokens_read.tolist() == [[2, 3]]
    assert found.votes[0].correct == 1.0
    np.testing.assert_array_equal(lowest_scores(values, mask, 0), [-0.2, 0.2])
    np.testing.assert_array_equal(lowest_scores(values, mask, 3), [np.inf, np.inf])


def test_the_controls_threshold_drops_as_many_responses():
    rng = np.random.default_rng(0)
    mask = np.ones((20, 6), bool)
    scores = PrefixScores(rng.uniform(-1, 1, (20, 6)), rng.normal(size=(20, 6)), mask)
    for threshold in (-1.0, -0.8, -0.5, 0.9):
        limit = matched_threshold(scores, threshold, 1)
        dropped = (lowest_scores(scores.values, mask, 1) < threshold).sum()
        assert (lowest_scores(scores.rewards, mask, 1) < limit).sum() == dropped
    assert 2 < threshold_that_drops(np.array([1.0, 2.0, np.inf]), 2) < 2.1
    assert threshold_that_drops(np.full(2, np.inf), 0) == 0


def test_weights_are_a_softmax_without_overflow_and_without_missing_scores():
    weights = softmax_weights([np.array([1e4, 1e4, np.nan, -1e4]), np.full(2, np.nan)], 0.5)
    assert weights[0].tolist() == [0.5, 0.5, 0.0, 0.0] and weights[1].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"answers": "regex:zzz"}, "'regex:zzz' finds no answer in any response"),
        ({"weights": "nobody"}, "has no annotation 'nobody'"),
        ({"num_responses": 5}, "prompt 0 has 4 responses, and 5 are wanted.*--num_responses=4"),
        ({"reward_run": "runs/x"}, "vote.reward_run needs goal_file"),
        ({"goal_file": "x.jsonl"}, "vote.goal_file needs reward_run"),
        ({"weight_temperature": 0.0}, "weight_temperature"),
        ({"threshold": float("nan")}, "vote.threshold is nan"),
        ({"reward_threshold": float("inf")}, "vote.reward_threshold is inf"),
    ],
)
def test_bad_settings_are_one_line(given, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        vote(given, str(tmp_path / "votes.jsonl"), **options)
    assert not (tmp_path / "votes.jsonl").exists()


def test_the_output_is_not_the_input(given):
    with pytest.raises(UserError, match="--output is the input"):
        vote(given, given)
    answers = str(Path(given).with_name("answers.jsonl"))
    with pytest.raises(UserError, match="--output is the file of --correct, "):
        vote(given, answers, correct=f"file:{answers}")
    with pytest.raises(UserError, match="--output is the file of --goal_file, "):
        vote(given, answers, reward_run="run", goal_file=answers)


def test_cut_responses_and_prompts_without_votes_are_told(write_lines, tmp_path):
    lines = [
        {"prompt": "a", "responses": ["1", "2"], "finished": [False, True], "judge": [None, None]},
        {"prompt": "b", "responses": ["3", "3"], "finished": [False, False], "judge": [1e30, 0]},
    ]
    for line in lines:
        line |= {"annotations": {"judge": {"scores": line.pop("judge")}}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = vote(
            write_lines("in.jsonl", lines), str(tmp_path / "o.jsonl"), weights="judge",
            weight_temperature=1e-300,
        )  # fmt: skip
    assert "cut at the length limit, and vote with what they hold: 3" in result["report"]
    assert "prompts without a vote in 'weighted': 1" in result["report"]
    assert "'majority'" not in result["report"]
    result = vote(write_lines("in.jsonl", lines), str(tmp_path / "one.jsonl"), num_responses=1)
    assert "what they hold: 2" in result["report"]


def test_ten_prompts_have_intervals(write_lines, tmp_path):
    lines = [
        {"prompt": f"p{i}", "responses": ["1", "1", "2"], "gold": str(1 + i % 2)} for i in range(10)
    ]
    result = vote(write_lines("in.jsonl", lines), str(tmp_path / "v.jsonl"), correct="field:gold")
    rows = {row["method"]: row for row in result["methods"]}
    assert re.fullmatch(r"0\.500 \[0\.[0-4]\d*, 0\.[5-9]\d*\]", rows["majority"]["accuracy"])
    assert "no intervals" not in result["report"]


def test_votes_replace_votes_and_no_other_file(given, tmp_path):
    output = tmp_path / "votes.jsonl"
    for _ in range(2):
        vote(given, str(output))
    mine = tmp_path / "mine.jsonl"
    mine.write_text("kept\n")
    with pytest.raises(UserError, match="not written by `jaxalign vote`"):
        vote(given, str(mine))
    assert mine.read_text() == "kept\n"


def test_unequal_numbers_of_responses_are_refused(write_lines, tmp_path):
    lines = [{"prompt": p, "responses": ["1"] * k} for p, k in (("p", 3), ("q", 2))]
    path = write_lines("in.jsonl", lines)
    with pytest.raises(UserError, match=r"prompt 1 has 2 responses, and prompt 0 has 3.*=2"):
        vote(path, str(tmp_path / "votes.jsonl"))
    vote(path, str(tmp_path / "votes.jsonl"), num_responses=2)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("features", r"its reward network \('feature_reward'\) has no states of prefixes"),
        ("a", "has no reward network"),
        ("letters", "pieces of its responses are unknown to the vocabulary of"),
    ],
)
def test_a_run_that_cannot_filter_is_refused(given, runs, write_lines, tmp_path, run, message):
    pairs = write_lines("pairs.jsonl", PAIRS)
    with pytest.raises(UserError, match=message):
        vote(given, str(tmp_path / "v.jsonl"), reward_run=runs[run], goal_file=pairs)


def test_a_goal_needs_responses_that_are_better_than_others(given, runs, write_lines, tmp_path):
    equal = write_lines("equal.jsonl", [{"prompt": "p", "response": "r", "feedback": 1}])
    with pytest.raises(UserError, match="no response has feedback above the others"):
        vote(given, str(tmp_path / "v.jsonl"), reward_run=runs["prefixes"], goal_file=equal)


def test_the_command_prints_its_table_and_its_errors(given, tmp_path):
    def run(*flags):
        command = [sys.executable, "-m", "jaxalign", "vote", f"--input={given}", *flags]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    output = tmp_path / "votes.jsonl"
    done = run(f"--output={output}", "--correct=field:gold")
    assert done.returncode == 0 and len(read(output)) == 2
    assert "majority" in done.stdout and "0.250" in done.stdout
    assert "no intervals with fewer than 10 prompts" in done.stdout
    failed = run(f"--output={tmp_path / 'x'}", "--answers=regex:zzz")
    assert failed.returncode == 2 and len(failed.stderr.strip().splitlines()) == 1
