"""The base of a run that trained low-rank adapters: another run's policy, which this run names and does not hold.

A run whose base is no policy of another run holds the base itself, once (`checkpoints.FROZEN_LEAVES`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jaxalign import untrusted
from jaxalign.errors import UserError
from jaxalign.networks import adapters
from jaxalign.networks.leaves import merge_leaves
from jaxalign.networks.lora import LoraPolicy
from jaxalign.networks.network_config import DTYPES
from jaxalign.networks.stacking import stack_layers, unstack_layers
from jaxalign.runs.typed_json import JsonReader

BASE = "base"
_MAX_STEP = 10**12
_MAX_RANK = 1 << 16
_MAX_TARGETS, _MAX_TARGET = 1 << 16, 1024


@dataclasses.dataclass(frozen=True)
class Base:
    """The record of a base, under ``base`` in ``networks.json`` and in the metadata of every checkpoint.

    Attributes:
      path: the run folder, where it was in training.
      relative_path: the same path as seen from the run that trained the adapters; it stays true if both folders move together.
      step: the step of its checkpoint.
      run_id: the id of that run.
      digest: `Run.policy_digest` of its policy, whose parameters are in the layout of the network with adapters.
    """

    path: str
    relative_path: str
    step: int
    run_id: str
    digest: str

    def to_json(self) -> dict[str, Any]:
        """Returns JSON that `parse_base` reads."""
        return dataclasses.asdict(self)

    def find(self, run: Path) -> Path:
        """Returns the folder of the base as seen from a run with adapters on it.

        Raises:
          UserError: it is at neither of the recorded paths.
        """
        places = [Path(self.path), Path(os.path.normpath(run / self.relative_path))]
        there = [place for place in places if place.is_dir()]
        for place in there:
            # Another run may have taken one of the two places.
            with contextlib.suppress(UserError, OSError):
                if untrusted.read_json_object(place / "networks.json").get("run_id") == self.run_id:
                    return place
        if there:
            return there[0]
        raise UserError(
            f"{run} holds only adapters, and their base {self.path} (run {self.run_id}, step {self.step}) is missing; put it back, or "
            f"correct 'path' of '{BASE}' in {run / 'networks.json'}"
        )

    def check_run(self, run: Path, found: str, where: Path) -> None:
        """Refuses a base of another run.

        Args:
          run: the run with the adapters.
          found: the id of the run at `where`.
          where: the folder of the base.

        Raises:
          UserError: the ids differ.
        """
        if found != self.run_id:
            raise UserError(
                f"{run} holds adapters of run {self.run_id}, step {self.step}, and {where} is run {found}; put the base back, or correct "
                f"'path' of '{BASE}' in {run / 'networks.json'}"
            )

    def check_digest(self, run: Path, found: str, where: Path) -> None:
        """Refuses a base with other parameters than those that the adapters were trained on.

        Args:
          run: the run with the adapters.
          found: `Run.policy_digest` of the run at `where`.
          where: the folder of the base.

        Raises:
          UserError: the parameters differ.
        """
        if found != self.digest:
            raise UserError(
                f"{run} holds adapters of parameters with the fingerprint {self.digest}, and step {self.step} of {where} has {found}; put "
                "the base back that they were trained on"
            )


def parse_base(read: JsonReader) -> Base | None:
    """Returns the base that a description records; None if it records none.

    Raises:
      UserError: the record is invalid.
    """
    described = read.optional_object(BASE)
    if described is None:
        return None
    inner = JsonReader(described, f"{read.where}, {BASE}")
    step = inner.integer("step", 0, _MAX_STEP)
    if step is None:
        raise inner.wrong("step", "a whole number")
    texts = {
        name: str(inner.text(name, None, required=True))
        for name in ("path", "relative_path", "run_id", "digest")
    }
    return Base(step=step, **texts)


def check_lora(described: Any, where: str) -> None:
    """Checks the settings of adapters in the description of a network.

    Raises:
      UserError: a value is invalid; the message names the file and the key.
    """
    if not isinstance(described, Mapping):
        raise UserError(f"{where}: 'lora' must be an object")
    read = JsonReader(described, f"{where}, lora")
    if read.integer("rank", 1, _MAX_RANK) is None:
        raise read.wrong("rank", "a whole number")
    read.number("alpha", above_zero=True)
    read.number("dropout")
    read.truth("rank_stabilized")
    read.text("base_dtype", None, DTYPES)
    targets = described.get("targets")
    # A pattern would be run by the reader; a stranger's could take forever.
    if (
        not isinstance(targets, list)
        or len(targets) > _MAX_TARGETS
        or not all(isinstance(each, str) and len(each) <= _MAX_TARGET for each in targets)
    ):
        raise read.wrong("targets", "a list of paths of kernels")


def with_adapters(shardings: Any, network: LoraPolicy) -> Any:
    """Returns the shardings of a network's parameters from those of its base; every device has a copy of the adapters."""
    first = jax.tree.leaves(shardings)[0]
    if isinstance(first, NamedSharding):
        first = NamedSharding(first.mesh, PartitionSpec())
    own = jax.tree.map(lambda _: first, adapters.only(network.abstract_params()))
    return merge_leaves(shardings, own)


def same_layout(theirs: Any, ours: Any) -> bool:
    """Returns whether two configurations stack layers in the same way."""
    one, other = (
        (config.scan_layers, config.param_scan_axis if config.scan_layers else 0)
        for config in (theirs, ours)
    )
    return bool(one == other)


def in_layout(params: Any, theirs: Any, ours: Any) -> Any:
    """Returns parameters with layers stacked as one configuration says, from parameters stacked as another one says."""
    if same_layout(theirs, ours):
        return params
    if theirs.scan_layers:
        params = unstack_layers(params, axis=theirs.param_scan_axis, cycle=theirs.LAYER_CYCLE)
    if not ours.scan_layers:
        return params
    return stack_layers(params, axis=ours.param_scan_axis, cycle=ours.LAYER_CYCLE)
