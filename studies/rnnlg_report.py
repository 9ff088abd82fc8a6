"""The tables of the RNNLG study, from its run folder.

python -m studies.rnnlg_report --runs runs/rnnlg --output docs/results/rnnlg.md
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.evaluation.statistics import Estimate, bootstrap_mean, win_points
from jaxalign.evaluation.tables import markdown_table
from jaxalign.recipes.jobs import read_result
from studies.command_line import write_report
from studies.rnnlg import (
    ABLATIONS,
    FAMILIES,
    KTO_BETAS,
    LEARNING_RATES,
    METHODS,
    SAMPLES_PER_ACT,
    SEEDS,
    SFT_STEPS,
    UPDATES,
)

TITLES = {
    "sft": "SFT (start and reference)",
    "dro_v": "DRO-V",
    "dro_p": "DRO-P",
    "kto_paper": "KTO, DRO paper's form",
    "kto_reference": "KTO, reference form",
    "dpo": "DPO",
    "filtered_sft": "filtered SFT",
    "best_of_4_sft": "best-of-4 SFT",
    "dro_v_tau0.1": "DRO-V, tau 0.1",
    "dro_v_tau5": "DRO-V, tau 5",
    "dro_v_double_single": "DRO-V, one value a batch",
    "dro_v_single_multi": "DRO-V, shared network",
    "dro_v_single_single": "DRO-V, shared network, one value a batch",
}
# (better, worse, what the paper says): arXiv 2405.19107, tables 1 and 2 and figure 5.
ORDERINGS = (
    ("dro_v", "sft", "DRO-V beats SFT (78.9 % T5-L)"),
    ("kto_paper", "sft", "KTO beats SFT (67.5 % T5-L)"),
    ("dro_v", "kto_paper", "DRO-V beats KTO (63.4 % T5-L)"),
    ("dro_p", "sft", "DRO-P can beat SFT"),
    ("dro_v", "dro_p", "DRO-V beats DRO-P"),
    ("dro_v", "dro_v_tau0.1", "tau 1 beats tau 0.1"),
    ("dro_v", "dro_v_tau5", "tau 1 beats tau 5"),
    ("dro_v", "dro_v_single_multi", "separate networks beat a shared one (74.7 %)"),
    ("dro_v_double_single", "dro_v_single_single", "the same with one value a batch (62.9 %)"),
    ("dro_v", "dro_v_double_single", "a value per prompt beats one a batch (54.9 %)"),
    (
        "dro_v_single_single",
        "dro_v_single_multi",
        "with a shared network the other way round (54.8 %)",
    ),
)


def load(folder: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """Finished results by family and seed."""
    names = {"sft": "sft", **{family: f"final/{family}" for family in (*FAMILIES, *ABLATIONS)}}
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for family, name in names.items():
        for seed in SEEDS:
            result = read_result(folder, f"{name}/seed{seed}")
            if result is not None:
                found.setdefault(family, {})[seed] = result
    return found


def win_rates(first: dict[int, dict[str, Any]], second: dict[int, dict[str, Any]]) -> list[float]:
    """Win rate of the first over the second by reward on the same acts, ties half, for every seed both have."""
    return [
        float(
            np.mean(win_points(np.array(first[seed]["rewards"]), np.array(second[seed]["rewards"])))
        )
        for seed in sorted(first.keys() & second.keys())
    ]


def _interval(first: dict[int, dict[str, Any]], second: dict[int, dict[str, Any]]) -> Estimate:
    """Bootstrap interval over acts of the win rate, seeds averaged act by act."""
    points = [
        win_points(np.array(first[seed]["rewards"]), np.array(second[seed]["rewards"]))
        for seed in sorted(first.keys() & second.keys())
    ]
    return bootstrap_mean(np.stack(points, axis=1))


def spread(values: Sequence[float], digits: int = 3, scale: float = 1.0) -> str:
    """Mean and standard deviation over seeds."""
    if not values:
        return "-"
    array = np.asarray(values) * scale
    deviation = f" ± {array.std(ddof=1):.{digits}f}" if len(array) > 1 else ""
    return f"{array.mean():.{digits}f}{deviation}"


def main_table(results: dict[str, dict[int, dict[str, Any]]], families: Sequence[str]) -> str:
    """One row a method, mean ± sd over seeds."""
    rows = []
    for family in families:
        runs = results.get(family, {})
        if not runs:
            continue

        def column(name: str, runs: dict[int, dict[str, Any]] = runs) -> list[float]:
            return [run[name] for run in runs.values()]

        beaten = win_rates(runs, results["sft"])
        against = win_rates(results["dro_v"], runs) if "dro_v" in results else []
        rows.append(
            {
                "method": TITLES[family],
                "reward": spread(column("reward")),
                "slot error %": spread(column("slot_error_rate"), 1, 100),
                "greedy slot error %": spread(column("greedy_slot_error_rate"), 1, 100),
                "wins over SFT %": "-" if family == "sft" else spread(beaten, 1, 100),
                "DRO-V wins over it %": "-" if family == "dro_v" else spread(against, 1, 100),
                "KL, nats": spread([run["kl"]["mean"] for run in runs.values()], 2),
                "length": spread(column("length"), 1),
                "chosen": _chosen(runs),
                "seeds": len(runs),
            }
        )
    return markdown_table(rows)


def orderings_table(results: dict[str, dict[int, dict[str, Any]]]) -> str:
    """The paper's orderings against ours, by win rate."""
    rows = []
    for better, worse, claim in ORDERINGS:
        rates = win_rates(results.get(better, {}), results.get(worse, {}))
        if not rates:
            continue
        interval = _interval(results[better], results[worse])
        if interval.low > 0.5 and min(rates) > 0.5:
            verdict = "holds"
        elif interval.high < 0.5 and max(rates) < 0.5:
            verdict = "reversed"
        else:
            verdict = "no difference beyond noise"
        rows.append(
            {
                "paper": claim,
                "win rate here %": spread(rates, 1, 100),
                "95 % over acts": f"{100 * interval.low:.1f} to {100 * interval.high:.1f}",
                "verdict": verdict,
            }
        )
    return markdown_table(rows)


