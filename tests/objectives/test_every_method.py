"""Laws for every method that is one loss function, as its own gin file configures it."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.cli.gin_objectives import objective_from_gin
from jaxalign.data.batches import make_batch
from jaxalign.data.examples import make_example
from jaxalign.losses.requirements import requirements_of
from jaxalign.networks.protocols import PolicyNetwork
from jaxalign.networks.scoring import TokenStatistics, response_scores
from jaxalign.objectives.responses import Pairwise
from jaxalign.parallel import partitioning
from jaxalign.parallel.partitioning import MeshShape, make_mesh
from jaxalign.training.optimizers import sgd
from jaxalign.training.state import build_transformations, create_state, state_shardings
from jaxalign.training.step import jit_train_step, make_train_step

VOCABULARY, WIDTH, SCORES, SAMPLES = 24, 6, 3, 5
SOURCE, TARGET = 8, 7


@dataclasses.dataclass(frozen=True)
class TablePolicy(PolicyNetwork):
    """log pi(y_t | y_{t-1}, first prompt token), from a table; embeddings of prompt tokens serve as encoder states."""

    def init(self, rng):
        one, two, three = jax.random.split(rng, 3)
        return {
            "bigrams": jax.random.normal(one, (VOCABULARY, VOCABULARY)) * 0.5,
            "prompts": jax.random.normal(two, (VOCABULARY, VOCABULARY)) * 0.5,
            "embeddings": jax.random.normal(three, (VOCABULARY, WIDTH)),
        }

    def encode(self, params, batch, *, rng=None):
        del rng
        return params["embeddings"][batch["encoder_input_tokens"]]

    def score(self, params, batch, *, rng=None):
        del rng
        responses = batch["response_mask"].shape[2]
        prompts = (batch["decoder_segment_ids"] - 1) // responses + 1
        member = batch["encoder_segment_ids"][:, None, :] == prompts[:, :, None]
        first = jnp.take_along_axis(
            batch["encoder_input_tokens"], jnp.argmax(member, axis=-1), axis=1
        )
        logits = params["bigrams"][batch["decoder_input_tokens"]] + params["prompts"][first]
        targets = batch["decoder_target_tokens"][..., None]
        log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), targets, axis=-1)[..., 0]
        return response_scores(TokenStatistics(log_probs, log_probs, None), batch)


def make_table_batch(
    policy, params, responses, *, count=8, per_row=1, rows=None, extra=0, reference=None
):
    """`count` examples with every field a loss may ask for, a function of the example and not of where it lies."""
    generator = np.random.default_rng(responses)

    def tokens(low, high):
        return [*generator.integers(2, VOCABULARY, generator.integers(low, high)).tolist(), 1]

    made = [
        make_example(
            tokens(2, SOURCE),
            [tokens(1, TARGET) for _ in range(responses)],
            np.sort(generator.uniform(0.05, 0.95, size=responses))[::-1],
            None,
            prompt_id=index + 11,
        )
        for index in range(count)
    ]
    numbered = list(enumerate(made))
    batch = make_batch(
        [numbered[start : start + per_row] for start in range(0, count, per_row)],
        num_rows=rows or -(-count // per_row),
        input_length=per_row * SOURCE + extra,
        target_length=per_row * responses * TARGET + extra,
        examples_per_row=per_row,
        responses_per_example=responses,
        reward_mean=0.5,
        reward_std=0.3,
    )
    tables = {
        "advantages": generator.normal(size=(count, responses)),
        "density_ratios": generator.uniform(0.2, 3, size=(count, responses)),
        "margin_rewards": generator.normal(size=(count, responses)),
        "margin_log_probs": generator.normal(size=(count, responses)) - 9,
        "scores": generator.normal(size=(count, responses, SCORES)),
        "reference_rewards": generator.normal(size=(count, SAMPLES)),
    }
    ids = batch["example_ids"]
    for name, table in tables.items():
        values = table[ids].astype(np.float32)
        batch[name] = np.where((ids >= 0).reshape(*ids.shape, *[1] * (values.ndim - 2)), values, 0)
    scores = policy.score(params if reference is None else reference, batch)
    batch["reference_log_probs"] = np.asarray(scores.log_probs).reshape(
        batch["response_mask"].shape
    )
    return batch


OBJECTIVES = Path(__file__).resolve().parents[2] / "gin_configs" / "objectives"
POLICY = TablePolicy()
PARAMS = jax.jit(POLICY.init)(jax.random.key(0))
REFERENCE = jax.jit(POLICY.init)(jax.random.key(1))


def files():
    """Gin files whose objective is a structural one; included files count."""
    found = []
    for path in sorted(OBJECTIVES.glob("*.gin")):
        text = path.read_text()
        if "OBJECTIVE = @responses." in text or (
            "include 'objectives/" in text
            and "OBJECTIVE = @responses."
            in (OBJECTIVES / text.split("include 'objectives/")[1].split("'")[0]).read_text()
        ):
            found.append(path.stem)
    return found


@dataclasses.dataclass(frozen=True)
class Step:
    """Gradients (what gradient descent at rate 1 took away), means of metrics, and statistics after the step."""

    gradients: dict
    means: dict
    statistics: dict


def run_step(objective, batch, microbatches=1, devices=1):
    transformations = build_transformations({"policy": sgd(1.0)}, {})
    params = {"policy": PARAMS}
    statistics = objective.initial_statistics()
    if statistics:
        params["statistics"] = statistics
    frozen = dict.fromkeys(objective.frozen_roles(), REFERENCE)
    mesh = make_mesh(MeshShape(), jax.devices()[:devices])
    state = create_state(params, transformations)
    shardings = state_shardings(mesh, jax.eval_shape(lambda: state), {})
    step = make_train_step(objective, transformations, microbatches=microbatches)
    replicated = jax.tree.map(lambda _: partitioning.replicated_sharding(mesh), frozen)
    state = jax.device_put(jax.tree.map(np.asarray, state), shardings)
    compiled = jit_train_step(step, mesh, shardings, replicated, batch)
    after, metrics = compiled(state, frozen, partitioning.make_global_batch(mesh, batch))
    return Step(
        jax.tree.map(
            lambda old, new: np.asarray(old) - np.asarray(new), PARAMS, after.params["policy"]
        ),
        {name: float(total / weight) for name, (total, weight) in metrics.items() if weight > 0},
        jax.tree.map(np.asarray, after.params.get("statistics", {})),
    )


def assert_same(found, expected):
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected.gradients))
    assert scale > 1e-7, "the gradient vanishes, so this test would say nothing"
    for part in ("gradients", "means", "statistics"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 * scale),
            getattr(found, part),
            getattr(expected, part),
        )


@dataclasses.dataclass(frozen=True)
class Case:
    """A configured method and how many responses a prompt has for it."""

    name: str
    objective: object
    responses: int

    def batch(self, **layout):
        return make_table_batch(POLICY, PARAMS, self.responses, reference=REFERENCE, **layout)


@pytest.fixture(scope="module", params=files())
def case(request):
    """The objective of a gin file, on the table policy."""
    objective = objective_from_gin([request.param], {}, policy=POLICY)
    least = requirements_of(objective.loss_function).min_responses
    responses = objective.responses_per_prompt or max(least, 4 if least > 1 else 2)
    return Case(request.param, objective, responses)


@pytest.fixture(scope="module")
def plain(case):
    return run_step(case.objective, case.batch())


def test_microbatches_equal_one_batch(case, plain):
    assert_same(run_step(case.objective, case.batch(), microbatches=4), plain)


def test_eight_devices_equal_one(case, plain):
    assert_same(run_step(case.objective, case.batch(), devices=8), plain)


def test_packing_padding_and_holes_change_nothing(case, plain):
    packed = {k: np.array(v) for k, v in case.batch(per_row=2, rows=6, extra=3).items()}
    holes = packed["response_mask"][4:]
    assert not holes.any()
    packed["encoder_input_tokens"][4:] = 5
    packed["decoder_target_tokens"][4:] = 6
    for name, values in packed.items():
        if values.ndim >= 3 and values.dtype == np.float32 and name != "response_mask":
            values[4:] = 1e4
    assert_same(run_step(case.objective, packed, microbatches=2), plain)


def test_missing_fields_are_named(case):
    batch = case.batch()
    case.objective.check_batch(batch)
    for field in case.objective.required_fields():
        with pytest.raises(ValueError, match=f"objective {case.objective.name} needs .*{field}"):
            case.objective.check_batch({name: batch[name] for name in batch if name != field})


def test_what_a_method_cannot_use_is_refused(case):
    """One response where several are compared, one prompt where prompts are contrasted, numbers outside their range."""
    needs = requirements_of(case.objective.loss_function)
    if isinstance(case.objective, Pairwise):
        other = make_table_batch(POLICY, PARAMS, 1)
        with pytest.raises(ValueError, match=rf"needs {case.responses} response\(s\) per prompt"):
            case.objective.check_batch(other)
    elif needs.min_responses > 1:
        with pytest.raises(ValueError, match=f"at least {needs.min_responses} per prompt"):
            case.objective.check_batch(make_table_batch(POLICY, PARAMS, 1))
    batch = case.batch()
    if needs.distinct_prompts:
        alone = batch | {"prompt_ids": np.full_like(batch["prompt_ids"], 11)}
        with pytest.raises(ValueError, match="holds a single one"):
            case.objective.check_batch(alone)
    for name in (*needs.probabilities, *needs.nonnegative):
        field = name.removeprefix("chosen_").removeprefix("rejected_")
        with pytest.raises(ValueError, match=f"needs {name} that are"):
            case.objective.check_batch(batch | {field: batch[field] - 2})
