"""Images in the prompts of records: their format in a task, and their pixels, as `pictures` reads them. Nothing is resized."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import UInt8

from jaxalign.data.pictures import REASON, PictureReader, Size, on_white
from jaxalign.data.record_fields import RecordError
from jaxalign.networks.image_tokens import IMAGE_TOKENS, check_image_sizes


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
        self._pictures = PictureReader(self._check_size)

    def read(self, value: Any, file: str) -> bytes:
        """Returns the pixels of an image, 3 bytes each, row by row.

        Args:
          value: the field ``image`` of a record.
          file: the data file that holds the record.

        Raises:
          RecordError: there is no such image, or it does not have the format of the task.
        """
        return on_white(self._pictures.read(value, file)).tobytes()

    def _check_size(self, found: Size, name: str) -> None:
        size = self.format.image_size
        if found != (size, size):
            raise RecordError(
                REASON,
                f"the image {name!r} has {found[0]} x {found[1]} pixels; wanted {size} x {size}, nothing is resized",
            )
