"""Majority voting among the samples that a filter kept."""

import pytest

from jaxalign.annotation.voting import filtered_vote


def test_only_kept_samples_vote():
    answers = ["7", "8", "8", "7", "7"]
    every = filtered_vote(answers, [True] * 5, correct={"8"})
    assert every.winners == ("7",) and every.votes == 3 and every.correct == 0.0
    kept = filtered_vote(answers, [False, True, True, True, False], correct={"8"})
    assert kept.winners == ("8",) and kept.filtered and kept.correct == 1.0


def test_if_none_is_kept_all_vote():
    vote = filtered_vote(["1", "1", "2"], [False] * 3, correct={"1"})
    assert vote.winners == ("1",) and not vote.filtered and vote.correct == 1.0


def test_a_tie_is_right_by_its_share_and_right_in_public_code():
    vote = filtered_vote(["1", "2", "3", "1", "2"], [True] * 5, correct={"2"})
    assert vote.winners == ("1", "2")
    assert vote.correct == 0.5 and vote.correct_or_tied is True


def test_samples_without_an_answer_do_not_vote():
    vote = filtered_vote([None, None, "4"], [True] * 3, correct={"4"})
    assert vote.winners == ("4",) and vote.correct == 1.0
    silent = filtered_vote([None, None], [True] * 2, correct={"4"})
    assert silent.winners == () and silent.votes == 0 and silent.correct == 0.0
    assert filtered_vote(["4"], [True]).correct is None


def test_every_answer_needs_a_decision():
    with pytest.raises(ValueError, match="2 answers and 1 decisions"):
        filtered_vote(["1", "2"], [True])


def test_weights_are_summed_by_answer_and_equal_sums_tie():
    answers = ["1", "2", "2", "1"]
    assert filtered_vote(answers, [True] * 4, weights=[0.5, 0.2, 0.2, 0.0]).winners == ("1",)
    # 0.1 + 0.2 and 0.3 are different floating-point numbers.
    tied = filtered_vote(answers, [True] * 4, weights=[0.3, 0.1, 0.2, 0.0], correct={"2"})
    assert tied.winners == ("1", "2") and tied.correct == 0.5
    with pytest.raises(ValueError, match="4 answers and 1 weights"):
        filtered_vote(answers, [True] * 4, weights=[1.0])


def test_no_answer_may_be_correct_and_several_may():
    assert filtered_vote(["1", "1"], [True] * 2, correct=set()).correct == 0.0
    both = filtered_vote(["1", "2"], [True] * 2, correct={"1", "2"})
    assert both.correct == 1.0 and both.correct_or_tied is True
