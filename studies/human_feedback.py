"""Ranking held-out responses by human feedback: DRO-V and KTO against simple baselines.

    python -m studies.human_feedback --data <folder with *.triplets.*.jsonl> --output runs/human_feedback --workers 2

The data are ratings of generated sentences (``nlg_ratings``: quality, 1 to 6) and thumbs on dialogue turns (``taskmaster4``). A reference
policy is fitted to all logged responses; DRO-V and KTO start from it. Hyperparameters and the checkpoint are chosen on a validation split,
which is taken from the training file by group; the dev file is used for the report only. The same command continues an interrupted study.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.data.derived import write_jsonl
from jaxalign.data.encoding import TextEncoder
from jaxalign.data.records import Record
from jaxalign.data.sources import prompt_fraction
from jaxalign.data.task_data import TaskData
from jaxalign.data.tokenization import Limits
from jaxalign.data.train_vocabulary import train_sentencepiece
from jaxalign.evaluation.ranking import rank_methods, ranking_scores
from jaxalign.evaluation.tfidf import TfidfRidge
from jaxalign.inference.rows import predict_values, score_responses
from jaxalign.networks.policy import Policy
from jaxalign.networks.value import ValueNetwork
from jaxalign.objectives.base import Objective
from jaxalign.objectives.dro import DROV
from jaxalign.objectives.kto import KTO
from jaxalign.objectives.sft import SFT
from jaxalign.recipes.jobs import Job, read_result
from jaxalign.runs.folder import Run
from jaxalign.training.checkpointing import CheckpointPolicy
from jaxalign.training.loop import LoopConfig
from jaxalign.training.optimizers import adamw
from jaxalign.training.run import train
from jaxalign.training.start import StartFrom
from studies.command_line import MINI_T5, run_study

SEEDS = (0, 1, 2)
LEARNING_RATES = (1e-4,)
STRENGTHS = {"dro_v": (0.3, 1.0, 3.0), "kto": (0.1, 1.0, 5.0)}
# SFT on a few thousand responses over-fits without dropout.
CONFIG = dataclasses.replace(MINI_T5, dropout_rate=0.1)
POLICY = Policy(CONFIG, logits_chunk_size=None)


@dataclasses.dataclass(frozen=True)
class Source:
    """One data set.

    Attributes:
      name: name of the files.
      lengths: tokens of a prompt (cut on the left) and of a response.
      row_lengths: lengths of packed rows.
      rows: rows of a batch, with about 32 to 40 responses.
      desirable_threshold: responses with feedback above this value are desirable.
      sft_steps: steps of the reference policy's training.
      updates: updates of DRO-V and KTO, with five checkpoints.
    """

    name: str
    lengths: dict[str, int]
    row_lengths: dict[str, int]
    rows: int
    desirable_threshold: float
    sft_steps: int
    updates: int


SOURCES = (
    Source(
        "nlg_ratings",
        {"inputs": 64, "targets": 64},
        {"inputs": 128, "targets": 128},
        8,
        4.75,
        800,
        200,
    ),
    Source(
        "taskmaster4",
        {"inputs": 256, "targets": 128},
        {"inputs": 512, "targets": 192},
        8,
        0.5,
        350,
        100,
    ),
)


def jobs(data: Path, folder: Path) -> list[Job]:
    """Returns all jobs of the study."""
    made: list[Job] = []
    for source in SOURCES:
        name = source.name
        made.append(Job(f"{name}/data", functools.partial(_prepare, source, data), ()))
        made += [
            Job(
                f"{name}/sft/seed{seed}",
                functools.partial(_sft, source, folder, seed),
                (f"{name}/data",),
            )
            for seed in SEEDS
        ]
        search = [
            Job(
                f"{name}/search/{method}/{strength:g}/lr{rate:g}",
                functools.partial(_align, source, folder, method, strength, rate, 0, "validation"),
                (f"{name}/sft/seed0",),
            )
            for method in STRENGTHS
            for strength, rate in itertools.product(STRENGTHS[method], LEARNING_RATES)
        ]
        made += search
        made += [
            Job(
                f"{name}/final/{method}/seed{seed}",
                functools.partial(_final, source, folder, method, seed),
                (f"{name}/sft/seed{seed}", *(job.name for job in search)),
            )
            for method in STRENGTHS
            for seed in SEEDS
        ]
    return made


def selected(folder: Path, source: Source, method: str) -> tuple[float, float]:
    """Returns the strength (tau or beta) and learning rate with the best Spearman correlation on the validation split."""
    candidates = []
    for strength, rate in itertools.product(STRENGTHS[method], LEARNING_RATES):
        result = read_result(folder, f"{source.name}/search/{method}/{strength:g}/lr{rate:g}")
        if result is not None:
            candidates.append((result["ranking"]["tau * log-ratio"]["spearman"], strength, rate))
    _, strength, rate = max(candidates)
    return strength, rate


def _prepare(source: Source, data: Path, job: Path) -> dict[str, Any]:
    records: dict[str, list[Record]] = {"train": [], "validation": [], "test": []}
    for split in ("train", "dev"):
        with (data / f"{source.name}.triplets.{split}.jsonl").open(encoding="utf-8") as file:
            for row in map(json.loads, file):
                held_out = prompt_fraction(row.get("group") or row["prompt"]) < 0.15
                target = "test" if split == "dev" else "validation" if held_out else "train"
                records[target].append(
                    Record(row["prompt"], (row["response"],), (float(row["feedback"]),))
                )
    seen = {record.prompt for record in records["train"]}
    records["validation"] = [
        record for record in records["validation"] if record.prompt not in seen
    ]
    for split, found in records.items():
        write_jsonl(found, str(job / f"{split}.jsonl"), "triplet")
    texts = dict.fromkeys(
        text for record in records["train"] for text in (record.prompt, *record.responses)
    )
    train_sentencepiece(texts, str(job / "spm.model"), vocab_size=1000)
    return {"responses": {split: len(found) for split, found in records.items()}}


def _task(source: Source, folder: Path, *, pack: bool) -> TaskData:
    data = folder / source.name / "data"
    return TaskData(
        task=source.name,
        cache_dir=str(data / "cache"),
        feature_lengths=source.lengths,
        vocabulary=str(data / "spm.model"),
        train_file=str(data / "train.jsonl"),
        validation_file=str(data / "validation.jsonl"),
        duplicates="keep",
        long_prompts="truncate_left",
        pack=pack,
        row_lengths=source.row_lengths if pack else None,
    )


def _sft(source: Source, folder: Path, seed: int, job: Path) -> dict[str, Any]:
    summary = train(
        model_dir=str(job / "run"),
        objective=SFT(policy=POLICY),
        data=_task(source, folder, pack=True),
        optimizers={
            "policy": adamw(
                2e-3,
                warmup_steps=100,
                schedule="cosine",
                total_steps=source.sft_steps,
                clip_norm=1.0,
            )
        },
        loop=_loop(source.sft_steps, source.sft_steps // 5, "validation/loss"),
        batch_size=source.rows,
        random_seed=seed,
    )
    return {"best": summary["best"]}


def _loop(steps: int, period: int, metric: str) -> LoopConfig:
    return LoopConfig(
        train_steps=steps,
        log_period=50,
        eval_period=period,
        checkpoint=CheckpointPolicy(period=period, keep_latest=1, keep_best=1, best_metric=metric),
        progress=False,
    )


def _objective(source: Source, method: str, strength: float) -> Objective:
    # Without dropout, because noise in the log-ratio would be noise in the regression.
    config = dataclasses.replace(CONFIG, dropout_rate=0.0)
    policy = Policy(config, logits_chunk_size=None)
    if method == "dro_v":
        return DROV(policy=policy, value=ValueNetwork(config), temperature=strength)
    return KTO(policy=policy, beta=strength, desirable_threshold=source.desirable_threshold)


def _align(
    source: Source,
    folder: Path,
    method: str,
    strength: float,
    learning_rate: float,
    seed: int,
    split: str,
    job: Path,
) -> dict[str, Any]:
    reference = folder / source.name / f"sft/seed{seed}" / "run"
    summary = train(
        model_dir=str(job / "run"),
        objective=_objective(source, method, strength),
        data=_task(source, folder, pack=True),
        optimizers={"policy": adamw(learning_rate, warmup_steps=20, clip_norm=1.0)},
        loop=_loop(source.updates, source.updates // 5, "validation/loss"),
        batch_size=source.rows,
        start_from=StartFrom(str(reference)),
        random_seed=seed,
    )
    ranking = _rank(source, folder, job / "run", reference, strength, split)
    return {
        "method": method,
        "strength": strength,
        "learning_rate": learning_rate,
        "best": summary["best"],
        "ranking": ranking,
    }


def _final(source: Source, folder: Path, method: str, seed: int, job: Path) -> dict[str, Any]:
    strength, rate = selected(folder, source, method)
    return _align(source, folder, method, strength, rate, seed, "test", job)


def _rank(
    source: Source, folder: Path, run: Path, reference: Path, tau: float, split: str
) -> dict[str, Any]:
    """Measures the agreement of every score with the feedback of a split."""
    rows = _rows(folder / source.name / "data" / f"{split}.jsonl")
    train_rows = _rows(folder / source.name / "data" / "train.jsonl")
    opened = Run(run).policy()
    limits = Limits(source.lengths["inputs"], source.lengths["targets"], "truncate_left")
    encoder = TextEncoder(opened.vocabulary, limits)
    prompts = encoder.prompts([row["prompt"] for row in rows]).tokens
    answers = encoder.responses([row["response"] for row in rows]).tokens
    responses = [[tokens] for tokens in answers]
    log_probs = [
        score_responses(each.network, each.params, prompts, responses)[0][:, 0]
        for each in (opened, Run(reference).policy())
    ]
    values = None
    if opened.run.has_value_network():
        value = opened.run.value()
        values = predict_values(value.network, value.params, prompts)
    texts = {field: [row[field] for row in rows] for field in ("prompt", "response")}
    linear = TfidfRidge().fit(
        [row["prompt"] for row in train_rows],
        [row["response"] for row in train_rows],
        np.array([row["feedback"] for row in train_rows]),
    )
    methods = ranking_scores(
        log_probs[0],
        log_probs[1],
        texts["response"],
        tau=tau,
        values=values,
        linear=linear.predict(texts["prompt"], texts["response"]),
    )
    feedback = np.array([row["feedback"] for row in rows])
    ranked = rank_methods(methods, feedback, texts["prompt"])
    return {name: ranking.to_dict() for name, ranking in ranked.items()}


def _rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def main() -> None:
    """Command line."""
    run_study(__doc__ or "", "human_feedback", jobs)


if __name__ == "__main__":
    main()
