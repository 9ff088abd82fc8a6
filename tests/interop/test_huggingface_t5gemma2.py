"""T5Gemma 2 gives the numbers of transformers for text, and its folders go in and out; the vision tower is left out and named."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxalign.errors import UserError
from jaxalign.interop import huggingface_folder, huggingface_t5gemma2, parameters, safetensors
from jaxalign.interop.checkpoint_sources import HUGGING_FACE, open_source
from jaxalign.interop.convert import convert
from jaxalign.networks.t5gemma2_config import Gemma3Stack, T5Gemma2Config
from tests.fixtures.families import FAMILIES
from tests.fixtures.malformed_fields import FIELDS_OF_A_STACK, WRONG
from tests.fixtures.transformers_golden import assert_equals_transformers

CONFIG = FAMILIES["t5gemma2"]
FLAT = {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5}
GOLDEN = Path(__file__).resolve().parents[1] / "goldens" / "huggingface_t5gemma2"


def of_text(tensors):
    return {
        name: tensor
        for name, tensor in tensors.items()
        if "vision" not in name and "multi_modal" not in name
    }


def with_field(path, value):
    """The fields of `CONFIG`, one of them changed."""
    fields = json.loads(json.dumps(huggingface_t5gemma2.config_to_huggingface(CONFIG)))
    branch = fields
    for name in path[:-1]:
        branch = branch[name]
    branch[path[-1]] = value
    return fields


def rewritten(folder, change):
    """The golden's folder with other tensors."""
    shutil.copytree(GOLDEN, folder)
    tensors = change(safetensors.read_folder(str(GOLDEN))[0])
    (folder / "model.safetensors").unlink()
    safetensors.write_folder(str(folder), tensors, list(tensors))
    return folder


@pytest.mark.parametrize("scan_layers", [False, True])
def test_states_logits_scores_and_greedy_decoding_equal_transformers(scan_layers):
    assert_equals_transformers(GOLDEN, scan_layers=scan_layers)


def test_the_configuration_is_that_of_the_file():
    config, _ = open_source(GOLDEN).configured(None)
    shared = {"rope_theta": 1e6, "rope_factor": 8.0, "local_rope_theta": 1e4}
    assert config == T5Gemma2Config(
        vocab_size=64,
        encoder=Gemma3Stack(16, 4, 2, 6, 32, 3, 10.0, 4, full_every=2, **shared),
        decoder=Gemma3Stack(16, 4, 2, 6, 32, 4, 10.0, 3, full_every=3, **shared),
        eoi_token=60,
    )


def test_the_text_of_a_folder_is_written_again_as_it_was_and_the_vision_tower_is_named(tmp_path):
    run, out = str(tmp_path / "run"), tmp_path / "hf"
    convert(checkpoint=str(GOLDEN), output=run, scan_layers=True)
    convert(checkpoint=run, output=str(out), to=HUGGING_FACE)
    expected = of_text(safetensors.read_folder(str(GOLDEN))[0])
    found, _ = safetensors.read_folder(str(out))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name].read(), tensor.read(), err_msg=name)
    assert open_source(out).configured(None)[0] == open_source(GOLDEN).configured(None)[0]
    _, _, unused = huggingface_folder.read(str(GOLDEN))
    assert len(unused) == 1
    assert unused[0].startswith("23 tensors of the vision tower (model.encoder.vision_tower.*")


def test_the_names_of_transformers_own_modules_and_copies_of_tied_tensors_are_read(tmp_path):
    def change(tensors):
        inner = ("layers", "norm", "embed_tokens")
        changed = {
            name.replace("encoder.", "encoder.text_model.", 1)
            if name.split(".")[1:3] in [["encoder", part] for part in inner]
            else name: tensor
            for name, tensor in tensors.items()
        }
        copies = {copy: tensors[name] for copy, name in huggingface_t5gemma2.copies(CONFIG).items()}
        return changed | copies

    folder = rewritten(tmp_path / "changed", change)
    params, _, unused = huggingface_folder.read(str(folder))
    expected, _, _ = huggingface_folder.read(str(GOLDEN))
    assert params.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(params[name].read(), tensor.read(), err_msg=name)
    assert len(unused) == 4
    assert "lm_head.out_proj.weight (the same as model.encoder.embed_tokens.weight)" in unused


def test_a_tied_tensor_that_differs_is_refused(tmp_path):
    eoi = huggingface_t5gemma2.EOI

    def change(tensors):
        other = tensors["model.encoder.norm.weight"]
        return tensors | {"model.decoder.embed_tokens.eoi_embedding": other}

    folder = rewritten(tmp_path / "changed", change)
    with pytest.raises(UserError, match=f"eoi_embedding differs from {eoi}"):
        open_source(folder)


@pytest.mark.parametrize("changes", [{}, {"logits_soft_cap": 30.0}, {"eoi_token": 256_000}])
def test_a_configuration_is_written_as_it_is_read(changes):
    config = CONFIG.replace(**changes)
    fields = json.loads(json.dumps(huggingface_t5gemma2.config_to_huggingface(config)))
    assert huggingface_t5gemma2.config_from_huggingface(fields) == config
    paths = {".".join(pair.path) for pair in huggingface_t5gemma2.pairs(config)}
    assert paths == parameters.shapes(config).keys()


