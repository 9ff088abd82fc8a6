"""Orbax checkpoints: asynchronous, one item each for parameters, optimizer, data iterator and metadata.

Restoring always passes explicit shardings, so a run can move to another mesh and to another number of processes: the iterator's
state is a position in the global order of the data. Nothing is unpickled; metadata is JSON.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxalign.errors import UserError
from jaxalign.training import distributed, files, manifests
from jaxalign.training.state import TrainState

CHECKPOINTS = "checkpoints"
_DISK = re.compile(
    r"no space left|RESOURCE_EXHAUSTED|disk quota|read-only file system|permission denied|file too large|input/output error",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class CheckpointPolicy:
    """When to save and what to keep.

    Attributes:
      period: steps between checkpoints.
      keep_latest: how many of the newest to keep; None for all.
      keep_best: how many of the best to keep as well.
      best_metric: name of an evaluation metric, ``"<split>/<metric>"``, for example ``"validation/loss"``; None for none.
      best_mode: 'min' or 'max'.
      asynchronous: write in the background.
    """

    period: int = 1000
    keep_latest: int | None = 2
    keep_best: int = 1
    best_metric: str | None = None
    best_mode: str = "min"
    asynchronous: bool = True


class _LatestAndNamed:
    """Orbax's preservation policy: the newest checkpoints stay, and those that are named."""

    def __init__(self, number: int | None) -> None:
        self.number, self.named = number, frozenset[int]()

    def kept(self, steps: Sequence[int]) -> list[bool]:
        """Which of these steps, oldest first, stay."""
        newest = steps if self.number is None else steps[-self.number :]
        return [step in newest or step in self.named for step in steps]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Called by Orbax, the checkpoint that is being saved included."""
        del context
        return self.kept([checkpoint.step for checkpoint in checkpoints])


class Checkpointer:
    """Saves and restores the train state of one run under ``<model_dir>/checkpoints/<step>``."""

    def __init__(
        self, model_dir: Path | str, policy: CheckpointPolicy = CheckpointPolicy()
    ) -> None:
        if policy.best_mode not in ("min", "max"):
            raise UserError(f"best_mode must be 'min' or 'max', not {policy.best_mode!r}")
        if policy.keep_latest is not None and policy.keep_latest < 1:
            raise UserError(
                f"KEEP_CHECKPOINTS must be at least 1, or None for all, not {policy.keep_latest}: a run goes on from its newest"
            )
        self.policy = policy
        self._folder = Path(model_dir).absolute() / CHECKPOINTS
        self._saving: int | None = None
        self._kept = _LatestAndNamed(policy.keep_latest)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._kept,
            # Orbax calls back only when it writes in the background; `save` waits if that is not wanted.
            enable_async_checkpointing=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_manifest),
            # What a killed process was writing.
            cleanup_tmp_directories=True,
            step_prefix=None,
        )
        with self._disk_errors_explained():
            self._manager = _manager(self._folder, options)

    def latest_step(self) -> int | None:
        """The newest complete checkpoint's step, or None."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """Steps of the checkpoints there are, that being written included."""
        return sorted(self._manager.all_steps())

    def keep(self, steps: Sequence[int]) -> None:
        """Says which checkpoints stay besides the newest, from the next time that one is saved or `prune` is called."""
        self._kept.named = frozenset(steps)

    def prune(self) -> None:
        """Deletes checkpoints that are kept neither as the newest nor by `keep`; what cannot be deleted is left alone."""
        self.wait()
        steps = self.steps()
        doomed = [
            step for step, kept in zip(steps, self._kept.kept(steps), strict=True) if not kept
        ]
        if doomed:
            distributed.first(lambda: self._delete(doomed))
            self._manager.reload()

    def _delete(self, steps: Sequence[int]) -> None:
        for step in steps:
            gone = self._folder / f"{step}.deleted"
            # Renamed first: what is left of a checkpoint must not pass for one.
            with contextlib.suppress(OSError):
                (self._folder / str(step)).rename(gone)
                shutil.rmtree(gone, ignore_errors=True)

    def save(
        self,
        state: TrainState,
        data_state: Mapping[str, Any] | None,
        metadata: Mapping[str, Any],
    ) -> None:
        """Starts saving; a step that is saved already is left alone."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        with self._disk_errors_explained():
            # The callback of the checkpoint before has to know its step.
            self._manager.wait_until_finished()
            self._saving = step
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(state.params),
                    optimizer=ocp.args.StandardSave(
                        {"step": state.step, "opt_state": state.opt_state}
                    ),
                    data=ocp.args.JsonSave({"iterator": data_state}),
                    metadata=ocp.args.JsonSave(dict(metadata)),
                ),
            )
            if not self.policy.asynchronous:
                self._manager.wait_until_finished()

    def restore(
        self, abstract_state: TrainState, shardings: TrainState, step: int | None = None
    ) -> tuple[TrainState, Any]:
        """Restores a state onto the given shardings.

        Args:
          abstract_state: shapes and types.
          shardings: where every leaf shall live.
          step: the latest by default.

        Returns:
          The state, and the data iterator's state (None if none was saved), the same for all processes.

        Raises:
          UserError: if the checkpoint's tree or shapes differ from the model's.
        """
        step = self._manager.latest_step() if step is None else step
        target = _with_shardings(abstract_state, shardings)
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardRestore(target.params),
                    optimizer=ocp.args.StandardRestore(
                        {"step": target.step, "opt_state": target.opt_state}
                    ),
                ),
            )
        except (ValueError, KeyError, TypeError) as error:
            if distributed.lost_process(error) is not None:
                raise
            raise UserError(
                f"checkpoint {self._manager.directory}/{step} does not fit this model or optimizer: {_first_line(error)}"
            ) from error
        state = TrainState(
            step=restored["optimizer"]["step"],
            params=restored["params"],
            opt_state=restored["optimizer"]["opt_state"],
        )
        return state, _iterator_state(self._folder / str(step) / "data")

    def metadata(self, step: int) -> dict[str, Any]:
        """The JSON that a checkpoint carries."""
        return read_json(self._folder / str(step) / "metadata" / "metadata")

    def wait(self) -> None:
        """Blocks until saving has finished."""
        with self._disk_errors_explained():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and releases the manager's threads."""
        self.wait()
        self._manager.close()

    def _write_manifest(self) -> None:
        """Called by Orbax on the first process when all files of a checkpoint are there and its name is still a temporary one."""
        (folder,) = self._folder.glob(f"{self._saving}.orbax-checkpoint-tmp*")
        manifests.write_manifest(folder)

    @contextlib.contextmanager
    def _disk_errors_explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            found = _DISK.search(str(error))
            if isinstance(error, UserError) or not found:
                raise
            steps = _steps(self._folder)
            kept = f"the last whole one is step {steps[-1]}" if steps else "there is none yet"
            raise UserError(
                f"could not write a checkpoint under {self._folder}: {found.group()}; {kept}"
            ) from error


