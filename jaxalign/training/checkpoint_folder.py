"""Prepares the folder of a run's checkpoints: damaged ones are set aside, leftover files are removed, and the disk is checked."""

from __future__ import annotations

import sys
from pathlib import Path

import jax

from jaxalign import files, untrusted
from jaxalign.parallel import distributed
from jaxalign.runs import leftovers, manifests
from jaxalign.runs.checkpoints import CHECKPOINTS, checkpoint_steps, recorded_origin
from jaxalign.training.checkpointing import Checkpointer, CheckpointPolicy
from jaxalign.training.state import TrainState


def open_run(model_dir: Path, policy: CheckpointPolicy) -> Checkpointer:
    """Opens the checkpointer of a new or continued run. Sets damaged checkpoints aside, removes leftover files, and prints both.

    Raises:
      UserError: if all checkpoints are damaged, or the folder cannot be written.
    """
    for line in distributed.broadcast_from_first(lambda: _tidied(model_dir)):
        if distributed.is_primary_process():
            print(f"jaxalign: {line}", file=sys.stderr)
    return Checkpointer(model_dir, policy)


def _tidied(model_dir: Path) -> list[str]:
    """Sets damaged checkpoints aside and removes leftover files of killed processes; returns one line for each."""
    folder = model_dir / CHECKPOINTS
    if not folder.is_dir():
        return leftovers.remove_from_run(model_dir)
    untrusted.check_tree(folder, inside=model_dir)
    removed = leftovers.remove_from_run(model_dir)
    steps, origin = checkpoint_steps(folder), recorded_origin(model_dir)
    lines = manifests.set_damaged_aside(folder, steps, origin)
    return removed + lines + leftovers.remove_older_damaged(folder)


def check_space(
    model_dir: Path, policy: CheckpointPolicy, train_steps: int, abstract_state: TrainState
) -> None:
    """Refuses a run whose checkpoints do not fit on the disk.

    Raises:
      UserError: the checkpoints do not fit; the message gives the sizes.
    """
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract_state))
    number = -(-train_steps // policy.period) if policy.period else 1
    if policy.keep_latest is not None:
        # The oldest checkpoint is deleted only after the newest is complete.
        best = policy.keep_best if policy.best_metric is not None else 0
        number = min(number, policy.keep_latest + best + 1)
    there = checkpoint_steps(model_dir / CHECKPOINTS)
    more = max(number - len(there), 0 if there and there[-1] >= train_steps else 1)
    distributed.broadcast_from_first(lambda: files.check_space(model_dir, size, more))
