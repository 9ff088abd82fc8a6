"""From an objective, optimizers, a mesh and the shapes of a batch to the step: what a run executes and a plan compiles."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from jaxalign.errors import UserError
from jaxalign.objectives.base import Batch, Objective
from jaxalign.parallel.partitioning import AxisRules
from jaxalign.training.optimizers import Optimizer
from jaxalign.training.state import (
    TrainState,
    build_transformations,
    create_state,
    role_shardings,
    state_shardings,
)
from jaxalign.training.step import StepFunction, jit_train_step, make_train_step

TRAINED_ROLES = ("policy", "value", "reward")


@dataclasses.dataclass(frozen=True)
class BuiltStep:
    """A step ready to be compiled, and what it is called with.

    Attributes:
      step: the jitted step; ``step.lower(state, frozen, batch)`` takes arrays or their shapes.
      function: the same, not jitted.
      abstract: shapes of the state.
      shardings: of the state.
    """

    step: StepFunction
    function: StepFunction
    abstract: TrainState
    shardings: TrainState


def build_step(
    objective: Objective,
    *,
    transformations: Mapping[str, optax.GradientTransformation],
    abstract: TrainState,
    mesh: Mesh,
    rules: Mapping[str, AxisRules],
    frozen_shardings: Any,
    batch: Batch,
    random_seed: int = 0,
    microbatches: int = 1,
) -> BuiltStep:
    """Builds the step of a run.

    Args:
      objective: the method, with its networks.
      transformations: of `make_transformations`.
      abstract: of `abstract_state`.
      mesh: of devices that are there, or of a topology to compile for.
      rules: role -> axis rules before the standard ones.
      frozen_shardings: of the frozen roles.
      batch: arrays or shapes; only the names are read.
      random_seed: of dropout.
      microbatches: parts of the batch whose gradients are accumulated.

    Raises:
      UserError: if the mesh does not divide a parameter.
    """
    shardings = state_shardings(mesh, abstract, logical_axes(objective), rules)
    function = make_train_step(
        objective,
        transformations,
        seed=random_seed,
        microbatches=microbatches,
        dropout=_uses_dropout(objective),
    )
    step = jit_train_step(function, mesh, shardings, frozen_shardings, batch)
    return BuiltStep(step, function, abstract, shardings)


def make_transformations(
    objective: Objective, optimizers: Mapping[str, Optimizer]
) -> dict[str, optax.GradientTransformation]:
    """Trained role -> optax transformation.

    Args:
      objective: the method, with its networks.
      optimizers: by role; a trained role without one of its own takes that of the role ``policy``.

    Raises:
      UserError: a trained role has no optimizer, or an optimizer is for a role that no method trains.
    """
    unknown = sorted(set(optimizers) - set(TRAINED_ROLES))
    if unknown:
        raise UserError(
            f"optimizers names the role {unknown[0]!r}; the roles are {', '.join(TRAINED_ROLES)}"
        )
    chosen = {}
    for role in objective.trained():
        optimizer = optimizers.get(role, optimizers.get("policy"))
        if optimizer is None:
            raise UserError(
                f"optimizers has none for the role {role!r}: give run.train.optimizers one for it, or one for 'policy'"
            )
        chosen[role] = optimizer
    return build_transformations(chosen, objective.update_scales())


def abstract_state(
    params: Mapping[str, Any], transformations: Mapping[str, optax.GradientTransformation]
) -> TrainState:
    """The shapes of a fresh state; ``params`` may be shapes too."""
    return jax.eval_shape(lambda tree: create_state(tree, transformations), dict(params))


def abstract_params(objective: Objective) -> dict[str, Any]:
    """Shapes of the parameters of the trained roles, and of ``statistics`` if the method carries any."""
    key = jax.random.key(0)
    params = {
        role: jax.eval_shape(network.init, key) for role, network in objective.trained().items()
    }
    if objective.initial_statistics():
        params["statistics"] = jax.eval_shape(objective.initial_statistics)
    return params


def abstract_frozen(
    objective: Objective, mesh: Mesh, rules: Mapping[str, AxisRules]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Shapes and shardings of the roles that are only read: copies of the policy, or networks of other runs."""
    shapes: dict[str, Any] = {}
    shardings: dict[str, Any] = {}
    sources = objective.frozen_sources()
    for role in objective.frozen_roles():
        network: Any = sources[role][0] if role in sources else objective.policy
        own = () if role in sources else rules.get("policy", ())
        axes = network.logical_axes() if hasattr(network, "logical_axes") else None
        shapes[role] = jax.eval_shape(network.init, jax.random.key(0))
        shardings[role] = role_shardings(mesh, shapes[role], axes, own)
    return shapes, shardings


def logical_axes(objective: Objective) -> dict[str, Any]:
    """Trained role -> tree of logical `PartitionSpec`, for the networks that have any."""
    return {
        role: network.logical_axes()
        for role, network in objective.trained().items()
        if hasattr(network, "logical_axes")
    }


def _uses_dropout(objective: Objective) -> bool:
    rates = (
        getattr(getattr(net, "config", None), "dropout_rate", 0.0)
        for net in objective.trained().values()
    )
    return any(rate > 0 for rate in rates)
