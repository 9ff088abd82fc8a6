"""Splitting parameters into trained and frozen leaves."""

import numpy as np
import pytest

from jaxalign.errors import UserError
from jaxalign.networks.frozen_trunk import FrozenTrunk
from jaxalign.networks.leaves import merge_leaves, merge_roles, split_leaves
from jaxalign.networks.policy import Policy
from jaxalign.networks.value import ValueNetwork

# As a low-rank adapter has it: trained leaves beside frozen ones, at any depth.
PARAMS = {
    "embedding": 1,
    "encoder": {"query": {"kernel": 2, "lora_a": 3, "lora_b": 4}, "norm": {"scale": 5}},
}
TRAINED = {
    "embedding": False,
    "encoder": {"query": {"kernel": False, "lora_a": True, "lora_b": True}, "norm": False},
}


def test_a_split_separates_the_leaves_and_leaves_no_empty_branch():
    trained, frozen = split_leaves(PARAMS, TRAINED)
    assert trained == {"encoder": {"query": {"lora_a": 3, "lora_b": 4}}}
    assert frozen == {
        "embedding": 1,
        "encoder": {"query": {"kernel": 2}, "norm": {"scale": 5}},
    }


def test_merging_is_the_inverse_of_splitting():
    assert merge_leaves(*split_leaves(PARAMS, TRAINED)) == PARAMS
    assert merge_leaves(*split_leaves(PARAMS, True)) == PARAMS


def test_parameters_that_are_all_trained_come_back_as_they_are():
    array = np.zeros(3)
    found, frozen = split_leaves(array, True)
    assert found is array and frozen == {}
    assert merge_leaves(array, {}) is array


def test_roles_are_merged_leaf_by_leaf_and_frozen_roles_stay():
    frozen = {"reference": {"kernel": 1}, "value": {"trunk": 2}}
    trained = {"policy": {"kernel": 3}, "value": {"head": 4}}
    assert merge_roles(frozen, trained) == {
        "reference": {"kernel": 1},
        "policy": {"kernel": 3},
        "value": {"trunk": 2, "head": 4},
    }


def test_a_frozen_trunk_trains_the_head_and_is_described_as_the_network_itself(tiny_config):
    network = FrozenTrunk(ValueNetwork(tiny_config))
    assert network.trained_leaves() == {"encoder": False, "head": True, "token_embedder": False}
    assert network.description() == ValueNetwork(tiny_config).description()


def test_a_network_without_a_head_has_no_trunk_to_freeze(tiny_config):
    with pytest.raises(UserError, match="needs a network with a 'head'; Policy has"):
        FrozenTrunk(Policy(tiny_config))
