"""The evaluations during a run: they are executed in turn, and their metrics are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from jaxalign.objectives.base import Batch, Objective
from jaxalign.parallel import partitioning
from jaxalign.runs.metrics import METRICS_FILE, read_metrics
from jaxalign.training.metric_writing import MetricAccumulator, MetricWriter

Evaluator = Callable[[int, Mapping[str, Any]], dict[str, float]]


class Evaluations:
    """The evaluators of a run and their newest results.

    Args:
      evaluators: functions that are called as ``(step, params by role)``, by name.
      model_dir: the run folder.
      writer: writes metrics.
      written: the records of ``metrics.jsonl`` that earlier launches wrote.

    Attributes:
      newest: the newest results of all evaluators, ``{"<evaluator>/<metric>": value}``.
    """

    def __init__(
        self,
        evaluators: Mapping[str, Evaluator],
        model_dir: Path,
        writer: MetricWriter,
        written: Sequence[Mapping[str, Any]],
    ) -> None:
        self._evaluators, self._model_dir, self._writer = evaluators, model_dir, writer
        self.newest: dict[str, float] = {
            f"{name}/{metric}": value
            for name in evaluators
            for metric, value in last_metrics(written, name).items()
        }

    @property
    def names(self) -> list[str]:
        """Returns the names of all evaluators."""
        return list(self._evaluators)

    def missing(self, step: int) -> list[str]:
        """Returns the evaluators that have no line for a step."""
        written = read_metrics(self._model_dir / METRICS_FILE)
        done = {record["split"] for record in written if record["step"] == step}
        return [name for name in self._evaluators if name not in done]

    def run(self, step: int, params: Mapping[str, Any], names: Sequence[str]) -> dict[str, float]:
        """Runs some of the evaluators and writes their metrics; returns ``{"<evaluator>/<metric>": value}``."""
        results: dict[str, float] = {}
        for name in names:
            values = self._evaluators[name](step, params)
            self._writer.write(step, name, values)
            results.update({f"{name}/{metric}": value for metric, value in values.items()})
        self.newest = self.newest | results
        return results


def make_evaluator(
    eval_step: Callable[[Mapping[str, Any], Batch], Any],
    objective: Objective,
    mesh: Mesh,
    batches: Callable[[], Iterator[Batch]],
) -> Evaluator:
    """Returns an evaluator that averages the objective's metrics over all batches of a split."""

    def evaluate(step: int, params: Mapping[str, Any]) -> dict[str, float]:
        del step
        accumulator = MetricAccumulator()
        for batch in batches():
            accumulator.add(eval_step(params, partitioning.make_global_batch(mesh, batch)))
        return objective.summarize(accumulator.means())

    return evaluate


def last_metrics(records: Sequence[Mapping[str, Any]], split: str) -> dict[str, float]:
    """Returns the metrics of the last record of a split."""
    chosen = [record for record in records if record["split"] == split]
    last = chosen[-1] if chosen else {}
    return {name: value for name, value in last.items() if name not in ("step", "split")}
