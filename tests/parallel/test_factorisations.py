"""Every mesh of eight devices trains like one device: SFT, DRO-V, KTO and DPO, with and without scan, remat and microbatches."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from jaxalign.losses.pairwise import dpo_loss
from jaxalign.networks.policy import Policy
from jaxalign.networks.value import ValueNetwork
from jaxalign.objectives.dro import DROV
from jaxalign.objectives.kto import KTO
from jaxalign.objectives.responses import Pairwise
from jaxalign.objectives.sft import SFT
from jaxalign.parallel.partitioning import MeshShape

FACTORISATIONS = [
    (slices, data, fsdp, 8 // (slices * data * fsdp))
    for slices in (1, 2, 4, 8)
    for data in (1, 2, 4, 8)
    for fsdp in (1, 2, 4, 8)
    if 8 % (slices * data * fsdp) == 0
]
# scan_layers, remat_policy, microbatches
VARIANTS = [
    (False, "none", 1),
    (True, "full", 2),
    (True, "minimal", 1),
    (False, "full", 2),
]
METHODS = ["sft", "dro_v", "kto", "dpo"]
FAST = {("dro_v", (2, 1, 2, 2))}
CASES = [
    pytest.param(
        method,
        sizes,
        # Every method is tested with every variant; so is every mesh, over the four methods together.
        VARIANTS[(index + shift) % 4],
        marks=() if (method, sizes) in FAST else pytest.mark.slow,
        id=f"{method}-{'x'.join(map(str, sizes))}",
    )
    for shift, method in enumerate(METHODS)
    for index, sizes in enumerate(FACTORISATIONS)
]


def objective_of(world, method):
    policy = world.policy
    return {
        "sft": lambda: SFT(policy=policy),
        "dro_v": lambda: DROV(policy=policy, value=world.value, temperature=0.5),
        "kto": lambda: KTO(policy=policy, reference="live"),
        "dpo": lambda: Pairwise(
            loss_function=functools.partial(dpo_loss, beta=0.1), policy=policy, reference="live"
        ),
    }[method]()


@pytest.fixture(scope="module")
def train(world):
    # Eight heads, so that the tensor axis can take all devices.
    config = dataclasses.replace(world.policy.config, num_heads=8, head_dim=2)

    @functools.cache
    def run(method, sizes, variant, devices):
        scan, remat, microbatches = variant
        layers = 2 if scan else 1
        changed = dataclasses.replace(
            config,
            scan_layers=scan,
            remat_policy=remat,
            num_encoder_layers=layers,
            num_decoder_layers=layers,
        )
        wider = dataclasses.replace(
            world, policy=Policy(changed), value=ValueNetwork(changed), rows=16
        )
        return wider.train(
            objective_of(wider, method),
            MeshShape(*sizes),
            devices,
            microbatches=microbatches,
        )

    return run


@pytest.mark.parametrize(("method", "sizes", "variant"), CASES)
def test_every_factorisation_gives_the_trajectory_of_one_device(train, method, sizes, variant):
    # On one device, remat and microbatches are left out; scan stays, because it changes the initial parameters.
    alone = train(method, (1, 1, 1, 1), (variant[0], "none", 1), 1)
    found = train(method, sizes, variant, 8)
    for one, other in zip(found[0], alone[0], strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            np.testing.assert_allclose(one[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
    for one, other in zip(
        jax.tree.leaves(found[1].params), jax.tree.leaves(alone[1].params), strict=True
    ):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=1e-5, atol=1e-5)


def test_there_are_twenty_different_factorisations():
    assert len(FACTORISATIONS) == 20 == len(set(FACTORISATIONS))
