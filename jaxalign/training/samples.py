"""Lets the policy answer a few held-out prompts at every evaluation, and writes what it says to ``samples.jsonl`` of the run folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign import files
from jaxalign.data.task_data import TaskData
from jaxalign.errors import UserError
from jaxalign.inference.rows import decode_tokens, response_tokens
from jaxalign.inference.sampling import DecodingSettings, generate_tokens
from jaxalign.networks.protocols import PolicyNetwork
from jaxalign.objectives.base import Objective
from jaxalign.parallel import distributed
from jaxalign.runs.metrics import keep_lines_up_to
from jaxalign.runs.samples import SAMPLES_FILE
from jaxalign.training.evaluations import Evaluator

SPLIT = "samples"
_BATCH = 32

WriteSamples = Callable[[int, Sequence[Mapping[str, Any]]], None]


def make_sampler(
    objective: Objective,
    data: TaskData,
    folder: Path,
    count: int,
    *,
    resume_step: int = 0,
    also: WriteSamples | None = None,
) -> dict[str, Evaluator]:
    """Returns the evaluator ``samples``, which decodes greedily.

    Its metrics are the mean length of the responses in tokens (EOS included), the share of them that ended before the length limit, and
    their mean log-probability in nats.

    Args:
      objective: the method. Without a policy that it trains, there is no evaluator.
      data: the prompts are the first distinct ones of the evaluation split, or of the training split if there is none.
      folder: the run folder.
      count: the number of prompts; 0 for no evaluator.
      resume_step: samples of later steps are removed from the file.
      also: receives the samples too.

    Where the policy reads images, or several processes train it, there is no evaluator either, and a line says so.
    """
    policy = objective.trained().get("policy")
    if not count or not isinstance(policy, PolicyNetwork):
        return {}
    reads_images = getattr(getattr(policy, "config", None), "image_size", 0)
    if distributed.is_multiprocess() or reads_images:
        if distributed.is_primary_process():
            why = "the policy reads images" if reads_images else "the run has several processes"
            print(
                f"jaxalign: {why}, so there are no samples (SAMPLE_PROMPTS); `jaxalign generate` answers with its checkpoints",
                file=sys.stderr,
            )
        return {}
    prompts, tokens = _first_prompts(data, count)
    vocabulary = data.load_vocabulary()
    settings = DecodingSettings(max_target_length=data.feature_lengths["targets"])
    file = folder / SAMPLES_FILE
    keep_lines_up_to(file, resume_step)

    def sample(step: int, params: Mapping[str, Any]) -> dict[str, float]:
        found, log_probs = generate_tokens(
            policy, params["policy"], tokens, settings, batch_size=_BATCH
        )
        rows = [response_tokens(row[0]) for row in found]
        finished = [
            len(row) < settings.max_target_length or row[-1] == vocabulary.eos_id for row in rows
        ]
        written = [
            {
                "step": step,
                "split": SPLIT,
                "prompt": prompt,
                "response": decode_tokens(vocabulary, row[0]),
                "log_prob": float(log_prob[0]),
            }
            for prompt, row, log_prob in zip(prompts, found, log_probs, strict=True)
        ]
        _append(file, written)
        if also is not None:
            also(step, written)
        return {
            "response_length": float(np.mean([len(row) for row in rows])),
            "finished": float(np.mean(finished)),
            "log_prob": float(np.mean(log_probs)),
        }

    return {SPLIT: sample}


def _first_prompts(data: TaskData, count: int) -> tuple[list[str], list[list[int]]]:
    split = data.cache().split(data.eval_split or "train")
    found: dict[int, tuple[str, list[int]]] = {}
    for example in split:
        found.setdefault(example.prompt_id, (example.prompt, example.inputs.tolist()))
        if len(found) == count:
            break
    return [text for text, _ in found.values()], [tokens for _, tokens in found.values()]


def _append(file: Path, records: Sequence[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    try:
        with file.open("a", encoding="utf-8") as opened:
            opened.write(text)
    except OSError as error:
        problem = files.disk_problem(error)
        if problem is None:
            raise
        raise UserError(f"could not write {file}: {problem}; checkpoints stay") from error
