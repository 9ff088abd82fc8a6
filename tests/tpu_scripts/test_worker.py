"""The scripts with workers that execute their commands: each worker is a home folder on this machine."""

import contextlib
import os
import shlex
import signal
import subprocess
import time

import pytest

PYTHON = """#!/usr/bin/env bash
# python -m venv FOLDER
[[ $1 == -m && $2 == venv ]] || exit 1
mkdir -p "$3/bin"
cat >"$3/bin/python" <<'EOF'
#!/usr/bin/env bash
printf '%s\\n' "$*" >>"$HOME/pip"
cat >"${0%/*}/jaxalign" <<'EOP'
#!/usr/bin/env bash
if [[ $1 == --version ]]; then echo jaxalign 0; exit; fi
printf '%s\\0' "$@" >"$HOME/argv"
printf '%s' "${NOTE-}" >"$HOME/environment"
find . -name '*.gin' | sort >"$HOME/files"
case $(cat "$HOME/../behaviour") in
  wait) trap 'echo saving; exit 75' TERM; while :; do sleep 0.05; done ;;
  deaf) trap '' TERM; while :; do sleep 0.05; done ;;
  *) exit "$(cat "$HOME/../behaviour")" ;;
esac
EOP
chmod +x "${0%/*}/jaxalign"
EOF
chmod +x "$3/bin/python"
"""
LOCAL = {"MOUNT_BUCKET": "", "MODEL_DIR": "/data/run"}
NASTY = "--gin.NOTE='a  b' \"c\" $HOME `date` \\ ; & | # é * ? ~ !x"


@pytest.fixture
def slice_(cloud):
    """Two workers that execute commands, with a stand-in for Python that installs a stand-in for jaxalign."""
    (cloud.programs / "sleep").unlink()
    for name, text in (("python3.12", PYTHON), ("hostname", '#!/bin/sh\necho "$HOST_NAME"\n')):
        (cloud.programs / name).write_text(text, encoding="utf-8")
        (cloud.programs / name).chmod(0o755)
    cloud.set(execute=True)
    cloud.configure(POLL_SECONDS="0", **LOCAL, STOP_GRACE_SECONDS="5")
    cloud.homes = [cloud.folder / "homes" / f"dro-w-{index}" for index in range(2)]
    (cloud.folder / "homes").mkdir()
    behave(cloud, "wait")
    yield cloud
    for home in cloud.homes:
        process = home / "jaxalign/jobs/dro/process"
        if process.exists():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process.read_text().split()[0]), signal.SIGKILL)


def behave(cloud, behaviour):
    (cloud.folder / "homes" / "behaviour").write_text(str(behaviour))


def arguments(home):
    return (home / "argv").read_bytes().decode().split("\0")[:-1]


def until(condition):
    """Waits for a condition; fails after a minute."""
    for _ in range(1200):
        if condition():
            return True
        time.sleep(0.05)
    return False


def states(cloud):
    lines = cloud.run("watch").stdout.splitlines()
    return [line.split()[1] for line in lines if line.startswith("  dro-w-")]


@pytest.fixture
def running(slice_):
    assert slice_.run("setup").returncode == 0
    result = slice_.run("launch", "--", "--gin_file=experiments/x.gin", NASTY)
    assert result.returncode == 0, result.stderr
    assert until(lambda: all((home / "argv").exists() for home in slice_.homes))
    return slice_


def test_setup_installs_on_every_worker_once(slice_):
    (slice_.work / "my constraints.txt").write_text("jax==1\n")
    slice_.configure(CONSTRAINTS="my constraints.txt", **LOCAL)
    assert slice_.run("setup").returncode == 0
    for home in slice_.homes:
        [line] = (home / "pip").read_text().splitlines()
        assert line.startswith("-m pip install")
        assert line.endswith(
            "--constraint jaxalign_constraints.txt jaxalign[tpu] @ git+https://example.com/jaxalign.git@0123456789abcdef0123456789abcdef01234567"
        )
        assert (home / "jaxalign_constraints.txt").read_text() == "jax==1\n"
    again = slice_.run("setup")
    assert again.stdout.count("already set up") == 2
    (slice_.work / "my constraints.txt").write_text("jax==2\n")
    assert slice_.run("setup").returncode == 0
    assert len((slice_.homes[0] / "pip").read_text().splitlines()) == 2


