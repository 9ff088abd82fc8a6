"""The cache and the training run of a round: the run starts from the policy of the round before, with a new optimizer."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jaxalign.annotation import score
from jaxalign.annotation.cache_pass import PassSettings
from jaxalign.data import cache as caching
from jaxalign.data.sources import JsonlSource
from jaxalign.data.task_cache import TaskCache
from jaxalign.data.task_data import TaskData
from jaxalign.errors import UserError
from jaxalign.networks.policy import Policy
from jaxalign.objectives.base import Objective
from jaxalign.parallel.devices import DEFAULT_DEVICES
from jaxalign.parallel.partitioning import role_shardings
from jaxalign.runs import describing
from jaxalign.runs.folder import Run
from jaxalign.training.start import StartFrom

# A function from the hyperparameters of a round, by name, to `jaxalign.training.run.train` with all its arguments.
Training = Callable[[Mapping[str, Any]], "functools.partial[dict[str, Any]]"]
CACHE = "cache"
RUN = "run"


def make_cache(
    folder: Path, records: Path, kind: str, data: TaskData, start: str, held_out_fraction: float
) -> dict[str, Any]:
    """Tokenises the records of a round with the vocabulary of the start.

    Args:
      folder: the folder of the stage.
      records: the training records.
      kind: their kind.
      data: the lengths and limits of the recipe.
      start: the run whose vocabulary is used.
      held_out_fraction: the share of the prompts that becomes the split 'validation'.

    Raises:
      UserError: too many records are unusable, or the start has another vocabulary than the recipe says.
    """
    splits = {"train": 1 - held_out_fraction}
    if held_out_fraction:
        splits["validation"] = held_out_fraction
    source = JsonlSource(
        {"train": str(records)},
        kind,
        responses_per_example=data.responses_per_example,
        split_fractions=splits,
        duplicates="keep",
    )
    metadata = caching.cache_source(
        source,
        str(folder / CACHE),
        name=folder.parent.name,
        vocabulary=Run(start).vocabulary,
        splits=tuple(splits),
        limits=dataclasses.replace(data.limits, duplicates="keep"),
        max_rejected_fraction=data.max_rejected_fraction,
    )
    rejected: dict[str, int] = {}
    for by_reason in metadata.rejected.values():
        for reason, count in by_reason.items():
            rejected[reason] = rejected.get(reason, 0) + count
    return {
        "examples": metadata.num_examples["train"],
        "rejected": rejected,
        "fingerprint": metadata.fingerprint,
    }


def train_round(
    folder: Path,
    cache: Path,
    training: Training,
    values: Mapping[str, Any],
    *,
    previous: str,
    start: str,
    reference: str,
    number: int,
    epochs: float | None,
    held_out: bool,
) -> dict[str, Any]:
    """Trains the policy of a round; an interrupted run continues from its last checkpoint.

    Args:
      folder: the folder of the stage.
      cache: the cache of the round's records.
      training: gives the arguments of the run.
      values: the hyperparameters of the round.
      previous: the run that the policy starts from.
      start: the run that all rounds started from.
      reference: 'previous' or 'start', the reference policy of the loss.
      number: the round; it is added to the seed of the run.
      epochs: passes over the records in place of TRAIN_STEPS.
      held_out: whether the cache has a split for evaluation.

    Raises:
      UserError: the records do not suit the objective, or training fails.
    """
    examples = TaskCache(cache).metadata.num_examples["train"]
    run = with_steps(training, values, examples, epochs)
    keywords = run.keywords
    data = dataclasses.replace(
        keywords["data"],
        task=cache.parent.parent.name,
        cache_dir=str(cache),
        vocabulary=None,
        train_file=None,
        validation_file=None,
        eval_split="validation" if held_out else "",
        duplicates="keep",
    )
    scores = None
    objective = keywords["objective"]
    if reference == "start" and previous != start and objective.required_fields():
        scores = _start_scores(run, cache, start)
    summary = run.func(
        **{
            **keywords,
            "model_dir": str(folder / RUN),
            "data": data,
            "start_from": StartFrom(previous),
            "random_seed": keywords.get("random_seed", 0) + number,
            "reference_scores": scores,
        }
    )
    trained = Run(folder / RUN)
    return {
        "run_id": trained.description.run_id,
        "step": trained.step,
        "train_steps": keywords["loop"].train_steps,
        "train": {name: value for name, value in summary["train"].items() if _finite(value)},
        "evaluation": {
            name: value for name, value in summary["evaluation"].items() if _finite(value)
        },
    }


def with_steps(
    training: Training, values: Mapping[str, Any], examples: int, epochs: float | None
) -> functools.partial[dict[str, Any]]:
    """Returns the arguments of a round, where ``epochs`` determines TRAIN_STEPS.

    Raises:
      UserError: epochs are given for packed rows, whose number is not known.
    """
    run = training(values)
    if epochs is None:
        return run
    if run.keywords["data"].pack:
        raise UserError("EPOCHS needs PACK = False; with packed rows set TRAIN_STEPS")
    steps = max(1, math.ceil(epochs * examples / run.keywords["batch_size"]))
    return training({**values, "TRAIN_STEPS": steps})


def described(run: functools.partial[dict[str, Any]]) -> dict[str, Any]:
    """Returns JSON with everything in a round's arguments that its result depends on, as far as it can be described."""
    keywords = run.keywords
    data, loop = keywords["data"], keywords["loop"]
    steps = sorted({0, loop.train_steps // 2, loop.train_steps - 1})
    return {
        **describing.describe_networks(keywords["objective"]),
        "batch_size": keywords["batch_size"],
        "train_steps": loop.train_steps,
        "learning_rates": {
            role: [float(optimizer.schedule(jnp.int32(step))) for step in steps]
            for role, optimizer in keywords["optimizers"].items()
        },
        "optimizers": {
            role: dict(optimizer.settings) for role, optimizer in keywords["optimizers"].items()
        },
        "lengths": dict(data.feature_lengths),
        "pack": data.pack,
        "random_seed": keywords.get("random_seed", 0),
    }


def check_reference(objective: Objective, reference: str) -> None:
    """Refuses the start as the reference of an objective that keeps the reference in memory, where it is a copy of the initial policy."""
    if reference == "start" and "reference" in objective.frozen_roles():
        raise UserError(
            f"TRAIN_REFERENCE = 'start' needs stored log-probabilities, and objective {objective.name} keeps its reference in memory: set "
            "REFERENCE = 'cached' if the objective has it, or TRAIN_REFERENCE = 'previous'"
        )


def _start_scores(run: functools.partial[dict[str, Any]], cache: Path, start: str) -> str | None:
    """Stores the start's log-probabilities beside the cache, and returns their name; None if the objective reads none."""
    keywords = run.keywords
    objective, data = keywords["objective"], keywords["data"]
    if "reference_log_probs" not in objective.required_fields():
        return None
    policy = objective.policy
    assert isinstance(policy, Policy)
    opened = Run(start)
    identity = {"run_id": opened.description.run_id, "step": opened.step}
    name = score.reference_name(identity, policy)
    stored = TaskCache(cache)
    splits = list(stored.metadata.splits)
    if not score.unscored(stored, splits, name):
        return name
    placement = keywords.get("devices", DEFAULT_DEVICES).place(
        keywords["batch_size"], objective.trained()
    )
    network = opened.network("policy").base
    places = role_shardings(
        placement.mesh,
        network.abstract_params(),
        network.logical_axes(),
        placement.rules.get("policy", ()),
    )
    settings = PassSettings(
        splits=splits,
        feature_lengths=data.feature_lengths,
        batch_size=keywords["batch_size"],
        mesh=placement.mesh,
        info=identity,
    )
    params = opened.policy(shardings=places).params
    score.score_splits(network, params, stored, name, settings)
    return name


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
