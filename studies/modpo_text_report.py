"""The page and the figure of several objectives on generated text: ``python -m studies.modpo_text_report``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.evaluation.pareto import hypervolume
from jaxalign.evaluation.plots import plot_front
from jaxalign.evaluation.tables import markdown_table
from jaxalign.recipes.jobs import read_result
from studies import modpo_text
from studies.command_line import write_report
from studies.formatting import finished, spread, unfinished
from studies.modpo_text import BETA, METHODS, RATE, SEEDS, WEIGHTINGS, Size
from studies.modpo_text_scores import OBJECTIVES, volume

FIGURE = Path("docs/results/modpo_text.png")
# Weightings of slots and brevity alone.
_TWO = [place for place, weights in enumerate(WEIGHTINGS.values()) if not weights[1]]
_AXES = ("slots", "brevity")
# What a whole front needs besides its own policies.
_SHARED = {
    "modpo_scalar": ("reward_brevity", "reward_likeness"),
    "modpo_implicit": ("dpo_brevity", "dpo_likeness"),
    "weighted_losses": (),
    "soup": tuple(f"dpo_{each}" for each in OBJECTIVES),
    "best_of_n": tuple(f"reward_{each}" for each in OBJECTIVES),
}
# method -> seed -> the points of its front, in the order of WEIGHTINGS.
Fronts = dict[str, dict[int, list[dict[str, Any]]]]


def report(folder: Path, figure: Path = FIGURE) -> str:
    """Returns the page and draws the figure."""
    question, _, details = (modpo_text.__doc__ or "").partition("\n\n")
    fronts: Fronts = {
        method: {seed: front for seed in SEEDS if (front := _front(folder, method, seed))}
        for method in METHODS
    }
    size = Size()
    lines = [
        "# Several objectives on generated text\n",
        f"{question}\n",
        f"{details.rstrip()}\n",
        f"{size.acts} acts with a pair each, {size.updates} updates, beta {BETA:g}, rate {RATE:g}; {size.test} test acts with one sample",
        "at temperature 1. KL is exact at every position along the samples; that of best-of-n is the upper bound. Mean and standard",
        "deviation over seeds.\n",
    ]
    if any(fronts.values()):
        lines += [
            "## Policies\n",
            markdown_table(_policies(folder, fronts)),
            "\n## Fronts\n",
            *_volumes(fronts),
            "\n## Margins\n",
            "How often a margin orders the training pairs that differ as the exact score does, and the deviation of its difference within",
            "pairs, in logits.\n",
            markdown_table(_margins(folder)),
            "\n## Cost\n",
            f"Of a front of {len(WEIGHTINGS)} policies, by policy: updates and operations of training (6 for each parameter and token),",
            "reward models and single-objective policies included. For every answer, best-of-n samples and judges",
            f"{size.candidates} responses.\n",
            markdown_table(_costs(folder)),
        ]
        series = {
            method: np.mean([[[front[place]["scores"][axis] for axis in _AXES] for place in _TWO] for front in by_seed.values()], axis=0)
            for method, by_seed in fronts.items()
            if by_seed
        }  # fmt: skip
        labels = [f"{list(WEIGHTINGS.values())[place][2]:g}" for place in _TWO]
        plot_front(series, ("slots", "brevity"), figure, labels=labels)
        lines.append(f"\n![Brevity against slots, by the weight of slots]({figure.name})\n")
    missing = {method: list(by_seed) for method, by_seed in fronts.items()}
    return "\n".join([*lines, *unfinished(missing, SEEDS), *_CONCLUSION])


_CONCLUSION: list[str] = []


def _front(folder: Path, method: str, seed: int) -> list[dict[str, Any]] | None:
    """Returns the points of a front; None unless all have finished."""
    whole = read_result(folder, f"modpo/{method}/seed{seed}")
    if whole:
        return list(whole["points"])
    results = [
        read_result(folder, f"modpo/{method}/{place}/seed{seed}")
        for place in range(len(WEIGHTINGS))
    ]
    points = [each for each in results if each]
    return points if len(points) == len(WEIGHTINGS) else None


def _row(weighting: str, policy: str, points: list[dict[str, Any]]) -> dict[str, Any]:
    cells = {each: spread([point["scores"][each] for point in points]) for each in OBJECTIVES}
    kl = spread([point["kl"] for point in points], 2)
    return {"weighting": weighting, "policy": policy, **cells, "KL": kl, "seeds": len(points)}


def _policies(folder: Path, fronts: Fronts) -> list[dict[str, Any]]:
    starts = [each["start"] for each in finished(folder, "modpo/pairs", SEEDS)]
    rows = [_row("-", "fine-tuned", starts)]
    rows += [_row(each, "DPO", finished(folder, f"modpo/dpo_{each}", SEEDS)) for each in OBJECTIVES]
    for place, weighting in enumerate(WEIGHTINGS):
        rows += [
            _row(weighting, f"`{method}`", [front[place] for front in by_seed.values()])
            for method, by_seed in fronts.items()
            if by_seed
        ]
    return rows


def _points(front: list[dict[str, Any]]) -> np.ndarray:
    return np.array([[point["scores"][each] for each in OBJECTIVES] for point in front])


def _volumes(fronts: Fronts) -> list[str]:
    """Returns the hypervolumes of two and three objectives, and the differences from MODPO with scalar margins."""
    everything = [_points(front) for by_seed in fronts.values() for front in by_seed.values()]
    corner = np.concatenate(everything).min(axis=0)
    axes = [OBJECTIVES.index(each) for each in _AXES]
    areas = {
        method: {seed: hypervolume(_points(front)[_TWO][:, axes], corner[axes]) for seed, front in by_seed.items()}
        for method, by_seed in fronts.items()
    }  # fmt: skip
    volumes = {
        method: {seed: volume(_points(front), corner) for seed, front in by_seed.items()}
        for method, by_seed in fronts.items()
    }
    rows = []
    for method, by_seed in fronts.items():
        row: dict[str, Any] = {"method": f"`{method}`"}
        for name, found in (("area of slots and brevity", areas), ("volume of all three", volumes)):
            base = found[METHODS[0]]
            row[name] = spread(list(found[method].values()))
            both = [seed for seed in by_seed if seed in base]
            row[f"{name}, minus `{METHODS[0]}`"] = (
                "" if method == METHODS[0] else spread([found[method][seed] - base[seed] for seed in both])
            )  # fmt: skip
        rows.append({**row, "seeds": len(by_seed)})
    shown = ", ".join(f"{name} {value:.3f}" for name, value in zip(OBJECTIVES, corner, strict=True))
    return [
        f"Hypervolume from the worst value of each objective over all policies and seeds ({shown}); differences are paired by seed.\n",
        markdown_table(rows),
    ]


def _margins(folder: Path) -> list[dict[str, Any]]:
    runs = finished(folder, "modpo/margins", SEEDS)
    return [
        {
            "margins": source,
            "objective": each,
            "accuracy": spread([run[source][each]["accuracy"] for run in runs]),
            "deviation": spread([run[source][each]["deviation"] for run in runs]),
            "seeds": len(runs),
        }
        for source in ("scalar", "implicit")
        for each in OBJECTIVES
        if each != "slots"
    ]


def _costs(folder: Path) -> list[dict[str, Any]]:
    """Returns updates and operations of the first finished seed; those of the others differ by the lengths of samples only."""
    rows = []
    for method, shared in _SHARED.items():
        own = [f"{method}/{place}" for place in range(len(WEIGHTINGS))]
        if method in ("soup", "best_of_n"):
            own = []
        results = [finished(folder, f"modpo/{name}", SEEDS)[:1] for name in (*own, *shared)]
        if not all(results):
            continue
        totals = {key: sum(each[key] for (each,) in results) for key in ("updates", "flops")}
        rows.append(
            {
                "method": f"`{method}`",
                "updates a policy": totals["updates"] / len(WEIGHTINGS),
                "teraflops a policy": totals["flops"] / len(WEIGHTINGS) / 1e12,
            }
        )
    return rows


def main() -> None:
    """Command line."""
    write_report(__doc__ or "", "modpo_text", report)


if __name__ == "__main__":
    main()
