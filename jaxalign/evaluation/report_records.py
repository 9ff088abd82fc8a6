"""Reads evaluation.json and summary.json for a report as flat records, and averages comparable records.

Evaluations are averaged only if they used the same judge, the same prompts (and as many of them), split and temperature. A checkpoint
that was evaluated several times counts as one seed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign import untrusted
from jaxalign.errors import UserError
from jaxalign.evaluation.ranking import OWN_METHODS
from jaxalign.evaluation.tables import format_interval, format_spread

EVALUATION, SUMMARY = "evaluation.json", "summary.json"
NUMBER = "number of prompts"
# The records of one row have equal values of these; a column shows those in which the rows differ, and the number of prompts.
CONDITIONS = ("judge", "prompts", "split", "temperature", NUMBER)
# The network that a record is about: records of the same network count as one seed. It is not a column.
CHECKPOINT = "checkpoint"
_SEED = re.compile(r"[-_/.]?(?:seed|s)[-_=]?(\d+)$")
_STEP = re.compile(r"/checkpoints/\d+/?$")
_NORMAL_95 = 1.96
_RESULT_BYTES = 64 << 20


def without_seed(name: str) -> str:
    """Returns the name of a run without its trailing seed; the name itself if it has none."""
    return _SEED.sub("", name) or name


def run_folder(checkpoint: str) -> str:
    """Returns the run folder of a checkpoint that an evaluation names, which may be one of the run's steps.

    >>> run_folder("runs/my/checkpoints/80")
    'runs/my'
    """
    return _STEP.sub("", str(checkpoint))


def evaluation_records(path: Path, *, judge: str = "") -> list[dict[str, Any]]:
    """Returns a flat record for each policy of an evaluation.json: conditions, checkpoint, `policy`, metrics, estimates as mappings."""
    content = read_json(path)
    judge, common = conditions(path, content, judge)
    first = next(iter(content["policies"]))
    records = []
    for name, policy in content["policies"].items():
        record: dict[str, Any] = {
            "policy": without_seed(name),
            **common,
            CHECKPOINT: _checkpoint(path, name, policy),
        }
        record["reward"] = policy.get("rewards", {}).get(judge)
        record["slot error"] = policy.get("slot_error_rate")
        record[f"win rate vs {without_seed(first)}"] = (
            content["win_rates"].get(judge, {}).get(name, {}).get(first)
        )
        is_reference = policy.get("is_reference", False)
        record["KL"] = "reference" if is_reference else _with_interval(policy.get("kl"))
        record["tokens"] = policy.get("length")
        record["unfinished"] = policy.get("unfinished")
        record["cut prompts"] = policy.get("cut_prompts")
        record["unknown pieces"] = policy.get("unknown_pieces")
        record["distinct-1"] = policy.get("distinct_1")
        record["distinct-2"] = policy.get("distinct_2")
        held_out = policy.get("value", {}).get("held out", {})
        record["V correlation"] = held_out.get("correlation")
        record["mean residual"] = held_out.get("mean_residual")
        records.append(record)
    return records


def win_records(path: Path, *, judge: str = "", over_first: bool = False) -> list[dict[str, Any]]:
    """Returns one record for each pair of policies: the win rate of `row` over `column`.

    Args:
      path: an evaluation.json.
      judge: the judge; the first one by default.
      over_first: whether to return only win rates over the first policy of the evaluation.
    """
    content = read_json(path)
    judge, common = conditions(path, content, judge)
    policies = content["policies"]
    leading = next(iter(policies))
    return [
        {
            "row": without_seed(first),
            "column": without_seed(second),
            **common,
            CHECKPOINT: tuple(_checkpoint(path, name, policies[name]) for name in (first, second)),
            "win rate": estimate,
        }
        for first, opponents in content["win_rates"].get(judge, {}).items()
        for second, estimate in opponents.items()
        if not over_first or second == leading
    ]


def ranking_records(path: Path) -> list[dict[str, Any]]:
    """Returns one record for each method that ranks the logged responses; a baseline, equal for all policies, has one in an evaluation."""
    content = read_json(path)
    _, common = conditions(path, content, "")
    common = {name: common[name] for name in ("prompts", "split", NUMBER)}
    records: dict[tuple[str, str], dict[str, Any]] = {}
    for name, policy in content["policies"].items():
        for method, result in policy.get("ranking", {}).items():
            own = method.startswith(OWN_METHODS)
            label = f"{without_seed(name)}: {method}" if own else method
            checkpoint = _checkpoint(path, name, policy) if own else str(path)
            records.setdefault(
                (label, checkpoint),
                {
                    "ranking": label,
                    **common,
                    CHECKPOINT: checkpoint,
                    "Spearman": _bounds(result, "spearman"),
                    "within prompts": result["within_prompt_spearman"],
                    "AUC": _bounds(result, "auc"),
                    "pairs in order": result["pairwise_accuracy"],
                    "pairs": result["pairs"],
                },
            )
    return list(records.values())


def summary_record(path: Path) -> dict[str, Any]:
    """Returns one flat record of a training run: its name, step, time, and last evaluation metrics."""
    content = read_json(path)
    record: dict[str, Any] = {"run": without_seed(path.parent.name), CHECKPOINT: str(path)}
    for key in ("objective", "step", "examples", "seconds"):
        if key in content:
            record[key] = content[key]
    for part in ("train", "evaluation"):
        for key, value in _flat(content.get(part) or {}, f"{part}/"):
            record[key] = value
    return record


def aggregate(
    records: Iterable[Mapping[str, Any]], *, by: Sequence[str], digits: int = 3
) -> list[dict[str, Any]]:
    """Returns one row for all records with equal ``by`` and equal conditions, in order of appearance.

    `seeds` counts the checkpoints of a row. Numbers are their mean ± sample deviation over seeds; a number of a single evaluation keeps its
    interval, if it has one. A text is kept if all records have the same text, and is a dash otherwise.
    """
    records = list(records)
    values = {
        name: {str(r[name]) for r in records if r.get(name) is not None} for name in CONDITIONS
    }
    shown = [name for name in CONDITIONS if len(values[name]) > (0 if name == NUMBER else 1)]
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault(tuple(str(record.get(name)) for name in (*by, *CONDITIONS)), []).append(
            record
        )
    rows = []
    for members in groups.values():
        seeds: dict[Any, list[Mapping[str, Any]]] = {}
        for index, member in enumerate(members):
            seeds.setdefault(member.get(CHECKPOINT, index), []).append(member)
        row = {name: members[0].get(name) for name in (*by, *shown)} | {"seeds": len(seeds)}
        if len(members) > len(seeds):
            row["evaluations"] = len(members)
        skipped = {*by, *CONDITIONS, CHECKPOINT}
        for key in dict.fromkeys(key for member in members for key in member):
            if key not in skipped:
                row[key] = _over_seeds([[m.get(key) for m in ms] for ms in seeds.values()], digits)
        rows.append(row)
    return rows


def _over_seeds(values: Sequence[Sequence[Any]], digits: int) -> Any:
    """Returns a cell from the values of each seed's evaluations."""
    present = [[value for value in seed if value is not None] for seed in values]
    present = [seed for seed in present if seed]
    flat = [value for seed in present for value in seed]
    if len(flat) == 1 and isinstance(flat[0], Mapping) and flat[0].get("low") is not None:
        return format_interval(flat[0]["mean"], flat[0]["low"], flat[0]["high"], digits)
    flat = [value["mean"] if isinstance(value, Mapping) else value for value in flat]
    if not flat or any(isinstance(v, (str, bool)) for v in flat):
        return flat[0] if flat and len(set(flat)) == 1 else None
    if len(set(flat)) == 1 and isinstance(flat[0], int):
        return flat[0]
    means = [
        np.mean([v["mean"] if isinstance(v, Mapping) else v for v in seed]) for seed in present
    ]
    spread = float(np.std(means, ddof=1)) if len(means) > 1 else None
    return format_spread(float(np.mean(means)), spread, digits)


