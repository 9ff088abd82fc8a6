"""Lazy arrays, which are read on demand in the required layout.

A checkpoint's parameters are a flat dict from T5X's dotted names, layer by layer (``encoder.layers_0.mlp.wo.kernel``), to lazy
arrays. A conversion renames them, wraps them, and reads them one after another.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_dtypes
import numpy as np

from jaxalign.errors import UserError

Index = tuple[slice, ...]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = {"float32": np.dtype("float32"), "bfloat16": BFLOAT16, "float16": np.dtype("float16")}


@dataclasses.dataclass(frozen=True, eq=False)
class LazyArray:
    """An array that has a shape and a dtype, and reads its values or a block of them on demand.

    Attributes:
      shape, dtype: the shape and dtype of the whole array.
      reader: a function from one slice per dimension, with explicit bounds, to the block.
      layer_of: the stacked array, the layer and the axis, if this array is a slice of a stacked array.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    reader: Callable[[Index], np.ndarray]
    layer_of: tuple[LazyArray, int, int] | None = None

    @property
    def nbytes(self) -> int:
        """Returns the size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, index: Sequence[slice] | None = None) -> np.ndarray:
        """Returns the values at one slice per dimension (with steps of 1); all values by default."""
        given = (slice(None),) * len(self.shape) if index is None else tuple(index)
        bounded = tuple(
            slice(*part.indices(size)) for part, size in zip(given, self.shape, strict=True)
        )
        block = self.reader(bounded)
        expected = tuple(part.stop - part.start for part in bounded)
        if block.shape != expected or block.dtype != self.dtype:
            raise AssertionError(f"read {block.shape} {block.dtype} instead of {expected}")
        return block


class LastRead:
    """A cache of the stacked array that was read last, so that reading each layer does not read all layers again."""

    def __init__(self) -> None:
        self._array: LazyArray | None = None
        self._values: Any = None

    def read(self, array: LazyArray) -> np.ndarray:
        """Returns all values of an array."""
        if self._array is not array:
            self._array = self._values = (
                None  # cleared before reading, so that only one array is in memory
            )
            self._array, self._values = array, array.read()
        return self._values


def from_numpy(values: np.ndarray) -> LazyArray:
    """Returns a lazy array of values that are already in memory."""
    return LazyArray(values.shape, values.dtype, lambda index: values[index])


def finite(array: LazyArray, where: str) -> LazyArray:
    """Returns the array with a check: reading a NaN or infinite value raises a UserError that names ``where``."""

    def read(index: Index) -> np.ndarray:
        values = array.read(index)
        if values.dtype.kind not in "iub" and not np.isfinite(values).all():
            raise UserError(f"{where} holds NaN or infinity; choose another checkpoint")
        return values

    return dataclasses.replace(array, reader=read)


def transposed(array: LazyArray) -> LazyArray:
    """Returns the array with its dimensions reversed."""
    return LazyArray(array.shape[::-1], array.dtype, lambda index: array.read(index[::-1]).T)


def cast(array: LazyArray, dtype: Any) -> LazyArray:
    """Returns the array in another dtype."""
    dtype = np.dtype(dtype)
    if dtype == array.dtype:
        return array
    layer_of = None
    if array.layer_of is not None:
        parent, layer, axis = array.layer_of
        layer_of = (parent, layer, axis)
    return LazyArray(array.shape, dtype, lambda index: array.read(index).astype(dtype), layer_of)


def layers(array: LazyArray, axis: int, last: LastRead) -> list[LazyArray]:
    """Returns the slices of a stacked array along its layer axis."""
    shape = array.shape[:axis] + array.shape[axis + 1 :]

    def layer(number: int) -> LazyArray:
        def read(index: Index) -> np.ndarray:
            return np.take(last.read(array), number, axis)[index]

        return LazyArray(shape, array.dtype, read, (array, number, axis))

    return [layer(number) for number in range(array.shape[axis])]


def stacked(parts: Sequence[LazyArray], axis: int) -> LazyArray:
    """Stacks layers to one array. If they are all the slices of one stacked array, returns that array."""
    origins = [part.layer_of for part in parts]
    first = origins[0]
    if (
        first is not None
        and first[0].dtype == parts[0].dtype
        and first[0].shape[axis] == len(parts)
    ):
        wanted = [(id(first[0]), number, axis) for number in range(len(parts))]
        if [origin and (id(origin[0]), *origin[1:]) for origin in origins] == wanted:
            return first[0]
    shape = (*parts[0].shape[:axis], len(parts), *parts[0].shape[axis:])

    def read(index: Index) -> np.ndarray:
        rest = index[:axis] + index[axis + 1 :]
        block_shape = [part.stop - part.start for part in index]
        block = np.empty(block_shape, parts[0].dtype)
        for place, number in enumerate(range(index[axis].start, index[axis].stop)):
            block[(slice(None),) * axis + (place,)] = parts[number].read(rest)
        return block

    return LazyArray(shape, parts[0].dtype, read)


def reading_order(arrays: Mapping[str, LazyArray]) -> list[str]:
    """Returns the names in an order in which the slices of one stacked array are adjacent."""
    first: dict[int, int] = {}
    keys = {}
    for place, (name, array) in enumerate(arrays.items()):
        group = first.setdefault(id(array.layer_of[0]), place) if array.layer_of else place
        keys[name] = (group, place)
    return sorted(arrays, key=keys.__getitem__)


def put(array: LazyArray, dtype: Any, sharding: Any) -> jax.Array:
    """Places the array on devices. Each process reads each block that its devices hold once."""
    wanted = cast(array, dtype)
    blocks: dict[tuple[tuple[int, int], ...], np.ndarray] = {}

    def block(index: Index | None) -> np.ndarray:
        bounded = [
            slice(*part.indices(size)) for part, size in zip(index or (), wanted.shape, strict=True)
        ]
        key = tuple((part.start, part.stop) for part in bounded)
        if key not in blocks:
            blocks[key] = wanted.read(bounded)
        return blocks[key]

    return jax.make_array_from_callback(wanted.shape, sharding, block)
