"""Reads and writes T5X's two checkpoint formats: a msgpack index beside zarr arrays (all public checkpoints), and Orbax (the default)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import flax.serialization
import numpy as np

from jaxalign.errors import UserError, first_line
from jaxalign.interop import orbax_writer, storage, zarr
from jaxalign.interop.arrays import DTYPES, LazyArray, from_numpy, reading_order
from jaxalign.interop.parameters import flatten, nest

INDEX = "checkpoint"  # the msgpack file
ORBAX_ITEM = "state"
_FOLDER = re.compile(r"checkpoint_(\d+)")
_TARGET, _STATE = "target.", "state."
# T5X records the names of different drivers for the same files, and a bucket that does not exist.
_KVSTORES = ("file", "gfile", "gcs")
_SPEC_KEYS = {"driver", "dtype", "kvstore", "metadata", "path", "transform"}


def step_of(path: str) -> int | None:
    """Returns the step in the name of a checkpoint's folder."""
    match = _FOLDER.fullmatch(path.rpartition("/")[2])
    return int(match[1]) if match else None


def steps(names: set[str]) -> list[int]:
    """Returns the steps of the checkpoints among the names in a folder. Unfinished checkpoints have other names."""
    return sorted(int(match[1]) for match in map(_FOLDER.fullmatch, names) if match)


def read_legacy(folder: str) -> tuple[dict[str, LazyArray], list[str], int]:
    """Opens a checkpoint with a msgpack index; returns its parameters, a description of its other contents, and its step.

    Raises:
      UserError: the index is malformed, or refers to anything other than zarr arrays beside it.
    """
    path = storage.join(folder, INDEX)
    content = storage.read(folder, INDEX)
    if content is None:
        raise UserError(f"{path} is missing")
    try:
        index = flax.serialization.msgpack_restore(content)
        leaves = _leaves(index.get("optimizer", {}))
    except Exception as error:  # any error of a decoder for bytes that are not an index
        raise UserError(
            f"{path} is not the msgpack index of a T5X checkpoint: {first_line(error)}"
        ) from error
    version = index.get("version") if isinstance(index, dict) else None
    if not isinstance(version, int) or version < 2 or "optimizer" not in index:
        raise UserError(f"{path} is not the index of a T5X checkpoint of version 2 or 3")
    specs = {}
    params: dict[str, LazyArray] = {}
    for name, leaf in leaves.items():
        if not name.startswith(_TARGET):
            continue
        short = name.removeprefix(_TARGET)
        if isinstance(leaf, dict):
            specs[short] = zarr.spec_for(folder, _array_folder(path, name, leaf))
        elif isinstance(leaf, np.ndarray) and leaf.dtype in DTYPES.values():
            params[short] = from_numpy(leaf)
        else:
            raise UserError(f"{path}: {name} is neither an array nor a reference to one")
    arrays = zarr.open_arrays(folder, specs)
    for name, array in arrays.items():
        _check_spec(path, name, leaves[_TARGET + name], array)
    others = [name for name in leaves if not name.startswith(_TARGET)]
    step = np.asarray(leaves.get("state.step", -1))
    return params | arrays, others, int(step) if step.shape == () and step.dtype.kind == "i" else -1


def read_orbax(folder: str) -> tuple[dict[str, LazyArray], list[str], int]:
    """Opens a checkpoint in T5X's Orbax layout; returns its parameters, a description of its other contents, and its step."""
    arrays = zarr.read_tree(storage.join(folder, ORBAX_ITEM))
    params = {
        name.removeprefix(_TARGET): array
        for name, array in arrays.items()
        if name.startswith(_TARGET)
    }
    if not params:
        raise UserError(f"{folder} has no parameters under 'target', as T5X's checkpoints do")
    step = arrays.get("state.step")
    others = [name for name in arrays if not name.startswith(_TARGET)]
    return params, others, int(step.read()) if step is not None and step.shape == () else -1


