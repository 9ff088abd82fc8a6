"""Saves and restores Orbax checkpoints, asynchronously, with one item each for parameters, optimizer, data iterator and metadata.

Restoring always passes explicit shardings, so a run can move to another mesh and to another number of processes: the iterator's
state is a position in the global order of the data. Nothing is unpickled; metadata is JSON.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from jaxalign import files, untrusted
from jaxalign.errors import UserError, first_line, require_one_of, require_range
from jaxalign.parallel import distributed
from jaxalign.runs import leftovers, manifests, stored_arrays
from jaxalign.runs.checkpoints import (
    CHECKPOINTS,
    FROZEN_LEAVES,
    checkpoint_steps,
    quieten_orbax,
    with_shardings,
)
from jaxalign.runs.description import MAX_STEP
from jaxalign.runs.typed_json import JsonReader
from jaxalign.training import mismatch
from jaxalign.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class CheckpointPolicy:
    """The settings for when to save and which checkpoints to keep.

    Attributes:
      period: steps between checkpoints.
      keep_latest: the number of newest checkpoints to keep, at least 1, from which a run continues; None keeps all.
      keep_best: the number of best checkpoints to keep in addition.
      best_metric: the name of an evaluation metric, ``"<split>/<metric>"``, for example ``"validation/loss"``; None for none.
      best_mode: 'min' or 'max'.
      asynchronous: whether to write in the background.
    """

    period: int = 1000
    keep_latest: int | None = 2
    keep_best: int = 1
    best_metric: str | None = None
    best_mode: str = "min"
    asynchronous: bool = True

    def __post_init__(self) -> None:
        require_range(
            "CheckpointPolicy", "[1, inf)", period=self.period, keep_latest=self.keep_latest
        )
        require_range("CheckpointPolicy", "[0, inf)", keep_best=self.keep_best)
        require_one_of("CheckpointPolicy", ("min", "max"), best_mode=self.best_mode)


class _LatestAndNamed:
    """An Orbax preservation policy that keeps the newest checkpoints and the named ones."""

    def __init__(self, number: int | None) -> None:
        self.number, self.named = number, frozenset[int]()

    def kept(self, steps: Sequence[int]) -> list[bool]:
        """Returns for each of these steps, oldest first, whether it is kept."""
        newest = steps if self.number is None else steps[-self.number :]
        return [step in newest or step in self.named for step in steps]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Returns which checkpoints to keep. Orbax calls this; the list includes the checkpoint that is being saved."""
        del context
        return self.kept([checkpoint.step for checkpoint in checkpoints])


