"""Pictures as arrays: from image files, or from rows of an array of pixels."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from jaxalign import untrusted
from jaxalign.errors import UserError, first_line

Picture = UInt8[np.ndarray, "size size 3"]

# Formats whose decoders read pixels only.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "PPM", "WEBP")
_FILE_BYTES = 64 << 20
_MOST_PIXELS = 64_000_000


def read_picture(path: Path | str, size: int) -> Picture:
    """Returns an image file as RGB pixels, resized to a square. Transparent parts are white.

    Raises:
      UserError: the file is missing, is no image of a known format, is damaged, or has far too many pixels.
    """
    from PIL import Image, UnidentifiedImageError

    path = Path(path).expanduser()
    try:
        with untrusted.open_regular(path) as file, warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            size_in_bytes = os.fstat(file.fileno()).st_size
            if size_in_bytes > _FILE_BYTES:
                raise UserError(f"{path} has {size_in_bytes} bytes; at most {_FILE_BYTES} are read")
            opened = Image.open(file, formats=FORMATS)
            if opened.width * opened.height > _MOST_PIXELS:
                raise UserError(
                    f"{path} has {opened.width} x {opened.height} pixels; at most {_MOST_PIXELS} are read"
                )
            image = opened.convert("RGBA").resize((size, size), Image.Resampling.BOX)
    except FileNotFoundError:
        raise UserError(f"{path}: no such image file") from None
    except UnidentifiedImageError:
        raise UserError(f"{path} is not an image ({', '.join(FORMATS)} are read)") from None
    except UserError:
        raise
    except (OSError, ValueError, SyntaxError, Warning, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is not a readable image: {first_line(error)}") from error
    white = Image.new("RGBA", image.size, "white")
    return np.asarray(Image.alpha_composite(white, image).convert("RGB"))


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
