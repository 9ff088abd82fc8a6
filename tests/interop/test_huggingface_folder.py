"""What a Hugging Face folder says of itself is obeyed or refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxalign.errors import UserError
from jaxalign.interop import arrays, huggingface, safetensors
from jaxalign.interop.checkpoint_sources import HUGGING_FACE, open_source
from jaxalign.networks.config import T5Config

CONFIG = T5Config(
    vocab_size=40,
    emb_dim=8,
    num_heads=2,
    head_dim=3,
    mlp_dim=12,
    num_encoder_layers=2,
    num_decoder_layers=3,
)
TIED = CONFIG.replace(logits_via_embedding=True)


@pytest.fixture
def variant(values, make_checkpoint, tmp_path):
    """`variant(name, fields, tensors, base)` writes a folder with some fields and tensors changed; None takes one away."""

    def make(name, fields=(), tensors=(), config=CONFIG, wrap="", generation=None):
        base = Path(make_checkpoint(HUGGING_FACE, values(config), config, name=f"base-{name}"))
        kept, _ = safetensors.read_folder(str(base))
        changed = {wrap + key: tensor for key, tensor in (kept | dict(tensors)).items()}
        changed = {key: tensor for key, tensor in changed.items() if tensor is not None}
        folder = tmp_path / name
        folder.mkdir()
        safetensors.write_folder(str(folder), changed, list(changed))
        described = json.loads((base / "config.json").read_text()) | dict(fields)
        kept_fields = {key: value for key, value in described.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(kept_fields))
        if generation is not None:
            (folder / "generation_config.json").write_text(json.dumps(generation))
        return folder

    return make


def in_memory(folder):
    tensors, _ = safetensors.read_folder(str(folder))
    return {name: arrays.from_numpy(tensor.read()) for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decoder_start_token_id": 5}, "decoder_start_token_id is 5"),
        ({"eos_token_id": 2, "pad_token_id": 1}, "pad_token_id is 1"),
        ({"eos_token_id": [1, 2]}, "eos_token_id is"),
        ({"layer_norm_epsilon": 1e-5}, "layer_norm_epsilon is 1e-05"),
        ({"dense_act_fn": "gelu"}, "dense_act_fn is 'gelu'"),
        ({"is_gated_act": False}, "is_gated_act is False"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder is False"),
        ({"scale_decoder_outputs": True}, "with a head of its own"),
        ({"model_type": ["t5"]}, r"config\.json: model_type is \['t5'\]"),
        ({"num_layers": "two"}, r"config\.json: num_layers is 'two'"),
    ],
)
def test_what_no_t5_here_computes_is_refused(variant, fields, message):
    with pytest.raises(UserError, match=message):
        open_source(variant("changed", fields))


def test_ids_of_generation_are_compared_too(variant):
    open_source(variant("same", generation={"eos_token_id": 1, "num_beams": 4}))
    with pytest.raises(UserError, match=r"generation_config\.json: decoder_start_token_id is 3"):
        open_source(variant("other", generation={"decoder_start_token_id": 3}))


def test_only_a_tied_head_is_copied(variant):
    without = {huggingface.HEAD: None}
    with pytest.raises(UserError, match=r"has no lm_head\.weight.*tie_word_embeddings false"):
        open_source(variant("lost", tensors=without))
    tied = {"tie_word_embeddings": True}
    source = open_source(variant("copied", tied, without))
    assert not source.config.logits_via_embedding
    head = source.params["decoder.logits_dense.kernel"].read()
    np.testing.assert_array_equal(head.T, source.params["token_embedder.embedding"].read())


@pytest.mark.parametrize(
    ("version", "own_head", "scaled"),
    [
        ("4.57.1", False, True),
        ("5.24.0", False, False),
        ("5.24.0", True, False),
        (None, False, True),
    ],
)
def test_an_mt5_is_tied_where_its_tensors_are_and_scaled_as_its_version_did(
    variant, version, own_head, scaled
):
    fields = {
        "model_type": "mt5",
        "tie_word_embeddings": True,
        "scale_decoder_outputs": None,
        "transformers_version": version,
    }
    tensors = {} if own_head else {huggingface.HEAD: None}
    source = open_source(variant("mt5", fields, tensors))
    assert source.config.logits_via_embedding == scaled
    table = source.params["token_embedder.embedding"].read()
    if not scaled:
        head = source.params["decoder.logits_dense.kernel"].read().T
        assert np.array_equal(head, table) != own_head


def test_a_t5_of_version_5_says_whether_it_scales(variant):
    tied = {"tie_word_embeddings": True, "transformers_version": "5.24.0"}
    source = open_source(variant("v1_0", tied | {"scale_decoder_outputs": True}, config=TIED))
    assert source.config.logits_via_embedding
    # T5 1.1: always written as tied; the head is its own.
    source = open_source(variant("v1_1", tied | {"scale_decoder_outputs": False}))
    head = source.params["decoder.logits_dense.kernel"].read().T
    assert not np.array_equal(head, source.params["token_embedder.embedding"].read())


def test_a_stale_index_beside_a_whole_file_is_left_out(variant):
    folder = variant("stale")
    index = {"weight_map": {"shared.weight": "model-00001-of-00002.safetensors"}}
    (folder / safetensors.INDEX_FILE).write_text(json.dumps(index))
    source = open_source(folder)
    source.configured(None)
    assert any(text.startswith(safetensors.INDEX_FILE) for text in source.left_out)


@pytest.mark.parametrize(
    "wrap", ["_orig_mod.", "module.", "pretrained_model.", "module._orig_mod."]
)
def test_prefixes_of_wrappers_are_taken_off_and_said(variant, wrap):
    folder = variant("wrapped", wrap=wrap)
    if wrap == "pretrained_model.":
        tensors = in_memory(folder)
        tensors["v_head.summary.weight"] = arrays.from_numpy(np.ones((1, 8), np.float32))
        safetensors.write_folder(str(folder), tensors, list(tensors))
    source = open_source(folder)
    source.configured(None)
    assert wrap.split(".")[0] + ". (" in source.left_out[-1]
    assert any("v_head" in text for text in source.left_out) == (wrap == "pretrained_model.")


def test_a_folder_of_tensors_under_two_prefixes_is_refused(variant):
    folder = variant("twice", wrap="module.")
    tensors = in_memory(folder)
    tensors["shared.weight"] = tensors["module.shared.weight"]
    safetensors.write_folder(str(folder), tensors, list(tensors))
    with pytest.raises(UserError, match=r"shared\.weight with and without the prefix module\."):
        open_source(folder)
