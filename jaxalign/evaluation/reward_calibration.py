"""Measures a map from rewards to absolute feedback on prompts it was not fitted on; the command `jaxalign calibrate`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Shaped

from jaxalign.data.task_cache import TaskCache
from jaxalign.errors import UserError, require_one_of
from jaxalign.evaluation.calibration import calibration
from jaxalign.evaluation.reward_maps import FITS, checked_items
from jaxalign.evaluation.statistics import spearman

Items = Shaped[np.ndarray, " items"]


@dataclasses.dataclass(frozen=True)
class CalibrationReport:
    """The distance of mapped rewards from feedback, on responses that the map was not fitted on.

    Attributes:
      calibration_error: the mean over items of ``|mean feedback - mean prediction|`` in the item's bin.
      sampling_error: the approximate calibration error of perfect predictions, from the spread of feedback inside the bins.
      largest_error: the largest error of a bin.
      mean_squared_error: the error of the predictions.
      constant_mean_squared_error: the error of a constant prediction, the mean of the feedback.
      rank_correlation: Spearman's correlation of predictions and feedback; close to that of the scores, apart from ties.
      count: the number of items.
      bins: as in `jaxalign.evaluation.calibration.Calibration`; ``mean_value`` is the prediction and ``mean_target`` the feedback.
    """

    calibration_error: float
    sampling_error: float
    largest_error: float
    mean_squared_error: float
    constant_mean_squared_error: float
    rank_correlation: float
    count: int
    bins: list[dict[str, float]]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def calibration_report(
    predictions: Items, feedback: Items, *, num_bins: int = 10
) -> CalibrationReport:
    """Compares mapped rewards with feedback, in quantile bins of the predictions."""
    predictions, feedback = checked_items(predictions, feedback)
    bins = calibration(predictions, feedback, num_bins=num_bins).bins
    shares = np.array([entry["count"] for entry in bins]) / len(feedback)
    errors = np.array([abs(entry["mean_target"] - entry["mean_value"]) for entry in bins])
    spreads = np.array([entry["standard_error"] for entry in bins])
    return CalibrationReport(
        calibration_error=float(shares @ errors),
        # The mean of |N(0, s)| is s sqrt(2 / pi).
        sampling_error=float(shares @ spreads * np.sqrt(2 / np.pi)),
        largest_error=float(errors.max()),
        mean_squared_error=float(np.mean((predictions - feedback) ** 2)),
        constant_mean_squared_error=float(feedback.var()),
        rank_correlation=spearman(predictions, feedback),
        count=len(feedback),
        bins=bins,
    )


def cross_fitted_report(
    method: str, scores: Items, feedback: Items, groups: Items, *, seed: int = 0
) -> CalibrationReport:
    """Returns the report of a kind of map; the responses of each half of the prompts are predicted by the map of the other half.

    Args:
      method: one of `FITS`.
      scores, feedback: the values of the responses.
      groups: the prompt of each response; a prompt is in only one half.
      seed: the seed of the division into halves.
    """
    distinct, inverse = np.unique(groups, return_inverse=True)
    if len(distinct) < 2:
        raise UserError("a calibration cannot be checked on the responses to a single prompt")
    first = np.random.default_rng(seed).permutation(len(distinct))[inverse] < len(distinct) // 2
    predictions = np.empty(len(scores), np.float64)
    for half in (first, ~first):
        predictions[half] = FITS[method](scores[~half], feedback[~half])(scores[half])
    return calibration_report(predictions, feedback)


class _Labelled(NamedTuple):
    """The existing responses of a split: their scores, feedback and prompts."""

    scores: np.ndarray
    feedback: np.ndarray
    prompts: np.ndarray


def calibrate(
    *,
    cache_dir: str,
    name: str,
    method: str = "best",
    fit_split: str = "validation",
    splits: list[str] | None = None,
    output_name: str = "",
    seed: int = 0,
) -> dict[str, Any]:
    """Maps stored rewards to the units of a task's feedback, and stores them under another name.

    Args:
      cache_dir: the cached task, with absolute feedback; preferably a task that the reward model was not trained on.
      name: name of the rewards that `jaxalign score` stored.
      method: 'constant', 'linear', 'logistic' or 'isotonic'; 'best' selects the one with the least squared error on prompts that it
        was not fitted on. A map that predicts worse there than a constant is refused.
      fit_split: the split on whose feedback the map is fitted.
      splits: splits to map; by default all that have the rewards.
      output_name: name of the mapped rewards; ``<name>-<method>`` by default.
      seed: seed of the division into halves for the report.

    Returns:
      The map, and for every kind of map the report on prompts it was not fitted on; both are stored beside the mapped rewards.

    Raises:
      UserError: the method is unknown or predicts worse than a constant, or the task has no absolute feedback.
    """
    require_one_of("calibrate", ("best", *FITS), method=method)
    if output_name == name:
        raise UserError(
            f"output_name {name!r} is the name of the rewards that are mapped, which it would replace; give another"
        )
    cache = TaskCache(cache_dir)
    metadata = cache.metadata
    if "feedback" not in metadata.fields or metadata.kind == "pair":
        raise UserError(
            f"{cache_dir} holds {metadata.kind} records, which have no absolute feedback to calibrate to"
        )
    labelled = _labelled(cache, fit_split, name)
    reports = {each: cross_fitted_report(each, *labelled, seed=seed).to_dict() for each in FITS}
    method = _chosen(
        method, {each: report["mean_squared_error"] for each, report in reports.items()}
    )
    fitted = FITS[method](labelled.scores, labelled.feedback)
    result = {
        "source": name,
        "method": method,
        "fit_split": fit_split,
        "map": dataclasses.asdict(fitted),
        "reports": reports,
    }
    wanted = splits or [split for split in metadata.splits if name in cache.stored_names(split)]
    output_name = output_name or f"{name}-{method}"
    for split in wanted:
        scores = cache.stored(split, name)
        mapped = fitted(scores.values.reshape(-1)).reshape(scores.values.shape)
        cache.write_stored(split, output_name, mapped, {**scores.info, **result})
    for each, report in reports.items():
        print(
            f"{'->' if each == method else '  '} "
            f"{each:9s} calibration error {report['calibration_error']:.4f} (sampling {report['sampling_error']:.4f}), squared "
            f"error {report['mean_squared_error']:.4f} (constant {report['constant_mean_squared_error']:.4f})"
        )
    print(f"wrote {output_name!r} for {', '.join(wanted)} beside {cache_dir}")
    return result


def _chosen(method: str, errors: Mapping[str, float]) -> str:
    """Returns the method to store, from squared errors on prompts that the maps were not fitted on."""
    if method == "best":
        # Of two equally good methods the simpler one is taken: they are listed from simple to flexible.
        method = min(errors, key=lambda name: errors[name])
        if method == "constant":
            print(
                "jaxalign: no map of these rewards predicts the feedback better than its mean, so the mean is stored for every response",
                file=sys.stderr,
            )
    if errors[method] > errors["constant"]:
        raise UserError(
            f"a {method} map of these rewards predicts the feedback worse than its mean does (squared error {errors[method]:.4f}, "
            f"{errors['constant']:.4f}) on prompts it was not fitted on; leave --method out to take the best map"
        )
    return method


def _labelled(cache: TaskCache, split: str, name: str) -> _Labelled:
    scores = cache.stored(split, name).values
    feedback = np.zeros(scores.shape, np.float64)
    exists: Bool[np.ndarray, "examples responses"] = np.zeros(scores.shape, bool)
    prompts = np.zeros(scores.shape, np.int64)
    for index, example in enumerate(cache.split(split).without_text()):
        count = len(example.target_lengths)
        feedback[index, :count], exists[index, :count] = example.feedback, True
        prompts[index] = example.prompt_id
    return _Labelled(scores[exists].astype(np.float64), feedback[exists], prompts[exists])
