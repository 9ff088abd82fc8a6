"""BCO, its running means and density ratios, and APO-zero: values, gradients, optima and identities. KTO is in another file."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from jaxalign.annotation.logistic_regression import density_ratios, fit_logistic_regression
from jaxalign.errors import UserError
from jaxalign.losses import unpaired
from jaxalign.losses.pairwise import dpo_loss
from jaxalign.losses.requirements import requirements_of
from jaxalign.losses.unpaired import (
    RunningMean,
    TwoSidedRunningMean,
    apo_zero_unpaired_loss,
    bco_loss,
    bco_pair_loss,
    density_weighted_bco_loss,
    kto_loss,
)

EXTREME = st.floats(-1e4, 1e4, width=32)
FEEDBACK = jnp.array([[1.0, 0.0]], jnp.float32)


def shifted(shift):
    return {"shift": jnp.asarray(shift)}


def bco(log_ratios, feedback=FEEDBACK, *, shift=0.0, beta=0.4):
    return bco_loss(log_ratios, feedback, shifted(shift), beta=beta)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_bco_starts_at_ln_2_with_slope_half_beta():
    zero = jnp.zeros((1, 2))
    assert np.all(bco(zero) == jnp.float32(math.log(2)))
    slope = jax.grad(lambda ratios: jnp.sum(bco(ratios)))(zero)
    np.testing.assert_allclose(slope, [[-0.2, 0.2]], rtol=1e-6)


def test_bco_value_by_hand():
    """d = beta * shift: -log sigmoid(0.4 * (2 - 0.5)) where desirable, -log sigmoid(-0.4 * (2 - 0.5)) where not."""
    found = bco(jnp.array([[2.0, 2.0]]), shift=0.5)
    np.testing.assert_allclose(
        found, [[-math.log(sigmoid(0.6)), -math.log(sigmoid(-0.6))]], rtol=1e-6
    )


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("shift", [-3.0, 0.7])
def test_bco_optimum_of_a_response_is_the_shift_plus_the_logit_of_its_label(probability, shift):
    beta = 0.3
    with jax.enable_x64(True):
        optimum = shift + math.log(probability / (1 - probability)) / beta

        def expected(log_ratio):
            both = bco(jnp.full((1, 2), log_ratio), shift=shift, beta=beta)
            return probability * both[0, 0] + (1 - probability) * both[0, 1]

        assert abs(jax.grad(expected)(optimum)) < 1e-12
        assert expected(optimum) < min(expected(optimum - 0.1), expected(optimum + 0.1))


def test_no_gradient_passes_the_shift_and_the_weights():
    def loss(shift, ratios):
        return jnp.sum(
            density_weighted_bco_loss(
                jnp.ones((1, 2)), FEEDBACK, ratios, {"shift": shift}, beta=1.0
            )
        )

    by_shift, by_ratios = jax.grad(loss, argnums=(0, 1))(jnp.asarray(0.3), jnp.full((1, 2), 2.0))
    assert by_shift == 0 and not np.any(by_ratios)


def test_density_ratios_weight_undesirable_responses_only_and_are_clipped():
    ratios = jnp.array([[3.0, 3.0], [0.01, 0.01], [500.0, 500.0], [1.0, 1.0]])
    feedback = jnp.tile(FEEDBACK, (4, 1))
    plain = bco(jnp.ones((4, 2)), feedback)
    found = density_weighted_bco_loss(jnp.ones((4, 2)), feedback, ratios, shifted(0.0), beta=0.4)
    np.testing.assert_allclose(found[:, 0], plain[:, 0], rtol=1e-6)
    np.testing.assert_allclose(found[:, 1] / plain[:, 1], [3, 0.5, 10, 1], rtol=1e-6)


def test_density_ratios_match_the_prompts_of_both_labels():
    """With exact ratios, undesirable prompts drawn from another distribution weigh as if drawn from that of the desirable ones."""
    desirable, undesirable = np.array([0.2, 0.3, 0.5]), np.array([0.4, 0.3, 0.3])
    losses = np.array([1.0, -2.0, 5.0])
    np.testing.assert_allclose(undesirable @ (desirable / undesirable * losses), desirable @ losses)


@given(batches=st.lists(st.lists(st.floats(-50, 50), min_size=1, max_size=6), min_size=1))
def test_the_running_mean_gives_every_response_since_step_0_the_same_weight(batches):
    mean = RunningMean()
    statistics = mean.initial()
    for batch in batches:
        # A slot without a response may hold anything.
        ratios = jnp.asarray([[*batch, jnp.nan]], jnp.float32)
        mask = jnp.arange(ratios.shape[1])[None] < len(batch)
        statistics = mean.update(statistics, {"log_ratios": ratios, "mask": mask})
    seen = np.concatenate(batches)
    assert statistics["count"] == len(seen)
    np.testing.assert_allclose(statistics["shift"], seen.mean(), rtol=1e-4, atol=1e-4)


def test_a_batch_without_responses_leaves_the_means_as_they_are():
    quantities = {
        "log_ratios": jnp.full((1, 2), jnp.inf),
        "feedback": FEEDBACK,
        "mask": jnp.zeros((1, 2), bool),
    }
    for statistics in (RunningMean(), TwoSidedRunningMean()):
        initial = statistics.initial()
        assert statistics.update(initial, quantities) == initial


def test_the_two_sided_mean_does_not_depend_on_the_share_of_desirable_responses():
    two_sided, one_sided = TwoSidedRunningMean(), RunningMean()
    generator = np.random.default_rng(0)
    ratios, feedback = generator.normal(size=(4, 2, 6)), generator.random((4, 2, 6)) > 0.8
    ratios += 2 * feedback
    states = two_sided.initial(), one_sided.initial()
    for step in range(4):
        quantities = {
            "log_ratios": jnp.asarray(ratios[step], jnp.float32),
            "feedback": jnp.asarray(feedback[step], jnp.float32),
            "mask": jnp.ones((2, 6), bool),
        }
        states = (
            two_sided.update(states[0], quantities),
            one_sided.update(states[1], quantities),
        )
    of_both = ratios[feedback].mean(), ratios[~feedback].mean()
    np.testing.assert_allclose(states[0]["shift"], np.mean(of_both), rtol=1e-5)
    np.testing.assert_allclose(states[1]["shift"], ratios.mean(), rtol=1e-5)
    assert abs(states[0]["shift"] - states[1]["shift"]) > 0.3


def test_the_two_sided_mean_is_that_of_the_only_kind_seen():
    quantities = {
        "log_ratios": jnp.array([[1.0, 3.0]]),
        "feedback": jnp.ones((1, 2)),
        "mask": jnp.ones((1, 2), bool),
    }
    mean = TwoSidedRunningMean()
    assert mean.update(mean.initial(), quantities)["shift"] == 2.0


def test_bco_with_a_running_mean_equals_public_code_over_three_steps():
    """The order of TRL: rewards of the step enter the mean first, then the loss is taken with that mean."""
    generator = np.random.default_rng(1)
    beta, seen, mean = 0.1, [], RunningMean()
    statistics = mean.initial()
    for _ in range(3):
        ratios, feedback = generator.normal(size=(2, 4)), generator.integers(0, 2, (2, 4))
        seen.append(beta * ratios)
        shift = np.mean(seen)
        signs = np.where(feedback, 1, -1)
        expected = np.log1p(np.exp(-signs * (beta * ratios - shift)))
        quantities = {
            "log_ratios": jnp.asarray(ratios, jnp.float32),
            "mask": jnp.ones((2, 4), bool),
        }
        statistics = mean.update(statistics, quantities)
        found = bco_loss(
            quantities["log_ratios"], jnp.asarray(feedback, jnp.float32), statistics, beta=beta
        )
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_bco_pair_starts_at_2_ln_2_and_is_bco_without_a_shift():
    zero = jnp.zeros(3)
    np.testing.assert_allclose(bco_pair_loss(zero, zero, beta=0.3), 2 * math.log(2), rtol=1e-6)
    pair = jnp.array([[1.5, -0.4]])
    found = bco_pair_loss(pair[:, 0], pair[:, 1], beta=0.4)
    np.testing.assert_allclose(found, bco(pair).sum(axis=1), rtol=1e-6)


@given(chosen=EXTREME, rejected=EXTREME, beta=st.sampled_from([0.01, 1.0]))
def test_bco_pair_bounds_dpo_from_above(chosen, rejected, beta):
    """Theorem 1 of arXiv 2404.04656."""
    pair = jnp.array([chosen]), jnp.array([rejected])
    bound = bco_pair_loss(*pair, beta=beta)[0]
    assert bound >= dpo_loss(*pair, beta=beta)[0] * (1 - 1e-6)


def test_apo_zero_starts_at_a_half_and_is_kto_with_reference_point_0():
    zero = jnp.zeros((1, 2))
    np.testing.assert_allclose(apo_zero_unpaired_loss(zero, FEEDBACK, beta=0.3), 0.5)
    ratios = jnp.array([[1.3, -0.2]])
    found = apo_zero_unpaired_loss(ratios, FEEDBACK, beta=0.3)
    np.testing.assert_array_equal(found, kto_loss(ratios, FEEDBACK > 0.5, 0.0, beta=0.3))
    by_hand = [[1 - sigmoid(0.39), sigmoid(-0.06)]]
    np.testing.assert_allclose(found, by_hand, rtol=1e-6)


@pytest.mark.parametrize("probability", [0.2, 0.9])
def test_apo_zero_has_no_finite_optimum(probability):
    """Expected over labels it is linear in sigmoid(beta l), so the slope keeps one sign: that of the majority."""

    def expected(log_ratio):
        both = apo_zero_unpaired_loss(jnp.full((1, 2), log_ratio), FEEDBACK, beta=0.5)
        return probability * both[0, 0] + (1 - probability) * both[0, 1]

    slopes = jax.vmap(jax.grad(expected))(jnp.linspace(-20.0, 20.0, 41))
    assert np.all(np.sign(slopes) == np.sign(0.5 - probability))


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 1.5), (3.0, 1.0)])
@pytest.mark.parametrize("probability", [0.2, 0.45, 0.9])
def test_kto_pushes_to_where_the_weighted_majority_is_without_end(probability, weights):
    desirable, undesirable = weights

    def expected(log_ratio):
        both = kto_loss(
            jnp.full((1, 2), log_ratio),
            jnp.array([[True, False]]),
            0.7,
            beta=0.5,
            desirable_weight=desirable,
            undesirable_weight=undesirable,
        )
        return probability * both[0, 0] + (1 - probability) * both[0, 1]

    slopes = jax.vmap(jax.grad(expected))(jnp.linspace(-20.0, 20.0, 41))
    direction = np.sign(desirable * probability - undesirable * (1 - probability))
    assert direction != 0 and np.all(np.sign(slopes) == -direction)


def test_feedback_equal_to_the_threshold_is_undesirable():
    ratios, equal = jnp.ones((1, 1)), jnp.full((1, 1), 0.5)
    assert bco(ratios, equal) == bco(ratios, jnp.zeros((1, 1)))
    higher = bco_loss(ratios, equal, shifted(0.0), beta=0.4, desirable_threshold=0.4)
    assert higher == bco(ratios, jnp.ones((1, 1)))


@functools.partial(jax.jit, static_argnames="beta")
def all_losses_and_gradients(log_ratios, shift, ratio, beta):
    def losses(log_ratios):
        statistics, ratios = shifted(shift), jnp.full((1, 2), ratio)
        return jnp.concatenate(
            [
                bco_loss(log_ratios, FEEDBACK, statistics, beta=beta),
                density_weighted_bco_loss(log_ratios, FEEDBACK, ratios, statistics, beta=beta),
                apo_zero_unpaired_loss(log_ratios, FEEDBACK, beta=beta),
                bco_pair_loss(log_ratios[:, 0], -log_ratios[:, 1], beta=beta)[:, None],
            ],
            axis=1,
        )

    return losses(log_ratios), jax.jacobian(losses)(log_ratios)


@given(
    log_ratio=EXTREME,
    shift=EXTREME,
    ratio=st.floats(0, 2.0**100, width=32),
    beta=st.sampled_from([0.01, 10.0]),
)
def test_extreme_inputs_give_finite_losses_and_gradients(log_ratio, shift, ratio, beta):
    log_ratios = jnp.full((1, 2), log_ratio, jnp.float32)
    found, gradients = all_losses_and_gradients(log_ratios, shift, ratio, beta)
    assert np.isfinite(found).all() and (found >= 0).all() and np.isfinite(gradients).all()


def test_gradients_equal_finite_differences():
    with jax.enable_x64(True):
        generator = np.random.default_rng(0)
        ratios, feedback = generator.normal(size=(3, 2)), generator.random((3, 2))
        feedback, weights = jnp.asarray(feedback), jnp.asarray(generator.random((3, 2)) * 5)
        statistics = shifted(0.2)
        cases = [
            lambda x: bco_loss(x, feedback, statistics, beta=0.7),
            lambda x: density_weighted_bco_loss(x, feedback, weights, statistics, beta=0.7),
            lambda x: apo_zero_unpaired_loss(x, feedback, beta=0.7),
            lambda x: bco_pair_loss(x[:, 0], x[:, 1], beta=0.7),
        ]
        for case in cases:
            check_grads(lambda x, f=case: f(jnp.asarray(x)), (ratios,), 1, modes=["rev"])


def test_bfloat16_is_computed_in_float32():
    low = jnp.array([[0.3, 0.1]], jnp.bfloat16)
    wide = low.astype(jnp.float32)
    for loss in (
        lambda x: bco_loss(x, FEEDBACK, shifted(jnp.float32(0.2)), beta=1.0),
        lambda x: apo_zero_unpaired_loss(x, FEEDBACK, beta=1.0),
        lambda x: bco_pair_loss(x[0], x[0], beta=1.0),
    ):
        assert loss(low).dtype == jnp.float32
        np.testing.assert_array_equal(loss(low), loss(wide))


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan])
def test_a_beta_that_is_not_positive_is_refused(beta):
    with pytest.raises(UserError, match=r"bco\.beta must be positive"):
        bco(jnp.zeros((1, 2)), beta=beta)


def test_density_ratio_bounds_in_the_wrong_order_are_refused():
    with pytest.raises(UserError, match="min_density_ratio <= max_density_ratio"):
        density_weighted_bco_loss(
            jnp.zeros((1, 2)),
            FEEDBACK,
            jnp.ones((1, 2)),
            shifted(0.0),
            beta=1.0,
            min_density_ratio=2.0,
            max_density_ratio=1.0,
        )


def test_negative_density_ratios_are_declared_to_be_refused():
    assert requirements_of(unpaired.density_weighted_bco_loss).nonnegative == ("density_ratios",)


def two_classes(rows, *, features=3, shift=1.0, seed=0):
    """Unit Gaussians whose means differ by ``shift`` in the first feature; every third row is desirable."""
    labels = np.arange(rows) % 3 == 0
    inputs = np.random.default_rng(seed).normal(size=(rows, features))
    inputs[labels, 0] += shift
    return inputs, labels


@pytest.mark.parametrize("regularization", [0.1, 1.0, 50.0])
def test_the_classifier_equals_scikit_learn(regularization):
    linear_model = pytest.importorskip("sklearn.linear_model")
    inputs, labels = two_classes(200, features=5)
    theirs = linear_model.LogisticRegression(
        C=1 / regularization, class_weight="balanced", tol=1e-10, max_iter=10_000
    ).fit(inputs, labels)
    ours = fit_logistic_regression(inputs, labels, regularization=regularization)
    np.testing.assert_allclose(ours.weights, theirs.coef_[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(ours.intercept, theirs.intercept_[0], rtol=1e-4, atol=1e-6)


def test_density_ratios_of_gaussians_are_recovered_whatever_the_share_of_labels():
    """log p(x|+)/p(x|-) = x_0 - 1/2 for means 1 and 0; a third of the responses is desirable, which must not matter."""
    inputs, labels = two_classes(30_000)
    ratios = density_ratios(inputs, labels, max_rows=None)
    np.testing.assert_allclose(np.log(ratios), inputs[:, 0] - 0.5, atol=0.2)
    few = density_ratios(inputs, labels)
    assert np.corrcoef(np.log(few), np.log(ratios))[0, 1] > 0.95
    np.testing.assert_array_equal(few, density_ratios(inputs, labels))


def test_density_ratios_of_separable_prompts_are_finite():
    inputs, labels = two_classes(30, shift=1e4)
    ratios = density_ratios(inputs, labels)
    assert np.isfinite(ratios).all() and (ratios > 0).all()
    assert ratios[labels].min() > 1 > ratios[~labels].max()


def test_prompts_of_one_label_are_refused():
    inputs, _ = two_classes(10)
    with pytest.raises(UserError, match="all 10 are of one kind"):
        density_ratios(inputs, np.ones(10, bool))
    with pytest.raises(UserError, match="NaN or Inf"):
        density_ratios(np.full((2, 1), np.nan), np.array([True, False]))
