"""Defines the parameters of a network, layer by layer with T5X's dotted names, and infers a T5's configuration from them."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jaxalign.errors import UserError
from jaxalign.interop.arrays import (
    LastRead,
    LazyArray,
    layers,
    put,
    reading_order,
    stacked,
)
from jaxalign.networks.config import T5Config
from jaxalign.networks.network_config import NetworkConfig
from jaxalign.networks.policy import Policy
from jaxalign.networks.stacking import STACKS, stacked_name

EMBEDDING, HEAD = "token_embedder.embedding", "decoder.logits_dense.kernel"
_QUERY = "encoder.layers_0.attention.query.kernel"
_LAYER = re.compile(r"(encoder|decoder)\.layers_(\d+)\.(.+)")
# The fields that identify a T5 checkpoint of another system.
_IDENTITY = (
    "vocab_size",
    "emb_dim",
    "num_heads",
    "head_dim",
    "mlp_dim",
    "num_encoder_layers",
    "num_decoder_layers",
    "mlp_activations",
    "logits_via_embedding",
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
)


def identity(config: NetworkConfig | None) -> dict[str, Any]:
    """Returns what identifies the network of a checkpoint of another system; of T5, always the same fields."""
    if config is not None and not isinstance(config, T5Config):
        return config.described()
    fields = {} if config is None else config.to_dict()
    described = {name: fields.get(name) for name in _IDENTITY}
    if fields.get("relative_attention_per_layer"):
        described["relative_attention_per_layer"] = True
    return described


def shapes(config: NetworkConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter of an unrolled network, by its dotted name."""
    return dict(_shapes(config))


@functools.lru_cache(maxsize=16)
def _shapes(config: NetworkConfig) -> dict[str, tuple[int, ...]]:
    # A scanned network is traced only once for all layers.
    counts = (config.num_encoder_layers, config.num_decoder_layers)
    whole = not any(count % max(1, len(config.LAYER_CYCLE)) for count in counts)
    tree = Policy(config.replace(scan_layers=whole, param_scan_axis=0)).abstract_params()
    found: dict[str, tuple[int, ...]] = {}
    for name, leaf in flatten(tree).items():
        stack, _, rest = name.partition(".layers.")
        if not rest:
            found[name] = leaf.shape
            continue
        for number, inside in _numbered(rest, leaf.shape[0], config.LAYER_CYCLE):
            found[f"{stack}.layers_{number}.{inside}"] = leaf.shape[1:]
    return {name: found[name] for name in sorted(found, key=_natural)}


def check(where: str, params: Mapping[str, LazyArray], config: NetworkConfig) -> None:
    """Checks that names and shapes are those of a network.

    Raises:
      UserError: a parameter is missing, unknown, or has another shape; the message names it.
    """
    expected = shapes(config)
    missing = sorted(expected.keys() - params.keys(), key=_natural)
    unknown = sorted(params.keys() - expected.keys(), key=_natural)
    if missing or unknown:
        problems = [
            f"{kind} {_some(names)}"
            for kind, names in (("lacks", missing), ("has, unlike the model,", unknown))
            if names
        ]
        raise UserError(f"{where} {' and '.join(problems)}; is it the right model?")
    for name, shape in expected.items():
        if params[name].shape != shape:
            raise UserError(
                f"{where}: {name} has shape {params[name].shape}, the model expects {shape}; is it the right model?"
            )


