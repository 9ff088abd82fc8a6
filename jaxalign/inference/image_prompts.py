"""Prompts with images in inference: one table of patches beside the parameters, to which the image tokens of all prompts point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxalign.data.encoding import TextEncoder
from jaxalign.data.images import ImageFormat, image_format
from jaxalign.inference.rows import Tokens
from jaxalign.networks.image_tokens import IMAGE_TOKENS, TABLE


class PromptImages(NamedTuple):
    """The images of prompts.

    Attributes:
      format: the format of the images.
      pixels: for each prompt, the pixels of its image, or None.
    """

    format: ImageFormat
    pixels: Sequence[bytes | None]


def with_table(
    params: Any, prompts: Sequence[Tokens], images: PromptImages, size: int
) -> tuple[Any, list[Tokens]]:
    """Returns the parameters with the table of these images, and the prompts with image tokens that point into it.

    Args:
      params: of the network.
      prompts: token ids; image tokens count the patches of a prompt's own image.
      images: one entry for each prompt.
      size: images of the table, at least as many as there are prompts; a few sizes mean few compilations.
    """
    format = images.format
    table = np.zeros((size, format.num_patches, 3 * format.patch_size**2), np.uint8)
    placed: list[Tokens] = []
    for number, (prompt, pixels) in enumerate(zip(prompts, images.pixels, strict=True)):
        if pixels is None:
            placed.append(prompt)
            continue
        table[number] = format.patches(pixels)
        first = number * format.num_patches
        placed.append([token + first if token >= IMAGE_TOKENS else token for token in prompt])
    return {**params, TABLE: table}, placed


class EncodedPrompts(NamedTuple):
    """Prompts as tokens, whose image tokens point into a table.

    Attributes:
      tokens: of every prompt.
      table: the patches of their images; None without images.
    """

    tokens: list[Tokens]
    table: np.ndarray | None

    def beside(self, params: Any) -> Any:
        """Returns parameters with the table beside them."""
        return params if self.table is None else {**params, TABLE: self.table}


def encode_prompts(
    encoder: TextEncoder, network: Any, texts: Sequence[str], images: Sequence[bytes | None]
) -> EncodedPrompts:
    """Encodes prompts for a network, with their images if it reads images.

    Args:
      encoder: of the network's run.
      network: the network.
      texts: the texts of the prompts.
      images: for each prompt, the pixels of its image, or None.
    """
    format = image_format(network)
    tokens: list[Tokens] = list(encoder.prompts(texts, image_counts(network, images)).tokens)
    if format is None:
        return EncodedPrompts(tokens, None)
    tables, placed = with_table({}, tokens, PromptImages(format, images), len(tokens))
    return EncodedPrompts(placed, tables[TABLE])


def image_counts(network: Any, images: Sequence[bytes | None]) -> list[int] | None:
    """Returns the number of image tokens of every prompt; None for a network that reads text only."""
    format = image_format(network)
    return None if format is None else [format.num_patches * (each is not None) for each in images]
