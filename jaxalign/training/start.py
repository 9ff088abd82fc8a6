"""Where a run begins: parameters of the roles that it trains and of those that it only reads, made when they are asked for."""

from __future__ import annotations

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Any

import jax

from jaxalign.data.recorded_vocabulary import require_same_vocabulary
from jaxalign.errors import UserError
from jaxalign.networks.protocols import Network
from jaxalign.objectives.base import Objective
from jaxalign.parallel import distributed, partitioning
from jaxalign.parallel.devices import Placement
from jaxalign.training import initial_checkpoint
from jaxalign.training.launch import Launch, check_same_origin
from jaxalign.training.state import role_shardings


@dataclasses.dataclass(frozen=True)
class StartFrom:
    """The checkpoint that a run begins with.

    Attributes:
      path: run folder, T5X checkpoint or Hugging Face folder (docs/checkpoints.md). Its policy is the start, also of value and reward
        networks, and the reference. None for a random initialisation.
      step: which of its checkpoints: a number, 'best' or 'latest'. By default the best if one is kept, else the latest.
    """

    path: str | None = None
    step: int | str | None = None


RANDOM_INITIALISATION = StartFrom()


class Start:
    """The parameters that a run begins with.

    A run that continues has its own checkpoint. It reads the one that it began with only if a frozen role is a copy of it, or if
    reference log-probabilities are still missing. So the initial checkpoint may be gone by then.

    Args:
      launch: this launch of the run.
      objective: the method, with its networks.
      placement: the devices.
      seed: of random initialisation.
      start_from: the initial checkpoint. A run that continues takes the step that its first launch took, because the other run may
        have gone on since.

    Attributes:
      identity: ``run_id`` and ``step`` of the reference policy, which name its stored log-probabilities.
      placement: the devices.

    Raises:
      UserError: there is no such checkpoint, it is not the one that the run began with, or it has another vocabulary than the task.
    """

    def __init__(
        self,
        launch: Launch,
        objective: Objective,
        placement: Placement,
        seed: int,
        start_from: StartFrom,
    ) -> None:
        self.placement = placement
        self._objective, self._mesh, self._rules = objective, placement.mesh, placement.rules
        networks = objective.trained()
        keys = jax.random.split(jax.random.key(seed), len(networks))
        self._keys = dict(zip(networks, keys, strict=True))
        self._vocabulary = launch.vocabulary
        self._pinned = launch.earlier.get("frozen_checkpoints", {})
        self._frozen_checkpoints: dict[str, Any] = {}
        self._initial: initial_checkpoint.InitialCheckpoint | None = None
        self._unreadable: UserError | None = None
        self._path = start_from.path
        self.identity: dict[str, Any] = {"run_id": f"{launch.run_id}-init", "step": seed}
        before = launch.earlier.get("initial_checkpoint")
        if launch.earlier and (start_from.path is None) != (before is None):
            began = f"from {before.get('path')}" if before else "with random parameters"
            raise UserError(
                f"{launch.folder} holds a run that began {began}, and its reference is that: "
                f"{'give INITIAL_CHECKPOINT_PATH again' if before else 'leave INITIAL_CHECKPOINT_PATH out'}, or choose another MODEL_DIR"
            )
        if start_from.path is None:
            return
        step = start_from.step
        if before and step is None:
            step = before["step"]
        try:
            self._initial = initial_checkpoint.open_checkpoint(start_from.path, step)
        except UserError as error:
            if before is None:
                raise
            self._unreadable, self.identity = error, before
            return
        self.identity = self._initial.identity
        self._check_vocabulary(f"the initial checkpoint {start_from.path}", self._initial)
        check_same_origin(launch.folder, "initial checkpoint", before, self.identity)

    def origin(self) -> dict[str, Any]:
        """JSON for ``networks.json``: the checkpoints that the run began with. Complete after `frozen`."""
        origin: dict[str, Any] = {}
        if self._path:
            origin["initial_checkpoint"] = self.identity
        if self._frozen_checkpoints:
            origin["frozen_checkpoints"] = self._frozen_checkpoints
        return origin

    @functools.cached_property
    def policy(self) -> Any:
        """Parameters of the policy; None if it is neither trained nor read from a checkpoint."""
        if self._unreadable is not None:
            raise self._unreadable
        if self._initial is not None:
            rules = self._rules.get("policy", ())
            return self._initial.restore(self._objective.policy, self._mesh, rules)
        if "policy" not in self._keys:
            return None
        return self._initialise("policy", self._objective.policy)

    def trained(self) -> dict[str, Any]:
        """Parameters of the trained roles, and ``statistics`` if the method carries any."""
        params: dict[str, Any] = {}
        for role, network in self._objective.trained().items():
            params[role] = self.policy if role == "policy" else self._initialise(role, network)
        statistics = self._objective.initial_statistics()
        if statistics:
            params["statistics"] = jax.device_put(
                statistics, partitioning.replicated_sharding(self._mesh)
            )
        return params

    def frozen(self) -> dict[str, Any]:
        """Parameters of the frozen roles.

        Raises:
          UserError: a role has nothing to be copied from, or another checkpoint is there than when the run began.
        """
        sources = self._objective.frozen_sources()
        copied = [role for role in self._objective.frozen_roles() if role not in sources]
        if copied and self.policy is None:
            raise UserError(
                f"objective {self._objective.name} reads a policy that it does not train: set INITIAL_CHECKPOINT_PATH"
            )
        # Copies: the policy's own buffers are donated to the step.
        frozen = {role: jax.tree.map(lambda leaf: leaf.copy(), self.policy) for role in copied}
        for role, (network, run) in sources.items():
            before = self._pinned.get(role)
            opened = initial_checkpoint.open_checkpoint(run, before["step"] if before else None)
            self._frozen_checkpoints[role] = opened.identity
            self._check_vocabulary(f"the {role}'s checkpoint {run}", opened)
            check_same_origin(Path(run), f"checkpoint of the {role}", before, opened.identity)
            frozen[role] = opened.restore(network, self._mesh)
        return frozen

    def warn_of_t5x_steps(self, train_steps: int) -> None:
        """Warns that the steps of a run begin at 0. In T5X they continue from the step of the initial checkpoint."""
        if self._initial is None or not self._initial.t5x or not distributed.is_primary_process():
            return
        step = self.identity["step"]
        more = train_steps - step
        advice = f"need TRAIN_STEPS = {step + train_steps} for as many"
        if more > 0:
            advice = f"make {more} of them: for as many, set TRAIN_STEPS = {more}"
        if step > 0:
            print(
                f"jaxalign: warning: TRAIN_STEPS = {train_steps} counts the updates of this run; T5X would count from the checkpoint's "
                f"step {step} and {advice}",
                file=sys.stderr,
            )

    def _check_vocabulary(self, what: str, opened: initial_checkpoint.InitialCheckpoint) -> None:
        if self._vocabulary is not None and opened.vocabulary is not None:
            require_same_vocabulary(what, opened.vocabulary, self._vocabulary)

    def warn_of_unreadable_checkpoint(self) -> None:
        """Warns that the run continues without the checkpoint that it began with."""
        if self._unreadable is not None and distributed.is_primary_process():
            print(
                f"jaxalign: the initial checkpoint cannot be read, and is no longer needed: {self._unreadable}",
                file=sys.stderr,
            )

    def _initialise(self, role: str, network: Network) -> Any:
        shapes, axes = network.abstract_params(), network.logical_axes()
        places = role_shardings(self._mesh, shapes, axes, self._rules.get(role, ()))
        from_checkpoint = (self._initial or self._unreadable) is not None
        # Read before the mesh is active: under an active mesh JAX refuses arrays without a sharding on it.
        policy = self.policy if role != "policy" and from_checkpoint else None
        with partitioning.set_mesh(self._mesh):
            if policy is not None:
                make = jax.jit(network.from_policy, out_shardings=places)
                return make(self._keys[role], policy)
            return jax.jit(network.init, out_shardings=places)(self._keys[role])
