"""A tiny T5 with batches, and training of any objective on any mesh of the eight fake devices."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxalign.data.batches import make_batch
from jaxalign.data.examples import make_example
from jaxalign.networks.config import T5Config
from jaxalign.networks.policy import Policy
from jaxalign.networks.value import ValueNetwork
from jaxalign.training import partitioning
from jaxalign.training.optimizers import adafactor
from jaxalign.training.state import (
    build_transformations,
    create_state,
    role_shardings,
    state_shardings,
)
from jaxalign.training.step import jit_train_step, make_train_step

CONFIG = T5Config(
    vocab_size=64,
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=32,
    num_encoder_layers=1,
    num_decoder_layers=1,
)


def _random_batch(seed, *, rows=8, responses=1):
    """Rows of one prompt of 3-8 tokens with responses of 2-6."""
    generator = np.random.default_rng(seed)

    def tokens(low, high):
        return [
            *generator.integers(2, CONFIG.vocab_size, generator.integers(low, high)).tolist(),
            1,
        ]

    made = [
        make_example(
            tokens(2, 8),
            [tokens(1, 6) for _ in range(responses)],
            generator.normal(size=responses),
            None,
            prompt_id=index + 1,
        )
        for index in range(rows)
    ]
    scores = generator.normal(size=(rows, responses)) - 15
    return make_batch(
        [[(index, example)] for index, example in enumerate(made)],
        num_rows=rows,
        input_length=8,
        target_length=6 * responses,
        examples_per_row=1,
        responses_per_example=responses,
        reference_log_probs=scores.astype(np.float32),
    )


@dataclasses.dataclass(frozen=True)
class World:
    policy: Policy
    value: ValueNetwork
    rows: int = 8

    def params(self):
        policy = self.policy.init(jax.random.key(0))
        reference = self.policy.init(jax.random.key(2))
        return {
            "policy": policy,
            "reference": reference,
            "value": self.value.from_policy(jax.random.key(1), policy),
        }

    def train(self, objective, shape, devices, *, steps=3, microbatches=1, optimizer=None):
        """Trains on a mesh; returns every step's metrics and the last state."""
        mesh = partitioning.make_mesh(shape, jax.devices()[:devices])
        roles = objective.trained()
        optimizer = optimizer or adafactor(1e-2)
        transformations = build_transformations(
            dict.fromkeys(roles, optimizer), objective.update_scales()
        )
        params = self.params()
        axes = {role: network.logical_axes() for role, network in roles.items()}
        state = create_state({role: params[role] for role in roles}, transformations)
        shardings = state_shardings(mesh, jax.eval_shape(lambda: state), axes)
        places = role_shardings(mesh, params["reference"], axes["policy"])
        frozen = {role: jax.device_put(params[role], places) for role in objective.frozen_roles()}
        responses = objective.responses_per_prompt or 1
        batches = [
            _random_batch(seed, rows=self.rows, responses=responses) for seed in range(steps)
        ]
        step = jit_train_step(
            make_train_step(objective, transformations, microbatches=microbatches),
            mesh,
            shardings,
            dict.fromkeys(frozen, places),
            batches[0],
        )
        state, history = jax.device_put(state, shardings), []
        for batch in batches:
            state, metrics = step(state, frozen, partitioning.put_batch(mesh, batch))
            history.append(
                {name: float(total / weight) for name, (total, weight) in metrics.items()}
            )
        return history, state


@pytest.fixture(scope="session")
def random_batch():
    """`random_batch(seed, rows=8, responses=1)`."""
    return _random_batch


@pytest.fixture(scope="session")
def world():
    return World(Policy(CONFIG), ValueNetwork(CONFIG))
