"""SPA on RNNLG acts: does a policy that labels its own samples improve, and what do its parts add? Three rounds, three seeds.

    python -m studies.rounds_spa --data <folder with rnnlg.seq2seq.*.jsonl> --output runs/rounds --workers 1
    python -m studies.rounds_report spa --runs runs/rounds

The start is fine-tuned on all acts; DPO on oracle-labelled pairs of 150 acts (5 %) gives the policy before round 1. Each round has 200
fresh acts with two samples each. The same command continues an interrupted study.

The studies of rounds share the fine-tuned policies of one --output folder.
"""

from __future__ import annotations

from pathlib import Path

from jaxalign.recipes.jobs import Job
from jaxalign.recipes.round_sampling import Sampler
from studies.command_line import run_study
from studies.rounds_arms import Arm, arm_jobs, start_jobs

STRENGTHS = {"STRENGTH": (0.5, 0.25, 0.125)}
LABELS = {"implicit_reward": "implicit_reward:policy={previous},reference={start},beta=0.1"}
_SELF = {
    "annotators": LABELS,
    "selector": "self_labels:annotation=implicit_reward",
    "sampler": Sampler(num_samples=2, temperature=0.7),
    "first": True,
}
_JUDGED = {"sampler": Sampler(num_samples=2, temperature=0.7), "first": True}

ARMS: dict[str, Arm] = {
    "spa": Arm("spa", {"ALPHA": 0.1}, STRENGTHS, **_SELF),
    "no_refinement": Arm("spa", {"ALPHA": 0.0, "STRENGTH": 0.0}, **_SELF),
    "no_extrapolation": Arm("spa", {"ALPHA": 0.1, "STRENGTH": 0.0}, **_SELF),
    "against_previous": Arm(
        "spa",
        {"ALPHA": 0.1},
        STRENGTHS,
        **{
            **_SELF,
            "annotators": {
                "implicit_reward": "implicit_reward:policy={previous},reference={before},beta=0.1"
            },
        },
    ),
    "oracle": Arm("spa", {"ALPHA": 0.0, "STRENGTH": 0.0}, **_JUDGED),
    "random": Arm(
        "spa",
        {"ALPHA": 0.0, "STRENGTH": 0.0},
        annotators={"judge": "studies.rounds_arms:random_scores"},
        **_JUDGED,
    ),
}


def jobs(source: Path, folder: Path) -> list[Job]:
    """Returns all jobs of the study."""
    return [*start_jobs(source, folder), *arm_jobs(folder, ARMS)]


def main() -> None:
    """Command line."""
    run_study(__doc__ or "", "rounds", jobs)


if __name__ == "__main__":
    main()
