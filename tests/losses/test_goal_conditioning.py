"""Goal-conditioned contrast: where positions may lie, bounds and identities of both losses, Q-values and the filter."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from jaxalign.errors import UserError
from jaxalign.losses.goal_conditioning import (
    contrast_means,
    cosine,
    goal_vector,
    matched_contrastive_loss,
    prefix_filter,
    prefix_values,
    released_contrastive_loss,
    sample_positions,
    sample_source_and_goal,
)

LEAST, EQUAL, LARGEST = (
    2 * math.log1p(math.exp(-1)),
    math.log1p(math.exp(-1)) + math.log1p(math.exp(1)),
    2 * math.log1p(math.exp(1)),
)
KEYS = jax.random.split(jax.random.key(0), 6)
LENGTHS = jnp.array([0, 1, 2, 3, 10, 500])


def states(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def released(positive, negative, where=None):
    """The loss of a whole batch, from its own means."""
    where = jnp.ones(len(positive), bool) if where is None else where
    return released_contrastive_loss(positive, negative, contrast_means(positive, negative, where))


def literal_released(positive, negative):
    """The public code's formula as it stands."""
    positives = jnp.mean(jax.nn.sigmoid(positive))
    negatives = jnp.mean(jax.nn.sigmoid(negative))
    return -jnp.log(positives) - jnp.log(1 - negatives)


def of_table(loss):
    """Value and gradients of a loss of two arrays of cosines."""
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


def losses_of(h_chosen, h_goal, h_other_goal):
    """Both losses of states ``[pairs, K, emb]``."""
    matched = matched_contrastive_loss(cosine(h_chosen, h_goal), cosine(h_chosen, h_other_goal))
    table = h_chosen[:, :, None]
    return jnp.mean(matched), jnp.mean(
        released(cosine(table, h_goal[:, None]), cosine(table, h_other_goal[:, None]))
    )


# Value and gradients of the matched and of the released form.
FORMS = [
    jax.jit(jax.value_and_grad(lambda *h, form=form: losses_of(*h)[form], argnums=(0, 1, 2)))
    for form in (0, 1)
]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.5, 1.0), (0.0, 0.25)])
def test_positions_lie_in_the_response_and_sources_before_goals(low, high):
    options = {"num_samples": 300, "low": low, "high": high}
    source, goal = sample_source_and_goal(KEYS, LENGTHS, **options)
    others = sample_positions(KEYS, LENGTHS, **options)
    last = np.maximum(LENGTHS - 1, 0)[:, None]
    assert np.all(source <= goal)
    for positions in (source, goal, others):
        assert positions.shape == (6, 300) and positions.dtype == jnp.int32
        assert np.all(positions >= 0) and np.all(positions <= last)
        share = np.asarray(positions[-1]) / 500
        assert share.min() >= low - 1e-6 and share.max() <= high
        assert share.max() - share.min() > 0.9 * (high - low)


def test_positions_depend_on_key_and_length_only():
    both = sample_positions(KEYS, LENGTHS, num_samples=4)
    alone = sample_positions(KEYS[4:5], LENGTHS[4:5], num_samples=4)
    np.testing.assert_array_equal(both[4:5], alone)
    assert not np.array_equal(both[5], sample_positions(KEYS[:1], LENGTHS[5:], num_samples=4)[0])


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.5), (-0.1, 1.0), (0.0, 1.1)])
def test_fractions_out_of_order_are_refused(low, high):
    with pytest.raises(UserError, match="0 <= low < high <= 1"):
        sample_positions(KEYS, LENGTHS, num_samples=2, low=low, high=high)


def test_losses_are_least_where_positives_align_and_negatives_oppose():
    h = states(3, 4, 8)[:, :1].repeat(4, axis=1)
    for form in FORMS:
        np.testing.assert_allclose(form(h, 2 * h, -3 * h)[0], LEAST, rtol=1e-6)
        np.testing.assert_allclose(form(h, -h, h)[0], LARGEST, rtol=1e-6)


def test_equal_states_cost_the_same_in_both_forms():
    h = jnp.ones((3, 4, 8))
    for form in FORMS:
        np.testing.assert_allclose(form(h, h, h)[0], EQUAL, rtol=1e-6)


@given(seed=st.integers(0, 1000), scale=st.sampled_from([1e-15, 1e-3, 1.0, 1e15, 1e30]))
def test_losses_stay_within_their_bounds_with_finite_gradients_at_any_scale(seed, scale):
    h = tuple(scale * states(3, 4, 8, seed=seed + i) for i in range(3))
    for form in FORMS:
        loss, gradients = form(*h)
        assert LEAST - 1e-5 <= loss <= LARGEST + 1e-5
        assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_losses_depend_on_directions_only():
    h = tuple(states(3, 4, 8, seed=i) for i in range(3))
    scaled = (0.1 * h[0], 7 * h[1], 20 * h[2])
    for form in FORMS:
        loss, gradients = form(*h)
        np.testing.assert_allclose(form(*scaled)[0], loss, rtol=1e-6)
        for state, gradient in zip(h, gradients, strict=True):
            np.testing.assert_allclose(jnp.sum(state * gradient, -1), 0, atol=1e-7)
            assert np.abs(gradient).max() > 1e-4


