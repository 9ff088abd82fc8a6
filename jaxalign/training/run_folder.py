"""What a run writes into its folder besides metrics and checkpoints: description, versions, configuration and summary."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jaxalign import __version__, files, locks, untrusted
from jaxalign.data.cache_metadata import CacheMetadata
from jaxalign.data.recorded_vocabulary import RecordedVocabulary, require_same_vocabulary
from jaxalign.data.task_data import TaskData
from jaxalign.errors import UserError
from jaxalign.objectives.base import Objective
from jaxalign.parallel import distributed
from jaxalign.runs import checkpoints, describing
from jaxalign.runs.description import MAX_STEP, NETWORKS_FILE, read_description
from jaxalign.runs.description import write_description as write_networks
from jaxalign.runs.typed_json import JsonReader
from jaxalign.training.loop import Loop, LoopConfig
from jaxalign.training.state import TrainState

_VERSIONED = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
SUMMARY_FILE = "summary.json"
CONFIGURATION_FILE = "config.gin"
MODEL_INFO_FILE = "model-info.txt"
LOCK_FILE = ".lock"


def open_folder(model_dir: str) -> tuple[Path, locks.Lock | None]:
    """Makes a run folder that can be written, and takes it for this run.

    Args:
      model_dir: as the user gives it.

    Returns:
      The folder, and the lock of the first process, to be released when the run ends.

    Raises:
      UserError: it is on a bucket, cannot be written, or another run is writing there.
    """
    folder = local_folder(model_dir)
    held: list[locks.Lock] = []

    def take() -> None:
        files.make_writable_folder(folder)
        held.append(locks.Lock(folder / LOCK_FILE, f"MODEL_DIR {folder}"))

    distributed.first(take)
    return folder, held[0] if held else None


def local_folder(model_dir: str) -> Path:
    """The absolute path of MODEL_DIR.

    Raises:
      UserError: it is empty, or names a bucket.
    """
    if "://" in model_dir:
        raise UserError(
            f"MODEL_DIR {model_dir}: run folders are on file systems; mount the bucket (gcsfuse) and give that path, or copy the finished "
            "run to the bucket"
        )
    if not model_dir.strip():
        raise UserError("MODEL_DIR is empty; give the folder for the run")
    return Path(model_dir).expanduser().absolute()


def earlier_launch(folder: Path) -> dict[str, Any]:
    """What an earlier launch of this run wrote about itself; nothing if it left no checkpoint, for then this is another run."""
    written = (folder / NETWORKS_FILE).exists() and checkpoints.has_checkpoint(folder)
    return dict(read_description(folder).content) if written else {}


def check_same_method(folder: Path, earlier: Mapping[str, Any], objective: Objective) -> None:
    """Refuses to continue a run with another method, or with other hyperparameters.

    Raises:
      UserError: naming both.
    """
    ours_by_name = describing.describe_method(objective)
    hyperparameters = ours_by_name.pop("hyperparameters")
    # Runs of before hyperparameters were written have none to compare.
    written = earlier.get("hyperparameters", {})
    compared = [(what, earlier.get(what, ours), ours) for what, ours in ours_by_name.items()]
    compared += [(name, written.get(name, ours), ours) for name, ours in hyperparameters.items()]
    # An earlier version's, which has another meaning or none now.
    compared += [
        (name, theirs, None) for name, theirs in written.items() if name not in hyperparameters
    ]
    for what, theirs, ours in compared:
        if theirs != ours:
            raise UserError(
                f"{folder} holds a run with {what} {theirs}, and this command says {ours}; choose another MODEL_DIR"
            )


def check_same_vocabulary(
    folder: Path, earlier: Mapping[str, Any], vocabulary: RecordedVocabulary
) -> None:
    """Refuses to continue a run with a task that is tokenised otherwise than when it began.

    Raises:
      UserError: naming both.
    """
    if earlier.get("vocabulary"):
        theirs = RecordedVocabulary(earlier["vocabulary"], str(folder))
        require_same_vocabulary(f"the run in {folder}", theirs, vocabulary)


def check_same_origin(
    folder: Path, what: str, before: Mapping[str, Any] | None, now: Mapping[str, Any]
) -> None:
    """Refuses to continue a run whose reference or teacher is another one than when it began.

    Raises:
      UserError: naming both.
    """
    if before is None:
        return
    named = [
        f"{each.get('path')} ({each['run_id']}, step {each['step']})" for each in (before, now)
    ]
    if any(before[key] != now[key] for key in ("run_id", "step")):
        raise UserError(
            f"{folder}: this run began with the {what} {named[0]}, and now finds {named[1]}; put it back, or choose another MODEL_DIR"
        )


def check_same_teacher(
    folder: Path, before: Mapping[str, Any] | None, now: Mapping[str, Any] | None
) -> None:
    """Refuses to continue a run with other stored teacher tokens.

    Raises:
      UserError: naming both.
    """
    if before != now:
        raise UserError(
            f"{folder}: this run began with the teacher tokens {before}, and now finds {now}; store those again under that name, or choose "
            "another MODEL_DIR"
        )


def finished_summary(folder: Path, train_steps: int) -> dict[str, Any] | None:
    """The summary of a run that has done all its steps, so that giving its command again changes nothing; None if steps are left."""
    if not (folder / SUMMARY_FILE).exists() or not checkpoints.has_checkpoint(folder):
        return None
    summary = untrusted.read_json_object(folder / SUMMARY_FILE, inside=folder)
    step = JsonReader(summary, str(folder / SUMMARY_FILE)).integer("step", 0, MAX_STEP) or 0
    done = step >= train_steps and summary.get("train_steps") == train_steps
    return summary if done else None


def write_description(
    folder: Path,
    objective: Objective,
    data: TaskData,
    metadata: CacheMetadata,
    origin: Mapping[str, Any],
) -> None:
    """Writes ``networks.json`` and ``versions.json``, and copies the vocabulary.

    Args:
      folder: the run folder.
      objective: the method, with its networks.
      data: the task.
      metadata: of the task's cache.
      origin: the run's id and where it started from.
    """
    vocabulary = dict(metadata.vocabulary)
    if "path" in vocabulary:
        source = Path(data.cache_dir) / vocabulary["path"]
        files.write_bytes(folder / source.name, source.read_bytes())
    statistics = metadata.reward_statistics
    description = {
        **origin,
        **describing.describe_networks(objective),
        "vocabulary": vocabulary,
        "feature_lengths": dict(data.feature_lengths),
        "long_prompts": data.long_prompts,
        "row_lengths": dict(data.row_lengths) if data.pack and data.row_lengths else None,
        "reward": dataclasses.asdict(statistics)
        if statistics and data.standardize_rewards
        else None,
        "task": data.task,
        "manifests": True,
    }
    write_networks(folder, description)
    files.write_text(folder / "versions.json", json.dumps(versions(), indent=2) + "\n")


def write_configuration(folder: Path, text: str) -> None:
    """Writes the configuration of the run to ``config.gin``, if it has one."""
    if text:
        files.write_text(folder / CONFIGURATION_FILE, text)


def versions() -> dict[str, Any]:
    """Packages, Python, devices and, in a checkout, the commit."""
    packages = {"jaxalign": __version__}
    for name in _VERSIONED:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = "not installed"
    return {
        "packages": packages,
        "python": platform.python_version(),
        "git_commit": _git_commit(),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def _git_commit() -> str | None:
    """The commit of the checkout that this package is run from; None if it is installed otherwise."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def summarize(
    runner: Loop,
    state: TrainState,
    data: TaskData,
    metadata: CacheMetadata,
    started: float,
    loop: LoopConfig,
) -> dict[str, Any]:
    """The content of ``summary.json``; ``started`` is the time the launch began."""
    statistics, sampled = metadata.reward_statistics, data.sampled
    return {
        "step": int(state.step),
        "train_steps": loop.train_steps,
        "objective": runner.objective_name,
        "examples": runner.throughput.examples,
        "tokens": runner.throughput.tokens,
        "seconds": round(time.time() - started, 1),
        "train": runner.last_training_metrics,
        "evaluation": runner.evaluations,
        "best": runner.best,
        "data": {
            "num_examples": metadata.num_examples,
            "rejected": metadata.rejected,
            "notes": {name: dict(split.notes) for name, split in metadata.splits.items()},
            "cut_prompts": metadata.cut_fraction,
            "feedback": dataclasses.asdict(statistics) if statistics else None,
            **({} if sampled is None else {"sampling": sampled.describe()}),
        },
    }
