"""The loop around the step: batches, metrics one step late, evaluation, checkpoints and progress. It contains no mathematics."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from tqdm import tqdm

from jaxalign.errors import UserError, require_range
from jaxalign.networks.leaves import merge_roles
from jaxalign.objectives.base import Batch, Objective
from jaxalign.parallel import distributed, partitioning
from jaxalign.parallel.preemption import Preempted, PreemptionHandler
from jaxalign.runs.metrics import METRICS_FILE, read_metrics
from jaxalign.training.best_checkpoints import BestCheckpoints
from jaxalign.training.checkpointing import Checkpointer, CheckpointPolicy
from jaxalign.training.evaluations import Evaluations, Evaluator, last_metrics
from jaxalign.training.metric_writing import MetricAccumulator, MetricWriter
from jaxalign.training.profiling import Profile, parse_steps
from jaxalign.training.state import TrainState
from jaxalign.training.step import StepFunction
from jaxalign.training.throughput import Count, Throughput


class NonFiniteError(UserError):
    """An error for a loss or gradients that became NaN or infinite."""


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """The length of training, and the periods of logging, evaluation and checkpoints.

    Attributes:
      train_steps: the total number of updates.
      log_period: the number of steps over which training metrics are averaged before they are written. They are also written
        at every checkpoint, so that a resumed run has the same lines as an uninterrupted one.
      eval_period: the number of steps between evaluations; with 0, only the end of training is evaluated.
      checkpoint: when to save and which checkpoints to keep.
      progress: whether to show a progress bar on standard error.
      eval_at_start: whether the networks are also evaluated before the first update, as step 0.
      patience: training ends after so many ranked evaluations without a better one than the best before; with 0 it never ends early.
        It needs ``checkpoint.best_metric``.
      profile_steps: the steps that JAX's profiler traces, ``FIRST-LAST``; empty for none.
    """

    train_steps: int
    log_period: int = 50
    eval_period: int = 1000
    checkpoint: CheckpointPolicy = dataclasses.field(default_factory=CheckpointPolicy)
    progress: bool = True
    eval_at_start: bool = False
    patience: int = 0
    profile_steps: str = ""

    def __post_init__(self) -> None:
        parse_steps(self.profile_steps)
        require_range(
            "LoopConfig", "[1, inf)", train_steps=self.train_steps, log_period=self.log_period
        )
        require_range(
            "LoopConfig", "[0, inf)", eval_period=self.eval_period, patience=self.patience
        )
        if self.patience and self.checkpoint.best_metric is None:
            raise UserError(
                f"LoopConfig.patience is {self.patience} and checkpoint.best_metric is None, so no evaluation is better than another; name "
                "a metric (BEST_METRIC) or set patience to 0 (PATIENCE)"
            )


class _Pending(NamedTuple):
    """A step whose metrics are still on the device. ``view`` has fields of the global batch; None if this process holds all of it."""

    number: int
    metrics: Any
    batch: Batch
    view: Any


class Loop:
    """Runs a compiled step until ``train_steps``.

    Args:
      step: the compiled training step.
      objective: for `Objective.summarize` and `Objective.check_batch`.
      mesh: the mesh on which batches are placed.
      config: the length and the periods.
      model_dir: the run folder.
      writer: writes metrics.
      checkpointer: saves checkpoints.
      metadata: the JSON stored with every checkpoint.
      evaluators: functions that are called as ``(step, params by role)``; their metrics are prefixed with the evaluator's name.
      frozen: the parameters of the frozen roles, and the frozen leaves of trained roles, by role.
      notice: signals when to save and stop early; never by default.
    """

    def __init__(
        self,
        *,
        step: StepFunction,
        objective: Objective,
        mesh: Mesh,
        config: LoopConfig,
        model_dir: Path,
        writer: MetricWriter,
        checkpointer: Checkpointer,
        metadata: Mapping[str, Any],
        evaluators: Mapping[str, Evaluator],
        frozen: Mapping[str, Any],
        notice: PreemptionHandler | None = None,
    ) -> None:
        self._step, self._objective, self._mesh, self._config = step, objective, mesh, config
        self._model_dir, self._writer, self._checkpointer = model_dir, writer, checkpointer
        self._metadata, self._frozen = dict(metadata), frozen
        self._notice = notice
        self._view = distributed.GlobalBatchFields(mesh) if distributed.is_multiprocess() else None
        self._accumulator = MetricAccumulator()
        self._throughput = Throughput()
        # A run that is resumed at its end reports its earlier measurements.
        written = read_metrics(model_dir / METRICS_FILE)
        self.last_training_metrics = last_metrics(written, "train")
        self._evaluations = Evaluations(evaluators, model_dir, writer, written)
        self._best = BestCheckpoints(model_dir, config.checkpoint, checkpointer, written)

    @property
    def best(self) -> dict[str, Any]:
        """Returns ``step``, ``metric`` and ``value`` of the best checkpoint; empty if none is ranked."""
        return self._best.best

    @property
    def out_of_patience(self) -> bool:
        """Returns whether the newest evaluations were no better than the best, `LoopConfig.patience` times."""
        patience = self._config.patience
        return bool(patience) and self._best.later_evaluations >= patience

    @property
    def evaluations(self) -> dict[str, float]:
        """Returns the newest results of all evaluators, ``{"<evaluator>/<metric>": value}``."""
        return self._evaluations.newest

    @property
    def objective_name(self) -> str:
        """Returns the name of the method."""
        return self._objective.name

    @property
    def throughput(self) -> Throughput:
        """Returns the counts of examples and tokens of this launch, over all processes."""
        return self._throughput

    def run(
        self, state: TrainState, batches: Iterator[Batch], data_state: Callable[[], Any]
    ) -> TrainState:
        """Trains until ``train_steps``.

        Args:
          state: the state to start from.
          batches: the host batches of this process.
          data_state: the iterator's state after the last batch that was taken, as JSON.

        Raises:
          NonFiniteError: on NaN or Inf; earlier checkpoints are kept.
          Preempted: after saving, if a notice asks for it.
          UserError: if the data end before ``train_steps``.
        """
        config = self._config
        start = int(state.step)
        # An earlier launch may have trained beyond its last complete checkpoint.
        self._best.forget_after(start)
        # The earlier launch may have stopped between saving this step and evaluating it.
        owed = distributed.broadcast_from_first(lambda: self._owed(start))
        if owed:
            self._evaluate(start, state, owed)
        if start >= config.train_steps or self.out_of_patience:
            self._checkpointer.prune()
            return state
        if start:
            # A run that was stopped between two lines of metrics continues with the stored sums.
            accumulated = self._checkpointer.metadata(start).get("accumulated_metrics", {})
            self._accumulator.set_state(accumulated)
        self._profile = Profile(self._model_dir, parse_steps(config.profile_steps))
        with contextlib.closing(self._profile), self._bar(start) as bar:
            state = self._run(start, state, batches, data_state, bar)
        self._checkpointer.prune()
        return state

    def _run(
        self,
        start: int,
        state: TrainState,
        batches: Iterator[Batch],
        data_state: Callable[[], Any],
        bar: Any,
    ) -> TrainState:
        config = self._config
        pending: _Pending | None = None
        bar.set_postfix_str("compiling")
        batch, after = self._next(batches, data_state, start)
        for number in range(start + 1, config.train_steps + 1):
            self._profile.before(number)
            placed = partitioning.make_global_batch(self._mesh, batch)
            state, metrics = self._step(state, self._frozen, placed)
            self._profile.after(number, metrics)
            view = None if self._view is None else self._view(placed)
            current, consumed = _Pending(number, metrics, batch, view), after
            if number < config.train_steps:
                batch, after = self._next(batches, data_state, number)
            if pending is not None:
                self._receive(pending, bar)
            pending = current
            due = self._due(number, config.eval_period) or self._due(
                number, config.checkpoint.period
            )
            stop = self._notice is not None and self._notice.should_stop(number)
            if due or stop:
                self._receive(pending, bar)
                pending = None
            if stop and number < config.train_steps:
                self._save_and_stop(number, state, consumed)
            if due:
                self._save_and_evaluate(number, state, consumed)
                self._throughput.restart()
                if self.out_of_patience:
                    break
        return state

    def _save_and_stop(self, number: int, state: TrainState, data_state: Any) -> None:
        """Saves at a step where no checkpoint is due, together with the sums of metrics that are not written yet."""
        metadata = {**self._metadata, "accumulated_metrics": self._accumulator.state()}
        self._checkpointer.save(state, data_state, metadata)
        self._checkpointer.wait()
        raise Preempted(
            f"told to stop (SIGTERM or a maintenance notice): saved step {number} of {self._config.train_steps} in "
            f"{self._model_dir}; the same command goes on from there"
        )

    def _next(
        self, batches: Iterator[Batch], data_state: Callable[[], Any], step: int
    ) -> tuple[Batch, Any]:
        try:
            batch = next(batches)
        except StopIteration:
            raise UserError(
                f"the training data ended after {step} of {self._config.train_steps} steps; train on more epochs or fewer steps"
            ) from None
        if self._view is None:
            self._objective.check_batch(batch)
        return batch, data_state()

    def _due(self, number: int, period: int) -> bool:
        return number == self._config.train_steps or (period > 0 and number % period == 0)

    def _receive(self, step: _Pending, bar: Any) -> None:
        number, metrics = step.number, jax.device_get(step.metrics)
        count = Count.of(step.batch) if step.view is None else self._check_all_rows(step)
        if metrics["finite"][0] < 1:
            self._checkpointer.wait()
            last = self._checkpointer.latest_step()
            kept = (
                f"the last good checkpoint is step {last}"
                if last is not None
                else "no checkpoint was written yet"
            )
            raise NonFiniteError(
                f"loss or gradients became NaN or infinite at step {number}; {kept} in {self._model_dir}"
            )
        self._accumulator.add({name: pair for name, pair in metrics.items() if name != "finite"})
        self._throughput.add(count)
        bar.update(1)
        periods = (self._config.log_period, self._config.checkpoint.period)
        if any(self._due(number, period) for period in periods):
            values = {
                **self._objective.summarize(self._accumulator.means()),
                **self._throughput.report(),
            }
            self.last_training_metrics = values
            self._writer.write(number, "train", values)
            self._accumulator.reset()
            bar.set_postfix_str(
                f"loss {values.get('loss', float('nan')):.4g}, {values.get('examples_per_second', 0):.0f} ex/s, "
                f"{values.get('tokens_per_second', 0):.0f} tok/s"
            )

    def _check_all_rows(self, step: _Pending) -> Count:
        """Checks the batch of all processes, identically on each process, one step late but before anything is saved."""
        fields, (examples, tokens) = jax.device_get(step.view)
        self._objective.check_batch({**step.batch, **fields})
        return Count(int(examples), int(tokens))

    def _save_and_evaluate(self, number: int, state: TrainState, data_state: Any) -> None:
        """Saves first and then evaluates, because an evaluation may take longer than a preempted machine keeps running."""
        if self._due(number, self._config.checkpoint.period):
            self._checkpointer.save(state, data_state, self._metadata)
        if self._evaluation_due(number):
            self._evaluate(number, state, self._evaluations.names)

    def _evaluation_due(self, number: int) -> bool:
        if not number:
            return self._config.eval_at_start
        policy = self._config.checkpoint
        ranked = policy.best_metric is not None and self._due(number, policy.period)
        return ranked or self._due(number, self._config.eval_period)

    def _owed(self, number: int) -> list[str]:
        """Returns the evaluators that are due at a step but have no line for it."""
        return self._evaluations.missing(number) if self._evaluation_due(number) else []

    def _evaluate(self, number: int, state: TrainState, names: Sequence[str]) -> None:
        results = self._evaluations.run(number, merge_roles(self._frozen, state.params), names)
        self._best.add(number, results)

    def _bar(self, start: int) -> Any:
        shown = self._config.progress and distributed.is_primary_process()
        return tqdm(
            total=self._config.train_steps,
            initial=start,
            desc=self._objective.name,
            unit="step",
            disable=not shown,
            file=sys.stderr,
            mininterval=1.0 if sys.stderr.isatty() else 30.0,
            dynamic_ncols=True,
        )
