"""Checks from the cache's metadata that a task has what an objective needs, before parameters are made or anything compiles."""

from __future__ import annotations

import dataclasses
import math
import sys

import jax

from jaxalign.data import cache_report, stored_fields
from jaxalign.data.cache_metadata import CacheMetadata
from jaxalign.data.images import image_format
from jaxalign.data.records import ASSUMED_FEEDBACK
from jaxalign.data.task_data import TaskData
from jaxalign.errors import UserError, require_range
from jaxalign.objectives.base import Batch, Objective
from jaxalign.runs.recorded_hyperparameters import hyperparameters
from jaxalign.training import responses_advice, task_report

# Field of the cache -> the batch fields that come from it.
_FIELDS_OF = {
    "feedback": ("feedback", "rewards"),
    "scores": ("scores",),
    "reference_feedback": ("reference_rewards",),
}
# These fields are in every batch or are computed before training.
_ALWAYS = ("prompt_ids", "example_ids", "reference_log_probs")


def check_numbers(batch_size: int, random_seed: int) -> None:
    """Checks the plain arguments of a run.

    Raises:
      UserError: an argument is out of range; the message names it.
    """
    require_range("train", "[1, inf)", batch_size=batch_size)
    # NumPy's generators and grain accept 32 bits.
    require_range("train", "[0, 4294967295]", random_seed=random_seed)


def check(
    objective: Objective, data: TaskData, metadata: CacheMetadata, *, quiet: bool = False
) -> TaskData:
    """Checks the task for the objective, describes the training data on standard error, and returns the data to train on.

    Args:
      objective: the method.
      data: the prepared task.
      metadata: the metadata of its cache.
      quiet: whether to omit the line about the data; warnings are still printed.

    Returns:
      ``data``, with 'auto' replaced by the actual choices of responses and of ties, and ``paired_lines`` as the objective needs it.

    Raises:
      UserError: the task does not suit the objective; the message names both and a remedy.
    """
    best_only = _best_only(objective, data, metadata)
    skip_ties = _skip_ties(objective, data, metadata)
    responses = 1 if best_only else metadata.responses_per_example
    _check_responses(objective, data, responses, metadata.kind)
    _check_fields(objective, data, metadata)
    _check_margins(objective, data, metadata)
    _check_scale(objective, data, metadata)
    _check_teacher(objective, data)
    _check_ranges(objective, data, metadata)
    if jax.process_index() == 0:
        lines = [] if quiet else [task_report.describe(data, metadata)]
        if best_only and not quiet:
            lines.append(
                f"{objective.name} imitates, so of the responses to each prompt it gets the best one alone; "
                "TaskData.responses = 'all' trains on every one"
            )
        if not quiet:
            remedy = "TASK_FEATURE_LENGTHS and TaskData.long_prompts change it"
            lines += [cache_report.summary(metadata), *cache_report.losses(metadata, remedy)]
        lines += [f"warning: {text}" for text in task_report.warnings(objective, data, metadata)]
        print(*lines, sep="\n", end="\n" if lines else "", file=sys.stderr)
    return dataclasses.replace(
        data,
        responses="best" if best_only else "all",
        ties="drop" if skip_ties else "keep",
        paired_lines=objective.requirements().paired_lines,
    )


def with_images(objective: Objective, data: TaskData) -> TaskData:
    """Returns the data with the format of the images that the policy reads, or another network if there is no policy that does."""
    networks = (objective.policy, *objective.trained().values())
    formats = [image_format(network) for network in networks]
    return dataclasses.replace(data, images=next((each for each in formats if each), None))


def check_vocabulary_size(objective: Objective, data: TaskData) -> None:
    """Refuses a model whose embedding table has fewer rows than the task's vocabulary has tokens."""
    size = data.load_vocabulary().size
    for network in objective.trained().values():
        limit = network.vocab_size
        if limit is not None and size > limit:
            raise UserError(
                f"the vocabulary of {data.cache_dir} has {size} tokens, but the model's vocab_size is {limit}; "
                f"set VOCAB_SIZE to at least {size}"
            )


def check_batch(objective: Objective, batch: Batch, task: str) -> None:
    """Calls `Objective.check_batch`, and adds the task to the messages of its errors."""
    try:
        objective.check_batch(batch)
    except UserError as error:
        raise UserError(f"task {task!r}: {error}") from error


def _best_only(objective: Objective, data: TaskData, metadata: CacheMetadata) -> bool:
    several = metadata.responses_per_example > 1
    if data.responses == "auto":
        return several and metadata.kind in ASSUMED_FEEDBACK and objective.requirements().imitates
    return several and data.responses == "best"


def _skip_ties(objective: Objective, data: TaskData, metadata: CacheMetadata) -> bool:
    """Returns whether ties are left out: there are ties, and the objective infers the better response from the position in the pair."""
    if not metadata.noted("ties"):
        return False
    if data.ties != "auto":
        return data.ties == "drop"
    reads = {"feedback", "rewards", "scores"}.intersection(objective.required_fields())
    by_position = (objective.responses_per_prompt or 1) > 1 and not reads
    return by_position and not objective.requirements().margins