def search_table(folder: Path) -> str:
    """Mean reward on the validation acts for every method and learning rate searched (seed 0)."""
    rows = []
    for name in METHODS:
        row: dict[str, Any] = {"method": name}
        for rate in LEARNING_RATES:
            result = read_result(folder, f"search/{name}/lr{rate:g}")
            row[f"lr {rate:g}"] = (
                "-" if result is None else f"{result['reward']:.3f} (KL {result['kl']['mean']:.1f})"
            )
        rows.append(row)
    return markdown_table(rows)


def caveats(results: dict[str, dict[int, dict[str, Any]]]) -> list[str]:
    """What the tables cannot say, as a list in Markdown."""
    runs = {
        family: next(iter(results[family].values())) for family in FAMILIES if family in results
    }
    at_the_edge = [
        TITLES[family]
        for family, run in runs.items()
        if run.get("learning_rate") in (min(LEARNING_RATES), max(LEARNING_RATES))
    ]
    kl = {
        TITLES[family]: float(np.mean([run["kl"]["mean"] for run in results[family].values()]))
        for family in runs
    }
    lines = [
        "The search was not equal: the two forms of KTO chose among "
        f"{len(LEARNING_RATES) * len(KTO_BETAS)} settings ({len(LEARNING_RATES)} learning rates, {len(KTO_BETAS)} betas), every other "
        f"method among {len(LEARNING_RATES)} (DRO's tau stayed at 1), all with one seed.",
    ]
    if at_the_edge:
        lines.append(
            f"With {len(LEARNING_RATES)} learning rates every choice is an edge of the grid"
            + (
                f", and all methods chose the larger one ({max(LEARNING_RATES):g}): a still larger one may suit some better."
                if all(run.get("learning_rate") == max(LEARNING_RATES) for run in runs.values())
                else "."
            )
        )
    if kl:
        least, most = min(kl, key=lambda name: kl[name]), max(kl, key=lambda name: kl[name])
        lines.append(
            f"Methods end at different distances from SFT, from {kl[least]:.2f} nats ({least}) to {kl[most]:.2f} ({most}): more reward at "
            "more KL is another point of a trade-off and not by itself a better method. Equal footing: "
            "[equal_footing.md](equal_footing.md)."
        )
    return [f"- {line}" for line in lines]