def test_setup_uploads_a_wheel(slice_):
    (slice_.work / "my dist").mkdir()
    (slice_.work / "my dist" / "jaxalign-1-py3-none-any.whl").write_text("wheel")
    slice_.configure(INSTALL="my dist/jaxalign-1-py3-none-any.whl", **LOCAL)
    assert slice_.run("setup").returncode == 0
    home = slice_.homes[1]
    assert (
        (home / "pip")
        .read_text()
        .strip()
        .endswith(f"jaxalign[tpu] @ file://{home}/jaxalign-1-py3-none-any.whl")
    )


def test_arguments_arrive_unchanged(running):
    assert arguments(running.homes[0]) == [
        "train",
        "--gin_file=experiments/x.gin",
        NASTY,
        "--gin.MODEL_DIR='/data/run'",
    ]
    assert arguments(running.homes[1]) == arguments(running.homes[0])


def test_environment_variables_arrive_unchanged(slice_):
    slice_.configure(POLL_SECONDS="0", **LOCAL, ENV_NOTE="--a=\"b  c\" '$HOME' $(date)")
    slice_.run("setup")
    slice_.run("launch", "--", "--gin_file=x.gin")
    assert until(lambda: (slice_.homes[0] / "argv").exists())
    assert (slice_.homes[0] / "environment").read_text() == "--a=\"b  c\" '$HOME' $(date)"


def test_local_gin_files_are_uploaded_with_what_they_include(slice_):
    work = slice_.work
    (work / "my gin").mkdir()
    (work / "my gin" / "run.gin").write_text(
        "include 'my gin/base.gin'\ninclude \"models/tiny.gin\"\n"
    )
    (work / "my gin" / "base.gin").write_text("X = 1\n")
    (work.parent / "outside.gin").write_text("Y = 1\n")
    slice_.run("setup")
    result = slice_.run(
        "launch", "--", "--gin_file=my gin/run.gin,../outside.gin", "--gin_file", "runs/own.gin"
    )
    assert result.returncode == 0, result.stderr
    home = slice_.homes[1]
    assert until(lambda: (home / "files").exists())
    assert arguments(home)[1:3] == [
        "--gin_file=my gin/run.gin,uploaded/outside.gin",
        "--gin_file=runs/own.gin",
    ]
    assert (home / "files").read_text().splitlines() == [
        "./my gin/base.gin",
        "./my gin/run.gin",
        "./uploaded/outside.gin",
    ]


def test_launching_again_does_not_change_a_running_job_and_refuses_another_command(running):
    process = (running.homes[0] / "jaxalign/jobs/dro/process").read_text()
    again = running.run("launch", "--", "--gin_file=experiments/x.gin", NASTY)
    assert again.returncode == 0
    assert again.stdout.count("already running") == 2
    other = running.run("launch", "--", "--gin_file=experiments/y.gin")
    assert other.returncode == 1
    assert "another command; stop it first" in other.stderr
    assert (running.homes[0] / "jaxalign/jobs/dro/process").read_text() == process


def test_stop_ends_the_job_after_it_saved_and_nothing_else(running):
    bystander = subprocess.Popen(["/bin/sleep", "600"])
    result = running.run("stop")
    assert result.returncode == 0, result.stderr
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()
    for home in running.homes:
        job = home / "jaxalign/jobs/dro"
        assert until((job / "exit_code").exists)
        assert (job / "exit_code").read_text() == "75\n"
        assert "saving" in (job / "log").read_text()
    assert states(running) == ["exited", "exited"]
    again = running.run("stop")
    assert again.returncode == 0 and again.stdout.count("is not running") == 2


