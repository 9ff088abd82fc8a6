"""Stacking is a change of storage: exact, reversible, strict."""

import jax
import numpy as np
import pytest

from jaxalign.networks.policy import Policy
from jaxalign.networks.stacking import stack_layers, unstack_layers


@pytest.mark.parametrize("axis", [0, 1])
def test_stacking_gives_the_scanned_tree_and_back(tiny_config, tiny_params, axis):
    stacked = stack_layers(tiny_params, axis=axis)
    scanned = Policy(tiny_config.replace(scan_layers=True, param_scan_axis=axis))
    shapes = jax.tree.map(np.shape, stacked)
    assert shapes == jax.tree.map(np.shape, scanned.abstract_params())
    back = unstack_layers(stacked, axis=axis)
    assert jax.tree.structure(back) == jax.tree.structure(tiny_params)
    jax.tree.map(np.testing.assert_array_equal, back, tiny_params)


def test_both_leave_their_own_result_alone(tiny_params):
    stacked = stack_layers(tiny_params)
    jax.tree.map(np.testing.assert_array_equal, stack_layers(stacked), stacked)
    jax.tree.map(np.testing.assert_array_equal, unstack_layers(tiny_params), tiny_params)


def test_gaps_and_unequal_layers_are_refused(tiny_params):
    encoder = dict(tiny_params["encoder"])
    del encoder["layers_0"]
    with pytest.raises(ValueError, match="count from 0"):
        stack_layers({"encoder": encoder})
    encoder = dict(tiny_params["encoder"], layers_1={"mlp": np.zeros(3)})
    with pytest.raises(ValueError, match=r"encoder\.layers_1 has other parameters"):
        stack_layers({"encoder": encoder})


def test_layers_of_two_kinds_are_stacked_by_kind():
    layers = {f"layers_{index}": {"scale": np.full(3, index)} for index in range(4)}
    params = {"encoder": {**layers, "encoder_norm": np.zeros(3)}}
    cycle = ("sliding", "full")
    stacked = stack_layers(params, axis=0, cycle=cycle)
    found = {kind: tree["scale"][:, 0] for kind, tree in stacked["encoder"]["layers"].items()}
    np.testing.assert_array_equal(found["sliding"], [0, 2])
    np.testing.assert_array_equal(found["full"], [1, 3])
    back = unstack_layers(stacked, axis=0, cycle=cycle)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    del params["encoder"]["layers_3"]
    with pytest.raises(ValueError, match="encoder has 3 layers"):
        stack_layers(params, cycle=cycle)


def test_the_wrong_axis_is_noticed(tiny_params):
    with pytest.raises(ValueError, match="another axis"):
        unstack_layers(stack_layers(tiny_params, axis=0), axis=1)
