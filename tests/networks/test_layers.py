"""Where T5 drops, and how wide one draw reaches."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.networks.attention import Attention
from jaxalign.networks.blocks import RMSNorm, length_dropout


def test_one_dropout_mask_serves_all_positions_of_a_row(tiny_config):
    dropout = length_dropout(tiny_config.replace(dropout_rate=0.5))
    rngs = {"dropout": jax.random.key(0)}
    out = dropout.apply({}, jnp.ones((4, 9, 16)), deterministic=False, rngs=rngs)
    assert set(np.unique(out)) == {0.0, 2.0}
    np.testing.assert_array_equal(out, jnp.broadcast_to(out[:, :1], out.shape))
    assert not np.array_equal(out[0], out[1])


def test_attention_dropout_is_shared_by_the_queries(tiny_config):
    """Equal queries stay equal, whatever keys are dropped; and something is dropped."""
    attention = Attention(tiny_config.replace(dropout_rate=0.5))
    sources = jax.random.normal(jax.random.key(0), (1, 5, 16))
    queries = jnp.ones((1, 3, 16))
    bias = jnp.zeros((1, 1, 3, 5))
    params = attention.init(jax.random.key(1), queries, sources, bias)
    rngs = {"dropout": jax.random.key(2)}
    out = attention.apply(params, queries, sources, bias, deterministic=False, rngs=rngs)
    np.testing.assert_allclose(out[:, 0], out[:, 2], rtol=1e-6)
    assert not np.allclose(out, attention.apply(params, queries, sources, bias))


def test_rms_norm_takes_its_statistics_in_float32():
    x = jnp.full((1, 2, 16), 300.0, jnp.bfloat16)  # squares of which bfloat16 would round
    params = {"params": {"scale": jnp.full(16, 2.0)}}
    out = RMSNorm(jnp.dtype("bfloat16")).apply(params, x)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out, jnp.full_like(x, 2.0))
