"""Chooses settings that suit a data file from the findings of `file_inspection`, and makes the gin file that holds them."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence

import numpy as np

from jaxalign.data.rejections import MAX_REJECTED_FRACTION
from jaxalign.inspection.findings import Inspection
from jaxalign.inspection.start import GinNetwork

_FIRST_LIMIT = 512  # tokens of a prompt or response that are always allowed
_LAST_LIMIT = 1024  # a longer prompt is cut, and a record with a longer response is left out
_BATCH = 16
_TOKENS = (
    16384  # maximum of a batch, on the longer side: attention needs the square of a row's length
)
TOLERATED = MAX_REJECTED_FRACTION
# The method that suits each kind; docs/methods.md describes the others.
_OBJECTIVES = {"triplet": "dro_v", "multi": "dro_v", "seq2seq": "sft", "pair": "dpo"}


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings in the gin file; lengths are in tokens, including EOS.

    Attributes:
      model: a file of gin_configs/models, unless `network` describes the network.
      checkpoint: the pretrained checkpoint of the model; None for a model that is trained from random weights.
      network: the network of a checkpoint.
      inputs, targets, row_inputs, row_targets: TASK_FEATURE_LENGTHS and ROW_LENGTHS; the row lengths are None if examples are not packed.
      cut_prompts, long_responses: the number of prompts that are cut, and of records left out because of a long response.
      threshold: the feedback above which a response counts as good; None without feedback.
      evaluates: whether any records are held out.
    """

    objective: str
    model: str
    checkpoint: str | None
    inputs: int
    targets: int
    row_inputs: int | None
    row_targets: int | None
    cut_prompts: int
    long_responses: int
    keeps_end: bool
    duplicates: str
    threshold: float | None
    batch_size: int
    train_steps: int
    sft_steps: int
    evaluates: bool
    max_rejected_fraction: float
    vocab_size: int
    network: GinNetwork | None = None

    @property
    def sft_learning_rate(self) -> float:
        """The learning rate of supervised fine-tuning: lower from a pretrained checkpoint than from random weights."""
        return 1e-4 if self.checkpoint else 2e-3


def suggest(
    inspection: Inspection,
    vocabulary_size: int,
    *,
    model: str,
    checkpoint: str | None,
    network: GinNetwork | None = None,
    objective: str | None,
) -> Settings:
    """Returns settings for the data that a laptop can train with.

    All responses fit except the longest hundredth (the longest tenth beyond 1,024 tokens), and prompts of up to 1,024 tokens fit.
    """
    count = inspection.examples_count
    inputs = _limit(inspection.prompt_lengths, 95, _LAST_LIMIT)
    longest_responses = inspection.longest_responses
    most = max(_LAST_LIMIT, int(np.percentile(longest_responses, 90)))
    targets = _limit(longest_responses, 99, most)
    responses = max(inspection.responses)
    duplicates = "keep" if inspection.repeated > 0.01 * count else "reject"
    long_responses = sum(length > targets for length in inspection.longest_responses)
    lost = sum(inspection.rejected.values()) + long_responses
    lost += inspection.repeated if duplicates == "reject" else 0
    share = lost / max(inspection.records, count)
    row_inputs = _row(inputs, float(np.mean(inspection.prompt_lengths)))
    row_targets = _row(responses * targets, responses * float(np.mean(inspection.response_lengths)))
    # The number of examples that share a row; first-fit packing leaves some room.
    per_row = max(
        1.0,
        0.8
        * min(
            8.0,
            row_inputs / float(np.mean(inspection.prompt_lengths)),
            row_targets / (responses * float(np.mean(inspection.response_lengths))),
        ),
    )
    packs = per_row >= 1.5 and count >= 4 * _BATCH
    per_row = per_row if packs else 1.0
    evaluates = inspection.validation_prompts != 0
    in_training = max(1, int((0.9 if inspection.validation_prompts else 1.0) * count))
    widest = max(row_inputs, row_targets)
    batch_size = min(
        _BATCH, *(1 << int(math.log2(max(1, n))) for n in (in_training / per_row, _TOKENS / widest))
    )
    per_epoch = in_training / (per_row * batch_size)
    kind = inspection.found.kind
    several = "dpo" if kind == "ranked" and responses == 2 else "infonca"
    chosen = objective or (
        several if kind == "ranked" or responses > 2 else _OBJECTIVES.get(kind, "sft")
    )
    return Settings(
        objective=chosen,
        model=model,
        checkpoint=checkpoint,
        inputs=inputs,
        targets=targets,
        row_inputs=row_inputs if packs else None,
        row_targets=row_targets if packs else None,
        cut_prompts=sum(length > inputs for length in inspection.prompt_lengths),
        long_responses=long_responses,
        keeps_end=inspection.dialogues > 0.3 * count or inspection.found.layout in ("trl", "hh"),
        duplicates=duplicates,
        threshold=_threshold(inspection),
        batch_size=batch_size,
        train_steps=_steps(10 if chosen == "sft" else 3, per_epoch),
        sft_steps=_steps(10, per_epoch),
        evaluates=evaluates,
        max_rejected_fraction=_rejected_fraction(share),
        vocab_size=128 * math.ceil(vocabulary_size / 128),
        network=network,
    )


