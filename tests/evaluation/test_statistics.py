"""Closed forms and oracles for the evaluation statistics."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxalign.evaluation import statistics

# Few distinct values, so that ties are common.
TIED = st.integers(min_value=-3, max_value=3).map(float)


def test_win_rate_counts_ties_as_half():
    estimate = statistics.win_rate(np.array([1.0, 2.0, 3.0, 0.0]), np.array([0.0, 2.0, 4.0, 0.0]))
    assert estimate.mean == pytest.approx((1 + 0.5 + 0 + 0.5) / 4)
    assert estimate.count == 4


@settings(max_examples=30, deadline=None)
@given(hnp.arrays(float, st.tuples(st.just(2), st.integers(10, 20)), elements=TIED))
def test_win_rate_is_antisymmetric_and_so_is_its_interval(scores):
    forward = statistics.win_rate(scores[0], scores[1], samples=50)
    backward = statistics.win_rate(scores[1], scores[0], samples=50)
    assert forward.mean + backward.mean == pytest.approx(1)
    assert forward.low + backward.high == pytest.approx(1)
    assert forward.high + backward.low == pytest.approx(1)


def test_win_rate_against_itself_is_exactly_half():
    scores = np.random.default_rng(0).normal(size=(10, 3))
    assert statistics.win_rate(scores, scores) == statistics.Estimate(0.5, 0.5, 0.5, 10)


@pytest.mark.parametrize(("prompts", "samples"), [(9, 100), (10, 0)])
def test_few_prompts_or_no_resamples_give_no_interval(prompts, samples):
    estimate = statistics.bootstrap_mean(np.arange(float(prompts)), samples=samples)
    assert estimate.mean == pytest.approx((prompts - 1) / 2) and estimate.count == prompts
    assert math.isnan(estimate.low) and math.isnan(estimate.high)


def test_win_rate_needs_the_same_prompts():
    with pytest.raises(ValueError, match="same prompts"):
        statistics.win_rate(np.zeros(3), np.zeros(4))


def test_bootstrap_interval_covers_the_mean_at_its_level():
    rng = np.random.default_rng(3)
    data = rng.exponential(size=(300, 60))
    hits = 0
    for row in data:
        estimate = statistics.bootstrap_mean(row, samples=400, level=0.9)
        hits += estimate.low <= 1.0 <= estimate.high
    assert 0.82 <= hits / len(data) <= 0.95


def test_bootstrap_resamples_prompts_not_responses():
    # All responses of a prompt are equal, so 50 samples a prompt carry no more than one.
    prompts = np.random.default_rng(0).normal(size=20)
    once = statistics.bootstrap_mean(prompts)
    repeated = statistics.bootstrap_mean(np.repeat(prompts[:, None], 50, axis=1))
    assert repeated.high == pytest.approx(once.high)
    assert repeated.count == 20


def test_bootstrap_is_seeded_and_the_same_in_blocks(monkeypatch):
    values = np.random.default_rng(0).normal(size=30)
    first = statistics.bootstrap_mean(values, seed=5)
    monkeypatch.setattr(statistics, "_RESAMPLE_BLOCK", 200)
    assert statistics.bootstrap_mean(values, seed=5) == first
    assert statistics.bootstrap_mean(values, seed=6) != first


def test_bootstrap_of_a_statistic_resamples_whole_groups():
    values = np.array([0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    groups = np.array(["a", "a", "a", "b", "b", "b"])
    seen = []
    statistics.bootstrap_statistic(
        lambda index: seen.append(values[index].mean()) or 0.0, groups, bounds=(0, 1), samples=40
    )
    assert set(seen) == {0.0, 0.5, 1.0}


def test_resamples_of_one_class_widen_an_interval_instead_of_dropping_out():
    """With one bad response of 29, over a third of the resamples have none, and say nothing about the AUC."""
    scores, good = np.arange(29.0), np.arange(29) != 8

    def interval(good, samples=400):
        return statistics.bootstrap_statistic(
            lambda i: statistics.area_under_curve(scores[i], good[i]),
            np.arange(29),
            bounds=(0.0, 1.0),
            samples=samples,
        )

    low, high, undefined = interval(good)
    # The chance that a resample lacks it is (28 / 29)^29 = .36.
    assert (low, high) == (0.0, 1.0) and 100 < undefined < 190
    low, high, undefined = interval(np.arange(29) % 2 == 0)
    assert 0.1 < low < 0.5 < high < 0.9 and undefined == 0
    none = interval(np.ones(29, bool))
    assert math.isnan(none.low) and math.isnan(none.high) and none.undefined == 400


def test_nan_scores_are_refused_with_their_place():
    with pytest.raises(ValueError, match="first at flat 1"):
        statistics.win_rate(np.array([0.0, np.nan]), np.zeros(2))


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(float, st.tuples(st.just(2), st.integers(2, 30)), elements=TIED))
def test_spearman_equals_scipy_with_ties(values):
    ours = statistics.spearman(values[0], values[1])
    if np.ptp(values[0]) == 0 or np.ptp(values[1]) == 0:
        assert math.isnan(ours)
    else:
        theirs = scipy.stats.spearmanr(values[0], values[1]).statistic
        assert ours == pytest.approx(theirs, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(
    hnp.arrays(float, 12, elements=TIED),
    hnp.arrays(bool, 12),
)
def test_auc_equals_brute_force_over_pairs(scores, positive):
    ours = statistics.area_under_curve(scores, positive)
    pairs = list(itertools.product(scores[positive], scores[~positive]))
    if not pairs:
        assert math.isnan(ours)
    else:
        brute = np.mean([1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs])
        assert ours == pytest.approx(brute)


def test_distinct_n_by_hand():
    texts = ["a b a b", "a b c"]
    assert statistics.distinct_n(texts, 1) == pytest.approx(3 / 7)  # a b c of 7 words
    assert statistics.distinct_n(texts, 2) == pytest.approx(3 / 5)  # ab ba bc of ab ba ab ab bc
    assert statistics.distinct_n(["one"], 2) == 0.0
    assert statistics.distinct_n([], 1) == 0.0


def test_the_error_of_a_kl_is_that_of_a_mean_over_prompts():
    estimate = statistics.kl_estimate(np.array([[0.1, 0.3], [0.5, 0.3], [0.6, 0.6]]))
    assert estimate.mean == pytest.approx(0.4)
    assert estimate.standard_error == pytest.approx(0.2 / np.sqrt(3))
    assert statistics.kl_estimate(np.array([0.2])).standard_error == 0
    with pytest.raises(ValueError, match="NaN"):
        statistics.kl_estimate(np.array([0.2, np.nan]))


def test_means_of_groups_keep_the_order_of_appearance():
    groups = [("b", 1), ("a", 0), ("b", 1), ("a", 2)]
    assert statistics.mean_by_group(np.array([1.0, 5.0, 3.0, 7.0]), groups).tolist() == [2, 5, 7]
