"""Pictures that a field ``image`` names: the only code that reads them from files.

The field is the path of a picture or of a .npy file, or ``{"file": "images.npz", "key": "images", "row": 12}``, in the folder of the data
file or below it. Paths that leave the folder and symbolic links are not followed, and nothing is unpickled.
"""

from __future__ import annotations

import io
import math
import os
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import UInt8

from jaxalign import untrusted
from jaxalign.data.plain_arrays import BROKEN_ARCHIVE, BROKEN_HEADER
from jaxalign.data.record_fields import RecordError, type_name
from jaxalign.errors import UserError, first_line

REASON = "unreadable_image"
# Formats whose decoders read pixels only; of several frames the first counts.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "PPM", "WEBP")
# Without 16-bit pixels, which Pillow would clip and not scale.
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")
_KEYS = {"file", "key", "row"}
_MAX_FILE_BYTES, _MAX_ARRAY_BYTES, _MAX_PIXELS = 64 << 20, 4 << 30, 64_000_000
_OPEN_ARRAYS = 8

Pixels = UInt8[np.ndarray, "height width *values"]
Size = tuple[int, int]


class PictureReader:
    """Reads pictures; arrays of several pictures stay open.

    Args:
      check_size: raises RecordError for a height and width, and the name of the picture, that are not wanted. It is called before a
        picture is decoded.
    """

    def __init__(self, check_size: Callable[[Size, str], None] | None = None) -> None:
        self._check_size = check_size or _check_any
        self._arrays: dict[tuple[str, str], np.ndarray] = {}

    def read(self, value: Any, file: str) -> Pixels:
        """Returns a picture: gray values ``[height, width]``, or ``[height, width, values]`` with 1, 3 or 4 values a pixel.

        Args:
          value: the field ``image`` of a line.
          file: the data file that holds the line.

        Raises:
          RecordError: there is no such picture, or it is none.
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
                return self._of_array(path, name, key, row)
            if key is None and row is None:
                return self._of_picture(path, name)
            raise RecordError(REASON, f"the image {name!r} is no array, so it has no key or row")
        except (FileNotFoundError, NotADirectoryError):
            raise RecordError(
                REASON, f"the image {name!r} does not exist beside the data"
            ) from None
        except (OSError, Warning, *BROKEN_ARCHIVE, *BROKEN_HEADER) as error:
            if isinstance(error, RecordError):
                raise
            raise RecordError(
                REASON, f"the image {name!r} cannot be read: {first_line(error, 200)}"
            ) from None

    def _of_picture(self, path: str, name: str) -> Pixels:
        from PIL import Image, UnidentifiedImageError

        content = untrusted.read_bytes(path, _MAX_FILE_BYTES)
        try:
            with warnings.catch_warnings():
                # Our own limit is lower, and is checked before anything is decoded.
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                opened = Image.open(io.BytesIO(content), formats=FORMATS)
        except UnidentifiedImageError:
            raise RecordError(
                REASON, f"the image {name!r} is none ({', '.join(FORMATS)} are read)"
            ) from None
        except Image.DecompressionBombError:
            raise RecordError(
                REASON, f"the image {name!r} has far more than {_MAX_PIXELS} pixels"
            ) from None
        with opened as picture:
            # The size is in the header: a picture of a size that is not wanted is not decoded.
            self._check_size((picture.height, picture.width), name)
            if picture.mode not in _MODES:
                raise RecordError(
                    REASON,
                    f"the image {name!r} has pixels of kind {picture.mode}; save it with 8 bits a value, gray or RGB",
                )
            return np.asarray(picture.convert("RGBA"))

    def _of_array(self, path: str, name: str, key: Any, row: Any) -> Pixels:
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
        if row is not None:
            if isinstance(row, bool) or not isinstance(row, int) or not 0 <= row < len(found):
                raise RecordError(REASON, f"row {row!r} is not one of the {len(found)} of {name!r}")
            found = found[row]
        if not (found.ndim == 2 or (found.ndim == 3 and found.shape[2] in (1, 3, 4))):
            raise RecordError(
                REASON,
                f"the image {name!r} has the shape {_in_words(found.shape)}; wanted [height, width], or 1, 3 or 4 values a pixel",
            )
        self._check_size((found.shape[0], found.shape[1]), name)
        return found


def on_white(pixels: Pixels) -> UInt8[np.ndarray, "height width 3"]:
    """Returns a picture in RGB; what is transparent becomes white, as pictures with transparency are shown."""
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.shape[2] < 4:
        return np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    alpha = pixels[:, :, 3:].astype(np.uint32)
    mixed = pixels[:, :, :3] * alpha + 255 * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)


def resized(pixels: Pixels, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Returns a picture in RGB, on white, resized to a square by averages."""
    from PIL import Image

    whole = pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    image = Image.fromarray(np.ascontiguousarray(whole)).convert("RGBA")
    return on_white(np.asarray(image.resize((size, size), Image.Resampling.BOX)))


def check_pixels(pixels: np.ndarray, where: str) -> UInt8[np.ndarray, "pictures height width 3"]:
    """Returns an array of pictures.

    Raises:
      UserError: it is not uint8 of shape [pictures, height, width, 3].
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
        raise UserError(
            f"{where} has shape {list(pixels.shape)} and dtype {pixels.dtype}; pictures are uint8 [pictures, height, width, 3]"
        )
    return pixels


def _check_any(size: Size, name: str) -> None:
    if not 0 < size[0] * size[1] <= _MAX_PIXELS:
        raise RecordError(
            REASON,
            f"the image {name!r} has {_in_words(size)} pixels; from 1 to {_MAX_PIXELS} are read",
        )


def _in_words(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


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
