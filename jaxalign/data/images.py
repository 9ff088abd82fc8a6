"""Images of records: their format in a task, and the only code that reads them from files.

A record's optional field ``image`` names a picture in the folder of its data file, or below it: the path of a PNG, JPEG or .npy file, or
``{"file": "images.npz", "key": "images", "row": 12}``. Nothing is resized. Paths that leave the folder and symbolic links are not
followed, and nothing is unpickled.
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import UInt8

from jaxalign import untrusted
from jaxalign.data.plain_arrays import BROKEN_ARCHIVE, BROKEN_HEADER
from jaxalign.data.record_fields import RecordError, type_name
from jaxalign.networks.image_tokens import IMAGE_TOKENS, check_image_sizes

REASON = "unreadable_image"
_KEYS = {"file", "key", "row"}
_MAX_FILE_BYTES, _MAX_ARRAY_BYTES = 64 << 20, 4 << 30
_OPEN_ARRAYS = 8
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")


@dataclasses.dataclass(frozen=True)
class ImageFormat:
    """The images of a task, as a network with the same sizes reads them.

    Attributes:
      image_size: pixels of the side of an image.
      patch_size: pixels of the side of a patch.
    """

    image_size: int
    patch_size: int

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ValueError(f"image_size is {self.image_size}; it must be at least 1.")
        check_image_sizes("ImageFormat", self.image_size, self.patch_size)

    @property
    def num_patches(self) -> int:
        """Patches of an image, each of which is a token of the prompt."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def tokens(self) -> range:
        """The image tokens that begin a prompt with an image, before it has a place in a row."""
        return range(IMAGE_TOKENS, IMAGE_TOKENS + self.num_patches)

    def patches(self, pixels: bytes) -> UInt8[np.ndarray, "patches values"]:
        """The patches of an image, row by row."""
        size, patch = self.image_size, self.patch_size
        side = size // patch
        array = np.frombuffer(pixels, np.uint8).reshape(side, patch, side, patch, 3)
        return array.swapaxes(1, 2).reshape(self.num_patches, -1)


def image_format(network: Any) -> ImageFormat | None:
    """Returns the format of the images that a network reads; None for text only."""
    config: Any = getattr(network, "config", None)
    size = getattr(config, "image_size", 0)
    return ImageFormat(size, config.patch_size) if size else None


