"""The page of the equal-footing study, from its run folder: ``python -m studies.equal_footing_report``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.evaluation.statistics import Estimate, bootstrap_mean
from jaxalign.recipes.jobs import read_result
from studies.command_line import write_report
from studies.equal_footing import SEEDS, UPDATES, seed_results, selected
from studies.equal_footing_forms import ACTS
from studies.equal_footing_judging import JUDGED
from studies.equal_footing_methods import LEARNING_RATES, METHODS

# The method that the others are compared with.
YARDSTICK = "dro_v"
Results = dict[str, list[dict[str, Any]]]
Columns = dict[str, Callable[[dict[str, Any]], float]]


def report(folder: Path) -> str:
    """The page, with the methods whose runs have ended; the others are named."""
    found = {
        task: {
            name: seed_results(folder, task, name) for name, m in METHODS.items() if task in m.tasks
        }
        for task in UPDATES
    }
    parts = [
        _INTRODUCTION.format(
            rates=" and ".join(f"{rate:g}" for rate in LEARNING_RATES),
            rnnlg=UPDATES["rnnlg"],
            ratings=UPDATES["nlg_ratings"],
            validation=JUDGED["validation"],
            test=JUDGED["test"],
            acts=ACTS,
        ),
        _samples_section(folder, found["rnnlg"]),
        _ranking_section(folder, found["nlg_ratings"]),
    ]
    for task, results in found.items():
        missing = [f"`{name}`" for name, runs in results.items() if len(runs) < len(SEEDS)]
        if missing:
            parts.append(
                f"**{task}: {len(missing)} of {len(results)} methods have not run with all seeds**: {', '.join(missing)}.\n"
            )
    return "\n".join(parts)


def _samples_section(folder: Path, results: Results) -> str:
    columns: Columns = {
        "reward": lambda test: test["reward"],
        "slot errors, %": lambda test: 100 * test["slot_error_rate"],
        "KL, nats": lambda test: test["kl"],
        "length": lambda test: test["length"],
        "distinct-2": lambda test: test["distinct_2"],
    }
    differences = _differences(results)
    lines = [
        "## rnnlg: samples judged by exact slot errors\n",
        _baseline(folder),
        *_table(
            folder,
            "rnnlg",
            results,
            columns,
            digits=(3, 1, 2, 1, 3),
            extra={
                f"reward minus {YARDSTICK}'s": {
                    name: f"{each.mean:+.3f} [{each.low:+.3f}, {each.high:+.3f}]"
                    for name, each in differences.items()
                }
            },
        ),
        _verdict(differences, len(SEEDS)),
        _as_close(results),
        _same_runs(results),
    ]
    return "\n".join(lines) + "\n"


def _differences(results: Results) -> dict[str, Estimate]:
    """Reward minus that of the yardstick on the same acts, averaged over the seeds both have; 95 % bootstrap over acts."""
    found: dict[str, Estimate] = {}
    own = results.get(YARDSTICK, [])
    for name, runs in results.items():
        seeds = min(len(runs), len(own))
        if name == YARDSTICK or not seeds:
            continue
        rewards = [
            np.mean([run["test"]["rewards"] for run in each[:seeds]], axis=0)
            for each in (runs, own)
        ]
        found[name] = bootstrap_mean(rewards[0] - rewards[1])
    return found


def _verdict(differences: Mapping[str, Estimate], seeds: int) -> str:
    """Which methods the intervals tell apart from the yardstick."""
    if not differences:
        return ""
    above = [f"`{name}`" for name, each in differences.items() if each.low > 0]
    below = [f"`{name}`" for name, each in differences.items() if each.high < 0]
    rest = len(differences) - len(above) - len(below)
    higher, lower = (f"{len(each)} ({', '.join(each) or 'none'})" for each in (above, below))
    return (
        f"Against `{YARDSTICK}` on the same acts (95 % bootstrap over acts, mean of {seeds} seeds; the spread over seeds is left out): "
        f"higher {higher}, lower {lower}, not told apart {rest}. Methods stop at different KL from their SFT policy, so a higher "
        "reward is not a better trade by itself.\n"
    )


def _as_close(results: Results) -> str:
    """The methods that moved about as little as the yardstick, by reward."""
    means = {
        name: [float(np.mean([run["test"][key] for run in runs])) for key in ("reward", "kl")]
        for name, runs in results.items()
        if runs
    }
    if YARDSTICK not in means:
        return ""
    limit = 1.25 * means[YARDSTICK][1]
    close = sorted((-reward, name) for name, (reward, kl) in means.items() if kl <= limit)
    listed = ", ".join(
        f"`{name}` {-reward:.3f} (KL {means[name][1]:.2f})" for reward, name in close
    )
    return (
        f"Of those that stayed within 1.25 times its KL, {limit:.2f} nats, by reward: {listed}.\n"
    )


def _same_runs(results: Results) -> str:
    """Methods that came out alike to the last act, and why if it is KTO's reference point."""
    groups: dict[str, list[str]] = {}
    for name, runs in results.items():
        if runs:
            groups.setdefault(str([run["test"]["rewards"] for run in runs]), []).append(name)
    lines = []
    for names in groups.values():
        if len(names) < 2:
            continue
        points = [run["train"].get("reference_point") for name in names for run in results[name]]
        zero = "kto" in names and all(point in (None, 0.0) for point in points)
        reason = (
            ", for KTO's reference point was clamped to 0 and its two ways to label agree: the policy gives other prompts' responses "
            "less than its reference does"
        )
        listed = ", ".join(f"`{name}`" for name in names)
        lines.append(f"The same runs act by act: {listed}{reason if zero else ''}.\n")
    return "\n".join(lines)


