"""The A-LoL family on whole responses: the policy-gradient identity, the relations between its members, and what training leads to."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from jaxalign.errors import UserError
from jaxalign.losses.policy_gradient import (
    a_lol_kl_loss,
    a_lol_loss,
    a_lol_reference_free_loss,
    importance_weights,
    nll_loss,
    r_lol_loss,
)
from jaxalign.losses.requirements import requirements_of
from jaxalign.losses.token_level import a_lol_seq_loss
from jaxalign.losses.weighted_likelihood import weighted_behaviour_cloning_loss
from tests.fixtures import numbers

close = functools.partial(numbers.close, tolerance=1e-13)

EXTREME = st.floats(-1e4, 1e4, width=32)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def arrays(float64):
    """Log-probabilities, log-ratios and advantages of both signs, `[4, 3]` in float64."""
    log_probs, log_ratios, advantages = np.random.default_rng(0).normal(size=(3, 4, 3))
    return jnp.asarray(log_probs - 9), jnp.asarray(log_ratios), jnp.asarray(advantages)


def gradient(loss, log_probs, *arguments, **options):
    return jax.grad(lambda p: jnp.sum(loss(p, *arguments, **options)))(log_probs)


@pytest.mark.parametrize("baseline", [-2.0, 0.0, 3.0])
def test_off_policy_gradient_is_the_gradient_of_expected_reward(float64, baseline):
    """Responses enumerated under pi_ref, unclipped: ``E_{y~pi_ref}[A rho grad log pi] = grad E_{y~pi}[r]`` for any baseline."""
    generator = np.random.default_rng(1)
    logits, reference, rewards = (jnp.asarray(a) for a in generator.normal(size=(3, 1, 6)))
    reference = jax.nn.log_softmax(reference)

    def surrogate(logits):
        log_probs = jax.nn.log_softmax(logits)
        # R-LoL multiplies by what it is given, so it can carry an advantage that is not truncated.
        losses = r_lol_loss(log_probs, log_probs - reference, rewards - baseline, ratio_clip=None)
        return jnp.sum(jnp.exp(reference) * losses)

    def expected_reward(logits):
        return jnp.sum(jax.nn.softmax(logits) * rewards)

    close(jax.grad(surrogate)(logits), -jax.grad(expected_reward)(logits))


def test_a_lol_has_that_gradient_where_every_advantage_is_positive(float64):
    generator = np.random.default_rng(2)
    logits, reference, rewards = (jnp.asarray(a) for a in generator.normal(size=(3, 1, 6)))
    reference, advantages = jax.nn.log_softmax(reference), rewards - rewards.min() + 0.1

    def surrogate(logits):
        log_probs = jax.nn.log_softmax(logits)
        losses = a_lol_loss(log_probs, log_probs - reference, advantages, ratio_clip=None)
        return jnp.sum(jnp.exp(reference) * losses)

    expected = jax.grad(lambda logits: -jnp.sum(jax.nn.softmax(logits) * rewards))(logits)
    close(jax.grad(surrogate)(logits), expected)


def test_without_importance_weights_a_lol_is_the_reference_free_loss(arrays):
    """eps = 0 makes every weight 1, and so does a policy that equals its reference, whatever eps is."""
    log_probs, log_ratios, advantages = arrays
    expected = a_lol_reference_free_loss(log_probs, advantages)
    close(a_lol_loss(log_probs, log_ratios, advantages, ratio_clip=0.0), expected)
    for ratio_clip in (0.0, 0.2, 0.9, None):
        close(a_lol_loss(log_probs, 0 * log_ratios, advantages, ratio_clip=ratio_clip), expected)
    close(expected, -np.maximum(advantages, 0) * log_probs)
    untruncated = a_lol_reference_free_loss(log_probs, advantages, positive_only=False)
    close(untruncated, -advantages * log_probs)


@pytest.mark.parametrize("positive_only", [True, False])
@pytest.mark.parametrize("beta", [0.0, 0.05, 0.7])
def test_the_kl_variant_is_a_threshold_on_the_advantage(arrays, beta, positive_only):
    """Its gradient is the reference-free one with weight max(A, 0) - beta: smaller advantages are pushed down."""
    log_probs, log_ratios, advantages = arrays
    reference = log_probs - log_ratios

    def loss(log_probs):
        ratios = log_probs - reference
        losses = a_lol_kl_loss(
            log_probs, ratios, advantages, beta=beta, positive_only=positive_only
        )
        return jnp.sum(losses)

    shifted = jnp.maximum(advantages, 0) - beta
    if positive_only:
        shifted = jnp.where(advantages > 0, shifted, 0)
    expected = gradient(a_lol_reference_free_loss, log_probs, shifted, positive_only=False)
    close(jax.grad(loss)(log_probs), expected)
    close(expected, -shifted)


def test_the_kl_variant_leaves_out_what_its_authors_never_draw(arrays):
    """Pushing those responses down has no end."""
    log_probs, log_ratios, advantages = arrays
    kl = functools.partial(a_lol_kl_loss, beta=0.3)
    value, slope = jax.value_and_grad(lambda p: kl(p, log_ratios + p, -abs(advantages)).sum())(
        log_probs
    )
    assert value == 0 and not slope.any()


def test_values_by_hand():
    one = jnp.ones((1, 1))
    # rho = e^0.3 = 1.35, clipped to 1.2; A = 2; log pi = -4.
    loss = a_lol_loss(-4 * one, 0.3 * one, 2 * one, ratio_clip=0.2)
    np.testing.assert_allclose(loss, 1.2 * 2 * 4, rtol=1e-6)
    loss = a_lol_loss(-4 * one, 0.3 * one, 2 * one)
    np.testing.assert_allclose(loss, math.exp(0.3) * 2 * 4, rtol=1e-6)
    loss = r_lol_loss(-4 * one, -9 * one, 2 * one)
    np.testing.assert_allclose(loss, 0.1 * 2 * 4, rtol=1e-5)
    loss = a_lol_kl_loss(-4 * one, 0.3 * one, 2 * one, beta=0.5)
    np.testing.assert_allclose(loss, 2 * 4 + 0.15, rtol=1e-6)
    np.testing.assert_allclose(nll_loss(-4 * one), 4)


def test_rewards_of_one_make_r_lol_at_the_start_and_behaviour_cloning_plain_likelihood(arrays):
    log_probs, log_ratios, _ = arrays
    ones = jnp.ones_like(log_probs)
    close(r_lol_loss(log_probs, 0 * log_ratios, ones), nll_loss(log_probs))
    close(weighted_behaviour_cloning_loss(log_probs, ones), nll_loss(log_probs))


def test_a_weight_outside_the_clip_range_still_passes_gradient(arrays):
    """Unlike PPO's clip, this one acts on a constant."""
    log_probs, _, _ = arrays
    ones = jnp.ones_like(log_probs)
    for log_ratio, weight in ((5.0, 1.9), (-5.0, 0.1)):
        close(gradient(a_lol_loss, log_probs, log_ratio * ones, ones), -weight)


