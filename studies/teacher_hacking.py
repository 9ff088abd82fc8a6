"""Teacher hacking: does a student that comes closer to its teacher depart from the oracle? Five sources of data, 40 epochs, three seeds.

    python -m studies.teacher_hacking --data <folder with rnnlg.seq2seq.*.jsonl> --output runs/teacher_hacking --workers 2
    python -m studies.teacher_hacking_report --runs runs/teacher_hacking

The oracle (5 M parameters) is fitted to human sentences, and is the truth from then on. The teacher (1 M) and the student (.4 M) are fitted
to its samples, the student for few steps. Then the student is distilled with the forward KL on other acts, in equal numbers of steps: on
one fixed teacher response for each act, on fresh teacher samples, on fresh samples of its own, on fixed responses of which a tenth is
replaced by fresh samples of its own, and on a fifth of the acts with five fixed responses each. Fresh samples are drawn once an epoch.

Golden is KL(oracle || student), proxy is KL(teacher || student), in nats a sequence, exact at every position along fixed samples to
held-out acts. A student that imitates its teacher exactly has golden KL(oracle || teacher), so a run needs a teacher that is nearer to the
oracle than the student's start; the job ``starts`` fails otherwise. The same command continues an interrupted study; an arm of a seed that
was interrupted starts again. Measured: 1.8 core-hours beside other work.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxalign.data.derived import write_jsonl
from jaxalign.data.records import Record
from jaxalign.data.task_data import TaskData
from jaxalign.inference.encoders import encoder_of
from jaxalign.inference.sampling import DecodingSettings, generate_responses
from jaxalign.objectives.sft import SFT
from jaxalign.recipes.jobs import Job
from jaxalign.runs.folder import Run
from jaxalign.training.optimizers import adamw
from jaxalign.training.run import train
from studies import rnnlg_data
from studies.command_line import run_study
from studies.equal_footing import constant_loop
from studies.teacher_hacking_distil import (
    EPOCHS,
    LENGTHS,
    MEASURED,
    POLICIES,
    distil,
    held_out_measure,
    splits,
)
from studies.teacher_hacking_measures import check_starts, hacked, log_slope

SEEDS = (0, 1, 2)
VOCAB_SIZE = 1000
STUDENT_ACTS, HELD_OUT_ACTS = 600, 200
# Acts that the oracle answers for the teacher and the student, and its responses to each.
FIRST_STAGE_ACTS, ORACLE_SAMPLES = 4000, 2
FEWER = 5
FIT_STEPS = {"oracle": 600, "teacher": 1000, "student": 150}
# Share of acts; whose responses are fresh; the share of them that is fresh.
ARMS: dict[str, tuple[float, str, float]] = {
    "offline": (1.0, "teacher", 0.0),
    "fresh_teacher": (1.0, "teacher", 1.0),
    "fresh_student": (1.0, "student", 1.0),
    "tenth_fresh": (1.0, "student", 0.1),
    "fewer_acts": (1.0 / FEWER, "teacher", 0.0),
}


def jobs(source: Path, folder: Path) -> list[Job]:
    """Returns all jobs, seed after seed."""
    made = [
        Job("data", functools.partial(_prepare, source)),
        Job("oracle", functools.partial(_fit, folder, "oracle", 0), ("data",)),
    ]
    for seed in SEEDS:
        texts, starts = f"oracle_samples/seed{seed}", f"starts/seed{seed}"
        fitted = tuple(f"{name}/seed{seed}" for name in ("teacher", "student"))
        made.append(Job(texts, functools.partial(_oracle_samples, folder, seed), ("oracle",)))
        made += [
            Job(name, functools.partial(_fit, folder, name.split("/")[0], seed), (texts,))
            for name in fitted
        ]
        made.append(Job(starts, functools.partial(_starts, folder, seed), fitted))
        made += [
            Job(f"{arm}/seed{seed}", functools.partial(_distil, folder, arm, seed), (starts,))
            for arm in ARMS
        ]
    return made


def _prepare(source: Path, job: Path) -> dict[str, Any]:
    counts = rnnlg_data.prepare(source, job, VOCAB_SIZE)
    acts = rnnlg_data.acts(job, "train")
    order = np.random.default_rng(0).permutation(len(acts))
    splits = {
        "student": [acts[i] for i in order[:STUDENT_ACTS]],
        "first_stage": [acts[i] for i in order[STUDENT_ACTS:][:FIRST_STAGE_ACTS]],
        "held_out": rnnlg_data.acts(job, "test")[:HELD_OUT_ACTS],
    }
    (job / "acts.json").write_text(json.dumps(splits, indent=1), encoding="utf-8")
    return {"human": counts, **{name: len(found) for name, found in splits.items()}}


def _fit(folder: Path, name: str, seed: int, job: Path) -> dict[str, Any]:
    texts = folder / ("data/train.jsonl" if name == "oracle" else f"oracle_samples/seed{seed}/train.jsonl")  # fmt: skip
    steps = FIT_STEPS[name]
    summary = train(
        model_dir=str(job / "run"),
        objective=SFT(policy=POLICIES[name]),
        data=TaskData(
            task="rnnlg",
            cache_dir=str(job / "cache"),
            feature_lengths=LENGTHS,
            vocabulary=str(folder / "data/spm.model"),
            train_file=str(texts),
            validation_file=str(folder / "data/validation.jsonl"),
            kind="seq2seq",
            duplicates="keep",
            pack=True,
            row_lengths={"inputs": 160, "targets": 128},
        ),
        optimizers={
            "policy": adamw(
                2e-3,
                warmup_steps=steps // 10,
                schedule="cosine",
                total_steps=steps,
                clip_norm=1.0,
            )
        },
        loop=constant_loop(steps),
        batch_size=16,
        random_seed=seed,
    )
    sizes = [leaf.size for leaf in jax.tree.leaves(POLICIES[name].abstract_params())]
    return {"summary": summary, "parameters": sum(sizes)}


def _oracle_samples(folder: Path, seed: int, job: Path) -> dict[str, Any]:
    opened = Run(folder / "oracle/run").policy()
    acts = splits(folder)["first_stage"]
    settings = DecodingSettings(LENGTHS["targets"], num_samples=ORACLE_SAMPLES, temperature=1.0)
    texts, _ = generate_responses(
        POLICIES["oracle"], opened.params, encoder_of(opened), acts, settings, batch_size=64, seed=seed
    )  # fmt: skip
    records = [
        Record(act, (text,))
        for act, group in zip(acts, texts, strict=True)
        for text in group
        if text.strip()
    ]
    write_jsonl(records, str(job / "train.jsonl"), "seq2seq")
    return {"sentences": len(records)}


def _starts(folder: Path, seed: int, job: Path) -> dict[str, Any]:
    del job
    held_out, student, _ = held_out_measure(folder, seed)
    teacher = float(held_out.kl("oracle", "teacher", held_out.params["teacher"]).mean())
    start = float(held_out.kl("oracle", "student", student).mean())
    check_starts(teacher, start)
    return {"oracle_to_teacher": teacher, "oracle_to_student": start}


def _distil(folder: Path, arm: str, seed: int, job: Path) -> dict[str, Any]:
    """Distils the student for `EPOCHS` epochs, and measures it."""
    del job
    found = distil(folder, ARMS[arm], seed)
    epochs = [epoch for epoch in MEASURED if epoch <= EPOCHS]
    return {
        "epochs": epochs,
        "golden": [float(each.mean()) for each in found.golden],
        "proxy": found.proxy,
        "train_loss": found.losses,
        "steps": found.steps,
        "log_slope": log_slope(epochs[1:], found.proxy[1:]),
        **hacked(np.stack(found.golden), found.proxy),
    }


def main() -> None:
    """Command line."""
    run_study(__doc__ or "", "teacher_hacking", jobs)


if __name__ == "__main__":
    main()
