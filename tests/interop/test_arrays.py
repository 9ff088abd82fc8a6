"""Lazy arrays give what NumPy gives, and read no more than needed."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxalign.interop.arrays import (
    LastRead,
    LazyArray,
    cast,
    from_numpy,
    layers,
    put,
    reading_order,
    stacked,
    transposed,
)

VALUES = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
BLOCK = (slice(1, 3), slice(2, 6))


def counted(values):
    """A lazy array, and the list of what was read of it."""
    reads = []

    def read(index):
        reads.append(index)
        return values[index]

    return LazyArray(values.shape, values.dtype, read), reads


def test_blocks_of_transposed_cast_and_stacked_arrays():
    lazy = from_numpy(VALUES)
    np.testing.assert_array_equal(transposed(lazy).read((BLOCK[1], BLOCK[0])), VALUES[BLOCK].T)
    half = cast(lazy, "float16")
    np.testing.assert_array_equal(half.read(BLOCK), VALUES[BLOCK].astype(np.float16))
    parts = [from_numpy(VALUES + number) for number in range(3)]
    for axis in (0, 1):
        expected = np.stack([VALUES + number for number in range(3)], axis)
        both = stacked(parts, axis)
        assert both.shape == expected.shape
        np.testing.assert_array_equal(both.read(), expected)
        index = [*BLOCK]
        index.insert(axis, slice(1, 3))
        np.testing.assert_array_equal(both.read(index), expected[tuple(index)])


@pytest.mark.parametrize("axis", [0, 1])
def test_layers_of_a_stack_are_stacked_again_without_reading_them_apart(axis):
    stack, reads = counted(np.stack([VALUES, VALUES + 1], axis))
    parts = layers(stack, axis, LastRead())
    np.testing.assert_array_equal(parts[1].read(BLOCK), (VALUES + 1)[BLOCK])
    np.testing.assert_array_equal(parts[0].read(), VALUES)
    assert len(reads) == 1
    assert stacked(parts, axis) is stack
    # In another order, or along another axis, it is another array.
    np.testing.assert_array_equal(stacked(parts[::-1], 0).read(), np.stack([VALUES + 1, VALUES]))
    np.testing.assert_array_equal(
        stacked(parts, 1 - axis).read(), np.stack([VALUES, VALUES + 1], 1 - axis)
    )


def test_reading_in_order_reads_every_stack_once():
    last = LastRead()
    stacks = [counted(np.stack([VALUES] * 3, 1)) for _ in range(2)]
    slices = [layers(stack, 1, last) for stack, _ in stacks]
    arrays = {f"layers_{i}.{name}": slices[name][i] for i in range(3) for name in range(2)}
    for name in reading_order(arrays):
        arrays[name].read()
    assert [len(reads) for _, reads in stacks] == [1, 1]


def test_each_device_gets_its_part_and_each_part_is_read_once():
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"))
    lazy, reads = counted(VALUES)
    placed = put(lazy, np.float32, NamedSharding(mesh, PartitionSpec("fsdp", "tensor")))
    np.testing.assert_array_equal(placed, VALUES)
    assert len(reads) == 4
    assert all(values.shape == (2, 3) for values in map(VALUES.__getitem__, reads))
