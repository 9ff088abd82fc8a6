"""SPA: labels, the smoothed loss, extrapolated logits and what they are exactly, the running quantile."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from jaxalign.errors import UserError
from jaxalign.losses import self_annotation as spa
from jaxalign.losses.pairwise import dpo_loss
from jaxalign.selection.self_labels import self_labels
from tests.fixtures.numbers import close

BETA, ALPHA = 0.4, 0.1
EXTREME = st.floats(-1e4, 1e4, width=32)
LOSS = functools.partial(spa.spa_loss, beta=BETA, alpha=ALPHA)


def pair(pairs=5, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, pairs)), dtype)


# The loss.


@pytest.mark.parametrize(
    "loss", [LOSS, functools.partial(LOSS, alpha=0.0)], ids=["clean", "alpha0"]
)
def test_without_suspects_or_smoothing_it_is_dpo(loss):
    suspects = jnp.full(5, loss.keywords["alpha"] == 0)

    def ours(chosen, rejected):
        return jnp.sum(loss(chosen, rejected, suspects))

    def dpo(chosen, rejected):
        return jnp.sum(dpo_loss(chosen, rejected, beta=BETA))

    np.testing.assert_array_equal(ours(*pair()), dpo(*pair()))
    for one, other in zip(*(jax.grad(f, (0, 1))(*pair()) for f in (ours, dpo)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_value_by_hand_and_at_the_start():
    h, zero, both = jnp.full(2, 3.0), jnp.zeros(2), jnp.array([True, False])
    low, high = math.log1p(math.exp(-1.2)), math.log1p(math.exp(1.2))
    close(LOSS(h, zero, both), [0.9 * low + 0.1 * high, low])
    close(LOSS(zero, zero, both), math.log(2))


def test_the_slope_and_the_finite_best_margin_of_a_suspect():
    h, zero = pair()[0], jnp.zeros(5)
    for suspect in (False, True):
        slope = jax.grad(lambda h, z=suspect: jnp.sum(LOSS(h, zero, jnp.full(5, z))))
        close(slope(h), -BETA * (1 - ALPHA * suspect - jax.nn.sigmoid(BETA * h)))
    best = jnp.full(5, math.log(0.9 / 0.1) / BETA)
    close(slope(best), 0)
    assert math.isclose(BETA * best[0], 2.197, abs_tol=1e-3)


@settings(max_examples=20)
@given(chosen=EXTREME, rejected=EXTREME, suspect=st.booleans())
def test_extreme_inputs_give_finite_losses_and_gradients(chosen, rejected, suspect):
    arguments = jnp.float32([chosen]), jnp.float32([rejected])
    value, slope = jax.value_and_grad(
        lambda *ratios: jnp.sum(LOSS(*ratios, jnp.array([suspect]))), (0, 1)
    )(*arguments)
    assert np.isfinite(value) and np.isfinite(slope).all() and value >= 0


def test_gradients_equal_finite_differences_and_bfloat16_is_widened():
    with jax.enable_x64(True):
        suspects = jnp.array([True, False, True, False, False])
        check_grads(
            lambda *ratios: LOSS(*map(jnp.asarray, ratios), suspects),
            tuple(pair(dtype=jnp.float64)),
            1,
            modes=["rev"],
        )
    low = pair(dtype=jnp.bfloat16)
    found = LOSS(*low, suspects)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, LOSS(*low.astype(jnp.float32), suspects))


@pytest.mark.parametrize("changes", [{"alpha": 1.1}, {"alpha": -0.1}, {"beta": 0.0}])
def test_impossible_hyperparameters_are_refused_by_name(changes):
    with pytest.raises(UserError, match=rf"spa.{next(iter(changes))}"):
        functools.partial(LOSS, **changes)(*pair(), jnp.zeros(5, bool))


# Labels.


def labels(log_probs, initial, mask=None, beta=BETA):
    mask = jnp.ones(log_probs.shape, bool) if mask is None else mask
    return self_labels(log_probs, initial, mask, beta=beta)


@pytest.fixture
def samples():
    return jnp.asarray(np.random.default_rng(1).normal(size=(2, 6, 4)) - 9, jnp.float32)


def test_the_highest_implicit_reward_is_chosen_and_the_lowest_rejected(samples):
    log_probs, initial = samples
    rewards = np.asarray(log_probs - initial)
    found = labels(log_probs, initial)
    np.testing.assert_array_equal(found.chosen, rewards.argmax(1))
    np.testing.assert_array_equal(found.rejected, rewards.argmin(1))
    close(found.margins, rewards.max(1) - rewards.min(1))
    close(found.probabilities, 1 / (1 + np.exp(-BETA * np.asarray(found.margins))))


def test_labels_ignore_beta_and_a_constant_per_prompt(samples):
    log_probs, initial = samples
    expected = labels(log_probs, initial)
    shifted = labels(log_probs + jnp.arange(6.0)[:, None], initial)
    for found in (shifted, labels(log_probs, initial, beta=7.0)):
        np.testing.assert_array_equal(found.chosen, expected.chosen)
        np.testing.assert_array_equal(found.rejected, expected.rejected)
        close(found.margins, expected.margins, 1e-5)


def test_swapping_two_samples_swaps_the_label(samples):
    log_probs, initial = samples[:, :, :2]
    found = labels(log_probs, initial)
    swapped = labels(log_probs[:, ::-1], initial[:, ::-1])
    np.testing.assert_array_equal(found.chosen, 1 - swapped.chosen)
    close(found.margins, swapped.margins)


def test_against_itself_a_policy_has_nothing_to_say(samples):
    found = labels(samples[0], samples[0])
    assert not found.margins.any() and np.all(found.probabilities == 0.5)


def test_samples_that_do_not_exist_are_never_labelled(samples):
    log_probs, initial = samples
    mask = jnp.array([[True, True, False, False]] * 4 + [[False, True, False, False], [False] * 4])
    garbage = jnp.where(mask, log_probs, 1e4)
    found = labels(garbage, initial, mask)
    assert np.all(found.chosen[:4] < 2) and np.all(found.rejected[:4] < 2)
    assert found.chosen[4] == found.rejected[4] == 1
    assert not found.margins[4:].any()


# Extrapolated logits.


@pytest.fixture
def logits():
    """Of policy and reference over 7 tokens, two pairs of 5-token responses, in float64; targets and masks."""
    with jax.enable_x64(True):
        generator = np.random.default_rng(2)
        policy, reference = jnp.asarray(generator.normal(size=(2, 2, 2, 5, 7)))
        targets = jnp.asarray(generator.integers(0, 7, (2, 2, 5)))
        mask = jnp.arange(5) < jnp.array([[5, 3], [2, 4]])[:, :, None]
        yield policy, reference, targets, mask


def sums(logits, targets, mask):
    """Log-probabilities of responses under plain logits."""
    log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
    return jnp.sum(jnp.where(mask, log_probs, 0), -1)


def extrapolated_log_probs(policy, reference, targets, mask, *, strength):
    log_probs = spa.extrapolated_token_log_probs(policy, reference, targets, strength=strength)
    return jnp.sum(jnp.where(mask, log_probs, 0), -1)


def extrapolated(logits, strength, side):
    policy, reference, targets, mask = (array[:, side] for array in logits)
    return extrapolated_log_probs(policy, reference, targets, mask, strength=strength)


def test_without_strength_the_policy_itself_remains(logits):
    policy, _, targets, mask = logits
    close(extrapolated(logits, 0.0, 0), sums(policy, targets, mask)[:, 0], 1e-12)


def test_extrapolation_by_its_formula(logits):
    policy, reference, targets, mask = logits
    expected = sums(1.5 * policy - 0.5 * reference, targets, mask)
    close(extrapolated(logits, 0.5, 1), expected[:, 1], 1e-12)


@pytest.mark.parametrize("strength", [0.125, 0.5, 2.0])
def test_noise_detection_subtracts_renyi_divergences_from_a_stretched_margin(logits, strength):
    """h_g = (1 + s) h - s (sum of D over the chosen - over the rejected), D the Renyi divergence of order 1 + s at each prefix."""
    policy, reference, targets, mask = logits
    log_policy, log_reference = jax.nn.log_softmax(policy), jax.nn.log_softmax(reference)
    tilted = (1 + strength) * log_policy - strength * log_reference
    divergences = jax.nn.logsumexp(tilted, axis=-1) / strength
    assert np.all(divergences >= 0)
    total = jnp.sum(jnp.where(mask, divergences, 0), -1)
    ratios = sums(policy, targets, mask) - sums(reference, targets, mask)
    h = ratios[:, 0] - ratios[:, 1]
    expected = (1 + strength) * h - strength * (total[:, 0] - total[:, 1])
    found = [
        extrapolated(logits, strength, side) - sums(reference, targets, mask)[:, side]
        for side in (0, 1)
    ]
    close(found[0] - found[1], expected, 1e-12)


def test_on_answers_of_one_token_it_flags_the_same_pairs_for_every_strength(logits):
    """Both responses share the prefix, so the divergences cancel and h_g = (1 + s) h."""
    generator = np.random.default_rng(4)
    policy, reference = jnp.asarray(generator.normal(size=(2, 30, 1, 7)))
    targets = jnp.asarray(generator.permuted(np.tile(np.arange(7), (30, 1)), axis=1)[:, :2])
    mask = jnp.ones((30, 1), bool)

    def flagged(strength):
        ratios = [
            extrapolated_log_probs(
                policy, reference, targets[:, side : side + 1], mask, strength=strength
            )
            - sums(reference, targets[:, side : side + 1], mask)
            for side in (0, 1)
        ]
        margins = BETA * (ratios[0] - ratios[1])
        threshold = jnp.sort(margins)[2]
        return np.asarray(spa.find_suspects(*ratios, threshold, beta=BETA)), margins

    (plain, margins), (strong, stretched) = flagged(0.0), flagged(0.5)
    assert plain.sum() == 3
    np.testing.assert_array_equal(plain, strong)
    close(stretched, 1.5 * margins, 1e-12)


def test_no_gradient_passes_the_extrapolation(logits):
    policy, reference, targets, mask = (array[:, 0] for array in logits)

    def total(policy):
        return jnp.sum(extrapolated_log_probs(policy, reference, targets, mask, strength=0.5))

    assert not jax.grad(total)(policy).any()


def test_suspects_are_at_or_below_the_threshold():
    margins, zero = jnp.array([-1.0, 0.5, 1.0, 2.0]), jnp.zeros(4)
    found = spa.find_suspects(margins, zero, 0.5, beta=0.5)
    np.testing.assert_array_equal(found, [True, True, True, False])
    assert not spa.find_suspects(margins, zero, -jnp.inf, beta=0.5).any()


# The running quantile.


def fill(rule, values, sizes, where=None):
    """Adds the values in batches of the given sizes."""
    where = np.ones(len(values), bool) if where is None else np.asarray(where)
    state, start = rule.initial(), 0
    for size in sizes:
        part = slice(start, start + size)
        state = rule.add(state, jnp.float32(values[part]), jnp.asarray(where[part]))
        start += size
    return state


def test_the_tenth_percentile_of_1_to_50():
    """The public code's rule: the mean of the sixth and seventh smallest."""
    values = np.random.default_rng(0).permutation(np.arange(1.0, 51.0))
    rule = spa.RunningQuantile(window=50, fraction=0.1)
    assert rule.value(fill(rule, values, [50])) == 6.5


