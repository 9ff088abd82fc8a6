"""Sends metrics of a run to experiment trackers: TensorBoard, Weights & Biases, trackio, MLflow, or one of your own.

``metrics.jsonl`` in the run folder is the record of a run, whatever its trackers. A tracker that fails is left out from then on, with one
line that says so; it never stops a run. All of them stay on this machine unless their own environment variables say otherwise.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from jaxalign import plugins
from jaxalign.errors import UserError, first_line
from jaxalign.training.tensorboard import TensorBoard

PROJECT = "jaxalign"
TENSORBOARD = "tensorboard"
# What is sent of a long text, such as a configuration.
_LONGEST_TEXT = 6000


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The run that is tracked.

    Attributes:
      folder: the run folder.
      run_id: the id that the run keeps when it goes on.
      config: what describes the run: objective, hyperparameters, task.
      resume_step: the step from which this launch goes on; 0 for a new run.
    """

    folder: Path
    run_id: str
    config: Mapping[str, Any]
    resume_step: int = 0

    @property
    def name(self) -> str:
        """Returns the name of the run folder."""
        return self.folder.name


class Tracker(Protocol):
    """The interface of a tracker. A class of your own takes an `Experiment`, and is named as ``module:Class``."""

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Sends scalars of a split at a step; steps never go back within one launch."""

    def write_samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Sends responses of the policy at a step: mappings with `prompt` and `response`."""

    def close(self, failed: bool = False) -> None:
        """Ends the launch, which an error ended if `failed`."""


class Wandb:
    """The tracker `wandb`: offline, in the run folder, unless WANDB_MODE says otherwise; `wandb sync` sends it later."""

    def __init__(self, experiment: Experiment, project: str = PROJECT) -> None:
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or project,
            name=experiment.name,
            id=experiment.run_id,
            resume="allow",
            dir=str(experiment.folder),
            config=dict(experiment.config),
            mode=os.environ.get("WANDB_MODE") or "offline",
        )

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        self._run.log(_named(split, values), step=step)

    def write_samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        columns = ["prompt", "response"]
        rows = [[sample[column] for column in columns] for sample in samples]
        self._run.log({"samples": self._wandb.Table(columns=columns, data=rows)}, step=step)

    def close(self, failed: bool = False) -> None:
        self._run.finish(exit_code=int(failed))


class Trackio:
    """The tracker `trackio`: a database on this machine (TRACKIO_DIR), which `trackio show` serves."""

    def __init__(self, experiment: Experiment, project: str = PROJECT) -> None:
        import trackio

        self._trackio = trackio
        trackio.init(
            project=project,
            name=f"{experiment.name}-{experiment.run_id}",
            config=_texts(experiment.config),
            resume="allow",
            embed=False,
        )

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        self._trackio.log(_named(split, values), step=step)

    def write_samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Does nothing: samples are in the run's own file."""

    def close(self, failed: bool = False) -> None:
        self._trackio.finish()


