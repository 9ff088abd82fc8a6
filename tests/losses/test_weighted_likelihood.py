"""Filtered fine-tuning, reward-weighted regression, weighted behaviour cloning: values, optima, microbatches, extreme inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from jaxalign.errors import UserError
from jaxalign.losses.requirements import requirements_of
from jaxalign.losses.weighted_likelihood import (
    filtered_sft_loss,
    reward_weighted_regression_loss,
    weighted_behaviour_cloning_loss,
)

EXTREME = st.floats(-1e4, 1e4, width=32)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def table():
    """Behaviour policy and rewards of 4 prompts with 5 responses each, float64; rewards have a prompt-dependent part."""
    generator = np.random.default_rng(0)
    behaviour = jax.nn.softmax(jnp.asarray(generator.normal(size=(4, 5))))
    rewards = generator.normal(size=(4, 5)) + 0.5 * generator.normal(size=(4, 1))
    return behaviour, jnp.asarray(rewards)


def filtered(log_probs, rewards, **options):
    ones = jnp.ones_like(rewards)
    return filtered_sft_loss(log_probs, rewards, ones, ones > 0, **options)


def population_optimum(behaviour, loss):
    """The policy whose logits minimise the expected loss under the behaviour policy, divided by the expected weight."""

    @jax.jit
    @jax.value_and_grad
    def objective(logits):
        result = loss(jax.nn.log_softmax(logits.reshape(behaviour.shape)))
        losses, weights = result if isinstance(result, tuple) else (result, jnp.ones(()))
        return jnp.sum(behaviour * losses) / jnp.sum(behaviour * weights)

    def on_host(logits):
        value, gradient = objective(logits)
        return float(value), np.asarray(gradient)

    start = np.zeros(behaviour.size)
    options = {"gtol": 1e-11, "maxiter": 2000}
    found = scipy.optimize.minimize(on_host, start, jac=True, method="BFGS", options=options)
    return jax.nn.softmax(jnp.asarray(found.x.reshape(behaviour.shape)))


def normalised(weights):
    return weights / weights.sum(-1, keepdims=True)


def test_filtered_sft_aims_at_the_kept_part_of_the_behaviour_policy(table):
    behaviour, rewards = table
    found = population_optimum(behaviour, lambda log_probs: filtered(log_probs, rewards))
    np.testing.assert_allclose(found, normalised(behaviour * (rewards > 0)), atol=1e-6)


@pytest.mark.parametrize("normalize", ["batch", "none"])
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_reward_weighted_regression_tilts_the_behaviour_policy(table, temperature, normalize):
    behaviour, rewards = table
    found = population_optimum(
        behaviour,
        lambda log_probs: reward_weighted_regression_loss(
            log_probs, rewards, temperature=temperature, max_weight=1e6, normalize=normalize
        ),
    )
    expected = normalised(behaviour * jnp.exp(rewards / temperature))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_clipped_weights_move_the_optimum_as_far_as_they_say(table):
    behaviour, rewards = table
    found = population_optimum(
        behaviour,
        lambda log_probs: reward_weighted_regression_loss(
            log_probs, rewards, temperature=0.5, max_weight=2.0
        ),
    )
    weights = jnp.minimum(jnp.exp(rewards / 0.5), 2.0)
    np.testing.assert_allclose(found, normalised(behaviour * weights), atol=1e-6)


def test_weighted_behaviour_cloning_aims_at_behaviour_times_reward(table):
    behaviour, rewards = table
    feedback = jnp.square(rewards)
    found = population_optimum(
        behaviour, lambda log_probs: weighted_behaviour_cloning_loss(log_probs, feedback)
    )
    np.testing.assert_allclose(found, normalised(behaviour * feedback), atol=1e-6)


def test_filtered_sft_by_hand():
    """Kept: rewards above 0, existing. Sum of their negative log-probabilities over their tokens, or over their number."""
    log_probs = jnp.array([[-3.0, -5.0, -7.0, -9.0]])
    rewards = jnp.array([[1.0, 0.0, 2.0, 3.0]])
    lengths, mask = jnp.array([[2.0, 4.0, 3.0, 9.0]]), jnp.array([[True, True, True, False]])
    losses, tokens = filtered_sft_loss(log_probs, rewards, lengths, mask)
    assert losses.tolist() == [[3, 0, 7, 0]] and tokens.tolist() == [[2, 0, 3, 0]]
    _, responses = filtered_sft_loss(log_probs, rewards, lengths, mask, normalize="responses")
    assert responses.tolist() == [[1, 0, 1, 0]]


def test_a_threshold_below_all_rewards_is_fine_tuning_on_everything(table):
    _, rewards = table
    log_probs = -1 - jnp.square(rewards)
    losses, weights = filtered(log_probs, rewards, threshold=-100.0)
    np.testing.assert_array_equal(losses, -log_probs)
    assert np.all(weights == 1)


def test_the_prompts_mean_removes_the_difficulty_of_prompts(table):
    """A constant added to all rewards of a prompt changes what is kept, but not where the prompt's mean is the baseline."""
    behaviour, rewards = table
    harder = rewards - 10 * jnp.arange(4.0)[:, None]
    log_probs = jnp.log(behaviour)
    for option, same in (("prompt_mean", True), ("none", False)):
        kept, kept_harder = (filtered(log_probs, r, baseline=option)[1] for r in (rewards, harder))
        assert bool(jnp.all(kept == kept_harder)) is same
    assert np.all(filtered(log_probs, rewards, baseline="prompt_mean")[1].sum(axis=1) > 0)


def test_the_prompts_mean_is_over_existing_responses():
    log_probs, lengths = -jnp.ones((1, 3)), jnp.ones((1, 3))
    rewards, mask = jnp.array([[1.0, 2.0, 1e9]]), jnp.array([[True, True, False]])
    _, weights = filtered_sft_loss(log_probs, rewards, lengths, mask, baseline="prompt_mean")
    assert weights.tolist() == [[0, 1, 0]]


