"""Checks files, folders and an existing cache for `jaxalign train --dry_run`, beyond the configuration.

The module reads no arrays and computes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxalign import hub
from jaxalign.data import data_files
from jaxalign.data.chat_templates import read_chat_template
from jaxalign.data.recorded_vocabulary import RecordedVocabulary, require_same_vocabulary
from jaxalign.data.task_cache import TaskCache
from jaxalign.data.task_data import TaskData
from jaxalign.data.vocabularies import vocabulary_from_spec
from jaxalign.errors import UserError
from jaxalign.objectives.base import Objective
from jaxalign.parallel.devices import DEFAULT_DEVICES, Devices
from jaxalign.training import initial_checkpoint, launch, run_folder, task_checks
from jaxalign.training.build import describe_counts, make_transformations, parameter_counts
from jaxalign.training.optimizers import Optimizer
from jaxalign.training.start import RANDOM_INITIALISATION, StartFrom
from jaxalign.training.trackers import TENSORBOARD, tracker_specs


def check(
    *,
    model_dir: str,
    objective: Objective,
    data: TaskData,
    optimizers: Mapping[str, Optimizer],
    start_from: StartFrom = RANDOM_INITIALISATION,
    devices: Devices = DEFAULT_DEVICES,
    batch_size: int,
    random_seed: int = 0,
    trackers: str = TENSORBOARD,
    **others: Any,
) -> str:
    """Checks the arguments of `run.train` as far as the checks are cheap.

    Returns:
      The number of parameters that are trained, and of those that are frozen, by role, as a comment in gin.

    Raises:
      UserError: a file or checkpoint is missing, the existing cache or run folder belongs to something else, or the task does not suit
        the objective.
    """
    del others
    task_checks.check_numbers(batch_size, random_seed)
    tracker_specs(trackers)
    folder = run_folder.local_folder(model_dir)
    launch.check_same_method(folder, launch.earlier_launch(folder), objective)
    started = None
    if start_from.path is not None and hub.is_address(start_from.path):
        hub.parse(start_from.path)
        hub.require_package()
    elif start_from.path is not None and "://" not in start_from.path:
        start = Path(start_from.path).expanduser()
        if not start.exists():
            raise UserError(f"INITIAL_CHECKPOINT_PATH {start_from.path} does not exist")
        started = initial_checkpoint.check(start, start_from.step, objective.policy)
    make_transformations(objective, optimizers)
    _check_data(objective, data, start_from, started)
    return "\n".join(f"# {line}" for line in describe_counts(parameter_counts(objective)))


def _check_data(
    objective: Objective,
    data: TaskData,
    start_from: StartFrom,
    started: RecordedVocabulary | None,
) -> None:
    start = Path(start_from.path or "").expanduser()
    for name in ("train_file", "validation_file"):
        pattern = getattr(data, name)
        if pattern is not None and not data_files.exists(pattern):
            raise UserError(f"{name.upper()} {pattern} does not exist")
    if data.chat_template:
        read_chat_template(data.chat_template)
    cached = TaskCache.exists(data.cache_dir)
    if not data.vocabulary_exists() and (data.train_file or not cached):
        # Training reads the file with it, even if there is a cache.
        raise UserError(f"VOCABULARY {data.vocabulary} does not exist")
    if cached:
        if data.train_file:
            data.check_same_vocabulary()
        data = task_checks.with_images(objective, data)
        metadata = data.cache().metadata if data.train_file else data.prepare()
        task_checks.check(objective, data, metadata)
        if started is not None:
            found = RecordedVocabulary(metadata.vocabulary, data.cache_dir)
            require_same_vocabulary(
                f"the initial checkpoint {start}", started, found, may_extend=True
            )
        return
    vocabulary = data.vocabulary or "bytes"
    if started is not None and data.vocabulary is not None and "://" not in vocabulary:
        wanted = vocabulary_from_spec(vocabulary, data.extra_ids).to_dict()
        if "path" in wanted:
            # Relative to the current folder, and not to the cache, which does not exist yet.
            wanted["path"] = os.path.abspath(wanted["path"])
        require_same_vocabulary(
            f"the initial checkpoint {start}",
            started,
            RecordedVocabulary(wanted, data.cache_dir),
            may_extend=True,
        )
