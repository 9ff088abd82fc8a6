"""SPA on RNNLG acts: does a policy that labels its own samples improve, and what do its parts add? Three rounds, three seeds.

    python -m studies.rounds_spa --data <folder with rnnlg.seq2seq.*.jsonl> --output runs/rounds --workers 1
    python -m studies.rounds_report spa --runs runs/rounds

The start is fine-tuned on all acts; DPO on oracle-labelled pairs of 150 acts (5 %) gives the policy before round 1. Each round has 200
fresh acts with two samples each. The same command continues an interrupted study.

The studies of rounds share the fine-tuned policies of one --output folder.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from jaxalign.recipes.jobs import Job
from jaxalign.recipes.round_sampling import Sampler
from studies.command_line import run_study
from studies.rounds_arms import Arm, study_jobs

STRENGTHS = {"STRENGTH": (0.5, 0.25, 0.125)}
# The policy of the round before labels, against the start or against what it was trained from.
LABELS = "implicit_reward:policy={{previous}},reference={reference},beta=0.1"
_JUDGED = Arm(
    "spa",
    {"ALPHA": 0.0, "STRENGTH": 0.0},
    sampler=Sampler(num_samples=2, temperature=0.7),
    first=True,
)
_SELF = dataclasses.replace(
    _JUDGED,
    annotators={"implicit_reward": LABELS.format(reference="{start}")},
    selector="self_labels:annotation=implicit_reward",
)
_SPA = dataclasses.replace(_SELF, macros={"ALPHA": 0.1}, per_round=STRENGTHS)

ARMS: dict[str, Arm] = {
    "spa": _SPA,
    "no_refinement": _SELF,
    "no_extrapolation": dataclasses.replace(_SELF, macros={"ALPHA": 0.1, "STRENGTH": 0.0}),
    "against_previous": dataclasses.replace(
        _SPA, annotators={"implicit_reward": LABELS.format(reference="{before}")}
    ),
    "oracle": _JUDGED,
    "random": dataclasses.replace(
        _JUDGED, annotators={"judge": "studies.rounds_arms:random_scores"}
    ),
}


def jobs(source: Path, folder: Path) -> list[Job]:
    """Returns all jobs of the study."""
    return study_jobs(source, folder, ARMS)


def main() -> None:
    """Command line."""
    run_study(__doc__ or "", "rounds", jobs)


if __name__ == "__main__":
    main()