class ImageReader:
    """Reads the images of records; arrays of several images stay open."""

    def __init__(self, format: ImageFormat) -> None:
        self.format = format
        self._arrays: dict[tuple[str, str], np.ndarray] = {}

    def read(self, value: Any, file: str) -> bytes:
        """Returns the pixels of an image, 3 bytes each, row by row.

        Args:
          value: the field ``image`` of a record.
          file: the data file that holds the record.

        Raises:
          RecordError: there is no such image, or it does not have the format of the task.
        """
        reference = {"file": value} if isinstance(value, str) else value
        if not isinstance(reference, Mapping) or not isinstance(reference.get("file"), str):
            raise RecordError(
                REASON, f"image is a {type_name(value)}, not a path or an object with 'file'"
            )
        unknown = sorted(set(reference) - _KEYS)
        if unknown:
            raise RecordError(REASON, f"image has the unknown key {unknown[0]!r}")
        name, key, row = reference["file"], reference.get("key"), reference.get("row")
        path = _inside(name, file)
        try:
            if name.lower().endswith((".npy", ".npz")):
                pixels = self._of_array(path, name, key, row)
            elif key is None and row is None:
                pixels = self._of_picture(path, name)
            else:
                raise RecordError(
                    REASON, f"the image {name!r} is no array, so it has no key or row"
                )
        except (FileNotFoundError, NotADirectoryError):
            raise RecordError(
                REASON, f"the image {name!r} does not exist beside the data"
            ) from None
        except (OSError, *BROKEN_ARCHIVE, *BROKEN_HEADER) as error:
            if isinstance(error, RecordError):
                raise
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise RecordError(REASON, f"the image {name!r} cannot be read: {reason}") from None
        return self._as_rgb(pixels, name).tobytes()

    def _of_picture(self, path: str, name: str) -> np.ndarray:
        from PIL import Image

        content = untrusted.read_bytes(path, _MAX_FILE_BYTES)
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as picture:
            # The size is in the header: a picture of any other size is not decoded.
            self._check_shape((picture.height, picture.width), name)
            if picture.mode not in _MODES:
                raise RecordError(REASON, f"the image {name!r} has pixels of kind {picture.mode}")
            return np.asarray(picture.convert("RGBA"))

    def _of_array(self, path: str, name: str, key: Any, row: Any) -> np.ndarray:
        is_archive = name.lower().endswith(".npz")
        if is_archive != isinstance(key, str):
            need = "needs the key of an array" if is_archive else "is one array and has no key"
            raise RecordError(REASON, f"the image file {name!r} {need}")
        found = self._arrays.get((path, key or ""))
        if found is None:
            found = _member(path, key) if is_archive else _mapped(path)
            if len(self._arrays) >= _OPEN_ARRAYS:
                self._arrays.pop(next(iter(self._arrays)))
            self._arrays[path, key or ""] = found
        if found.dtype != np.uint8:
            raise RecordError(REASON, f"the image array {name!r} holds {found.dtype}, not uint8")
        if not found.ndim:
            raise RecordError(REASON, f"the image array {name!r} is a single number")
        if row is None:
            return found
        if isinstance(row, bool) or not isinstance(row, int) or not 0 <= row < len(found):
            raise RecordError(REASON, f"row {row!r} is not one of the {len(found)} of {name!r}")
        return found[row]

    def _as_rgb(self, pixels: np.ndarray, name: str) -> np.ndarray:
        if pixels.ndim == 2:
            pixels = pixels[:, :, None]
        self._check_shape(pixels.shape, name)
        if pixels.shape[2] == 4:
            # On white, as pictures with transparency are shown.
            alpha = pixels[:, :, 3:].astype(np.uint32)
            mixed = pixels[:, :, :3] * alpha + 255 * (255 - alpha)
            return ((mixed + 127) // 255).astype(np.uint8)
        return np.broadcast_to(pixels, (*pixels.shape[:2], 3))

    def _check_shape(self, shape: tuple[int, ...], name: str) -> None:
        size = self.format.image_size
        if (
            shape[:2] != (size, size)
            or len(shape) > 3
            or (len(shape) == 3 and shape[2] not in (1, 3, 4))
        ):
            found = " x ".join(map(str, shape))
            raise RecordError(
                REASON,
                f"the image {name!r} has the shape {found}; wanted {size} x {size} pixels, gray, RGB or RGBA",
            )


def _inside(name: str, file: str) -> str:
    """Returns the path of an image; raises RecordError if it is not in the folder of the data file or below it."""
    if not file:
        raise RecordError(REASON, "an image needs a data file, in whose folder it is")
    parts = PurePosixPath(name).parts
    if not parts or os.path.isabs(name) or ".." in parts or "\\" in name or "\0" in name:
        raise RecordError(
            REASON, f"the image {name[:100]!r} is not a path inside the folder of the data file"
        )
    path = os.path.dirname(os.path.abspath(file))
    for part in parts:
        path = os.path.join(path, part)
        if os.path.islink(path):
            raise RecordError(REASON, f"the image {name!r} is behind a symbolic link")
    return path


def _mapped(path: str) -> np.ndarray:
    with untrusted.open_regular(path):
        return np.lib.format.open_memmap(path, mode="r")


def _member(path: str, key: str) -> np.ndarray:
    """Returns an array of an .npz file; its size is checked before it is read."""
    with untrusted.open_regular(path) as file, zipfile.ZipFile(file) as archive:
        try:
            info = archive.getinfo(f"{key}.npy")
        except KeyError:
            raise ValueError(f"there is no array {key[:100]!r}") from None
        with archive.open(info) as member:
            version = np.lib.format.read_magic(member)
            read_header = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, fortran, dtype = read_header(member)
            count = math.prod(shape)
            if dtype != np.uint8 or fortran:
                raise ValueError(f"the array {key!r} holds {dtype}, not uint8 row by row")
            if min(shape, default=0) < 0 or count > min(_MAX_ARRAY_BYTES, info.file_size):
                raise ValueError(f"the array {key!r} of shape {shape} is larger than its file")
            content = member.read(count)
    return np.frombuffer(content, np.uint8).reshape(shape)
