"""Checks stored arrays before their values are read (names, types, shapes, chunks), and checks that values are finite."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts

from jaxalign import untrusted
from jaxalign.errors import UserError, first_line

_INDEX = "_METADATA"
_ARRAY_FILES = {".zarray": "zarr", "zarr.json": "zarr3"}
_DTYPES = ("float32", "bfloat16", "float16", "float64", "int32", "int64", "uint32", "int8", "bool")
_MAX_ARRAYS = 100_000
_KEY = re.compile(r"[A-Za-z0-9_]{1,128}")
# Trained parameters compress by a far smaller factor. Only zeros, such as those of new heads, compress more.
_MAX_COMPRESSION = 1000
_SPARE_BYTES = 64 << 20
# TensorStore decompresses a chunk of these only up to the size that the array declares. For blosc it first allocates as much memory as the
# chunk itself claims to need, up to 2 GiB. No version of T5X or Orbax writes blosc.
_BOUNDED_CODECS = (
    "gzip",
    "zlib",
    "bz2",
    "zstd",
    "bytes",
    "transpose",
    "crc32c",
    "sharding_indexed",
)


def check_item(item: Path, stored_bytes: int) -> int:
    """Checks the arrays of an Orbax item without reading their values.

    Args:
      item: the folder of the item, for example ``<run>/checkpoints/<step>/params``.
      stored_bytes: the total size of its files.

    Returns:
      The number of arrays.

    Raises:
      UserError: an array is invalid; the message names the array and the problem.
    """
    if (item / _INDEX).exists():
        _check_names(item)
    store: dict[str, Any] = {"driver": "file", "path": f"{item}/"}
    if (item / "manifest.ocdbt").exists():
        store = {"driver": "ocdbt", "base": store}
    try:
        keys = [key.decode() for key in ts.KvStore.open(store).result().list().result()]
        context, opening = ts.Context(), {}
        for key in keys:
            name, _, file = key.rpartition("/")
            if file in _ARRAY_FILES and name and "/" not in name:
                place = {**store, "path": f"{store.get('path', '')}{name}/"}
                spec = {"driver": _ARRAY_FILES[file], "kvstore": place}
                opening[name] = ts.open(spec, open=True, read=True, context=context)
                if len(opening) > _MAX_ARRAYS:
                    raise UserError(f"{item} holds more than {_MAX_ARRAYS} arrays")
        sizes = [check_array(str(item), name, future.result()) for name, future in opening.items()]
    except UserError:
        raise
    except (ValueError, OSError) as error:
        raise UserError(f"{item} cannot be read: {first_line(error)}") from error
    if sum(sizes) > stored_bytes * _MAX_COMPRESSION + _SPARE_BYTES:
        raise UserError(
            f"{item} says that its arrays have {sum(sizes):,} bytes, but its files have {stored_bytes:,}"
        )
    return len(sizes)


def check_array(where: str, name: str, store: Any) -> int:
    """Checks one opened array, and returns its size in bytes.

    Raises:
      UserError: its type is not that of a parameter, or its chunks are larger than the array or may become larger when they are
        decompressed, so that reading one would exhaust memory.
    """
    if store.dtype.name not in _DTYPES:
        raise UserError(f"{where}: array {name} has dtype {store.dtype.name}")
    for chunk in (store.chunk_layout.read_chunk.shape, store.chunk_layout.write_chunk.shape):
        if any(part > max(size, 1) for part, size in zip(chunk or (), store.shape, strict=False)):
            raise UserError(
                f"{where}: array {name} of shape {tuple(store.shape)} has chunks of shape {tuple(chunk)}, which are larger"
            )
    for codec in _codecs(store.spec(retain_context=False).to_json().get("metadata", {})):
        if codec not in _BOUNDED_CODECS:
            raise UserError(
                f"{where}: array {name} is compressed with {codec}, whose chunks can exhaust the memory; write it with gzip or zstd"
            )
    return math.prod(store.shape) * np.dtype(store.dtype.numpy_dtype).itemsize


def _codecs(metadata: dict[str, Any]) -> list[str]:
    """Returns the names of the codecs of an array's chunks, and of the parts of its chunks, in zarr's version 2 or 3."""
    compressor = metadata.get("compressor")
    found = [compressor["id"]] if compressor else []
    for codec in metadata.get("codecs", ()):
        inner = codec.get("configuration", {})
        found += [
            codec["name"],
            *_codecs(inner),
            *_codecs({"codecs": inner.get("index_codecs", ())}),
        ]
    return found


def refuse_not_finite(where: str, params: Any) -> None:
    """Refuses parameters that are NaN or infinite.

    Raises:
      UserError: an array is not finite; the message names the first such array.
    """
    named = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    }
    found = jax.device_get(_finite(named)) if named else {}
    for name, finite in found.items():
        if not finite:
            raise UserError(
                f"{where}: parameter {name} holds NaN or infinity; choose an earlier checkpoint"
            )


@jax.jit
def _finite(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: jnp.isfinite(array).all() for name, array in arrays.items()}


def _check_names(item: Path) -> None:
    """Checks that no array name leads out of the folder, because names become paths."""
    index = untrusted.read_json_object(item / _INDEX, limit=64 << 20)
    tree = index.get("tree_metadata")
    try:
        keys = [part["key"] for entry in tree.values() for part in entry["key_metadata"]]  # type: ignore[union-attr]
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{item / _INDEX} does not list arrays as Orbax does") from error
    for key in keys:
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise UserError(f"{item / _INDEX}: {str(key)[:60]!r} is no name of a parameter")
