"""T5 reward models of the study `feature_reward`: about a million parameters that read the summary, fitted to N preferences."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.annotation.judges import get_judge
from jaxalign.cli.gin_objectives import objective_from_gin
from jaxalign.data.task_data import TaskData
from jaxalign.data.train_vocabulary import train_sentencepiece
from jaxalign.networks.policy import Policy
from jaxalign.recipes.jobs import Job, read_result
from jaxalign.training.optimizers import adamw
from jaxalign.training.run import train
from studies.command_line import MINI_T5
from studies.equal_footing import constant_loop
from studies.feature_reward_data import drawn, read_pairs
from studies.feature_reward_models import accuracy

SEEDS = (0, 1, 2, 3, 4)
SIZES = (50, 200, 727)
RATES = (3e-4, 1e-3)
UPDATES, PAIRS_PER_BATCH = 200, 8
# Pairs that choose the learning rate; the other training pairs train the models of the search.
SEARCH_PAIRS = 127
LENGTHS = {"inputs": 8, "targets": 384}
# 95 % of the summaries have fewer tokens; the beginning of a longer one is not read.
READ_TOKENS = 224
# The model reads the summary only, as logistic regression on words does; the reviews are far longer.
PROMPT = "summary"
POLICY = Policy(MINI_T5, logits_chunk_size=None)


def jobs(data: Path, folder: Path) -> list[Job]:
    """Returns the vocabulary, a search of the learning rate on training pairs, and a model for every size and seed."""
    made = [Job("t5/data", functools.partial(_prepare, data))]
    search = [
        Job(f"t5/search/lr{rate:g}", functools.partial(_search, data, folder, rate), ("t5/data",))
        for rate in RATES
    ]
    made += search
    made += [
        Job(
            f"t5/n{size}/seed{seed}",
            functools.partial(_final, data, folder, size, seed),
            ("t5/data", *(job.name for job in search)),
        )
        for seed in SEEDS
        for size in SIZES
    ]
    return made


def selected(folder: Path) -> float:
    """Returns the learning rate with the best accuracy on the pairs of the search."""
    results = [read_result(folder, f"t5/search/lr{rate:g}") for rate in RATES]
    return max(
        zip(RATES, (r for r in results if r is not None), strict=True),
        key=lambda each: each[1]["accuracy"],
    )[0]


def _texts(data: Path, split: str) -> list[tuple[str, str]]:
    return read_pairs(data / f"opinpref.multi.{split}.jsonl")[1]


def _prepare(data: Path, job: Path) -> dict[str, Any]:
    texts = [text for pair in _texts(data, "train") for text in pair]
    train_sentencepiece([PROMPT, *texts], str(job / "spm.model"), vocab_size=1000)
    return {"summaries": len(texts)}


def _search(data: Path, folder: Path, rate: float, job: Path) -> dict[str, Any]:
    pairs = _texts(data, "train")
    order = drawn(0, len(pairs))
    held_out, known = order[:SEARCH_PAIRS], order[SEARCH_PAIRS:]
    return _fit(
        folder, [pairs[i] for i in known], [pairs[i] for i in held_out], rate, seed=0, job=job
    )


def _final(data: Path, folder: Path, size: int, seed: int, job: Path) -> dict[str, Any]:
    pairs = _texts(data, "train")
    known = drawn(seed, len(pairs))[:size]
    chosen = [pairs[i] for i in known]
    return _fit(folder, chosen, _texts(data, "dev"), selected(folder), seed=seed, job=job)


def _fit(
    folder: Path,
    known: Sequence[tuple[str, str]],
    others: Sequence[tuple[str, str]],
    rate: float,
    *,
    seed: int,
    job: Path,
) -> dict[str, Any]:
    """Trains a reward model on pairs and returns its accuracy on others, judged as `reward_model:RUN`."""
    lines = [
        json.dumps({"prompt": PROMPT, "chosen": one, "rejected": other}) for one, other in known
    ]
    (job / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    summary = train(
        model_dir=str(job / "run"),
        objective=objective_from_gin(
            ["reward_model"], {"REWARD_MAX_LENGTH": READ_TOKENS}, policy=POLICY
        ),
        data=TaskData(
            task="opinpref_text",
            cache_dir=str(job / "cache"),
            feature_lengths=LENGTHS,
            vocabulary=str(folder / "t5/data/spm.model"),
            train_file=str(job / "train.jsonl"),
            kind="pair",
            duplicates="keep",
            eval_split="",
        ),
        optimizers={
            "reward": adamw(
                rate, warmup_steps=20, schedule="cosine", total_steps=UPDATES, clip_norm=1.0
            )
        },
        loop=constant_loop(UPDATES),
        batch_size=PAIRS_PER_BATCH,
        random_seed=seed,
    )
    texts = [text for pair in others for text in pair]
    rewards = get_judge(f"reward_model:{job / 'run'}").score([PROMPT] * len(texts), texts)
    margins = np.asarray(rewards)[0::2] - np.asarray(rewards)[1::2]
    return {
        "pairs": len(known),
        "rate": rate,
        "train_loss": summary["train"]["loss"],
        "accuracy": float(accuracy(margins).mean()),
    }
