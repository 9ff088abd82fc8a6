"""T5Gemma in Hugging Face's transformers: names and layouts of parameters, and ``config.json``. Every field is applied or refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jaxalign.interop.config_fields import boolean, integer, items, mapping, number, require_known
from jaxalign.interop.huggingface import Pair
from jaxalign.networks.gemma_config import GemmaConfig, Stack
from jaxalign.networks.t5gemma_config import GemmaStack, T5GemmaConfig

MODEL_TYPE = "t5gemma"
HEAD, DECODER_TABLE = "lm_head.out_proj.weight", "model.decoder.embed_tokens.weight"
TOKEN_IDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
_PROJECTIONS = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "o_proj"}
_MLP = {"wi_0": "gate_proj", "wi_1": "up_proj", "wo": "down_proj"}
KINDS = ("sliding_attention", "full_attention")
ROPE = ("rope_type", "rope_theta", "factor")
_ACTIVATION, _EPSILON = "gelu_pytorch_tanh", 1e-6


def pairs(config: T5GemmaConfig) -> Iterator[Pair]:
    """Yields the path in jaxalign and the name in transformers of every parameter."""
    yield Pair(("token_embedder", "embedding"), "model.encoder.embed_tokens.weight", False)
    yield Pair(("decoder", "token_embedder", "embedding"), DECODER_TABLE, False)
    if not config.logits_via_embedding:
        yield Pair(("decoder", "logits_dense", "kernel"), HEAD, True)
    encoder = {"attention": "self_attn"}
    decoder = {"self_attention": "self_attn", "encoder_decoder_attention": "cross_attn"}
    for stack, count, attentions in (
        ("encoder", config.num_encoder_layers, encoder),
        ("decoder", config.num_decoder_layers, decoder),
    ):
        yield Pair((stack, f"{stack}_norm", "scale"), f"model.{stack}.norm.weight", False)
        for index in range(count):
            layer, theirs = f"layers_{index}", f"model.{stack}.layers.{index}"
            norms = {
                # The first word of our name of a norm is that of theirs.
                ours.replace("encoder_decoder", "cross"): name
                for ours, name in attentions.items()
            } | {"mlp": "feedforward"}
            yield from layer_pairs((stack, layer), theirs, attentions, norms)


def layer_pairs(
    layer: tuple[str, ...], theirs: str, attentions: Mapping[str, str], norms: Mapping[str, str]
) -> Iterator[Pair]:
    """Yields the parameters of a layer of T5Gemma or T5Gemma 2.

    Args:
      layer: its path in jaxalign.
      theirs: its name in transformers.
      attentions: the names of its attentions, from ours to theirs.
      norms: the same of the blocks that have a norm before and behind them.
    """
    for ours, name in norms.items():
        for side in ("pre", "post"):
            path = (*layer, f"{side}_{ours}_layer_norm", "scale")
            yield Pair(path, f"{theirs}.{side}_{name}_layernorm.weight", False)
    for ours, name in attentions.items():
        for part, projection in _PROJECTIONS.items():
            yield Pair((*layer, ours, part, "kernel"), f"{theirs}.{name}.{projection}.weight", True)
    for part, projection in _MLP.items():
        yield Pair((*layer, "mlp", part, "kernel"), f"{theirs}.mlp.{projection}.weight", True)


def copies(config: T5GemmaConfig) -> dict[str, str]:
    """Returns the names of tensors that a folder may hold besides those of `pairs`, and of those that they equal."""
    return {HEAD: DECODER_TABLE} if config.logits_via_embedding else {}


def config_from_huggingface(fields: Mapping[str, Any], **changes: Any) -> T5GemmaConfig:
    """Returns the `T5GemmaConfig` of a parsed ``config.json``.

    Args:
      fields: the parsed JSON object.
      **changes: fields of `T5GemmaConfig` that the file does not determine, such as ``dtype`` and ``scan_layers``.

    Raises:
      ValueError: the file does not describe a T5Gemma, or describes one with features that jaxalign does not have.
    """
    require(fields, "is_encoder_decoder", True, "as in every T5Gemma")
    check_token_ids(fields)
    for stack in ("encoder", "decoder"):
        if not isinstance(fields.get(stack), Mapping):
            raise ValueError(f"{stack} is {fields.get(stack)!r}, not an object with its sizes.")
        check_token_ids(fields[stack])
    encoder, decoder = fields["encoder"], fields["decoder"]
    width = decoder.get("cross_attention_hidden_size")
    encoder_width = _integer(encoder, "hidden_size", "encoder")
    if width is not None and width != encoder_width:
        raise ValueError(
            f"decoder.cross_attention_hidden_size is {width!r}, and the encoder's width {encoder_width}."
        )
    sizes = {
        name: _integer(stack, "vocab_size", name)
        for name, stack in (("encoder", encoder), ("decoder", decoder))
    }
    if sizes["encoder"] != sizes["decoder"]:
        raise ValueError(
            f"encoder.vocab_size is {sizes['encoder']} and decoder.vocab_size {sizes['decoder']}; jaxalign has one vocabulary for both."
        )
    return T5GemmaConfig(
        vocab_size=sizes["decoder"],
        encoder=_stack(encoder, "encoder"),
        decoder=_stack(decoder, "decoder"),
        logits_via_embedding=is_tied(fields),
        logits_soft_cap=_cap(decoder, "final_logit_softcapping", "decoder"),
        start_token=TOKEN_IDS["bos_token_id"],
    ).replace(**changes)


def is_tied(fields: Mapping[str, Any]) -> bool:
    """Returns whether the head is the decoder's embedding table."""
    return boolean(fields, "tie_word_embeddings", True)