def test_a_batch_where_nothing_is_kept_has_no_loss_weight_or_gradient():
    ones = jnp.ones((2, 2))
    for mask in (ones > 0, ones < 0):
        losses, weights = filtered_sft_loss(-ones, -ones, ones, mask)
        assert not losses.any() and not weights.any()
        gradient = jax.grad(lambda p, m=mask: filtered_sft_loss(p, -ones, ones, m)[0].sum())(-ones)
        assert not gradient.any()


def test_normalising_by_the_batch_gives_weights_of_mean_one(table):
    _, rewards = table
    log_probs = -jnp.square(rewards)
    losses, divisors = reward_weighted_regression_loss(log_probs, rewards, temperature=1.0)
    weights = jnp.exp(rewards)
    expected = jnp.mean(weights / weights.mean() * -log_probs)
    np.testing.assert_allclose(losses.sum() / divisors.sum(), expected, rtol=1e-12)


def test_microbatches_add_up_to_the_batch(table):
    """Sums of losses and of weights over parts equal those of the whole: nothing depends on what else is in the batch."""
    _, rewards = table
    log_probs = -jnp.square(rewards)
    for loss in (
        lambda p, r: reward_weighted_regression_loss(p, r, temperature=1.0),
        lambda p, r: filtered(p, r, baseline="prompt_mean"),
    ):
        whole = loss(log_probs, rewards)
        first, second = loss(log_probs[:1], rewards[:1]), loss(log_probs[1:], rewards[1:])
        for index in range(2):
            joined = jnp.concatenate([first[index], second[index]])
            np.testing.assert_array_equal(joined, whole[index])


def test_only_the_ratio_of_reward_and_temperature_matters(table):
    _, rewards = table
    log_probs = -jnp.square(rewards)
    found = [
        reward_weighted_regression_loss(log_probs, scale * rewards, temperature=scale)[0]
        for scale in (1.0, 7.0)
    ]
    np.testing.assert_allclose(*found, rtol=1e-12)


@given(log_prob=EXTREME, reward=EXTREME, temperature=st.sampled_from([0.001, 1.0]))
def test_extreme_inputs_give_finite_losses_and_gradients(log_prob, reward, temperature):
    rewards = jnp.full((1, 2), reward, jnp.float32)
    mask = jnp.array([[True, False]])

    def losses(log_probs):
        return jnp.stack(
            [
                *reward_weighted_regression_loss(log_probs, rewards, temperature=temperature),
                *filtered_sft_loss(log_probs, rewards, -rewards, mask, baseline="prompt_mean"),
                weighted_behaviour_cloning_loss(log_probs, rewards),
            ]
        )

    log_probs = jnp.full((1, 2), log_prob, jnp.float32)
    assert np.isfinite(losses(log_probs)).all()
    assert np.isfinite(jax.jacobian(losses)(log_probs)).all()


def test_no_gradient_passes_rewards(table):
    _, rewards = table

    def total(rewards):
        return sum(
            jnp.sum(loss)
            for loss in (
                *reward_weighted_regression_loss(-rewards * 0 - 1, rewards, temperature=1.0),
                weighted_behaviour_cloning_loss(-jnp.ones((4, 5)), rewards),
            )
            if loss.ndim
        )

    divisors = jax.grad(
        lambda r: reward_weighted_regression_loss(-jnp.ones((4, 5)), r, temperature=1.0)[1].sum()
    )(rewards)
    assert not jax.grad(total)(rewards).any() and not divisors.any()


def test_gradients_equal_finite_differences(table):
    behaviour, rewards = table
    cases = [
        lambda p: reward_weighted_regression_loss(p, rewards, temperature=0.7)[0],
        lambda p: filtered(p, rewards)[0],
        lambda p: weighted_behaviour_cloning_loss(p, jnp.square(rewards)),
    ]
    for case in cases:
        function = lambda p, f=case: f(jnp.asarray(p))  # noqa: E731
        check_grads(function, (np.log(behaviour),), order=1, modes=["rev"])


def test_bfloat16_is_computed_in_float32():
    low = jnp.array([[-300.0, -2.0]], jnp.bfloat16)
    reward = jnp.array([[0.1, 0.3]], jnp.bfloat16)
    losses, weights = reward_weighted_regression_loss(low, reward, temperature=1.0)
    assert losses.dtype == weights.dtype == jnp.float32
    assert filtered(low, reward)[0].dtype == jnp.float32
    found = weighted_behaviour_cloning_loss(low, reward)
    np.testing.assert_array_equal(found, -low.astype(jnp.float32) * reward.astype(jnp.float32))


def test_weighted_behaviour_cloning_declares_that_feedback_may_not_be_negative():
    assert requirements_of(weighted_behaviour_cloning_loss).nonnegative == ("feedback",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"temperature": 1.0, "max_weight": -1.0}, "max_weight must be positive"),
        ({"temperature": 1.0, "normalize": "tokens"}, "normalize must be one of batch, none"),
    ],
)
def test_hyperparameters_that_cannot_work_are_refused(options, message):
    with pytest.raises(UserError, match=f"reward_weighted_regression.{message}"):
        reward_weighted_regression_loss(-jnp.ones((1, 1)), jnp.ones((1, 1)), **options)


@pytest.mark.parametrize("options", [{"baseline": "mean"}, {"normalize": "batch"}])
def test_unknown_options_of_filtered_sft_are_refused(options):
    with pytest.raises(UserError, match=r"filtered_sft.* must be one of"):
        filtered(-jnp.ones((1, 1)), jnp.ones((1, 1)), **options)
