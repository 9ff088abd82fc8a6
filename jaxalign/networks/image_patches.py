"""Images in prompts: an encoder row holds image tokens, which point into a table of patches.

Token ``IMAGE_TOKENS + i`` stands for patch i of the row's table, or of one table for all rows. It belongs to a segment and has a position
like every token, so that packing, masks and relative positions need nothing new. A patch is embedded by one linear map of its pixels, to
which a learned vector for its place in the image is added.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float, UInt8

from jaxalign.errors import UserError
from jaxalign.networks.blocks import Dense
from jaxalign.networks.config import T5Config
from jaxalign.networks.image_tokens import IMAGE_TOKENS, PATCHES, TABLE
from jaxalign.networks.network_config import NetworkConfig
from jaxalign.networks.shapes import AnyArray, Batch, Hidden, Params, Tokens

Patches = UInt8[AnyArray, "*images patches values"]
_kernel_init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")


class ImageEmbedder(nn.Module):
    """Vectors of the patches of images."""

    config: T5Config

    @nn.compact
    def __call__(self, patches: Patches) -> Float[AnyArray, "*images patches emb"]:
        config = self.config
        dtype = config.activation_dtype
        scaled = (patches.astype(jnp.float32) / 127.5 - 1.0).astype(dtype)
        embedded = Dense(config.emb_dim, (None, "embed"), _kernel_init, dtype, name="patch")(scaled)
        places = self.param(
            "places",
            nn.with_logical_partitioning(nn.initializers.normal(1.0), (None, "embed")),
            (config.num_patches, config.emb_dim),
            jnp.float32,
        )
        return embedded + places.astype(dtype)


def blank(config: T5Config) -> Patches:
    """One black image, to initialise an `ImageEmbedder` with."""
    return jnp.zeros((1, config.num_patches, config.patch_values), jnp.uint8)


def placed(
    embedded: Hidden, tokens: Tokens, table: Float[AnyArray, "*images patches emb"]
) -> Hidden:
    """Embedded tokens, with the vectors of patches at image tokens.

    Args:
      embedded: of the tokens; arbitrary at image tokens.
      tokens: with image tokens.
      table: from `ImageEmbedder`: ``[rows, examples, patches, emb]``, or ``[images, patches, emb]`` for all rows.
    """
    index = jnp.maximum(tokens - IMAGE_TOKENS, 0)
    if table.ndim == 4:
        rows = table.reshape(table.shape[0], -1, table.shape[-1])
        found = jnp.take_along_axis(rows, index[:, :, None], axis=1, mode="clip")
    else:
        found = jnp.take(table.reshape(-1, table.shape[-1]), index, axis=0, mode="clip")
    return jnp.where((tokens >= IMAGE_TOKENS)[:, :, None], found, embedded)


def patches_of(config: NetworkConfig, params: Params, batch: Batch) -> Patches | None:
    """The patches of a batch, or of the table beside the parameters; None if there are none.

    Raises:
      UserError: the network reads no images, or images of another format.
    """
    patches: Any = batch.get(PATCHES)
    if patches is None and isinstance(params, Mapping):
        patches = params.get(TABLE)
    if patches is None:
        return None
    if not config.image_size:
        raise UserError(
            "the data have images and the network reads none: set IMAGE_SIZE and PATCH_SIZE of the model, or make a cache without images"
        )
    found, expected = tuple(patches.shape[-2:]), (config.num_patches, config.patch_values)
    if found != expected:
        raise UserError(
            f"the data have images of {found[0]} patches with {found[1]} values, and a network with IMAGE_SIZE {config.image_size} and "
            f"PATCH_SIZE {config.patch_size} reads {expected[0]} with {expected[1]}; make the cache again with the network's sizes"
        )
    return patches
