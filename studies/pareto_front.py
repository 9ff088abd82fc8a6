"""Several objectives on human ratings: a sweep over weights gives the fronts of MODPO and of DPO with weighted losses.

    python -m studies.pareto_front --data <folder with nlg_ratings.multi.*.jsonl> --workers 2
    python -m studies.pareto_front_report

Sentences of `nlg_ratings` have ratings of informativeness, naturalness and quality. A weighting ``w`` mixes the first two as
``w * informativeness + (1 - w) * naturalness``; quality is only measured. The study measures how well the log-ratio ranks held-out
sentences by each rating. No hyperparameter is searched: beta, learning rate and updates are those of the other studies. The same command
continues an interrupted study.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.cli.gin_objectives import objective_from_gin
from jaxalign.data.sources import prompt_fraction
from jaxalign.data.task_data import TaskData
from jaxalign.evaluation.statistics import spearman
from jaxalign.networks.policy import Policy
from jaxalign.recipes.jobs import Job
from jaxalign.training.optimizers import adamw
from jaxalign.training.run import train
from jaxalign.training.start import StartFrom
from studies import human_feedback
from studies.command_line import run_study
from studies.equal_footing import POLICIES, SCORES, constant_loop
from studies.equal_footing_forms import RATINGS, read_rows
from studies.equal_footing_judging import rating_log_probs

SEEDS = (0, 1, 2)
WEIGHTS = (0.1, 0.3, 0.5, 0.7, 0.9)
METHODS = {"modpo_scores": "MODPO", "dpo_loss_weighting": "DPO, losses weighted"}
BETA, LEARNING_RATE, UPDATES = 0.1, 1e-4, 80
ROWS, ROW_LENGTHS = 8, {"inputs": 96, "targets": 144}


def jobs(data: Path, folder: Path) -> list[Job]:
    """Returns the jobs: SFT policies as in the study `human_feedback`, the scored pairs, and a run per method, weight and seed."""
    made = [
        job
        for job in human_feedback.jobs(data, folder)
        if job.name.startswith((f"{RATINGS.name}/data", f"{RATINGS.name}/sft"))
    ]
    made.append(Job("pairs", functools.partial(_pairs, data), (f"{RATINGS.name}/data",)))
    made += [
        Job(
            f"{method}/w{weight:g}/seed{seed}",
            functools.partial(_run, folder, method, weight, seed),
            ("pairs", f"{RATINGS.name}/sft/seed{seed}"),
        )
        for weight in WEIGHTS
        for method in METHODS
        for seed in SEEDS
    ]
    return made


def _pairs(data: Path, job: Path) -> dict[str, Any]:
    """Writes two rated sentences per prompt with all scores, without the prompts in the validation split of the other studies."""
    counts = {}
    for split, source in (("train", "train"), ("validation", "dev")):
        groups: dict[str, list[dict[str, Any]]] = {}
        for row in read_rows(data / f"nlg_ratings.multi.{source}.jsonl"):
            if source == "dev" or prompt_fraction(row.get("group") or row["prompt"]) >= 0.15:
                groups.setdefault(row["prompt"], []).append(row)
        lines = [
            {
                "prompt": prompt,
                "responses": [one["response"], other["response"]],
                "scores": [one["scores"], other["scores"]],
            }
            for prompt, (one, other, *_) in ((p, g) for p, g in groups.items() if len(g) > 1)
        ]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (job / f"{split}.jsonl").write_text(text, encoding="utf-8")
        counts[split] = len(lines)
        if split == "validation":
            (job / "test.json").write_text(
                json.dumps([row for group in groups.values() for row in group]), encoding="utf-8"
            )
    return counts


def _run(folder: Path, method: str, weight: float, seed: int, job: Path) -> dict[str, Any]:
    reference = folder / RATINGS.name / f"sft/seed{seed}" / "run"
    policy: Policy = POLICIES["nlg_ratings"]
    # In the order of the task's scores, which is alphabetical.
    weights = (weight, 1 - weight, 0.0)
    objective = objective_from_gin([method], {"WEIGHTS": weights, "BETA": BETA}, policy=policy)
    train(
        model_dir=str(job / "run"),
        objective=objective,
        data=TaskData(
            task="nlg_ratings_scores",
            cache_dir=str(folder / "pairs" / "cache"),
            feature_lengths=RATINGS.lengths,
            vocabulary=str(folder / RATINGS.name / "data" / "spm.model"),
            train_file=str(folder / "pairs" / "train.jsonl"),
            validation_file=str(folder / "pairs" / "validation.jsonl"),
            kind="multi",
            duplicates="keep",
            long_prompts="truncate_left",
            eval_split="",
            pack=True,
            row_lengths=ROW_LENGTHS,
        ),
        optimizers={
            "policy": adamw(
                LEARNING_RATE,
                warmup_steps=20,
                schedule="cosine",
                total_steps=UPDATES,
                clip_norm=1.0,
            )
        },
        loop=constant_loop(UPDATES),
        batch_size=ROWS,
        start_from=StartFrom(str(reference)),
        random_seed=seed,
    )
    return _judge(folder, job / "run", reference)


def _judge(folder: Path, run: Path, reference: Path) -> dict[str, Any]:
    """Correlates the log-ratio with each rating of the dev sentences (Spearman)."""
    rows = json.loads((folder / "pairs" / "test.json").read_text(encoding="utf-8"))
    log_probs, _ = rating_log_probs(rows, run, reference)
    log_ratios = log_probs[0] - log_probs[1]
    return {
        "spearman": {
            score: spearman(log_ratios, np.array([row["scores"][score] for row in rows]))
            for score in SCORES
        },
        "log_ratio_std": float(log_ratios.std()),
        "responses": len(rows),
    }


def main() -> None:
    """Command line."""
    run_study(__doc__ or "", "pareto_front", jobs)


if __name__ == "__main__":
    main()
