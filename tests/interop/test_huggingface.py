"""Parameters of Hugging Face's T5 give Hugging Face's numbers, and survive a round trip."""

import json
import struct

import jax
import numpy as np
import pytest

from jaxalign.interop.huggingface import from_huggingface, to_huggingface
from jaxalign.interop.huggingface_config import config_from_huggingface, is_tied
from jaxalign.networks.decoding import generate
from jaxalign.networks.policy import Policy

VERSIONS = ["t5_v1_1", "t5_v1_0", "umt5"]


def read_safetensors(path):
    """A safetensors file: eight bytes of header length, a JSON header, raw little-endian data."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    arrays = {}
    for name, entry in header.items():
        assert entry["dtype"] == "F32"
        start, stop = (8 + length + offset for offset in entry["data_offsets"])
        arrays[name] = np.frombuffer(content[start:stop], "<f4").reshape(entry["shape"])
    return arrays


@pytest.fixture(params=VERSIONS)
def checkpoint(request, shared_dir):
    folder = shared_dir / "goldens" / "huggingface" / request.param
    fields = json.loads((folder / "config.json").read_text())
    config = config_from_huggingface(fields)
    with np.load(folder / "expected.npz", allow_pickle=False) as archive:
        expected = {name: archive[name] for name in archive.files}
    return config, read_safetensors(folder / "model.safetensors"), expected, is_tied(fields)


def test_logits_scores_and_greedy_decoding_equal_hugging_face(checkpoint):
    config, state_dict, expected, tied = checkpoint
    params = from_huggingface(state_dict, config, tied=tied)
    policy = Policy(config)
    prompts = expected["encoder_input_tokens"].astype(np.int32)
    targets = expected["decoder_target_tokens"].astype(np.int32)
    inputs = np.pad(targets[:, :-1], ((0, 0), (1, 0)))
    logits = jax.jit(policy.module.apply)({"params": params}, prompts, inputs, targets)
    if "encoded" in expected:
        encoded = policy.module.apply({"params": params}, prompts, method="encode")
        real = prompts > 0
        np.testing.assert_allclose(encoded[real], expected["encoded"][real], rtol=1e-4, atol=1e-4)
    response = targets > 0
    np.testing.assert_allclose(logits[response], expected["logits"][response], rtol=1e-4, atol=1e-4)
    log_probs = jax.nn.log_softmax(logits)
    chosen = np.take_along_axis(np.asarray(log_probs), targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(
        np.sum(chosen * response, axis=1), expected["sequence_log_probs"], atol=1e-3
    )
    length = expected["greedy"].shape[1] - 1
    greedy = generate(policy, params, prompts, max_decode_len=length, choose_pad=True)
    np.testing.assert_array_equal(greedy.tokens[:, 0], expected["greedy"][:, 1:])


def test_round_trip_from_hugging_face(checkpoint):
    config, state_dict, _, tied = checkpoint
    again = to_huggingface(from_huggingface(state_dict, config, tied=tied), config)
    assert set(state_dict) <= set(again)
    for name, array in state_dict.items():
        np.testing.assert_array_equal(again[name], array, err_msg=name)


def tiny(tiny_fields, **changes):
    config = config_from_huggingface(tiny_fields, **changes)
    return config, jax.device_get(Policy(config).init(jax.random.key(0)))


@pytest.fixture
def tiny_fields():
    return {
        "model_type": "t5",
        "vocab_size": 20,
        "d_model": 8,
        "d_ff": 12,
        "d_kv": 4,
        "num_heads": 2,
        "num_layers": 2,
        "num_decoder_layers": 3,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    }


@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scanned"])
@pytest.mark.parametrize("version", VERSIONS)
def test_round_trip_to_hugging_face(tiny_fields, version, scan):
    if version == "t5_v1_0":
        tiny_fields |= {"feed_forward_proj": "relu", "tie_word_embeddings": True}
    config, params = tiny(tiny_fields, scan_layers=scan)
    assert config.logits_via_embedding == (version == "t5_v1_0")
    state_dict = to_huggingface(params, config)
    assert state_dict["decoder.block.2.layer.2.DenseReluDense.wo.weight"].shape == (8, 12)
    table = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    assert state_dict[table].shape == (32, 2)
    # Files often hold the shared table again under the names of its users.
    state_dict["encoder.embed_tokens.weight"] = state_dict["shared.weight"]
    again = from_huggingface(state_dict, config)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_missing_unknown_and_misshapen_parameters_are_named(tiny_fields):
    config, params = tiny(tiny_fields)
    state_dict = to_huggingface(params, config)
    name = "decoder.block.1.layer.1.EncDecAttention.k.weight"

    with pytest.raises(ValueError, match=f"no {name}"):
        from_huggingface({k: v for k, v in state_dict.items() if k != name}, config)
    headless = {k: v for k, v in state_dict.items() if k != "lm_head.weight"}
    with pytest.raises(ValueError, match=r"no lm_head\.weight"):
        from_huggingface(headless, config)
    with pytest.raises(ValueError, match=r"extra\.weight"):
        from_huggingface(state_dict | {"extra.weight": np.zeros(3)}, config)
    with pytest.raises(ValueError, match=r"key\.kernel the shape \(3, 2\)"):
        from_huggingface(state_dict | {name: np.zeros((2, 3))}, config)
    with pytest.raises(ValueError, match=r"decoder\.extra"):
        to_huggingface(params | {"decoder": params["decoder"] | {"extra": np.zeros(3)}}, config)
    other_table = {"encoder.embed_tokens.weight": state_dict["shared.weight"] + 1}
    with pytest.raises(ValueError, match=r"embed_tokens\.weight differs from shared\.weight"):
        from_huggingface(state_dict | other_table, config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bart"}, "not a T5"),
        ({"feed_forward_proj": "swish"}, "'swish'"),
    ],
)
def test_other_models_are_refused(tiny_fields, changes, message):
    with pytest.raises(ValueError, match=message):
        config_from_huggingface(tiny_fields | changes)


INTEGERS = ["vocab_size", "d_model", "d_ff", "d_kv", "num_heads", "num_layers"]
INTEGERS += ["num_decoder_layers", "relative_attention_num_buckets"]
INTEGERS += ["relative_attention_max_distance"]


@pytest.mark.parametrize("name", [*INTEGERS, "feed_forward_proj", "model_type"])
def test_a_field_of_a_wrong_type_is_named(tiny_fields, name):
    for value in ["x", True, 2.5, [1, "x"], {}]:
        with pytest.raises(ValueError, match=f"{name} is ") as caught:
            config_from_huggingface(tiny_fields | {name: value})
        assert repr(value) in str(caught.value)


@pytest.mark.parametrize("name", ["tie_word_embeddings", "scale_decoder_outputs"])
def test_a_truth_value_of_a_wrong_type_is_named(tiny_fields, name):
    for value in ["false", 1, []]:
        with pytest.raises(ValueError, match=f"{name} is .*, not true or false"):
            config_from_huggingface(tiny_fields | {name: value})


def test_missing_sizes_are_named_and_missing_decoder_layers_are_the_encoders(tiny_fields):
    del tiny_fields["num_decoder_layers"]
    for absent in ({}, {"num_decoder_layers": None}):
        assert config_from_huggingface(tiny_fields | absent).num_decoder_layers == 2
    del tiny_fields["d_ff"]
    with pytest.raises(ValueError, match="d_ff is missing"):
        config_from_huggingface(tiny_fields)