def conditions(path: Path, content: Mapping[str, Any], judge: str) -> tuple[str, dict[str, Any]]:
    """Returns the judge's name in the file, and the conditions under which its scores may be averaged with others."""
    settings = content["settings"]
    judges = settings["judges"]
    judge = judge or (judges[0] if judges else "")
    if judges and judge not in judges:
        raise UserError(f"{path}: has no judge '{judge}', only {', '.join(judges)}.")
    # Two reward models have the same name but different specifications.
    specs = dict(zip(judges, settings.get("judge_specs", judges), strict=True))
    return judge, {
        "judge": specs.get(judge),
        **{name: settings.get(name) for name in ("prompts", "split", "temperature")},
        NUMBER: settings.get("num_prompts"),
    }


def _checkpoint(path: Path, name: str, policy: Mapping[str, Any]) -> str:
    if "checkpoint" not in policy:
        return f"{path}:{name}"
    return f"{run_folder(policy['checkpoint'])}@{policy.get('step')}"


def _with_interval(estimate: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    if estimate is None or estimate.get("standard_error") is None:
        return estimate
    half = _NORMAL_95 * estimate["standard_error"]
    return {**estimate, "low": estimate["mean"] - half, "high": estimate["mean"] + half}


def _bounds(result: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    if result[name] is None:
        return None
    return {
        "mean": result[name],
        "low": result.get(f"{name}_low"),
        "high": result.get(f"{name}_high"),
    }


def _flat(values: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield prefix + key, value


def read_json(path: Path) -> dict[str, Any]:
    """Returns the content of a result file.

    Raises:
      UserError: the file holds no JSON object, or is an evaluation.json without the parts of an evaluation.
    """
    content = untrusted.read_json_object(path, limit=_RESULT_BYTES)
    wanted = ("settings", "policies", "win_rates") if path.name == EVALUATION else ()
    lacking = [key for key in wanted if not isinstance(content.get(key), dict)]
    if lacking:
        raise UserError(f"{path}: is not an evaluation; it lacks {', '.join(lacking)}.")
    if wanted and not (isinstance(content["settings"].get("judges"), list) and content["policies"]):
        raise UserError(f"{path}: is not an evaluation; it lists no judges or no policies.")
    return content