def test_no_gradient_passes_importance_weights_advantages_and_rewards(arrays):
    log_probs, log_ratios, advantages = arrays

    def total(log_ratios, advantages):
        return jnp.sum(
            a_lol_loss(log_probs, log_ratios, advantages)
            + r_lol_loss(log_probs, log_ratios, advantages, ratio_clip=None)
            + a_lol_reference_free_loss(log_probs, advantages)
            + a_lol_kl_loss(log_probs, 0 * log_ratios, advantages, beta=1.0)
        )

    for cotangent in jax.grad(total, argnums=(0, 1))(log_ratios, advantages):
        assert not cotangent.any()


def test_nothing_to_learn_from_gives_no_loss_and_no_gradient(arrays):
    """All A <= 0."""
    log_probs, log_ratios, advantages = arrays
    bad = -jnp.abs(advantages)
    for loss, arguments in (
        (a_lol_loss, (log_ratios, bad)),
        (a_lol_reference_free_loss, (bad,)),
        (functools.partial(a_lol_kl_loss, beta=0.0), (log_ratios, bad)),
    ):
        assert not loss(log_probs, *arguments).any()
        assert not gradient(loss, log_probs, *arguments).any()


def test_responses_do_not_influence_each_other(arrays):
    """So neither padding nor microbatches change a loss."""
    for loss in (
        a_lol_loss,
        lambda p, _, a: a_lol_reference_free_loss(p, a),
        functools.partial(a_lol_kl_loss, beta=0.3),
        r_lol_loss,
    ):
        parts = [loss(*(array[row : row + 1, 1:] for array in arrays)) for row in range(4)]
        close(jnp.concatenate(parts), loss(*arrays)[:, 1:])


@functools.partial(jax.jit, static_argnames="ratio_clip")
def everything(log_probs, log_ratios, advantages, ratio_clip):
    def losses(log_probs):
        return jnp.stack(
            [
                a_lol_loss(log_probs, log_ratios, advantages, ratio_clip=ratio_clip),
                r_lol_loss(log_probs, log_ratios, advantages, ratio_clip=ratio_clip),
                a_lol_reference_free_loss(log_probs, advantages),
                a_lol_kl_loss(log_probs, log_ratios, advantages, beta=10.0),
                nll_loss(log_probs),
            ]
        )

    return losses(log_probs), jax.jacobian(losses)(log_probs)


