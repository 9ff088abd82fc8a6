"""Which job a process belongs to, what a disk must have, and notices of maintenance."""

import dataclasses
import functools
import http.server
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import namedtuple

import jax
import jax.numpy as jnp
import pytest

from jaxalign import files
from jaxalign.cli.main import run_with_one_line_errors
from jaxalign.data.task_data import TaskData
from jaxalign.errors import UserError
from jaxalign.parallel import distributed, preemption, processes
from jaxalign.parallel.preemption import PreemptionHandler
from jaxalign.parallel.processes import EXIT_LOST_PROCESS, ProcessConfig, find_process_config
from jaxalign.training import launch, run
from jaxalign.training.checkpoint_folder import check_space
from jaxalign.training.checkpointing import CheckpointPolicy
from jaxalign.training.state import TrainState

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "2",
}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (
            {
                "JAX_COORDINATOR_ADDRESS": "h:5",
                "JAX_NUM_PROCESSES": "4",
                "JAX_PROCESS_ID": "3",
            },
            ProcessConfig("h:5", 4, 3),
        ),
        (
            {"JAX_COORDINATOR_ADDRESS": "h:5", "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"},
            None,
        ),
        # XPK: GPUs, CPUs.
        (
            {
                "JAX_COORDINATOR_IP": "10.0.0.2",
                "JAX_COORDINATOR_PORT": "6002",
                "NNODES": "2",
                "NODE_RANK": "1",
            },
            ProcessConfig("10.0.0.2:6002", 2, 1),
        ),
        (
            {
                "JAX_COORDINATOR_ADDRESS": "pod-0.job",
                "JAX_PROCESS_COUNT": "4",
                "JOB_INDEX": "1",
                "PROCESSES_IN_JOB": "2",
                "JOB_COMPLETION_INDEX": "1",
            },
            ProcessConfig("pod-0.job:1234", 4, 3),
        ),
        # Nodes of another launcher's are no job of JAX's.
        ({"NNODES": "2", "NODE_RANK": "1"}, None),
        (SLURM, ProcessConfig(cluster="slurm")),
        (SLURM | {"SLURM_NTASKS": "1"}, None),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, None),
        (
            {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://h:1", "OMPI_COMM_WORLD_SIZE": "2"},
            ProcessConfig(cluster="ompi"),
        ),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, ProcessConfig(cluster="tpu")),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, None),
        (
            {"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"},
            ProcessConfig(cluster="tpu"),
        ),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "JAX_PLATFORMS": "cpu"}, None),
    ],
)
def test_the_environment_says_which_job(environment, expected):
    assert find_process_config(environment=environment) == expected


def test_flags_come_before_the_environment():
    environment = {"JAX_COORDINATOR_ADDRESS": "h:5", "JAX_NUM_PROCESSES": "4"}
    assert find_process_config("g:6", 2, 1, environment) == ProcessConfig("g:6", 2, 1)
    assert find_process_config(None, None, 1, environment) == ProcessConfig("h:5", 4, 1)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("h:5", None, 0), "--num_processes is missing"),
        (("h:5", None, None), "--num_processes and --process_id are missing"),
        (("h:5", 2, 2), "--process_id=2 must be from 0 to 1 with --num_processes=2"),
    ],
)
def test_half_a_job_is_refused(flags, message):
    with pytest.raises(UserError, match=message):
        find_process_config(*flags, environment={})
    with pytest.raises(UserError, match="NNODES='x' is not a number"):
        find_process_config("h:5", environment={"NNODES": "x"})


def test_a_process_on_its_own_asks_no_server(monkeypatch):
    def refuse(*_):
        raise AssertionError("asked the network")

    monkeypatch.setattr("socket.create_connection", refuse)
    monkeypatch.setattr("socket.gethostbyname", refuse)
    assert find_process_config(environment={"HOME": "/"}) is None


def test_a_folder_that_cannot_be_written_is_told_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"MODEL_DIR .*run cannot be written: Not a directory"):
        files.make_writable_folder(tmp_path / "file" / "run")
    files.make_writable_folder(tmp_path / "new" / "run")
    assert list((tmp_path / "new" / "run").iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_a_folder_without_permission_is_told_at_once(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written: Permission denied"):
        files.make_writable_folder(tmp_path)


def abstract_state(megabytes):
    return jax.eval_shape(
        lambda: TrainState(
            step=jnp.zeros((), jnp.int32),
            params={"policy": jnp.zeros(megabytes * 250_000)},
            opt_state={},
        )
    )


@pytest.mark.parametrize(
    ("policy", "free", "enough"),
    [
        (CheckpointPolicy(period=1, keep_latest=2), 29, False),
        (CheckpointPolicy(period=1, keep_latest=2), 31, True),
        (CheckpointPolicy(period=1, keep_latest=2, best_metric="loss"), 39, False),
        (CheckpointPolicy(period=50, keep_latest=2), 21, True),
        (CheckpointPolicy(period=1, keep_latest=None), 999, False),
    ],
)
def test_checkpoints_that_will_not_fit_are_refused_before_training(
    policy, free, enough, tmp_path, monkeypatch
):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, free * 1_000_000))
    if enough:
        check_space(tmp_path, policy, 100, abstract_state(10))
        return
    with pytest.raises(UserError, match=r"MB free, but \d+ checkpoints of 10 MB .* make room"):
        check_space(tmp_path, policy, 100, abstract_state(10))


