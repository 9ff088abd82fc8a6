"""Goal-conditioned reward models: does a contrast of prefixes help a reward model, and can Q-values stop wrong solutions early?

    python -m studies.goal_conditioned --data <folder with gsm8k.seq2seq.*, gsm8k_solutions.* and hh_helpful_base.pairs.*> --workers 2
    python -m studies.goal_conditioned_report

`gsm8k_solutions`: pairs of a right and a wrong solution; four solutions to each of 119 held-out questions are scored, prefix by prefix,
and vote. `hh_helpful_base`: pairs of assistant turns. A T5 of 0.3 million parameters, first fine-tuned on good responses, becomes the
reward model: Bradley-Terry alone, or with the contrastive loss in its matched or its released form. All arms of a seed read the same N
pairs. No hyperparameter is searched. A reward model takes 45 to 70 s of one core (measured), and all 130 about 2 core-hours.
Jobs are ordered by seed, so that an interrupted study compares all arms; the same command continues it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.cli.gin_objectives import objective_from_gin
from jaxalign.data.derived import write_jsonl
from jaxalign.data.records import Record
from jaxalign.data.task_data import TaskData
from jaxalign.data.train_vocabulary import train_sentencepiece
from jaxalign.networks.config import T5Config
from jaxalign.networks.policy import Policy
from jaxalign.objectives.sft import SFT
from jaxalign.recipes.jobs import Job
from jaxalign.training.optimizers import adamw
from jaxalign.training.run import train
from jaxalign.training.start import StartFrom
from studies.command_line import run_study
from studies.equal_footing import constant_loop
from studies.equal_footing_forms import read_rows
from studies.goal_conditioned_measures import SIDES, measure_pairs, measure_solutions

SEEDS = tuple(range(10))
# The gin file and its macros by arm.
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "alone": ("goal_conditioned_reward_model", {"CONTRAST_WEIGHT": 0.0}),
    "matched": ("goal_conditioned_reward_model", {}),
    "released": ("goal_conditioned_reward_model_released", {}),
}
CONFIG = T5Config(
    vocab_size=2048,
    emb_dim=64,
    num_heads=2,
    head_dim=32,
    mlp_dim=128,
    num_encoder_layers=2,
    num_decoder_layers=2,
    dropout_rate=0.1,
    dtype="float32",
)
POLICY = Policy(CONFIG, logits_chunk_size=None)
SFT_UPDATES, UPDATES = 400, 200
LEARNING_RATE = 1e-3


VOCAB_SIZE = 2000
LENGTHS = {"inputs": 128, "targets": 160}
ROWS, ROW_LENGTHS = 8, {"inputs": 128, "targets": 320}


@dataclasses.dataclass(frozen=True)
class Source:
    """One data set.

    Attributes:
      name: name of the files of pairs.
      sizes: numbers of training pairs.
      arms: names of `ARMS`.
    """

    name: str
    sizes: tuple[int, ...]
    arms: tuple[str, ...]


SOLUTIONS = Source("gsm8k_solutions", (250, 700, 1900), tuple(ARMS))
HELPFUL = Source("hh_helpful_base", (250, 1000), ("alone", "matched"))
SOURCES = (SOLUTIONS, HELPFUL)


def jobs(data: Path, folder: Path) -> list[Job]:
    """Returns the jobs: data, a fine-tuned T5, and a reward model per number of pairs, arm and seed."""
    made = []
    for source in SOURCES:
        name = source.name
        made += [
            Job(f"{name}/data", functools.partial(_prepare, source, data)),
            Job(f"{name}/sft", functools.partial(_sft, source, folder), (f"{name}/data",)),
        ]
    for seed in SEEDS:
        made += [
            Job(
                run_name(source, size, arm, seed),
                functools.partial(_run, source, folder, size, arm, seed),
                (f"{source.name}/sft",),
            )
            for source in SOURCES
            for size in source.sizes
            for arm in source.arms
        ]
    return made


def run_name(source: Source, size: int, arm: str, seed: int) -> str:
    """Returns the name of the job of a reward model."""
    return f"{source.name}/n{size}/{arm}/seed{seed}"


def _prepare(source: Source, data: Path, job: Path) -> dict[str, Any]:
    """Writes a vocabulary of the training texts, the pairs, and the good responses to fine-tune on."""
    pairs = {
        split: read_rows(data / f"{source.name}.pairs.{split}.jsonl") for split in ("train", "dev")
    }
    good = [Record(row["prompt"], (row["chosen"],)) for row in pairs["train"]]
    if source is SOLUTIONS:
        # The pairs' questions are official test questions, of which some are in this file too.
        solutions = {
            split: read_rows(data / f"{source.name}.triplets.{split}.jsonl")
            for split in ("train", "dev")
        }
        test = {row["prompt"] for rows in solutions.values() for row in rows}
        rows = read_rows(data / "gsm8k.seq2seq.train.jsonl")
        good = [Record(r["prompt"], (r["response"],)) for r in rows if r["prompt"] not in test]
        (job / "solutions.json").write_text(json.dumps(solutions["dev"]), encoding="utf-8")
    texts: list[tuple[str, ...]] = [
        (row["prompt"], row["chosen"], row["rejected"]) for row in pairs["train"]
    ]
    texts += [(record.prompt, *record.responses) for record in good]
    vocabulary = train_sentencepiece(
        dict.fromkeys(text for each in texts for text in each),
        str(job / "spm.model"),
        vocab_size=VOCAB_SIZE,
    )
    fit = [
        row
        for row in pairs["train"]
        if all(len(vocabulary.encode(row[side])) < LENGTHS["targets"] for side in SIDES)
    ]
    write_jsonl(good, str(job / "good.jsonl"), "seq2seq")
    write_jsonl(_pairs(pairs["dev"]), str(job / "dev.jsonl"), "pair")
    (job / "train.json").write_text(json.dumps(fit), encoding="utf-8")
    (job / "dev.json").write_text(json.dumps(pairs["dev"]), encoding="utf-8")
    return {
        "pairs": {split: len(rows) for split, rows in pairs.items()},
        "fit": len(fit),
        "good": len(good),
    }


def _pairs(rows: list[dict[str, Any]]) -> list[Record]:
    return [Record(row["prompt"], (row["chosen"], row["rejected"])) for row in rows]


def _task(source: Source, folder: Path, job: Path, kind: str, train_file: Path) -> TaskData:
    prepared = folder / source.name / "data"
    return TaskData(
        task=source.name,
        cache_dir=str(job / "cache"),
        feature_lengths=LENGTHS,
        vocabulary=str(prepared / "spm.model"),
        train_file=str(train_file),
        # Without a file, a tenth of the prompts is held out.
        validation_file=None if kind == "seq2seq" else str(prepared / "dev.jsonl"),
        kind=kind,
        duplicates="keep",
        long_prompts="truncate_left",
        eval_split="",
        pack=True,
        row_lengths=ROW_LENGTHS,
        # Long held-out pairs only; the training pairs fit.
        max_rejected_fraction=0.1,
    )


def _train(task: TaskData, objective: Any, rate: float, updates: int, **options: Any) -> Any:
    return train(
        objective=objective,
        data=task,
        optimizers={
            "policy": adamw(
                rate, warmup_steps=20, schedule="cosine", total_steps=updates, clip_norm=1.0
            )
        },
        loop=constant_loop(updates),
        batch_size=ROWS,
        **options,
    )


def _sft(source: Source, folder: Path, job: Path) -> dict[str, Any]:
    good = folder / source.name / "data" / "good.jsonl"
    task = _task(source, folder, job, "seq2seq", good)
    summary = _train(task, SFT(policy=POLICY), 3e-3, SFT_UPDATES, model_dir=str(job / "run"))
    return {"loss": summary["train"]["loss"]}


def train_pairs(source: Source, folder: Path, size: int, seed: int) -> list[dict[str, Any]]:
    """Returns the first pairs of a seed's permutation, so that the pairs of a smaller number are among those of a larger one."""
    rows = json.loads((folder / source.name / "data" / "train.json").read_text(encoding="utf-8"))
    order = np.random.default_rng(seed).permutation(len(rows))[:size]
    return [rows[i] for i in order]


