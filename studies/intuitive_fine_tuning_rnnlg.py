"""Dialogue acts of the study `intuitive_fine_tuning`: SFT then IFT against SFT then DPO, IFT alone, and the three published forms.

SFT and IFT read the human sentences of all acts. DPO reads pairs of the SFT policy's own samples, ordered by exact slot errors: other
data, which cost a judge. All arms after SFT have equal updates and rate; none was searched.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.cli.gin_objectives import objective_from_gin
from jaxalign.data.task_data import TaskData
from jaxalign.evaluation.statistics import distinct_n, kl_estimate
from jaxalign.inference.sequence_kl import sequence_kl
from jaxalign.recipes.jobs import Job
from jaxalign.training.optimizers import adamw
from jaxalign.training.run import train
from jaxalign.training.start import StartFrom
from studies import rnnlg, rnnlg_data, rounds_arms
from studies.equal_footing import constant_loop

SEEDS = rounds_arms.SEEDS
UPDATES, RATE = 100, 1e-4
ALONE_UPDATES, ALONE_RATE = rounds_arms.SFT_STEPS, 2e-3
TEST_ACTS = 300


@dataclasses.dataclass(frozen=True)
class Arm:
    """A gin file with macros, on human sentences or on pairs; ``alone`` has no SFT before and as many updates as SFT."""

    gin: str
    macros: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    pairs: bool = False
    alone: bool = False


ARMS = {
    "more_sft": Arm("sft"),
    "ift": Arm("ift"),
    "ift_constant_weights": Arm("ift", {"DETACH_WEIGHTS": True}),
    "ift_weights_only": Arm("ift", {"MIX": 0.0}),
    "ift_algorithm_1": Arm("ift_algorithm_1"),
    "ift_equation_21": Arm("ift_equation_21"),
    "dpo": Arm("dpo", {"BETA": 0.1, "REFERENCE": "live"}, pairs=True),
    "ift_alone": Arm("ift", alone=True),
}


def jobs(data: Path, folder: Path) -> list[Job]:
    """Returns the SFT policies and judged samples of the studies of rounds, and a run per arm and seed."""
    made = [
        dataclasses.replace(
            job, name=f"rnnlg/{job.name}", needs=tuple(f"rnnlg/{need}" for need in job.needs)
        )
        for job in rounds_arms.study_jobs(data, folder / "rnnlg", {})
        if job.name.split("/")[0] in ("data", "sft", "labelled")
    ]
    for seed in SEEDS:
        sft = f"rnnlg/sft/seed{seed}"
        made.append(Job(f"rnnlg/start/seed{seed}", functools.partial(_start, folder, seed), (sft,)))
        made += [
            Job(
                f"rnnlg/{name}/seed{seed}",
                functools.partial(_run, folder, arm, seed),
                (sft, f"rnnlg/labelled/seed{seed}"),
            )
            for name, arm in ARMS.items()
        ]
    # The arms with an SFT stage come first, because IFT alone is the longest job.
    return sorted(made, key=lambda job: "alone" in job.name)


def _start(folder: Path, seed: int, job: Path) -> dict[str, Any]:
    del job
    run = folder / f"rnnlg/sft/seed{seed}/run"
    return judge(folder, run, run)


def _run(folder: Path, arm: Arm, seed: int, job: Path) -> dict[str, Any]:
    files = folder / "rnnlg"
    sft = files / f"sft/seed{seed}/run"
    common: dict[str, Any] = {
        "cache_dir": str(job / "cache"),
        "feature_lengths": rounds_arms.LENGTHS,
        "vocabulary": str(files / "data/spm.model"),
        "duplicates": "keep",
        "eval_split": "",
    }
    if arm.pairs:
        pairs = files / f"labelled/seed{seed}/all_pairs.jsonl"
        data = TaskData(task="rnnlg_pairs", train_file=str(pairs), kind="pair", **common)
    else:
        data = TaskData(
            task="rnnlg",
            train_file=str(files / "data/train.jsonl"),
            kind="seq2seq",
            pack=True,
            row_lengths={"inputs": 160, "targets": 128},
            **common,
        )
    updates, rate = (ALONE_UPDATES, ALONE_RATE) if arm.alone else (UPDATES, RATE)
    summary = train(
        model_dir=str(job / "run"),
        objective=objective_from_gin(
            [arm.gin], arm.macros, policy=rounds_arms.POLICY, train_steps=updates
        ),
        data=data,
        optimizers={
            "policy": adamw(
                rate,
                warmup_steps=updates // 10,
                schedule="cosine",
                total_steps=updates,
                clip_norm=1.0,
            )
        },
        loop=constant_loop(updates),
        batch_size=16,
        start_from=StartFrom() if arm.alone else StartFrom(str(sft)),
        random_seed=seed,
    )
    return {"examples": summary["examples"], **judge(folder, job / "run", sft)}


def judge(folder: Path, run: Path, reference: Path) -> dict[str, Any]:
    """Measures slot errors of greedy responses and samples on test acts, KL from the SFT policy, length and diversity."""
    prompts = rnnlg_data.acts(folder / "rnnlg/data", "test")
    drawn = np.random.default_rng(0).permutation(len(prompts))[:TEST_ACTS]
    prompts = [prompts[index] for index in sorted(drawn)]
    policy, params, vocabulary = rnnlg.load_policy(run)
    greedy = rnnlg.generate_responses(policy, params, vocabulary, prompts)
    sampled = rnnlg.generate_responses(policy, params, vocabulary, prompts, samples=1, seed=1)
    encoded = rnnlg.text_encoder(vocabulary).prompts(prompts).tokens
    start = rnnlg.load_policy(reference)[1]
    divergences = sequence_kl((policy, params), (policy, start), encoded, sampled, batch_size=100)
    texts = [vocabulary.decode(each[0]) for each in sampled]
    likeliest = [vocabulary.decode(each[0]) for each in greedy]
    return {
        "slot_errors": rnnlg_data.slot_error_rate(prompts, texts),
        "greedy_slot_errors": rnnlg_data.slot_error_rate(prompts, likeliest),
        "kl": kl_estimate(divergences).mean,
        "length": float(np.mean([len(each[0]) for each in sampled])),
        "distinct_2": distinct_n(texts, 2),
        "responses": texts[:5],
    }