def test_checkpoints_that_are_there_need_no_more_room(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 11_000_000))
    for step in (10, 20):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
    check_space(tmp_path, CheckpointPolicy(period=10), 100, abstract_state(10))


def test_files_are_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "best.json"
    files.write_text(path, "old")

    def fail(descriptor):
        raise OSError("the process is killed here")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError):
        files.write_text(path, "new")
    assert path.read_text() == "old"


@pytest.fixture
def metadata_server():
    """A metadata server like Google's; `answers` may be changed."""
    answers = {"maintenance-event": "NONE", "preempted": "FALSE"}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            assert self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answers[self.path.rpartition("/")[2]].encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}", answers
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("key", "value"),
    [("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE"), ("preempted", "TRUE")],
)
def test_a_maintenance_notice_stops_as_sigterm_does(metadata_server, monkeypatch, key, value):
    address, answers = metadata_server
    monkeypatch.setenv("GCE_METADATA_HOST", address)
    monkeypatch.setattr(preemption, "_POLL_SECONDS", 0.05)
    before = signal.getsignal(signal.SIGTERM)
    assert not preemption.is_termination_announced(address)
    with PreemptionHandler() as notice:
        assert not notice.should_stop(1)
        answers[key] = value
        assert notice._received.wait(60) and notice.should_stop(2)
    assert signal.getsignal(signal.SIGTERM) == before


def test_no_server_is_no_notice():
    assert not preemption.is_termination_announced("127.0.0.1:9")


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ("os._exit(75)", 75, ""),
        (
            "os.abort()",
            processes.EXIT_LOST_PROCESS,
            "another process of the job is lost or never joins",
        ),
        ("os.kill(os.getpid(), 9)", 137, "this process was killed by SIGKILL"),
        ("os.kill(os.getppid(), 15) or time.sleep(60)", 143, "this process was killed by SIGTERM"),
    ],
)
def test_the_guard_passes_codes_and_signals_on(end, code, said, repository):
    program = (
        "import os, sys, time; from jaxalign.parallel import processes; assert 'jax' not in sys.modules; "
        f"sys.exit(processes.run_guarded(lambda: {end}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True, cwd=repository
    )
    assert done.returncode == code, done.stderr
    assert said in done.stderr


def test_processes_that_never_came_are_a_reason_to_launch_again(capsys):
    def run():
        raise distributed.MissingProcessError("could not join the other processes")

    assert run_with_one_line_errors(run) == EXIT_LOST_PROCESS
    assert capsys.readouterr().err == "jaxalign: could not join the other processes\n"


@pytest.mark.parametrize(
    ("maker", "kind", "expected"),
    [
        ("0x1ae0", "0x088000", True),
        ("0x1ae0", "0x020000", False),  # Google's network card, which GPU machines have too
        ("0x10de", "0x030200", False),
    ],
)
def test_a_tpu_is_told_from_other_devices_of_a_host(tmp_path, maker, kind, expected):
    device = tmp_path / "0000:00:05.0"
    device.mkdir()
    (device / "vendor").write_text(maker + "\n")
    (device / "class").write_text(kind + "\n")
    (tmp_path / "0000:00:06.0").mkdir()
    assert processes._has_tpu_chip(str(tmp_path)) is expected


def test_another_reference_does_not_continue_a_run(tmp_path):
    before = {"run_id": "a", "step": 5, "path": "/runs/sft"}
    check = functools.partial(launch.check_same_origin, tmp_path, "initial checkpoint")
    check(None, before)
    check(before, {**before, "path": "/moved/sft"})
    for now in ({**before, "run_id": "b"}, {**before, "step": 6}):
        with pytest.raises(
            UserError, match=r"began with the initial checkpoint /runs/sft \(a, step 5\)"
        ):
            check(before, now)


def test_another_batch_size_is_said_where_it_moves_the_data(capsys):
    lengths = {"inputs": 8, "targets": 8}
    plain = TaskData(task="t", cache_dir="c", feature_lengths=lengths)
    packed = dataclasses.replace(plain, pack=True)
    for before, now, data, said in (
        (8, 8, plain, ""),
        (8, 4, packed, ""),
        (8, 4, plain, "reads some examples of this epoch again"),
        (4, 8, plain, "passes some examples over"),
    ):
        run.warn_of_other_batch_size(before, now, data)
        error = capsys.readouterr().err
        assert said in error if said else not error
