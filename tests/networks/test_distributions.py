"""Functions of whole distributions: chunks change the memory they take, and nothing else."""

import functools
import inspect
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxalign.losses.distillation import forward_kl
from jaxalign.networks.distributions import TokenDistributions, map_distributions
from jaxalign.networks.policy import Policy

ROWS, LENGTH, VOCAB = 3, 7, 29
KEYS = jax.random.split(jax.random.key(0), 6)
HIDDEN, OTHER = (
    jax.random.normal(KEYS[i], (ROWS, LENGTH, width)) for i, width in enumerate((8, 5))
)
KERNEL, OTHER_KERNEL = (
    jax.random.normal(KEYS[2 + i], (width, VOCAB)) for i, width in enumerate((8, 5))
)
TARGETS = jax.random.randint(KEYS[4], (ROWS, LENGTH), 6, VOCAB)
COTANGENTS = jax.random.normal(KEYS[5], (2, ROWS, LENGTH))


def read(student, teacher, targets):
    chosen = jnp.take_along_axis(student, targets[..., None], axis=-1)[..., 0]
    return chosen, forward_kl(teacher, student)


def weighted(outputs):
    return sum(jnp.sum(a * b) for a, b in zip(outputs, COTANGENTS, strict=True))


@pytest.mark.parametrize("chunk_size", [None, 1, 6, 9, 1000])
@pytest.mark.parametrize(("scale", "forbidden"), [(1.0, None), (0.3, 5)])
def test_values_and_gradients_equal_unchunked_log_softmax(chunk_size, scale, forbidden):
    def chunked(hidden, kernel):
        pair = [
            TokenDistributions(hidden, kernel, scale, forbidden),
            TokenDistributions(OTHER, OTHER_KERNEL, 1.0, forbidden),
        ]
        outputs = map_distributions(read, pair, TARGETS, chunk_size=chunk_size)
        return weighted(outputs), outputs

    def plain(hidden, kernel):
        allowed = jnp.arange(VOCAB) != (-1 if forbidden is None else forbidden)
        logits = scale * hidden @ kernel, OTHER @ OTHER_KERNEL
        log_probs = (jax.nn.log_softmax(jnp.where(allowed, x, -1e10)) for x in logits)
        outputs = read(*log_probs, TARGETS)
        return weighted(outputs), outputs

    found, expected = (
        jax.jit(jax.value_and_grad(f, (0, 1), has_aux=True))(HIDDEN, KERNEL)
        for f in (chunked, plain)
    )
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-5)


def test_rows_may_be_sharded():
    hidden, other = (jnp.tile(array, (3, 1, 1))[:8] for array in (HIDDEN, OTHER))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def loss(hidden, kernel, other):
        pair = [TokenDistributions(hidden, kernel), TokenDistributions(other, OTHER_KERNEL)]
        divergence = map_distributions(
            lambda student, teacher: forward_kl(teacher, student), pair, chunk_size=16
        )
        return jnp.sum(jnp.sin(divergence))

    def sharded(array):
        return jax.device_put(array, NamedSharding(mesh, PartitionSpec("data")))

    found = loss(sharded(hidden), KERNEL, sharded(other))
    for ours, theirs in zip(
        jax.tree.leaves(found), jax.tree.leaves(loss(hidden, KERNEL, other)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_outputs_may_have_further_dimensions():
    distributions = [TokenDistributions(HIDDEN, KERNEL)]
    found = map_distributions(lambda x: jax.lax.top_k(x, 3)[1], distributions, chunk_size=6)
    np.testing.assert_array_equal(found, jax.lax.top_k(HIDDEN @ KERNEL, 3)[1])


def test_distributions_that_do_not_fit_are_named():
    unchecked = inspect.unwrap(map_distributions)
    small = TokenDistributions(OTHER, OTHER_KERNEL[:, :20])
    pair = [TokenDistributions(HIDDEN, KERNEL), small]
    with pytest.raises(ValueError, match=r"\(3, 7\) positions of 20 tokens, .* of 29 tokens"):
        unchecked(read, pair, TARGETS, chunk_size=None)
    with pytest.raises(ValueError, match="chunk_size is 0"):
        map_distributions(read, pair[:1], chunk_size=0)


def test_log_probabilities_of_the_whole_batch_never_exist():
    rows, length, vocab = 4, 32, 499
    hidden = jax.ShapeDtypeStruct((rows, length, 8), jnp.float32)
    kernel = jax.ShapeDtypeStruct((8, vocab), jnp.float32)

    def largest(chunk_size):
        def loss(hidden, kernel, other, other_kernel):
            pair = [TokenDistributions(hidden, kernel), TokenDistributions(other, other_kernel)]
            divergence = map_distributions(
                lambda student, teacher: forward_kl(teacher, student), pair, chunk_size=chunk_size
            )
            return jnp.sum(divergence)

        step = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(hidden, kernel, hidden, kernel)
        shapes = re.findall(r"f32\[([\d,]+)\]", step.compile().as_text())
        return max(math.prod(map(int, shape.split(","))) for shape in shapes)

    everything = rows * length * vocab
    assert largest(None) >= everything  # so that the next line can fail
    assert largest(16) <= everything // 4


def test_the_decoder_reads_given_embeddings_and_given_states(
    tiny_config, tiny_params, make_batch, random_examples
):
    """Those of its own tokens and prompts change nothing; others do, from their position on."""
    batch = make_batch(
        random_examples(1, 2, 2),
        rows=2,
        num_examples=1,
        num_responses=2,
        source_length=8,
        target_length=12,
    )
    policy = Policy(tiny_config)

    @jax.jit
    def decode(params):
        encoded = policy.encode(params, batch)
        own = policy.embed(params, batch["decoder_input_tokens"])
        other = own.at[:, 1].add(1.0)
        plain = policy.decode(params, batch)
        greedy = policy.greedy_tokens(params, plain)
        return (
            plain,
            greedy,
            *(
                policy.decode(params, batch, encoded=encoded, decoder_input_embeddings=given)
                for given in (own, other)
            ),
        )

    plain, greedy, own, other = decode(tiny_params)
    np.testing.assert_allclose(own, plain, atol=1e-5)
    np.testing.assert_allclose(other[:, :1], plain[:, :1], atol=1e-5)
    assert np.abs(other[:, 1] - plain[:, 1]).max() > 1e-2
    kernel, *_ = policy.projection(tiny_params)
    np.testing.assert_array_equal(greedy, np.argmax(plain @ kernel, axis=-1))