def infer_config(where: str, params: Mapping[str, LazyArray]) -> tuple[T5Config, str]:
    """Infers the configuration of a T5 from its parameters; also returns a description of what they do not determine.

    Raises:
      UserError: the parameters are not those of a T5.
    """
    per_layer = "encoder.layers_0.relpos_bias.rel_embedding" in params
    table = f"encoder.{'layers_0.' if per_layer else ''}relpos_bias.rel_embedding"
    needed = (EMBEDDING, table, _QUERY)
    missing = [name for name in needed if name not in params or len(params[name].shape) != 2]
    gated = "encoder.layers_0.mlp.wi_0.kernel" in params
    wi = f"encoder.layers_0.mlp.{'wi_0' if gated else 'wi'}.kernel"
    if missing or wi not in params:
        raise UserError(f"{where} is no T5: it lacks the matrix {(*missing, wi)[0]}")
    vocab_size, emb_dim = params[EMBEDDING].shape
    num_heads, num_buckets = params[table].shape
    joined = params[_QUERY].shape[1]
    if not num_heads or joined % num_heads:
        raise UserError(f"{where}: {joined} columns of {_QUERY} for {num_heads} heads")
    counts = {
        stack: 1
        + max((int(m[2]) for m in map(_LAYER.fullmatch, params) if m and m[1] == stack), default=0)
        for stack in STACKS
    }
    activations = ("gelu", "linear") if gated else ("relu",)
    tied = HEAD not in params
    if max(counts.values()) > len(params):
        raise UserError(f"{where} has a layer {max(counts.values()) - 1}, but {len(params)} arrays")
    try:
        config = T5Config(
            vocab_size=vocab_size,
            emb_dim=emb_dim,
            num_heads=num_heads,
            head_dim=joined // num_heads,
            mlp_dim=params[wi].shape[-1],
            num_encoder_layers=counts["encoder"],
            num_decoder_layers=counts["decoder"],
            mlp_activations=activations,
            logits_via_embedding=tied,
            relative_attention_num_buckets=num_buckets,
            relative_attention_per_layer=per_layer,
        )
    except ValueError as error:
        raise UserError(f"{where} is no T5: {error}") from error
    assumed = (
        f"assumed, because parameters do not say it: activations {'-'.join(activations)} (T5 {'1.1' if gated else '1.0'}), "
        f"relative positions up to {config.relative_attention_max_distance} tokens"
        + ("" if not tied else ", logits of tied embeddings divided by sqrt(emb_dim)")
    )
    return config, assumed


def same_architecture(where: str, theirs: NetworkConfig, ours: NetworkConfig) -> None:
    """Checks that two configurations describe the same computation.

    Raises:
      UserError: the configurations differ; the message names the first difference.
    """
    if type(theirs) is not type(ours):
        raise UserError(
            f"{where} is a {theirs.family}, and the model of this command a {ours.family}; give the --gin_file of models/ that fits"
        )
    for name in ours.COMPUTATION:
        if getattr(theirs, name) != getattr(ours, name):
            raise UserError(
                f"{where} has {name} {getattr(theirs, name)}, and the model of this command {getattr(ours, name)}"
            )


def require_stock(what: str, config: NetworkConfig) -> None:
    """Refuses a network with parts that no network of other systems has.

    Raises:
      UserError: the network is refused; the message names the field.
    """
    for name, stock in config.EXTENSIONS.items():
        value = getattr(config, name)
        if value != stock:
            raise UserError(
                f"{what} has {name} {value!r}, which the T5 of T5X and of transformers does not have: only run folders of jaxalign hold it"
            )


def require_t5x(what: str, config: NetworkConfig) -> None:
    """Refuses a network that T5X's T5 (``t5x.examples.t5``) does not compute.

    Raises:
      UserError: the network is refused.
    """
    if not isinstance(config, T5Config):
        raise UserError(
            f"{what} is a {config.family}, which T5X does not have; run folders and Hugging Face folders hold it"
        )
    require_stock(what, config)
    if config.relative_attention_per_layer:
        raise UserError(
            f"{what} has relative positions in every layer (umT5), which T5X's T5 does not have; run folders and Hugging Face folders do"
        )


