"""Converts T5 parameters between jaxalign's (T5X's) tree and the names and layouts of Hugging Face transformers.

The functions only rename and transpose arrays; the caller reads and writes files. Both directions are strict: a parameter that is
missing, left over or of the wrong shape raises an error that names it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxalign.networks.config import T5Config
from jaxalign.networks.policy import Policy
from jaxalign.networks.shapes import Params
from jaxalign.networks.stacking import stack_layers, unstack_layers

SHARED, HEAD = "shared.weight", "lm_head.weight"
# Copies of the shared table, under the names of the modules that use it.
ALIASES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# Files that were made from the first T5 checkpoints contain this table, which no T5 reads.
UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
_PROJECTIONS = {"query": "q", "key": "k", "value": "v", "out": "o"}


class Pair(NamedTuple):
    """A parameter's path in jaxalign, its name in transformers, and whether one is the transpose of the other."""

    path: tuple[str, ...]
    name: str
    transposed: bool


def from_huggingface(
    state_dict: Mapping[str, np.ndarray], config: T5Config, *, tied: bool = False
) -> Params:
    """Returns parameters from a state dict of NumPy arrays, in the layout (scanned or not) that `config` specifies.

    Args:
      state_dict: the arrays by transformers' names.
      config: the configuration of the network.
      tied: whether the head equals the embedding table although `config` has a separate head (tied logits without scaling). The table
        is then copied if the head is missing.

    Raises:
      ValueError: a parameter is missing, unknown, or has another shape than `config` specifies.
    """
    remaining = dict(state_dict)
    for alias in ALIASES:
        _drop_copy(remaining, alias)
    if config.logits_via_embedding:
        _drop_copy(remaining, HEAD)
    elif tied and HEAD not in remaining and SHARED in remaining:
        remaining[HEAD] = remaining[SHARED]

    expected = Policy(config.replace(scan_layers=False)).abstract_params()
    params: Params = {}
    for pair in pairs(config):
        if pair.name not in remaining:
            raise ValueError(
                f"The state dict has no {pair.name}, which {'.'.join(pair.path)} needs."
            )
        array = np.asarray(remaining.pop(pair.name)).astype(np.float32)
        if pair.transposed:
            array = array.T
        shape = _get(expected, pair.path).shape
        if array.shape != shape:
            raise ValueError(
                f"{pair.name} gives {'.'.join(pair.path)} the shape {array.shape}, but the configuration says {shape}."
            )
        branch = params
        for key in pair.path[:-1]:
            branch = branch.setdefault(key, {})
        branch[pair.path[-1]] = np.ascontiguousarray(array)
    if remaining:
        raise ValueError(
            f"The state dict has {len(remaining)} parameters that this configuration does not: {', '.join(sorted(remaining)[:5])}."
        )
    return stack_layers(params, axis=config.param_scan_axis) if config.scan_layers else params


def to_huggingface(params: Params, config: T5Config) -> dict[str, np.ndarray]:
    """Returns a state dict of float32 NumPy arrays. This is the inverse of `from_huggingface`.

    Raises:
      ValueError: a parameter is missing or unknown.
    """
    tree = unstack_layers(params, axis=config.param_scan_axis)
    renamed = list(pairs(config))
    paths = {pair.path for pair in renamed}
    unknown = sorted(".".join(path) for path in _paths(tree) if path not in paths)
    if unknown:
        raise ValueError(
            f"Parameters without a place in a Hugging Face T5: {', '.join(unknown[:5])}."
        )
    state_dict = {}
    for pair in renamed:
        array = np.asarray(_get(tree, pair.path), np.float32)
        state_dict[pair.name] = np.ascontiguousarray(array.T if pair.transposed else array)
    return state_dict


def pairs(config: T5Config) -> Iterator[Pair]:
    """Yields the path in jaxalign and the name in transformers of every parameter."""
    path: tuple[str, ...]
    yield Pair(("token_embedder", "embedding"), SHARED, False)
    if not config.logits_via_embedding:
        yield Pair(("decoder", "logits_dense", "kernel"), HEAD, True)
    encoder = (("attention", "SelfAttention", "pre_attention_layer_norm"),)
    decoder = (
        ("self_attention", "SelfAttention", "pre_self_attention_layer_norm"),
        ("encoder_decoder_attention", "EncDecAttention", "pre_cross_attention_layer_norm"),
    )
    for stack, num_layers, attentions in (
        ("encoder", config.num_encoder_layers, encoder),
        ("decoder", config.num_decoder_layers, decoder),
    ):
        yield Pair((stack, f"{stack}_norm", "scale"), f"{stack}.final_layer_norm.weight", False)
        for index in range(num_layers):
            layer = f"layers_{index}"
            table = f"{stack}.block.{index}.layer.0.SelfAttention.relative_attention_bias.weight"
            if config.relative_attention_per_layer:
                yield Pair((stack, layer, "relpos_bias", "rel_embedding"), table, True)
            elif index == 0:
                yield Pair((stack, "relpos_bias", "rel_embedding"), table, True)
            for sublayer, (attention, theirs, norm) in enumerate(attentions):
                block = f"{stack}.block.{index}.layer.{sublayer}"
                yield Pair((stack, layer, norm, "scale"), f"{block}.layer_norm.weight", False)
                for ours, letter in _PROJECTIONS.items():
                    path = (stack, layer, attention, ours, "kernel")
                    yield Pair(path, f"{block}.{theirs}.{letter}.weight", True)
            block = f"{stack}.block.{index}.layer.{len(attentions)}"
            path = (stack, layer, "pre_mlp_layer_norm", "scale")
            yield Pair(path, f"{block}.layer_norm.weight", False)
            for name in _feed_forward_names(config):
                path = (stack, layer, "mlp", name, "kernel")
                yield Pair(path, f"{block}.DenseReluDense.{name}.weight", True)


def _feed_forward_names(config: T5Config) -> list[str]:
    count = len(config.mlp_activations)
    return (["wi"] if count == 1 else [f"wi_{index}" for index in range(count)]) + ["wo"]


def _drop_copy(state_dict: dict[str, np.ndarray], name: str) -> None:
    copy = state_dict.pop(name, None)
    if copy is not None and not np.array_equal(copy, state_dict.get(SHARED, np.empty(0))):
        raise ValueError(
            f"{name} differs from {SHARED}, but this configuration has one table for both."
        )


def _get(tree: Params, path: tuple[str, ...]) -> Any:
    for key in path:
        if key not in tree:
            raise ValueError(f"The parameters have no {'.'.join(path)}.")
        tree = tree[key]
    return tree


def _paths(tree: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if not isinstance(tree, Mapping):
        yield prefix
        return
    for key, branch in tree.items():
        yield from _paths(branch, (*prefix, key))
