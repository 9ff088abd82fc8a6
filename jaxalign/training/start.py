"""Provides the initial parameters of a run, for trained and for read-only roles, on demand."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign import hub
from jaxalign.data.recorded_vocabulary import require_same_vocabulary
from jaxalign.errors import UserError
from jaxalign.networks.leaves import split_leaves
from jaxalign.networks.protocols import Network
from jaxalign.objectives.base import Objective
from jaxalign.parallel import distributed, partitioning
from jaxalign.parallel.devices import Placement
from jaxalign.parallel.partitioning import role_shardings
from jaxalign.runs.bases import BASE, Base
from jaxalign.runs.folder import Run
from jaxalign.training import initial_checkpoint
from jaxalign.training.launch import Launch, check_same_origin


@dataclasses.dataclass(frozen=True)
class StartFrom:
    """The checkpoint that a run starts from.

    Attributes:
      path: a run folder, T5X checkpoint, Hugging Face folder or ``hf://OWNER/NAME[@REVISION]`` (docs/checkpoints.md). Its policy
        initialises the policy and the value and reward networks, and it is the reference. None for a random initialisation.
      step: the checkpoint to use: a number, 'best' or 'latest'. By default the best if one is kept, else the latest.
    """

    path: str | None = None
    step: int | str | None = None


RANDOM_INITIALISATION = StartFrom()


class Start:
    """The parameters that a run starts from.

    A run that continues has its own checkpoint. It reads the initial checkpoint only if a frozen role is a copy of it, or if
    reference log-probabilities are still missing. Otherwise the initial checkpoint may have been deleted.

    Args:
      launch: this launch of the run.
      objective: the method, with its networks.
      placement: the devices.
      seed: the seed of random initialisation.
      start_from: the initial checkpoint. A run that continues uses the same step as its first launch, because the other run may have
        continued since then.

    Attributes:
      identity: the ``run_id`` and ``step`` of the reference policy, which name its stored log-probabilities.
      placement: the devices.

    Raises:
      UserError: there is no such checkpoint, the run started from a different one, or its vocabulary differs from that of the task.
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
        self._folder = launch.folder
        self._pinned = launch.earlier.get("frozen_checkpoints", {})
        self._recorded_base: dict[str, Any] | None = launch.earlier.get(BASE)
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
        path, step = start_from.path, start_from.step
        if before and step is None:
            step = before["step"]
        if before and hub.same_repository(path, str(before.get("path"))):
            path = before["path"]  # the branch may have moved since this run began
        try:
            self._initial = initial_checkpoint.open_checkpoint(path, step)
        except UserError as error:
            if before is None:
                raise
            self._unreadable, self.identity = error, before
            return
        self.identity = self._identity(self._initial, seed)
        self._check_vocabulary(f"the initial checkpoint {start_from.path}", self._initial)
        check_same_origin(launch.folder, "initial checkpoint", before, self.identity)

    def origin(self) -> dict[str, Any]:
        """Returns the checkpoints that the run started from, as JSON for ``networks.json``. Complete after `frozen`."""
        origin: dict[str, Any] = {}
        if self._recorded_base is not None:
            origin[BASE] = self._recorded_base
        if self._path:
            origin["initial_checkpoint"] = self.identity
        if self._frozen_checkpoints:
            origin["frozen_checkpoints"] = self._frozen_checkpoints
        return origin

    @functools.cached_property
    def policy(self) -> Any:
        """Returns the parameters of the policy; None if it is neither trained nor read from a checkpoint."""
        if self._unreadable is not None:
            raise self._unreadable
        network, key = self._objective.policy, self._keys.get("policy")
        if self._initial is not None:
            rules = self._rules.get("policy", ())
            params = self._initial.restore(network.base, self._mesh, rules, key)
            return params if network.base is network else self._adapted(params)
        if key is None:
            return None
        return self._initialise("policy", network)

    @property
    def refers_to_base(self) -> bool:
        """Returns whether the run only names the frozen parameters of its policy, because they are all those of another run's policy.

        Otherwise, with a base from another system or with new random parts, the run holds them.
        """
        network = self._objective.policy
        if self._recorded_base is not None:
            return True
        if network.base is network or self._initial is None or not self._initial.is_run:
            return False
        return "policy" in self._keys and not self._initial.lacking(network)

    def _adapted(self, params: Any) -> Any:
        """Returns the parameters of the initial checkpoint with fresh adapters, and records or checks their fingerprint."""
        network = self._objective.policy
        if self.refers_to_base:
            self._check_base(params)
        shapes, axes = network.abstract_params(), network.logical_axes()
        places = role_shardings(self._mesh, shapes, axes, self._rules.get("policy", ()))
        key = self._keys.get("policy", jax.random.key(0))
        # The base stays where it is, unless it is stored in another type.
        same = {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
        with partitioning.set_mesh(self._mesh):
            make = jax.jit(
                network.from_policy, out_shardings=places, donate_argnums=1 if same else ()
            )
            return make(key, params)

    def frozen_base(self) -> dict[str, Any]:
        """Returns the frozen parameters of the policy, under its role, if the run only names them; an empty dict otherwise."""
        if not self.refers_to_base:
            return {}
        trained = self._objective.policy.trained_leaves()
        return {"policy": split_leaves(self.policy, trained)[1]}

    def _check_base(self, params: Any) -> None:
        place = Path(self.identity["path"])
        if self._recorded_base is not None:
            earlier = Base(**self._recorded_base)
            earlier.check_run(self._folder, self.identity["run_id"], place)
            earlier.check_digest(
                self._folder, Run(place, self.identity["step"]).policy_digest(params), place
            )
            return
        self._recorded_base = Base(
            path=str(place),
            relative_path=os.path.relpath(place, self._folder),
            step=self.identity["step"],
            run_id=self.identity["run_id"],
            digest=Run(place, self.identity["step"]).policy_digest(params),
        ).to_json()

    def trained(self) -> dict[str, Any]:
        """Returns the parameters of the trained roles, and ``statistics`` if the method carries any."""
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
        """Returns the parameters of the frozen roles.

        Raises:
          UserError: a role has no source to copy from, or the checkpoint differs from the one at the start of the run.
        """
        sources, inside = self._objective.frozen_sources(), self._objective.roles_in_policy()
        copied = [
            role
            for role in self._objective.frozen_roles()
            if role not in sources and role not in inside
        ]
        if copied and self.policy is None:
            raise UserError(
                f"objective {self._objective.name} reads a policy that it does not train: set INITIAL_CHECKPOINT_PATH"
            )
        # These are copies, because the policy's own buffers are donated to the step.
        frozen = {role: jax.tree.map(lambda leaf: leaf.copy(), self.policy) for role in copied}
        for role, (network, run) in sources.items():
            before = self._pinned.get(role)
            place = run
            if before and hub.same_repository(str(run), str(before.get("path"))):
                place = before["path"]  # the branch may have moved since this run began
            opened = initial_checkpoint.open_checkpoint(place, before["step"] if before else None)
            self._frozen_checkpoints[role] = opened.identity
            self._check_vocabulary(f"the {role}'s checkpoint {run}", opened)
            check_same_origin(Path(run), f"checkpoint of the {role}", before, opened.identity)
            frozen[role] = opened.restore(network, self._mesh)
        return frozen

    def _identity(self, initial: initial_checkpoint.InitialCheckpoint, seed: int) -> dict[str, Any]:
        """Returns the identity of the policy at the start: with new random parts, it is another policy than the checkpoint's."""
        new = initial.lacking(self._objective.policy) if "policy" in self._keys else {}
        if not new:
            return initial.identity
        if distributed.is_primary_process():
            print(
                f"jaxalign: {self._path} has no {', '.join(new)}: these parts of the policy begin with random parameters",
                file=sys.stderr,
            )
        run_id = "-".join([initial.identity["run_id"], *new, str(seed)])
        return {**initial.identity, "run_id": run_id}

    def warn_of_random_reference(self) -> None:
        """Warns that a method that compares with a reference policy begins with random parameters."""
        compares = "reference_log_probs" in self._objective.required_fields()
        if self._path is not None or not (compares or self._objective.frozen_roles()):
            return
        if distributed.is_primary_process():
            print(
                f"jaxalign: warning: {self._objective.name} compares with a reference policy, and INITIAL_CHECKPOINT_PATH names none: "
                "policy and reference begin with random parameters",
                file=sys.stderr,
            )

    def warn_of_t5x_steps(self, train_steps: int) -> None:
        """Warns that the steps of a run start at 0. In T5X they continue from the step of the initial checkpoint."""
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
            require_same_vocabulary(what, opened.vocabulary, self._vocabulary, may_extend=True)

    def warn_of_unreadable_checkpoint(self) -> None:
        """Warns that the run continues without its initial checkpoint."""
        if self._unreadable is not None and distributed.is_primary_process():
            print(
                f"jaxalign: the initial checkpoint cannot be read, and is no longer needed: {self._unreadable}",
                file=sys.stderr,
            )

    def _initialise(self, role: str, network: Network) -> Any:
        shapes, axes = network.abstract_params(), network.logical_axes()
        places = role_shardings(self._mesh, shapes, axes, self._rules.get(role, ()))
        from_checkpoint = (self._initial or self._unreadable) is not None
        # This is read before the mesh is active, because JAX refuses arrays without a sharding on an active mesh.
        policy = self.policy if role != "policy" and from_checkpoint else None
        with partitioning.set_mesh(self._mesh):
            if policy is not None:
                start = self._objective.policy.start_params(policy)
                make = jax.jit(_from_policy(network), out_shardings=places)
                return make(self._keys[role], start)
            return jax.jit(network.init, out_shardings=places)(self._keys[role])


def _from_policy(network: Network) -> Callable[[Any, Any], Any]:
    """Returns `Network.from_policy` for a policy whose parameters may be stored in bfloat16."""

    def make(key: Any, policy: Any) -> Any:
        return network.from_policy(key, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), policy))

    return make
