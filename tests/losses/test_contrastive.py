"""Relative Preference Optimization: one pair is DPO, limits of tau, start gradients, masks, robustness."""

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
from jaxalign.losses import contrastive
from jaxalign.losses.pairwise import dpo_loss
from jaxalign.losses.requirements import quantities_of, requirements_of
from tests.fixtures.numbers import close

BETA, TAU, LN2 = 0.4, 0.5, math.log(2)
EXTREME = st.floats(-1e4, 1e4, width=32)
PAIRED = {
    "embed": functools.partial(contrastive.rpo_loss, beta=BETA, tau=TAU),
    "embed_row_sum": functools.partial(contrastive.rpo_loss, beta=BETA, tau=TAU, scale="row_sum"),
    "uniform": functools.partial(contrastive.rpo_uniform_loss, beta=BETA),
    "diagonal": functools.partial(contrastive.rpo_diagonal_loss, beta=BETA, diagonal_weight=0.8),
}
UNPAIRED = {
    "unpaired": functools.partial(contrastive.rpo_unpaired_loss, beta=BETA, tau=TAU, threshold=0.5),
    "unpaired_row_sum": functools.partial(
        contrastive.rpo_unpaired_loss, beta=BETA, tau=TAU, threshold=0.5, scale="row_sum"
    ),
    "unpaired_uniform": functools.partial(
        contrastive.rpo_unpaired_uniform_loss, beta=BETA, threshold=0.5
    ),
}
ALL = PAIRED | UNPAIRED


def made(examples=5, responses=2, seed=0, dtype=jnp.float32):
    generator = np.random.default_rng(seed)
    return {
        "log_ratios": jnp.asarray(generator.normal(size=(examples, responses)), dtype),
        "prompt_embeddings": jnp.asarray(generator.normal(size=(examples, 4)) + 9, dtype),
        "feedback": jnp.asarray(generator.integers(0, 2, (examples, responses)), dtype),
        "mask": jnp.ones((examples, responses), bool),
    }


def eager(function, arrays):
    return function(**{name: arrays[name] for name in quantities_of(function)[0]})


def eager_mean(function, arrays):
    losses, weights = eager(function, arrays)
    return jnp.sum(losses) / jnp.maximum(jnp.sum(weights), 1)


def eager_slope(function, arrays):
    ratios = arrays["log_ratios"]
    return jax.grad(lambda x: eager_mean(function, arrays | {"log_ratios": x}))(ratios)


call, mean, slope = (
    jax.jit(function, static_argnums=0) for function in (eager, eager_mean, eager_slope)
)


def cells(arrays):
    """Margins of every chosen response over every rejected one."""
    return arrays["log_ratios"][:, :1] - arrays["log_ratios"][:, 1]


@functools.cache
def with_tau(method, tau):
    weighted = "prompt_embeddings" in quantities_of(ALL[method])[0]
    return functools.partial(ALL[method], **({"tau": tau} if weighted else {}))


def nats(logits):
    return np.logaddexp(0, -np.asarray(logits, np.float64))


@pytest.mark.parametrize("method", PAIRED)
def test_one_pair_is_dpo(method):
    """Value and gradient, also when the rest of the batch is empty."""

    def dpo(log_ratios):
        return jnp.sum(dpo_loss(log_ratios[:1, 0], log_ratios[:1, 1], beta=BETA))

    alone = made(1)
    holed = made(3) | {"mask": jnp.zeros((3, 2), bool).at[0].set(True)}
    for arrays in (alone, holed):
        close(mean(PAIRED[method], arrays), dpo(arrays["log_ratios"]))
        close(slope(PAIRED[method], arrays), jax.grad(dpo)(arrays["log_ratios"]))


@pytest.mark.parametrize("scale", contrastive.SCALES)
def test_one_good_and_one_bad_response_are_a_dpo_pair(scale):
    arrays = made(2, 1) | {"feedback": jnp.array([[1.0], [0.0]])}
    loss = functools.partial(UNPAIRED["unpaired"], scale=scale)
    ratios = arrays["log_ratios"][:, 0]
    close(mean(loss, arrays), dpo_loss(ratios[:1], ratios[1:], beta=BETA)[0])


def test_a_high_temperature_weighs_all_prompts_alike():
    """tau -> inf: the mean over cells of ``-log sigmoid(beta h_ij / N)``."""
    arrays = made()
    flat = functools.partial(PAIRED["embed"], tau=1e8)
    close(mean(flat, arrays), nats(BETA * cells(arrays) / 5).mean())


def test_a_low_temperature_keeps_the_pairs_only():
    """tau -> 0, distinct prompts: w = I, so the loss is (DPO + (N - 1) log 2) / N."""
    arrays = made()
    sharp = functools.partial(PAIRED["embed"], tau=1e-4)
    dpo = nats(BETA * np.diagonal(cells(arrays))).mean()
    close(mean(sharp, arrays), (dpo + 4 * LN2) / 5)


