"""The sections of a report about training runs: curves by objective, settings, versions, and counts of data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign import untrusted
from jaxalign.evaluation.page import plots
from jaxalign.evaluation.page.elements import Html, details, element, fields, join, section, table
from jaxalign.evaluation.report_records import read_json
from jaxalign.runs.metrics import METRICS_FILE, read_metrics
from jaxalign.runs.samples import read_samples

_CONFIG_BYTES = 4 << 20
_MOST_PANELS = 9
# Which end of a metric is better, by the last part of its name. The first ones are drawn first.
_DIRECTIONS = {
    "loss": "lower is better",
    "value_loss": "lower is better",
    "slot_error_rate": "lower is better",
    "log_ratio": "0 is the reference; neither end is better",
    "residual": "0 is best",
    "value": "best where it equals target",
    "target": "what V should predict",
    "accuracy": "higher is better",
    "margin": "higher is better",
    "negative_log_prob_per_token": "lower is better",
    "value_r_squared": "higher is better",
    "value_target_correlation": "higher is better",
    "residual_squared": "lower is better",
}
_CURVES = (
    "Thin lines: training, each point the mean over the examples since the point before. Thick lines with markers: other splits, "
    "with their number of examples. Runs of different objectives never share a plot, because their losses are different quantities."
)
# These describe the machine and the optimiser, not what a run learns.
_TECHNICAL = ("per_second", "_norm")


_MOST_SAMPLES = 5  # steps whose responses stand beside each other


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """A run folder as it was read, without its checkpoints.

    Attributes:
      name: the name under which the page shows it.
      folder: the run folder.
      summary: the content of summary.json.
      versions: the content of versions.json; empty without the file.
      config: the text of config.gin; empty without the file.
      records: the lines of metrics.jsonl.
      samples: the lines of samples.jsonl: what the policy answered at the evaluations.
    """

    name: str
    folder: Path
    summary: Mapping[str, Any]
    versions: Mapping[str, Any]
    config: str
    records: Sequence[Mapping[str, Any]]
    samples: Sequence[Mapping[str, Any]] = ()

    @property
    def objective(self) -> str:
        """The objective that the run minimised."""
        return str(self.summary.get("objective", "unknown objective"))


def read_run(summary: Path, name: str) -> RunRecord:
    """Reads a run folder.

    Args:
      summary: the summary.json in it.
      name: the name under which the page shows it.

    Raises:
      UserError: a file is malformed, too large, or a link to elsewhere.
    """
    folder = summary.parent
    versions, config = folder / "versions.json", folder / "config.gin"
    return RunRecord(
        name,
        folder,
        read_json(summary),
        untrusted.read_json_object(versions, inside=folder) if versions.exists() else {},
        _text(config, folder) if config.exists() else "",
        read_metrics(folder / METRICS_FILE),
        read_samples(folder),
    )


def _text(path: Path, folder: Path) -> str:
    return untrusted.read_bytes(path, _CONFIG_BYTES, inside=folder).decode("utf-8", "replace")


def runs_section(runs: Sequence[RunRecord]) -> Html:
    """Returns a table of the runs, their curves by objective, and what each was trained on and with."""
    if not runs:
        return Html("")
    rows = [
        {
            "run": run.name,
            "objective": run.objective,
            **{key: run.summary.get(key) for key in ("step", "examples", "tokens")},
            "seconds": run.summary.get("seconds"),
            "best step": (run.summary.get("best") or {}).get("step"),
        }
        for run in runs
    ]
    return section(
        "runs",
        "Training runs",
        table("Runs", rows, digits=1),
        _data(runs),
        *_curves(runs),
        *_final(runs),
        *map(_samples, runs),
        *map(_settings, runs),
    )


def _data(runs: Sequence[RunRecord]) -> Html:
    rows = []
    for run in runs:
        data = run.summary.get("data") or {}
        feedback = data.get("feedback") or {}
        for split, count in (data.get("num_examples") or {}).items():
            rows.append(
                {
                    "run": run.name,
                    "split": split,
                    "n (examples)": count,
                    "rejected": _counts((data.get("rejected") or {}).get(split) or {}) or "none",
                    "notes": _counts((data.get("notes") or {}).get(split) or {}) or None,
                    "share of prompts cut": data.get("cut_prompts") if split == "train" else None,
                    "mean feedback": feedback.get("mean") if split == "train" else None,
                    "deviation of feedback": feedback.get("std") if split == "train" else None,
                }
            )
    return table("Data of the runs, with rejected records and cut prompts", rows)


def _counts(reasons: Mapping[str, Any]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in reasons.items())


def _curves(runs: Sequence[RunRecord]) -> list[Html]:
    """Returns the curves of each objective by themselves: losses of two objectives are different quantities."""
    by_objective: dict[str, list[RunRecord]] = {}
    for run in runs:
        if run.records:
            by_objective.setdefault(run.objective, []).append(run)
    blocks = []
    for objective, members in by_objective.items():
        names = _metrics(members)
        figures = []
        for name in names[:_MOST_PANELS]:
            lines = {run.name: _series(run, name) for run in members}
            lines = {run: splits for run, splits in lines.items() if splits}
            direction = _DIRECTIONS.get(name.rpartition("/")[2], "no end is better by itself")
            figures.append(plots.curves(f"{objective}: {name}", lines, name, direction))
        if not figures:
            continue
        rest = ", ".join(names[_MOST_PANELS:])
        note = f"Not drawn, but in {METRICS_FILE}: {rest}." if rest else ""
        blocks += [
            element("h3", f"Curves of runs with objective {objective}"),
            element("p", _CURVES, class_="note"),
            element("div", *figures, class_="figures small"),
            element("p", note, class_="note") if note else Html(""),
        ]
    return blocks


def _metrics(runs: Sequence[RunRecord]) -> list[str]:
    """Returns the metrics that change along the runs, the most telling ones first."""
    found = dict.fromkeys(
        name
        for run in runs
        for record in run.records
        for name, value in record.items()
        if name not in ("step", "split") and not name.endswith(_TECHNICAL) and _is_number(value)
    )
    varying = [name for name in found if any(_varies(run.records, name) for run in runs)]
    order = list(_DIRECTIONS)
    return sorted(varying, key=lambda name: order.index(name) if name in order else len(order))


def _varies(records: Sequence[Mapping[str, Any]], name: str) -> bool:
    return len({record[name] for record in records if _is_number(record.get(name))}) > 1


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def _series(run: RunRecord, name: str) -> dict[str, np.ndarray]:
    """Returns split -> [points, 2] steps and finite values; other splits than `train` are named with their size."""
    sizes = (run.summary.get("data") or {}).get("num_examples") or {}
    points: dict[str, list[tuple[float, float]]] = {}
    for record in run.records:
        if _is_number(record.get(name)):
            points.setdefault(record["split"], []).append((record["step"], record[name]))
    return {
        f"{split} (n = {sizes[split]})" if split in sizes and split != "train" else split: np.array(
            each, np.float64
        )
        for split, each in points.items()
    }


def _final(runs: Sequence[RunRecord]) -> list[Html]:
    """Returns the last evaluation metrics, in one table for each objective."""
    by_objective: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        for name, value in (run.summary.get("evaluation") or {}).items():
            split, _, metric = name.rpartition("/")
            rows = by_objective.setdefault(run.objective, [])
            examples = ((run.summary.get("data") or {}).get("num_examples") or {}).get(split)
            label = f"{metric} on {split}" if split else metric
            row = next((row for row in rows if row["metric"] == label), None)
            if row is None:
                rows.append(row := {"metric": label, "n (examples of the split)": examples})
            row[run.name] = value if _is_number(value) else None
    return [
        details(
            f"Last evaluation of runs with objective {objective}",
            table(f"Metrics ({objective})", rows),
        )
        for objective, rows in by_objective.items()
        if rows
    ]


def _samples(run: RunRecord) -> Html:
    """Returns what the policy of a run answered to the same prompts as it was trained; nothing without samples."""
    steps = sorted({sample["step"] for sample in run.samples})
    if not steps:
        return Html("")
    # The first and the last, and some between them.
    chosen = sorted(
        {steps[round(i * (len(steps) - 1) / (_MOST_SAMPLES - 1))] for i in range(_MOST_SAMPLES)}
    )
    by_prompt: dict[str, dict[str, Any]] = {}
    for sample in run.samples:
        row = by_prompt.setdefault(sample["prompt"], {"prompt": sample["prompt"]})
        if sample["step"] in chosen:
            row[f"step {sample['step']}"] = sample["response"]
    columns = ["prompt", *(f"step {step}" for step in chosen)]
    rows = [{column: row.get(column) for column in columns} for row in by_prompt.values()]
    return details(
        f"Responses of {run.name} during training",
        table(f"Greedy responses to the same {len(rows)} prompts, by step", rows),
    )


def _settings(run: RunRecord) -> Html:
    packages = run.versions.get("packages") or {}
    versions = {**packages, **{k: v for k, v in run.versions.items() if k != "packages"}}
    config = element("pre", run.config, tabindex=0) if run.config else Html("")
    return details(
        f"Settings and versions of {run.name}",
        join(fields("Run folder and versions", {"folder": str(run.folder), **versions}), config),
    )
