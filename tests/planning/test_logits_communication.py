"""The communication cost of chunked logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxalign.networks import chunks, scoring
from jaxalign.networks.distributions import TokenDistributions, map_distributions
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


def statistics(hidden, kernel, targets, chunk_size):
    return scoring.token_statistics(hidden, kernel, targets, chunk_size=chunk_size).log_probs


def entropies(hidden, kernel, targets, chunk_size):
    """A function of whole distributions, as divergences are."""

    def entropy(log_probs, targets):
        return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1) * (1 + targets)

    found = [TokenDistributions(hidden, kernel, scale=0.5, forbidden_token=3)]
    return map_distributions(entropy, found, targets, chunk_size=chunk_size)


def gradient(function, chunk_size):
    return jax.grad(lambda *arrays: jnp.sum(function(*arrays, chunk_size)), (0, 1))


def compiled(function, arrays, chunk_size):
    mesh = partitioning.make_mesh(MeshShape(fsdp=4, tensor=2))
    rows = NamedSharding(mesh, partitioning.BATCH_SPEC)
    kernel = NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
    with partitioning.set_mesh(mesh):
        step = jax.jit(
            gradient(function, chunk_size),
            in_shardings=(rows, kernel, rows),
            out_shardings=(rows, kernel),
        )
        return step.lower(*arrays).compile(), (rows, kernel, rows)


@pytest.mark.parametrize("function", [statistics, entropies])
def test_the_gradient_of_a_sharded_projection_is_that_of_one_device(function, arrays):
    program, shardings = compiled(function, arrays, chunk_size=8)
    found = program(*map(jax.device_put, arrays, shardings))
    for expected, each in zip(gradient(function, None)(*arrays), found, strict=True):
        np.testing.assert_allclose(each, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("function", [statistics, entropies])
def test_a_projection_is_gathered_once_and_reduced_once_for_any_number_of_chunks(function, arrays):
    """One chunk of 16 positions for 2 rows a device, and 16 chunks of one."""
    reduced = []
    for chunk_size in (32, 2):
        program, _ = compiled(function, arrays, chunk_size)
        found = collectives.count_collectives(hlo.parse_module(program.as_text()))
        assert found["all-gather"].count == 1
        reduced.append(found["all-reduce"].sent_bytes)
    projection = EMB * VOCAB * 4
    assert reduced[1] < reduced[0] + projection


def test_a_chunk_is_a_devices_share_of_tokens(arrays):
    assert chunks.num_chunks(ROWS, LENGTH, 8) == 16  # no mesh: 8 rows, one position
    with partitioning.set_mesh(partitioning.make_mesh(MeshShape(fsdp=4, tensor=2))):
        assert chunks.num_chunks(ROWS, LENGTH, 8) == 4  # 2 rows, 4 positions
        assert chunks.num_chunks(ROWS + 1, LENGTH, 9) == 16  # not divisible: as without a mesh
