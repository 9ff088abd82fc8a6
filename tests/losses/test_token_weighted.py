"""GOLD, R-GOLD and A-LoL seq: weights by their definition, constant under the gradient, within one response."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxalign.errors import UserError
from jaxalign.losses.policy_gradient import a_lol_loss
from jaxalign.losses.token_level import a_lol_seq_loss, gold_loss, r_gold_loss

# Two responses in one row of eight, with padding; one of one token; nothing.
SEGMENTS = jnp.array([[1, 1, 1, 1, 2, 2, 0, 0], [3, 0, 0, 0, 0, 0, 0, 0], [0] * 8])
EXISTS = np.asarray(SEGMENTS) > 0
GENERATOR = np.random.default_rng(0)
LOG_PROBS, REFERENCE = (
    jnp.asarray(np.log(GENERATOR.uniform(0.02, 1, SEGMENTS.shape)), jnp.float32) for _ in range(2)
)
EXTREME = st.floats(-1e4, 0, width=32)


def gold_by_hand(reward, horizon, discount, baseline, min_reward, importance, min_importance):
    """-b_t Q_t log p_t, token by token."""
    lp, ref = np.asarray(LOG_PROBS, np.float64), np.asarray(REFERENCE, np.float64)
    losses = np.zeros(lp.shape)
    for row, t in np.argwhere(EXISTS):
        total = 0.0
        for k in range(horizon + 1):
            inside = t + k < lp.shape[1] and SEGMENTS[row, t + k] == SEGMENTS[row, t]
            p = np.exp(ref[row, t + k]) if inside else 1.0
            q = p if reward == "probability" else np.log(p + 1e-10) - baseline
            total += discount**k * max(q, min_reward)
        old = np.exp((lp if importance == "policy" else ref)[row, t])
        losses[row, t] = -np.clip(old, min_importance, 1) * total * lp[row, t]
    return losses


@pytest.mark.parametrize(
    "options",
    [
        ("probability", 5, 1.0, -10.0, 0.0, "policy", 0.1),
        ("probability", 2, 0.9, -10.0, 0.3, "reference", 0.5),
        ("log_probability", 5, 1.0, -2.0, 1.0, "policy", 0.2),
        ("log_probability", 0, 0.5, 0.0, 0.0, "reference", 0.0),
    ],
    ids=str,
)
def test_gold_by_its_definition(options):
    names = [
        "reward",
        "horizon",
        "discount",
        "baseline",
        "min_reward",
        "importance",
        "min_importance",
    ]
    found = gold_loss(LOG_PROBS, REFERENCE, SEGMENTS, **dict(zip(names, options, strict=True)))
    expected = gold_by_hand(*options)
    np.testing.assert_allclose(np.asarray(found)[EXISTS], expected[EXISTS], rtol=1e-5, atol=1e-6)


def test_gold_with_all_weights_at_their_floor_is_fine_tuning():
    """Rewards of at least 1 (probabilities never exceed it) and weights of at least 1: six times the negative log-probability."""
    found = gold_loss(LOG_PROBS, REFERENCE, SEGMENTS, min_reward=1.0, min_importance=1.0)
    np.testing.assert_allclose(found, -6 * LOG_PROBS, rtol=1e-6)


def test_gold_weights_are_constants():
    def loss(log_probs, reference):
        return jnp.sum(jnp.where(EXISTS, gold_loss(log_probs, reference, SEGMENTS), 0))

    own, other = jax.grad(loss, argnums=(0, 1))(LOG_PROBS, REFERENCE)
    assert not np.any(other)
    losses = gold_loss(LOG_PROBS, REFERENCE, SEGMENTS)
    # The loss is linear in log pi, so its slope is loss / log pi.
    np.testing.assert_allclose(own, np.where(EXISTS, losses / LOG_PROBS, 0), rtol=1e-5)


def test_gold_does_not_depend_on_packing_or_padding():
    packed = gold_loss(LOG_PROBS, REFERENCE, SEGMENTS, discount=0.8)
    alone = gold_loss(
        LOG_PROBS[:1, 4:6], REFERENCE[:1, 4:6], jnp.ones((1, 2), jnp.int32), discount=0.8
    )
    np.testing.assert_array_equal(packed[:1, 4:6], alone)


def test_r_gold_is_the_gradient_of_the_probability():
    """Where pi exceeds the floor: -r pi grad log pi = -r grad pi. Below, the floor's multiple of grad log pi."""
    feedback = jnp.where(EXISTS, 2.0, 0.0)
    slope = jax.grad(lambda lp: jnp.sum(r_gold_loss(lp, feedback, min_importance=0.3)))(LOG_PROBS)
    expected = np.where(EXISTS, -2 * np.maximum(np.exp(LOG_PROBS), 0.3), 0)
    np.testing.assert_allclose(slope, expected, rtol=1e-6)