def _rejected_fraction(share: float) -> float:
    """Returns the allowed share of rejected records if the file has the share `share`: at least a point more."""
    return max(TOLERATED, min(1.0, math.ceil(100 * share + 1) / 100))


def _limit(lengths: Sequence[int], percentile: float, most: int) -> int:
    longest = max(lengths)
    if longest > _FIRST_LIMIT:
        longest = min(most, max(_FIRST_LIMIT, int(np.percentile(lengths, percentile))))
    return 16 * math.ceil(max(longest, 2) / 16)


def _row(longest: int, mean: float) -> int:
    """Returns a length with room for about four short examples, and always for the longest example."""
    return max(longest, min(512, 16 * math.ceil(4 * mean / 16)))


def _steps(epochs: int, per_epoch: float) -> int:
    return int(min(5000, max(20, 10 * math.ceil(epochs * per_epoch / 10))))


def _threshold(inspection: Inspection) -> float | None:
    """Returns the midpoint of the two values of thumbs; else the highest value that at most half of the responses exceed."""
    values = sorted(inspection.feedback)
    if not values:
        return None
    if len(values) <= 2:
        return float(np.mean(values))
    total = sum(inspection.feedback.values())
    above = total
    for value in values[:-1]:
        above -= inspection.feedback[value]
        if above <= total / 2:
            return float(value)
    return float(np.mean(values[-2:]))


def commands(settings: Settings, name: str, output: str, cache_dir: str) -> list[str]:
    """Returns the next commands to type.

    Args:
      settings: the settings of the run.
      name: the name of the task.
      output: the gin file.
      cache_dir: the folder of the tokenised task.
    """
    start = f"jaxalign train --gin_file={output}"
    lines = [f"{output} is written."]
    begin = ""
    if settings.checkpoint:
        begin = f" --INITIAL_CHECKPOINT_PATH={settings.checkpoint}"
    if settings.checkpoint and not settings.network:
        lines.append(
            f"models/{settings.model}.gin is the network of a pretrained checkpoint. INITIAL_CHECKPOINT_PATH is its address, or a folder "
            "with a copy: T5X's, or Hugging Face's (docs/checkpoints.md)."
        )
    if settings.objective == "sft":
        return [*lines, "Train with:", f"  {start} --MODEL_DIR=runs/{name}{begin}"]
    rate = settings.sft_learning_rate
    lines += [
        f"Train a policy that answers, then {settings.objective} from it (or from a run that you have with the same vocabulary):",
        f"  {start} --gin_file=objectives/sft.gin --MODEL_DIR=runs/{name}_sft{begin} --LEARNING_RATE={rate:g} "
        f"--DROPOUT_RATE=0.1 --TRAIN_STEPS={settings.sft_steps}",
        f"  {start} --MODEL_DIR=runs/{name} --INITIAL_CHECKPOINT_PATH=runs/{name}_sft",
    ]
    if settings.evaluates:
        lines += [
            "Then rank the held-out responses with both:",
            f"  jaxalign evaluate --checkpoints=sft=runs/{name}_sft,{settings.objective}=runs/{name} --prompts={cache_dir} "
            f"--ranking_only --output_dir=runs/{name}_evaluation",
        ]
    return lines


