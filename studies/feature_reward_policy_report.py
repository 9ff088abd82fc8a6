"""The page and the figure of policies trained on a reward of features: ``python -m studies.feature_reward_policy_report``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxalign.evaluation.tables import markdown_table
from studies import feature_reward_policy
from studies.command_line import write_report
from studies.feature_reward_policy import FEATURES, OBJECTIVES, REWARDS, SEEDS, Size
from studies.formatting import finished, spread, unfinished
from studies.plotting import dot_plot

FIGURE = Path("docs/results/feature_reward_policy.png")
# Measure -> column and digits.
_MEASURES = {
    "reward": ("right slots, samples", 3),
    "greedy_reward": ("right slots, greedy", 3),
    "kl": ("KL", 2),
    "distinct_2": ("distinct-2", 3),
    "length": ("length", 1),
}


def report(folder: Path, figure: Path = FIGURE) -> str:
    """Returns the page and draws the figure."""
    question, _, details = (feature_reward_policy.__doc__ or "").partition("\n\n")
    size = Size()
    found = {
        f"{objective}, {reward}": finished(folder, f"{objective}/{reward}", SEEDS)
        for objective in OBJECTIVES
        for reward in REWARDS
    }
    lines = [
        "# A policy on a reward of features\n",
        f"{question}\n",
        f"{details.rstrip()}\n",
        f"{size.pairs} labelled pairs; {size.acts} acts with {size.samples} samples each for the policies; {size.updates} updates;",
        f"{size.test} test acts with one sample at temperature 1 and one greedy response each. KL from the start is exact at every",
        "position along the samples. Mean and standard deviation over seeds.\n",
        *_CONCLUSION,
    ]
    rewards = finished(folder, "rewards", SEEDS)
    if rewards:
        lines += ["## The rewards\n", markdown_table(_rewards(folder, rewards)), ""]
        weights = ", ".join(
            f"{name} {spread([run['phi'][name] for run in rewards], 2)}" for name in FEATURES
        )
        lines += [f"Weights of phi, for features divided by their standard deviation: {weights}.\n"]
    every = [run for runs in found.values() for run in runs]
    if every:
        rows = [{"arm": "start", **_cells(_starts(found)), "reward minus that of the start": ""}]
        rows += [
            {
                "arm": f"`{arm}`",
                **_cells(runs),
                "reward minus that of the start": spread(
                    [run["reward"] - run["start"]["reward"] for run in runs]
                ),
                "own reward of greedy responses, before": spread(
                    [run["own_reward_of_start"] for run in runs]
                ),
                "after": spread([run["own_reward"] for run in runs]),
                "seeds": str(len(runs)),
            }
            for arm, runs in found.items()
        ]
        lines += [
            "## The policies\n",
            "The own reward is the mean rank among the training samples by the reward that the policy learned from.\n",
            markdown_table(rows),
            "",
        ]
        gains = {
            arm: [run["reward"] - run["start"]["reward"] for run in runs] or [float("nan")]
            for arm, runs in found.items()
        }
        dot_plot({"samples": gains}, "right slots minus those of the start (more is better)", figure)  # fmt: skip
        lines.append(f"![Right slots minus those of the start, by arm]({figure.name})\n")
    return "\n".join([*lines, *unfinished(found, SEEDS)])


_CONCLUSION: list[str] = []


def _starts(found: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [run["start"] for run in max(found.values(), key=len)]


def _cells(runs: Sequence[dict[str, Any]]) -> dict[str, str]:
    return {
        column: spread([run[key] for run in runs], digits)
        for key, (column, digits) in _MEASURES.items()
    }


def _rewards(folder: Path, rewards: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns how each reward orders held-out pairs, and how it agrees with the exact measure on the samples that policies learn from."""
    rows = []
    for reward in REWARDS:
        prepared = finished(folder, f"prepared/{reward}", SEEDS)
        accuracy = [run["accuracy"][reward] for run in rewards] if reward != "exact" else []
        rows.append(
            {
                "reward": reward,
                "accuracy on held-out pairs": spread(accuracy) if accuracy else "1",
                "held-out pairs a seed": rewards[0]["held_out_pairs"],
                "correlation of ranks with right slots": spread(
                    [run["correlation"] for run in prepared]
                ),
                "dropped by A-LoL": spread([run["dropped"] for run in prepared]),
                "seeds": len(prepared),
            }
        )
    return rows


def main() -> None:
    """Command line."""
    write_report(__doc__ or "", "feature_reward_policy", report)


if __name__ == "__main__":
    main()
