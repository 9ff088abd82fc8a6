"""Distillation with the forward KL, the reverse KL and Jensen-Shannon on `rnnlg`: who comes closer to the teacher, and who to the oracle?

    python -m studies.distillation --data <folder with rnnlg.seq2seq.*.jsonl> --output runs/teacher_hacking --workers 2
    python -m studies.distillation_report --runs runs/teacher_hacking

Oracle, teacher and student are those of the study `teacher_hacking`, which has the same --output folder: the teacher has seen samples of
the oracle, so it is an imperfect copy of a known truth. Every divergence is computed on one fixed response of the teacher for each act, and
on fresh samples of the student, drawn once an epoch. A control learns the teacher's responses alone, without its probabilities. All arms
start from the same student and have equal updates and one learning rate; nothing is searched.

Distances are KL of whole sequences in nats, exact at every position along samples of the first policy, in both directions: KL(teacher ||
student) is large where the student misses what the teacher says, KL(student || teacher) where it says what the teacher would not. The same
command continues an interrupted study. Expected: 1.2 core-hours (21 jobs of 3.5 minutes, by a short run) beside the oracle,
teachers and students of `teacher_hacking`.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.evaluation.statistics import distinct_n
from jaxalign.inference.rows import decode_tokens
from jaxalign.inference.sequence_kl import sequence_kl
from jaxalign.losses.distillation import forward_kl, jensen_shannon, reverse_kl
from jaxalign.recipes.jobs import Job
from jaxalign.runs.folder import Run
from studies import rnnlg_data, teacher_hacking
from studies.command_line import run_study
from studies.teacher_hacking_distil import POLICIES, Distilled, distil, sample


@dataclasses.dataclass(frozen=True)
class Size:
    """Passes over the acts, and the passes before which the student is measured; the last one ends the training."""

    epochs: int = 12
    measured: tuple[int, ...] = (0, 1, 2, 4, 8, 12)


SEEDS = teacher_hacking.SEEDS
_DIVERGENCES = {
    "forward": forward_kl,
    "reverse": reverse_kl,
    "jensen_shannon": functools.partial(jensen_shannon, beta=0.5),
}
_SOURCES = {
    "teacher": teacher_hacking.ARMS["offline"],
    "own": teacher_hacking.ARMS["fresh_student"],
}
# The name of the arm, its source of responses, and options of `Distillation`.
ARMS: dict[str, tuple[tuple[float, str, float], dict[str, Any]]] = {
    **{
        f"{name}_{source}": (where, {"divergence": divergence})
        for source, where in _SOURCES.items()
        for name, divergence in _DIVERGENCES.items()
    },
    "responses_alone": (_SOURCES["teacher"], {"hard_weight": 1.0}),
}


def jobs(source: Path, folder: Path, size: Size = Size()) -> list[Job]:
    """Returns the jobs of oracle, teachers and students, and of every seed all arms."""
    arms = {f"{arm}/seed{seed}" for arm in teacher_hacking.ARMS for seed in SEEDS}
    made = [job for job in teacher_hacking.jobs(source, folder) if job.name not in arms]
    made += [
        Job(
            f"distillation/{arm}/seed{seed}",
            functools.partial(_run, folder, arm, size, seed),
            (f"starts/seed{seed}",),
        )
        for seed in SEEDS
        for arm in ARMS
    ]
    return made


def _run(folder: Path, arm: str, size: Size, seed: int, job: Path) -> dict[str, Any]:
    del job
    where, options = ARMS[arm]
    found = distil(folder, where, seed, epochs=size.epochs, measured=size.measured, **options)
    return {
        "epochs": list(size.measured),
        "golden": [float(each.mean()) for each in found.golden],
        "proxy": found.proxy,
        "steps": found.steps,
        **_own_samples(folder, found, seed),
    }


def _own_samples(folder: Path, found: Distilled, seed: int) -> dict[str, Any]:
    """Measures the student's samples to the held-out acts: KL to teacher and oracle, slot errors, diversity, length."""
    held_out = found.held_out
    student = POLICIES["student"], found.params
    # Each act stands as often as it has samples of the oracle.
    rows = [group[0] for group in sample("student", found.params, held_out.prompts, 500 + seed)]
    kl = {
        role: sequence_kl(
            student,
            (POLICIES[role], held_out.params[role]),
            held_out.prompts,
            [[row] for row in rows],
            batch_size=64,
        )
        for role in ("teacher", "oracle")
    }
    vocabulary = Run(folder / f"student/seed{seed}/run").vocabulary
    texts = [decode_tokens(vocabulary, row) for row in rows]
    return {
        "from_student": {role: float(values.mean()) for role, values in kl.items()},
        "slot_errors": rnnlg_data.slot_error_rate(held_out.acts, texts),
        "distinct_2": distinct_n(texts, 2),
        "length": float(np.mean([len(row) for row in rows])),
        "samples": texts[:5],
    }


def main() -> None:
    """Command line."""
    run_study(__doc__ or "", "distillation", jobs)


if __name__ == "__main__":
    main()