def test_layers_without_types_are_full_as_often_as_the_pattern_says():
    fields = huggingface_t5gemma2.config_to_huggingface(CONFIG)
    del fields["decoder"]["layer_types"]
    assert huggingface_t5gemma2.config_from_huggingface(fields).decoder.full_every == 6
    fields["decoder"]["sliding_window_pattern"] = 3
    assert huggingface_t5gemma2.config_from_huggingface(fields) == CONFIG
    fields["decoder"]["layer_types"] = ["sliding_attention"] * 4
    decoder = huggingface_t5gemma2.config_from_huggingface(fields).decoder
    assert decoder.kinds == (0, 0, 0, 0)


def test_bases_of_rotations_that_the_kinds_of_layers_lack_are_those_of_the_stack():
    fields = huggingface_t5gemma2.config_to_huggingface(CONFIG)
    decoder = fields["decoder"] | {"rope_theta": 5e5, "rope_local_base_freq": 2e4}

    def bases(ropes):
        described = fields | {"decoder": decoder | {"rope_parameters": ropes}}
        stack = huggingface_t5gemma2.config_from_huggingface(described).decoder
        return stack.rope_theta, stack.local_rope_theta, stack.rope_factor

    linear = {"rope_type": "linear", "factor": 4.0}
    assert bases(None) == (5e5, 2e4, 1.0)
    assert bases({"full_attention": linear}) == (5e5, 2e4, 4.0)
    assert bases({"full_attention": linear | {"rope_theta": 7.0}}) == (7.0, 2e4, 4.0)
    assert bases({"sliding_attention": {"rope_theta": 7.0}}) == (5e5, 7.0, 1.0)


def test_a_tensor_under_both_of_its_names_is_refused(tmp_path):
    name, other = "model.encoder.norm.weight", "model.encoder.text_model.norm.weight"
    folder = rewritten(tmp_path / "twice", lambda tensors: tensors | {other: tensors[name]})
    with pytest.raises(UserError, match=f"has {other} and {name}"):
        open_source(folder)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("is_encoder_decoder",), False, "is_encoder_decoder is False"),
        (("tie_word_embeddings",), False, "tie_word_embeddings is False"),
        (("decoder", "bos_token_id"), 5, "bos_token_id is 5"),
        (("encoder", "text_config"), None, "text_config is None, not an object"),
        (("decoder", "layer_types"), ["full_attention", "sliding_attention"] * 2, "layer_types is"),
        (("decoder", "attn_logit_softcapping"), 50.0, "attn_logit_softcapping is 50.0"),
        (("encoder", "text_config", "use_bidirectional_attention"), True, "bidirectional"),
        (("encoder", "text_config", "vocab_size"), 7, "one table serves both"),
        (("decoder", "hidden_size"), 32, "one table serves both"),
        (("decoder", "rope_parameters", "full_attention", "rope_type"), "yarn", "'yarn'"),
        (("decoder", "rope_parameters", "sliding_attention", "rope_type"), "linear", "'linear'"),
        (("decoder", "rope_parameters"), FLAT, "decoder.rope_parameters has 'rope_type'"),
        (
            ("decoder", "rope_parameters", "full_attention"),
            {"type": "linear", "factor": 8.0},
            "decoder.rope_parameters.full_attention has 'type'",
        ),
    ],
)
def test_what_no_t5gemma_2_here_computes_is_refused(path, value, message):
    with pytest.raises(ValueError, match=message):
        huggingface_t5gemma2.config_from_huggingface(with_field(path, value))


READ = [
    *[("decoder", name) for name in FIELDS_OF_A_STACK],
    ("decoder", "sliding_window_pattern"),
    ("encoder", "eoi_token_index"),
    ("encoder", "text_config", "num_hidden_layers"),
    ("decoder", "rope_parameters", "full_attention"),
    ("decoder", "rope_parameters", "full_attention", "factor"),
    ("decoder", "rope_parameters", "sliding_attention", "rope_theta"),
]


@pytest.mark.parametrize("path", READ, ids=".".join)
def test_a_field_of_a_wrong_type_is_named(path):
    for value in WRONG:
        fields = with_field(path, value)
        if path[-1] == "sliding_window_pattern":
            del fields["decoder"]["layer_types"]
        with pytest.raises(ValueError, match=rf"{'.'.join(path)} is ") as caught:
            huggingface_t5gemma2.config_from_huggingface(fields)
        assert repr(value) in str(caught.value)


@pytest.mark.parametrize("value", ["x", {"a": 1}])
def test_a_malformed_configuration_is_one_line_that_names_the_file(tmp_path, value):
    folder = rewritten(tmp_path / "changed", lambda tensors: tensors)
    for name in ("rope_parameters", "layer_types"):
        described = json.loads((GOLDEN / "config.json").read_text())
        described["decoder"][name] = value
        (folder / "config.json").write_text(json.dumps(described))
        with pytest.raises(UserError, match=rf"config\.json: decoder\.{name} "):
            open_source(folder)


def test_what_transformers_does_not_build_is_not_written():
    with pytest.raises(ValueError, match="start_token is 3"):
        huggingface_t5gemma2.config_to_huggingface(CONFIG.replace(start_token=3))
    stack = Gemma3Stack(18, 4, 2, 6, 32, 3)
    with pytest.raises(ValueError, match="a multiple of num_heads=4"):
        huggingface_t5gemma2.config_to_huggingface(CONFIG.replace(encoder=stack, decoder=stack))
