"""A run that was killed and started again is the run that was never killed, bit for bit."""

import json
import shutil
import signal

import jax
import numpy as np
import pytest

from jaxalign.runs.checkpoints import restore_params
from jaxalign.runs.folder import Run
from jaxalign.runs.metrics import read_metrics

STEPS = 8


def finish(process, code=0):
    output, _ = process.communicate(timeout=600)
    assert process.returncode == code, output[-3000:]
    return output


@pytest.fixture(scope="module")
def whole(start_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    finish(start_run(folder, STEPS))
    return folder


@pytest.fixture(scope="module")
def resumed(start_run, whole):
    """Killed by SIGKILL at step 6, after checkpoint 4, then started again."""
    folder = whole.parent / "resumed"
    finish(start_run(folder, STEPS, kill_at=6), -signal.SIGKILL)
    assert not (folder / "checkpoints" / "8").exists() and not (folder / "summary.json").exists()
    finish(start_run(folder, STEPS))
    return folder


def measured(folder):
    """Every line of metrics.jsonl, without what depends on a clock."""
    return [
        {name: value for name, value in record.items() if not name.endswith("_per_second")}
        for record in read_metrics(folder / "metrics.jsonl")
    ]


def test_parameters_are_bit_identical(whole, resumed):
    for role in ("policy", "value"):
        one, other = (restore_params(folder, role, step=STEPS) for folder in (whole, resumed))
        jax.tree.map(np.testing.assert_array_equal, one, other)


def test_metrics_and_so_the_data_order_are_identical(whole, resumed):
    assert measured(resumed) == measured(whole)
    steps = [record["step"] for record in measured(whole) if record["split"] == "train"]
    assert steps == [3, 4, 6, 8]


def test_the_iterator_stands_at_the_same_example(whole, resumed):
    one, other = (
        json.loads((folder / "checkpoints" / "8" / "data" / "metadata").read_text())["iterator"]
        for folder in (whole, resumed)
    )
    assert one and one == other


def test_the_summary_of_a_resumed_run_is_complete(whole, resumed):
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (whole, resumed)]
    for summary in summaries:
        assert summary["step"] == STEPS
    assert summaries[0]["evaluation"] == summaries[1]["evaluation"]
    assert {"validation/loss", "probe/probed"} <= summaries[0]["evaluation"].keys()


def test_networks_are_read_back_from_the_run_folder(whole):
    trained = Run(whole).policy()
    policy, params, info = trained.network, trained.params, trained.run.description
    assert policy.config.emb_dim == 8 and info.method == "dro_v" and trained.step == STEPS
    assert info.feature_lengths == {"inputs": 16, "targets": 16}
    found = Run(whole).value()
    value, value_params = found.network, found.params
    assert value.config == policy.config
    assert value_params["head"]["kernel"].shape == (8, 1)
    kernel = restore_params(whole, "policy")["decoder"]["logits_dense"]["kernel"]
    np.testing.assert_array_equal(params["decoder"]["logits_dense"]["kernel"], kernel)


def test_training_moved_the_parameters(whole):
    early, late = (restore_params(whole, "policy", step=step) for step in (4, 8))
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), early, late)
    assert max(jax.tree.leaves(moved)) > 1e-4


def test_a_run_goes_on_when_what_it_began_with_is_gone(start_run, whole, tmp_path):
    start, folder = tmp_path / "start", tmp_path / "run"
    shutil.copytree(whole, start)
    finish(start_run(folder, STEPS, 6, start), -signal.SIGKILL)
    shutil.rmtree(start)
    assert "is no longer needed" in finish(start_run(folder, STEPS, 0, start))
    origin = json.loads((folder / "networks.json").read_text())["initial_checkpoint"]
    assert origin["path"] == str(start) and origin["step"] == STEPS
