"""Training is killed at random moments and started again, until it is done: the parameters are those of an undisturbed run."""

import random
import signal

import pytest

STEPS = 160
PERIOD = 3
KILLED = -signal.SIGKILL
METHOD = {"method": "dro_v"}


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    start(folder, STEPS, devices=1, period=PERIOD, best=True, **METHOD).finish(0)
    return folder


def saved(folder):
    """The newest checkpoint's step, 0 for none."""
    entries = (folder / "checkpoints").glob("*")
    return max((int(entry.name) for entry in entries if entry.name.isdigit()), default=0)


@pytest.mark.faults
def test_twenty_kills_at_random_moments_change_nothing(runs, start, whole, tmp_path):
    """Half of them fall while a checkpoint is being written. None costs more steps than those since the checkpoint before."""
    moments = random.Random(11)
    for kill in range(20):
        before = saved(tmp_path) if kill else 0
        if kill % 2:
            plan = {
                "kill_writing": before + PERIOD,
                "delay": moments.choice([0, moments.random() / 8]),
            }
        else:
            # One of the steps after the next checkpoint, and some time into it.
            plan = {
                "kill_at": before + PERIOD + moments.randint(1, PERIOD),
                "saved_first": before + PERIOD,
                "delay": moments.choice([0, moments.random() / 10]),
            }
        start(tmp_path, STEPS, devices=1, period=PERIOD, best=True, **METHOD, **plan).finish(KILLED)
        # What was being written may be lost, what was written is not.
        assert saved(tmp_path) >= plan.get("saved_first", before)
    start(tmp_path, STEPS, devices=1, period=PERIOD, best=True, **METHOD).finish(0)
    runs.assert_identical(whole, tmp_path, STEPS)
    assert runs.measured(tmp_path) == runs.measured(whole)
    assert runs.position(tmp_path, STEPS) == runs.position(whole, STEPS)


@pytest.mark.faults
def test_sigterm_alone_saves_and_goes_on(runs, start, whole, tmp_path):
    """Between two checkpoints, between two lines of metrics, twice."""
    for step in (4, 8):
        (output,) = start(
            tmp_path, STEPS, devices=1, period=PERIOD, best=True, **METHOD, term_at=step
        ).finish(75)
        assert "told to stop" in output and saved(tmp_path) in (step, step + 1)
    start(tmp_path, STEPS, devices=1, period=PERIOD, best=True, **METHOD).finish(0)
    runs.assert_identical(whole, tmp_path, STEPS)
    assert runs.measured(tmp_path) == runs.measured(whole)
