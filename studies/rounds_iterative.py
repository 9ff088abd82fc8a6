"""Iterative DPO and DRO on RNNLG acts: three rounds of fresh samples against one round with as many labels. Three seeds.

    python -m studies.rounds_iterative --data <folder with rnnlg.seq2seq.*.jsonl> --output runs/rounds --workers 1
    python -m studies.rounds_report iterative --runs runs/rounds

Both arms of a method see 600 acts with four samples each, judged exactly, and make as many updates. The same command continues an
interrupted study.

The studies of rounds share the fine-tuned policies of one --output folder.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from jaxalign.recipes.jobs import Job
from jaxalign.recipes.round_sampling import Sampler
from studies.command_line import run_study
from studies.rounds_arms import Arm, study_jobs

_SAMPLER = Sampler(num_samples=4)
_DPO = Arm("dpo", {"BETA": 0.1}, sampler=_SAMPLER, reference="start")
# Four responses to an act, and one pair: a pass over triplets is about four times as many updates.
_DRO = Arm(
    "dro_v",
    {"TEMPERATURE": 1.0, "RESCALE": "none"},
    selector="rated:annotation=judge",
    sampler=_SAMPLER,
    reference="start",
    epochs=1.0,
)
ARMS: dict[str, Arm] = {
    f"{name}_{rounds}_round{'s' if rounds > 1 else ''}": dataclasses.replace(
        arm, rounds=rounds, acts=600 // rounds
    )
    for name, arm in (("dpo", _DPO), ("dro", _DRO))
    for rounds in (3, 1)
}


def jobs(source: Path, folder: Path) -> list[Job]:
    """Returns all jobs of the study."""
    return study_jobs(source, folder, ARMS)


def main() -> None:
    """Command line."""
    run_study(__doc__ or "", "rounds", jobs)


if __name__ == "__main__":
    main()
