"""JPO on pairs found in a batch: which pairs there are, and that it is DPO where they lie within prompts."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from jaxalign.errors import UserError
from jaxalign.losses.joint_preference import in_batch_jpo_loss, paired_jpo_loss
from jaxalign.losses.pairwise import dpo_loss
from jaxalign.losses.requirements import requirements_of
from tests.fixtures.numbers import close

BETA = 0.4
EXTREME = st.floats(-1e4, 1e4, width=32)
IN_BATCH = functools.partial(in_batch_jpo_loss, beta=BETA)


@functools.partial(jax.jit, static_argnames="joint_weight")
def in_batch(ratios, *rest, joint_weight=1.0):
    """Losses and weights, and the gradient of the summed losses."""

    def total(ratios):
        results = IN_BATCH(ratios, *rest, joint_weight=joint_weight)
        return jnp.sum(results[0]), results

    slope, results = jax.grad(total, has_aux=True)(ratios)
    return *results, slope


def batch(examples=6, responses=2, dtype=jnp.float32, seed=1):
    generator = np.random.default_rng(seed)
    return [
        jnp.asarray(generator.normal(size=(examples, responses)), dtype),
        jnp.asarray(generator.integers(0, 4, (examples, responses)), dtype),
        jnp.arange(11, 11 + examples),
        jnp.ones((examples, responses), bool),
    ]


def explicit(log_ratios, feedback, prompt_ids, mask, joint_weight=1.0):
    """Sum and weight by the definition, pair by pair."""
    total = weight = 0.0
    examples, responses = mask.shape
    existing = [row for row in range(examples) if mask[row].any()]

    def add(first, second, size):
        nonlocal total, weight
        if mask[first] and mask[second] and feedback[first] != feedback[second]:
            winner, loser = sorted((first, second), key=lambda place: -feedback[place])
            total += size * np.logaddexp(0, -BETA * float(log_ratios[winner] - log_ratios[loser]))
            weight += size

    for row in existing:
        for i in range(responses):
            for j in range(i):
                add((row, i), (row, j), 1.0)
    for row, following in itertools.pairwise(existing):
        same = prompt_ids[row] == prompt_ids[following]
        size = float(responses == 1) if same else joint_weight
        for k in range(responses):
            add((row, k), (following, k), size)
    return total, weight


@pytest.mark.parametrize("responses", [1, 2, 3])
@pytest.mark.parametrize("joint_weight", [0.0, 0.5, 1.0])
def test_pairs_within_prompts_and_between_neighbours(responses, joint_weight):
    arrays = batch(responses=responses)
    arrays[1] = arrays[1].at[3].set(arrays[1][2] + 1)
    arrays[2] = arrays[2].at[3].set(arrays[2][2])
    arrays[3] = arrays[3].at[4].set(False).at[1, 0].set(False)
    losses, weights, _ = in_batch(*arrays, joint_weight=joint_weight)
    expected = explicit(*map(np.asarray, arrays), joint_weight)
    close((losses.sum(), weights.sum()), expected, 1e-5)
    assert not losses[4] and not weights[4]


@pytest.mark.parametrize(
    "why", ["no joint weight", "one prompt", "a single example", "ties across"]
)
def test_where_only_pairs_within_prompts_exist_it_is_dpo(why):
    arrays = batch(1 if why == "a single example" else 6)
    arrays[1] = jnp.tile(jnp.array([1.0, 0.0]), (arrays[0].shape[0], 1))
    options = {"joint_weight": 0.0} if why == "no joint weight" else {}
    if why == "one prompt":
        arrays[1] = arrays[1] * jnp.arange(1.0, 7.0)[:, None]
        arrays[2] = jnp.full(6, 11)

    losses, weights, slope = in_batch(*arrays, **options)
    pairs = weights.sum()
    assert pairs == arrays[0].shape[0]

    def dpo(ratios):
        return jnp.mean(dpo_loss(ratios[:, 0], ratios[:, 1], beta=BETA))

    close(losses.sum() / pairs, dpo(arrays[0]))
    close(slope / pairs, jax.grad(dpo)(arrays[0]))


def test_feedback_decides_who_wins_within_a_prompt():
    arrays = batch()
    arrays[1] = jnp.tile(jnp.array([0.0, 1.0]), (6, 1))
    losses, *_ = in_batch(*arrays, joint_weight=0.0)
    close(losses, dpo_loss(arrays[0][:, 1], arrays[0][:, 0], beta=BETA))


def test_a_merged_batch_is_the_weighted_mean_of_dpo_and_joint_pairs():
    arrays = batch()
    (within, count), (both, sum_of_both) = (
        (losses.sum(), weights.sum())
        for losses, weights, _ in (in_batch(*arrays, joint_weight=w) for w in (0.0, 1.0))
    )
    losses, weights, _ = in_batch(*arrays, joint_weight=0.3)
    close(losses.sum(), within + 0.3 * (both - within), 1e-5)
    close(weights.sum(), count + 0.3 * (sum_of_both - count), 1e-5)


def test_ties_are_dropped():
    arrays = batch()
    arrays[1] = jnp.ones((6, 2))
    assert not any(np.any(result) for result in in_batch(*arrays))


@pytest.mark.parametrize("responses", [1, 2])
def test_empty_places_between_examples_change_nothing(responses):
    arrays, places = batch(responses=responses), jnp.array([1, 2, 4, 5, 8, 9])
    spread = [
        jnp.full((10, *array.shape[1:]), 99, array.dtype).at[places].set(array)
        for array in arrays[:3]
    ]
    mask = jnp.zeros((10, responses), bool).at[places].set(True)

    holed = in_batch(*spread, mask)
    for found, expected in zip(holed, in_batch(*arrays), strict=True):
        close(found[places], expected)
        assert not np.delete(np.asarray(found), places, axis=0).any()


@settings(max_examples=30)
@given(
    numbers=st.lists(EXTREME, min_size=16, max_size=16),
    mask=st.lists(st.booleans(), min_size=8, max_size=8),
    ids=st.lists(st.integers(0, 2), min_size=4, max_size=4),
)
def test_extreme_and_masked_inputs_give_finite_losses_and_gradients(numbers, mask, ids):
    ratios, feedback = jnp.float32(numbers).reshape(2, 4, 2)
    mask = jnp.array(mask).reshape(4, 2)
    results = in_batch(ratios, feedback, jnp.array(ids), mask)
    assert all(np.isfinite(array).all() for array in results)
    assert not np.asarray(results[2])[~np.asarray(mask)].any()


def test_gradients_equal_finite_differences_and_bfloat16_is_widened():
    with jax.enable_x64(True):
        arrays = batch(3, dtype=jnp.float64)
        loss = jax.jit(lambda x: IN_BATCH(x, *arrays[1:])[0])
        check_grads(loss, (arrays[0],), 1, modes=["rev"])
    low = batch(dtype=jnp.bfloat16)
    found, *_ = in_batch(*low)
    assert found.dtype == jnp.float32
    exact, *_ = in_batch(low[0].astype(jnp.float32), low[1].astype(jnp.float32), *low[2:])
    np.testing.assert_array_equal(found, exact)


def test_impossible_hyperparameters_are_refused_and_distinct_prompts_declared():
    for name, value in (("beta", 0.0), ("joint_weight", -1.0)):
        with pytest.raises(UserError, match=f"in_batch_jpo.{name}"):
            functools.partial(IN_BATCH, **{name: value})(*batch())
    assert requirements_of(IN_BATCH).distinct_prompts


def test_stated_comparisons_are_the_losses_of_their_pairs():
    """Consecutive examples are pairs, ordered by feedback; ties and holes weigh nothing."""
    ratios = jnp.float32([[0.3], [-0.2], [1.0], [0.5], [0.4], [0.1], [2.0], [7.0]])
    feedback = jnp.float32([[1], [0], [0], [1], [1], [1], [1], [0]])
    mask = jnp.ones((8, 1), bool).at[7].set(False)
    losses, weights = paired_jpo_loss(ratios, feedback, mask, beta=BETA)
    expected = dpo_loss(jnp.float32([0.3, 0.5]), jnp.float32([-0.2, 1.0]), beta=BETA)
    close(losses, [expected[0], 0, expected[1], 0, 0, 0, 0, 0], 1e-6)
    np.testing.assert_array_equal(weights, [1, 0, 1, 0, 0, 0, 0, 0])


def test_stated_comparisons_need_an_even_batch():
    with pytest.raises(UserError, match="even number"):
        paired_jpo_loss(jnp.zeros((3, 1)), jnp.zeros((3, 1)), jnp.ones((3, 1), bool), beta=BETA)
