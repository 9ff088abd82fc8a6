"""Writes the description, versions, configuration and summary of a run into its folder."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxalign import files, locks
from jaxalign.data.cache_metadata import CacheMetadata
from jaxalign.data.chat_templates import write_chat_template
from jaxalign.data.task_data import TaskData
from jaxalign.errors import UserError
from jaxalign.objectives.base import Objective
from jaxalign.parallel import distributed
from jaxalign.parallel.devices import Placement
from jaxalign.runs import describing
from jaxalign.runs.bases import BASE
from jaxalign.runs.description import write_description as write_networks
from jaxalign.training import build
from jaxalign.training.launch import Launch
from jaxalign.training.loop import Loop, LoopConfig
from jaxalign.training.model_info import model_info
from jaxalign.training.state import TrainState
from jaxalign.version import __version__

_VERSIONED = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
CONFIGURATION_FILE = "config.gin"
MODEL_INFO_FILE = "model-info.txt"
LOCK_FILE = ".lock"


@contextlib.contextmanager
def open_folder(model_dir: str) -> Iterator[Path]:
    """Creates a writable run folder, and locks it for this run until the context ends.

    Args:
      model_dir: the path as the user gives it.

    Yields:
      The folder. The first process holds the lock. If nothing is written there, as in a run that is refused, the folders that were
      created for it are removed again.

    Raises:
      UserError: the folder is on a bucket, cannot be written, or another run is writing there.
    """
    folder = local_folder(model_dir)
    held: list[locks.Lock] = []
    created: list[Path] = []

    def take() -> None:
        # A folder that cannot be written is reported before the checks, which may make a cache for hours.
        created.extend(path for path in (folder, *folder.parents) if not path.exists())
        files.make_writable_folder(folder)
        held.append(locks.Lock(folder / LOCK_FILE, f"MODEL_DIR {folder}"))

    try:
        distributed.broadcast_from_first(take)
        yield folder
    finally:
        for lock in held:
            lock.release()
        with contextlib.suppress(OSError):
            for path in created:
                # Fails if the folder is not empty.
                path.rmdir()


def local_folder(model_dir: str) -> Path:
    """Returns the absolute path of MODEL_DIR.

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
    return files.absolute_path(model_dir)


def write_description(
    launch: Launch,
    objective: Objective,
    data: TaskData,
    metadata: CacheMetadata,
    origin: Mapping[str, Any],
) -> None:
    """Writes ``networks.json`` and ``versions.json``, and copies the vocabulary.

    Args:
      launch: this launch of the run.
      objective: the method, with its networks.
      data: the task.
      metadata: the metadata of the task's cache.
      origin: the checkpoints that the run started from, see `Start.origin`.
    """
    folder = launch.folder
    vocabulary = dict(metadata.vocabulary)
    if "path" in vocabulary:
        source = Path(data.cache_dir) / vocabulary["path"]
        files.write_bytes(folder / source.name, source.read_bytes())
    if metadata.chat_template is not None:
        write_chat_template(folder, metadata.chat_template)
    statistics = metadata.reward_statistics
    description = {
        "run_id": launch.run_id,
        **({"teacher_tokens": launch.teacher_tokens} if launch.teacher_tokens else {}),
        **origin,
        **describing.describe_networks(objective),
        "vocabulary": vocabulary,
        "feature_lengths": dict(data.feature_lengths),
        "long_prompts": data.long_prompts,
        "row_lengths": dict(data.row_lengths) if data.pack and data.row_lengths else None,
        "reward": dataclasses.asdict(statistics)
        if statistics and data.standardize_rewards
        else None,
        **({"score_names": list(metadata.score_names)} if metadata.score_names else {}),
        **({"chat_template": metadata.chat_template} if metadata.chat_template else {}),
        "task": data.task,
        "task_fingerprint": metadata.fingerprint,
        "manifests": True,
    }
    write_networks(folder, description)
    files.write_text(folder / "versions.json", json.dumps(versions(), indent=2) + "\n")


def write_configuration(folder: Path, text: str) -> None:
    """Writes the configuration of the run to ``config.gin``, if it has one."""
    if text:
        files.write_text(folder / CONFIGURATION_FILE, text)


def write_model_info(
    folder: Path, objective: Objective, abstract: TrainState, placement: Placement
) -> None:
    """Writes a list of every array of the state and its placement to ``model-info.txt``."""
    axes = build.logical_axes(objective)
    frozen = {role: n for role, (_, n) in build.parameter_counts(objective).items() if n}
    meshes = {"each device": placement.mesh}
    text = model_info(abstract, axes, meshes, placement.rules, frozen)
    files.write_text(folder / MODEL_INFO_FILE, text)


def checkpoint_metadata(
    launch: Launch,
    objective: Objective,
    batch_size: int,
    gin_text: str,
    origin: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns the JSON metadata that is stored with every checkpoint of the run. A checkpoint of adapters names their base."""
    return {
        **({BASE: origin[BASE]} if BASE in origin else {}),
        "run_id": launch.run_id,
        "objective": objective.name,
        "batch_size": batch_size,
        "gin": gin_text,
        **versions(),
    }


def versions() -> dict[str, Any]:
    """Returns the versions of packages and Python, the devices and, in a checkout, the commit."""
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
    """Returns the commit of the checkout that this package runs from; None if it does not run from a checkout."""
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
    """Returns the content of ``summary.json``; ``started`` is the start time of the launch."""
    statistics, sampled = metadata.reward_statistics, data.sampled
    return {
        "step": int(state.step),
        "train_steps": loop.train_steps,
        "ended_early_with_patience": loop.patience if runner.out_of_patience else None,
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
