"""SELM on RNNLG acts: does lowering the probability of the own answer help the next round, from a normal and from a bad start?

    python -m studies.rounds_selm --data <folder with rnnlg.seq2seq.*.jsonl> --output runs/rounds --workers 1
    python -m studies.rounds_report selm --runs runs/rounds

In each of three rounds, the greedy answer to 200 fresh acts is ranked with the best and the worst of four samples of the fine-tuned policy.
The bad start is DPO on labelled pairs the wrong way round. Three seeds; the same command continues an interrupted study. The column
`log pi of the start's responses` is the mean log-probability, under the policy of a round, of the start's own samples to the test acts.

The studies of rounds share the fine-tuned policies of one --output folder.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.inference.encoders import encoder_of
from jaxalign.inference.rows import score_responses
from jaxalign.recipes.jobs import Job
from jaxalign.recipes.round_measures import RESPONSES
from jaxalign.recipes.round_sampling import Sampler
from jaxalign.runs.folder import Run
from studies.command_line import run_study
from studies.equal_footing_forms import read_rows
from studies.rounds_arms import LENGTHS, SEEDS, Arm, study_jobs

START_LOG_PROBS = "start_log_probs"
ALPHAS = (0.0, 0.01, 0.03, 0.1)
ARMS: dict[str, Arm] = {
    f"{prior}_alpha{alpha:g}": Arm(
        "selm",
        {"BETA": 0.1, "ALPHA": alpha},
        selector="reference_ranked:annotation=judge,own=0",
        sampler=Sampler(num_samples=1, temperature=0.0, logged=True),
        start=start,
        logged=True,
    )
    for prior, start in (("normal", "sft"), ("bad", "bad"))
    for alpha in ALPHAS
}


def jobs(source: Path, folder: Path) -> list[Job]:
    """Returns all jobs of the study. A job of its own scores the start's responses after each arm, so that finished arms stay."""
    return [
        *study_jobs(source, folder, ARMS),
        *[
            Job(
                f"{START_LOG_PROBS}/{name}/seed{seed}",
                functools.partial(_start_log_probs, folder, name, seed),
                (f"{name}/seed{seed}",),
            )
            for seed in SEEDS
            for name in ARMS
        ],
    ]


def _start_log_probs(folder: Path, name: str, seed: int, job: Path) -> dict[str, Any]:
    """Returns the mean log-probability of the start's samples to the test acts, in nats, under the start and the policy of every round."""
    del job
    arm, rounds = ARMS[name], folder / f"{name}/seed{seed}/rounds"
    runs = {"start": folder / f"{arm.start}/seed{seed}/run"}
    runs |= {
        str(number): rounds / f"round{number}/train/run" for number in range(1, arm.rounds + 1)
    }
    rows = read_rows(rounds / "start/measure" / RESPONSES)
    found = {}
    for number, run in runs.items():
        opened = Run(run).policy()
        encoder = encoder_of(
            opened, max_input_length=LENGTHS["inputs"], max_target_length=LENGTHS["targets"]
        )
        log_probs, _ = score_responses(
            opened.network,
            opened.params,
            encoder.prompts([row["prompt"] for row in rows]).tokens,
            [
                [tokens]
                for tokens in encoder.responses([row["responses"][0] for row in rows]).tokens
            ],
        )
        found[number] = float(np.mean(log_probs))
    return {"log_probs": found}


def main() -> None:
    """Command line."""
    run_study(__doc__ or "", "rounds", jobs)


if __name__ == "__main__":
    main()
