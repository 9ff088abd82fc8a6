"""Trackers get every line of metrics, and their failures never reach the run."""

import sys
import types
from typing import ClassVar

import pytest

from jaxalign.errors import UserError
from jaxalign.runs.metrics import METRICS_FILE, read_metrics
from jaxalign.training.metric_writing import MetricWriter
from jaxalign.training.trackers import Experiment, open_trackers, tracker_specs


class Recording:
    """A tracker of one's own; `calls` has what it was told, over all instances."""

    calls: ClassVar[list] = []

    def __init__(self, experiment):
        self.calls.append(("open", experiment.name, experiment.run_id))

    def write(self, step, split, values):
        self.calls.append((step, split, dict(values)))

    def write_samples(self, step, samples):
        self.calls.append((step, list(samples)))

    def close(self, failed=False):
        self.calls.append("failed" if failed else "close")


class Failing(Recording):
    def write(self, step, split, values):
        super().write(step, split, values)
        raise ConnectionError("no network\nand more")


class Refusing:
    def __init__(self, experiment):
        raise SystemExit("no key")


@pytest.fixture
def module(monkeypatch):
    """This module under a name that a specification can import; the calls are forgotten."""
    monkeypatch.setitem(sys.modules, "my_trackers", sys.modules[__name__])
    Recording.calls.clear()
    return "my_trackers"


def _experiment(folder):
    return Experiment(folder, "abc", {"objective": "dro_v"})


def test_a_tracker_gets_what_the_file_gets(tmp_path, module):
    opened = open_trackers(f"{module}:Recording", _experiment(tmp_path))
    with MetricWriter(tmp_path, trackers=opened) as writer:
        writer.write(1, "train", {"loss": 2.0})
        writer.write_samples(1, [{"prompt": "p", "response": "r"}])
    assert Recording.calls == [
        ("open", tmp_path.name, "abc"),
        (1, "train", {"loss": 2.0}),
        (1, [{"prompt": "p", "response": "r"}]),
        "close",
    ]


def test_a_tracker_learns_that_an_error_ended_the_run(tmp_path, module):
    opened = open_trackers(f"{module}:Recording", _experiment(tmp_path))
    with pytest.raises(RuntimeError), MetricWriter(tmp_path, trackers=opened):
        raise RuntimeError("NaN")
    assert Recording.calls[-1] == "failed"


@pytest.mark.parametrize(("name", "calls"), [("Failing", 2), ("Refusing", 0)])
def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(
    tmp_path, module, capsys, name, calls
):
    opened = open_trackers(f"{module}:{name}", _experiment(tmp_path))
    with MetricWriter(tmp_path, trackers=opened) as writer:
        for step in (1, 2, 3):
            writer.write(step, "train", {"loss": 1.0})
    assert len(read_metrics(tmp_path / METRICS_FILE)) == 3
    assert len(Recording.calls) == calls  # the first write failed, and there was no other
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1 and f"tracker {module}:{name} failed" in warning


@pytest.mark.parametrize(
    ("trackers", "message"),
    [
        ("tensorbord", "names 'tensorbord'; there are tensorboard"),
        ("wandb", "pip install wandb"),
        ("tensorboard:folder=x", "no setting 'folder'; its settings: none"),
        ("nowhere:Tracker", "cannot be imported"),
    ],
)
def test_unknown_and_missing_trackers_are_told_before_the_run(trackers, message, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=message):
        tracker_specs(trackers)


def test_wandb_is_offline_and_goes_on_with_the_same_run(tmp_path, monkeypatch):
    """The arguments that wandb.init gets, by a stand-in for the package."""
    calls: ClassVar[list] = []
    run = types.SimpleNamespace(
        log=lambda values, step: calls.append((step, values)),
        finish=lambda exit_code: calls.append(exit_code),
    )
    module = types.ModuleType("wandb")
    module.__spec__ = types.SimpleNamespace()
    module.init = lambda **settings: calls.append(settings) or run
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    (tracker,) = open_trackers("wandb:project=mine", _experiment(tmp_path))
    tracker.write(3, "validation", {"loss": 1})
    tracker.close()
    settings = calls[0]
    assert (settings["mode"], settings["id"], settings["resume"]) == ("offline", "abc", "allow")
    assert (settings["project"], settings["dir"]) == ("mine", str(tmp_path))
    assert calls[1:] == [(3, {"validation/loss": 1.0}), 0]
