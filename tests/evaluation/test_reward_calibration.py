"""From rewards to absolute feedback: the maps against closed forms and brute force, and reports that do not flatter."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxalign.data.cache import cache
from jaxalign.data.task_cache import TaskCache
from jaxalign.errors import UserError
from jaxalign.evaluation.reward_calibration import (
    calibrate,
    calibration_report,
    cross_fitted_report,
)
from jaxalign.evaluation.reward_maps import (
    FITS,
    fit_isotonic,
    fit_linear,
    fit_logistic,
    pool_adjacent_violators,
)


def brute_force_isotonic(values, weights):
    """The best of all ways to cut the sequence into stretches of equal value."""
    count = len(values)
    best, best_loss = None, np.inf
    for number in range(count):
        for cuts in itertools.combinations(range(1, count), number):
            edges = [0, *cuts, count]
            means = [
                np.average(values[a:b], weights=weights[a:b]) for a, b in itertools.pairwise(edges)
            ]
            fitted = np.repeat(means, np.diff(edges))
            loss = np.sum(weights * (values - fitted) ** 2)
            if np.all(np.diff(fitted) >= 0) and loss < best_loss - 1e-12:
                best, best_loss = fitted, loss
    return best


@given(
    pairs=st.lists(
        st.tuples(st.integers(-5, 5), st.integers(1, 4)),
        min_size=1,
        max_size=7,
    )
)
def test_pooling_adjacent_violators_equals_brute_force(pairs):
    values, weights = (np.array(column, np.float64) for column in zip(*pairs, strict=True))
    found = pool_adjacent_violators(values, weights)
    np.testing.assert_allclose(found, brute_force_isotonic(values, weights), atol=1e-9)


def test_the_isotonic_map_never_falls_keeps_the_mean_and_gives_ties_one_value():
    generator = np.random.default_rng(0)
    scores = np.round(generator.normal(size=300), 1)
    feedback = np.sin(scores) + generator.normal(size=300)
    fitted = fit_isotonic(scores, feedback)
    grid = fitted(np.linspace(-9, 9, 1000))
    assert np.all(np.diff(grid) >= -1e-12)
    assert np.mean(fitted(scores)) == pytest.approx(feedback.mean())
    assert grid[0] == fitted.values[0] and grid[-1] == fitted.values[-1]
    means = [feedback[scores == knot].mean() for knot in np.unique(scores)]
    counts = [np.sum(scores == knot) for knot in np.unique(scores)]
    np.testing.assert_allclose(fitted(np.unique(scores)), pool_adjacent_violators(means, counts))


def test_an_isotonic_map_of_ordered_data_passes_through_it():
    fitted = fit_isotonic(np.array([2.0, 0.0, 1.0]), np.array([5.0, 1.0, 4.0]))
    np.testing.assert_allclose(fitted(np.array([0.0, 0.5, 1.0, 2.0, 7.0])), [1, 2.5, 4, 5, 5])


def test_the_linear_map_is_the_least_squares_line():
    generator = np.random.default_rng(1)
    scores = generator.normal(size=50)
    feedback = 3 - 2 * scores + generator.normal(size=50)
    fitted = fit_linear(scores, feedback)
    np.testing.assert_allclose([fitted.slope, fitted.intercept], np.polyfit(scores, feedback, 1))
    assert fit_linear(np.ones(3), np.arange(3.0)) == fit_linear(np.zeros(3), np.arange(3.0))


def test_the_logistic_map_recovers_a_logistic_law_in_units_of_the_feedback():
    scores = np.linspace(-4, 4, 2001)
    feedback = 1 + 5 / (1 + np.exp(-(0.8 * scores - 0.3)))
    fitted = fit_logistic(scores, feedback, low=1, high=6, ridge=0.0)
    assert (fitted.slope, fitted.intercept) == pytest.approx((0.8, -0.3), abs=1e-6)
    np.testing.assert_allclose(fitted(scores), feedback, atol=1e-5)


def test_the_logistic_map_of_thumbs_is_finite_and_right_on_average():
    scores = np.array([-2.0, -1.0, 1.0, 3.0])
    fitted = fit_logistic(scores, np.array([0.0, 0.0, 1.0, 1.0]))  # separable
    assert np.isfinite(fitted.slope) and fitted.slope > 1
    generator = np.random.default_rng(2)
    scores = generator.normal(size=500)
    thumbs = (generator.uniform(size=500) < 0.86).astype(float)
    assert np.mean(fit_logistic(scores, thumbs)(scores)) == pytest.approx(thumbs.mean(), abs=1e-6)
    with pytest.raises(UserError, match=r"outside of 0 and 0\.5"):
        fit_logistic(scores, thumbs, low=0.0, high=0.5)


@pytest.mark.parametrize("method", FITS)
def test_shift_and_scale_of_the_scores_do_not_matter(method):
    """Bradley-Terry leaves both open."""
    generator = np.random.default_rng(3)
    scores = generator.normal(size=80)
    feedback = scores + generator.normal(size=80)
    one = FITS[method](scores, feedback)(scores)
    other = FITS[method](40 + 7 * scores, feedback)(40 + 7 * scores)
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


def test_perfect_predictions_have_a_calibration_error_of_about_the_sampling_error():
    generator = np.random.default_rng(4)
    predictions = generator.uniform(size=5000)
    feedback = (generator.uniform(size=5000) < predictions).astype(float)
    report = calibration_report(predictions, feedback)
    assert report.calibration_error < 2 * report.sampling_error
    assert report.mean_squared_error < 0.75 * report.constant_mean_squared_error
    shifted = calibration_report(predictions + 0.5, feedback)
    assert shifted.calibration_error == pytest.approx(0.5, abs=0.02)
    assert shifted.largest_error >= shifted.calibration_error
    assert sum(entry["count"] for entry in report.bins) == report.count == 5000


def test_a_report_is_of_prompts_the_map_has_not_seen():
    """Scores that name their prompt explain all feedback in sample and nothing of other prompts."""
    generator = np.random.default_rng(5)
    level = np.sort(generator.normal(size=200))
    prompts = np.repeat(np.arange(200), 3)
    scores = generator.permutation(200)[prompts].astype(float)
    feedback = level[prompts]
    in_sample = fit_isotonic(scores, feedback)(scores)
    assert np.mean((in_sample - feedback) ** 2) < 0.99 * feedback.var()
    report = cross_fitted_report("isotonic", scores, feedback, prompts)
    assert report.mean_squared_error > 0.99 * report.constant_mean_squared_error
    with pytest.raises(UserError, match="single prompt"):
        cross_fitted_report("linear", scores[:3], feedback[:3], prompts[:3])


@pytest.mark.parametrize(
    ("scores", "feedback", "message"),
    [
        (np.zeros(3), np.zeros(2), "equal vectors"),
        (np.zeros(0), np.zeros(0), "equal vectors"),
        (np.array([0.0, np.nan]), np.zeros(2), "finite"),
    ],
)
def test_what_is_no_data_is_refused(scores, feedback, message):
    with pytest.raises(ValueError, match=message):
        fit_linear(scores, feedback)


@pytest.fixture(scope="module")
def make_cache(tmp_path_factory):
    """A cached task of 60 ratings from 1 to 5, or of pairs, and its folder."""

    def make(kind):
        folder = tmp_path_factory.mktemp(kind)
        lines = [
            {"prompt": f"say {i}", "response": "x" * (1 + i % 5), "feedback": 1.0 + i % 5}
            if kind == "triplet"
            else {"prompt": f"say {i}", "chosen": "yes", "rejected": "no"}
            for i in range(60)
        ]
        (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        cache("ratings", str(folder / "cache"), kind=kind, train_file=str(folder / "data.jsonl"))
        return str(folder / "cache")

    return make


def test_calibrate_stores_rewards_in_units_of_feedback(make_cache, capsys):
    """Here the reward is a cube of the feedback, so the isotonic map undoes it."""
    folder = make_cache("triplet")
    ratings = {}
    for split in ("train", "validation"):
        ratings[split] = np.array(
            [[example.feedback[0]] for example in TaskCache(folder).split(split)]
        )
        TaskCache(folder).write_stored(split, "rewards", ratings[split] ** 3 - 40, {"made": "here"})
    result = calibrate(cache_dir=folder, name="rewards", fit_split="train")
    for split in ("train", "validation"):
        found = TaskCache(folder).stored(split, "rewards-isotonic")
        mapped, info = found.values, found.info
        np.testing.assert_allclose(mapped, ratings[split], atol=1e-5)
        assert info["method"] == "isotonic" and info["made"] == "here"
    assert result["reports"].keys() == FITS.keys()
    assert result["reports"]["isotonic"]["calibration_error"] < 1e-6
    assert result["reports"]["linear"]["calibration_error"] > 0.05
    output = capsys.readouterr().out
    assert all(method in output for method in FITS)
    with pytest.raises(
        UserError, match=r"calibrate.method is 'spline'; it must be one of 'best', 'constant'"
    ):
        calibrate(cache_dir=folder, name="rewards", method="spline")
    with pytest.raises(UserError, match="which it would replace"):
        calibrate(cache_dir=folder, name="rewards", output_name="rewards")


def test_rewards_that_say_nothing_become_a_constant_and_never_a_worse_map(make_cache, capsys):
    folder = make_cache("triplet")
    generator = np.random.default_rng(0)
    for split in ("train", "validation"):
        count = len(TaskCache(folder).split(split))
        noise = generator.normal(size=(count, 1)).astype(np.float32)
        TaskCache(folder).write_stored(split, "noise", noise, {})
    result = calibrate(cache_dir=folder, name="noise", fit_split="train")
    errors = {each: report["mean_squared_error"] for each, report in result["reports"].items()}
    assert errors[result["method"]] == min(errors.values()) <= errors["constant"]
    assert errors["isotonic"] > errors["constant"]
    with pytest.raises(
        UserError, match="isotonic map of these rewards predicts the feedback worse"
    ):
        calibrate(cache_dir=folder, name="noise", fit_split="train", method="isotonic")


def test_pairs_have_nothing_to_calibrate_to(make_cache):
    with pytest.raises(UserError, match="no absolute feedback"):
        calibrate(cache_dir=make_cache("pair"), name="rewards")