def unrolled(
    where: str, params: Mapping[str, LazyArray], axis: int = 1, cycle: tuple[str, ...] = ()
) -> dict[str, LazyArray]:
    """Returns the parameters layer by layer, whether or not the checkpoint stacks them.

    Args:
      where: the checkpoint, for messages.
      params: the parameters with T5X's names. Stacked ones are under ``encoder.layers`` as in jaxalign, or under ``encoder.encoder`` as
        in T5X's scalable T5.
      axis: the position of the layer axis of stacked parameters.
      cycle: `NetworkConfig.LAYER_CYCLE`.

    Raises:
      UserError: a stack's parameters have different numbers of layers.
    """
    last = LastRead()
    flat: dict[str, LazyArray] = {}
    counts: dict[str, int] = {}
    for name, array in params.items():
        match = re.fullmatch(r"(encoder|decoder)\.(?:layers|encoder|decoder)\.(.+)", name)
        if match is None:
            flat[name] = array
            continue
        stack, rest = match.groups()
        # T5X's scalable T5 has two names for the tables of umT5, the first in its source and the other in the public checkpoints.
        rest = rest.replace("relative_posemb.", "relpos_bias.")
        count = array.shape[axis] if len(array.shape) > axis else 0
        if counts.setdefault(stack, count) != count or not count:
            raise UserError(
                f"{where}: {name} has shape {array.shape}, so {count} layers along axis {axis}, unlike others of its stack"
            )
        numbered = _numbered(rest, count, cycle)
        for (number, inside), layer in zip(numbered, layers(array, axis, last), strict=True):
            flat[f"{stack}.layers_{number}.{inside}"] = layer
    return flat


def in_layout(params: Mapping[str, LazyArray], config: NetworkConfig) -> dict[str, LazyArray]:
    """Returns the parameters in the layout of a network of this configuration: layer by layer, or stacked."""
    if not config.scan_layers:
        return dict(params)
    counts = {"encoder": config.num_encoder_layers, "decoder": config.num_decoder_layers}
    found: dict[str, LazyArray] = {}
    for name, array in params.items():
        match = _LAYER.fullmatch(name)
        if match is None:
            found[name] = array
            continue
        stack, rest = match[1], match[3]
        within, place = stacked_name(int(match[2]), config.LAYER_CYCLE)
        if place == 0:
            step = max(1, len(config.LAYER_CYCLE))
            numbers = range(int(match[2]), counts[stack], step)
            parts = [params[f"{stack}.layers_{i}.{rest}"] for i in numbers]
            found[f"{stack}.{within}.{rest}"] = stacked(parts, config.param_scan_axis)
    return found


def put_all(params: Mapping[str, LazyArray], config: NetworkConfig, shardings: Any) -> Any:
    """Reads the parameters of a network one after another, and places them on its devices in float32.

    Args:
      params: the checked parameters, layer by layer.
      config: the configuration of the network, which determines whether layers are stacked.
      shardings: a tree with a sharding for each parameter.
    """
    laid_out = in_layout(params, config)
    places = flatten(shardings)
    flat = {name: put(laid_out[name], np.float32, places[name]) for name in reading_order(laid_out)}
    return nest(flat)


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the leaves of nested dicts by their dotted names."""
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, branch in tree.items():
        flat |= flatten(branch, f"{prefix}.{key}" if prefix else str(key))
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested dicts of leaves with dotted names."""
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        *parents, key = name.split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[key] = leaf
    return tree


def _numbered(name: str, count: int, cycle: tuple[str, ...]) -> list[tuple[int, str]]:
    """Returns the numbers of the layers that a stacked parameter holds, and its name in each of them."""
    if not cycle:
        return [(index, name) for index in range(count)]
    kind, _, inside = name.partition(".")
    if kind not in cycle:
        raise UserError(f"{name} is stacked under {kind!r}, and the layers are {', '.join(cycle)}")
    return [(index * len(cycle) + cycle.index(kind), inside) for index in range(count)]


def _natural(name: str) -> list[Any]:
    """Returns a sort key that puts ``layers_2`` before ``layers_10``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
