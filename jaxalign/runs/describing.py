"""Describes an objective as JSON for a run's ``networks.json``."""

from __future__ import annotations

from typing import Any

from jaxalign.objectives.base import Objective
from jaxalign.runs.recorded_hyperparameters import hyperparameters


def describe_networks(objective: Objective) -> dict[str, Any]:
    """Returns JSON for ``networks.json`` that describes every trained network and the method."""
    description: dict[str, Any] = {
        "networks": {role: network.description() for role, network in objective.trained().items()},
        **describe_method(objective),
    }
    if objective.units is not None:
        description["units"] = objective.units
    return description


def describe_method(objective: Objective) -> dict[str, Any]:
    """Returns JSON with the method's name, its temperature if that is an option, and all its hyperparameters."""
    described: dict[str, Any] = {"objective": objective.name}
    if objective.temperature is not None:
        described["temperature"] = objective.temperature
    described["hyperparameters"] = hyperparameters(objective)
    return described
