"""Families of encoder-decoders by the class of their configuration: the one place that says which modules compute a network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from jaxalign.errors import UserError
from jaxalign.networks import gemma_incremental, incremental, t5gemma, t5gemma2
from jaxalign.networks.blocks import Embedding
from jaxalign.networks.config import T5Config
from jaxalign.networks.distributions import Projection
from jaxalign.networks.network_config import NetworkConfig
from jaxalign.networks.shapes import Params
from jaxalign.networks.t5 import Encoder, EncoderDecoder
from jaxalign.networks.t5gemma2_config import T5Gemma2Config
from jaxalign.networks.t5gemma_config import T5GemmaConfig


@dataclasses.dataclass(frozen=True)
class Architecture:
    """How a family computes, from its configuration and parameters.

    Attributes:
      module: the Flax module of a configuration, with the methods ``encode``, ``encode_for_decoder``, ``decode`` and ``embed`` of
        `t5.EncoderDecoder`. Its parameters are ``token_embedder``, ``encoder`` and ``decoder``.
      embedding: the module that embeds prompts, of a configuration and a name.
      encoder: the module that encodes embedded prompts, of a configuration and a name.
      projection: the vocabulary projection, from the parameters.
      read_prompts, empty_cache, next_states, next_states_in_ring: one target position at a time, as in `networks.incremental`.
    """

    module: Callable[[Any], nn.Module]
    embedding: Callable[..., nn.Module]
    encoder: Callable[..., nn.Module]
    projection: Callable[[Any, Params], Projection]
    read_prompts: Callable[..., Any]
    empty_cache: Callable[..., Any]
    next_states: Callable[..., Any]
    next_states_in_ring: Callable[..., Any]


def _t5_projection(config: T5Config, params: Params) -> Projection:
    if config.logits_via_embedding:
        return Projection(params["token_embedder"]["embedding"].T, config.emb_dim**-0.5)
    return Projection(params["decoder"]["logits_dense"]["kernel"])


T5 = Architecture(
    module=EncoderDecoder,
    embedding=Embedding,
    encoder=Encoder,
    projection=_t5_projection,
    read_prompts=incremental.read_prompts,
    empty_cache=incremental.empty_cache,
    next_states=incremental.next_states,
    next_states_in_ring=incremental.next_states_in_ring,
)
T5GEMMA = Architecture(
    module=t5gemma.GemmaEncoderDecoder,
    embedding=t5gemma.encoder_embedding,
    encoder=t5gemma.GemmaEncoder,
    projection=t5gemma.projection,
    read_prompts=gemma_incremental.T5GEMMA.read_prompts,
    empty_cache=gemma_incremental.empty_cache,
    next_states=gemma_incremental.T5GEMMA.next_states,
    next_states_in_ring=gemma_incremental.T5GEMMA.next_states_in_ring,
)
T5GEMMA2 = Architecture(
    module=t5gemma2.T5Gemma2EncoderDecoder,
    embedding=t5gemma2.shared_embedding,
    encoder=t5gemma.GemmaEncoder,
    projection=t5gemma2.projection,
    read_prompts=gemma_incremental.T5GEMMA2.read_prompts,
    empty_cache=gemma_incremental.empty_cache,
    next_states=gemma_incremental.T5GEMMA2.next_states,
    next_states_in_ring=gemma_incremental.T5GEMMA2.next_states_in_ring,
)
ARCHITECTURES: dict[type[NetworkConfig], Architecture] = {}


def register(config: type[NetworkConfig], architecture: Architecture) -> None:
    """Makes a family known by the class of its configurations.

    Raises:
      ValueError: another class has the same name of a family.
    """
    other = {known.family: known for known in ARCHITECTURES}.get(config.family, config)
    if other is not config:
        raise ValueError(f"the family {config.family!r} is registered already, by {other}")
    ARCHITECTURES[config] = architecture


register(T5Config, T5)
register(T5GemmaConfig, T5GEMMA)
register(T5Gemma2Config, T5GEMMA2)


def architecture_of(config: NetworkConfig) -> Architecture:
    """The architecture of a configuration."""
    if type(config) not in ARCHITECTURES:
        raise UserError(
            f"no family of networks has the configuration {type(config).__name__}; register it (docs/adding_a_network.md)"
        )
    return ARCHITECTURES[type(config)]


def config_class(described: Mapping[str, Any]) -> type[NetworkConfig]:
    """The class of a configuration that a run folder describes; T5's if it names no family.

    Raises:
      ValueError: the family is unknown.
    """
    families = {known.family: known for known in ARCHITECTURES}
    family = described.get("family", T5Config.family)
    if family not in families:
        raise ValueError(
            f"its family is {family!r}; known: {', '.join(families)}. A family of your own is known once its module is imported"
        )
    return families[family]


def config_from_dict(described: Mapping[str, Any]) -> NetworkConfig:
    """Inverse of `NetworkConfig.described`.

    Raises:
      ValueError: the family or a field is unknown, or a field is missing or out of range.
    """
    fields = {name: value for name, value in described.items() if name != "family"}
    return config_class(described).from_dict(fields)