class Mlflow:
    """The tracker `mlflow`: files in ``<run>/mlruns``, unless MLFLOW_TRACKING_URI names a server."""

    def __init__(self, experiment: Experiment, project: str = PROJECT) -> None:
        from mlflow.tracking import MlflowClient

        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"file:{experiment.folder / 'mlruns'}"
        if uri.startswith("file:"):
            # MLflow 3 asks for this before it writes files.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self._client = MlflowClient(tracking_uri=uri)
        found = self._client.get_experiment_by_name(project)
        where = found.experiment_id if found else self._client.create_experiment(project)
        query = f"tags.`jaxalign.run_id` = '{experiment.run_id}'"
        runs = self._client.search_runs([where], filter_string=query, max_results=1)
        if runs:
            self._run = runs[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return
        tags = {"jaxalign.run_id": experiment.run_id}
        created = self._client.create_run(where, tags=tags, run_name=experiment.name)
        self._run = created.info.run_id
        for name, value in _texts(experiment.config).items():
            self._client.log_param(self._run, name, value)

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        for name, value in _named(split, values).items():
            self._client.log_metric(self._run, name, value, step=step)

    def write_samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        columns = {
            name: [str(sample[name]) for sample in samples] for name in ("prompt", "response")
        }
        self._client.log_dict(self._run, columns, f"samples/{step}.json")

    def close(self, failed: bool = False) -> None:
        self._client.set_terminated(self._run, status="FAILED" if failed else "FINISHED")


def _tensorboard(experiment: Experiment) -> TensorBoard:
    return TensorBoard(experiment.folder, experiment.resume_step)


TRACKERS: dict[str, Callable[..., Tracker]] = {
    TENSORBOARD: _tensorboard,
    "wandb": Wandb,
    "trackio": Trackio,
    "mlflow": Mlflow,
}
_OPTIONAL = ("wandb", "trackio", "mlflow")


def tracker_specs(trackers: str) -> tuple[str, ...]:
    """Returns the specifications of trackers, which spaces separate: ``name``, ``name:project=NAME`` or ``module:Class``.

    Raises:
      UserError: a tracker is unknown, or its package is not installed.
    """
    specs = tuple(trackers.split())
    for spec in specs:
        name = plugins.parse_spec(spec).name
        if name in _OPTIONAL and importlib.util.find_spec(name) is None:
            raise UserError(f"TRACKERS names {name}, which is not installed: pip install {name}")
        if name not in TRACKERS and ":" not in spec:
            raise UserError(
                f"TRACKERS names {spec!r}; there are {', '.join(TRACKERS)}, and module:Class of your own"
            )
        if name in TRACKERS:
            _check_settings(spec)
        else:
            _own_class(spec)
    return specs


def open_trackers(trackers: str, experiment: Experiment) -> list[Tracker]:
    """Opens the trackers of a run. One that cannot be opened is left out, with a line on standard error.

    Raises:
      UserError: as `tracker_specs`.
    """
    return [_Guarded(spec, experiment) for spec in tracker_specs(trackers)]


class _Guarded:
    """A tracker whose failures do not reach the run."""

    def __init__(self, spec: str, experiment: Experiment) -> None:
        self._spec = spec
        self._tracker: Tracker | None = None
        self._tracker = self._try("start", lambda: _open(spec, experiment))

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        self._use("write", step, split, values)

    def write_samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        self._use("write_samples", step, samples)

    def close(self, failed: bool = False) -> None:
        self._use("close", failed)
        self._tracker = None

    def _use(self, method: str, *arguments: Any) -> None:
        tracker = self._tracker
        if tracker is not None:
            self._try(method, lambda: getattr(tracker, method)(*arguments))

    def _try(self, what: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        # A service of others can raise anything; also SystemExit, as wandb does where no key is given.
        except (Exception, SystemExit) as error:
            self._tracker = None
            print(
                f"jaxalign: warning: tracker {self._spec} failed ({what}: {type(error).__name__}: {first_line(error, 160)}) and is left "
                "out from here on; metrics.jsonl has everything",
                file=sys.stderr,
            )
            return None


def _open(spec: str, experiment: Experiment) -> Tracker:
    parsed = plugins.parse_spec(spec)
    if parsed.name in TRACKERS:
        return TRACKERS[parsed.name](experiment, **parsed.settings)
    return _own_class(spec)(experiment)


def _check_settings(spec: str) -> None:
    parsed = plugins.parse_spec(spec)
    known = [*inspect.signature(TRACKERS[parsed.name]).parameters][1:]
    unknown = [name for name in parsed.settings if name not in known]
    if parsed.argument or unknown:
        raise UserError(
            f"TRACKERS: {spec} has no setting {unknown[0] if unknown else parsed.argument!r}; its settings: {', '.join(known) or 'none'}"
        )


def _own_class(spec: str) -> Callable[[Experiment], Tracker]:
    module, _, name = spec.partition(":")
    try:
        found: Callable[[Experiment], Tracker] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"TRACKERS: {spec} cannot be imported ({first_line(error)}); is its folder on PYTHONPATH?"
        ) from error
    return found


def _named(split: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{split}/{name}": float(value) for name, value in values.items()}


def _texts(config: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value)[:_LONGEST_TEXT] for name, value in config.items()}