def write_legacy(folder: str, params: Mapping[str, LazyArray], step: int) -> None:
    """Writes a msgpack index and zarr arrays, one array in memory at a time.

    Args:
      folder: an existing, empty folder.
      params: the checked parameters, layer by layer.
      step: the step of the checkpoint.
    """
    specs = {}
    for name in reading_order(params):
        values = np.ascontiguousarray(params[name].read())
        specs[name] = zarr.write(folder, _TARGET + name, values)
    index = {
        "version": 3,
        "optimizer": {
            "target": nest(specs),
            "state": {"step": np.asarray(step, np.int32), "param_states": {}},
        },
    }
    # This file is written last, because T5X recognises a checkpoint by it.
    storage.write(folder, INDEX, flax.serialization.msgpack_serialize(index))


def write_orbax(folder: str, params: Mapping[str, LazyArray], step: int) -> None:
    """Writes T5X's Orbax layout, one array in memory at a time. Arguments are those of `write_legacy`."""
    tree = {"target": nest(params), "state": {"step": from_numpy(np.asarray(step, np.int32))}}
    orbax_writer.write(storage.join(folder, ORBAX_ITEM), tree)


def _leaves(tree: Any) -> dict[str, Any]:
    """Returns arrays and references to arrays by their dotted names."""

    def close(branch: Any) -> Any:
        if not isinstance(branch, dict):
            return branch
        if "driver" in branch:
            return _Reference(branch)
        return {str(key): close(child) for key, child in branch.items()}

    return {
        name: leaf.spec if isinstance(leaf, _Reference) else leaf
        for name, leaf in flatten(close(tree)).items()
    }


class _Reference:
    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec


def _array_folder(path: str, name: str, spec: dict[str, Any]) -> str:
    """Returns the folder of a referenced array, which must be a plain zarr array beside the index."""
    store = spec.get("kvstore")
    place = store.get("path", spec.get("path")) if isinstance(store, dict) else None
    unknown = spec.keys() - _SPEC_KEYS
    if spec.get("driver") != "zarr" or unknown or not isinstance(store, dict):
        what = f"driver {spec.get('driver')!r}" + (f", {sorted(unknown)[0]!r}" if unknown else "")
        raise UserError(f"{path}: {name} refers to an array in a way that is not followed: {what}")
    if store.get("driver") not in _KVSTORES or store.keys() - {"driver", "path", "bucket"}:
        raise UserError(f"{path}: {name} is stored by {store.get('driver')!r}, which is not read")
    place = place.rstrip("/") if isinstance(place, str) else ""
    if not re.fullmatch(r"[\w.-]+", place) or place in (".", ".."):
        raise UserError(f"{path}: {name} is said to be at {place!r}, which is not beside the index")
    return place


def _check_spec(path: str, name: str, spec: Any, array: LazyArray) -> None:
    if not isinstance(spec, dict):
        return
    metadata = spec.get("metadata")
    shape = metadata.get("shape") if isinstance(metadata, dict) else None
    if shape is not None and tuple(shape) != array.shape:
        raise UserError(f"{path} says {name} has shape {shape}, its array has {list(array.shape)}")
    if spec.get("dtype") not in (None, array.dtype.name):
        raise UserError(f"{path} says {name} is {spec['dtype']}, its array is {array.dtype.name}")
    transform = spec.get("transform")
    if transform is not None:
        identity = {"input_inclusive_min": [0] * len(array.shape)}
        identity["input_exclusive_max"] = list(array.shape)
        if not isinstance(transform, dict) or {**identity, **_plain(transform)} != identity:
            raise UserError(f"{path}: {name} is a view of an array, which is not followed")


def _plain(transform: dict[str, Any]) -> dict[str, Any]:
    """Returns a transform's entries, with the implicit bounds of a whole array (``[n]`` in a list) as numbers."""
    return {
        key: [bound[0] if isinstance(bound, list) and len(bound) == 1 else bound for bound in value]
        if key.startswith("input_") and isinstance(value, list)
        else value
        for key, value in transform.items()
    }
