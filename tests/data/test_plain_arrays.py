"""Arrays of strangers: what is read, and what is refused in one line."""

import io
import zipfile

import numpy as np
import pytest

from jaxalign.data.plain_arrays import read_array
from jaxalign.errors import UserError


def test_arrays_of_both_kinds_of_files_are_read(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.save(tmp_path / "a.npy", array)
    np.savez_compressed(tmp_path / "a.npz", one=array, two=2 * array)
    np.savez(tmp_path / "single.npz", only=array)
    np.testing.assert_array_equal(read_array(tmp_path / "a.npy"), array)
    np.testing.assert_array_equal(read_array(tmp_path / "a.npz", "two"), 2 * array)
    np.testing.assert_array_equal(read_array(tmp_path / "single.npz"), array)


def archive(**members):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(f"{name}.npy", data)
    return content.getvalue()


def damaged(method):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as file:
        file.writestr("a.npy", bytes(range(200)))
    found = bytearray(content.getvalue())
    found[48:60] = b"\xff" * 12
    return bytes(found)


def header_of(shape):
    content = io.BytesIO()
    description = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(content, description)
    return content.getvalue()


def pickled():
    content = io.BytesIO()
    np.save(content, np.array([{}], dtype=object), allow_pickle=True)
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickled(), "objects are never unpickled"),
        (archive(a=pickled()), "objects are never unpickled"),
        (archive(a=b"", b=b""), "2 arrays, so one must be named; its arrays: a, b"),
        (archive(a=bytes(5000)), "declares 5000 bytes; at most 1000 are read"),
        (archive(), "0 arrays"),
        (header_of((10**9, 10**9)), "at most 1000 are read"),
        (header_of((10,)), "no readable .npy array"),
        (b"PK\3\4 broken", "no readable .npz file"),
        (damaged(zipfile.ZIP_DEFLATED), "no readable .npz file"),
        (damaged(zipfile.ZIP_LZMA), "no readable .npz file"),
        (header_of((10,)).replace(b"}", b"("), "no readable .npy array"),
        (b"", "no readable .npy array"),
        (b"\x89PNG....", "no readable .npy array"),
    ],
)
def test_files_that_are_no_arrays_of_numbers_are_refused(tmp_path, content, message):
    path = tmp_path / "x.npy"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_array(path, limit=1000)


def test_missing_files_and_links_to_elsewhere_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_array(tmp_path / "none.npy")
    (tmp_path / "inside").mkdir()
    np.save(tmp_path / "outside.npy", np.zeros(2))
    (tmp_path / "inside" / "x.npy").symlink_to(tmp_path / "outside.npy")
    with pytest.raises(UserError, match="outside of"):
        read_array(tmp_path / "inside" / "x.npy", inside=tmp_path / "inside")
