"""run.sh with preempted slices, with workers that end in every way, and with missing answers."""

import pytest

RUNNING, ABSENT, LOST = ["running", "-"], ["absent", "-"], ["lost", "-"]
ARGUMENTS = ("--", "--gin_file=experiments/x.gin")


def exited(code):
    return ["exited", str(code)]


def workers(*states):
    return {"workers": list(states)}


DONE = workers(exited(0), exited(0))


def test_from_nothing_to_done(cloud):
    cloud.set(
        queued="ABSENT",
        after_create="WAITING_FOR_RESOURCES",
        events=[{}, {"queued": "PROVISIONING"}, {"queued": "ACTIVE"}, {}, {}, DONE],
    )
    result = cloud.run("run", *ARGUMENTS)
    assert result.returncode == 0, result.stderr
    assert cloud.verbs() == ["create", "setup", "start"]
    assert "still exists and costs money" in result.stdout


def test_the_slice_is_deleted_when_done_only_if_asked_to(cloud):
    cloud.set(events=[DONE])
    assert cloud.run("run", "--yes", "--delete_when_done", *ARGUMENTS).returncode == 0
    assert cloud.verbs() == ["setup", "start", "delete"]


@pytest.mark.parametrize("state", ["SUSPENDED", "FAILED"])
def test_a_preempted_slice_is_named_deleted_requested_again_and_set_up(cloud, state):
    cloud.set(
        after_create="WAITING_FOR_RESOURCES",
        reason="no capacity",
        events=[{}, {"queued": "SUSPENDING"}, {"queued": state}, {"queued": "ACTIVE"}, {}, DONE],
    )
    result = cloud.run("run", "--yes", *ARGUMENTS)
    assert result.returncode == 0, result.stderr
    assert cloud.verbs() == ["setup", "start", "delete", "create", "setup", "start"]
    assert f"Delete the queued resource dro ({state}) and its nodes (dro)" in result.stdout
    assert "no capacity" in result.stdout


def test_a_preempted_node_of_an_active_queued_resource_is_replaced(cloud):
    cloud.set(events=[{}, {"node": "PREEMPTED"}, {}, DONE])
    assert cloud.run("run", "--yes", *ARGUMENTS).returncode == 0
    assert cloud.verbs() == ["setup", "start", "delete", "create", "setup", "start"]


def test_a_node_under_repair_is_waited_for(cloud):
    cloud.set(events=[{"node": "REPAIRING"}, {}, {"node": "READY"}, DONE])
    assert cloud.run("run", "--yes", *ARGUMENTS).returncode == 0
    assert cloud.verbs() == ["setup", "start"]


def test_nothing_is_deleted_without_yes_and_without_a_terminal(cloud):
    cloud.set(events=[{}, {"queued": "SUSPENDED"}])
    result = cloud.run("run", *ARGUMENTS)
    assert result.returncode == 1
    assert "delete" not in cloud.verbs()
    assert "give --yes" in result.stderr and "was not deleted" in result.stderr


@pytest.mark.parametrize("codes", [(76, 75), (0, 76)])
def test_a_stopped_job_is_launched_again_without_a_new_setup(cloud, codes):
    cloud.set(events=[{}, workers(*map(exited, codes)), {}, DONE])
    assert cloud.run("run", *ARGUMENTS).returncode == 0
    assert cloud.verbs() == ["setup", "start", "start"]


def test_a_machine_that_was_restarted_gets_the_job_again(cloud):
    cloud.set(events=[{}, workers(LOST, exited(76)), {}, DONE])
    assert cloud.run("run", *ARGUMENTS).returncode == 0
    assert cloud.verbs() == ["setup", "start", "start"]


def test_a_mistake_is_not_tried_again(cloud):
    cloud.set(events=[workers(exited(2), RUNNING)])
    result = cloud.run("run", *ARGUMENTS)
    assert result.returncode == 2
    assert cloud.verbs() == ["setup", "start", "stop"]
    assert "Correct it" in result.stderr


@pytest.mark.parametrize("code", [1, 139])
def test_a_defect_is_tried_again_a_few_times_only(cloud, code):
    cloud.configure(MAX_FAILURES_WITHOUT_PROGRESS=2)
    cloud.set(events=[workers(exited(code), exited(76))] * 3)
    result = cloud.run("run", *ARGUMENTS)
    assert result.returncode == 1
    assert cloud.verbs() == ["setup", "start", "start"]
    assert "2 times without a checkpoint" in result.stderr