def _baseline(folder: Path) -> str:
    """What the SFT policies score on the same acts."""
    found = [read_result(folder, f"rnnlg/prepared/seed{seed}") for seed in SEEDS]
    tests = [each["test"] for each in found if each]
    if not tests:
        return ""
    return (
        f"The SFT policies that everything starts from: reward {_spread([test['reward'] for test in tests], 3)}, slot errors "
        f"{_spread([100 * test['slot_error_rate'] for test in tests], 1)} %, length {_spread([test['length'] for test in tests], 1)}.\n"
    )


def _ranking_section(folder: Path, results: Results) -> str:
    columns: Columns = {
        "Spearman": lambda test: test["spearman"],
        "mean log-ratio": lambda test: test["log_ratio"],
        "its deviation": lambda test: test["log_ratio_std"],
        "correlation with length": lambda test: test["length_correlation"],
    }
    some = next((runs for runs in results.values() if runs), None)
    baselines = ""
    if some is not None:
        values = some[0]["test"]["baselines"]
        shown = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
        low, high = some[0]["test"]["interval"]
        baselines = (
            f"{some[0]['test']['responses']} test sentences. Beside it, on the same sentences (seed 0): {shown}. The sampling error is\n"
            "larger than the spread over seeds, which share the sentences: the correlation of the first method that ran has the\n"
            f"bootstrap interval [{low:.2f}, {high:.2f}],\n"
            "so neighbouring rows are not told apart.\n"
        )
    lines = [
        "## nlg_ratings: held-out sentences ranked by the log-ratio, against human ratings of quality\n",
        baselines,
        *_table(folder, "nlg_ratings", results, columns, digits=(3, 2, 2, 2)),
    ]
    return "\n".join(lines) + "\n"


def _table(
    folder: Path,
    task: str,
    results: Results,
    columns: Columns,
    digits: Sequence[int],
    extra: Mapping[str, Mapping[str, str]] | None = None,
) -> list[str]:
    """One row a method, best score first: mean and standard deviation over seeds on the test split, and ``extra`` columns by method."""
    extra = extra or {}
    header = ["method", "family", *columns, *extra, "seeds", "responses an update", "chosen", "lr"]
    rows = []
    for name, runs in results.items():
        if not runs:
            continue
        tests = [run["test"] for run in runs]
        setting = selected(folder, task, name)
        assert setting is not None
        cells = [
            _spread([column(test) for test in tests], places)
            for column, places in zip(columns.values(), digits, strict=True)
        ]
        method = METHODS[name]
        chosen = "" if method.strength is None else f"{method.strength[0]} {setting[0]}"
        read = f"{runs[0]['responses'] / UPDATES[task]:.0f}"
        further = [column.get(name, "") for column in extra.values()]
        count = str(len(runs))
        row = [f"`{name}`", method.family, *cells, *further, count, read, chosen, f"{setting[1]:g}"]
        rows.append((float(np.mean([test["score"] for test in tests])), row))
    if not rows:
        return ["No method has finished here.\n"]
    rows.sort(key=lambda item: -item[0])
    return [
        f"| {' | '.join(header)} |",
        "|---" * len(header) + "|",
        *(f"| {' | '.join(row)} |" for _, row in rows),
        "",
    ]


def _spread(values: Sequence[float], places: int) -> str:
    if len(values) < 2:
        return f"{values[0]:.{places}f}"
    return f"{np.mean(values):.{places}f} ± {np.std(values, ddof=1):.{places}f}"


_INTRODUCTION = """# Methods on an equal footing

    python -m studies.equal_footing --data <folder with the JSON Lines files> --workers 2
    python -m studies.equal_footing_report

Every method reads annotations of the same responses in the form it needs (pairs leave out prompts without a winner, best-of-n keeps one
response a prompt), from its own gin file, with AdamW (20 warm-up steps, cosine, clipped at 1): {rnnlg} updates on `rnnlg`, {ratings} on
`nlg_ratings`, of about 30 responses each. Two hyperparameters are searched, the learning rate ({rates}) and the method's own
strength, two values each; a method without a strength gets four learning rates in the same range. So each has four runs of one
seed, chosen by a validation split, and the chosen setting is trained with two more seeds. Tables show the test split: mean and
standard deviation over seeds. On `rnnlg` a seed has its own SFT policy and its own samples, on `nlg_ratings` its own SFT policy. A T5 of
one million parameters; `rnnlg`: samples of {acts:,} acts for training, {validation} acts for validation and {test} for the test. DRO runs
with `RESCALE = 'none'`, so that its learning rate means what the others' means. RPO runs with `SCALE = 'row_sum'` for the same reason.
Advantages come from a value network that is trained whole, for 150 updates more.
"""


def main() -> None:
    """Command line."""
    write_report(__doc__ or "", "equal_footing", report)


if __name__ == "__main__":
    main()