class Checkpointer:
    """Saves and restores the train state of one run under ``<model_dir>/checkpoints/<step>``."""

    def __init__(
        self, model_dir: Path | str, policy: CheckpointPolicy = CheckpointPolicy()
    ) -> None:
        self.policy = policy
        self._folder = files.absolute_path(model_dir) / CHECKPOINTS
        # The step and the run of the checkpoint that is being written.
        self._saving: tuple[int, str | None] | None = None
        self._kept = _LatestAndNamed(policy.keep_latest)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._kept,
            # Orbax calls back only when it writes in the background. `save` waits if background writing is off.
            enable_async_checkpointing=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_manifest),
            # Removes the files that a killed process was writing.
            cleanup_tmp_directories=True,
            step_prefix=None,
        )
        with self._disk_errors_explained():
            self._manager = _manager(self._folder, options)

    def latest_step(self) -> int | None:
        """Returns the step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """Returns the steps of the existing checkpoints, including the one that is being written."""
        return sorted(self._manager.all_steps())

    def keep(self, steps: Sequence[int]) -> None:
        """Sets which checkpoints to keep besides the newest. It takes effect at the next save or the next call of `prune`."""
        self._kept.named = frozenset(steps)

    def prune(self) -> None:
        """Deletes checkpoints that are kept neither as the newest nor by `keep`; skips those that cannot be deleted."""
        self.wait()
        steps = self.steps()
        doomed = [
            step for step, kept in zip(steps, self._kept.kept(steps), strict=True) if not kept
        ]
        if doomed:
            distributed.broadcast_from_first(lambda: self._delete(doomed))
            self._manager.reload()

    def _delete(self, steps: Sequence[int]) -> None:
        for step in steps:
            gone = self._folder / f"{step}{leftovers.DELETED}"
            # The folder is renamed first, so that a half-deleted one does not look like a checkpoint.
            with contextlib.suppress(OSError):
                (self._folder / str(step)).rename(gone)
                shutil.rmtree(gone, ignore_errors=True)

    def save(
        self,
        state: TrainState,
        data_state: Mapping[str, Any] | None,
        metadata: Mapping[str, Any],
    ) -> None:
        """Starts saving a step, unless that step is already saved."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        with self._disk_errors_explained():
            # The callback of the previous checkpoint needs the step of that checkpoint until it is finished.
            self._manager.wait_until_finished()
            self._saving = (step, metadata.get("run_id"))
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(state.params),
                    optimizer=ocp.args.StandardSave(
                        {"step": state.step, "opt_state": state.opt_state}
                    ),
                    data=ocp.args.JsonSave({"iterator": data_state}),
                    metadata=ocp.args.JsonSave({**metadata, "step": step}),
                ),
            )
            if not self.policy.asynchronous:
                self._manager.wait_until_finished()

    def save_frozen_leaves(self, leaves: Mapping[str, Any]) -> None:
        """Writes the frozen leaves of trained roles once for the whole run; does nothing if there are none."""
        if not leaves:
            return
        folder = self._folder.parent / FROZEN_LEAVES
        with self._disk_errors_explained():
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
                checkpointer.save(folder, ocp.args.PyTreeSave(dict(leaves)), force=True)
            distributed.broadcast_from_first(lambda: manifests.write_manifest(folder))

    def restore(
        self, abstract_state: TrainState, shardings: TrainState, step: int | None = None
    ) -> tuple[TrainState, Any]:
        """Restores a state onto the given shardings.

        Args:
          abstract_state: the shapes and types of the state.
          shardings: the sharding of every leaf.
          step: the step to restore; the latest by default.

        Returns:
          The state, and the data iterator's state (None if none was saved), the same for all processes.

        Raises:
          UserError: if the checkpoint's tree or shapes differ from the model's.
        """
        step = self._manager.latest_step() if step is None else step
        target = with_shardings(abstract_state, shardings)
        items = {
            "params": target.params,
            "optimizer": {"step": target.step, "opt_state": target.opt_state},
        }
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    **{name: ocp.args.StandardRestore(tree) for name, tree in items.items()}
                ),
            )
        except (ValueError, KeyError, TypeError) as error:
            if distributed.lost_process_message(error) is not None:
                raise
            checkpoint = Path(self._manager.directory) / str(step)
            found = mismatch.describe_mismatch(checkpoint, items)
            if found is None:
                raise UserError(f"{checkpoint} cannot be restored: {first_line(error)}") from error
            raise UserError(
                f"{checkpoint} does not fit this model or optimizer: {found}; continue the run with the model and optimizer that it began "
                "with, or choose another MODEL_DIR"
            ) from error
        state = TrainState(
            step=restored["optimizer"]["step"],
            params=restored["params"],
            opt_state=restored["optimizer"]["opt_state"],
        )
        where = f"checkpoint {self._folder / str(step)}"
        stored_arrays.refuse_not_finite(where, state.params)
        return state, _iterator_state(self._folder / str(step) / "data")

    def metadata(self, step: int) -> dict[str, Any]:
        """Returns the JSON metadata of a checkpoint."""
        file = self._folder / str(step) / "metadata" / "metadata"
        found = untrusted.read_json_object(file, inside=self._folder.parent)
        read = JsonReader(found, str(file))
        own = read.integer("step", 0, MAX_STEP)
        if own not in (None, step):
            raise UserError(f"{file} is of step {own}, not of step {step}")
        read.integer("batch_size", 1, MAX_STEP)
        for name, sums in (read.optional_object("accumulated_metrics") or {}).items():
            if not isinstance(sums, list) or [type(each) for each in sums] != [float, float]:
                raise read.wrong("accumulated_metrics", f"pairs of numbers ({name[:40]})")
        return found

    def wait(self) -> None:
        """Blocks until saving has finished."""
        with self._disk_errors_explained():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until saving has finished and releases the manager's threads."""
        self.wait()
        self._manager.close()

    def _write_manifest(self) -> None:
        """Writes the manifest. Orbax calls this on the first process when a checkpoint has all files but still a temporary name."""
        assert self._saving is not None
        step, run_id = self._saving
        (folder,) = self._folder.glob(f"{step}.orbax-checkpoint-tmp*")
        manifests.write_manifest(folder, step=step, run_id=run_id)

    @contextlib.contextmanager
    def _disk_errors_explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            found = files.disk_problem(error)
            if found is None:
                raise
            steps = checkpoint_steps(self._folder)
            kept = f"the last whole one is step {steps[-1]}" if steps else "there is none yet"
            raise UserError(
                f"could not write a checkpoint under {self._folder}: {found}; {kept}"
            ) from error


def _iterator_state(folder: Path) -> Any:
    """Returns the iterator state that a checkpoint holds."""
    return untrusted.read_json_object(folder / "metadata").get("iterator")


def _manager(folder: Path, options: ocp.CheckpointManagerOptions) -> ocp.CheckpointManager:
    quieten_orbax()
    return ocp.CheckpointManager(
        files.absolute_path(folder), options=options, item_names=manifests.ITEMS
    )
