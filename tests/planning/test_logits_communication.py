"""The communication cost of chunked logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxalign.networks import chunks, scoring
from jaxalign.parallel import partitioning
from jaxalign.parallel.partitioning import MeshShape
from jaxalign.planning import collectives, hlo

ROWS, LENGTH, EMB, VOCAB = 8, 16, 32, 64


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(ROWS, LENGTH, EMB)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(EMB, VOCAB)), jnp.float32)
    return hidden, kernel, jnp.asarray(rng.integers(0, VOCAB, (ROWS, LENGTH)))


def gradient(chunk_size):
    def total(hidden, kernel, targets):
        found = scoring.token_statistics(hidden, kernel, targets, chunk_size=chunk_size)
        return jnp.sum(found.log_probs)

    return jax.grad(total, (0, 1))


def compiled(arrays, chunk_size):
    mesh = partitioning.make_mesh(MeshShape(fsdp=4, tensor=2))
    rows = NamedSharding(mesh, partitioning.BATCH_SPEC)
    kernel = NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
    with partitioning.set_mesh(mesh):
        step = jax.jit(
            gradient(chunk_size), in_shardings=(rows, kernel, rows), out_shardings=(rows, kernel)
        )
        return step.lower(*arrays).compile(), (rows, kernel, rows)


def test_the_gradient_of_a_sharded_projection_is_that_of_one_device(arrays):
    program, shardings = compiled(arrays, chunk_size=8)
    found = program(*map(jax.device_put, arrays, shardings))
    for expected, each in zip(gradient(None)(*arrays), found, strict=True):
        np.testing.assert_allclose(each, expected, rtol=1e-5, atol=1e-5)


def test_more_chunks_do_not_reduce_the_projection_more_often(arrays):
    sent = []
    for chunk_size in (
        32,
        2,
    ):  # one chunk of 16 positions for 2 rows a device, and 16 chunks of one
        program, _ = compiled(arrays, chunk_size)
        found = collectives.count_collectives(hlo.parse_module(program.as_text()))
        sent.append(found["all-reduce"].sent_bytes)
    projection = EMB * VOCAB * 4
    assert sent[1] < sent[0] + projection


def test_a_chunk_is_a_devices_share_of_tokens(arrays):
    assert chunks.num_chunks(ROWS, LENGTH, 8) == 16  # no mesh: 8 rows, one position
    with partitioning.set_mesh(partitioning.make_mesh(MeshShape(fsdp=4, tensor=2))):
        assert chunks.num_chunks(ROWS, LENGTH, 8) == 4  # 2 rows, 4 positions
        assert chunks.num_chunks(ROWS + 1, LENGTH, 9) == 16  # not divisible: as without a mesh
