"""Floating-point operations of matrix products: of a network's parts by formula, of a whole step from its jaxpr.

A multiplication with its addition counts as two operations. Operations other than matrix products are not counted; a TPU executes them on
other units, where memory bandwidth limits them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core

from jaxalign.networks.network_config import NetworkConfig, StackSizes


def encoder_flops(config: NetworkConfig, source: int) -> int:
    """Forward operations of the encoder for one row.

    Args:
      config: the network.
      source: tokens of the row.
    """
    sizes = config.stack_sizes("encoder")
    embedding = 2 * source * config.vocab_size * sizes.emb_dim if config.one_hot_embedding else 0
    return embedding + sizes.num_layers * layer_flops(config, source)


def decoder_flops(config: NetworkConfig, source: int, target: int) -> int:
    """Forward operations of the decoder for one row, without the vocabulary projection.

    Args:
      config: the network.
      source: encoder tokens of the row.
      target: decoder tokens of the row.
    """
    sizes = config.stack_sizes("decoder")
    joined, joined_kv = _joined(sizes)
    # Queries and the output at decoder positions; keys and values at encoder positions, and both products with the weights.
    at_targets = 0 if config.merges_attention else 4 * sizes.emb_dim * joined * target
    at_sources = 4 * config.encoder_width * joined_kv * source + 4 * target * source * joined
    cross, concatenation = at_targets + at_sources, 0
    if config.fuses_encoder_layers:
        gate = 2 * target * config.emb_dim**2
        cross = 2 * at_targets + (config.num_encoder_layers + 1) * at_sources + gate
        concatenation = 2 * source * config.num_encoder_layers * config.emb_dim**2
    embedding = 2 * target * config.vocab_size * sizes.emb_dim if config.one_hot_embedding else 0
    layers = sizes.num_layers * (layer_flops(config, target, "decoder") + cross)
    return embedding + concatenation + layers


def logits_flops(config: NetworkConfig, target: int) -> int:
    """Forward operations of the vocabulary projection for one row of `target` tokens."""
    return 2 * target * config.emb_dim * config.vocab_size


def layer_flops(config: NetworkConfig, length: int, stack: str = "encoder") -> int:
    """Forward operations of self-attention and feed-forward of one layer for one row; windows save none."""
    sizes = config.stack_sizes(stack)
    joined, joined_kv = _joined(sizes)
    projections = 4 * length * sizes.emb_dim * (joined + joined_kv)
    attention = 4 * length * length * joined
    return projections + attention + _mlp_flops(sizes, length)


def _joined(sizes: StackSizes) -> tuple[int, int]:
    """The widths of all heads of queries, and of all heads of keys."""
    return sizes.num_heads * sizes.head_dim, sizes.num_kv_heads * sizes.head_dim


def count_flops(function: Callable[..., Any], *arguments: Any) -> float:
    """Counts the operations of all matrix products in a function; the body of a scan counts as often as it runs.

    The count includes differentiation, recomputation and frozen networks. Of the branches of a condition, the most expensive one counts.

    Args:
      function: any JAX function, for example a training step.
      *arguments: arrays or their shapes.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _mlp_flops(sizes: StackSizes, length: int) -> int:
    return 2 * length * sizes.emb_dim * sizes.mlp_dim * (sizes.mlp_branches + 1)


def _count(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "dot_general":
            total += _dot_flops(equation)
        elif name == "scan":
            total += parameters["length"] * _count(parameters["jaxpr"].jaxpr)
        elif name == "cond":
            total += max(_count(branch.jaxpr) for branch in parameters["branches"])
        else:
            total += sum(_count(inner) for inner in _inner_jaxprs(parameters))
    return total


def _dot_flops(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[d] for d in contracted)


def _inner_jaxprs(parameters: dict[str, Any]) -> list[Any]:
    """The jaxprs among the parameters of an equation."""
    found = []
    for value in parameters.values():
        for item in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(item, jax.extend.core.ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, jax.extend.core.Jaxpr):
                found.append(item)
    return found


def parts(config: NetworkConfig, rows: int, source: int, target: int) -> dict[str, float]:
    """Forward operations of a batch by part of the network."""
    return {
        "encoder": float(rows * encoder_flops(config, source)),
        "decoder": float(rows * decoder_flops(config, source, target)),
        "logits": float(rows * logits_flops(config, target)),
    }