def gin_file(
    settings: Settings,
    inspection: Inspection,
    *,
    name: str,
    output: str,
    train_file: str,
    validation_file: str | None,
    vocabulary: str,
    extra_ids: int,
    chat_template: str | None = None,
) -> tuple[str, list[str]]:
    """Returns the text of the gin file, and the next commands to type."""
    lengths = {"inputs": settings.inputs, "targets": settings.targets}
    macros: list[tuple[str, object]] = [
        ("MIXTURE_OR_TASK_NAME", name),
        ("TRAIN_FILE", train_file),
        ("VALIDATION_FILE", validation_file),
        ("VOCABULARY", vocabulary),
        ("EXTRA_IDS", extra_ids),
        ("TASK_FEATURE_LENGTHS", lengths),
        ("PACK", settings.row_inputs is not None),
        (
            "ROW_LENGTHS",
            {"inputs": settings.row_inputs, "targets": settings.row_targets}
            if settings.row_inputs is not None
            else None,
        ),
        ("BATCH_SIZE", settings.batch_size),
        ("TRAIN_STEPS", settings.train_steps),
        ("LEARNING_RATE", settings.sft_learning_rate if settings.objective == "sft" else 1e-4),
        ("WARMUP_STEPS", max(1, settings.train_steps // 10)),
        ("EVAL_PERIOD", max(1, settings.train_steps // 10)),
        ("CHECKPOINT_PERIOD", max(1, settings.train_steps // 10)),
        ("LOGITS_CHUNK_SIZE", None),
        ("SAMPLE_PROMPTS", 3),
    ]
    if not settings.checkpoint:
        macros.append(("VOCAB_SIZE", settings.vocab_size))
    if settings.threshold is not None:
        macros.append(("DESIRABLE_THRESHOLD", settings.threshold))
    if not settings.evaluates:
        macros.append(("BEST_METRIC", None))
    task: list[tuple[str, object]] = [
        ("kind", inspection.found.kind),
        ("layout", inspection.found.layout),
        ("fields", inspection.found.fields_text),
        ("duplicates", settings.duplicates),
        ("long_prompts", "truncate_left" if settings.keeps_end else "truncate"),
        ("max_rejected_fraction", settings.max_rejected_fraction),
    ]
    if not settings.evaluates:
        # There are too few prompts to hold some out.
        task.append(("eval_split", ""))
    # A cache made with other settings gets another folder, so that a second inspection does not find it.
    read = (macros[:6], settings.vocab_size, task, *([chat_template] if chat_template else []))
    digest = hashlib.sha256(repr(read).encode()).hexdigest()[:8]
    cache_dir = f"runs/cache/{name}_{digest}"
    macros.insert(1, ("CACHE_DIR", cache_dir))
    macros.append(("CHAT_TEMPLATE", chat_template))
    next_commands = commands(settings, name, output, cache_dir)
    header = [
        f"# Written by `jaxalign inspect` for {inspection.examples_count} records: {inspection.found.describe()}.",
        *(f"# {line}" for line in next_commands[1:]),
    ]
    text = "\n".join(
        [
            *header,
            "",
            "from __gin__ import dynamic_registration",
            "",
            "from jaxalign.data import task_data",
            *(
                [f"from jaxalign.networks import {settings.network.module}"]
                if settings.network
                else []
            ),
            "",
            f"include 'models/{settings.network.included if settings.network else settings.model}.gin'",
            f"include 'objectives/{settings.objective}.gin'",
            "include 'optimizers/adamw.gin'",
            "include 'runs/train.gin'",
            "",
            *(f"{macro} = {value!r}" for macro, value in macros),
            "",
            *(
                ["# The network of the checkpoint.", *settings.network.lines, ""]
                if settings.network
                else []
            ),
            "task_data.TaskData:",
            "  train_file = %TRAIN_FILE",
            "  validation_file = %VALIDATION_FILE",
            "  chat_template = %CHAT_TEMPLATE",
            *(f"  {parameter} = {value!r}" for parameter, value in task),
            "",
        ]
    )
    return text, next_commands