def check_token_ids(fields: Mapping[str, Any]) -> None:
    """Refuses ids of padding, end and start that differ from T5Gemma's. Instruction-tuned ones also end at a second token.

    Raises:
      ValueError: an id differs; the message names the field.
    """
    for name, expected in TOKEN_IDS.items():
        given = fields.get(name)
        several = isinstance(given, list) and expected in given
        if given is not None and given != expected and not several:
            raise ValueError(
                f"{name} is {given!r}; jaxalign reads T5Gemma's tokens, where it is {expected}."
            )


def config_to_huggingface(config: T5GemmaConfig, dtype: str = "float32") -> dict[str, Any]:
    """Returns the content of a ``config.json`` for transformers' `T5GemmaForConditionalGeneration`.

    Raises:
      ValueError: transformers has no such T5Gemma.
    """
    if config.start_token != TOKEN_IDS["bos_token_id"]:
        raise ValueError(
            f"start_token is {config.start_token}; a T5Gemma of transformers starts with {TOKEN_IDS['bos_token_id']}."
        )
    stacks = {name: _stack_fields(config, name) for name in ("encoder", "decoder")}
    stacks["decoder"]["cross_attention_hidden_size"] = config.encoder_width
    return {
        "architectures": ["T5GemmaForConditionalGeneration"],
        "model_type": MODEL_TYPE,
        "vocab_size": config.vocab_size,
        **stacks,
        "tie_word_embeddings": config.logits_via_embedding,
        "dropout_rate": config.dropout_rate,
        "attention_dropout": 0.0,
        "classifier_dropout_rate": 0.0,
        "initializer_range": 0.02,
        "is_encoder_decoder": True,
        **TOKEN_IDS,
        "torch_dtype": dtype,
    }


