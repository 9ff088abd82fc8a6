"""A stranger's checkpoint cannot exhaust the memory or block the command that reads it."""

import os

import numpy as np
import pytest
import tensorstore as ts

from jaxalign.errors import UserError
from jaxalign.interop import storage, zarr


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_a_chunk_is_decompressed_up_to_its_declared_size(tmp_path, codec):
    """TensorStore stops at the size that the array declares; the memory for the rest is never allocated."""

    def create(name, size):
        spec = zarr.spec_for(str(tmp_path), name)
        metadata = {"shape": [size], "chunks": [size], "compressor": {"id": codec, "level": 1}}
        store = ts.open({**spec, "dtype": "float32", "metadata": metadata}, create=True).result()
        store.write(np.zeros(size, np.float32) + 1).result()

    create("kernel", 16)
    create("larger", 1 << 18)
    (tmp_path / "larger" / "0").replace(tmp_path / "kernel" / "0")
    array = zarr.open_arrays(str(tmp_path), {"kernel": zarr.spec_for(str(tmp_path), "kernel")})
    with pytest.raises(UserError, match=r"array kernel cannot be read: .* at uncompressed byte 64"):
        array["kernel"].read()


@pytest.mark.parametrize("sharded", [False, True])
def test_chunks_whose_size_is_not_bounded_are_refused(tmp_path, sharded):
    codecs = [
        {"name": "bytes", "configuration": {"endian": "little"}},
        {"name": "blosc", "configuration": {"cname": "zstd", "clevel": 1}},
    ]
    if sharded:
        shard = {"chunk_shape": [4], "codecs": codecs}
        codecs = [{"name": "sharding_indexed", "configuration": shard}]
    metadata = {
        "shape": [16],
        "data_type": "float32",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [16]}},
        "codecs": codecs,
    }
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{tmp_path}/kernel/"}}
    ts.open({**spec, "metadata": metadata}, create=True).result()
    with pytest.raises(UserError, match="array kernel is compressed with blosc"):
        zarr.open_arrays(str(tmp_path), {"kernel": spec})


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_pipe_is_not_read(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match="is not a regular file"):
        storage.read(str(tmp_path), name)
    with pytest.raises(UserError, match="is not a regular file"):
        storage.read(str(tmp_path), name, 0, 8)


def test_json_is_read_as_everywhere(tmp_path):
    assert storage.read_json(str(tmp_path), "a.json") is None
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert storage.read_json(str(tmp_path), "a.json") == {"a": 1}
    for text, message in (
        ("[]", "must hold a JSON object"),
        ('{"a": 1, "a": 2}', "occurs twice"),
        (f'{{"a": {"9" * 5000}}}', "a number has 5000 digits"),
    ):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(UserError, match=f"a.json.*{message}"):
            storage.read_json(str(tmp_path), "a.json")
