"""The page and the figure of A-LoL: ``python -m studies.a_lol_report``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxalign.evaluation.tables import markdown_table
from jaxalign.recipes.jobs import read_result
from studies import a_lol
from studies.a_lol import ARMS, SEEDS, SHARES, VALUES, Size
from studies.command_line import write_report
from studies.formatting import finished, spread, unfinished
from studies.plotting import dot_plot

FIGURE = Path("docs/results/a_lol.png")
BASE = "nll"
# Measure -> column and digits.
_MEASURES = {
    "reward": ("reward, samples", 3),
    "greedy_reward": ("reward, greedy", 3),
    "kl": ("KL", 2),
    "entropy": ("entropy, nats a token", 3),
    "distinct_1": ("distinct-1", 3),
    "distinct_2": ("distinct-2", 3),
    "distinct_3": ("distinct-3", 3),
    "length": ("length", 1),
}


def report(folder: Path, figure: Path = FIGURE) -> str:
    """Returns the page and draws the figure."""
    question, _, details = (a_lol.__doc__ or "").partition("\n\n")
    found = {
        share: {
            arm: finished(folder, f"{arm}/{share}", SEEDS)
            for arm, settings in ARMS.items()
            if share in settings.shares
        }
        for share in SHARES
    }
    size = Size()
    lines = [
        "# Advantage-leftover-lunch (A-LoL)\n",
        f"{question}\n",
        f"{details.rstrip()}\n",
        f"{size.logged} logged responses, {size.updates} updates, {size.test} test acts with one sample at temperature 1 and one greedy",
        "response each. KL from the reference and entropy are exact at every position along the samples. Mean and standard deviation over",
        "seeds. `weighted_cloning` and `r_lol` weight by the reward and draw in proportion to it; `a_lol_uniform` draws equally among the",
        "responses with a positive advantage; arms without a V in their name take the one of greedy answers.\n",
    ]
    everything = {f"{arm}, {share} %": runs for share, by_arm in found.items() for arm, runs in by_arm.items()}  # fmt: skip
    if any(everything.values()):
        lines += ["## The values\n", markdown_table(_values(folder)), ""]
        for share, by_arm in found.items():
            rows = [_row("reference", finished(folder, f"sft/{share}", SEEDS), [])]
            rows += [_row(arm, runs, _gains(folder, arm, share)) for arm, runs in by_arm.items()]
            lines += [f"## {share} % corrupted\n", markdown_table(rows), ""]
        panels = {
            f"{share} % corrupted": {arm: [run["reward"] for run in by_arm.get(arm, [])] or [float("nan")] for arm in ARMS}
            for share, by_arm in found.items()
        }  # fmt: skip
        dot_plot(panels, "reward of samples", figure)
        lines.append(f"![Reward of samples by arm and share of corrupted responses]({figure.name})\n")  # fmt: skip
    return "\n".join([*lines, *unfinished(everything, SEEDS), *_CONCLUSION])


_CONCLUSION: list[str] = []


def _values(folder: Path) -> list[dict[str, Any]]:
    """Returns the mean of either V on test acts beside what it stands for, and the share of logged responses that it drops."""
    rows = []
    for share in SHARES:
        prepared = finished(folder, f"prepared/{share}", SEEDS)
        for name in VALUES:
            values = [run[name] for run in prepared]
            rows.append(
                {
                    "corrupted": f"{share} %",
                    "V of": f"{name} answers" if name == "greedy" else f"{name} responses",
                    "mean V": spread([each["mean"] for each in values]),
                    "deviation over acts": spread([each["deviation"] for each in values]),
                    "reward of logged responses": spread(
                        [run["reward"] for run in finished(folder, f"corrupted/{share}", SEEDS)]
                    ),
                    "dropped": spread([each["dropped"] for each in values]),
                    "seeds": len(values),
                }
            )
    return rows


def _row(arm: str, runs: Sequence[dict[str, Any]], gains: Sequence[float]) -> dict[str, Any]:
    cells = {
        column: spread([run[key] for run in runs], digits)
        for key, (column, digits) in _MEASURES.items()
    }
    return {"arm": f"`{arm}`", **cells, f"reward minus `{BASE}`": spread(gains), "seeds": len(runs)}


def _gains(folder: Path, arm: str, share: int) -> list[float]:
    """Returns the reward of an arm's samples minus that of more likelihood training, over the seeds that have both."""
    if arm == BASE:
        return []
    both = [
        (read_result(folder, f"{arm}/{share}/seed{seed}"), read_result(folder, f"{BASE}/{share}/seed{seed}"))
        for seed in SEEDS
    ]  # fmt: skip
    return [own["reward"] - base["reward"] for own, base in both if own and base]


def main() -> None:
    """Command line."""
    write_report(__doc__ or "", "a_lol", report)


if __name__ == "__main__":
    main()
