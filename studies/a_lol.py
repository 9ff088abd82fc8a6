"""A-LoL on logged responses of which 0, 25 or 50 % are corrupted: does an advantage tell them from the others, and whose value helps?

    python -m studies.a_lol --data <folder with rnnlg.seq2seq.*.jsonl> --workers 2
    python -m studies.a_lol_report

The logged responses are people's sentences to dialogue acts of `rnnlg`; a share of them is exchanged among the acts, so that the language
stays that of people. The reward is the exact share of right slots, 0 to 1. At each share a T5 of about a million parameters is fine-tuned
on all logged responses and is the reference; then every arm learns from the same part of them, in equal updates and at one learning rate.
Nothing is searched. As in A-LoL (arXiv 2305.14718), V is a head on the reference's states, responses with a negative advantage are dropped,
and the others are drawn in proportion to it. V is fitted to the rewards of the reference's own greedy answers to validation acts, as the
authors do (`greedy`), or to those of the logged responses (`logged`). An act has one response, so that nothing can be learned from pairs.
The same command continues an interrupted study. Expected: 1.1 core-hours (103 jobs; a reference takes 2 minutes of one core, a preparation
40 seconds, an arm 30).
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.annotation.score import score
from jaxalign.cli.gin_objectives import objective_from_gin
from jaxalign.data.derived import write_jsonl
from jaxalign.data.records import Record
from jaxalign.data.task_data import TaskData
from jaxalign.inference.encoders import encoder_of
from jaxalign.inference.rows import predict_values
from jaxalign.objectives.sft import SFT
from jaxalign.recipes.jobs import Job
from jaxalign.runs.folder import Run
from studies import rnnlg_data, rounds_arms
from studies.command_line import run_study
from studies.equal_footing_forms import read_rows
from studies.fitting import fit
from studies.rnnlg_runs import ROWS, fit_advantages, goodness, greedy_texts, measured, task


@dataclasses.dataclass(frozen=True)
class Size:
    """The numbers that make the study small or large.

    Attributes:
      sft_updates, value_updates, updates: updates of the reference, of a value head, and of an arm.
      logged: responses from which the arms learn; the reference learns from all.
      validation, test: acts whose greedy answers train V, and acts of the measures.
    """

    sft_updates: int = 500
    value_updates: int = 200
    updates: int = 150
    logged: int = 4000
    validation: int = 400
    test: int = 300


@dataclasses.dataclass(frozen=True)
class Arm:
    """An objective by its gin file, how its responses are drawn, whose V gives its advantages, and the shares at which it runs."""

    gin: str
    macros: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sampling: str = "uniform"
    value: str = ""
    shares: tuple[int, ...] = (0, 25, 50)


SEEDS = rounds_arms.SEEDS
SHARES = (0, 25, 50)
SFT_RATE, VALUE_RATE, RATE = 2e-3, 3e-3, 1e-4
VALUES = ("greedy", "logged")
_LAST = SHARES[-1:]
ARMS = {
    "nll": Arm("nll"),
    "weighted_cloning": Arm("weighted_behaviour_cloning", sampling="reward"),
    "r_lol": Arm("r_lol", sampling="reward"),
    "a_lol_greedy": Arm("a_lol", sampling="priority", value="greedy"),
    "a_lol_logged": Arm("a_lol", sampling="priority", value="logged"),
    "a_lol_seq": Arm("a_lol_seq", sampling="priority", value="greedy"),
    "dro_v": Arm("dro_v", {"RESCALE": "none"}),
    "r_gold": Arm("r_gold", shares=_LAST),
    "a_lol_uniform": Arm("a_lol", sampling="positive", value="greedy", shares=_LAST),
    "a_lol_reference_free": Arm(
        "a_lol_reference_free", sampling="priority", value="greedy", shares=_LAST
    ),
    "a_lol_kl": Arm("a_lol_kl", sampling="priority", value="greedy", shares=_LAST),
}


def jobs(data: Path, folder: Path, size: Size = Size()) -> list[Job]:
    """Returns the jobs: data, and of every seed and share the corrupted responses, the reference, values and arms."""
    made = [job for job in rounds_arms.study_jobs(data, folder, {}) if job.name == "data"]
    for seed in SEEDS:
        for share in SHARES:
            where = f"{share}/seed{seed}"
            steps = {
                "corrupted": (_corrupt, "data"),
                "sft": (_sft, f"corrupted/{where}"),
                "prepared": (_prepare, f"sft/{where}"),
            }
            made += [
                Job(f"{name}/{where}", functools.partial(run, folder, size, where), (need,))
                for name, (run, need) in steps.items()
            ]
            made += [
                Job(
                    f"{name}/{where}",
                    functools.partial(_arm, folder, size, where, arm),
                    (f"prepared/{where}",),
                )
                for name, arm in ARMS.items()
                if share in arm.shares
            ]
    return made


def exchanged(texts: list[str], share: float, generator: np.random.Generator) -> list[str]:
    """Returns the texts with a share of them moved on by one place among a random choice of places."""
    count = round(share * len(texts))
    places = generator.permutation(len(texts))[:count]
    found = list(texts)
    for place, origin in zip(places, np.roll(places, 1), strict=True):
        found[place] = texts[origin]
    return found


def _numbers(where: str) -> tuple[int, int]:
    """Returns the share in percent and the seed."""
    share, _, seed = where.partition("/seed")
    return int(share), int(seed)


def _corrupt(folder: Path, size: Size, where: str, job: Path) -> dict[str, Any]:
    """Writes the corrupted corpus, and a part of its acts with slots as triplets."""
    share, seed = _numbers(where)
    judged = set(rnnlg_data.acts(folder / "data", "train"))
    rows = [row for row in read_rows(folder / "data/train.jsonl") if row["prompt"] in judged]
    generator = np.random.default_rng(seed)
    texts = exchanged([row["response"] for row in rows], share / 100, generator)
    acts = [row["prompt"] for row in rows]
    records = [
        Record(act, (text,), (goodness(act, text),)) for act, text in zip(acts, texts, strict=True)
    ]
    chosen = [records[index] for index in generator.permutation(len(records))[: size.logged]]
    write_jsonl(records, str(job / "corpus.jsonl"), "seq2seq")
    write_jsonl(chosen, str(job / "triplets.jsonl"), "triplet")
    return {
        "sentences": len(records),
        "moved": float(np.mean([one != row["response"] for one, row in zip(texts, rows, strict=True)])),
        "reward": float(np.mean([record.feedback[0] for record in records if record.feedback])),
    }  # fmt: skip


def _sft(folder: Path, size: Size, where: str, job: Path) -> dict[str, Any]:
    corpus = folder / f"corrupted/{where}/corpus.jsonl"
    summary = fit(
        job / "run",
        SFT(policy=rounds_arms.POLICY),
        task("rnnlg", corpus, "seq2seq", folder / "data/spm.model", job / "cache"),
        rate=SFT_RATE,
        updates=size.sft_updates,
        seed=_numbers(where)[1],
        rows=ROWS["seq2seq"],
    )
    acts = rnnlg_data.some_acts(folder / "data", "test", size.test)
    return {"loss": summary["train"]["loss"], **measured(job / "run", job / "run", acts)}


def _triplets(folder: Path, where: str, **options: Any) -> TaskData:
    file = folder / f"corrupted/{where}/triplets.jsonl"
    cache = folder / f"prepared/{where}/cache"
    return task("rnnlg_logged", file, "triplet", folder / "data/spm.model", cache, **options)


def _prepare(folder: Path, size: Size, where: str, job: Path) -> dict[str, Any]:
    """Caches the logged responses with reference scores, fits both values, and stores the advantages under either."""
    reference = folder / f"sft/{where}/run"
    logged = _triplets(folder, where)
    logged.prepare()
    score(checkpoint=str(reference), cache_dir=logged.cache_dir)
    acts = rnnlg_data.some_acts(folder / "data", "validation", size.validation)
    lines = [
        json.dumps({"prompt": act, "response": text, "feedback": goodness(act, text)}) + "\n"
        for act, text in zip(acts, greedy_texts(reference, acts), strict=True)
        if text.strip()
    ]
    (job / "greedy.jsonl").write_text("".join(lines), encoding="utf-8")
    greedy = task(
        "rnnlg_greedy",
        job / "greedy.jsonl",
        "triplet",
        folder / "data/spm.model",
        job / "cache_greedy",
    )
    test = rnnlg_data.some_acts(folder / "data", "test", size.test)
    found: dict[str, Any] = {}
    for name, data in zip(VALUES, (greedy, logged), strict=True):
        run = job / f"value_{name}"
        kept = fit_advantages(
            run,
            data,
            logged,
            reference,
            name=name,
            rate=VALUE_RATE,
            updates=size.value_updates,
            seed=_numbers(where)[1],
        )
        value = Run(run).value()
        prompts = encoder_of(Run(reference).policy()).prompts(test).tokens
        values = predict_values(value.network, value.params, prompts, batch_size=100)
        found[name] = {
            "dropped": 1 - kept,
            "mean": float(values.mean()),
            "deviation": float(values.std()),
        }
    return found


def _arm(folder: Path, size: Size, where: str, arm: Arm, job: Path) -> dict[str, Any]:
    reference = folder / f"sft/{where}/run"
    stored = {"advantages": arm.value} if arm.value else {}
    summary = fit(
        job / "run",
        objective_from_gin([arm.gin], arm.macros, policy=rounds_arms.POLICY),
        _triplets(folder, where, sampling=arm.sampling, stored=stored),
        rate=RATE,
        updates=size.updates,
        seed=_numbers(where)[1],
        rows=ROWS["triplet"],
        start=reference,
    )
    acts = rnnlg_data.some_acts(folder / "data", "test", size.test)
    return {"responses": summary["examples"], **measured(job / "run", reference, acts)}


def main() -> None:
    """Command line."""
    run_study(__doc__ or "", "a_lol", jobs)


if __name__ == "__main__":
    main()
