"""Converts between a `T5Config` and the ``config.json`` of transformers' T5, mT5 and umT5. Every field is either applied or refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxalign.interop.config_fields import boolean, integer
from jaxalign.networks.config import T5Config

_FEED_FORWARD = {
    "relu": ("relu",),
    "gated-gelu": ("gelu", "linear"),
    "gated-silu": ("silu", "linear"),
}
# The names that transformers uses for the first of the two activations.
_ACTIVATIONS = {"relu": "relu", "gelu": "gelu_new", "silu": "silu"}
# All of jaxalign uses T5's layout of tokens.
TOKEN_IDS = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
EPSILON = 1e-6


def config_from_huggingface(
    fields: Mapping[str, Any], *, head_differs: bool = False, **changes: Any
) -> T5Config:
    """Returns the `T5Config` of a parsed ``config.json``.

    Args:
      fields: the parsed JSON object.
      head_differs: whether the folder has a head that differs from the embedding table. If transformers 5 wrote the file, this is more
        reliable than the file.
      **changes: fields of `T5Config` that the file does not determine, such as ``dtype`` and ``scan_layers``.

    Raises:
      ValueError: the file does not describe a T5, or describes one with features that jaxalign does not have.
    """
    if fields.get("model_type") not in ("t5", "mt5", "umt5"):
        raise ValueError(
            f"model_type is {fields.get('model_type')!r}, not a T5's ('t5', 'mt5' or 'umt5') and not 't5gemma' or 't5gemma2'."
        )
    default = "gated-gelu" if fields["model_type"] == "umt5" else "relu"
    feed_forward = fields.get("feed_forward_proj", default)
    if not isinstance(feed_forward, str) or feed_forward not in _FEED_FORWARD:
        raise ValueError(f"feed_forward_proj is {feed_forward!r}; known: {sorted(_FEED_FORWARD)}.")
    activations = _FEED_FORWARD[feed_forward]
    _require(fields, "dense_act_fn", _ACTIVATIONS[activations[0]], f"with {feed_forward}")
    _require(fields, "is_gated_act", len(activations) > 1, f"with {feed_forward}")
    _require(fields, "layer_norm_epsilon", EPSILON, "as in every T5")
    _require(fields, "is_encoder_decoder", True, "as in every T5")
    check_token_ids(fields)
    layers = integer(fields, "num_layers")
    own_layers = fields.get("num_decoder_layers") is not None
    return T5Config(
        vocab_size=integer(fields, "vocab_size"),
        emb_dim=integer(fields, "d_model"),
        num_heads=integer(fields, "num_heads"),
        head_dim=integer(fields, "d_kv"),
        mlp_dim=integer(fields, "d_ff"),
        num_encoder_layers=layers,
        num_decoder_layers=integer(fields, "num_decoder_layers") if own_layers else layers,
        mlp_activations=activations,
        # Only tied logits are scaled.
        logits_via_embedding=_is_scaled(fields, head_differs),
        relative_attention_num_buckets=integer(
            fields, "relative_attention_num_buckets", default=32
        ),
        relative_attention_max_distance=integer(
            fields, "relative_attention_max_distance", default=128
        ),
        relative_attention_per_layer=fields["model_type"] == "umt5",
    ).replace(**changes)


def check_token_ids(fields: Mapping[str, Any]) -> None:
    """Refuses ids of padding, end and start that differ from T5's, also those of a ``generation_config.json``.

    Raises:
      ValueError: an id differs; the message names the field.
    """
    for name, expected in TOKEN_IDS.items():
        given = fields.get(name)
        if given is not None and given not in (expected, [expected]):
            raise ValueError(
                f"{name} is {given!r}; jaxalign has T5's layout of tokens only, where it is {expected}."
            )


def is_tied(fields: Mapping[str, Any], head_differs: bool = False) -> bool:
    """Returns whether the head is the embedding table.

    transformers 5 writes ``tie_word_embeddings`` true for every mT5 and umT5, although these have a separate head. In this case the
    tensors decide.
    """
    tied = boolean(fields, "tie_word_embeddings", True)
    return tied and not (fields.get("model_type") in ("mt5", "umt5") and head_differs)


def _is_scaled(fields: Mapping[str, Any], head_differs: bool) -> bool:
    """Returns whether logits are divided by sqrt(d_model), as in T5 1.0.

    transformers 5 has a separate field for this, and never scales an mT5. Earlier versions scale all tied logits.
    """
    tied = is_tied(fields, head_differs)
    scaled = tied and not (fields["model_type"] == "mt5" and _major_version(fields) >= 5)
    scaled = boolean(fields, "scale_decoder_outputs", scaled)
    if scaled and not tied:
        raise ValueError(
            "scale_decoder_outputs is true with a head of its own, which no T5 has: only tied logits are scaled."
        )
    return scaled


def _major_version(fields: Mapping[str, Any]) -> int:
    major = str(fields.get("transformers_version", "")).partition(".")[0]
    return int(major) if major.isdecimal() and len(major) < 5 else 0


def _require(fields: Mapping[str, Any], name: str, expected: Any, where: str) -> None:
    given = fields.get(name)
    if given is not None and given != expected:
        raise ValueError(f"{name} is {given!r}; jaxalign computes with {expected!r} only, {where}.")


def config_to_huggingface(config: T5Config, dtype: str = "float32") -> dict[str, Any]:
    """Returns the content of a ``config.json`` for transformers' T5, as which it also reads mT5 and ByT5, or umT5.

    Args:
      config: the configuration of the network.
      dtype: the dtype of the parameters.

    Raises:
      ValueError: transformers has no such T5.
    """
    names = {activations: name for name, activations in _FEED_FORWARD.items()}
    if config.mlp_activations not in names:
        raise ValueError(
            f"transformers has no T5 with mlp_activations {config.mlp_activations}; known: {sorted(names)}."
        )
    per_layer = config.relative_attention_per_layer
    return {
        "architectures": [f"{'UMT5' if per_layer else 'T5'}ForConditionalGeneration"],
        "model_type": "umt5" if per_layer else "t5",
        "vocab_size": config.vocab_size,
        "d_model": config.emb_dim,
        "d_kv": config.head_dim,
        "d_ff": config.mlp_dim,
        "num_heads": config.num_heads,
        "num_layers": config.num_encoder_layers,
        "num_decoder_layers": config.num_decoder_layers,
        "feed_forward_proj": names[config.mlp_activations],
        "dense_act_fn": _ACTIVATIONS[config.mlp_activations[0]],
        "is_gated_act": len(config.mlp_activations) > 1,
        "tie_word_embeddings": config.logits_via_embedding,
        "scale_decoder_outputs": config.logits_via_embedding,
        "relative_attention_num_buckets": config.relative_attention_num_buckets,
        "relative_attention_max_distance": config.relative_attention_max_distance,
        "layer_norm_epsilon": EPSILON,
        "dropout_rate": config.dropout_rate,
        "initializer_factor": 1.0,
        "is_encoder_decoder": True,
        "use_cache": True,
        **TOKEN_IDS,
        "torch_dtype": dtype,
    }
