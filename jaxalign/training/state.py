"""The train state, which a step changes and a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh

from jaxalign.parallel import partitioning
from jaxalign.parallel.optimizer_shardings import optimizer_state_shardings
from jaxalign.parallel.partitioning import AxisRules
from jaxalign.training.optimizers import Optimizer


@flax.struct.dataclass
class TrainState:
    """The step counter, and parameters and optimizer states by role. Frozen roles and frozen leaves are not part of it.

    Attributes:
      step: int32 scalar, the number of finished updates.
      params: role -> parameters, float32; the role ``statistics`` holds the statistics that an objective carries from step to step.
      opt_state: trained role -> optax state.
    """

    step: Any
    params: dict[str, Any]
    opt_state: dict[str, Any]


def build_transformations(
    optimizers: Mapping[str, Optimizer], update_scales: Mapping[str, float]
) -> dict[str, optax.GradientTransformation]:
    """Returns one optax transformation per role, with the objective's factor on its learning rate."""
    return {
        role: optimizer.build(update_scales.get(role, 1.0))
        for role, optimizer in optimizers.items()
    }


def create_state(
    params: Mapping[str, Any], transformations: Mapping[str, optax.GradientTransformation]
) -> TrainState:
    """Returns a fresh state at step 0."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=dict(params),
        opt_state={role: rule.init(params[role]) for role, rule in transformations.items()},
    )


def state_shardings(
    mesh: Mesh | AbstractMesh,
    abstract_state: TrainState,
    logical_axes: Mapping[str, Any],
    rules: Mapping[str, AxisRules] | None = None,
) -> TrainState:
    """Returns the sharding of every leaf of a state.

    Args:
      mesh: the mesh.
      abstract_state: the state's shapes.
      logical_axes: role -> tree of logical `PartitionSpec`, or None for a role that is replicated.
      rules: role -> logical axis rules that come before the standard ones.

    Raises:
      UserError: if the mesh does not divide a parameter.
    """
    params: dict[str, Any] = {}
    opt_state: dict[str, Any] = {}
    for role, shapes in abstract_state.params.items():
        axes, own = logical_axes.get(role), (rules or {}).get(role, ())
        params[role] = partitioning.role_shardings(mesh, shapes, axes, own)
        if role not in abstract_state.opt_state:
            continue
        slots = abstract_state.opt_state[role]
        opt_state[role] = (
            jax.tree.map(lambda _: partitioning.replicated_sharding(mesh), slots)
            if axes is None
            else optimizer_state_shardings(mesh, slots, shapes, axes, own)
        )
    return TrainState(
        step=partitioning.replicated_sharding(mesh), params=params, opt_state=opt_state
    )
