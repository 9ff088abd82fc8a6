"""Which optimizer a role gets."""

import jax.numpy as jnp
import pytest

from jaxalign.errors import UserError
from jaxalign.networks.policy import Policy
from jaxalign.networks.value import ValueNetwork
from jaxalign.objectives.dro import DROV
from jaxalign.objectives.sft import SFT
from jaxalign.training.build import make_transformations
from jaxalign.training.optimizers import sgd
from tests.fixtures.small_networks import CONFIG

DRO = DROV(policy=Policy(CONFIG), value=ValueNetwork(CONFIG))


def updates(objective, optimizers):
    """The update of a unit gradient, by role."""
    one = {"kernel": jnp.ones(())}
    return {
        role: float(rule.update(one, rule.init(one), one)[0]["kernel"])
        for role, rule in make_transformations(objective, optimizers).items()
    }


def test_a_role_without_an_optimizer_takes_that_of_the_policy():
    assert updates(DRO, {"policy": sgd(0.5)}) == {"policy": -0.5, "value": -0.5}


def test_a_role_takes_its_own_optimizer():
    found = updates(DRO, {"policy": sgd(0.5), "value": sgd(0.25)})
    assert found == {"policy": -0.5, "value": -0.25}


def test_an_optimizer_for_a_role_that_the_objective_lacks_is_not_used():
    optimizers = {"policy": sgd(0.5), "value": sgd(0.25)}
    assert updates(SFT(policy=Policy(CONFIG)), optimizers) == {"policy": -0.5}


def test_a_missing_optimizer_and_an_unknown_role_are_named():
    with pytest.raises(UserError, match="none for the role 'policy'"):
        make_transformations(DRO, {"value": sgd(0.5)})
    with pytest.raises(UserError, match="the role 'polcy'"):
        make_transformations(DRO, {"polcy": sgd(0.5)})
