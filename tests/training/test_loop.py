"""The loop, with a step that computes nothing: metrics, evaluation, checkpoints, and stopping on NaN."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import UserError
from jaxalign.objectives.base import Metric, Objective
from jaxalign.parallel.partitioning import MeshShape, make_mesh
from jaxalign.parallel.preemption import Preempted
from jaxalign.runs.checkpoints import find_checkpoint
from jaxalign.runs.metrics import keep_lines_up_to, read_metrics
from jaxalign.training.checkpointing import Checkpointer, CheckpointPolicy
from jaxalign.training.loop import Loop, LoopConfig, NonFiniteError
from jaxalign.training.metric_writing import MetricWriter
from jaxalign.training.state import TrainState
from jaxalign.training.throughput import Count, Throughput

BATCH = {
    "response_mask": np.ones((2, 1, 1), np.float32),
    "encoder_segment_ids": np.array([[1, 1, 0], [1, 0, 0]], np.int32),
    "decoder_segment_ids": np.array([[1, 0], [1, 1]], np.int32),
}


def fresh_state():
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params={"policy": {"w": jnp.zeros(3)}},
        opt_state={"policy": {}},
    )


def make_step(finite=lambda number: True):
    """Adds 1 to the parameters; the loss of step n is n."""

    def step(state, frozen, batch):
        number = int(state.step) + 1
        one = jnp.ones((), jnp.float32)
        metrics = {
            "loss": Metric(2.0 * number * one, 2.0 * one),
            "finite": Metric(float(finite(number)) * one, one),
        }
        params = jax.tree.map(lambda leaf: leaf + 1, state.params)
        return state.replace(step=state.step + 1, params=params), metrics

    return step


class StopAt:
    """A notice that comes at a step."""

    def __init__(self, number):
        self.number = number

    def should_stop(self, step):
        return step == self.number


@pytest.fixture
def run(tmp_path, world):
    """`run(train_steps, ...)` trains and returns the loop."""

    def launch(
        steps, *, step=None, evaluators=None, policy=None, batches=None, stop_at=None, **config
    ):
        policy = policy or CheckpointPolicy(period=2, asynchronous=False)
        checkpointer = Checkpointer(tmp_path, policy)
        latest = checkpointer.latest_step() or 0
        mesh = make_mesh(MeshShape(), jax.devices()[:1])
        state = fresh_state()
        if latest:
            shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
            state, _ = checkpointer.restore(jax.eval_shape(lambda: state), shardings)
        with MetricWriter(tmp_path, resume_step=latest) as writer:
            loop = Loop(
                step=step or make_step(),
                objective=Objective(policy=world.policy),
                mesh=mesh,
                config=LoopConfig(
                    train_steps=steps,
                    checkpoint=policy,
                    progress=False,
                    **({"log_period": 1} | config),
                ),
                model_dir=tmp_path,
                writer=writer,
                checkpointer=checkpointer,
                metadata={"note": "test"},
                evaluators=evaluators or {},
                frozen={},
                notice=StopAt(stop_at),
            )
            try:
                loop.state = loop.run(state, batches or iter(lambda: BATCH, None), lambda: {"n": 1})
            finally:
                checkpointer.close()
        return loop

    return launch


def lines(folder, split):
    return [(r["step"], r.get("loss")) for r in read_metrics(folder / "metrics.jsonl", split)]


def test_metrics_are_written_every_period_and_at_checkpoints(run, tmp_path):
    run(7, log_period=3, policy=CheckpointPolicy(period=5, asynchronous=False))
    assert lines(tmp_path, "train") == [(3, 2.0), (5, 4.5), (6, 6.0), (7, 7.0)]


def test_rates_count_what_is_not_padding(run, tmp_path):
    loop = run(4)
    assert (loop.throughput.examples, loop.throughput.tokens) == (8, 24)
    assert Count.of(BATCH) == (2, 6)
    last = read_metrics(tmp_path / "metrics.jsonl", "train")[-1]
    assert last["tokens_per_second"] == pytest.approx(3 * last["examples_per_second"])


def test_the_first_step_and_pauses_do_not_count_as_training():
    throughput = Throughput()
    throughput.add(Count(2, 6))
    assert throughput.report() == {} and throughput.examples == 2
    throughput.restart()
    throughput.add(Count(2, 6))
    assert throughput.report()["examples_per_second"] > 0


def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(run, tmp_path):
    with pytest.raises(NonFiniteError, match=r"at step 4; the last good checkpoint is step 2"):
        run(10, step=make_step(lambda number: number < 4))
    assert find_checkpoint(tmp_path) == (tmp_path, 2)
    assert [step for step, _ in lines(tmp_path, "train")] == [1, 2, 3]


def test_nan_before_the_first_checkpoint_says_so(run):
    with pytest.raises(NonFiniteError, match="no checkpoint was written yet"):
        run(10, step=make_step(lambda number: False))


def test_a_resumed_run_goes_on_without_repeating_lines(run, tmp_path):
    with pytest.raises(NonFiniteError):
        run(6, step=make_step(lambda number: number < 4))
    loop = run(6)
    assert int(loop.state.step) == 6
    np.testing.assert_array_equal(loop.state.params["policy"]["w"], 6.0)
    assert lines(tmp_path, "train") == [(number, float(number)) for number in range(1, 7)]


def test_a_finished_run_reports_what_it_measured(run):
    evaluators = {"validation": lambda step, params: {"loss": 0.5}}
    first = run(4, evaluators=evaluators)
    again = run(4, evaluators=evaluators, batches=iter([]))
    assert again.evaluations == first.evaluations == {"validation/loss": 0.5}
    assert again.last_training_metrics["loss"] == first.last_training_metrics["loss"] == 4.0


def test_evaluation_runs_on_its_period_and_at_the_end(run, tmp_path):
    seen = []

    def evaluator(step, params):
        seen.append((step, float(params["policy"]["w"][0])))
        return {"loss": 1.0}

    run(5, evaluators={"validation": evaluator}, eval_period=2)
    assert seen == [(2, 2.0), (4, 4.0), (5, 5.0)]
    assert lines(tmp_path, "validation") == [(2, 1.0), (4, 1.0), (5, 1.0)]


@pytest.mark.parametrize(("mode", "best"), [("min", 4), ("max", 6)])
def test_the_best_checkpoint_is_kept_besides_the_latest(run, tmp_path, mode, best):
    scores = {2: 3.0, 4: 1.0, 6: 5.0, 8: 2.0, 10: 2.5}
    policy = CheckpointPolicy(
        period=2, keep_latest=1, best_metric="validation/score", best_mode=mode, asynchronous=False
    )
    loop = run(
        10, policy=policy, evaluators={"validation": lambda step, params: {"score": scores[step]}}
    )
    kept = sorted(
        int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()
    )
    assert kept == [best, 10]
    assert loop.best == {"step": best, "metric": "validation/score", "value": scores[best]}
    assert find_checkpoint(tmp_path) == (tmp_path, best)
    assert find_checkpoint(tmp_path, "latest") == (tmp_path, 10)
    with pytest.raises(UserError, match=r"no checkpoint at step 8 .* there are \["):
        find_checkpoint(tmp_path, 8)


def test_equal_scores_keep_the_checkpoint_that_best_json_names(run, tmp_path):
    policy = CheckpointPolicy(
        period=2, keep_latest=1, best_metric="validation/score", asynchronous=False
    )
    loop = run(8, policy=policy, evaluators={"validation": lambda step, params: {"score": 1.0}})
    assert (tmp_path / "checkpoints" / str(loop.best["step"])).exists()


def test_training_ends_when_patience_does_and_a_larger_one_goes_on(run, tmp_path):
    scores = {2: 3.0, 4: 1.0, 6: 5.0, 8: 2.0, 10: 2.5, 12: 0.5, 14: 1.0, 16: 1.0}
    policy = CheckpointPolicy(
        period=2, keep_latest=1, best_metric="validation/score", asynchronous=False
    )
    options = {
        "policy": policy,
        "evaluators": {"validation": lambda step, params: {"score": scores[step]}},
    }
    loop = run(16, patience=2, **options)
    assert (int(loop.state.step), loop.best["step"], loop.out_of_patience) == (8, 4, True)
    # The same command trains no further.
    assert int(run(16, patience=2, **options).state.step) == 8
    loop = run(16, patience=4, **options)
    assert (int(loop.state.step), loop.best["step"], loop.out_of_patience) == (16, 12, False)
    assert int(run(16, patience=0, **options).state.step) == 16
    with pytest.raises(UserError, match=r"patience is 1 and checkpoint.best_metric is None"):
        LoopConfig(train_steps=2, patience=1, checkpoint=CheckpointPolicy(best_metric=None))


def test_the_start_is_evaluated_once_and_is_no_best_checkpoint(run, tmp_path):
    policy = CheckpointPolicy(period=2, best_metric="validation/loss", asynchronous=False)
    seen = []

    def evaluator(step, params):
        seen.append(step)
        return {"loss": float(step)}

    options = {"evaluators": {"validation": evaluator}, "policy": policy, "eval_at_start": True}
    with pytest.raises(UserError, match="ended after 1 of 4 steps"):
        run(4, batches=iter([BATCH]), **options)
    # Nothing was saved, so the run starts again.
    loop = run(4, **options)
    assert seen == [0, 2, 4] and loop.best["step"] == 2
    assert lines(tmp_path, "validation") == [(0, 0.0), (2, 2.0), (4, 4.0)]


def test_an_unknown_best_metric_is_refused_with_the_names_there_are(run):
    policy = CheckpointPolicy(period=2, best_metric="validation/bleu", asynchronous=False)
    with pytest.raises(
        UserError, match="'validation/bleu' was not measured; available: validation/loss"
    ):
        run(4, policy=policy, evaluators={"validation": lambda step, params: {"loss": 1.0}})


SCORES = {2: 2.0, 4: 1.0, 6: 3.0, 8: 4.0}


class TestEvaluationAndStopping:
    POLICY = CheckpointPolicy(
        period=2, keep_latest=1, best_metric="validation/score", asynchronous=False
    )

    def evaluators(self, seen, killed_at=None):
        def evaluate(step, params):
            seen.append((step, float(params["policy"]["w"][0])))
            if step == killed_at:
                raise KeyboardInterrupt
            return {"score": SCORES[step]}

        return {"validation": evaluate}

    def whole(self, tmp_path):
        records = read_metrics(tmp_path / "metrics.jsonl")
        scored = [(r["step"], r["score"]) for r in records if r["split"] == "validation"]
        assert scored == list(SCORES.items())
        trained = [r["step"] for r in records if r["split"] == "train"]
        assert trained == list(range(1, 9))
        kept = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
        assert kept == [4, 8]
        assert json.loads((tmp_path / "best.json").read_text())["step"] == 4

    def test_told_to_stop_a_run_saves_at_once_and_evaluates_when_it_goes_on(self, run, tmp_path):
        seen = []
        options = {"policy": self.POLICY, "evaluators": self.evaluators(seen), "eval_period": 2}
        with pytest.raises(Preempted):
            run(8, stop_at=4, **options)
        assert seen == [(2, 2.0)] and find_checkpoint(tmp_path, "latest") == (tmp_path, 4)
        run(8, **options)
        assert seen == [(step, float(step)) for step in (2, 4, 6, 8)]
        self.whole(tmp_path)

    @pytest.mark.parametrize("step", [4, 8])
    def test_killed_in_an_evaluation_a_run_has_the_checkpoint_of_that_step(
        self, run, tmp_path, step
    ):
        seen = []
        with pytest.raises(KeyboardInterrupt):
            run(8, policy=self.POLICY, evaluators=self.evaluators(seen, killed_at=step))
        assert find_checkpoint(tmp_path, "latest") == (tmp_path, step)
        run(8, policy=self.POLICY, evaluators=self.evaluators(seen))
        assert [number for number, _ in seen].count(step) == 2
        self.whole(tmp_path)

    def test_what_was_evaluated_is_not_evaluated_again(self, run, tmp_path):
        seen = []
        options = {"policy": self.POLICY, "evaluators": self.evaluators(seen)}
        with pytest.raises(Preempted):
            run(8, stop_at=5, **options)
        run(8, **options)
        assert [number for number, _ in seen] == [2, 4, 6, 8]
        self.whole(tmp_path)

    def test_a_step_without_the_metric_does_not_take_an_earlier_ones(self, run, tmp_path):
        def evaluate(step, params):
            return {"score": float(step)} if step < 8 else {"other": 1.0}

        policy = dataclasses.replace(self.POLICY, best_mode="max")
        with pytest.raises(UserError, match=r"not measured; available: validation/other"):
            run(8, policy=policy, evaluators={"validation": evaluate})
        assert json.loads((tmp_path / "best.json").read_text())["step"] == 6

    def test_killed_in_its_last_evaluation_a_run_still_deletes_the_best_before(self, run, tmp_path):
        policy = dataclasses.replace(self.POLICY, best_mode="max")
        with pytest.raises(KeyboardInterrupt):
            run(8, policy=policy, evaluators=self.evaluators([], killed_at=8))
        run(8, policy=policy, evaluators=self.evaluators([]))
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["8"]

    def test_what_cannot_be_deleted_is_left_and_the_run_ends_well(self, run, tmp_path, monkeypatch):
        def refuse(path, target):
            raise OSError("device or resource busy")

        monkeypatch.setattr(Path, "rename", refuse)
        policy = dataclasses.replace(self.POLICY, best_mode="max")
        loop = run(8, policy=policy, evaluators=self.evaluators([]))
        assert int(loop.state.step) == 8 and loop.best["step"] == 8

    def test_no_checkpoint_to_go_on_from_is_refused(self):
        with pytest.raises(
            UserError, match=r"CheckpointPolicy.keep_latest is 0; it must be at least 1"
        ):
            dataclasses.replace(self.POLICY, keep_latest=0)

    def test_several_best_stay_across_launches(self, run, tmp_path):
        policy = dataclasses.replace(self.POLICY, keep_best=2)
        options = {"policy": policy, "evaluators": self.evaluators([])}
        with pytest.raises(Preempted):
            run(8, stop_at=5, **options)
        run(8, **options)
        assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [2, 4, 8]


def test_data_that_end_too_early_are_reported(run):
    with pytest.raises(UserError, match="the training data ended after 3 of 5 steps"):
        run(5, batches=iter([BATCH] * 3))


def test_torn_and_later_lines_are_dropped_on_resume(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = [json.dumps({"step": step, "split": "train"}) for step in (1, 2, 3)]
    path.write_text("\n".join(whole) + '\n{"step": 4, "spl')
    assert [record["step"] for record in read_metrics(path)] == [1, 2, 3]
    keep_lines_up_to(path, 2)
    assert path.read_text() == whole[0] + "\n" + whole[1] + "\n"
    assert read_metrics(tmp_path / "missing.jsonl") == []


def test_nan_is_never_the_best(run, tmp_path):
    scores = {2: float("nan"), 4: 0.5, 6: float("nan")}
    policy = CheckpointPolicy(period=2, best_metric="validation/score", asynchronous=False)
    evaluators = {"validation": lambda step, params: {"score": scores[step]}}
    loop = run(6, evaluators=evaluators, policy=policy, eval_period=2)
    assert loop.best["step"] == 4


def test_the_best_of_a_run_that_was_here_before_is_forgotten(run, tmp_path):
    (tmp_path / "best.json").write_text(
        json.dumps({"step": 40, "metric": "validation/score", "value": -1.0})
    )
    policy = CheckpointPolicy(period=2, best_metric="validation/score", asynchronous=False)
    evaluators = {"validation": lambda step, params: {"score": float(step)}}
    loop = run(4, evaluators=evaluators, policy=policy, eval_period=2)
    assert loop.best["step"] == 2
