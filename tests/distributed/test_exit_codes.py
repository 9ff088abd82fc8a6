"""When one process of a job fails, the others end soon, with one line and their own exit code."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.processes import with_devices

SCRIPT = Path(__file__).with_name("small_job.py")
LOST_PROCESS, KILLED = 76, 137
faults = pytest.mark.faults


@pytest.fixture
def small_job(spawn_job, repository, tmp_path):
    def start(event, victim, processes):
        path = f"{repository}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        environment = with_devices(1, PYTHONPATH=path, JAX_PLATFORMS="cpu")
        return spawn_job([str(SCRIPT), event, str(victim), str(tmp_path)], environment, processes)

    return start


@pytest.mark.parametrize(
    ("event", "victim", "processes", "own"),
    [
        ("killed", 1, 2, KILLED),
        ("mistake", 1, 2, 2),
        pytest.param("killed", 0, 2, KILLED, marks=faults),
        pytest.param("killed", 2, 4, KILLED, marks=faults),
        pytest.param("silent", 0, 4, KILLED, marks=faults),
        pytest.param("silent", 1, 2, KILLED, marks=faults),
        pytest.param("mistake", 0, 2, 2, marks=faults),
        pytest.param("defect", 1, 2, 1, marks=faults),
        pytest.param("restoring", 1, 2, KILLED, marks=faults),
    ],
)
def test_the_others_say_that_a_process_was_lost(small_job, event, victim, processes, own):
    codes = [LOST_PROCESS] * processes
    codes[victim] = own
    outputs = small_job(event, victim, processes).finish(*codes)
    for index, output in enumerate(outputs):
        last = output.splitlines()[-1]
        if index != victim:
            assert last.startswith("jaxalign: ") and "launch all processes again" in last
    if event == "mistake":
        assert outputs[victim].splitlines()[-1] == "jaxalign: a mistake that all make"
    if event == "defect":
        assert "IndexError" in outputs[victim].splitlines()[-1]


def test_a_mistake_of_all_has_its_own_code(small_job):
    outputs = small_job("all_fail", -1, 2).finish(2)
    assert outputs[0].splitlines()[-1] == "jaxalign: a mistake that all make"
    assert outputs[1].splitlines()[-1] == "jaxalign: first process: a mistake that all make"


def test_a_process_that_waits_for_the_others_says_so(repository, tmp_path):
    path = f"{repository}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "JAX_PROCESS_ID": "1"}
    environment |= {"JAX_COORDINATOR_ADDRESS": "localhost:9", "JAX_NUM_PROCESSES": "2"}
    command = [sys.executable, str(SCRIPT), "killed", "1", str(tmp_path)]
    with subprocess.Popen(
        command, env=os.environ | environment, stderr=subprocess.PIPE, text=True
    ) as process:
        found = next(line for line in process.stderr if "waits" in line)
        process.terminate()
    assert found.startswith("process 1 of 2 waits for the others at localhost:9 for up to 5 min")
