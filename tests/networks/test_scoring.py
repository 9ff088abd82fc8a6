"""Chunks change the memory that scoring takes, and nothing else."""

import inspect
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxalign.networks.policy import Policy
from jaxalign.networks.scoring import per_response_sum, token_statistics

ROWS, LENGTH, EMB, VOCAB = 3, 7, 8, 29


def arrays(dtype=jnp.float32, rows=ROWS):
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = jax.random.normal(keys[0], (rows, LENGTH, EMB)).astype(dtype)
    kernel = jax.random.normal(keys[1], (EMB, VOCAB))
    targets = jax.random.randint(keys[2], (rows, LENGTH), 0, VOCAB)
    cotangents = jax.random.normal(keys[3], (3, rows, LENGTH))
    return hidden, kernel, targets, cotangents


def plain(hidden, kernel, targets, scale, forbidden_token, soft_cap):
    """The same by `log_softmax` over all logits."""
    logits = scale * hidden.astype(jnp.float32) @ kernel
    if soft_cap is not None:
        logits = soft_cap * jnp.tanh(logits / soft_cap)
    allowed = jnp.arange(VOCAB) != (-1 if forbidden_token is None else forbidden_token)
    log_probs = jax.nn.log_softmax(jnp.where(allowed, logits, -1e10))
    target = jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
    normalizers = jax.nn.logsumexp(logits, axis=-1, where=allowed)
    mean = jnp.sum(jnp.where(allowed, log_probs, 0), axis=-1) / jnp.sum(allowed)
    return target, normalizers, mean


def value_and_gradient(function, hidden, kernel, cotangents):
    def weighted(hidden, kernel):
        outputs = function(hidden, kernel)
        return sum(jnp.sum(a * b) for a, b in zip(outputs, cotangents, strict=True)), outputs

    return jax.jit(jax.value_and_grad(weighted, (0, 1), has_aux=True))(hidden, kernel)


@pytest.mark.parametrize("chunk_size", [None, 1, 6, 9, 1000])
@pytest.mark.parametrize(
    ("scale", "forbidden_token", "soft_cap"), [(1.0, None, None), (0.3, 5, None), (1.0, 5, 2.0)]
)
def test_values_and_gradients_equal_an_unchunked_log_softmax(
    chunk_size, scale, forbidden_token, soft_cap
):
    hidden, kernel, targets, cotangents = arrays()
    # A forbidden token is no target: its log-probability would be about -1e10.
    targets = jnp.where(targets == 5, 6, targets)

    def ours(hidden, kernel):
        return token_statistics(
            hidden,
            kernel,
            targets,
            chunk_size=chunk_size,
            scale=scale,
            with_mean_log_probs=True,
            forbidden_token=forbidden_token,
            soft_cap=soft_cap,
        )

    def theirs(hidden, kernel):
        return plain(hidden, kernel, targets, scale, forbidden_token, soft_cap)

    found = value_and_gradient(ours, hidden, kernel, cotangents)
    expected = value_and_gradient(theirs, hidden, kernel, cotangents)
    for mine, reference in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(mine, reference, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("chunk_size", [None, 6])
def test_bfloat16_states_have_a_float32_log_softmax(chunk_size):
    hidden, kernel, targets, _ = arrays(jnp.bfloat16)
    statistics = token_statistics(hidden, kernel, targets, chunk_size=chunk_size)
    assert statistics.log_probs.dtype == jnp.float32
    assert statistics.mean_log_probs is None
    expected, _, _ = plain(hidden, kernel, targets, 1.0, None, None)
    np.testing.assert_allclose(statistics.log_probs, expected, rtol=1e-5, atol=1e-5)


def test_rows_may_be_sharded():
    hidden, kernel, targets, cotangents = arrays(rows=8)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))

    def run(hidden, targets):
        def ours(hidden, kernel):
            outputs = token_statistics(
                hidden, kernel, targets, chunk_size=16, with_mean_log_probs=True
            )
            return outputs

        return value_and_gradient(ours, hidden, kernel, cotangents)

    expected = run(hidden, targets)
    found = run(jax.device_put(hidden, sharding), jax.device_put(targets, sharding))
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_mismatched_shapes_are_named():
    # Without the tests' own check of annotated shapes, which would be first.
    unchecked = inspect.unwrap(token_statistics)
    hidden, kernel, targets, _ = arrays()
    with pytest.raises(ValueError, match=r"hidden \(3, 7, 8\), kernel \(9, 29\)"):
        unchecked(hidden, jnp.ones((9, VOCAB)), targets, chunk_size=None)
    with pytest.raises(ValueError, match="chunk_size is 0"):
        token_statistics(hidden, kernel, targets, chunk_size=0)


def largest_float32(compiled):
    """Elements of the largest float32 array in a compiled program."""
    shapes = re.findall(r"f32\[([\d,]+)\]", compiled.as_text())
    return max(math.prod(map(int, shape.split(","))) for shape in shapes)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_logits_of_the_whole_batch_never_exist(tiny_config, make_batch, random_examples, tied):
    config = tiny_config.replace(vocab_size=997, logits_via_embedding=tied)
    batch = make_batch(
        random_examples(0, 8, 2),
        rows=8,
        num_examples=1,
        num_responses=2,
        source_length=8,
        target_length=16,
    )
    all_logits = 8 * 16 * config.vocab_size

    def compile_step(chunk_size):
        policy = Policy(config, logits_chunk_size=chunk_size)

        def loss(params):
            return -jnp.sum(policy.score(params, batch).log_probs)

        return jax.jit(jax.value_and_grad(loss)).lower(policy.abstract_params()).compile()

    chunked, whole = compile_step(16), compile_step(None)
    assert largest_float32(whole) >= all_logits  # so that the next line can fail
    assert largest_float32(chunked) <= all_logits // 4
    saved = (
        whole.memory_analysis().temp_size_in_bytes - chunked.memory_analysis().temp_size_in_bytes
    )
    assert saved > 4 * all_logits // 2


def test_the_default_chunk_is_smaller_than_a_usual_batch(tiny_config):
    assert Policy(tiny_config).logits_chunk_size <= 16 * 64 // 2


def test_per_response_sum_by_hand():
    values = jnp.array([[1.0, 2.0, 4.0, 8.0, 16.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    segments = jnp.array([[1, 1, 2, 4, 0], [3, 3, 3, 0, 0]])
    sums = per_response_sum(values, segments, num_examples=2, num_responses=2)
    np.testing.assert_array_equal(sums, [[3, 4], [0, 8], [0, 0], [3, 0]])
