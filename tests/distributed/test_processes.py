"""Two processes train like one, stop together when one receives SIGTERM, and continue bit for bit."""

import json
import signal

import pytest

from jaxalign.runs.metrics import read_metrics

STEPS = 8
STOPPED, LOST_PROCESS = 75, 76


@pytest.fixture(scope="module")
def alone(start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    start(folder, STEPS, processes=1, devices=4).finish(0)
    return folder


@pytest.fixture(scope="module")
def together(start, alone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    start(folder, STEPS, processes=2, devices=2).finish(0)
    return folder


def test_two_processes_have_the_trajectory_of_one(runs, alone, together):
    runs.assert_close(alone, together, STEPS)
    runs.assert_measured_alike(alone, together)
    assert runs.position(together, STEPS) == runs.position(alone, STEPS)


def test_counts_are_those_of_the_global_batch(alone, together):
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (alone, together)]
    for name in ("step", "examples", "tokens"):
        assert summaries[0][name] == summaries[1][name] > 0


def test_a_run_has_one_identity(together):
    run_id = json.loads((together / "networks.json").read_text())["run_id"]
    for step in (4, 8):
        metadata = together / "checkpoints" / str(step) / "metadata" / "metadata"
        assert json.loads(metadata.read_text())["run_id"] == run_id


@pytest.fixture(scope="module")
def stopped(start, together, tmp_path_factory):
    """The second process received SIGTERM after step 2; then both were started again."""
    folder = tmp_path_factory.mktemp("stopped")
    job = start(folder, STEPS, processes=2, devices=2, only={1: {"term_at": 2, "pause": 2.0}})
    outputs = job.finish(STOPPED)
    saved = max(int(path.name) for path in (folder / "checkpoints").iterdir())
    assert 2 <= saved < STEPS
    assert f"saved step {saved} of {STEPS}" in outputs[0]
    assert "saved step" not in outputs[1]
    assert not (folder / "summary.json").exists()
    start(folder, STEPS, processes=2, devices=2).finish(0)
    return folder


def test_sigterm_to_one_process_stops_all_and_nothing_is_lost(runs, together, stopped):
    runs.assert_identical(together, stopped, STEPS)
    assert runs.measured(stopped) == runs.measured(together)
    assert runs.position(stopped, STEPS) == runs.position(together, STEPS)


@pytest.mark.faults
def test_four_processes_have_the_trajectory_of_one(runs, start, tmp_path):
    """The run trains policy and value networks."""
    one, four = tmp_path / "one", tmp_path / "four"
    start(one, STEPS, processes=1, devices=4, method="dro_v").finish(0)
    start(four, STEPS, processes=4, devices=1, method="dro_v", mesh={"data": 2, "fsdp": 2}).finish(
        0
    )
    runs.assert_close(one, four, STEPS)


@pytest.mark.faults
def test_a_tensor_axis_across_processes_gives_them_the_same_rows(runs, start, alone, tmp_path):
    start(tmp_path, STEPS, processes=2, devices=1, mesh={"data": 1, "tensor": 2}).finish(0)
    runs.assert_close(alone, tmp_path, STEPS)
    assert runs.position(tmp_path, STEPS) == runs.position(alone, STEPS)


@pytest.mark.faults
@pytest.mark.parametrize("victim", [0, 1])
def test_a_job_that_is_started_again_after_a_kill_loses_nothing(
    runs, start, together, tmp_path, victim
):
    only = {victim: {"kill_at": 5, "saved_first": 4}}
    job = start(tmp_path, STEPS, processes=2, devices=2, only=only)
    codes = [LOST_PROCESS, LOST_PROCESS]
    codes[victim] = 128 + signal.SIGKILL
    outputs = job.finish(*codes)
    assert "launch all processes again" in outputs[1 - victim].splitlines()[-1]
    assert (tmp_path / "checkpoints" / "4").exists()
    start(tmp_path, STEPS, processes=2, devices=2).finish(0)
    runs.assert_identical(together, tmp_path, STEPS)
    assert runs.measured(tmp_path) == runs.measured(together)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"processes": 2, "devices": 2}, {"processes": 1, "devices": 4, "mesh": {"fsdp": 4}}),
        ({"processes": 1, "devices": 1}, {"processes": 4, "devices": 1, "mesh": {"data": 4}}),
        (
            {"processes": 4, "devices": 1, "mesh": {"fsdp": 2, "tensor": 2}},
            {"processes": 2, "devices": 2, "mesh": {"data": 4}},
        ),
    ],
)
def test_another_number_of_processes_and_another_mesh_continue_in_the_same_order(
    runs, start, alone, tmp_path, first, second
):
    start(tmp_path, 4, **first).finish(0)
    start(tmp_path, STEPS, **second).finish(0)
    assert runs.position(tmp_path, STEPS) == runs.position(alone, STEPS)
    runs.assert_close(alone, tmp_path, STEPS)
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl", "train")] == [3, 4, 6, 8]


@pytest.mark.faults
def test_reference_scores_and_checks_of_the_whole_batch(runs, start, tmp_path):
    """KTO reads stored scores, which the processes compute together, and checks prompts across the rows of all processes."""
    one, two = tmp_path / "one", tmp_path / "two"
    start(one, 4, processes=1, devices=4, method="kto", cache=str(tmp_path / "a")).finish(0)
    start(two, 4, processes=2, devices=2, method="kto", cache=str(tmp_path / "b")).finish(0)
    runs.assert_measured_alike(one, two)


@pytest.mark.faults
def test_all_processes_report_a_mistake_with_its_own_code(start, tmp_path):
    outputs = start(tmp_path, STEPS, processes=2, devices=2, mesh={"data": 3}).finish(2)
    assert all("devices" in output.splitlines()[-1] for output in outputs)


@pytest.mark.faults
def test_the_command_line_starts_a_job(train_command, tmp_path):
    """Only the first process prints the summary; a mistake gives one line and exit code 2."""
    outputs = train_command(2, tmp_path / "run").finish(0)
    assert ["finished at step 2" in output for output in outputs] == [True, False]
    assert (tmp_path / "run" / "checkpoints" / "2").exists()
    outputs = train_command(2, tmp_path / "other", "--gin.BATCH_SIZE=7").finish(2)
    assert all(
        output.splitlines()[-1].startswith("jaxalign: batch size 7 is not a multiple")
        for output in outputs
    )
