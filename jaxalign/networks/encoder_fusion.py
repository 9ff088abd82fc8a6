"""A decoder that reads the outputs of all encoder layers (CART, arXiv 2406.17507; the gate's details are a reconstruction).

With E_1..E_S the outputs of the encoder's layers, each after the encoder's final norm, and Y the decoder's states:

- coarse: ``Z = concat(E_1..E_S) W + b``, ``A = CrossAttention(Y, Z)``, ``G = sigmoid(A Wg + bg) * A``;
- fine: ``F = sum_i alpha_i CrossAttention(Y, E_i)``, alpha the softmax of S scalars.

A decoder layer adds ``G + F`` where T5's adds ``CrossAttention(Y, E_S)``. W and b belong to the network. Every decoder layer has an
attention, a gate and scalars of its own for Z; its attention over the E_i is T5's own.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from jaxalign.networks.attention import Attention
from jaxalign.networks.attention_bias import AnyBias
from jaxalign.networks.config import T5Config
from jaxalign.networks.network_config import NetworkConfig
from jaxalign.networks.shapes import AnyArray, Encoded, Hidden, SourceHeads, SourceLayers

_kernel_init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
# Fresh parameters under a pretrained T5 begin near what it computes: with a gate that is nearly closed, and most weight on the last layer.
_GATE_BIAS, _LAST_LAYER = -2.0, 3.0

LayerOutputs = Float[AnyArray, "layers rows source emb"]
FusedSources = tuple[SourceLayers, SourceLayers, SourceHeads, SourceHeads]  # keys, values twice


class Affine(nn.Module):
    """A linear map with a bias, sharded over its inputs."""

    features: int
    dtype: jnp.dtype
    initial_bias: float = 0.0

    @nn.compact
    def __call__(self, x: AnyArray) -> AnyArray:
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(_kernel_init, ("embed", None)),
            (x.shape[-1], self.features),
            jnp.float32,
        )
        bias = self.param(
            "bias",
            nn.with_logical_partitioning(nn.initializers.constant(self.initial_bias), ("embed",)),
            (self.features,),
            jnp.float32,
        )
        return jnp.dot(x.astype(self.dtype), kernel.astype(self.dtype)) + bias.astype(self.dtype)


class LayerConcatenation(nn.Module):
    """From the outputs of all layers to what the decoder reads: Z, then E_1..E_S, side by side along the last axis."""

    config: T5Config

    @nn.compact
    def __call__(self, outputs: LayerOutputs) -> Encoded:
        side_by_side = jnp.moveaxis(outputs, 0, 2).reshape(*outputs.shape[1:3], -1)
        dtype = self.config.activation_dtype
        joined = Affine(self.config.emb_dim, dtype, name="projection")(side_by_side)
        return jnp.concatenate([joined, side_by_side], axis=-1)


def last_layer(config: NetworkConfig, encoded: Encoded) -> Hidden:
    """The states of the last layer among what the decoder reads."""
    return encoded[..., -config.emb_dim :] if config.fuses_encoder_layers else encoded


class GatedFusion(nn.Module):
    """What a decoder layer has besides T5's: the attention over Z, its gate, and the weights of the encoder's layers."""

    config: T5Config

    def setup(self) -> None:
        config = self.config
        self.attention = Attention(config)
        self.gate = Affine(config.emb_dim, config.activation_dtype, _GATE_BIAS)
        self.layer_logits = self.param(
            "layer_logits",
            nn.with_logical_partitioning(_layer_logits, (None,)),
            (config.num_encoder_layers,),
            jnp.float32,
        )

    def sources(self, attention: Attention, encoded: Encoded) -> FusedSources:
        """Keys and values of the E_i under `attention`, then those of Z."""
        rows, source, _ = encoded.shape
        emb_dim = self.config.emb_dim
        outputs = encoded[..., emb_dim:].reshape(rows, source, -1, emb_dim)
        outputs = jnp.swapaxes(outputs, 1, 2).reshape(-1, source, emb_dim)
        keys, values = (
            each.reshape(rows, -1, *each.shape[1:]) for each in attention.keys_and_values(outputs)
        )
        return (keys, values, *self.attention.keys_and_values(encoded[..., :emb_dim]))

    def fused(
        self,
        attention: Attention,
        queries: Hidden,
        sources: FusedSources,
        bias: AnyBias,
        *,
        deterministic: bool = True,
    ) -> Hidden:
        """``G + F``."""
        keys, values, joined_keys, joined_values = sources
        dtype = self.config.activation_dtype
        # Rounded first, as decoding rounds parameters once for all positions.
        weights = jax.nn.softmax(self.layer_logits.astype(dtype).astype(jnp.float32)).astype(dtype)
        fine = attention.attend_mixture(
            queries, keys, values, bias, weights, deterministic=deterministic
        )
        coarse = self.attention.attend(
            queries, joined_keys, joined_values, bias, deterministic=deterministic
        )
        return fine + jax.nn.sigmoid(self.gate(coarse)) * coarse


def _layer_logits(key: PRNGKeyArray, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    del key
    return jnp.zeros(shape, dtype).at[-1].set(_LAST_LAYER)
