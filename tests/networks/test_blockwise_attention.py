"""Attention in blocks has the numbers and gradients of attention over whole rows, in memory that is linear in the length."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.networks.attention import Attention
from jaxalign.networks.attention_bias import BlockwiseBias, attention_bias
from jaxalign.networks.policy import Policy
from jaxalign.networks.positions import RelativePositionBias

QUERIES, KEYS = 9, 13
PACKED = {
    "rows": 3,
    "num_examples": 2,
    "num_responses": 2,
    "source_length": 16,
    "target_length": 24,
}


def in_blocks(config, threshold):
    return config.replace(blockwise_attention_length=threshold)


def segments(length):
    """A row of two texts and padding, a full row, and a row that is all padding."""
    place = np.arange(length)
    first = np.where(place < length // 3, 1, np.where(place < length - 2, 2, 0))
    return np.stack([first, np.ones(length), np.zeros(length)]).astype(np.int32)


# Blocks of one position, of two with padding behind them, and of three.
@pytest.mark.parametrize(
    ("kind", "threshold", "dropout_rate"),
    [
        ("bidirectional", 1, 0.0),
        ("bidirectional", 8, 0.5),
        ("causal", 8, 0.0),
        ("causal", 13, 0.5),
        ("cross", 8, 0.0),
        ("cross", 13, 0.5),
    ],
)
def test_outputs_and_all_gradients_equal_those_of_whole_rows(
    tiny_config, kind, threshold, dropout_rate
):
    config = tiny_config.replace(
        relative_attention_num_buckets=8,
        relative_attention_max_distance=6,
        dropout_rate=dropout_rate,
    )
    length = QUERIES if kind == "cross" else KEYS
    keys = jax.random.split(jax.random.key(0), 5)
    queries = jax.random.normal(keys[0], (3, length, config.emb_dim))
    sources = jax.random.normal(keys[1], (3, KEYS, config.emb_dim)) if kind == "cross" else queries
    table = {"rel_embedding": jax.random.normal(keys[2], (config.num_heads, 8))}
    cotangent = jax.random.normal(keys[3], queries.shape)
    params = Attention(config).init(keys[4], queries, sources, jnp.zeros((1, 1, length, KEYS)))

    def value_and_gradients(config):
        def loss(params, table, queries, sources):
            positions = RelativePositionBias(config, bidirectional=kind != "causal")
            bias = attention_bias(
                config,
                segments(length),
                segments(KEYS),
                None if kind == "cross" else positions.bind({"params": table}),
                causal=kind == "causal",
            )
            assert isinstance(bias, BlockwiseBias) == config.blocks_attention(KEYS)
            out = Attention(config).apply(
                params,
                queries,
                sources,
                bias,
                deterministic=dropout_rate == 0,
                rngs={"dropout": jax.random.key(7)},
            )
            return jnp.sum(out * cotangent), out

        differentiated = jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True)
        return jax.jit(differentiated)(params, table, queries, sources)

    found = value_and_gradients(in_blocks(config, threshold))
    expected = value_and_gradients(in_blocks(config, 0))
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def packed(make_batch, random_examples):
    """Two rows of packed texts, and one that is all padding."""
    return make_batch(random_examples(1, 4, 2), **PACKED)


def score_and_gradient(policy, batch):
    def loss(params):
        scores = policy.score(params, batch)
        return jnp.sum(jnp.sin(scores.log_probs)), scores

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"scan_layers": True, "remat_policy": "full"},
        {"scan_layers": True, "remat_policy": "minimal", "relative_attention_per_layer": True},
        {"encoder_fusion": "gated"},
    ],
    ids=str,
)
def test_scores_and_gradients_of_a_network_do_not_depend_on_the_blocks(
    tiny_config, packed, changes
):
    policy = Policy(tiny_config.replace(blockwise_attention_length=0, **changes))
    params = policy.init(jax.random.key(0))
    expected = score_and_gradient(policy, packed)(params)
    blocks = Policy(in_blocks(policy.config, 8))  # encoder, decoder and cross attention
    found = score_and_gradient(blocks, packed)(params)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_bfloat16_scores_are_near_those_of_float32(tiny_config, tiny_params, packed):
    expected = jax.jit(Policy(tiny_config).score)(tiny_params, packed).log_probs
    for logits in (False, True):
        config = in_blocks(tiny_config, 8).replace(
            dtype="bfloat16", float32_attention_logits=logits
        )
        (_, scores), gradient = score_and_gradient(Policy(config), packed)(tiny_params)
        np.testing.assert_allclose(scores.log_probs, expected, rtol=0.02)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


def test_the_memory_of_a_gradient_is_linear_in_the_length_of_prompts(tiny_config, make_batch):
    """Under scanned layers, where JAX computes once what all layers share, and would keep it for all blocks."""

    def growth(threshold):
        policy = Policy(in_blocks(tiny_config, threshold).replace(scan_layers=True))

        def temporaries(length):
            shape = {"num_examples": 1, "num_responses": 1, "target_length": 8}
            batch = make_batch([], rows=2, source_length=length, **shape)
            lowered = jax.jit(jax.value_and_grad(loss)).lower(policy.abstract_params(), batch)
            return lowered.compile().memory_analysis().temp_size_in_bytes

        def loss(params, batch):
            return jnp.sum(policy.score(params, batch).log_probs)

        return temporaries(1024) / temporaries(512)

    assert growth(threshold=128) < 2.1
    assert growth(threshold=0) > 3  # so that the line above can fail
