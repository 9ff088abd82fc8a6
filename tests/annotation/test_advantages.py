"""The value of the reference policy, fitted by regression, and the advantages that are stored from it."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.annotation.advantages import advantages
from jaxalign.data import cache
from jaxalign.data.pipeline import DatasetSettings, make_dataset
from jaxalign.data.task_cache import TaskCache
from jaxalign.data.task_data import TaskData
from jaxalign.errors import UserError
from jaxalign.losses.value_regression import value_regression_loss
from jaxalign.networks.config import T5Config
from jaxalign.networks.policy import Policy
from jaxalign.networks.protocols import PromptValuePredictor
from jaxalign.networks.value import ValueNetwork
from jaxalign.networks.value_variants import ZeroValue
from jaxalign.objectives.sft import SFT
from jaxalign.objectives.value_regression import ValueRegression
from jaxalign.runs import checkpoints
from jaxalign.runs.folder import Run
from jaxalign.training import run
from jaxalign.training.build import split_params
from jaxalign.training.checkpointing import CheckpointPolicy
from jaxalign.training.loop import LoopConfig
from jaxalign.training.optimizers import adamw
from jaxalign.training.start import StartFrom

CONFIG = T5Config(
    vocab_size=272,
    emb_dim=8,
    num_heads=1,
    head_dim=8,
    mlp_dim=8,
    num_encoder_layers=1,
    num_decoder_layers=1,
    mlp_activations=("relu",),
)
LENGTHS = {"inputs": 16, "targets": 16}
NO_POLICY = Policy(CONFIG)


@dataclasses.dataclass(frozen=True)
class TableValue(PromptValuePredictor):
    """One learned number a prompt id, times ``trunk``."""

    max_value: float | None = None

    def init(self, rng):
        del rng
        return {"head": jnp.array([0.0, 0.5, -1.0]), "trunk": jnp.ones(())}

    def values(self, params, batch, *, rng=None):
        del rng
        return params["trunk"] * params["head"][batch["prompt_ids"].reshape(-1)]


def batch_of(prompt_ids, rewards, mask):
    rewards = np.asarray(rewards, np.float32)[:, None]
    return {
        "prompt_ids": np.asarray(prompt_ids, np.int32)[:, None],
        "response_mask": np.asarray(mask, np.float32)[:, None],
        "rewards": rewards,
        "feedback": 2 * rewards + 1,
    }


BATCH = batch_of([1, 2, 2, 0], [[1, 3], [2, 9], [4, 0], [0, 0]], [[1, 1], [1, 0], [1, 1], [0, 0]])


def regression(value=None, **options):
    return ValueRegression(policy=NO_POLICY, value=value or TableValue(), **options)


def gradient(objective, batch, params):
    def loss(params):
        output = objective.loss({"value": params}, batch, None)
        return output.loss_sum / output.weight

    return jax.grad(loss)(params)


class TestTheLoss:
    def test_it_is_the_squared_error_without_gradient_to_the_target(self):
        values, targets = jnp.array([[1.0, -2.0]]), jnp.array([[3.0, -2.0]])
        np.testing.assert_array_equal(value_regression_loss(values, targets), [[4.0, 0.0]])
        one, two = jax.grad(lambda *a: value_regression_loss(*a).sum(), argnums=(0, 1))(
            values, targets
        )
        np.testing.assert_array_equal(one, [[-4.0, 0.0]])
        np.testing.assert_array_equal(two, 0)

    def test_it_computes_in_float32(self):
        losses = value_regression_loss(
            jnp.ones((1, 1), jnp.bfloat16), jnp.full((1, 1), 1.0078125, jnp.bfloat16)
        )
        assert losses.dtype == jnp.float32
        assert losses[0, 0] == 0.0078125**2


class TestTheObjective:
    def test_it_is_the_mean_over_the_responses_there_are(self):
        objective = regression()
        params = objective.value.init(None)
        output = objective.loss({"value": params}, BATCH, None)
        errors = [1 - 0.5, 3 - 0.5, 2 + 1, 4 + 1, 0 + 1]
        assert output.weight == 5
        np.testing.assert_allclose(output.loss_sum, np.square(errors).sum(), rtol=1e-6)
        means = objective.summarize(
            {name: float(m.total / m.weight) for name, m in output.metrics.items()}
        )
        assert means["loss"] == pytest.approx(np.square(errors).mean())
        assert means["target"] == pytest.approx(2.0)
        explained = 1 - np.square(errors).mean() / np.var([1, 3, 2, 4, 0])
        assert means["value_r_squared"] == pytest.approx(explained)

    def test_its_minimum_is_the_mean_reward_of_each_prompt(self):
        best = {"head": jnp.array([0.0, 2.0, 2.0]), "trunk": jnp.ones(())}
        found = gradient(regression(), BATCH, best)
        np.testing.assert_allclose(found["head"], 0, atol=1e-7)

    def test_raw_feedback_is_fitted_where_asked_for(self):
        best = {"head": jnp.array([0.0, 5.0, 5.0]), "trunk": jnp.ones(())}
        found = gradient(regression(units="feedback"), BATCH, best)
        np.testing.assert_allclose(found["head"], 0, atol=1e-6)

    def test_parts_of_a_batch_add_up_to_it(self):
        objective = regression()
        params = {"value": objective.value.init(None)}
        parts = [{name: array[i : i + 2] for name, array in BATCH.items()} for i in (0, 2)]
        outputs = [objective.loss(params, part, None) for part in parts]
        whole = objective.loss(params, BATCH, None)
        assert sum(part.weight for part in outputs) == whole.weight
        np.testing.assert_allclose(
            sum(part.loss_sum for part in outputs), whole.loss_sum, rtol=1e-6
        )

    def test_freezing_the_trunk_leaves_the_head_to_train(self):
        params = {"value": TableValue().init(None)}
        trained, frozen = split_params(regression(freeze_trunk=True), params)
        assert trained == {"value": {"head": params["value"]["head"]}}
        assert frozen == {"value": {"trunk": params["value"]["trunk"]}}
        assert split_params(regression(), params) == (params, {})

    def test_only_the_value_is_trained_and_nothing_else_is_read(self):
        objective = regression()
        assert set(objective.trained()) == {"value"}
        assert objective.frozen_roles() == ()
        assert objective.required_fields() == ("rewards",)
        assert regression(units="feedback").required_fields() == ("feedback",)


class TestRefusals:
    def test_unknown_units(self):
        with pytest.raises(UserError, match="units must be 'rewards' or 'feedback', not 'stars'"):
            regression(units="stars")

    def test_a_bounded_value_of_standardised_rewards(self):
        with pytest.raises(UserError, match=r"max_value=1 .*units = 'feedback'"):
            regression(TableValue(max_value=1.0))

    def test_feedback_outside_the_range_of_a_bounded_value(self):
        objective = regression(TableValue(max_value=9.0), units="feedback")
        # The 19 stands where there is no response.
        assert BATCH["feedback"].max() == 19
        objective.check_batch(BATCH)
        low = BATCH | {"feedback": BATCH["feedback"] - 3}
        with pytest.raises(UserError, match=r"max_value=9, but this batch has the feedback -2"):
            objective.check_batch(low)

    def test_a_task_without_feedback(self):
        batch = {name: array for name, array in BATCH.items() if name != "rewards"}
        with pytest.raises(UserError, match="value_regression needs the batch field rewards"):
            regression().check_batch(batch)

    def test_freezing_a_value_that_is_all_head(self):
        with pytest.raises(
            UserError, match="needs a network with a 'head'; ZeroValue has no parameters"
        ):
            regression(ZeroValue(), freeze_trunk=True)

    def test_a_range_that_is_none(self):
        with pytest.raises(ValueError, match="max_value is 0"):
            ValueNetwork(CONFIG, max_value=0.0)


def write_task(folder, prompts, *, offset=0.0, seed=0):
    """Triplets whose feedback is the prompt's length plus noise, times ten."""
    generator = np.random.default_rng(seed)
    rows = [
        {
            "prompt": "a" * (1 + i % 9) + str(i),
            "response": f"r{k}",
            "feedback": offset + 10 * (i % 9) + 10 * float(generator.normal()),
        }
        for i in range(prompts)
        for k in range(2)
    ]
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A reference policy, a value network on its frozen trunk, and a task to compute advantages for."""
    folder = tmp_path_factory.mktemp("advantages")
    path = write_task(folder, 60)
    data = TaskData(
        task="a", cache_dir=str(folder / "cache"), feature_lengths=LENGTHS, train_file=str(path)
    )

    def train(name, objective, steps, data=data, best_metric="validation/loss", **options):
        run.train(
            model_dir=str(folder / name),
            objective=objective,
            data=data,
            optimizers={"policy": adamw(0.1)},
            loop=LoopConfig(
                train_steps=steps,
                eval_period=2,
                checkpoint=CheckpointPolicy(period=2, best_metric=best_metric),
                progress=False,
            ),
            batch_size=16,
            **options,
        )

    without = dataclasses.replace(data, eval_split="")
    train("sft", SFT(policy=Policy(CONFIG)), 1, without, best_metric=None)
    objective = ValueRegression(
        policy=Policy(CONFIG), value=ValueNetwork(CONFIG), freeze_trunk=True
    )
    train("value", objective, 6, start_from=StartFrom(str(folder / "sft")))
    (folder / "other").mkdir()
    other = write_task(folder / "other", 40, offset=500.0, seed=1)
    cache.cache(
        "b", str(folder / "other" / "cache"), train_file=str(other), responses_per_example=2
    )
    return folder


def values_by_prompt(folder):
    """V in raw feedback for every prompt of the other task, one prompt a row, by the checkpoint itself."""
    trained = Run(folder / "value").value()
    network, params, info = trained.network, trained.params, trained.run.description
    found = {}
    for split in ("train", "validation"):
        data = TaskCache(str(folder / "other" / "cache")).split(split)
        settings = DatasetSettings(
            feature_lengths=LENGTHS,
            batch_size=4,
            shuffle=False,
            num_epochs=1,
            drop_remainder=False,
        )
        for batch in make_dataset(TaskCache(data.path), split, settings):
            values = np.asarray(network.values(params, batch)).astype(np.float64)
            for index, value in zip(batch["example_ids"][:, 0], values, strict=True):
                if index >= 0:
                    raw = value * info.reward.std + info.reward.mean
                    found[split, int(index)] = raw
    return found


class TestARun:
    def test_the_trunk_stays_the_reference_policys_and_the_head_learns(self, trained):
        policy = Run(trained / "sft").policy().params
        found = Run(trained / "value", "latest").value()
        value, info = found.params, found.run.description
        for part in ("encoder", "token_embedder"):
            jax.tree.map(np.testing.assert_array_equal, value[part], policy[part])
        assert np.any(np.asarray(value["head"]["bias"]) != 0)
        assert info.units == "rewards"
        assert "policy" not in info.networks

    def test_the_best_checkpoint_is_that_of_the_lowest_validation_loss(self, trained):
        best = json.loads((trained / "value" / "best.json").read_text())
        assert best["metric"] == "validation/loss"
        assert checkpoints.find_checkpoint(trained / "value")[1] == best["step"]


class TestTheCommand:
    @pytest.mark.parametrize("units", ["rewards", "feedback"])
    def test_advantages_are_feedback_minus_value(self, trained, units, capsys):
        """Computed packed; compared with one prompt a row. The two tasks are standardised differently."""
        folder = str(trained / "other" / "cache")
        shares = advantages(
            value_checkpoint=str(trained / "value"), cache_dir=folder, name=units, units=units
        )
        values = values_by_prompt(trained)
        metadata = TaskCache(folder).metadata
        scale = metadata.reward_statistics.std if units == "rewards" else 1.0
        for split in ("train", "validation"):
            found = TaskCache(folder).stored(split, units)
            stored, info = found.values, found.info
            positive = []
            for index, example in enumerate(TaskCache(folder).split(split)):
                expected = (example.feedback - values[split, index]) / scale
                np.testing.assert_allclose(
                    stored[index, : len(expected)], expected, rtol=1e-4, atol=1e-4
                )
                positive.extend(expected > 0)
            assert shares[split] == pytest.approx(np.mean(positive))
            assert info["units"] == units
            assert info["feedback_per_unit"] == scale
            assert info["positive_fraction"] == shares[split]
        assert "responses have a positive advantage" in capsys.readouterr().out

    def test_training_reads_and_samples_them(self, trained):
        folder = str(trained / "other" / "cache")
        advantages(value_checkpoint=str(trained / "value"), cache_dir=folder, name="used")
        stored = TaskCache(folder).stored("train", "used").values
        data = TaskData(
            task="b",
            cache_dir=folder,
            feature_lengths=LENGTHS,
            stored={"advantages": "used"},
            sampling="positive",
        )
        data.prepare()
        kept = data.sampled.describe()["kept_examples"]
        assert kept == int((stored > 0).any(axis=1).sum())
        batch = next(iter(data.training_dataset(4, 0, None)))
        ids = batch["example_ids"][:, 0]
        np.testing.assert_array_equal(batch["advantages"][:, 0], stored[ids])

    def test_what_it_cannot_compute_is_refused(self, trained, tmp_path):
        folder, value = str(trained / "other" / "cache"), str(trained / "value")

        def compute(cache_dir=folder, **options):
            advantages(
                **({"value_checkpoint": value, "cache_dir": cache_dir, "name": "x"} | options)
            )

        with pytest.raises(UserError, match="units must be 'rewards' or 'feedback'"):
            compute(units="reward")
        with pytest.raises(UserError, match="no split 'test'; it has train, validation"):
            compute(splits=["test"])
        with pytest.raises(UserError, match="has no value network; its roles: policy"):
            compute(value_checkpoint=str(trained / "sft"))
        path = tmp_path / "s.jsonl"
        lines = [json.dumps({"prompt": f"p{i}", "response": "r"}) for i in range(30)]
        path.write_text("\n".join(lines))
        plain, other = str(tmp_path / "plain"), str(tmp_path / "other")
        cache.cache("s", plain, kind="seq2seq", train_file=str(path))
        with pytest.raises(
            UserError, match=r"advantages need feedback, and .* \(it has: no fields"
        ):
            compute(cache_dir=plain)
        data = str(trained / "other" / "data.jsonl")
        cache.cache("b", other, train_file=data, vocabulary="bytes", extra_ids=5)
        with pytest.raises(UserError, match="tokenised with another vocabulary than the run"):
            compute(cache_dir=other)


class TestABoundedValue:
    def test_it_is_the_sigmoid_of_the_head_times_the_maximum(self, random_batch):
        batch = random_batch(0)
        free = ValueNetwork(CONFIG)
        params = free.init(jax.random.key(0))
        bounded = dataclasses.replace(free, max_value=4.0)
        one, two = jax.jit(lambda p: (bounded.values(p, batch), free.values(p, batch)))(params)
        np.testing.assert_allclose(one, 4 * jax.nn.sigmoid(two), rtol=1e-6)

    def test_it_is_read_back_with_its_range_and_unit(self, trained, tmp_path):
        """A run of feedback in [0, 1], whose advantages need no mean and deviation."""
        path = tmp_path / "unit.jsonl"
        rows = [{"prompt": f"p{i}", "response": "r", "feedback": i % 5 / 4} for i in range(40)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        folder = str(tmp_path / "cache")
        value = ValueNetwork(CONFIG, max_value=1.0)
        run.train(
            model_dir=str(tmp_path / "run"),
            objective=regression(value, units="feedback"),
            data=TaskData(
                task="u", cache_dir=folder, feature_lengths=LENGTHS, train_file=str(path)
            ),
            optimizers={"policy": adamw(1e-2)},
            loop=LoopConfig(train_steps=1, progress=False),
            batch_size=8,
        )
        found = Run(tmp_path / "run").value()
        assert found.network.max_value == 1.0
        assert found.run.description.units == "feedback"
        advantages(
            value_checkpoint=str(tmp_path / "run"),
            cache_dir=folder,
            name="a",
            units="feedback",
            splits=["train"],
        )
        stored = TaskCache(folder).stored("train", "a").values
        feedback = [e.feedback[0] for e in TaskCache(folder).split("train")]
        values = np.asarray(feedback) - stored[:, 0]
        assert ((values > 0.2) & (values < 0.8)).all()