def open_run(model_dir: Path, policy: CheckpointPolicy) -> Checkpointer:
    """The checkpointer of a run that starts or goes on; damaged checkpoints at the end are set aside, which is printed.

    Raises:
      UserError: if all checkpoints are damaged, or the folder cannot be written.
    """
    folder = model_dir / CHECKPOINTS
    for line in distributed.first(lambda: manifests.set_damaged_aside(folder, _steps(folder))):
        if distributed.is_first():
            print(f"jaxalign: {line}", file=sys.stderr)
    return Checkpointer(model_dir, policy)


def check_space(
    model_dir: Path, policy: CheckpointPolicy, train_steps: int, abstract_state: TrainState
) -> None:
    """Refuses a run whose checkpoints do not fit on the disk.

    Raises:
      UserError: naming sizes.
    """
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract_state))
    number = -(-train_steps // policy.period) if policy.period else 1
    if policy.keep_latest is not None:
        # The oldest goes when the newest is whole.
        best = policy.keep_best if policy.best_metric is not None else 0
        number = min(number, policy.keep_latest + best + 1)
    there = _steps(model_dir / CHECKPOINTS)
    more = max(number - len(there), 0 if there and there[-1] >= train_steps else 1)
    distributed.first(lambda: files.check_space(model_dir, size, more))


def restore_params(
    path: Path | str,
    role: str,
    *,
    step: int | str | None = None,
    abstract: Any = None,
    shardings: Any = None,
) -> Any:
    """Restores one role's parameters from a run folder or from one of its checkpoints.

    Args:
      path: a run folder, or ``<run>/checkpoints/<step>``.
      role: 'policy', 'value', ...
      step: a number, 'best', 'latest' or None (best if a best metric was kept, else latest).
      abstract: expected shapes; checked.
      shardings: where to put them; the host's first device by default.

    Raises:
      UserError: if there is no such checkpoint or role, or shapes differ.
    """
    run, found = find_checkpoint(path, step)
    folder = run / CHECKPOINTS / str(found) / "params"
    refuse_damaged(run, found)
    _quieten()
    handler = ocp.PyTreeCheckpointHandler()
    with ocp.Checkpointer(handler) as checkpointer:
        stored = checkpointer.metadata(folder).item_metadata.tree
        if role not in stored:
            raise UserError(
                f"checkpoint {folder} has no role {role!r}; it has {', '.join(sorted(stored))}"
            )
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(tuple(leaf.shape), leaf.dtype), dict(stored[role])
        )
        if abstract is not None:
            _check_shapes(folder, role, shapes, abstract)
        places = jax.tree.map(lambda _: device, shapes) if shardings is None else shardings
        target = {role: _with_shardings(shapes, places)}
        restore_args = ocp.checkpoint_utils.construct_restore_args(target)
        restored = checkpointer.restore(
            folder,
            ocp.args.PyTreeRestore(item=target, restore_args=restore_args, partial_restore=True),
        )
    return restored[role]