@given(
    numbers=st.lists(EXTREME, min_size=3, max_size=3),
    ratio_clip=st.sampled_from([None, 0.0, 0.9]),
)
def test_extreme_inputs_give_finite_losses_and_gradients(numbers, ratio_clip):
    arrays = (jnp.full((1, 1), number, jnp.float32) for number in numbers)
    for found in everything(*arrays, ratio_clip):
        assert found.dtype == jnp.float32 and np.isfinite(found).all()


def test_importance_weights_cannot_overflow_and_do_not_underflow_below_their_clip():
    extreme = jnp.array([[1e9, -1e9, 0.0]])
    found = importance_weights(extreme, ratio_clip=0.9)
    np.testing.assert_allclose(found, [[1.9, 0.1, 1.0]], rtol=1e-6)
    unclipped = importance_weights(extreme, ratio_clip=None)
    np.testing.assert_allclose(unclipped, [[math.exp(60), 0.0, 1.0]], rtol=1e-5)


def test_gradients_equal_finite_differences(arrays):
    log_probs, log_ratios, advantages = arrays
    reference = log_probs - log_ratios
    cases = [
        lambda p: a_lol_loss(p, log_ratios, advantages),
        lambda p: r_lol_loss(p, log_ratios, jnp.abs(advantages)),
        lambda p: a_lol_reference_free_loss(p, advantages),
        lambda p: a_lol_kl_loss(p, p - reference, advantages, beta=0.3),
    ]
    for case in cases:
        function = lambda p, f=case: f(jnp.asarray(p))  # noqa: E731
        check_grads(function, (np.asarray(log_probs),), order=1, modes=["rev"])


def test_bfloat16_is_computed_in_float32():
    low, advantage = jnp.array([[-300.0]], jnp.bfloat16), jnp.array([[0.3]], jnp.bfloat16)
    wide = low.astype(jnp.float32), 0 * low, advantage.astype(jnp.float32)
    for loss in (a_lol_loss, r_lol_loss, functools.partial(a_lol_kl_loss, beta=0.1)):
        found = loss(low, 0 * low, advantage)
        assert found.dtype == jnp.float32
        np.testing.assert_array_equal(found, loss(*wide))


def test_what_cannot_work_is_refused(arrays):
    with pytest.raises(UserError, match="ratio_clip must be at least 0"):
        a_lol_loss(*arrays, ratio_clip=-0.1)
    with pytest.raises(UserError, match=r"a_lol_kl\.beta must be at least 0"):
        a_lol_kl_loss(*arrays, beta=-1.0)
    assert requirements_of(r_lol_loss).nonnegative == ("feedback",)


# The tabular check of the specification: 20 prompts, 4 independent tokens of 6 symbols, noisy annotators.

PROMPTS, TOKENS, SYMBOLS, TRIPLES = 20, 4, 6, 4000
# Expected reward and token entropy at the end.
PUBLISHED = {
    "nll": (0.54, 1.42),
    "wbc": (0.71, 1.05),
    "r_lol": (0.90, 0.44),
    "reference_free": (0.94, 0.32),
    "a_lol, uniform": (0.93, 0.31),
    "a_lol": (0.98, 0.11),
    "a_lol_seq": (0.995, 0.04),
    "kl 0.05": (0.943, 0.30),
    "kl 0.3": (1.00, 0.00),
}


# Losses of log-probabilities, log-ratios, advantages and rewards, `[responses, 1]` each; those of PER_TOKEN `[responses, tokens]`.
PER_TOKEN = ("a_lol_seq",)
METHODS = {
    "nll": lambda p, _, advantages, rewards: nll_loss(p),
    "wbc": lambda p, _, advantages, rewards: weighted_behaviour_cloning_loss(p, rewards),
    "r_lol": lambda p, ratios, advantages, rewards: r_lol_loss(p, ratios, rewards),
    "reference_free": lambda p, _, advantages, rewards: a_lol_reference_free_loss(p, advantages),
    "a_lol, uniform": lambda p, ratios, advantages, rewards: a_lol_loss(p, ratios, advantages),
    "a_lol": lambda p, ratios, advantages, rewards: a_lol_loss(p, ratios, advantages),
    "a_lol_seq": lambda p, ratios, advantages, rewards: a_lol_seq_loss(p, ratios, advantages),
    "kl 0.05": lambda p, ratios, advantages, rewards: a_lol_kl_loss(
        p, ratios, advantages, beta=0.05
    ),
    "kl 0.3": lambda p, ratios, advantages, rewards: a_lol_kl_loss(p, ratios, advantages, beta=0.3),
}


