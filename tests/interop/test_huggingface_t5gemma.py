"""T5Gemma gives the numbers of transformers, and its folders go in and out without a change."""

import json
import shutil

import numpy as np
import pytest

from jaxalign.errors import UserError
from jaxalign.interop import huggingface_t5gemma, parameters, safetensors
from jaxalign.interop.checkpoint_sources import HUGGING_FACE, RUN, T5X, open_source
from jaxalign.interop.convert import convert
from tests.fixtures.families import FAMILIES
from tests.fixtures.malformed_fields import FIELDS_OF_A_STACK, WRONG
from tests.fixtures.transformers_golden import assert_equals_transformers

CONFIG = FAMILIES["t5gemma"]


@pytest.fixture(scope="session")
def golden(shared_dir):
    return shared_dir / "goldens" / "huggingface" / "t5gemma"


def test_states_logits_scores_and_greedy_decoding_equal_transformers(golden):
    assert_equals_transformers(golden, scan_layers=True)


def test_a_folder_is_written_again_as_it_was(golden, tmp_path):
    run = str(tmp_path / "run")
    convert(checkpoint=str(golden), output=run, scan_layers=True)
    convert(checkpoint=run, output=str(tmp_path / "hf"), to=HUGGING_FACE)
    expected, _ = safetensors.read_folder(str(golden))
    found, _ = safetensors.read_folder(str(tmp_path / "hf"))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name].read(), tensor.read(), err_msg=name)
    with pytest.raises(UserError, match="is a t5gemma, which T5X does not have"):
        convert(checkpoint=run, output=str(tmp_path / "t5x"), to=T5X)
    tiny = FAMILIES["t5"]
    with pytest.raises(UserError, match="is a t5gemma, and the model of this command a t5"):
        convert(checkpoint=run, output=str(tmp_path / "x"), to=RUN, model=tiny)


@pytest.mark.parametrize("tied", [True, False])
def test_a_configuration_is_written_as_it_is_read(tied):
    config = CONFIG.replace(logits_via_embedding=tied, logits_soft_cap=None)
    fields = huggingface_t5gemma.config_to_huggingface(config)
    again = huggingface_t5gemma.config_from_huggingface(json.loads(json.dumps(fields)))
    assert again == config
    names = {pair.name for pair in huggingface_t5gemma.pairs(config)}
    assert (huggingface_t5gemma.HEAD in names) != tied
    paths = {".".join(pair.path) for pair in huggingface_t5gemma.pairs(config)}
    assert paths == parameters.shapes(config).keys()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"is_encoder_decoder": False}, "is_encoder_decoder is False"),
        ({"bos_token_id": 5}, "bos_token_id is 5"),
        ({"encoder": None}, "encoder is None, not an object"),
        ({"decoder": {"layer_types": ["full_attention"] * 2}}, "decoder.layer_types is"),
        ({"decoder": {"hidden_activation": "silu"}}, "hidden_activation is 'silu'"),
        ({"encoder": {"attention_bias": True}}, "attention_bias is True"),
        ({"encoder": {"vocab_size": 7}}, "one vocabulary for both"),
        ({"encoder": {"rope_parameters": {"rope_type": "linear"}}}, "rope_type is 'linear'"),
        ({"encoder": {"rope_parameters": {"type": "linear"}}}, "rope_parameters has 'type'"),
        ({"decoder": {"cross_attention_hidden_size": 9}}, "cross_attention_hidden_size is 9"),
    ],
)
def test_what_no_t5gemma_here_computes_is_refused(fields, message):
    described = huggingface_t5gemma.config_to_huggingface(CONFIG)
    for name, value in fields.items():
        inside = isinstance(value, dict)
        described[name] = described[name] | value if inside else value
    with pytest.raises(ValueError, match=message):
        huggingface_t5gemma.config_from_huggingface(described)


@pytest.mark.parametrize("name", [*FIELDS_OF_A_STACK, "attn_logit_softcapping", "rope_theta"])
def test_a_field_of_a_wrong_type_is_named(name):
    described = json.loads(json.dumps(huggingface_t5gemma.config_to_huggingface(CONFIG)))
    del described["decoder"]["rope_parameters"]
    for value in WRONG:
        decoder = described["decoder"] | {name: value}
        with pytest.raises(ValueError, match=f"decoder.{name} is ") as caught:
            huggingface_t5gemma.config_from_huggingface(described | {"decoder": decoder})
        assert repr(value) in str(caught.value)
    with pytest.raises(ValueError, match="tie_word_embeddings is 'x', not true or false"):
        huggingface_t5gemma.config_from_huggingface(described | {"tie_word_embeddings": "x"})


def test_an_encoder_without_a_width_has_that_of_transformers():
    described = huggingface_t5gemma.config_to_huggingface(CONFIG)
    del described["encoder"]["hidden_size"]
    described["decoder"]["cross_attention_hidden_size"] = 2304
    assert huggingface_t5gemma.config_from_huggingface(described).encoder_width == 2304


def test_a_tied_head_that_differs_is_refused_and_a_second_end_of_generation_is_not(
    golden, tmp_path
):
    folder = tmp_path / "changed"
    shutil.copytree(golden, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 107]}))
    open_source(folder)
    tensors, _ = safetensors.read_folder(str(golden))
    tensors[huggingface_t5gemma.HEAD] = tensors["model.encoder.embed_tokens.weight"]
    for file in folder.glob("*.safetensors"):
        file.unlink()
    safetensors.write_folder(str(folder), tensors, list(tensors))
    with pytest.raises(UserError, match=r"lm_head\.out_proj\.weight differs from model\.decoder"):
        open_source(folder)
