"""Jobs of one or more real processes on this machine, and the files that they write."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxalign.runs.checkpoints import restore_params
from jaxalign.runs.metrics import read_metrics
from tests.fixtures.processes import with_devices

SCRIPT = Path(__file__).with_name("worker.py")
# Seconds; much longer than any job takes, also on a busy machine.
TIMEOUT = 900


@dataclasses.dataclass
class Job:
    """The processes of one training job."""

    processes: list[subprocess.Popen]

    def finish(self, *codes):
        """Waits for all processes, checks their exit codes (one code counts for all), and returns their outputs."""
        outputs = [process.communicate(timeout=TIMEOUT)[0] for process in self.processes]
        wanted = list(codes) if len(codes) > 1 else list(codes) * len(outputs)
        found = [process.returncode for process in self.processes]
        assert found == wanted, "\n".join(output[-3000:] for output in outputs)
        return outputs


@pytest.fixture(scope="session")
def workplace(tmp_path_factory):
    """A folder with sixty triplets of short texts; it also holds the caches of data and of compiled programs."""
    folder = tmp_path_factory.mktemp("job")
    records = [
        {
            "prompt": f"say {i % 20}",
            "response": f"{i % 20} " + "x" * (i % 7),
            "feedback": i % 3 - 1.0,
        }
        for i in range(60)
    ]
    text = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "feedback.jsonl").write_text(text, encoding="utf-8")
    return folder


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def spawn(command, environment):
    return subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | environment,
    )


@pytest.fixture(scope="session")
def spawn_job():
    """`spawn_job(command, environment, processes)` starts processes of a script, which find each other through the environment."""

    def start(command, environment, processes):
        job = {
            "JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}",
            "JAX_NUM_PROCESSES": str(processes),
        }
        return Job(
            [
                spawn(command, environment | job | {"JAX_PROCESS_ID": str(index)})
                for index in range(processes)
            ]
        )

    return start


@pytest.fixture(scope="session")
def train_command(workplace, repository):
    """`train_command(2, folder, "--flag=value", ...)` starts two processes of `jaxalign train`, which find each other by their flags."""

    def launch(processes, folder, *flags):
        names = ("models/tiny", "tasks/synthetic", "objectives/sft", "optimizers/adamw")
        command = [
            *("-m", "jaxalign", "train", f"--coordinator_address=localhost:{free_port()}"),
            *(f"--gin_file={name}.gin" for name in (*names, "runs/train")),
            f"--gin.MODEL_DIR='{folder}'",
            f"--gin.CACHE_DIR='{workplace / 'synthetic'}'",
            *("--gin.VOCAB_SIZE=384", "--gin.TRAIN_STEPS=2", "--gin.BATCH_SIZE=8", *flags),
        ]
        path = f"{repository}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        environment = with_devices(1, PYTHONPATH=path, JAX_PLATFORMS="cpu")
        numbers = (f"--num_processes={processes}", "--process_id={}")
        return Job(
            [
                spawn([*command, *(flag.format(index) for flag in numbers)], environment)
                for index in range(processes)
            ]
        )

    return launch


@pytest.fixture(scope="session")
def start(workplace, repository):
    """`start(folder, steps, processes=2, devices=2, only={1: {...}}, **options)`; ``only`` holds options of single processes."""

    def launch(folder, steps, *, processes=1, devices=4, only=None, **options):
        port = free_port()
        environment = {
            "PYTHONPATH": f"{repository}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
            "TINY_RUN_DEVICES": str(devices),
            "OMP_NUM_THREADS": "1",
            "JAX_COMPILATION_CACHE_DIR": str(workplace / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        if processes > 1:
            environment |= {
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                "JAX_NUM_PROCESSES": str(processes),
            }
        started = []
        for index in range(processes):
            mine = {
                "feedback": str(workplace / "feedback.jsonl"),
                "cache": str(workplace / "cache"),
                "folder": str(folder),
                "steps": steps,
                **options,
                **(only or {}).get(index, {}),
            }
            own = environment | ({"JAX_PROCESS_ID": str(index)} if processes > 1 else {})
            started.append(spawn([str(SCRIPT), json.dumps(mine)], own))
        return Job(started)

    return launch


class Runs:
    """Reads and compares the folders of runs."""

    def trained(self, folder, step):
        """The parameters of a checkpoint, by role."""
        roles = json.loads((folder / "networks.json").read_text())["networks"]
        return {role: restore_params(folder, role, step=step) for role in roles}

    def assert_identical(self, one, other, step):
        jax.tree.map(
            np.testing.assert_array_equal, self.trained(one, step), self.trained(other, step)
        )

    def assert_close(self, one, other, step):
        def close(a, b):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)

        jax.tree.map(close, self.trained(one, step), self.trained(other, step))

    def measured(self, folder):
        """Every line of metrics.jsonl, without the throughput, which depends on the clock."""
        return [
            {name: value for name, value in record.items() if not name.endswith("_per_second")}
            for record in read_metrics(folder / "metrics.jsonl")
        ]

    def assert_measured_alike(self, one, other):
        """Asserts that both runs have the same lines, with the same numbers up to rounding."""
        for mine, theirs in zip(self.measured(one), self.measured(other), strict=True):
            assert mine.pop("split") == theirs.pop("split")
            assert theirs == pytest.approx(mine, rel=1e-4, abs=1e-5)

    def position(self, folder, step):
        """The state of the data iterator in a checkpoint."""
        return json.loads((folder / "checkpoints" / str(step) / "data" / "metadata").read_text())


@pytest.fixture(scope="session")
def runs():
    return Runs()