def noisy_annotators(generator):
    """Keys of prompts, prompt and tokens of every response, rewards, pi_ref from frequencies, and exact advantages."""
    key = generator.integers(0, SYMBOLS, (PROMPTS, TOKENS))
    prompts = generator.integers(0, PROMPTS, TRIPLES)
    copied = generator.random((TRIPLES, TOKENS)) < 0.9 * generator.random((TRIPLES, 1))
    tokens = np.where(copied, key[prompts], generator.integers(0, SYMBOLS, (TRIPLES, TOKENS)))
    rewards = (tokens == key[prompts]).mean(axis=1)
    counts = np.full((PROMPTS, TOKENS, SYMBOLS), 0.1)
    np.add.at(counts, (prompts[:, None], np.arange(TOKENS), tokens), 1)
    reference = counts / counts.sum(axis=-1, keepdims=True)
    values = np.take_along_axis(reference, key[:, :, None], axis=-1).mean(axis=(1, 2))
    return key, prompts, tokens, rewards, reference, rewards - values[prompts]


def batches(generator, rewards, advantages):
    """Indices `[steps, methods, 64]`: uniform for nll and wbc, else by reward or positive advantage."""
    positive = np.maximum(advantages, 0)
    weights = dict.fromkeys(METHODS, positive) | {"r_lol": rewards, "a_lol, uniform": positive > 0}
    weights |= dict.fromkeys(("nll", "wbc"), np.ones(TRIPLES))
    drawn = [
        generator.choice(TRIPLES, size=(600, 64), p=weight / weight.sum())
        for weight in weights.values()
    ]
    return np.stack(drawn, axis=1)


@pytest.fixture(scope="module")
def trained():
    """Reward and entropy of each method after 600 steps of Adam from pi_ref, and the share of negative advantages."""
    generator = np.random.default_rng(0)
    key, prompts, tokens, rewards, reference, advantages = noisy_annotators(generator)
    indices = jnp.asarray(batches(generator, rewards, advantages))
    prompts_, tokens_ = jnp.asarray(prompts), jnp.asarray(tokens)
    columns = [jnp.asarray(array[:, None], jnp.float32) for array in (advantages, rewards)]
    log_reference = jnp.asarray(np.log(reference), jnp.float32)
    optimizer = optax.adam(3e-2)

    def score(table, batch):
        picked = table[prompts_[batch][:, None], jnp.arange(TOKENS), tokens_[batch]]
        return picked

    def total(tables, batch):
        found = 0.0
        for table, rows, (name, loss) in zip(tables, batch, METHODS.items(), strict=True):
            log_probs = score(jax.nn.log_softmax(table), rows)
            ratios = log_probs - score(log_reference, rows)
            if name not in PER_TOKEN:
                log_probs, ratios = (a.sum(axis=-1, keepdims=True) for a in (log_probs, ratios))
            given = (jnp.broadcast_to(column[rows], log_probs.shape) for column in columns)
            losses = loss(log_probs, ratios, *given)
            found += losses.sum(axis=-1).mean()
        return found

    def step(carry, batch):
        tables, state = carry
        updates, state = optimizer.update(jax.grad(total)(tables, batch), state)
        return (optax.apply_updates(tables, updates), state), None

    start = jnp.tile(log_reference[None], (len(METHODS), 1, 1, 1))
    (tables, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), indices)
    found = {}
    for name, policy in zip(METHODS, np.asarray(jax.nn.softmax(tables)), strict=True):
        correct = np.take_along_axis(policy, key[:, :, None], axis=-1)
        entropy = -np.sum(policy * np.log(np.maximum(policy, 1e-30)), axis=-1)
        found[name] = correct.mean(), entropy.mean()
    return found, np.mean(advantages < 0)


@pytest.mark.parametrize("method", PUBLISHED)
def test_training_on_noisy_annotators_ends_where_the_specification_says(trained, method):
    found, _ = trained
    np.testing.assert_allclose(found[method], PUBLISHED[method], atol=0.03)


def test_the_order_of_methods_and_the_price_in_entropy(trained):
    """More reward costs entropy, and a larger "KL" coefficient takes more of it."""
    found, negative = trained
    rewards = [found[name][0] for name in ("nll", "wbc", "r_lol", "reference_free", "a_lol")]
    assert rewards == sorted(rewards)
    assert found["kl 0.3"][1] < found["kl 0.05"][1] < found["reference_free"][1] + 0.02
    assert abs(negative - 0.57) < 0.03
