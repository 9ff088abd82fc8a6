"""Builds the step from an objective, optimizers, a mesh and the shapes of a batch. A run executes the step; a plan compiles it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from jaxalign.errors import UserError
from jaxalign.networks.leaves import split_leaves
from jaxalign.objectives.base import Batch, Objective
from jaxalign.parallel.partitioning import AxisRules, role_shardings
from jaxalign.training.optimizers import Optimizer
from jaxalign.training.state import (
    TrainState,
    build_transformations,
    create_state,
    state_shardings,
)
from jaxalign.training.step import StepFunction, jit_train_step, make_train_step

TRAINED_ROLES = ("policy", "value", "reward")


@dataclasses.dataclass(frozen=True)
class BuiltStep:
    """A step that is ready to be compiled, with the shapes and shardings of its state.

    Attributes:
      step: the jitted step; ``step.lower(state, frozen, batch)`` takes arrays or their shapes.
      function: the same step, not jitted.
      abstract: the shapes of the state.
      shardings: the shardings of the state.
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
      transformations: the result of `make_transformations`.
      abstract: the result of `abstract_state`.
      mesh: a mesh of the present devices, or of a topology to compile for.
      rules: role -> axis rules that come before the standard ones.
      frozen_shardings: the shardings of the frozen roles.
      batch: arrays or shapes; only the names are read.
      random_seed: the seed of dropout.
      microbatches: the number of parts of the batch whose gradients are accumulated.

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
    """Returns a dict from trained role to optax transformation.

    Args:
      objective: the method, with its networks.
      optimizers: the optimizers by role; a trained role that has none takes the optimizer of the role ``policy``.

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
    objective: Objective, transformations: Mapping[str, optax.GradientTransformation]
) -> TrainState:
    """Returns the shapes of a fresh state."""
    params, _ = split_params(objective, abstract_params(objective))
    return jax.eval_shape(lambda tree: create_state(tree, transformations), params)


def split_params(
    objective: Objective, params: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits parameters by role (or their shapes or logical axes) into trained and frozen leaves, as the networks define them.

    Returns:
      The leaves that the train state holds, and the frozen leaves of the roles that have any.
    """
    networks = objective.trained()
    trained: dict[str, Any] = {}
    frozen: dict[str, Any] = {}
    for role, tree in params.items():
        trained[role] = tree
        if role in networks:
            trained[role], rest = split_leaves(tree, networks[role].trained_leaves())
            frozen |= {role: rest} if rest else {}
    return trained, frozen


def parameter_counts(objective: Objective) -> dict[str, tuple[int, int]]:
    """Returns the numbers of trained and of frozen parameters by trained role."""
    whole = {role: network.abstract_params() for role, network in objective.trained().items()}
    trained, frozen = split_params(objective, whole)
    return {role: (_count(trained[role]), _count(frozen.get(role, {}))) for role in whole}


def describe_counts(counts: Mapping[str, tuple[int, int]]) -> list[str]:
    """Returns a line on the result of `parameter_counts` for each role."""
    return [
        f"{role}: {trained:,} parameters trained" + (f", {frozen:,} frozen" if frozen else "")
        for role, (trained, frozen) in counts.items()
    ]


def _count(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def abstract_params(objective: Objective) -> dict[str, Any]:
    """Returns the shapes of all parameters of the trained roles, and of ``statistics`` if the method carries any."""
    params = {role: network.abstract_params() for role, network in objective.trained().items()}
    if objective.initial_statistics():
        params["statistics"] = jax.eval_shape(objective.initial_statistics)
    return params


def abstract_frozen(
    objective: Objective, mesh: Mesh, rules: Mapping[str, AxisRules]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns shapes and shardings of read-only arrays: policy copies, networks of other runs, frozen leaves of trained roles."""
    shapes: dict[str, Any] = {}
    shardings: dict[str, Any] = {}
    sources, inside = objective.frozen_sources(), objective.roles_in_policy()
    for role in objective.frozen_roles():
        if role in inside:
            continue
        network = sources[role][0] if role in sources else objective.policy
        own = () if role in sources else rules.get("policy", ())
        shapes[role] = network.abstract_params()
        shardings[role] = role_shardings(mesh, shapes[role], network.logical_axes(), own)
    leaves, places = frozen_leaves(objective, mesh, rules)
    return shapes | leaves, shardings | places


def frozen_leaves(
    objective: Objective, mesh: Mesh, rules: Mapping[str, AxisRules]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns shapes and shardings of the frozen leaves of the trained roles that have any."""
    _, shapes = split_params(objective, abstract_params(objective))
    _, axes = split_params(objective, _all_logical_axes(objective))
    shardings = {
        role: role_shardings(mesh, leaves, axes[role], rules.get(role, ()))
        for role, leaves in shapes.items()
    }
    return shapes, shardings


def logical_axes(objective: Objective) -> dict[str, Any]:
    """Returns a dict from trained role to the tree of logical `PartitionSpec` of its trained leaves."""
    return split_params(objective, _all_logical_axes(objective))[0]


def _all_logical_axes(objective: Objective) -> dict[str, Any]:
    return {role: network.logical_axes() for role, network in objective.trained().items()}


def _uses_dropout(objective: Objective) -> bool:
    return any(network.dropout_rate > 0 for network in objective.trained().values())
