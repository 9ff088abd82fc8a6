"""Reads and writes zarr arrays through TensorStore, each in a separate folder or all in one OCDBT database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorstore as ts

from jaxalign.errors import UserError, first_line
from jaxalign.interop import storage
from jaxalign.interop.arrays import DTYPES, Index, LazyArray, finite
from jaxalign.runs import stored_arrays

_METADATA = {".zarray": "zarr", "zarr.json": "zarr3"}
# Without this setting, a missing chunk would silently be read as zeros.
_COMPLETE = {"fill_missing_data_reads": False}
_CHUNK_BYTES = 64 * 2**20
# Norms, steps and optimizer counters may be of other types; parameters may not.
_COUNTERS = ("int32", "int64", "uint32")


def read_tree(folder: str) -> dict[str, LazyArray]:
    """Opens all arrays of an Orbax item, by their dotted names.

    Raises:
      UserError: there are no arrays, or an array cannot be read.
    """
    is_database = storage.read(folder, "manifest.ocdbt") is not None
    keys = storage.ocdbt_keys(folder) if is_database else storage.files(folder)
    store = storage.ocdbt(folder) if is_database else storage.kvstore(folder)
    drivers = {}
    for key in keys:
        name, _, file = key.rpartition("/")
        if name and "/" not in name and file in _METADATA:
            drivers[name] = _METADATA[file]
    if not drivers:
        raise UserError(f"{folder} has no arrays; is the checkpoint complete?")
    specs = {
        name: {"driver": driver, "kvstore": _inside(store, name), **_COMPLETE}
        for name, driver in drivers.items()
    }
    return open_arrays(folder, specs)


def open_arrays(folder: str, specs: Mapping[str, dict[str, Any]]) -> dict[str, LazyArray]:
    """Opens several arrays concurrently.

    Raises:
      UserError: an array cannot be opened, or has a type that no checkpoint of a T5 has; the message names the array.
    """
    # All arrays use one context, so that they share limits and connections.
    context = ts.Context()
    opening = {
        name: ts.open(spec, open=True, read=True, context=context) for name, spec in specs.items()
    }
    return {name: _lazy(folder, name, future) for name, future in opening.items()}


def spec_for(folder: str, name: str) -> dict[str, Any]:
    """Returns TensorStore's description of a zarr array in a folder of a checkpoint."""
    return {"driver": "zarr", "kvstore": _inside(storage.kvstore(folder), name), **_COMPLETE}


def write(folder: str, name: str, values: np.ndarray) -> dict[str, Any]:
    """Writes a new array in T5X's format, and returns the description that T5X stores for it."""
    metadata = {
        "chunks": chunks(values.shape, values.dtype.itemsize),
        "compressor": {"id": "gzip", "level": 1},
        "shape": list(values.shape),
    }
    dtype = values.dtype.name
    spec = {**spec_for(folder, name), "dtype": dtype, "metadata": metadata}
    ts.open(spec, create=True, delete_existing=False).result().write(values).result()
    kvstore = {"driver": "file", "path": f"{name}/"}
    if storage.is_remote(folder):
        kvstore = {"driver": "gcs", "bucket": "t5x-dummy-bucket", "path": f"{name}/"}
    return {"driver": "zarr", "dtype": dtype, "kvstore": kvstore, "metadata": metadata}


def chunks(shape: Iterable[int], itemsize: int) -> list[int]:
    """Returns the shape of chunks of at most about 64 MiB, with whole rows if they fit."""
    sizes = list(shape)
    for axis in range(len(sizes)):
        rest = itemsize * int(np.prod(sizes[axis + 1 :], dtype=np.int64))
        if sizes[axis] * rest <= _CHUNK_BYTES:
            break
        sizes[axis] = max(1, _CHUNK_BYTES // rest)
    return sizes


def _inside(store: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {**store, "path": f"{store.get('path', '')}{name}/"}


def _lazy(folder: str, name: str, future: Any) -> LazyArray:
    try:
        store = future.result()
    except ValueError as error:
        raise UserError(f"{folder}: array {name} cannot be opened: {first_line(error)}") from error
    dtype = store.dtype.name
    if dtype not in DTYPES and dtype not in _COUNTERS:
        raise UserError(f"{folder}: array {name} has dtype {dtype}; known: {', '.join(DTYPES)}")

    stored_arrays.check_array(folder, name, store)

    def read(index: Index) -> np.ndarray:
        try:
            return np.asarray(store[index].read().result() if index else store.read().result())
        except ValueError as error:
            raise UserError(
                f"{folder}: array {name} cannot be read: {first_line(error)}"
            ) from error

    array = LazyArray(tuple(store.shape), np.dtype(store.dtype.numpy_dtype), read)
    return finite(array, f"{folder}: array {name}")
