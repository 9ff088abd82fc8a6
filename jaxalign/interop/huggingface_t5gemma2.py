"""T5Gemma 2 in Hugging Face's transformers: names and layouts of parameters, and ``config.json``. Every field is applied or refused.

jaxalign reads text only. Folders hold a vision tower besides, which is left out; transformers builds one at random where a folder has none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jaxalign.errors import UserError
from jaxalign.interop.arrays import LazyArray
from jaxalign.interop.config_fields import integer, items, mapping, number, require_known
from jaxalign.interop.huggingface import Pair
from jaxalign.interop.huggingface_t5gemma import (
    KINDS,
    ROPE,
    TOKEN_IDS,
    check_token_ids,
    layer_pairs,
    require,
    sizes_of_stack,
    stack_fields,
)
from jaxalign.networks.gemma_config import FULL, layer_kinds
from jaxalign.networks.t5gemma2_config import Gemma3Stack, T5Gemma2Config

MODEL_TYPE = "t5gemma2"
TABLE, EOI = "model.encoder.embed_tokens.weight", "model.encoder.embed_tokens.eoi_embedding"
_COPIES = {
    "lm_head.out_proj.weight": TABLE,
    "model.decoder.embed_tokens.weight": TABLE,
    "model.decoder.embed_tokens.eoi_embedding": EOI,
}
_VISION = ("model.encoder.vision_tower.", "model.encoder.multi_modal_projector.")
_TEXT = "model.encoder.text_model."
_NORMS = {"attention": "self_attn", "mlp": "feedforward"}
# The smallest tower that transformers builds: text does not read it.
_TOWER = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "image_size": 32,
    "patch_size": 2,
    "vision_use_head": False,
}
# For sliding and for full layers.
_THETAS = (("rope_local_base_freq", 10_000.0), ("rope_theta", 1_000_000.0))
# What transformers takes for other fields that the file leaves out, where T5Gemma has another value or no such field.
_VOCABULARY, _EVERY, _EOI_TOKEN = 262_208, 6, 256_000


def pairs(config: T5Gemma2Config) -> Iterator[Pair]:
    """Yields the path in jaxalign and the name in transformers of every parameter."""
    yield Pair(("token_embedder", "embedding"), TABLE, False)
    yield Pair(("token_embedder", "eoi_embedding"), EOI, False)
    for stack in ("encoder", "decoder"):
        yield Pair((stack, f"{stack}_norm", "scale"), f"model.{stack}.norm.weight", False)
        for index in range(config.stack(stack).num_layers):
            layer, theirs = (stack, f"layers_{index}"), f"model.{stack}.layers.{index}"
            yield from layer_pairs(layer, theirs, {"attention": "self_attn"}, _NORMS)
            for ours, name in (("query_norm", "q_norm"), ("key_norm", "k_norm")):
                path = (*layer, "attention", ours, "scale")
                yield Pair(path, f"{theirs}.self_attn.{name}.weight", False)


def copies(config: T5Gemma2Config) -> dict[str, str]:
    """Returns the names of tensors that a folder may hold besides those of `pairs`, and of those that they equal."""
    del config  # the same for all
    return _COPIES


def text_tensors(
    folder: str, tensors: dict[str, LazyArray], unused: list[str]
) -> dict[str, LazyArray]:
    """Returns the tensors of the text network by the names of `pairs` and `copies`, and adds what is left out to `unused`.

    Released folders and those of transformers 5.24 have the encoder's parameters in ``model.encoder``; transformers itself, in
    ``model.encoder.text_model``.

    Raises:
      UserError: the folder has a tensor under both names.
    """
    vision = [name for name in tensors if name.startswith(_VISION)]
    if vision:
        unused.append(
            f"{len(vision)} tensors of the vision tower ({_VISION[0]}* and {_VISION[1]}*: jaxalign reads text only)"
        )
    found = {}
    for name, tensor in tensors.items():
        if name.startswith(_VISION):
            continue
        ours = f"model.encoder.{name.removeprefix(_TEXT)}" if name.startswith(_TEXT) else name
        if ours != name and ours in tensors:
            raise UserError(f"{folder} has {name} and {ours}, which are names of one tensor")
        found[ours] = tensor
    return found


def config_from_huggingface(fields: Mapping[str, Any], **changes: Any) -> T5Gemma2Config:
    """Returns the `T5Gemma2Config` of a parsed ``config.json``.

    Args:
      fields: the parsed JSON object.
      **changes: fields of `T5Gemma2Config` that the file does not determine, such as ``dtype`` and ``scan_layers``.

    Raises:
      ValueError: the file does not describe a T5Gemma 2, or describes one with features that jaxalign does not have.
    """
    require(fields, "is_encoder_decoder", True, "as in every T5Gemma 2")
    outer, decoder = _inner(fields, "encoder"), _inner(fields, "decoder")
    encoder = _inner(outer, "text_config")
    for name, part in (
        ("config", fields),
        ("encoder", outer),
        ("encoder.text_config", encoder),
        ("decoder", decoder),
    ):
        check_token_ids(part)
        require(part, "tie_word_embeddings", True, name)
    sizes = [
        integer(part, "vocab_size", where, _VOCABULARY)
        for where, part in (("encoder.text_config", encoder), ("decoder", decoder))
    ]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"encoder.text_config.vocab_size is {sizes[0]} and decoder.vocab_size {sizes[1]}; one table serves both."
        )
    capped = decoder.get("final_logit_softcapping") is not None
    return T5Gemma2Config(
        vocab_size=sizes[1],
        encoder=_stack(encoder, "encoder.text_config"),
        decoder=_stack(decoder, "decoder"),
        logits_soft_cap=number(decoder, "final_logit_softcapping", "decoder") if capped else None,
        start_token=TOKEN_IDS["bos_token_id"],
        eoi_token=integer(outer, "eoi_token_index", "encoder", _EOI_TOKEN),
    ).replace(**changes)


def config_to_huggingface(config: T5Gemma2Config, dtype: str = "float32") -> dict[str, Any]:
    """Returns the content of a ``config.json`` for transformers' `T5Gemma2ForConditionalGeneration`.

    Raises:
      ValueError: transformers has no such T5Gemma 2.
    """
    if config.start_token != TOKEN_IDS["bos_token_id"]:
        raise ValueError(
            f"start_token is {config.start_token}; a T5Gemma 2 of transformers starts with {TOKEN_IDS['bos_token_id']}."
        )
    for stack in (config.encoder, config.decoder):
        if config.emb_dim % stack.num_heads:
            raise ValueError(
                f"emb_dim is {config.emb_dim}; transformers wants a multiple of num_heads={stack.num_heads}."
            )
    shared = {"dropout_rate": config.dropout_rate, "attention_dropout": 0.0}
    return {
        "architectures": ["T5Gemma2ForConditionalGeneration"],
        "model_type": MODEL_TYPE,
        "vocab_size": config.vocab_size,
        "encoder": {
            "model_type": "t5gemma2_encoder",
            "text_config": {"model_type": "t5gemma2_text"} | _stack_fields(config, "encoder"),
            "vision_config": _TOWER,
            "mm_tokens_per_image": 256,
            "boi_token_index": 255_999,
            "eoi_token_index": config.eoi_token,
            "image_token_index": 256_001,
            "tie_word_embeddings": True,
        },
        "decoder": {"model_type": "t5gemma2_decoder"} | _stack_fields(config, "decoder"),
        "eoi_token_index": config.eoi_token,
        "image_token_index": 256_001,
        "tie_word_embeddings": True,
        **shared,
        "classifier_dropout_rate": 0.0,
        "initializer_range": 0.02,
        "is_encoder_decoder": True,
        **TOKEN_IDS,
        "torch_dtype": dtype,
    }


def _inner(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    inner = fields.get(name)
    if not isinstance(inner, Mapping):
        raise ValueError(f"{name} is {inner!r}, not an object with its sizes.")
    return inner


def _stack(fields: Mapping[str, Any], where: str) -> Gemma3Stack:
    # transformers reads the cap of attention scores and computes without it.
    require(fields, "attn_logit_softcapping", None, where)
    require(fields, "use_bidirectional_attention", False, where)
    near, far = _ropes(fields, where)
    places = [f"{where}.rope_parameters.{kind}" for kind in KINDS]
    require(near, "rope_type", "default", places[0])
    require(fields, "rope_scaling", None, where)
    if far["rope_type"] not in ("default", "linear"):
        raise ValueError(
            f"{places[1]}: rope_type is {far['rope_type']!r}; jaxalign has 'default' and 'linear'."
        )
    sizes = sizes_of_stack(fields, where)
    return Gemma3Stack(
        **sizes,
        full_every=_full_every(fields, sizes["num_layers"], where),
        rope_theta=number(far, "rope_theta", places[1]),
        rope_factor=number(far, "factor", places[1]) if far["rope_type"] == "linear" else 1.0,
        local_rope_theta=number(near, "rope_theta", places[0]),
    )


def _ropes(fields: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """Returns the rotary positions of sliding and of full layers. A base that they lack is a field of the stack, as in Gemma 3."""
    ropes = mapping(fields, "rope_parameters", where)
    require_known(ropes, KINDS, f"{where}.rope_parameters")
    found = []
    for kind, (name, theta) in zip(KINDS, _THETAS, strict=True):
        rope = mapping(ropes, kind, f"{where}.rope_parameters")
        require_known(rope, ROPE, f"{where}.rope_parameters.{kind}")
        missing = {} if "rope_theta" in rope else {"rope_theta": number(fields, name, where, theta)}
        found.append({"rope_type": "default", **missing, **rope})
    return found


def _full_every(fields: Mapping[str, Any], num_layers: int, where: str) -> int:
    given = items(fields, "layer_types", where)
    if given is None:
        return integer(fields, "sliding_window_pattern", where, _EVERY)
    every = given.index(KINDS[FULL]) + 1 if KINDS[FULL] in given else max(_EVERY, num_layers + 1)
    expected = [KINDS[kind] for kind in layer_kinds(len(given), every)]
    if len(given) != num_layers or given != expected:
        raise ValueError(
            f"{where}.layer_types is {given!r}; jaxalign computes one {KINDS[FULL]} every so many layers."
        )
    return every


def _stack_fields(config: T5Gemma2Config, name: str) -> dict[str, Any]:
    stack: Gemma3Stack = getattr(config, name)
    linear = {"rope_type": "linear", "factor": stack.rope_factor}
    scaling = {"rope_type": "default"} if stack.rope_factor == 1 else linear
    return stack_fields(config, stack) | {
        "rope_parameters": {
            KINDS[0]: {"rope_theta": stack.local_rope_theta, "rope_type": "default"},
            KINDS[1]: {"rope_theta": stack.rope_theta, **scaling},
        },
        "max_position_embeddings": 131_072,
    }
