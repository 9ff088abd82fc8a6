"""Where a run begins: parameters of the roles that it trains and of those that it only reads, made when they are asked for."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jaxalign.data.recorded_vocabulary import RecordedVocabulary, require_same_vocabulary
from jaxalign.errors import UserError
from jaxalign.networks.protocols import Network
from jaxalign.objectives.base import Objective
from jaxalign.parallel import distributed, partitioning
from jaxalign.parallel.partitioning import AxisRules
from jaxalign.training import initial_checkpoint, run_folder
from jaxalign.training.state import role_shardings


class Start:
    """The parameters that a run begins with.

    A run that goes on has its own checkpoint, and reads where it began only if a frozen role is a copy of it or if reference
    log-probabilities are still missing. So what it began with may be gone by then.

    Args:
      folder: the run folder, for messages.
      objective: the method, with its networks.
      mesh: the run's devices.
      rules: role -> axis rules before the standard ones.
      seed: of random initialisation.
      path: the initial checkpoint; None for a random initialisation.
      step: which of its checkpoints; that of the earlier launch by default, for that other run may have gone on since.
      run_id: of this run.
      earlier: what an earlier launch of the run wrote about itself; empty if this is the first.
      vocabulary: the task's, which every checkpoint that the run reads must have been trained with.

    Attributes:
      identity: ``run_id`` and ``step`` of the reference policy, which name its stored log-probabilities.

    Raises:
      UserError: there is no such checkpoint, or it is not the one that the run began with.
    """

    def __init__(
        self,
        folder: Path,
        objective: Objective,
        mesh: Any,
        rules: Mapping[str, AxisRules],
        seed: int,
        *,
        path: str | None,
        step: int | str | None,
        run_id: str,
        earlier: Mapping[str, Any],
        vocabulary: RecordedVocabulary | None = None,
    ) -> None:
        self._objective, self._mesh, self._rules = objective, mesh, rules
        networks = objective.trained()
        keys = jax.random.split(jax.random.key(seed), len(networks))
        self._keys = dict(zip(networks, keys, strict=True))
        self._vocabulary = vocabulary
        self._pinned = earlier.get("frozen_checkpoints", {})
        self._initial: initial_checkpoint.InitialCheckpoint | None = None
        self._unreadable: UserError | None = None
        self.identity: dict[str, Any] = {"run_id": f"{run_id}-init", "step": seed}
        before = earlier.get("initial_checkpoint")
        if earlier and (path is None) != (before is None):
            began = f"from {before.get('path')}" if before else "with random parameters"
            raise UserError(
                f"{folder} holds a run that began {began}, and its reference is that: "
                f"{'give INITIAL_CHECKPOINT_PATH again' if before else 'leave INITIAL_CHECKPOINT_PATH out'}, or choose another MODEL_DIR"
            )
        if path is None:
            return
        if before and step is None:
            step = before["step"]
        try:
            self._initial = initial_checkpoint.open_checkpoint(path, step)
        except UserError as error:
            if before is None:
                raise
            self._unreadable, self.identity = error, before
            return
        self.identity = self._initial.identity
        self._check_vocabulary(f"the initial checkpoint {path}", self._initial)
        run_folder.check_same_origin(folder, "initial checkpoint", before, self.identity)

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
            params["statistics"] = jax.device_put(statistics, partitioning.replicated(self._mesh))
        return params

    def frozen(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Parameters of the frozen roles, and which checkpoints those are that come from other runs.

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
        identities: dict[str, Any] = {}
        for role, (network, run) in sources.items():
            before = self._pinned.get(role)
            opened = initial_checkpoint.open_checkpoint(run, before["step"] if before else None)
            identities[role] = opened.identity
            self._check_vocabulary(f"the {role}'s checkpoint {run}", opened)
            run_folder.check_same_origin(
                Path(run), f"checkpoint of the {role}", before, opened.identity
            )
            frozen[role] = opened.restore(network, self._mesh)
        return frozen, identities

    def say_how_steps_count(self, train_steps: int) -> None:
        """Tells whoever comes from T5X, whose steps go on from those of the checkpoint, that a run's begin at 0."""
        if self._initial is None or not self._initial.t5x or not distributed.is_first():
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

    def say_what_is_unreadable(self) -> None:
        """Tells on standard error that the run goes on without the checkpoint that it began with."""
        if self._unreadable is not None and distributed.is_first():
            print(
                f"jaxalign: the initial checkpoint cannot be read, and is not needed any more: {self._unreadable}",
                file=sys.stderr,
            )

    def _initialise(self, role: str, network: Network) -> Any:
        shapes, axes = network.abstract_params(), network.logical_axes()
        places = role_shardings(self._mesh, shapes, axes, self._rules.get(role, ()))
        from_checkpoint = (self._initial or self._unreadable) is not None
        # Read before the mesh is active: under an active mesh JAX refuses arrays without a sharding on it.
        policy = self.policy if role != "policy" and from_checkpoint else None
        with partitioning.activate(self._mesh):
            if policy is not None:
                make = jax.jit(network.from_policy, out_shardings=places)
                return make(self._keys[role], policy)
            return jax.jit(network.init, out_shardings=places)(self._keys[role])