def test_progress_between_defects_resets_the_count(cloud):
    cloud.configure(MAX_FAILURES_WITHOUT_PROGRESS=2)
    crash = workers(exited(1), exited(1))
    events = [{**crash, "checkpoints": list(range(0, step, 10))} for step in (20, 30, 30)]
    cloud.set(events=events)
    result = cloud.run("run", *ARGUMENTS)
    assert result.returncode == 1
    assert cloud.verbs().count("start") == 3
    assert "after step 20" in result.stderr


def test_launches_without_progress_are_limited(cloud):
    cloud.configure(MAX_LAUNCHES_WITHOUT_PROGRESS=2)
    cloud.set(checkpoints=[500], events=[workers(exited(75), exited(75))] * 9)
    result = cloud.run("run", *ARGUMENTS)
    assert result.returncode == 1
    assert cloud.verbs().count("start") == 2
    assert "2 launches without a checkpoint after step 500" in result.stderr


def test_preemptions_with_progress_are_not_limited(cloud):
    cloud.configure(MAX_LAUNCHES_WITHOUT_PROGRESS=2)
    events = [{"queued": "SUSPENDED", "checkpoints": [step]} for step in range(10, 50, 10)]
    # Between two preemptions, one poll of the new slice launches the job.
    cloud.set(events=[event for preemption in events for event in (preemption, {})] + [DONE])
    result = cloud.run("run", "--yes", *ARGUMENTS)
    assert result.returncode == 0, result.stderr
    assert cloud.verbs().count("delete") == len(events)


def test_a_request_that_always_fails_is_given_up(cloud):
    cloud.configure(MAX_LAUNCHES_WITHOUT_PROGRESS=2)
    cloud.set(queued="FAILED", after_create="FAILED", reason="no quota", events=[{}] * 9)
    result = cloud.run("run", "--yes", *ARGUMENTS)
    assert result.returncode == 1
    assert cloud.verbs() == ["delete", "create"] * 2


def test_workers_that_outlive_the_others_are_stopped_after_the_grace_and_launched_again(cloud):
    half = workers(exited(76), RUNNING)
    cloud.set(events=[half, half, {}, {}, DONE])
    assert cloud.run("run", *ARGUMENTS).returncode == 0
    assert cloud.verbs() == ["setup", "start", "stop", "start"]


def test_a_worker_without_the_job_is_launched(cloud):
    cloud.set(events=[{}, workers(RUNNING, ABSENT), {}, DONE])
    assert cloud.run("run", *ARGUMENTS).returncode == 0
    assert cloud.verbs() == ["setup", "start", "start"]


def test_a_running_job_is_watched_without_a_setup(cloud):
    cloud.set(workers=[RUNNING, RUNNING], events=[{}, {}, DONE])
    assert cloud.run("run", *ARGUMENTS).returncode == 0
    assert cloud.verbs() == ["start"]


def test_exit_codes_of_an_earlier_job_are_ignored(cloud):
    cloud.set(workers=[exited(2), exited(2)], events=[{}, DONE])
    assert cloud.run("run", *ARGUMENTS).returncode == 0
    assert cloud.verbs() == ["setup", "start"]


def test_lost_connections_are_survived(cloud):
    silent = {"queued": "NO_ANSWER"}
    mute = workers(["silent", "-"], RUNNING)
    cloud.set(events=[silent, silent, {"queued": "ACTIVE"}, mute, mute, DONE])
    assert cloud.run("run", *ARGUMENTS).returncode == 0
    assert cloud.verbs() == ["setup", "start"]


def test_no_answer_about_the_slice_for_long_ends_the_watch_and_deletes_nothing(cloud):
    cloud.set(events=[{"queued": "NO_ANSWER"}] + [{}] * 20)
    result = cloud.run("run", "--yes", *ARGUMENTS)
    assert result.returncode == 1
    assert "delete" not in cloud.verbs()
    assert "may still exist" in result.stderr


def test_workers_that_never_answer_are_replaced(cloud):
    mute = workers(["silent", "-"], RUNNING)
    cloud.set(events=[mute] + [{}] * 10 + [DONE])
    assert cloud.run("run", "--yes", *ARGUMENTS).returncode == 0
    assert cloud.verbs() == ["setup", "start", "delete", "create", "setup", "start"]


def test_mistakes_are_found_before_anything_is_created(cloud):
    cloud.set(queued="ABSENT")
    assert cloud.run("run").returncode == 2
    assert cloud.run("run", "--", "--gin.MODEL_DIR='x'").returncode == 2
    assert cloud.verbs() == []