def test_uniform_and_diagonal_by_their_formulas():
    arrays = made()
    matrix = nats(BETA * cells(arrays))
    close(mean(PAIRED["uniform"], arrays), matrix.mean())
    others = (matrix.sum() - np.trace(matrix)) / 20
    close(mean(PAIRED["diagonal"], arrays), 0.8 * np.trace(matrix) / 5 + 0.2 * others)


def directions(arrays):
    embeddings = np.asarray(arrays["prompt_embeddings"], np.float64)
    centred = embeddings - embeddings.mean(0)
    return centred / np.linalg.norm(centred, axis=1, keepdims=True)


def embed_weights(arrays):
    exponentials = np.exp(directions(arrays) @ directions(arrays).T / TAU)
    return exponentials / exponentials.sum(1, keepdims=True)


def test_embed_by_its_formula():
    arrays = made()
    expected = nats(BETA * embed_weights(arrays) * cells(arrays))
    close(call(PAIRED["embed"], arrays)[0], expected.mean(1), 1e-5)
    close(call(PAIRED["embed_row_sum"], arrays)[0], expected.sum(1), 1e-5)


def test_unpaired_by_its_formula():
    arrays = made(6, 3, seed=1)
    good = np.asarray(arrays["feedback"]).reshape(-1) > 0.5
    flat = np.asarray(arrays["log_ratios"]).reshape(-1)
    vectors = np.repeat(directions(arrays), 3, axis=0)
    exponentials = np.exp(vectors[good] @ vectors[~good].T / TAU)
    weights = exponentials / exponentials.sum(1, keepdims=True)
    expected = nats(BETA * weights * (flat[good][:, None] - flat[~good])).mean(1)
    losses, counts = call(UNPAIRED["unpaired"], arrays)
    close(losses.reshape(-1)[good], expected, 1e-5)
    np.testing.assert_array_equal(counts.reshape(-1), good)
    uniform = nats(BETA * (flat[good][:, None] - flat[~good])).mean()
    close(mean(UNPAIRED["unpaired_uniform"], arrays), uniform)


@pytest.mark.parametrize("method", ALL)
def test_the_start_is_log_2(method):
    """Under every weighting; the sum over N rejected responses makes it N log 2."""
    arrays = made(seed=1)
    arrays["log_ratios"] *= 0
    bad = int((arrays["feedback"] <= 0.5).sum()) if method in UNPAIRED else 5
    factor = bad if method.endswith("row_sum") else 1
    close(mean(ALL[method], arrays), factor * LN2)


def test_gradients_at_the_start():
    """DPO, uniform and diagonal push a chosen response by beta/2N, embed by 1/N of that; row_sum undoes it.

    Embed pushes the rejected ones in proportion to the column sums of w: popular prompts more.
    """
    arrays = made()
    arrays["log_ratios"] *= 0
    columns = embed_weights(arrays).sum(0)
    full = BETA / (2 * 5)
    assert columns.std() > 0.03
    for method, size, popularity in (
        ("uniform", full, 1.0),
        ("diagonal", full, 1.0),
        ("embed", full / 5, columns),
        ("embed_row_sum", full, columns),
    ):
        found = slope(PAIRED[method], arrays)
        close(found[:, 0], -size)
        close(found[:, 1], size * popularity)


def test_weights_sum_to_one_over_what_exists_and_shrink_with_distance():
    vectors = contrastive.unit_directions(made()["prompt_embeddings"], jnp.ones(5, bool))
    mask = jnp.array([True, False, True, True, False])
    weights = contrastive.contrast_weights(vectors, vectors, mask, tau=TAU)
    close(weights.sum(1), 1)
    assert not np.asarray(weights)[:, ~np.asarray(mask)].any()
    similarity = np.where(mask, vectors @ vectors.T, -np.inf)
    np.testing.assert_array_equal(weights.argmax(1), similarity.argmax(1))
    assert not contrastive.contrast_weights(vectors, vectors, ~(mask | True), tau=TAU).any()


def test_duplicate_prompts_share_weight_equally():
    embeddings = made()["prompt_embeddings"].at[3].set(made()["prompt_embeddings"][1])
    vectors = contrastive.unit_directions(embeddings, jnp.ones(5, bool))
    weights = contrastive.contrast_weights(vectors, vectors, jnp.ones(5, bool), tau=TAU)
    close(weights[:, 1], weights[:, 3])


def test_embeddings_are_centred():
    """A shift that all prompts share, which pooled encoder states have, changes nothing; nor does their length."""
    arrays = made()
    for embeddings in (arrays["prompt_embeddings"] + 100, (arrays["prompt_embeddings"] - 9) * 7):
        moved = mean(PAIRED["embed"], arrays | {"prompt_embeddings": embeddings})
        close(moved, mean(PAIRED["embed"], arrays), 1e-5)


def test_prompts_that_are_all_alike_weigh_the_same():
    arrays = made() | {"prompt_embeddings": jnp.full((5, 4), 0.1)}
    close(mean(PAIRED["embed"], arrays), nats(BETA * cells(arrays) / 5).mean())