def _check_responses(objective: Objective, data: TaskData, found: int, kind: str) -> None:
    wanted = objective.responses_per_prompt
    if wanted is not None and found != wanted:
        advice = responses_advice.other_number(wanted, found, kind)
        raise UserError(
            f"objective {objective.name} needs {wanted} response(s) per prompt, but the task {data.task!r} has {found}: {advice}"
        )
    least = objective.requirements().min_responses
    if found < least:
        advice = (
            f"no prompt has more than one record within responses_per_example={data.responses_per_example}"
            if data.responses_per_example > 1
            else f"{responses_advice.join(4)}; or give it ranked records (kind 'ranked')"
        )
        raise UserError(
            f"objective {objective.name} compares the responses to one prompt: it needs at least {least} per prompt, but the task "
            f"{data.task!r} has {found}: {advice}"
        )


def _check_fields(objective: Objective, data: TaskData, metadata: CacheMetadata) -> None:
    provided = {field for source in metadata.fields for field in _FIELDS_OF.get(source, ())}
    provided |= {*_ALWAYS}
    for name in data.stored:
        provided |= set(stored_fields.FIELDS[name].batch_fields)
    missing = [field for field in objective.required_fields() if field not in provided]
    if not missing:
        return
    field = missing[0]
    known = [each for each in stored_fields.FIELDS.values() if field in each.batch_fields]
    if known:
        advice = f"make them with `{known[0].command}` and set STORED_FIELDS = {{'{known[0].name}': NAME}}"
    elif field in ("feedback", "rewards"):
        advice = f"its records are of kind {metadata.kind!r}; feedback comes with the kinds triplet, pair, ranked and multi"
    elif field == "scores":
        advice = "records of kind 'multi' have scores: --gin.TaskData.kind=multi"
    elif field == "reference_rewards":
        advice = "give every record the field reference_feedback, the feedback of samples of the reference policy"
    else:
        advice = "no data pipeline makes it"
    raise UserError(
        f"objective {objective.name} needs {', '.join(missing)}, which the task {data.task!r} does not have: {advice}. See docs/data.md."
    )


def _check_margins(objective: Objective, data: TaskData, metadata: CacheMetadata) -> None:
    note = ASSUMED_FEEDBACK.get(metadata.kind)
    if note is None or not objective.requirements().margins:
        return
    assumed = metadata.noted(note)
    if assumed:
        field = "margin" if metadata.kind == "pair" else "feedback"
        read = sum(split.num_read for split in metadata.splits.values())
        raise UserError(
            f"objective {objective.name} regresses on how much better a response is, but {assumed} of the "
            f"{read} records of the task {data.task!r} have no field {field!r}: give them one, or use a "
            "method that only needs to know which response is better, such as dpo or ipo"
        )


def _check_scale(objective: Objective, data: TaskData, metadata: CacheMetadata) -> None:
    if (
        not objective.requirements().one_scale
        or hyperparameters(objective).get("joint_weight") == 0
    ):
        return
    kind = metadata.kind
    note = ASSUMED_FEEDBACK.get(kind)
    if kind == "pair" or (note is not None and metadata.noted(note)):
        raise UserError(
            f"objective {objective.name} compares responses to different prompts by their feedback, but the task {data.task!r} has "
            f"{'margins of pairs' if kind == 'pair' else 'ranks'}, which say nothing across prompts: give it rated responses (triplets "
            "with responses_per_example, or ranked records with feedback), or set JOINT_WEIGHT = 0"
        )


def _check_teacher(objective: Objective, data: TaskData) -> None:
    name = data.stored.get(stored_fields.TEACHER_TOP)
    ours = objective.policy.vocab_size
    if name is None or ours is None:
        return
    info = data.cache().teacher_tokens(data.train_split, name).info
    if info.get("vocab_size", ours) > ours:
        raise UserError(
            f"the teacher tokens {name!r} beside {data.cache_dir} are of a policy with {info['vocab_size']} tokens, the policy of "
            f"objective {objective.name} has {ours}: set VOCAB_SIZE to at least the teacher's"
        )


def _check_ranges(objective: Objective, data: TaskData, metadata: CacheMetadata) -> None:
    needs = objective.requirements()
    reordered = metadata.noted("reordered")
    if needs.probabilities and reordered and metadata.kind == "pair":
        raise UserError(
            f"objective {objective.name} reads margins as probabilities in [0, 1], but {reordered} records of the task {data.task!r} have "
            "a negative margin: divide them by their scale, or use another method"
        )
    for names, least, most, what, advice in (
        (needs.probabilities, 0.0, 1.0, "probabilities in [0, 1]", "divide them by their scale"),
        (needs.nonnegative, 0.0, math.inf, "not negative", "shift them so that the least is 0"),
    ):
        for name in names:
            for split in filter(None, (data.train_split, data.eval_split)):
                found = _range_of(name, split, data, metadata)
                if found is None or (found[0] >= least and found[1] <= most):
                    continue
                outside = found[0] if found[0] < least else found[1]
                raise UserError(
                    f"objective {objective.name} needs {name} that are {what}, but the task {data.task!r} has {outside:g} in the split "
                    f"{split!r}: {advice}, or use another method"
                )


def _range_of(
    name: str, split: str, data: TaskData, metadata: CacheMetadata
) -> tuple[float, float] | None:
    """Returns the least and largest value of a field in a split; None if only the batches can show them."""
    facts = metadata.splits.get(split)
    ranges = (
        {"feedback": facts.feedback_range, "chosen_feedback": facts.chosen_feedback_range}
        if facts
        else {}
    )
    found = ranges.get(name)
    if found is not None:
        return found.min, found.max
    if name not in data.stored or metadata.responses_per_example > 1:
        # A stored array holds arbitrary numbers for missing responses.
        return None
    values = data.cache().stored(split, data.stored[name]).values
    return float(values.min()), float(values.max())
