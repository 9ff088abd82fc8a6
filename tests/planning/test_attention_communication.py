"""The communication cost of attention in blocks."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from jaxalign.networks.attention_bias import BlockwiseBias
from jaxalign.networks.blockwise_attention import blockwise_attention
from jaxalign.parallel import partitioning
from jaxalign.parallel.partitioning import MeshShape
from jaxalign.planning import collectives, hlo

ROWS, HEADS, LENGTH, HEAD_DIM = 8, 4, 16, 4


def counts(block):
    """The number of collectives in the gradient of one layer of attention, by kind."""

    def total(heads, offset_biases, segments):
        bias = BlockwiseBias(segments, segments, offset_biases, causal=True, block=block)
        return jnp.sum(jnp.sin(blockwise_attention(heads, heads, heads, bias, jnp.float32)))

    mesh = partitioning.make_mesh(MeshShape(fsdp=4, tensor=2))
    heads, table, rows = (
        NamedSharding(mesh, partitioning.mesh_axes(axes))
        for axes in (("batch", "heads", "length", "kv"), ("heads", None), ("batch", "length"))
    )
    shapes = (
        jax.ShapeDtypeStruct((ROWS, HEADS, LENGTH, HEAD_DIM), jnp.float32),
        jax.ShapeDtypeStruct((HEADS, 2 * LENGTH - 1), jnp.float32),
        jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32),
    )
    with partitioning.set_mesh(mesh):
        gradient = jax.jit(
            jax.grad(total, (0, 1)),
            in_shardings=(heads, table, rows),
            out_shardings=(heads, table),
        )
        program = gradient.lower(*shapes).compile()
    found = collectives.count_collectives(hlo.parse_module(program.as_text()))
    return {kind: each.count for kind, each in found.items()}


def test_only_the_gradient_of_the_position_biases_crosses_devices_and_once_for_all_blocks():
    assert counts(block=LENGTH) == counts(block=2) == {"all-reduce": 1}
