"""The batches of a training run, with the reference's log-probabilities if the objective needs them."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from jaxalign.annotation import score
from jaxalign.annotation.cache_pass import PassSettings
from jaxalign.data.task_data import TaskData
from jaxalign.networks.policy import Policy
from jaxalign.objectives.base import Batch, Objective
from jaxalign.parallel import distributed
from jaxalign.parallel.devices import Placement
from jaxalign.training import task_checks
from jaxalign.training.start import Start


@dataclasses.dataclass(frozen=True)
class TrainingBatches:
    """The training data.

    Attributes:
      iterator: an endless iterator over batches, with `get_state` and `set_state`.
      first: the first batch, which the iterator returns again.
      reference_scores: the name of the stored log-probabilities that batches hold; None for none.
      global_size: the number of rows of the global batch.
    """

    iterator: Any
    first: Batch
    reference_scores: str | None
    global_size: int


def open_batches(
    objective: Objective,
    data: TaskData,
    start: Start,
    placement: Placement,
    batch_size: int,
    random_seed: int,
    reference_scores: str | None,
) -> TrainingBatches:
    """Opens the training data. First computes the reference's log-probabilities if the objective needs them."""
    check = functools.partial(task_checks.check_batch, objective, task=data.task)
    if "reference_log_probs" in objective.required_fields():
        # Scoring may take hours, so the other fields of the task are checked first.
        unscored = data.training_dataset(batch_size, random_seed, None, placement.rows)
        probe = next(iter(unscored))
        probe = {**probe, "reference_log_probs": probe["response_mask"]}
        distributed.check_global_batch(check, placement.mesh, probe)
        if reference_scores is None:
            reference_scores = _store_reference_scores(
                objective, data, start, placement, batch_size
            )
    else:
        reference_scores = None
    dataset = data.training_dataset(batch_size, random_seed, reference_scores, placement.rows)
    iterator = iter(dataset)
    beginning = iterator.get_state()
    first = next(iterator)
    iterator.set_state(beginning)
    distributed.check_global_batch(check, placement.mesh, first)
    return TrainingBatches(iterator, first, reference_scores, batch_size)


def _store_reference_scores(
    objective: Objective, data: TaskData, start: Start, placement: Placement, batch_size: int
) -> str:
    """Returns the name of the reference's log-probabilities, and computes them for the splits that lack them."""
    assert isinstance(objective.policy, Policy)
    name = score.reference_name(start.identity, objective.policy)
    splits = [split for split in (data.train_split, data.eval_split) if split]
    missing = score.unscored(data.cache(), splits, name)
    if missing:
        score.score_splits(
            objective.policy,
            objective.policy.start_params(start.policy),
            data.cache(),
            name,
            PassSettings(
                splits=missing,
                feature_lengths=data.feature_lengths,
                batch_size=batch_size,
                mesh=placement.mesh,
                info=start.identity,
            ),
        )
    return name
