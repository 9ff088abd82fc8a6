"""The actions of each script on the slice, its confirmations, and its messages if there is nothing to do."""

import pytest

from tests.tpu_scripts.conftest import SCRIPTS_AND_ARGUMENTS, TRAIN, dry_runs, printed_commands


def test_a_dry_run_prints_every_command_and_runs_none(cloud):
    for commands in dry_runs(cloud):
        assert commands
    assert cloud.calls() == []


def test_a_dry_run_prints_the_commands_that_are_run(cloud):
    for script, arguments, queued in (
        ("create", (), "ABSENT"),
        ("setup", (), "ACTIVE"),
        ("launch", TRAIN, "ACTIVE"),
        ("delete", ("--yes",), "ACTIVE"),
    ):
        cloud.set(queued=queued)
        printed = printed_commands(cloud.run(script, "--dry_run", *arguments))
        before = len(cloud.calls("gcloud"))
        cloud.run(script, *arguments)
        done = [call for call in cloud.calls("gcloud")[before:] if "auth" not in call]
        # A describe after the action is not an action.
        assert done[: len(printed)] == printed, script


@pytest.mark.parametrize(
    ("provisioning", "flag"), [("spot", "--spot"), ("reserved", "--reserved"), ("on_demand", None)]
)
def test_create_asks_for_the_kind_of_slice(cloud, provisioning, flag):
    cloud.set(queued="ABSENT")
    cloud.configure(PROVISIONING=provisioning)
    assert cloud.run("create").returncode == 0
    [call] = cloud.calls("gcloud", "compute", "tpus", "queued-resources", "create")
    assert {"--spot", "--reserved"} & set(call) == ({flag} if flag else set())
    assert "--node-id=dro" in call


def test_create_of_what_exists_says_so(cloud):
    result = cloud.run("create")
    assert result.returncode == 0 and "exists already and is ACTIVE" in result.stdout
    assert cloud.verbs() == []


def test_create_refuses_a_failed_request(cloud):
    cloud.set(queued="FAILED", reason="no quota")
    result = cloud.run("create")
    assert result.returncode == 1
    assert "is FAILED: no quota; delete it with delete.sh" in result.stderr and cloud.verbs() == []


def test_create_waits_if_asked_to(cloud):
    cloud.set(queued="ABSENT", after_create="ACCEPTED", events=[{}, {"queued": "ACTIVE"}])
    assert cloud.run("create", "--wait").returncode == 0
    assert cloud.state()["events"] == []


def test_several_slices_are_one_queued_resource_with_a_node_each(cloud):
    cloud.configure(NUM_SLICES="3")
    cloud.set(queued="ABSENT")
    cloud.run("create")
    [call] = cloud.calls("gcloud", "compute", "tpus", "queued-resources", "create")
    assert {"--node-count=3", "--node-prefix=dro"} <= set(call)
    cloud.run("setup")
    calls = cloud.calls("gcloud", "compute", "tpus", "tpu-vm", "ssh")
    assert [call[5] for call in calls if "setup" in call[-1]] == ["dro-0", "dro-1", "dro-2"]


def test_delete_names_what_it_deletes_and_asks(cloud):
    question = (
        "Delete the queued resource dro (ACTIVE) and its nodes (dro) in us-west4-a of my-project?"
    )
    for answer in ("n\n", "\n", "", "yess\n"):
        result = cloud.run("delete", answer=answer)
        assert result.returncode == 1 and "nothing was deleted" in result.stderr
    nobody = cloud.run("delete")
    assert nobody.returncode == 2 and question in nobody.stderr and "--yes" in nobody.stderr
    assert cloud.verbs() == []
    assert cloud.run("delete", answer="y\n").returncode == 0
    assert cloud.verbs() == ["delete"]


def test_delete_warns_of_a_run_folder_on_the_slice(cloud):
    cloud.configure(MODEL_DIR="/home/me/run")
    assert "on the slice's own disks" in cloud.run("delete", "--yes").stdout


@pytest.mark.parametrize("script", ["delete", "stop"])
def test_an_absent_slice_is_reported_as_absent(cloud, script):
    cloud.set(queued="ABSENT")
    result = cloud.run(script)
    assert result.returncode == 0 and "there is no queued resource dro" in result.stdout
    assert cloud.verbs() == []


@pytest.mark.parametrize("script", ["setup", "launch"])
def test_scripts_that_need_a_slice_name_the_remedy_without_one(cloud, script):
    arguments = TRAIN if script == "launch" else ()
    cloud.set(queued="ABSENT")
    assert "run create.sh" in cloud.run(script, *arguments).stderr
    cloud.set(queued="PROVISIONING")
    assert "is PROVISIONING, not ACTIVE" in cloud.run(script, *arguments).stderr
    cloud.set(node="PREEMPTED")
    assert "node dro is PREEMPTED, not READY" in cloud.run(script, *arguments).stderr