def refuse_damaged(run: Path | str, step: int) -> None:
    """Refuses a checkpoint whose parameters are damaged.

    Raises:
      UserError: naming the file and what is wrong with it.
    """
    checkpoint = Path(run) / CHECKPOINTS / str(step)
    damage = distributed.first(lambda: manifests.find_damage(checkpoint, "params"))
    if damage is not None:
        others = [other for other in _steps(checkpoint.parent) if other != step]
        raise UserError(
            f"checkpoint {checkpoint} is damaged: {damage}; choose another step"
            + (f" (there are {others})" if others else ", or put a copy back")
        )


def find_checkpoint(path: Path | str, step: int | str | None = None) -> tuple[Path, int]:
    """Resolves a run folder or checkpoint folder to ``(run folder, step)``.

    Raises:
      UserError: if there is none.
    """
    # Orbax finds no metadata under a relative path.
    path = Path(path).expanduser().absolute()
    if path.parent.name == CHECKPOINTS and path.name.isdigit():
        return path.parent.parent, int(path.name)
    folder = path / CHECKPOINTS
    steps = _steps(folder)
    if not steps:
        raise UserError(
            f"no checkpoint under {folder}: is {path} the folder of a finished or running training run? "
            "(`jaxalign convert` makes one of a T5X or Hugging Face checkpoint)"
        )
    if isinstance(step, int):
        if step not in steps:
            raise UserError(f"no checkpoint at step {step} under {folder}; there are {steps}")
        return path, step
    best = _best_step(path, steps) if step in (None, "best") else None
    if step == "best" and best is None:
        raise UserError(f"{path} kept no best checkpoint: set a best metric when training")
    return path, steps[-1] if best is None else best


def has_checkpoint(run: Path) -> bool:
    """Whether a run folder holds a finished checkpoint."""
    return bool(_steps(run / CHECKPOINTS))


def _steps(folder: Path) -> list[int]:
    """Steps of the finished checkpoints; Orbax renames a folder to its step when it is complete."""
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit())


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object of a run folder.

    Raises:
      UserError: if it is missing or malformed.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: is {path.parent} a run folder?") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object")
    return content


def _iterator_state(folder: Path) -> Any:
    """The iterator's state that a checkpoint holds."""
    if (folder / "metadata").exists():
        return read_json(folder / "metadata").get("iterator")
    # As checkpoints were written before they held one position for all processes.
    earlier = folder / "process_0-of-1.json"
    if not earlier.exists():
        raise UserError(
            f"{folder} holds the positions of several processes, each in a share of its own, as earlier versions wrote them; this "
            "version cannot continue that order"
        )
    return json.loads(earlier.read_text(encoding="utf-8"))


def _best_step(run: Path, steps: list[int]) -> int | None:
    summary = run / "best.json"
    if not summary.exists():
        return None
    step = read_json(summary).get("step")
    return step if step in steps else None


def _check_shapes(folder: Path, role: str, stored: Any, expected: Any) -> None:
    shapes = {
        jax.tree_util.keystr(key): leaf.shape
        for key, leaf in jax.tree_util.tree_leaves_with_path(stored)
    }
    wanted = {
        jax.tree_util.keystr(key): leaf.shape
        for key, leaf in jax.tree_util.tree_leaves_with_path(expected)
    }
    for name in sorted(shapes.keys() | wanted.keys()):
        if shapes.get(name) != wanted.get(name):
            raise UserError(
                f"checkpoint {folder}, role {role}: parameter {name} has shape {shapes.get(name)}, the model expects {wanted.get(name)}"
            )


def _with_shardings(abstract: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        shardings,
    )


def _quieten() -> None:
    """Orbax warns of files that a checkpoint item, as opposed to a whole checkpoint, never has."""
    logging.getLogger("absl").setLevel(logging.ERROR)


def _manager(folder: Path, options: ocp.CheckpointManagerOptions) -> ocp.CheckpointManager:
    _quieten()
    return ocp.CheckpointManager(folder.absolute(), options=options, item_names=manifests.ITEMS)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
