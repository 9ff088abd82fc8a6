"""Reading trained networks back: from a run folder to a network and its parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxalign.errors import UserError
from jaxalign.networks.config import T5Config
from jaxalign.networks.feature_reward import FeatureReward
from jaxalign.networks.policy import Policy
from jaxalign.networks.reward import DecoderRewardNetwork, RewardNetwork
from jaxalign.networks.token_value import TokenValueNetwork
from jaxalign.networks.value import ValueNetwork
from jaxalign.runs import checkpoints
from jaxalign.runs.recorded_hyperparameters import hyperparameters

NETWORKS_FILE = "networks.json"
_REWARD_NETWORKS = {
    network.kind: network for network in (RewardNetwork, DecoderRewardNetwork, FeatureReward)
}


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
    info = load_info(path, step)
    config = network_config(info, "policy")
    policy = Policy(config, value_token=info.get("value_token"))
    params = checkpoints.restore_params(
        path, role, step=info["step"], abstract=policy.abstract_params(), shardings=shardings
    )
    return policy, params, info


def load_value(
    path: Path | str, step: int | str | None = None, *, role: str = "value", shardings: Any = None
) -> tuple[Any, Any, dict[str, Any]]:
    """Loads a separate value network of a run, of prompts or of prefixes. Arguments and errors as in `load_policy`."""
    info = load_info(path, step)
    if role not in info["networks"]:
        raise UserError(
            f"run {info['run']} has no separate {role} network; its roles: {', '.join(info['networks'])}"
        )
    config = network_config(info, role)
    value: Any = ValueNetwork(config, max_value=info.get("max_value"))
    if info["networks"][role].get("kind") == TokenValueNetwork.kind:
        value = TokenValueNetwork(config)
    params = checkpoints.restore_params(
        path, role, step=info["step"], abstract=value.abstract_params(), shardings=shardings
    )
    return value, params, info


def load_reward(
    path: Path | str, step: int | str | None = None, *, role: str = "reward", shardings: Any = None
) -> tuple[Any, Any, dict[str, Any]]:
    """Loads a reward network, of whichever kind the run trained. Arguments and errors as in `load_policy`."""
    info = load_info(path, step)
    if role not in info["networks"]:
        raise UserError(
            f"run {info['run']} has no {role} network; its roles: {', '.join(info['networks'])}"
        )
    network = _reward_network(info, role)
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


def describe_networks(objective: Any) -> dict[str, Any]:
    """JSON for ``networks.json``: the configuration of every role that has one of its own."""
    networks = {}
    for role, network in objective.trained().items():
        if hasattr(network, "description"):
            networks[role] = network.description()
        elif isinstance(getattr(network, "config", None), T5Config):
            networks[role] = network.config.to_dict()
    description: dict[str, Any] = {"networks": networks}
    if getattr(objective.policy, "value_token", None) is not None:
        description["value_token"] = objective.policy.value_token
    description |= describe_method(objective)
    # Of values: the unit they were fitted in where it is a choice, and the range that a sigmoid gives them.
    options = {
        "units": getattr(objective, "units", None),
        "max_value": getattr(getattr(objective, "value", None), "max_value", None),
    }
    description |= {name: option for name, option in options.items() if option is not None}
    return description


def describe_method(objective: Any) -> dict[str, Any]:
    """JSON: the method's name, its temperature or beta where that is an attribute, and all its hyperparameters."""
    described: dict[str, Any] = {"objective": objective.name}
    temperature = getattr(objective, "temperature", getattr(objective, "beta", None))
    if temperature is not None:
        described["temperature"] = temperature
    described["hyperparameters"] = hyperparameters(objective)
    return described


def network_config(info: dict[str, Any], role: str) -> T5Config:
    """The T5 that a run records for a role; UserError if there is none."""
    if role not in info["networks"]:
        raise UserError(f"run {info['run']} has no network {role!r} in {NETWORKS_FILE}")
    description = info["networks"][role]
    try:
        return T5Config.from_dict(description.get("config", description))
    except (TypeError, ValueError) as error:
        raise UserError(f"{info['run']}/{NETWORKS_FILE}, network {role}: {error}") from error


def _reward_network(info: dict[str, Any], role: str) -> Any:
    description = dict(info["networks"][role])
    kind = description.pop("kind", None)
    if kind not in _REWARD_NETWORKS:
        raise UserError(
            f"run {info['run']}: {role} is no reward network (its kind is {kind!r}; known: {', '.join(_REWARD_NETWORKS)})"
        )
    try:
        if "config" in description:
            description["config"] = T5Config.from_dict(description["config"])
        return _REWARD_NETWORKS[kind](**description)
    except (TypeError, ValueError) as error:
        raise UserError(f"{info['run']}/{NETWORKS_FILE}, network {role}: {error}") from error