def _run(source: Source, folder: Path, size: int, arm: str, seed: int, job: Path) -> dict[str, Any]:
    """Trains a reward model and measures it on the held-out pairs and solutions."""
    pairs = train_pairs(source, folder, size, seed)
    if not (job / "train.jsonl").exists():
        write_jsonl(_pairs(pairs), str(job / "train.jsonl"), "pair")
    file, macros = ARMS[arm]
    summary = _train(
        _task(source, folder, job, "pair", job / "train.jsonl"),
        objective_from_gin([file], macros, policy=POLICY),
        LEARNING_RATE,
        UPDATES,
        model_dir=str(job / "run"),
        start_from=StartFrom(str(folder / source.name / "sft" / "run")),
        random_seed=seed,
    )
    prepared = folder / source.name / "data"
    held_out = json.loads((prepared / "dev.json").read_text(encoding="utf-8"))
    result = {"train": summary["train"], "pairs": measure_pairs(job / "run", held_out)}
    if source is SOLUTIONS:
        solutions = json.loads((prepared / "solutions.json").read_text(encoding="utf-8"))
        result["solutions"] = measure_solutions(job / "run", pairs, solutions)
    return result


def main() -> None:
    """Command line."""
    run_study(__doc__ or "", "goal_conditioned", jobs)


if __name__ == "__main__":
    main()
