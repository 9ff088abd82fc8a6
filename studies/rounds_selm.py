"""SELM on RNNLG acts: does lowering the probability of the own answer help the next round, from a normal and from a bad start?

    python -m studies.rounds_selm --data <folder with rnnlg.seq2seq.*.jsonl> --output runs/rounds --workers 1
    python -m studies.rounds_report selm --runs runs/rounds

In each of three rounds, the greedy answer to 200 fresh acts is ranked with the best and the worst of four samples of the fine-tuned policy.
The bad start is DPO on labelled pairs the wrong way round. Three seeds; the same command continues an interrupted study.

The studies of rounds share the fine-tuned policies of one --output folder.
"""

from __future__ import annotations

from pathlib import Path

from jaxalign.recipes.jobs import Job
from jaxalign.recipes.round_sampling import Sampler
from studies.command_line import run_study
from studies.rounds_arms import Arm, study_jobs

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
    """Returns all jobs of the study."""
    return study_jobs(source, folder, ARMS)


def main() -> None:
    """Command line."""
    run_study(__doc__ or "", "rounds", jobs)


if __name__ == "__main__":
    main()
