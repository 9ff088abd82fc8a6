"""Relative positions fall into T5's buckets, and the bias is the table looked up there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.networks.positions import RelativePositionBias, relative_position_buckets

BUCKETS = {"num_buckets": 32, "max_distance": 128}


def test_bidirectional_buckets():
    offsets = np.array([-128, -64, -16, -8, -7, -1, 0, 1, 7, 8, 16, 64, 128])
    buckets = relative_position_buckets(offsets, bidirectional=True, **BUCKETS)
    assert buckets.tolist() == [15, 14, 10, 8, 7, 1, 0, 17, 23, 24, 26, 30, 31]


def test_causal_buckets():
    offsets = np.array([-128, -64, -32, -16, -15, -1, 0, 1])
    buckets = relative_position_buckets(offsets, bidirectional=False, **BUCKETS)
    assert buckets.tolist() == [31, 26, 21, 16, 15, 1, 0, 0]


@pytest.mark.parametrize("bidirectional", [True, False])
def test_everything_beyond_the_maximal_distance_shares_a_bucket(bidirectional):
    offsets = np.arange(-5000, -127)
    buckets = relative_position_buckets(offsets, bidirectional=bidirectional, **BUCKETS)
    assert set(buckets.tolist()) == {15 if bidirectional else 31}


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (5, 5), (3, 9), (200, 7)])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_bias_and_its_gradient_are_those_of_a_table_lookup(
    tiny_config, queries, keys, bidirectional
):
    module = RelativePositionBias(tiny_config, bidirectional=bidirectional)
    table = jax.random.normal(jax.random.key(0), (tiny_config.num_heads, 32))
    weights = jax.random.normal(jax.random.key(1), (tiny_config.num_heads, queries, keys))
    offsets = np.arange(keys)[None, :] - np.arange(queries)[:, None]
    buckets = relative_position_buckets(offsets, bidirectional=bidirectional, **BUCKETS)

    def ours(table):
        return module.apply({"params": {"rel_embedding": table}}, queries, keys)[0]

    np.testing.assert_array_equal(ours(table), table[:, buckets])
    np.testing.assert_allclose(
        jax.grad(lambda table: jnp.sum(ours(table) * weights))(table),
        jax.grad(lambda table: jnp.sum(table[:, buckets] * weights))(table),
        rtol=1e-4,
        atol=1e-5,
    )
