"""Ranks the checkpoints of a run by a metric. The checkpointer keeps the best ones, and ``best.json`` names the first."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign import files, untrusted
from jaxalign.errors import UserError
from jaxalign.parallel import distributed
from jaxalign.training.checkpointing import Checkpointer, CheckpointPolicy

BEST_FILE = "best.json"


class BestCheckpoints:
    """Ranks the saved steps of a run by the metric of its `CheckpointPolicy`; does nothing if the policy names no metric.

    Args:
      model_dir: the run folder.
      policy: the metric, its mode and how many checkpoints to keep.
      checkpointer: receives the steps to keep.
      written: the records of ``metrics.jsonl`` that earlier launches wrote.

    Attributes:
      best: ``step``, ``metric`` and ``value`` of the best saved step; empty until a step is ranked.
    """

    def __init__(
        self,
        model_dir: Path,
        policy: CheckpointPolicy,
        checkpointer: Checkpointer,
        written: Sequence[Mapping[str, Any]],
    ) -> None:
        self._path, self._policy, self._checkpointer = model_dir / BEST_FILE, policy, checkpointer
        self.best: dict[str, Any] = _read_best(self._path)
        self._values = self._read_values(written)

    @property
    def later_evaluations(self) -> int:
        """Returns the number of ranked steps after the best one; 0 if none is ranked."""
        return sum(step > self.best["step"] for step in self._values) if self.best else 0

    def forget_after(self, step: int) -> None:
        """Drops the values measured after a step, because a resumed run trains these steps again."""
        self._values = {number: value for number, value in self._values.items() if number <= step}
        if self.best.get("step", 0) > step:
            self.best = {}
        self._rank()

    def add(self, step: int, results: Mapping[str, float]) -> None:
        """Ranks a step by its evaluation.

        Raises:
          UserError: the evaluation has no such metric.
        """
        metric = self._policy.best_metric
        if metric is None or step not in self._checkpointer.steps():
            return
        if metric in results:
            self._values[step] = results[metric]
        elif step not in self._values:
            raise UserError(
                f"best_metric {metric!r} was not measured; available: {', '.join(sorted(results)) or 'none'}"
            )
        self._rank()

    def _read_values(self, written: Sequence[Mapping[str, Any]]) -> dict[int, float]:
        """Returns the metric by step. The first process reads it for all, because files may appear late on the others."""
        metric = self._policy.best_metric
        if metric is None:
            return {}

        def read() -> list[tuple[int, float]]:
            found = {}
            if self.best.get("metric") == metric:
                found[self.best["step"]] = self.best["value"]
            for record in written:
                name = metric.removeprefix(f"{record['split']}/")
                if name != metric and isinstance(record.get(name), (int, float)):
                    found[record["step"]] = record[name]
            return list(found.items())

        return dict(distributed.broadcast_from_first(read))

    def _rank(self) -> None:
        policy = self._policy
        if policy.best_metric is None:
            return
        sign = 1 if policy.best_mode == "max" else -1
        saved = set(self._checkpointer.steps())
        # The later step wins a tie.
        ranked = sorted(
            (
                (sign * value, step)
                for step, value in self._values.items()
                if step in saved and not math.isnan(value)
            ),
            reverse=True,
        )
        self._checkpointer.keep([step for _, step in ranked[: policy.keep_best]])
        if not ranked:
            return
        step = ranked[0][1]
        best = {"step": step, "metric": policy.best_metric, "value": self._values[step]}
        if best != self.best:
            self.best = best
            if distributed.is_primary_process():
                files.write_text(self._path, json.dumps(best))


def _read_best(path: Path) -> dict[str, Any]:
    """Returns the content of ``best.json``; an empty dict if the file does not exist.

    Raises:
      UserError: it does not name a step, a metric and a value.
    """
    if not path.exists():
        return {}
    best = untrusted.read_json_object(path, inside=path.parent)
    types = {"step": int, "metric": str, "value": (int, float)}
    for key, kind in types.items():
        if not isinstance(best.get(key), kind):  # type: ignore[arg-type]
            raise UserError(f"{path}: '{key}' is missing or of another type; delete the file")
    return best
