"""Configurations are checked when they are made, and survive JSON."""

import json

import jax
import pytest

from jaxalign.networks.config import T5Config
from jaxalign.networks.policy import Policy


def test_round_trip_through_json(tiny_config):
    fields = json.loads(json.dumps(tiny_config.to_dict()))
    assert T5Config.from_dict(fields) == tiny_config


def test_configurations_are_hashable(tiny_config):
    assert hash(Policy(tiny_config)) == hash(Policy(tiny_config.replace()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float16"}, "overflow float16"),
        ({"dtype": "int8"}, "'float32', 'bfloat16'"),
        ({"emb_dim": 0}, "emb_dim is 0"),
        ({"dropout_rate": 1.0}, "dropout_rate is 1.0"),
        ({"mlp_activations": ("gelu", "tanh")}, "'tanh'"),
        ({"mlp_activations": ()}, "mlp_activations is empty"),
        ({"remat_policy": "some"}, "remat_policy is 'some'"),
        ({"blockwise_attention_length": -1}, "blockwise_attention_length is -1"),
        ({"param_scan_axis": 2}, "param_scan_axis is 2"),
        ({"relative_attention_num_buckets": 7}, "even number"),
        ({"relative_attention_max_distance": 16}, "max_distance is 16"),
    ],
)
def test_impossible_values_are_refused(tiny_config, changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config.replace(**changes)


def test_unknown_and_missing_fields_are_named(tiny_config):
    fields = tiny_config.to_dict()
    with pytest.raises(ValueError, match="no field width"):
        T5Config.from_dict(fields | {"width": 3})
    del fields["emb_dim"]
    with pytest.raises(ValueError, match="needs emb_dim"):
        T5Config.from_dict(fields)


@pytest.mark.parametrize(
    ("emb_dim", "mlp_dim", "num_layers", "num_heads", "num_parameters"),
    [
        pytest.param(512, 1024, 8, 6, 76_961_152, id="small"),
        pytest.param(768, 2048, 12, 12, 247_577_856, id="base"),
        pytest.param(1024, 2816, 24, 16, 783_150_080, id="large"),
    ],
)
def test_t5_1_1_has_its_known_number_of_parameters(
    emb_dim, mlp_dim, num_layers, num_heads, num_parameters
):
    config = T5Config(
        vocab_size=32128,
        emb_dim=emb_dim,
        num_heads=num_heads,
        head_dim=64,
        mlp_dim=mlp_dim,
        num_encoder_layers=num_layers,
        num_decoder_layers=num_layers,
        scan_layers=True,
    )
    leaves = jax.tree.leaves(Policy(config).abstract_params())
    assert sum(leaf.size for leaf in leaves) == num_parameters