def test_until_the_window_is_full_there_is_no_threshold_or_zero():
    values = np.arange(9.0)
    for until_full, expected in (("none", -math.inf), ("zero", 0.0)):
        rule = spa.RunningQuantile(window=10, until_full=until_full)
        assert rule.value(rule.initial()) == expected
        assert rule.value(fill(rule, values + 5, [9])) == expected


@settings(max_examples=25)
@given(
    sizes=st.lists(st.sampled_from([1, 3, 8]), min_size=1, max_size=6),
    seed=st.integers(0, 1000),
    fraction=st.sampled_from([0.0, 0.25, 0.9]),
)
def test_it_remembers_the_newest_values_whatever_the_batches(sizes, seed, fraction):
    """One by one or many at once, also more than the window holds, and never what is masked."""
    generator = np.random.default_rng(seed)
    values = generator.normal(size=sum(sizes)).astype(np.float32)
    where = generator.uniform(size=sum(sizes)) > 0.3
    rule = spa.RunningQuantile(window=5, fraction=fraction)
    state = fill(rule, np.where(where, values, 1e4), sizes, where)
    kept = values[where][-5:]
    assert state["filled"] == len(kept)
    np.testing.assert_array_equal(state["recent"][5 - len(kept) :], kept)
    if len(kept) == 5:
        ordered = np.sort(kept)
        rank = int(5 * fraction)
        close(rule.value(state), (ordered[rank] + ordered[min(rank + 1, 4)]) / 2)
    else:
        assert rule.value(state) == -math.inf


def test_the_state_is_float32_and_of_constant_shape():
    rule = spa.RunningQuantile(window=4)
    state = rule.initial()
    after = jax.jit(rule.add)(state, jnp.ones(3), jnp.array([True, False, True]))
    for name, array in state.items():
        assert array.dtype == after[name].dtype == jnp.float32
        assert array.shape == after[name].shape


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": 0}, "RunningQuantile.window"),
        ({"fraction": 1.5}, "RunningQuantile.fraction"),
        ({"until_full": "later"}, "RunningQuantile.until_full must be one of none, zero"),
    ],
)
def test_an_impossible_quantile_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        spa.RunningQuantile(**changes)