@pytest.mark.parametrize("method", ["embed", "unpaired"])
def test_no_gradient_passes_the_embeddings(method):
    arrays = made()

    def total(embeddings):
        return eager_mean(ALL[method], arrays | {"prompt_embeddings": embeddings})

    assert not jax.grad(total)(arrays["prompt_embeddings"]).any()


@pytest.mark.parametrize("method", ALL)
def test_a_constant_on_all_log_ratios_and_the_order_of_examples_change_nothing(method):
    arrays = made(seed=2)
    expected = mean(ALL[method], arrays)
    close(mean(ALL[method], arrays | {"log_ratios": arrays["log_ratios"] + 3}), expected, 1e-5)
    turned = {name: array[jnp.array([3, 1, 4, 0, 2])] for name, array in arrays.items()}
    close(mean(ALL[method], turned), expected)


@pytest.mark.parametrize("method", ALL)
def test_empty_places_change_nothing(method):
    arrays = made(seed=2)
    places = jnp.array([0, 2, 3, 6, 7])

    def spread(array):
        empty = jnp.full((8, *array.shape[1:]), 1e4, array.dtype)
        return empty.at[places].set(array)

    holed = {name: spread(array) for name, array in arrays.items()}
    holed["mask"] = jnp.zeros((8, 2), bool).at[places].set(True)
    close(mean(ALL[method], holed), mean(ALL[method], arrays))
    found = slope(ALL[method], holed)
    close(found[places], slope(ALL[method], arrays))
    assert not np.delete(np.asarray(found), places, axis=0).any()


@pytest.mark.parametrize("method", UNPAIRED)
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_a_batch_that_lacks_one_side_has_no_loss_and_no_weight(method, label):
    arrays = made() | {"feedback": jnp.full((5, 2), label)}
    losses, weights = call(UNPAIRED[method], arrays)
    assert not losses.any() and not weights.any()
    assert not slope(UNPAIRED[method], arrays).any()


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("tau", [1e-3, 1e6])
@settings(max_examples=30)
@given(
    numbers=st.lists(EXTREME, min_size=18, max_size=18),
    mask=st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_extreme_and_masked_inputs_give_finite_losses_and_gradients(method, tau, numbers, mask):
    numbers = jnp.float32(numbers)
    arrays = {
        "log_ratios": numbers[:6].reshape(3, 2),
        "feedback": jnp.sign(numbers[6:12]).reshape(3, 2),
        "prompt_embeddings": numbers[12:].reshape(3, 2),
        "mask": jnp.array(mask).reshape(3, 2),
    }
    function = with_tau(method, tau)
    losses, weights = call(function, arrays)
    found = slope(function, arrays)
    assert np.isfinite(losses).all() and np.isfinite(found).all()
    assert not np.asarray(found)[~np.asarray(arrays["mask"])].any()
    assert set(np.unique(weights)) <= {0, 1}


@pytest.mark.parametrize("method", ALL)
def test_gradients_equal_finite_differences(method):
    with jax.enable_x64(True):
        arrays = made(4, seed=3, dtype=jnp.float64)
        arrays["mask"] = arrays["mask"].at[2, 1].set(False)

        def loss(log_ratios):
            return eager(ALL[method], arrays | {"log_ratios": jnp.asarray(log_ratios)})[0]

        assert loss(arrays["log_ratios"]).dtype == jnp.float64
        check_grads(loss, (arrays["log_ratios"],), 1, modes=["rev"])


@pytest.mark.parametrize("method", ALL)
def test_bfloat16_is_computed_in_float32(method):
    low = {n: a if a.dtype == bool else a.astype(jnp.bfloat16) for n, a in made().items()}
    high = {n: a if a.dtype == bool else a.astype(jnp.float32) for n, a in low.items()}
    found = call(ALL[method], low)[0]
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, call(ALL[method], high)[0])


@pytest.mark.parametrize(
    ("function", "changes", "message"),
    [
        (PAIRED["embed"], {"beta": 0.0}, "rpo.beta must be positive"),
        (PAIRED["embed"], {"tau": 0.0}, "rpo.tau must be positive"),
        (PAIRED["embed"], {"scale": "big"}, "rpo.scale must be one of paper, row_sum, not 'big'"),
        (PAIRED["diagonal"], {"diagonal_weight": 1.2}, "rpo_diagonal.diagonal_weight"),
        (UNPAIRED["unpaired"], {"tau": -1.0}, "rpo.tau must be positive"),
    ],
)
def test_impossible_hyperparameters_are_refused_by_name(function, changes, message):
    with pytest.raises(UserError, match=message):
        call(functools.partial(function, **changes), made())


@pytest.mark.parametrize("method", ALL)
def test_a_contrast_declares_that_it_needs_distinct_prompts(method):
    assert requirements_of(ALL[method]).distinct_prompts
