"""Training that is killed at random moments and started again until it finishes gives the parameters of an uninterrupted run."""

import random
import signal

import pytest

STEPS = 160
PERIOD = 3
KILLED = -signal.SIGKILL
METHOD = {"method": "dro_v"}


@pytest.fixture(scope="module")
def uninterrupted(start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    start(folder, STEPS, devices=1, period=PERIOD, best=True, **METHOD).finish(0)
    return folder


def saved(folder):
    """The newest checkpoint's step, 0 for none."""
    entries = (folder / "checkpoints").glob("*")
    return max((int(entry.name) for entry in entries if entry.name.isdigit()), default=0)


@pytest.mark.faults
def test_twenty_kills_at_random_moments_change_nothing(runs, start, uninterrupted, tmp_path):
    """Half of the kills happen while a checkpoint is being written. None loses more than the steps since the previous checkpoint."""
    moments = random.Random(11)
    for kill in range(20):
        before = saved(tmp_path) if kill else 0
        if kill % 2:
            plan = {
                "kill_writing": before + PERIOD,
                "delay": moments.choice([0, moments.random() / 8]),
            }
        else:
            # At one of the steps after the next checkpoint, some time after its start.
            plan = {
                "kill_at": before + PERIOD + moments.randint(1, PERIOD),
                "saved_first": before + PERIOD,
                "delay": moments.choice([0, moments.random() / 10]),
            }
        start(tmp_path, STEPS, devices=1, period=PERIOD, best=True, **METHOD, **plan).finish(KILLED)
        # A checkpoint may be lost while it is being written, but not after that.
        assert saved(tmp_path) >= plan.get("saved_first", before)
    start(tmp_path, STEPS, devices=1, period=PERIOD, best=True, **METHOD).finish(0)
    runs.assert_identical(uninterrupted, tmp_path, STEPS)
    assert runs.measured(tmp_path) == runs.measured(uninterrupted)
    assert runs.position(tmp_path, STEPS) == runs.position(uninterrupted, STEPS)


@pytest.mark.faults
def test_a_single_process_saves_on_sigterm_and_continues(runs, start, uninterrupted, tmp_path):
    """The signal arrives twice, between two checkpoints and between two lines of metrics."""
    for step in (4, 8):
        (output,) = start(
            tmp_path, STEPS, devices=1, period=PERIOD, best=True, **METHOD, term_at=step
        ).finish(75)
        assert "told to stop" in output and saved(tmp_path) in (step, step + 1)
    start(tmp_path, STEPS, devices=1, period=PERIOD, best=True, **METHOD).finish(0)
    runs.assert_identical(uninterrupted, tmp_path, STEPS)
    assert runs.measured(tmp_path) == runs.measured(uninterrupted)