@pytest.mark.parametrize("script", ["create", "watch", "delete", "stop"])
def test_a_missing_login_and_a_missing_answer_are_one_line(cloud, script):
    cloud.set(account="")
    result = cloud.run(script)
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        f"{script}.sh: gcloud has no active account; run: gcloud auth login"
    ]
    cloud.set(queued="NO_ANSWER")
    if script != "watch":
        result = cloud.run(script, "--yes")
        assert result.returncode == 1 and "no route to host" in result.stderr
    assert cloud.verbs() == []


def test_missing_gcloud_is_one_line(cloud):
    for name in ("bash", "dirname", "sed"):
        target = cloud.programs / name
        target.symlink_to(cloud.bash(f"command -v {name}").stdout.strip())
    (cloud.programs / "gcloud").rename(cloud.programs / "other")
    result = cloud.bash(f"cd '{cloud.work}'; PATH='{cloud.programs}' \"$OLDPWD/create.sh\"")
    assert result.returncode == 1
    assert result.stderr.startswith("create.sh: gcloud is not installed; see ")
    assert len(result.stderr.splitlines()) == 1


def test_launch_reports_the_workers_that_do_not_run(cloud):
    cloud.set(starts=[["exited", "1"]], workers=[["running", "-"], ["absent", "-"]])
    result = cloud.run("launch", *TRAIN)
    assert result.returncode == 1
    assert "not running it: dro-w-1 (exited with code 1)" in result.stderr
    cloud.set(workers=[["running", "-"], ["silent", "-"]], starts=[["silent", "-"]])
    result = cloud.run("launch", *TRAIN)
    assert result.returncode == 1 and "1 workers did not answer" in result.stderr


def test_watch_shows_every_worker_and_the_last_metrics_of_each_split(cloud):
    cloud.set(
        reached=True,
        workers=[["running", "-"], ["exited", "76"], ["silent", "-"]],
        metrics='{"step": 1, "split": "train", "loss": 3}\n{"step": 2, "split": "train", "loss": 2}\n{"step": 2, "split": "validation"}',
    )
    output = cloud.run("watch").stdout
    assert "1 of 3 workers are running it" in output and "1 workers did not answer" in output
    assert "lost another worker" in output
    assert '"step": 1' not in output and '"loss": 2' in output and '"validation"' in output


def test_the_metrics_of_a_deleted_slice_are_read_from_the_bucket(cloud):
    cloud.set(queued="SUSPENDED", metrics='{"step": 2, "split": "train"}')
    assert '"step": 2' in cloud.run("watch").stdout
    [call] = cloud.calls("gcloud", "storage", "cat")
    assert "gs://bucket/run/metrics.jsonl" in call


def test_gclouds_messages_on_connections_are_not_repeated(cloud):
    cloud.set(reached=True, workers=[["running", "-"]])
    assert "Attempting" not in cloud.run("watch").stderr
    cloud.set(reached=True, workers=[["running", "-"]], ssh_error="ssh: permission denied")
    assert "ssh: permission denied" in cloud.run("watch").stderr


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("create", ("--dryrun",), "unknown option --dryrun"),
        ("create", ("dro",), "unexpected argument dro"),
        ("create", TRAIN, "takes no arguments after --"),
        ("create", ("--wait=maybe",), "--wait is a switch"),
        ("watch", ("--lines",), "--lines needs a value"),
        ("watch", ("--lines=x",), "--lines must be a number"),
        ("launch", (), "give the arguments of jaxalign train after --"),
        ("launch", ("--", "train", "--gin_file=x"), "start after 'jaxalign train'"),
        ("launch", ("--", "--gin.MODEL_DIR='x'"), "MODEL_DIR is set in tpu.env"),
        ("launch", ("--", "--gin_search_paths=x"), "not uploaded"),
    ],
)
def test_mistakes_are_one_line_and_code_2(cloud, script, arguments, message):
    result = cloud.run(script, *arguments)
    assert result.returncode == 2 and message in result.stderr
    assert len(result.stderr.splitlines()) == 1 and cloud.calls() == []


@pytest.mark.parametrize("script", sorted({script for script, _ in SCRIPTS_AND_ARGUMENTS}))
def test_help_shows_the_usage(cloud, script):
    result = cloud.run(script, "--help")
    assert result.returncode == 0 and f"usage: tpu_scripts/{script}.sh" in result.stdout
    assert "shellcheck" not in result.stdout