def test_one_pair_and_one_sample_make_both_forms_equal():
    h = tuple(states(1, 1, 8, seed=i) for i in range(3))
    (matched, gradients), (batch, batch_gradients) = (form(*h) for form in FORMS)
    np.testing.assert_allclose(matched, batch, rtol=1e-6)
    for one, other in zip(gradients, batch_gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_the_released_form_has_value_and_gradient_of_its_formula():
    positive, negative = jnp.tanh(states(5, 3, 4)), jnp.tanh(states(5, 3, 4, seed=1))
    value, gradients = of_table(lambda *cosines: jnp.mean(released(*cosines)))(positive, negative)
    expected, expected_gradients = of_table(literal_released)(positive, negative)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for one, other in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_parts_of_a_batch_add_up_to_its_released_loss_if_they_know_its_means():
    positive, negative = jnp.tanh(states(6, 2, 3)), jnp.tanh(states(6, 2, 3, seed=1))
    means = contrast_means(positive, negative, jnp.ones(6, bool))

    def in_parts(positive, negative):
        return sum(
            jnp.sum(released_contrastive_loss(positive[part], negative[part], means))
            for part in (slice(0, 4), slice(4, 6))
        )

    value, gradients = of_table(in_parts)(positive, negative)
    expected, expected_gradients = of_table(literal_released)(positive, negative)
    np.testing.assert_allclose(value / 6, expected, rtol=1e-6)
    for one, other in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(one / 6, other, rtol=1e-5)


def test_masked_pairs_do_not_enter_the_means():
    positive, negative = jnp.tanh(states(4, 2, 2)), jnp.tanh(states(4, 2, 2, seed=1))
    where = jnp.array([True, False, True, False])
    masked = positive.at[1].set(jnp.nan), negative.at[3].set(jnp.nan)
    np.testing.assert_allclose(
        contrast_means(*masked, where), contrast_means(positive[::2], negative[::2], where[::2])
    )
    assert contrast_means(positive, negative, jnp.zeros(4, bool)) == (0.5, 0.5)


def test_zero_states_have_cosine_and_gradient_zero():
    def total(first, second):
        return jnp.sum(cosine(first, second))

    value, gradients = jax.value_and_grad(total, argnums=(0, 1))(
        jnp.zeros((2, 4)), jnp.ones((2, 4))
    )
    assert value == 0 and not np.any(gradients[0]) and not np.any(gradients[1])


def test_gradients_equal_finite_differences():
    with jax.enable_x64(True):
        generator = np.random.default_rng(0)
        h = tuple(jnp.asarray(generator.normal(size=(3, 2, 3, 4))))
        both = jax.jit(lambda *h: jnp.stack(losses_of(*h)))
        check_grads(both, h, order=1, modes=["rev"])


def test_bfloat16_is_computed_in_float32():
    low = states(2, 3, 4).astype(jnp.bfloat16)
    exact = low.astype(jnp.float32)
    assert cosine(low, low[:, :1]).dtype == jnp.float32
    np.testing.assert_array_equal(cosine(low, low[:, :1]), cosine(exact, exact[:, :1]))
    cosines = cosine(low, low).astype(jnp.bfloat16)
    assert matched_contrastive_loss(cosines, cosines).dtype == jnp.float32
    assert released(cosines[:, :, None], cosines[:, :, None]).dtype == jnp.float32


def test_the_goal_is_the_mean_of_what_exists_and_q_of_equal_states_is_1():
    last = jnp.array([[1.0, 2.0], [3.0, 2.0], [jnp.nan, 0.0]])
    goal = goal_vector(last, jnp.array([True, True, False]))
    np.testing.assert_array_equal(goal, [2, 2])
    same = jnp.broadcast_to(states(8), (3, 5, 8))
    goal = goal_vector(same[:, -1], jnp.ones(3, bool))
    np.testing.assert_allclose(prefix_values(same, goal), jnp.ones((3, 5)), rtol=1e-6)
    np.testing.assert_allclose(prefix_values(-same, goal), -jnp.ones((3, 5)), rtol=1e-6)


def test_the_filter_drops_at_the_first_low_value_and_counts_what_was_read():
    values = jnp.array(
        [
            [0.5, 0.1, 0.2, 0.0, 0.3],  # 0 is not below 0
            [
                -1.0,
                -0.1,
                -0.2,
                0.5,
                -0.3,
            ],  # the empty prefix and the first token are ignored; dropped after two tokens
            [0.5, 0.4, -0.1, -0.1, -0.1],  # low on padding only
        ]
    )
    mask = jnp.arange(5) < jnp.array([5, 5, 2])[:, None]
    kept, read = prefix_filter(values, mask, ignored_tokens=1)
    np.testing.assert_array_equal(kept, [True, False, True])
    np.testing.assert_array_equal(read, [5, 2, 2])
    kept, read = prefix_filter(values, mask)
    assert kept.all(), "the default ignores five tokens"
    kept, read = prefix_filter(values, mask, threshold=0.2, ignored_tokens=0)
    np.testing.assert_array_equal(kept, [False, False, True])
    np.testing.assert_array_equal(read, [1, 1, 2])