def test_stop_kills_only_if_forced(slice_):
    behave(slice_, "deaf")
    slice_.configure(POLL_SECONDS="0", **LOCAL, STOP_GRACE_SECONDS="0")
    slice_.run("setup")
    slice_.run("launch", "--", "--gin_file=x.gin")
    assert until(lambda: all((home / "argv").exists() for home in slice_.homes))
    result = slice_.run("stop")
    assert result.returncode == 1 and "stop.sh --force" in result.stderr
    assert states(slice_) == ["running", "running"]
    assert slice_.run("stop", "--force").returncode == 0
    assert until(lambda: states(slice_) == ["exited", "exited"])


def test_a_reused_process_id_is_not_stopped(running):
    assert running.run("stop").returncode == 0
    bystander = subprocess.Popen(["/bin/sleep", "600"])
    job = running.homes[0] / "jaxalign/jobs/dro"
    assert until((job / "exit_code").exists)
    (job / "exit_code").unlink()
    (job / "process").write_text(f"{bystander.pid} 1\n")
    assert states(running)[0] == "lost"
    assert running.run("stop", "--force").returncode == 0
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


def test_a_job_that_ends_at_once_is_reported_with_its_code_and_worker(slice_):
    behave(slice_, 2)
    slice_.run("setup")
    slice_.configure(POLL_SECONDS="1", **LOCAL)
    result = slice_.run("launch", "--", "--gin_file=x.gin")
    assert result.returncode == 1
    assert "dro-w-0 (exited with code 2), dro-w-1 (exited with code 2)" in result.stderr
    assert "a mistake in the command" in slice_.run("watch").stdout


def test_an_ended_job_is_started_again_and_appends_to_its_log(running):
    running.run("stop")
    result = running.run("launch", "--", "--gin_file=experiments/x.gin", NASTY)
    assert result.returncode == 0, result.stderr
    assert states(running) == ["running", "running"]
    log = (running.homes[0] / "jaxalign/jobs/dro/log").read_text()
    assert log.count("== ") == 2 and "saving" in log


def test_the_message_of_a_worker_without_jaxalign_names_the_remedy(slice_):
    result = slice_.run("launch", "--", "--gin_file=x.gin")
    assert result.returncode == 1
    assert "run setup.sh" in result.stderr


def test_metrics_and_checkpoints_on_the_slice_are_read_there(running):
    folder = running.folder / "my run"
    (folder / "checkpoints" / "40").mkdir(parents=True)
    (folder / "checkpoints" / "120").mkdir()
    (folder / "checkpoints" / "130.orbax-checkpoint-tmp").mkdir()
    (folder / "metrics.jsonl").write_text(
        '{"step": 10, "split": "train", "loss": 3}\n{"step": 10, "split": "validation", "loss": 2}\n'
        '{"step": 20, "split": "train", "loss": 1}\n'
    )
    running.configure(POLL_SECONDS="0", MOUNT_BUCKET="", MODEL_DIR=str(folder))
    lines = running.run("watch", "--lines=1").stdout.splitlines()
    assert [line.strip() for line in lines if '"split"' in line] == [
        '{"step": 20, "split": "train", "loss": 1}',
        '{"step": 10, "split": "validation", "loss": 2}',
    ]
    shell = f"source lib.sh; CONFIG_FILE={shlex.quote(str(running.work / 'tpu.env'))}; start; latest_checkpoint"
    result = running.bash(shell)
    assert result.stdout == "120\n", result.stderr


def test_a_bucket_is_mounted_once(slice_):
    for name, text in (
        ("mountpoint", '[ -e "$STAND_IN/mounted" ]\n'),
        ("sudo", "exit 0\n"),
        ("gcsfuse", 'echo "$@" >>"$STAND_IN/mounted"\n'),
    ):
        (slice_.programs / name).write_text(f"#!/bin/sh\n{text}")
        (slice_.programs / name).chmod(0o755)
    slice_.configure(POLL_SECONDS="0", MOUNT_BUCKET="my-bucket", MODEL_DIR="/gcs/my-bucket/run")
    assert slice_.run("setup").returncode == 0
    # The two stand-in workers share one machine.
    [line] = (slice_.folder / "mounted").read_text().splitlines()
    assert line.endswith("my-bucket /gcs/my-bucket")
