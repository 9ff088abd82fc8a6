"""Calibration of V and the residual of DRO."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from jaxalign.evaluation.calibration import calibration, dro_targets, residual_statistics


def test_perfect_values_are_perfectly_calibrated():
    rewards = np.random.default_rng(0).normal(size=100)
    result = calibration(rewards, rewards)
    assert result.slope == pytest.approx(1)
    assert result.intercept == pytest.approx(0)
    assert result.r_squared == pytest.approx(1)
    assert result.correlation == pytest.approx(1)


def test_an_offset_costs_r_squared_but_not_the_slope():
    rewards = np.random.default_rng(0).normal(size=100)
    result = calibration(rewards + 1.0, rewards)
    assert result.slope == pytest.approx(1)
    assert result.intercept == pytest.approx(-1)
    assert result.r_squared == pytest.approx(1 - 1 / rewards.var())


def test_slope_and_correlation_equal_scipy():
    rng = np.random.default_rng(1)
    values = rng.normal(size=200)
    rewards = 0.4 * values + rng.normal(size=200)
    result = calibration(values, rewards)
    line = scipy.stats.linregress(values, rewards)
    assert (result.slope, result.intercept) == pytest.approx((line.slope, line.intercept))
    assert result.correlation == pytest.approx(line.rvalue)
    assert result.rank_correlation == pytest.approx(
        scipy.stats.spearmanr(values, rewards).statistic
    )


def test_bins_hold_every_item_once_and_average_to_the_total():
    rng = np.random.default_rng(2)
    values = rng.integers(0, 4, size=97).astype(float)  # ties must not be torn apart
    rewards = rng.normal(size=97)
    bins = calibration(values, rewards, num_bins=10).bins
    assert sum(b["count"] for b in bins) == 97
    assert sum(b["count"] * b["mean_target"] for b in bins) / 97 == pytest.approx(rewards.mean())
    assert all(a["high"] < b["low"] for a, b in itertools.pairwise(bins))


def test_a_constant_value_has_one_bin_and_no_slope():
    result = calibration(np.zeros(5), np.arange(5.0))
    assert len(result.bins) == 1
    assert math.isnan(result.slope)


@pytest.mark.parametrize("drawn_from", ["reference", "policy", "uniform"])
def test_at_the_optimum_v_predicts_its_target_under_any_sampling(drawn_from):
    """Eight prompts with six responses each, and the closed form of the regularised optimum; V is above the mean reward."""
    rng, tau = np.random.default_rng(3), 0.7
    reference = rng.dirichlet(np.ones(6), 8)
    rewards = rng.normal(size=(8, 6))
    values = tau * np.log(np.sum(reference * np.exp(rewards / tau), axis=1))
    policy = reference * np.exp((rewards - values[:, None]) / tau)
    sampling = {"reference": reference, "policy": policy, "uniform": np.full((8, 6), 1 / 6)}
    prompts = np.repeat(np.arange(8), 20)
    drawn = np.array([rng.choice(6, p=sampling[drawn_from][prompt]) for prompt in prompts])
    log_ratios = np.log(policy / reference)[prompts, drawn]
    result = calibration(values[prompts], dro_targets(rewards[prompts, drawn], log_ratios, tau))
    assert (result.slope, result.intercept) == pytest.approx((1, 0))
    assert result.r_squared == pytest.approx(1)
    assert np.all(values > np.sum(reference * rewards, axis=1))


def test_residual_vanishes_where_the_consistency_equation_holds():
    rng = np.random.default_rng(0)
    values, log_ratios = rng.normal(size=10), rng.normal(size=10)
    rewards = values + 0.3 * log_ratios
    result = residual_statistics(rewards, values, log_ratios, tau=0.3)
    assert result["dro_loss"] == pytest.approx(0, abs=1e-30)
    shifted = residual_statistics(rewards + 2.0, values, log_ratios, tau=0.3)
    assert shifted["mean_residual"] == pytest.approx(2)
    assert shifted["dro_loss"] == pytest.approx(2)