class TestALoLSeq:
    ADVANTAGES = jnp.where(SEGMENTS == 1, 1.5, jnp.where(SEGMENTS == 2, -0.5, 0.7))

    @pytest.mark.parametrize("ratio_clip", [0.9, None, 0.0])
    def test_at_the_start_it_is_the_reference_free_loss(self, ratio_clip):
        zero = jnp.zeros_like(LOG_PROBS)
        found = a_lol_seq_loss(LOG_PROBS, zero, self.ADVANTAGES, ratio_clip=ratio_clip)
        expected = -np.maximum(self.ADVANTAGES, 0) * LOG_PROBS
        np.testing.assert_allclose(found, expected, rtol=1e-6)

    def test_a_clip_of_zero_is_the_reference_free_loss_anywhere(self):
        ratios = LOG_PROBS - REFERENCE
        found = a_lol_seq_loss(LOG_PROBS, ratios, self.ADVANTAGES, ratio_clip=0.0)
        expected = -np.maximum(self.ADVANTAGES, 0) * LOG_PROBS
        np.testing.assert_allclose(found, expected, rtol=1e-6)

    @pytest.mark.parametrize("ratio_clip", [0.3, None])
    def test_a_response_of_one_token_has_the_loss_of_a_lol(self, ratio_clip):
        ratios = LOG_PROBS - REFERENCE
        arguments = LOG_PROBS, ratios, self.ADVANTAGES
        np.testing.assert_array_equal(
            a_lol_seq_loss(*arguments, ratio_clip=ratio_clip),
            a_lol_loss(*arguments, ratio_clip=ratio_clip),
        )

    def test_gradients_pass_the_log_probability_only_also_outside_the_clip_range(self):
        def loss(log_probs, reference, advantages):
            ratios = log_probs - reference
            return jnp.sum(a_lol_seq_loss(log_probs, ratios, advantages, ratio_clip=0.2))

        gradients = jax.grad(loss, argnums=(0, 1, 2))(LOG_PROBS, REFERENCE, self.ADVANTAGES)
        ratios = np.clip(np.exp(LOG_PROBS - REFERENCE), 0.8, 1.2)
        expected = -np.maximum(self.ADVANTAGES, 0) * ratios
        assert (np.abs(ratios - 1) > 0.19).sum() > 5
        np.testing.assert_allclose(gradients[0], expected, rtol=1e-6)
        assert not np.any(gradients[1]) and not np.any(gradients[2])

    def test_without_a_positive_advantage_there_is_nothing_to_learn(self):
        def loss(log_probs):
            return jnp.sum(a_lol_seq_loss(log_probs, log_probs, -jnp.ones_like(log_probs)))

        value, slope = jax.value_and_grad(loss)(LOG_PROBS)
        assert value == 0 and not np.any(slope)


def test_hyperparameters_out_of_range_are_refused_by_name():
    for options, words in (
        ({"reward": "p"}, "gold.reward must be one of probability, log_probability"),
        ({"importance": "old"}, "gold.importance must be one of policy, reference"),
        ({"discount": 1.5}, "gold.discount"),
        ({"min_importance": -0.1}, "gold.min_importance"),
        ({"horizon": -1}, "gold.horizon"),
    ):
        with pytest.raises(UserError, match=words):
            gold_loss(LOG_PROBS, REFERENCE, SEGMENTS, **options)
    with pytest.raises(UserError, match=r"r_gold\.min_importance"):
        r_gold_loss(LOG_PROBS, LOG_PROBS, min_importance=2.0)
    with pytest.raises(UserError, match="ratio_clip"):
        a_lol_seq_loss(LOG_PROBS, LOG_PROBS, LOG_PROBS, ratio_clip=-1.0)


@jax.jit
@jax.value_and_grad
def sum_of_all(log_probs, reference, constant):
    segments = jnp.array([[1, 0]])
    return jnp.sum(
        gold_loss(log_probs, reference, segments)
        + gold_loss(log_probs, reference, segments, reward="log_probability")
        + r_gold_loss(log_probs, constant)
        + a_lol_seq_loss(log_probs, log_probs - reference, constant)
        + a_lol_seq_loss(log_probs, log_probs - reference, constant, ratio_clip=None)
    )


@given(log_prob=EXTREME, reference=EXTREME, number=st.floats(0, 1e4, width=32))
def test_extreme_inputs_give_finite_losses_and_gradients(log_prob, reference, number):
    value, slope = sum_of_all(*(jnp.full((1, 2), x) for x in (log_prob, reference, number)))
    assert np.isfinite(value) and np.all(np.isfinite(slope))


def test_bfloat16_is_computed_in_float32():
    low = LOG_PROBS.astype(jnp.bfloat16)
    exact = low.astype(jnp.float32)
    for function in (
        lambda x: gold_loss(x, x, SEGMENTS),
        lambda x: r_gold_loss(x, -x),
        lambda x: a_lol_seq_loss(x, x, -x),
    ):
        assert function(low).dtype == jnp.float32
        np.testing.assert_array_equal(function(low), function(exact))
