"""Reads and writes safetensors files tensor by tensor: eight bytes of header length, a JSON header, raw little-endian data.

The public package writes only files whose tensors are all in memory, and it reads neither bfloat16 into NumPy nor files from a bucket.
The format contains no code, and the header is checked before it is used: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxalign import untrusted
from jaxalign.errors import UserError
from jaxalign.interop import storage
from jaxalign.interop.arrays import DTYPES, Index, LazyArray

FILE = "model.safetensors"
INDEX_FILE = f"{FILE}.index.json"
MAX_HEADER_BYTES = 100_000_000  # the limit of the format
MAX_SHARD_BYTES = 5_000_000_000
_NAMES = {"F32": DTYPES["float32"], "BF16": DTYPES["bfloat16"], "F16": DTYPES["float16"]}


def read_folder(folder: str) -> tuple[dict[str, LazyArray], list[str]]:
    """Opens the tensors of a folder with ``model.safetensors`` or with shards and their index; also returns the files it does not read.

    If a folder has both, the index is left over from an earlier download. transformers ignores it too.

    Raises:
      UserError: a file is missing or malformed, or index and shards differ.
    """
    names = storage.children(folder)
    if FILE in names or INDEX_FILE not in names:
        left = [f"{INDEX_FILE} (beside the whole {FILE})"] if INDEX_FILE in names else []
        return read_file(folder, FILE), left
    path = storage.join(folder, INDEX_FILE)
    weight_map = (storage.read_json(folder, INDEX_FILE) or {}).get("weight_map")
    if not isinstance(weight_map, dict):
        raise UserError(f"{path} lacks the object weight_map")
    tensors: dict[str, LazyArray] = {}
    for shard in sorted(set(map(str, weight_map.values()))):
        if os.path.basename(shard) != shard or not shard.endswith(".safetensors"):
            raise UserError(f"{path} refers to {shard!r}, which is no safetensors file beside it")
        for name, tensor in read_file(folder, shard).items():
            if weight_map.get(name) != shard:
                raise UserError(f"{path} does not say that {name} is in {shard}, but it is there")
            tensors[name] = tensor
    missing = sorted(weight_map.keys() - tensors.keys())
    if missing:
        raise UserError(f"{path}: {missing[0]} is not in {weight_map[missing[0]]}")
    return tensors, []


def read_file(folder: str, name: str) -> dict[str, LazyArray]:
    """Opens the tensors of one file, in the order of its data.

    Raises:
      UserError: the file is missing, or its header is not a valid header of a safetensors file of its length.
    """
    path = storage.join(folder, name)
    local_size = (
        os.path.getsize(path) if not storage.is_remote(path) and os.path.isfile(path) else None
    )
    if local_size is not None and local_size < 8:
        raise UserError(f"{path} is no safetensors file: it has {local_size} bytes")
    prefix = storage.read(folder, name, 0, 8)
    if prefix is None:
        raise UserError(f"{path} is missing")
    (length,) = struct.unpack("<Q", prefix)
    if length > MAX_HEADER_BYTES or (local_size is not None and 8 + length > local_size):
        raise UserError(
            f"{path} is no safetensors file, or is cut off: its header would be {length} bytes long"
        )
    header = untrusted.parse_json_object(storage.read(folder, name, 8, 8 + length) or b"", path)
    header.pop("__metadata__", None)
    tensors = {}
    position = 0
    for key, entry in sorted(header.items(), key=lambda item: _offsets(path, *item)):
        dtype, shape, (start, stop) = _entry(path, key, entry)
        if start != position:
            raise UserError(
                f"{path}: {key} starts at byte {start}, but the tensor before it ends at {position}"
            )
        position = stop
        tensors[key] = _tensor(folder, name, key, 8 + length + start, shape, dtype)
    if local_size is not None and 8 + length + position != local_size:
        raise UserError(
            f"{path} has {local_size} bytes, but its header says {8 + length + position}; was it downloaded completely?"
        )
    return tensors


def write_folder(
    folder: str,
    tensors: Mapping[str, LazyArray],
    order: Sequence[str],
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes tensors with one in memory at a time, as one file, or as shards with an index if they exceed the size of a shard.

    Args:
      folder: an existing folder.
      tensors: the tensors, in float32 or bfloat16.
      order: their names, in the order in which they are written.
      max_shard_bytes: the maximum number of bytes of data in a file.
    """
    shards: list[list[str]] = [[]]
    size = 0
    for name in order:
        if shards[-1] and size + tensors[name].nbytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensors[name].nbytes
    if len(shards) == 1:
        _write_file(folder, FILE, tensors, shards[0])
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(folder, file, tensors, names)
        weight_map |= dict.fromkeys(names, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    storage.write(folder, INDEX_FILE, (json.dumps(index, indent=2, sort_keys=True) + "\n").encode())


def _offsets(path: str, key: str, entry: Any) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(map(_is_size, offsets))):
        raise UserError(f"{path}: {key} has no valid data_offsets")
    return offsets[0], offsets[1]


def _entry(
    path: str, key: str, entry: dict[str, Any]
) -> tuple[np.dtype, tuple[int, ...], tuple[int, int]]:
    dtype, shape = entry.get("dtype"), entry.get("shape")
    if not isinstance(dtype, str) or dtype not in _NAMES:
        raise UserError(
            f"{path}: {key} has dtype {dtype!r}; parameters are read as {', '.join(_NAMES)}"
        )
    if not (isinstance(shape, list) and all(map(_is_size, shape))):
        raise UserError(f"{path}: {key} has no valid shape")
    start, stop = _offsets(path, key, entry)
    if stop - start != math.prod(shape) * _NAMES[dtype].itemsize:
        raise UserError(f"{path}: {key} has shape {shape} and {stop - start} bytes of {dtype}")
    return _NAMES[dtype], tuple(shape), (start, stop)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _tensor(
    folder: str, name: str, key: str, start: int, shape: tuple[int, ...], dtype: np.dtype
) -> LazyArray:
    row = math.prod(shape[1:]) * dtype.itemsize

    def read(index: Index) -> np.ndarray:
        # Rows are contiguous, so only the requested rows are read. Columns are then selected from them.
        first, count = (index[0].start, index[0].stop - index[0].start) if shape else (0, 1)
        begin, end = start + first * row, start + (first + count) * row
        content = storage.read(folder, name, begin, end) if end > begin else b""
        if content is None or len(content) != end - begin:
            raise UserError(
                f"{storage.join(folder, name)} ended within {key}: was it changed meanwhile?"
            )
        rows = np.frombuffer(content, dtype.newbyteorder("<") if dtype.kind == "f" else dtype)
        return rows.astype(dtype, copy=False).reshape((count, *shape[1:]) if shape else ())[
            (slice(None), *index[1:]) if shape else ()
        ]

    return LazyArray(shape, dtype, read)


def _write_file(
    folder: str, name: str, tensors: Mapping[str, LazyArray], order: Sequence[str]
) -> None:
    codes = {dtype: code for code, dtype in _NAMES.items()}
    # transformers refuses files that do not name their framework. It accepts PyTorch as the name for any framework.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for key in order:
        tensor = tensors[key]
        header[key] = {
            "dtype": codes[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, position + tensor.nbytes],
        }
        position += tensor.nbytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with storage.open_for_writing(folder, name) as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for key in order:
            # The data are written as bytes, because NumPy's buffers do not support bfloat16.
            values: Any = np.ascontiguousarray(tensors[key].read()).view(np.uint8)
            file.write(memoryview(values))
