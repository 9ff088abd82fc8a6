"""Orbax checkpoints: asynchronous, one item each for parameters, optimizer, data iterator and metadata.

Restoring always passes explicit shardings, so a run can move to another mesh. Nothing is unpickled; metadata is JSON.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from jaxalign.errors import UserError
from jaxalign.training.state import TrainState

CHECKPOINTS = "checkpoints"
_ITEMS = ("params", "optimizer", "data", "metadata")


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


class _IteratorState:
    """Lets Grain's handler, which writes one file a process, store a state that was taken when its batch was made."""

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        self.state = state

    def get_state(self) -> bytes:
        return json.dumps(self.state).encode()

    def set_state(self, state: bytes) -> None:
        self.state = json.loads(state.decode())

    def start_prefetch(self) -> None:
        """Nothing to prefetch: the state is applied to a dataset later."""


class Checkpointer:
    """Saves and restores the train state of one run under ``<model_dir>/checkpoints/<step>``."""

    def __init__(
        self, model_dir: Path | str, policy: CheckpointPolicy = CheckpointPolicy()
    ) -> None:
        if policy.best_mode not in ("min", "max"):
            raise UserError(f"best_mode must be 'min' or 'max', not {policy.best_mode!r}")
        self.policy = policy
        rules: list[Any] = [checkpoint_managers.LatestN(policy.keep_latest)]
        if policy.best_metric is not None and policy.keep_latest is not None:
            metric = policy.best_metric
            rules.append(
                checkpoint_managers.BestN(
                    get_metric_fn=lambda metrics: metrics[metric],
                    reverse=policy.best_mode == "min",
                    n=policy.keep_best,
                    keep_checkpoints_without_metrics=False,
                )
            )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(rules),
            enable_async_checkpointing=policy.asynchronous,
            step_prefix=None,
        )
        self._manager = _manager(Path(model_dir) / CHECKPOINTS, options)

    def latest_step(self) -> int | None:
        """The newest complete checkpoint's step, or None."""
        return self._manager.latest_step()

    def save(
        self,
        state: TrainState,
        data_state: Mapping[str, Any] | None,
        metadata: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Starts saving; a step that is saved already is left alone."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        kept = None
        if self.policy.best_metric is not None and metrics is not None:
            if self.policy.best_metric not in metrics:
                raise UserError(
                    f"best_metric {self.policy.best_metric!r} was not measured; available: {', '.join(sorted(metrics)) or 'none'}"
                )
            kept = {name: float(value) for name, value in metrics.items()}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                optimizer=ocp.args.StandardSave({"step": state.step, "opt_state": state.opt_state}),
                data=grain.checkpoint.CheckpointSave(_IteratorState(data_state)),
                metadata=ocp.args.JsonSave(dict(metadata)),
            ),
            metrics=kept,
        )

    def restore(
        self, abstract_state: TrainState, shardings: TrainState, step: int | None = None
    ) -> tuple[TrainState, Any]:
        """Restores a state onto the given shardings.

        Args:
          abstract_state: shapes and types.
          shardings: where every leaf shall live.
          step: the latest by default.

        Returns:
          The state, and the data iterator's state of this process (None if none was saved).

        Raises:
          UserError: if the checkpoint's tree or shapes differ from the model's.
        """
        step = self._manager.latest_step() if step is None else step
        target = _with_shardings(abstract_state, shardings)
        iterator = _IteratorState()
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardRestore(target.params),
                    optimizer=ocp.args.StandardRestore(
                        {"step": target.step, "opt_state": target.opt_state}
                    ),
                    data=grain.checkpoint.CheckpointRestore(iterator),
                ),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"checkpoint {self._manager.directory}/{step} does not fit this model or optimizer: {_first_line(error)}"
            ) from error
        state = TrainState(
            step=restored["optimizer"]["step"],
            params=restored["params"],
            opt_state=restored["optimizer"]["opt_state"],
        )
        return state, iterator.state

    def wait(self) -> None:
        """Blocks until saving has finished."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and releases the manager's threads."""
        self._manager.wait_until_finished()
        self._manager.close()


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
    return ocp.CheckpointManager(folder.absolute(), options=options, item_names=_ITEMS)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