def report(folder: Path) -> str:
    """The whole page."""
    results = load(folder)
    data = read_result(folder, "data") or {"acts": {}}
    samples = read_result(folder, "samples/seed0") or {"train": {}}
    acts = ", ".join(f"{count:,} {split}" for split, count in data["acts"].items())
    counts = ", ".join(
        f"{samples['train'].get(name, 0):,} {title}"
        for name, title in (
            ("responses", "triplets"),
            ("pairs", "pairs"),
            ("filtered", "filtered"),
            ("best", "best-of-4"),
        )
    )
    hours = _hours(folder)
    return "\n".join(
        [
            "# RNNLG dialogue acts: DRO against its rivals",
            "",
            "    python -m studies.rnnlg --data DATA --output runs/rnnlg --workers 2",
            "    python -m studies.rnnlg_report --runs runs/rnnlg --output docs/results/rnnlg.md",
            "",
            "RNNLG (restaurant, hotel, laptop, tv), slot values delexicalised as the literature does; distinct acts:",
            f"{acts}, no act in two splits. A T5 1.1 of one million parameters is trained on the human",
            f"sentences ({SFT_STEPS:,} packed steps), then gives {SAMPLES_PER_ACT} samples per training act at temperature 1.",
            "Feedback is minus the fraction of slots that are wrong (missing or invented), counted exactly. Seed 0 has",
            f"{counts}; every method gets {UPDATES} updates of about",
            "32 of these responses (packed rows), AdamW with cosine decay, from the SFT policy.",
            "Learning rate (and beta for KTO) are chosen",
            "on the validation acts with seed 0. The tables report samples at temperature 1 on the test acts, one an act,",
            "mean ± sd over seeds (each seed has its own SFT policy and its own feedback); a tie counts half; KL is from the",
            "SFT policy, by sampling. Ablations use DRO-V's learning rate; with the factor 1/tau on the update, tau 0.1 learns",
            "ten times as fast and tau 5 five times as slow, a confound that the paper's sweep has too.",
            f"Total compute: {hours:.1f} core-hours.",
            "",
            "## Before you compare",
            "",
            *caveats(results),
            "",
            "## Methods",
            "",
            main_table(results, ("sft", *FAMILIES)),
            "",
            "## Ablations of DRO-V (tau 1, separate networks, a value per prompt)",
            "",
            main_table(results, ("dro_v", *ABLATIONS)),
            "",
            "## The paper's orderings",
            "",
            "By head-to-head win rate on the test acts. The paper's are judged by a language model on UltraFeedback with T5-L.",
            "A verdict needs all seeds on one side of 50 % and the interval too.",
            "",
            orderings_table(results),
            "",
            "## Search (validation acts, seed 0): mean reward",
            "",
            search_table(folder),
        ]
    )


def _chosen(runs: dict[int, dict[str, Any]]) -> str:
    run = next(iter(runs.values()))
    if "learning_rate" not in run:
        return "-"
    beta = next(
        (f", beta {beta:g}" for beta in KTO_BETAS if run["method"].endswith(f"_beta{beta:g}")), ""
    )
    return f"lr {run['learning_rate']:g}{beta}"


def _hours(folder: Path) -> float:
    results = (
        read_result(folder, str(path.parent.relative_to(folder)))
        for path in folder.rglob("result.json")
    )
    return sum(result["seconds"] for result in results if result) / 3600


def main() -> None:
    """Command line."""
    write_report(__doc__ or "", "rnnlg", report)


if __name__ == "__main__":
    main()
