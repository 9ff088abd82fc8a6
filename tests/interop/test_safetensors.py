"""safetensors: what is written is read, in part too, and malformed files are refused."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest

from jaxalign.errors import UserError
from jaxalign.interop import safetensors
from jaxalign.interop.arrays import from_numpy

TENSORS = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.arange(6).astype(ml_dtypes.bfloat16).reshape(2, 3),
    "c": np.arange(5, dtype=np.float16),
}


def write(path, header, data, length=None):
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded) if length is None else length) + encoded + data)


def entry(start, stop, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


@pytest.mark.parametrize("max_shard_bytes", [10**9, 50], ids=["one file", "shards"])
def test_what_is_written_is_read(tmp_path, max_shard_bytes):
    lazy = {name: from_numpy(values) for name, values in TENSORS.items()}
    safetensors.write_folder(str(tmp_path), lazy, ["c", "a", "b"], max_shard_bytes=max_shard_bytes)
    assert (tmp_path / safetensors.INDEX_FILE).exists() == (max_shard_bytes == 50)
    again, _ = safetensors.read_folder(str(tmp_path))
    assert again.keys() == TENSORS.keys()
    for name, values in TENSORS.items():
        assert again[name].dtype == values.dtype
        np.testing.assert_array_equal(again[name].read(), values)
    block = (slice(1, 3), slice(2, 4))
    np.testing.assert_array_equal(again["a"].read(block), TENSORS["a"][block])


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"x": entry(0, 8)}, b"1234", "bytes, but its header says"),
        ({"x": entry(0, 8)}, b"123456789", "bytes, but its header says"),
        ({"x": entry(0, 8), "y": entry(4, 12)}, b"0" * 12, "y starts at byte 4"),
        ({"x": entry(0, 8), "y": entry(9, 17)}, b"0" * 17, "y starts at byte 9"),
        ({"x": entry(8, 0)}, b"0" * 8, "x"),
        ({"x": entry(0, 8, (3,))}, b"0" * 8, r"shape \[3\] and 8 bytes"),
        ({"x": entry(0, 8, (-2,))}, b"0" * 8, "no valid shape"),
        ({"x": entry(0, 8, (2**62, 2**62))}, b"0" * 8, "and 8 bytes"),
        ({"x": entry(0, 8, (1,), "I64")}, b"0" * 8, "dtype 'I64'"),
        ({"x": {"dtype": [], "shape": [2], "data_offsets": [0, 8]}}, b"0" * 8, r"dtype \[\]"),
        ({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, "8"]}}, b"0" * 8, "data_offsets"),
        ({"x": 3}, b"", "data_offsets"),
        ([1], b"", "JSON object"),
        (b"not json", b"", "JSON"),
        (b'{"x": {}, "x": {}}', b"", ".x. occurs twice"),
    ],
)
def test_malformed_files_are_refused(tmp_path, header, data, message):
    path = tmp_path / "model.safetensors"
    write(path, header, data)
    with pytest.raises(UserError, match=message) as caught:
        safetensors.read_folder(str(tmp_path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("length", [2**63, 10**8 + 1, 90])
def test_a_header_longer_than_the_file_is_not_read(tmp_path, length):
    write(tmp_path / "model.safetensors", {"x": entry(0, 8)}, b"", length)
    with pytest.raises(UserError, match=f"{length} bytes long"):
        safetensors.read_folder(str(tmp_path))


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"x": "../x.safetensors"}, "no safetensors file beside it"),
        ({"x": "x.bin"}, "no safetensors file beside it"),
        ({"x": "one.safetensors", "y": "one.safetensors"}, "y is not in one.safetensors"),
        ({"y": "one.safetensors"}, "does not say that x is in one.safetensors"),
        ({"x": "other.safetensors"}, r"other.safetensors is missing"),
    ],
)
def test_an_index_that_differs_from_its_shards_is_refused(tmp_path, weight_map, message):
    write(tmp_path / "one.safetensors", {"x": entry(0, 8)}, b"0" * 8)
    (tmp_path / safetensors.INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UserError, match=message):
        safetensors.read_folder(str(tmp_path))
