"""Reading trained networks back: from a run folder to a network and its parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxalign.errors import UserError
from jaxalign.networks import registry
from jaxalign.networks.config import T5Config
from jaxalign.networks.policy import Policy
from jaxalign.networks.protocols import (
    Network,
    PolicyNetwork,
    PromptValuePredictor,
    RewardPredictor,
)
from jaxalign.objectives.base import Objective
from jaxalign.runs import checkpoints
from jaxalign.runs.recorded_hyperparameters import hyperparameters

NETWORKS_FILE = "networks.json"


def load_policy(
    path: Path | str, role: str = "policy", step: int | str | None = None, *, shardings: Any = None
) -> tuple[Policy, Any, dict[str, Any]]:
    """Loads a policy from a run folder or one of its checkpoints.

    Args:
      path: a run folder, or ``<run>/checkpoints/<step>``.
      role: the role of the parameters.
      step: a number, 'best', 'latest', or None for the best if one was kept and the latest otherwise.
      shardings: where to put the parameters; the first local device by default.

    Returns:
      The policy, its parameters, and ``info``: the content of ``networks.json`` (``vocabulary``, ``feature_lengths``, ``objective`` ...)
      with ``run`` and ``step`` added.

    Raises:
      UserError: if files are missing, malformed or do not fit together.
    """
    return _load(path, step, role, "policy", PolicyNetwork, "policy", shardings)


def load_value(
    path: Path | str, step: int | str | None = None, *, role: str = "value", shardings: Any = None
) -> tuple[PromptValuePredictor, Any, dict[str, Any]]:
    """Loads a value network of a run, of prompts or of prefixes, that has parameters of its own. Otherwise as `load_policy`."""
    return _load(path, step, role, role, PromptValuePredictor, "separate value", shardings)


def load_reward(
    path: Path | str, step: int | str | None = None, *, role: str = "reward", shardings: Any = None
) -> tuple[RewardPredictor, Any, dict[str, Any]]:
    """Loads a reward network of any kind. Otherwise as `load_policy`."""
    return _load(path, step, role, role, RewardPredictor, "reward", shardings)


def has_value_network(info: dict[str, Any]) -> bool:
    """Whether a run trained a value network of its own on a T5, by the content of its ``networks.json``."""
    if "value" not in info.get("networks", {}):
        return False
    network = network_of(info, "value")
    return isinstance(network, PromptValuePredictor) and network.vocab_size is not None


def _load(
    path: Path | str,
    step: int | str | None,
    role: str,
    described_as: str,
    protocol: Any,
    what: str,
    shardings: Any,
) -> tuple[Any, Any, dict[str, Any]]:
    info = load_info(path, step)
    network = network_of(info, described_as)
    if not isinstance(network, protocol):
        raise UserError(
            f"run {info['run']}: {described_as} is no {what} network (its kind is {network.kind!r})"
        )
    params = checkpoints.restore_params(
        path, role, step=info["step"], abstract=network.abstract_params(), shardings=shardings
    )
    return network, params, info


def load_info(path: Path | str, step: int | str | None = None) -> dict[str, Any]:
    """The content of a run's ``networks.json`` with ``run`` and the resolved ``step``."""
    run, found = checkpoints.find_checkpoint(path, step)
    info = checkpoints.read_json(run / NETWORKS_FILE)
    if not isinstance(info.get("networks"), dict):
        raise UserError(f"{run / NETWORKS_FILE} lacks the object 'networks'")
    return {**info, "run": str(run), "step": found}


def describe_networks(objective: Objective) -> dict[str, Any]:
    """JSON for ``networks.json``: every trained network and the method."""
    description: dict[str, Any] = {
        "networks": {role: network.description() for role, network in objective.trained().items()},
        **describe_method(objective),
    }
    if objective.units is not None:
        description["units"] = objective.units
    return description


def describe_method(objective: Objective) -> dict[str, Any]:
    """JSON: the method's name, its temperature if it has one as an option, and all its hyperparameters."""
    described: dict[str, Any] = {"objective": objective.name}
    if objective.temperature is not None:
        described["temperature"] = objective.temperature
    described["hyperparameters"] = hyperparameters(objective)
    return described


def network_of(info: dict[str, Any], role: str) -> Network:
    """The network that a run records for a role; UserError if there is none."""
    if role not in info["networks"]:
        raise UserError(
            f"run {info['run']} has no {role} network; its roles: {', '.join(info['networks'])}"
        )
    try:
        return registry.build(info["networks"][role])
    except ValueError as error:
        raise UserError(f"{info['run']}/{NETWORKS_FILE}, network {role}: {error}") from error


def network_config(info: dict[str, Any], role: str) -> T5Config:
    """The configuration of the T5 that a run records for a role; UserError if there is none."""
    config = getattr(network_of(info, role), "config", None)
    if not isinstance(config, T5Config):
        raise UserError(f"run {info['run']}: the {role} network is no T5")
    return config
