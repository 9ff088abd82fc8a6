"""`jaxalign evaluate`: two or more policies on the same prompts, side by side."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign import files
from jaxalign.annotation import judges as judging
from jaxalign.data.evaluation_set import EvaluationSet, read_evaluation_records
from jaxalign.errors import UserError
from jaxalign.evaluation import plots
from jaxalign.evaluation.comparison import Comparison
from jaxalign.evaluation.measure import Evaluator
from jaxalign.evaluation.statistics import win_rate
from jaxalign.evaluation.summary import summary_text
from jaxalign.evaluation.tfidf import TfidfRidge
from jaxalign.runs.run import Run, learning_curve


def evaluate(
    checkpoints: list[str],
    prompts: str,
    output_dir: str,
    *,
    split: str = "validation",
    judges: list[str] | None = None,
    reference: str = "",
    num_prompts: int = 0,
    temperature: float = 0.0,
    kl_samples: int = 1,
    ranking_only: bool = False,
    ranking_train: str = "",
    batch_size: int = 32,
    max_input_length: int = 0,
    max_target_length: int = 0,
    long_prompts: str = "",
    kind: str = "",
    duplicates: str = "reject",
    bootstrap: int = 1000,
    step: int | str | None = None,
    layout: str = "records",
    fields: list[str] | None = None,
    prompt_field: str = "prompt",
    seed: int = 0,
) -> dict[str, Any]:
    """Compares policies; writes evaluation.json, responses and plots, prints a table.

    Args:
      checkpoints: `name=path` of run folders or checkpoints; the first is the one that the others
        are compared with. A path alone is named by its folder.
      prompts: a data file or a cache folder. Distinct prompts are answered once each; logged
        responses with feedback serve the ranking and the calibration of V.
      output_dir: folder for evaluation.json, responses/<name>.jsonl and plots/*.png.
      split: split of a cache folder.
      judges: `name`, `name:argument` or `module:function`, see `jaxalign.annotation.judges`; the
        first one's score is the reward of the table. The default is slot_error.
      reference: the policy that KL and log-ratios are taken against, by name among the checkpoints
        or as a path; the first policy by default.
      num_prompts: only the first so many prompts; 0 takes all.
      temperature: of the judged responses; 0 is greedy.
      kl_samples: responses a prompt, sampled at temperature 1, for the KL; 0 leaves it out.
      ranking_only: generate nothing; only rank logged responses and check V.
      ranking_train: JSON Lines file with feedback, on which the TF-IDF baseline is fitted; for a
        cache folder its `train` split is taken. Without either that baseline is left out.
      batch_size: prompts a batch.
      max_input_length, max_target_length: tokens, EOS included; 0 takes each run's own.
      long_prompts: "truncate", "truncate_left" or "reject"; each run's own way by default.
      kind: of the records of a file: triplet, pair, ranked, seq2seq or multi; recognised by their fields by default.
      duplicates: "reject" or "keep" repeated records of a file, as for `jaxalign cache`.
      bootstrap: resamples for intervals (a fifth of them for rankings).
      step: a checkpoint's step, `best` or `latest`; best where one was kept by default.
      layout, fields: how a data file is to be read, as for `jaxalign cache`; fields such as response=completion,feedback=label.
      prompt_field: name of the prompt's field in a data file.
      seed: of sampling and of the bootstrap.

    Returns:
      The content of evaluation.json.

    Raises:
      UserError: names or paths that do not fit, malformed prompts, a judge that fails.
    """
    named = named_checkpoints(checkpoints)
    folder = Path(output_dir).expanduser()
    side_file = str(folder / "rejected.jsonl")
    options: dict[str, Any] = {
        "side_file": side_file,
        "kind": kind,
        "layout": layout,
        "fields": fields or [],
        "prompt_field": prompt_field,
        "duplicates": duplicates,
    }
    records = read_evaluation_records(prompts, split=split, **options)
    reference_path = named.get(reference, reference) or next(iter(named.values()))
    evaluator = Evaluator(
        EvaluationSet(),
        max_input_length,
        max_target_length,
        long_prompts,
        batch_size,
        temperature,
        seed,
    )
    # What one of the policies cannot read is left out for all of them.
    described = [Run(path, step) for path in dict.fromkeys([reference_path, *named.values()])]
    records = records.readable([evaluator.encoder(run) for run in described])
    if records.rejected:
        _progress(records.describe_rejected())
    data = records.to_set().first(num_prompts)
    evaluator = dataclasses.replace(evaluator, data=data)
    if ranking_only and not data.feedback:
        raise UserError(f"{prompts}: ranking_only needs logged responses with feedback.")
    panel = [] if ranking_only else [judging.get_judge(spec) for spec in judges or ["slot_error"]]
    reference_run = Run(reference_path, step).policy()
    session = Comparison(evaluator, reference_run, panel, 0 if ranking_only else kl_samples)
    session.linear = _linear_baseline(data, prompts, ranking_train, options)
    for name, path in named.items():
        # The reference's parameters are in memory already.
        run = reference_run if path == reference_path else Run(path, step).policy()
        session.measure(name, path, run, step, bootstrap=bootstrap, seed=seed)
        _progress(f"measured {name} (step {run.step})")
    result = {
        "settings": {
            "prompts": str(prompts),
            "split": split,
            "num_prompts": len(data.prompts),
            "num_feedback": len(data.feedback),
            "rejected": dict(records.rejected),
            "judges": [judge.name for judge in panel],
            "reference": reference_path,
            "temperature": temperature,
            "kl_samples": kl_samples,
            "bootstrap": bootstrap,
            "seed": seed,
        },
        "policies": session.reports,
        "win_rates": win_rates(session.scores, bootstrap=bootstrap, seed=seed),
    }
    folder.mkdir(parents=True, exist_ok=True)
    _write_responses(folder, session, data)
    result["plots"] = _draw(folder / "plots", named, session, panel)
    result = finite_json(result)
    text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)
    files.write_text(folder / "evaluation.json", text + "\n")
    print(summary_text(result))
    return result


def named_checkpoints(checkpoints: Sequence[str]) -> dict[str, str]:
    """Paths by name, in order, from `name=path` or bare paths.

    Raises:
      UserError: none given, or a name twice.
    """
    named: dict[str, str] = {}
    for entry in checkpoints:
        name, separator, path = entry.partition("=")
        if not separator:
            name, path = Path(entry).name, entry
        if not name or not path:
            raise UserError(f"checkpoint '{entry}': write name=path.")
        if name in named:
            raise UserError(
                f"checkpoint name '{name}' is given twice; write name=path with two names."
            )
        named[name] = path
    if not named:
        raise UserError("checkpoints: give at least one name=path.")
    return named


def win_rates(
    scores: dict[str, dict[str, np.ndarray]], *, bootstrap: int, seed: int
) -> dict[str, dict[str, dict[str, Any]]]:
    """judge -> first policy -> second policy -> win rate of the first over the second."""
    return {
        judge: {
            first: {
                second: win_rate(
                    by_policy[first], by_policy[second], samples=bootstrap, seed=seed
                ).to_dict()
                for second in by_policy
                if second != first
            }
            for first in by_policy
        }
        for judge, by_policy in scores.items()
    }


def finite_json(value: Any) -> Any:
    """The same nested value with NaN and infinity as null, which JSON can hold."""
    if isinstance(value, dict):
        return {key: finite_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_json(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _linear_baseline(
    data: EvaluationSet, prompts: str, ranking_train: str, options: Mapping[str, Any]
) -> np.ndarray | None:
    """Predictions of the TF-IDF model for the logged responses, if there is anything to fit it on."""
    if not data.feedback:
        return None
    source = ranking_train or (prompts if Path(prompts).is_dir() else "")
    if not source:
        return None
    records = read_evaluation_records(source, split="train", **options)
    fitted_on = records.to_set().feedback
    if not fitted_on:
        raise UserError(f"{source}: holds no feedback to fit the TF-IDF baseline on.")
    model = TfidfRidge().fit(
        [record.prompt for record in fitted_on],
        [record.response for record in fitted_on],
        np.array([record.feedback for record in fitted_on]),
    )
    return model.predict(
        [record.prompt for record in data.feedback], [record.response for record in data.feedback]
    )


def _write_responses(folder: Path, session: Comparison, data: EvaluationSet) -> None:
    for name, answers in session.answers.items():
        path = folder / "responses" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path, "w") as file:
            for i, prompt in enumerate(data.prompts):
                line = {
                    "id": i,
                    "prompt": prompt,
                    "responses": [answers.responses[i]],
                    "length": int(answers.lengths[i]),
                    "scores": {j: float(by[name][i]) for j, by in session.scores.items()},
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _draw(
    folder: Path, named: dict[str, str], session: Comparison, panel: Sequence[judging.Judge]
) -> list[str]:
    """Draws what there is to draw; returns the paths."""
    paths: list[str | None] = []
    if panel and session.kl_samples:
        points = [
            {
                "name": name,
                "kl": report["kl"]["mean"],
                "kl_error": report["kl"]["standard_error"],
                "reward": report["rewards"][panel[0].name]["mean"],
                "low": report["rewards"][panel[0].name]["low"],
                "high": report["rewards"][panel[0].name]["high"],
            }
            for name, report in session.reports.items()
        ]
        paths.append(plots.plot_reward_against_kl(points, folder / "reward_against_kl.png"))
    curves = {name: learning_curve(path) for name, path in named.items()}
    curves = {name: records for name, records in curves.items() if records}
    paths.append(plots.plot_learning_curves(curves, folder / "learning_curves.png"))
    if session.calibrations:
        paths.append(plots.plot_calibration(session.calibrations, folder / "calibration.png"))
    return [path for path in paths if path]


def _progress(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