def sizes_of_stack(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns the fields of `Stack`, and checks what every stack of T5Gemma and T5Gemma 2 has.

    Raises:
      ValueError: the stack has another activation, another epsilon or biases, or a size of a wrong type; the message names `where`.
    """
    require(fields, "hidden_activation", _ACTIVATION, where)
    require(fields, "attention_bias", False, where)
    require(fields, "rms_norm_eps", _EPSILON, where)
    return {
        "emb_dim": _integer(fields, "hidden_size", where),
        "num_heads": _integer(fields, "num_attention_heads", where),
        "num_kv_heads": _integer(fields, "num_key_value_heads", where),
        "head_dim": _integer(fields, "head_dim", where),
        "mlp_dim": _integer(fields, "intermediate_size", where),
        "num_layers": _integer(fields, "num_hidden_layers", where),
        "query_pre_attn_scalar": number(
            fields, "query_pre_attn_scalar", where, _DEFAULTS["query_pre_attn_scalar"]
        ),
        "sliding_window": _integer(fields, "sliding_window", where),
    }


def _stack(fields: Mapping[str, Any], where: str) -> GemmaStack:
    sizes = sizes_of_stack(fields, where)
    rope = mapping(fields, "rope_parameters", where)
    require_known(rope, ROPE, f"{where}.rope_parameters")
    require(rope, "rope_type", "default", f"{where}.rope_parameters")
    require(fields, "rope_scaling", None, where)
    kinds = items(fields, "layer_types", where)
    if kinds is not None and (
        len(kinds) != sizes["num_layers"]
        or any(kind != KINDS[index % 2] for index, kind in enumerate(kinds))
    ):
        raise ValueError(
            f"{where}.layer_types is {kinds!r}; jaxalign computes {' and '.join(KINDS)} in turn."
        )
    if "rope_theta" in rope:
        theta = number(rope, "rope_theta", f"{where}.rope_parameters")
    else:
        theta = number(fields, "rope_theta", where, 10000.0)
    return GemmaStack(
        **sizes,
        rope_theta=theta,
        attention_soft_cap=_cap(fields, "attn_logit_softcapping", where),
    )


# What transformers takes for a size that the file leaves out.
_DEFAULTS: dict[str, Any] = {
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}


def _integer(fields: Mapping[str, Any], name: str, where: str) -> int:
    return integer(fields, name, where, _DEFAULTS[name])


def _cap(fields: Mapping[str, Any], name: str, where: str) -> float | None:
    absent = name in fields and fields[name] is None
    return None if absent else number(fields, name, where, _DEFAULTS[name])


def _stack_fields(config: T5GemmaConfig, name: str) -> dict[str, Any]:
    stack: GemmaStack = getattr(config, name)
    return stack_fields(config, stack) | {
        "model_type": "t5_gemma_module",
        "attn_logit_softcapping": stack.attention_soft_cap,
        "rope_parameters": {"rope_theta": stack.rope_theta, "rope_type": "default"},
        "rope_theta": stack.rope_theta,  # for versions before 5
        "max_position_embeddings": 8192,
        "is_decoder": name == "decoder",
        "tie_word_embeddings": config.logits_via_embedding,
    }


def stack_fields(config: GemmaConfig, stack: Stack) -> dict[str, Any]:
    """Returns the fields of ``config.json`` that stacks of T5Gemma and T5Gemma 2 share."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": stack.emb_dim,
        "intermediate_size": stack.mlp_dim,
        "num_hidden_layers": stack.num_layers,
        "num_attention_heads": stack.num_heads,
        "num_key_value_heads": stack.num_kv_heads,
        "head_dim": stack.head_dim,
        "hidden_activation": _ACTIVATION,
        "query_pre_attn_scalar": _whole(stack.query_pre_attn_scalar),
        "sliding_window": stack.sliding_window,
        "layer_types": [KINDS[kind] for kind in stack.kinds],
        "final_logit_softcapping": config.logits_soft_cap,
        "rms_norm_eps": _EPSILON,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "dropout_rate": config.dropout_rate,
        "initializer_range": 0.02,
        "use_cache": True,
        **TOKEN_IDS,
    }


def _whole(number: float) -> float | int:
    """Returns the number as transformers types it, whose field is a whole number."""
    return int(number) if number == int(number) else number


def require(fields: Mapping[str, Any], name: str, expected: Any, where: str) -> None:
    """Raises ValueError if a field is given and has another value."""
    given = fields.get(name)
    if given is not None and given != expected:
        raise ValueError(f"{where}: {name} is {given!r}; jaxalign computes with {expected!r} only.")
