"""A tiny T5, batches made by the data pipeline's own code, and one step of any objective."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxalign.data.batches import make_batch
from jaxalign.data.examples import make_example
from jaxalign.networks.config import T5Config
from jaxalign.networks.policy import Policy
from jaxalign.networks.value import ValueNetwork
from jaxalign.training.optimizers import sgd
from jaxalign.training.state import build_transformations, create_state
from jaxalign.training.step import make_train_step

CONFIG = T5Config(
    vocab_size=48,
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=16,
    num_encoder_layers=1,
    num_decoder_layers=1,
    mlp_activations=("relu",),
)
SOURCE, TARGET = 8, 7


def examples(seed, count, responses):
    """Prompts of 3-8 tokens, responses of 2-7, all ending in EOS; every prompt another."""
    generator = np.random.default_rng(seed)

    def tokens(low, high):
        return [*generator.integers(2, 47, generator.integers(low, high)).tolist(), 1]

    return [
        make_example(
            tokens(2, SOURCE),
            [tokens(1, TARGET) for _ in range(responses)],
            generator.normal(size=responses),
            None,
            prompt_id=index + 11,
        )
        for index in range(count)
    ]


@dataclasses.dataclass(frozen=True)
class Toy:
    """A policy that has moved away from its reference, and the reference's scores."""

    policy: Policy
    params: dict

    def batch(self, responses=1, *, per_row=1, rows=None, moved=True, count=8, extra=0, seed=0):
        """`count` examples, `per_row` in a row; `extra` adds padding. Reference scores of `moved` parameters or of our own."""
        made = list(enumerate(examples(seed, count, responses)))
        layout = [made[start : start + per_row] for start in range(0, count, per_row)]
        batch = make_batch(
            layout,
            num_rows=rows or len(layout),
            input_length=per_row * SOURCE + extra,
            target_length=per_row * responses * TARGET + extra,
            examples_per_row=per_row,
            responses_per_example=responses,
        )
        role = "reference" if moved else "policy"
        scores = self.score(self.params[role], batch)
        return batch | {"reference_log_probs": scores.reshape(batch["response_mask"].shape)}

    def score(self, params, batch):
        return np.asarray(_score(self.policy, params, batch))


@jax.jit
def _nudged(params):
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    moved = [x + 0.05 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return structure.unflatten(moved)


_score = jax.jit(
    lambda policy, params, batch: policy.score(params, batch).log_probs, static_argnums=0
)


@pytest.fixture(scope="session")
def make_toy():
    def make(**changes):
        policy = Policy(CONFIG, **changes)
        params = policy.init(jax.random.key(0))
        value = ValueNetwork(CONFIG).init(jax.random.key(1))
        # A head that is not small, so that values matter.
        value["head"] = jax.tree.map(lambda leaf: leaf * 100 + 0.1, value["head"])
        return Toy(policy, {"policy": params, "reference": _nudged(params), "value": value})

    return make


@pytest.fixture(scope="session")
def toy(make_toy):
    return make_toy()


@dataclasses.dataclass(frozen=True)
class Step:
    """What one step of plain gradient descent at rate 1 returned: the gradient is what the parameters lost."""

    metrics: dict
    gradients: dict
    means: dict


@pytest.fixture(scope="session")
def run_step():
    """`run_step(objective, params by role, batch, microbatches=1)`."""

    def run(objective, params, batch, microbatches=1):
        trained = {role: params[role] for role in objective.trained()}
        frozen = {role: params[role] for role in objective.frozen_roles()}
        transformations = build_transformations({role: sgd(1.0) for role in trained}, {})
        step = make_train_step(objective, transformations, microbatches=microbatches)
        compiled = jax.jit(step)
        state, metrics = compiled(create_state(trained, transformations), frozen, batch)
        gradients = jax.tree.map(lambda old, new: np.asarray(old - new), trained, state.params)
        means = {
            name: float(total / weight) for name, (total, weight) in metrics.items() if weight > 0
        }
        return Step(metrics, gradients, means)

    return run
