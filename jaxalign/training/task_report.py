"""What a run says of its task before it trains: one line about the data, and warnings about valid data that make training useless."""

from __future__ import annotations

from collections.abc import Iterator

from jaxalign.data.cache_metadata import REJECTED_FILE, CacheMetadata
from jaxalign.data.task_data import TaskData
from jaxalign.objectives.base import Objective
from jaxalign.runs.recorded_hyperparameters import hyperparameters


def describe(data: TaskData, metadata: CacheMetadata) -> str:
    """Returns one line with the task, its examples by split, and the number of rejected records."""
    examples = ", ".join(f"{count} {split}" for split, count in metadata.num_examples.items())
    text = f"task {data.task}: {examples} examples"
    reasons: dict[str, int] = {}
    for by_reason in metadata.rejected.values():
        for reason, count in by_reason.items():
            reasons[reason] = reasons.get(reason, 0) + count
    if not reasons:
        return f"{text}, no record rejected"
    counts = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    return f"{text}; rejected records: {counts} (listed in {data.cache_dir}/{REJECTED_FILE})"


def warnings(objective: Objective, data: TaskData, metadata: CacheMetadata) -> Iterator[str]:
    """Yields warnings about valid data that make training useless: feedback that is constant, or all on one side of a threshold."""
    yield from _without_vocabulary(data)
    split = metadata.splits.get(data.train_split)
    found = split.feedback_range if split else None
    reads = {"feedback", "rewards"}.intersection(objective.required_fields())
    if found is None or not reads:
        return
    low, high = found.min, found.max
    if low == high and not objective.requirements().imitates:
        yield (
            f"all feedback of {data.task!r}, split {data.train_split!r}, is {low:g}: objective {objective.name} has nothing to tell "
            "good responses from bad ones by"
        )
        return
    threshold = objective.requirements().threshold
    if threshold is None:
        return
    name, field = threshold
    chosen = hyperparameters(objective)
    value = chosen.get(name)
    # A range cannot show which feedback lies above the mean of a prompt's responses.
    if not isinstance(value, (int, float)) or chosen.get("baseline", "none") != "none":
        return
    statistics = metadata.reward_statistics
    if field == "rewards" and data.standardize_rewards and statistics:
        low, high = ((end - statistics.mean) / statistics.std for end in (low, high))
    if low > value or high <= value:
        share = "100 %" if low > value else "0 %"
        yield (
            f"{share} of the training responses of {data.task!r} exceed {objective.name}'s {name} {value:g}, for their {field} "
            f"{'are' if field == 'rewards' else 'is'} between {low:g} and {high:g}: set a threshold in between"
        )


def _without_vocabulary(data: TaskData) -> Iterator[str]:
    if not data.vocabulary_exists():
        yield (
            f"VOCABULARY {data.vocabulary} does not exist; the cache in {data.cache_dir} has its own copy, which is used: if another one "
            "is meant, correct VOCABULARY"
        )
