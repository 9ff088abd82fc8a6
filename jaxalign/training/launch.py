"""Reads what earlier launches of a run wrote into its folder, and checks whether this launch may continue it."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxalign import untrusted
from jaxalign.data.cache_metadata import CacheMetadata
from jaxalign.data.recorded_vocabulary import RecordedVocabulary, require_same_vocabulary
from jaxalign.data.task_data import TaskData
from jaxalign.errors import UserError
from jaxalign.objectives.base import Objective
from jaxalign.parallel import distributed
from jaxalign.runs import checkpoints, describing
from jaxalign.runs.description import MAX_STEP, NETWORKS_FILE, read_description
from jaxalign.runs.typed_json import JsonReader

SUMMARY_FILE = "summary.json"


@dataclasses.dataclass(frozen=True)
class Launch:
    """One launch of a run, identical in all processes of the job.

    Attributes:
      folder: the run folder.
      run_id: the id of the run, the same in every launch.
      earlier: the record of an earlier launch; empty if this launch is the first.
      vocabulary: the vocabulary of the task. Every checkpoint that the run reads must have been trained with it. None disables the check.
      teacher_tokens: the identity of the stored teacher tokens that the task reads; None if it reads none.
    """

    folder: Path
    run_id: str
    earlier: Mapping[str, Any]
    vocabulary: RecordedVocabulary | None
    teacher_tokens: Mapping[str, Any] | None

    def finished_summary(self, train_steps: int, patience: int) -> dict[str, Any] | None:
        """Returns the summary of a run that has done all its steps, or ended early; None if steps are left."""
        return distributed.broadcast_from_first(
            lambda: finished_summary(self.folder, train_steps, patience)
        )


def open_launch(
    folder: Path, objective: Objective, data: TaskData, metadata: CacheMetadata
) -> Launch:
    """Reads the records of earlier launches, and refuses to continue a different run.

    Raises:
      UserError: the folder holds a run with another method, hyperparameters, vocabulary, examples or teacher tokens.
    """
    earlier = distributed.broadcast_from_first(lambda: earlier_launch(folder))
    check_same_method(folder, earlier, objective)
    vocabulary = RecordedVocabulary(metadata.vocabulary, data.cache_dir)
    check_same_vocabulary(folder, earlier, vocabulary)
    check_same_task(folder, earlier, data, metadata)
    teacher = data.teacher()
    check_same_teacher(folder, earlier.get("teacher_tokens", teacher), teacher)
    run_id = distributed.broadcast_from_first(
        lambda: earlier.get("run_id") or uuid.uuid4().hex[:12]
    )
    return Launch(folder, run_id, earlier, vocabulary, teacher)


def earlier_launch(folder: Path) -> dict[str, Any]:
    """Returns the record of an earlier launch; an empty dict if it left no checkpoint, because this is then a new run."""
    written = (folder / NETWORKS_FILE).exists() and checkpoints.has_checkpoint(folder)
    return dict(read_description(folder).content) if written else {}


def check_same_method(folder: Path, earlier: Mapping[str, Any], objective: Objective) -> None:
    """Refuses to continue a run with another method, or with other hyperparameters.

    Raises:
      UserError: they differ; the message names both.
    """
    ours_by_name = describing.describe_method(objective)
    hyperparameters = ours_by_name.pop("hyperparameters")
    check_same_adapters(folder, earlier, objective)
    # Older runs did not record their hyperparameters.
    written = earlier.get("hyperparameters", {})
    compared = [(what, earlier.get(what, ours), ours) for what, ours in ours_by_name.items()]
    compared += [(name, written.get(name, ours), ours) for name, ours in hyperparameters.items()]
    # A hyperparameter of an earlier version may have another meaning now, or none.
    compared += [
        (name, theirs, None) for name, theirs in written.items() if name not in hyperparameters
    ]
    for what, theirs, ours in compared:
        if theirs != ours:
            raise UserError(
                f"{folder} holds a run with {what} {theirs}, and this command says {ours}; choose another MODEL_DIR"
            )


def check_same_adapters(folder: Path, earlier: Mapping[str, Any], objective: Objective) -> None:
    """Refuses to continue a run with other settings of adapters; not all of them would change the shape of a parameter.

    Raises:
      UserError: they differ; the message names both.
    """
    if not earlier:
        return
    for role, network in objective.trained().items():
        theirs = earlier.get("networks", {}).get(role, {}).get("lora")
        ours = network.description().get("lora")
        for name in sorted({*(theirs or {}), *(ours or {})}):
            before, now = ((each or {}).get(name) for each in (theirs, ours))
            if before != now:
                raise UserError(
                    f"{folder} holds a run whose {role} has lora.{name} {before}, and this command says {now}; choose another MODEL_DIR"
                )


def check_same_vocabulary(
    folder: Path, earlier: Mapping[str, Any], vocabulary: RecordedVocabulary
) -> None:
    """Refuses to continue a run if the task is now tokenised differently than at the start of the run.

    Raises:
      UserError: they differ; the message names both.
    """
    if earlier.get("vocabulary"):
        theirs = RecordedVocabulary(earlier["vocabulary"], str(folder))
        require_same_vocabulary(f"the run in {folder}", theirs, vocabulary)


def check_same_task(
    folder: Path, earlier: Mapping[str, Any], data: TaskData, metadata: CacheMetadata
) -> None:
    """Refuses to continue a run on other data: its position in the data would mean other examples.

    Raises:
      UserError: the examples differ from those that the run began with; the message names both tasks.
    """
    before = earlier.get("task_fingerprint")
    if before is not None and before != metadata.fingerprint:
        raise UserError(
            f"{folder} holds a run on the task {earlier.get('task')!r} with other examples than {data.cache_dir} (task {data.task!r}) has; "
            "choose another MODEL_DIR, and set INITIAL_CHECKPOINT_PATH to start from this run"
        )


def check_same_origin(
    folder: Path, what: str, before: Mapping[str, Any] | None, now: Mapping[str, Any]
) -> None:
    """Refuses to continue a run whose reference or teacher differs from the one at the start of the run.

    Raises:
      UserError: they differ; the message names both.
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
    """Refuses to continue a run with different stored teacher tokens.

    Raises:
      UserError: they differ; the message names both.
    """
    if before != now:
        raise UserError(
            f"{folder}: this run began with the teacher tokens {before}, and now finds {now}; store those again under that name, or choose "
            "another MODEL_DIR"
        )


def finished_summary(folder: Path, train_steps: int, patience: int) -> dict[str, Any] | None:
    """Returns the summary of a finished run, so that repeating its command changes nothing; None if steps are left."""
    if not (folder / SUMMARY_FILE).exists() or not checkpoints.has_checkpoint(folder):
        return None
    summary = untrusted.read_json_object(folder / SUMMARY_FILE, inside=folder)
    step = JsonReader(summary, str(folder / SUMMARY_FILE)).integer("step", 0, MAX_STEP) or 0
    ended_early = bool(patience) and summary.get("ended_early_with_patience") == patience
    done = step >= train_steps or ended_early
    return summary if done and summary.get("train_steps") == train_steps else None
