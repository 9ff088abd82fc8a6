"""An objective owns its hyperparameters: what happens to gin's configuration afterwards changes neither its loss nor its record."""

import dataclasses
from typing import NamedTuple

import gin
import jax
import jax.numpy as jnp
import pytest

from jaxalign.cli import gin_setup
from jaxalign.cli.commands import COMMANDS, read_signature
from jaxalign.cli.flags import parse_flags
from jaxalign.cli.gin_objectives import objective_from_gin
from jaxalign.errors import UserError
from jaxalign.losses.distillation import forward_kl, jensen_shannon
from jaxalign.networks.policy import Policy
from jaxalign.networks.protocols import PolicyNetwork
from jaxalign.runs.recorded_hyperparameters import hyperparameters
from tests.fixtures.small_networks import CONFIG


class TableScores(NamedTuple):
    log_probs: jax.Array
    lengths: jax.Array


@dataclasses.dataclass(frozen=True)
class TablePolicy(PolicyNetwork):
    """The log-probabilities of a pair are the parameters."""

    def init(self, rng):
        del rng
        return jnp.array([[-1.0, -3.0]])

    def score(self, params, batch, *, rng=None):
        del batch, rng
        return TableScores(params, jnp.ones_like(params))


PARAMS = {"policy": TablePolicy().init(None)}
BATCH = {"response_mask": jnp.ones((1, 1, 2)), "reference_log_probs": jnp.full((1, 1, 2), -2.0)}


def loss_of(objective):
    return float(objective.loss(PARAMS, BATCH, None).loss_sum)


def dpo_by_hand(beta):
    return float(jnp.log1p(jnp.exp(-beta * 2.0)))


@pytest.fixture(autouse=True)
def _fresh_gin():
    yield
    gin.clear_config()


def test_two_objectives_of_one_process_keep_their_own_losses_and_records():
    low, high = (
        objective_from_gin(["dpo"], {"BETA": beta}, policy=TablePolicy()) for beta in (0.1, 5.0)
    )
    gin.clear_config()
    for _ in range(2):
        assert loss_of(low) == pytest.approx(dpo_by_hand(0.1))
        assert loss_of(high) == pytest.approx(dpo_by_hand(5.0))
        assert hyperparameters(low)["beta"] == 0.1
        assert hyperparameters(high)["beta"] == 5.0


def configured(*settings):
    """The objective that `jaxalign train` would build."""
    signature = read_signature(COMMANDS["train"])
    files = (
        "models/tiny",
        "tasks/synthetic_pairs",
        "objectives/dpo",
        "optimizers/adamw",
        "runs/train",
    )
    flags = [f"--gin_file={file}.gin" for file in files]
    given = ["--gin.MODEL_DIR='x'", "--gin.TRAIN_STEPS=1", *settings]
    function = gin_setup.configure(
        parse_flags([*flags, *given], signature), COMMANDS["train"], signature
    )
    return gin.get_bindings(function)["objective"]


def test_a_later_binding_or_a_cleared_configuration_changes_nothing():
    objective = dataclasses.replace(configured("--gin.BETA=0.1"), policy=TablePolicy())
    with gin.unlock_config():
        gin.bind_parameter("BETA/gin.macro.value", 5.0)
    assert loss_of(objective) == pytest.approx(dpo_by_hand(0.1))
    gin.clear_config()
    assert loss_of(objective) == pytest.approx(dpo_by_hand(0.1))
    assert hyperparameters(objective)["beta"] == 0.1


def test_the_operative_configuration_holds_what_was_bound():
    configured("--gin.BETA=0.3")
    text = gin.operative_config_str()
    assert "pairwise.dpo_loss.beta = %BETA" in text
    assert "BETA = 0.3" in text


def test_a_scoped_reference_binds_the_values_of_its_scope():
    objective = configured(
        "--gin.strong/pairwise.dpo_loss.beta=2.0",
        "--gin.responses.Pairwise.loss_function=@strong/pairwise.dpo_loss",
    )
    assert hyperparameters(objective)["beta"] == 2.0


def test_a_wrong_hyperparameter_is_refused_when_the_objective_is_built():
    with pytest.raises(UserError, match=r"dpo\.beta must be positive"):
        objective_from_gin(["dpo"], {"BETA": -1.0}, policy=TablePolicy())


def test_an_unknown_macro_is_refused():
    with pytest.raises(UserError, match=r"objectives/dpo.gin has no macro GAMMA"):
        objective_from_gin(["dpo"], {"GAMMA": 1.0}, policy=TablePolicy())


def test_a_divergence_is_bound_too():
    forward, other = (
        objective_from_gin([name], {}, policy=Policy(CONFIG))
        for name in ("distillation", "distillation_jensen_shannon")
    )
    teacher, student = jnp.log(jnp.array([[0.2, 0.8]])), jnp.log(jnp.array([[0.5, 0.5]]))
    assert forward.divergence(teacher, student) == forward_kl(teacher, student)
    weight = hyperparameters(other)
    bound = {name: weight[name] for name in other.divergence.keywords}
    assert other.divergence(teacher, student) == jensen_shannon(teacher, student, **bound)
