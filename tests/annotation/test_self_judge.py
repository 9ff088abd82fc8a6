"""The self-judge: both orders, single pieces, templates, and its calibration."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxalign.annotation import annotators
from jaxalign.annotation.annotators import get_annotator
from jaxalign.annotation.judge_calibration import calibration
from jaxalign.annotation.self_judge import choice_pieces, debias, fill, read_template, sigmoid
from jaxalign.data.candidates import Candidates
from jaxalign.data.vocabularies import ByteVocabulary
from jaxalign.errors import UserError
from jaxalign.inference.rows import score_responses
from jaxalign.runs.folder import Run


def judged(runs, candidates, tmp_path, settings=""):
    template = tmp_path / "template.txt"
    template.write_text("{prompt}|{first}|{second}\n")
    made = get_annotator(f"self_judge:policy={runs['a']},template={template}{settings}")
    made.check(candidates)
    return annotators.apply(made, candidates, "self").annotation("self").values, made.counts()


@given(first=st.floats(0, 1, width=32), second=st.floats(0, 1, width=32))
def test_debiased_preferences_of_both_orders_sum_to_one(first, second):
    one, other = np.array([first]), np.array([second])
    np.testing.assert_allclose(debias(one, other) + debias(other, one), 1, atol=1e-6)


@pytest.mark.parametrize("taste", [0.0, 0.3, 1.0])
def test_a_judge_of_positions_only_has_no_preference(taste):
    np.testing.assert_allclose(debias(np.full(3, taste), np.full(3, taste)), 0.5, atol=1e-6)


def test_probabilities_are_the_debiased_softmax_over_the_choices(runs, tmp_path):
    (found,), counts = judged(runs, Candidates(["p"], [["aa", "b"]]), tmp_path)
    trained = Run(runs["a"]).policy()
    texts = [[byte + 3 for byte in text.encode()] + [1] for text in ("p|aa|b", "p|b|aa")]
    choices = [[[ord("A") + 3], [ord("B") + 3]]] * 2
    log_probs, _ = score_responses(trained.network, trained.params, texts, choices)
    first = np.exp(log_probs[:, 0]) / np.exp(log_probs).sum(axis=1)
    assert found[0, 1] == pytest.approx(0.5 * (first[0] + 1 - first[1]), abs=1e-6)
    assert found[0, 1] != 0.5
    assert found[0, 1] + found[1, 0] == pytest.approx(1)
    assert np.isnan(np.diagonal(found)).all()
    assert counts == {}


def test_equal_responses_are_equally_good_and_too_long_ones_are_missing(runs, tmp_path):
    data = Candidates(["p"], [["a", "a", "x" * 70]])
    (found,), counts = judged(runs, data, tmp_path)
    assert found[0, 1] == found[1, 0] == 0.5
    assert np.isnan(found[2]).all() and np.isnan(found[:, 2]).all()
    assert counts == {"too long comparisons": 4}


def test_choices_must_be_single_pieces_that_differ():
    vocabulary = ByteVocabulary(0)
    assert choice_pieces(vocabulary, "A/B") == (ord("A") + 3, ord("B") + 3)
    with pytest.raises(UserError, match="'yes' is 3 pieces of the run's vocabulary"):
        choice_pieces(vocabulary, "yes/no")
    for choices in ("A", "A/", "A/A", "A/B/C"):
        with pytest.raises(UserError, match="write two of them as A/B or yes/no"):
            choice_pieces(vocabulary, choices)


def test_a_template_needs_all_places_and_texts_may_hold_braces(tmp_path):
    assert fill("{prompt}: {first} or {second}", "{first}", "{a}", "b") == "{first}: {a} or b"
    path = tmp_path / "t.txt"
    path.write_text("{prompt} {first}")
    with pytest.raises(UserError, match=r"t\.txt: has no {second}"):
        read_template(str(path))
    with pytest.raises(UserError, match=r"absent\.txt: cannot be read"):
        read_template(str(tmp_path / "absent.txt"))


def test_the_sigmoid_does_not_overflow():
    np.testing.assert_allclose(sigmoid(np.array([-1e4, 0, 1e4])), [0, 0.5, 1])


def matrices(probabilities):
    return [np.array([[np.nan, p], [1 - p, np.nan]]) for p in probabilities]


def test_a_judge_that_is_right_as_often_as_it_says_is_calibrated():
    # Of ten pairs with 0.8, eight are truly so.
    truths = [np.array([1.0, 0]) if k < 8 else np.array([0.0, 1]) for k in range(10)]
    found = calibration(matrices([0.8] * 10), truths)
    assert found.pairs == 10
    assert found.accuracy == pytest.approx(0.8) and found.error == pytest.approx(0)
    assert found.brier == pytest.approx(0.16)
    overconfident = calibration(matrices([1.0] * 10), truths)
    assert overconfident.accuracy == pytest.approx(0.8)
    assert overconfident.error == pytest.approx(0.2)
    assert "calibration error 0.200" in overconfident.describe()


def test_ties_and_missing_values_are_left_out_of_the_calibration():
    truths = [np.array([1.0, 1]), np.array([np.nan, 1]), np.array([1.0, 0])]
    found = calibration(matrices([0.9, 0.9, np.nan]), truths)
    assert found.pairs == 0 and np.isnan(found.accuracy)
    half = calibration(matrices([0.5]), [np.array([1.0, 0])])
    assert half.accuracy == 0.5
