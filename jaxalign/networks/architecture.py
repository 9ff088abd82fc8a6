"""Families of encoder-decoders by the class of their configuration: the one place that says which module computes a `Policy`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from jaxalign.networks import incremental
from jaxalign.networks.config import T5Config
from jaxalign.networks.shapes import Kernel, Params
from jaxalign.networks.t5 import EncoderDecoder


@dataclasses.dataclass(frozen=True)
class Architecture:
    """How a family computes, from its configuration and parameters.

    Attributes:
      module: the Flax module of a configuration, with the methods ``encode``, ``decode`` and ``embed`` of `t5.EncoderDecoder`.
      projection: the vocabulary projection and the factor on its logits.
      read_prompts, empty_cache, next_states, next_states_in_ring: one target position at a time, as in `networks.incremental`.
    """

    module: Callable[[Any], nn.Module]
    projection: Callable[[Any, Params], tuple[Kernel, float]]
    read_prompts: Callable[..., Any]
    empty_cache: Callable[..., Any]
    next_states: Callable[..., Any]
    next_states_in_ring: Callable[..., Any]


def _t5_projection(config: T5Config, params: Params) -> tuple[Kernel, float]:
    if config.logits_via_embedding:
        return params["token_embedder"]["embedding"].T, config.emb_dim**-0.5
    return params["decoder"]["logits_dense"]["kernel"], 1.0


ARCHITECTURES: dict[type, Architecture] = {
    T5Config: Architecture(
        module=EncoderDecoder,
        projection=_t5_projection,
        read_prompts=incremental.read_prompts,
        empty_cache=incremental.empty_cache,
        next_states=incremental.next_states,
        next_states_in_ring=incremental.next_states_in_ring,
    )
}


def architecture_of(config: Any) -> Architecture:
    """The architecture of a configuration."""
    return ARCHITECTURES[type(config)]
