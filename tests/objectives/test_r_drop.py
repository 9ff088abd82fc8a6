"""R-Drop as an option of SFT: two passes with different dropout masks, and exactly SFT where there is nothing to compare."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.cli.gin_objectives import objective_from_gin
from jaxalign.networks.policy import Policy
from jaxalign.objectives.sft import SFT

WEIGHT = 1.5


@pytest.fixture(scope="module")
def noisy(toy):
    """The toy's policy with dropout, whose logits exist for a few tokens at a time."""
    return Policy(toy.policy.config.replace(dropout_rate=0.3), logits_chunk_size=20)


@pytest.fixture(scope="module")
def batch(toy):
    return toy.batch(2, per_row=2, rows=6, extra=3)


def test_it_equals_two_dense_passes_and_their_gradients(noisy, toy, batch):
    objective = SFT(policy=noisy, z_loss=1e-2, label_smoothing=0.1, r_drop_weight=WEIGHT)
    key, weights = jax.random.key(5), batch["decoder_loss_weights"]
    vocabulary = noisy.vocab_size

    def chunked(params):
        output = objective.loss(toy.params | {"policy": params}, batch, key)
        return output.loss_sum / output.weight, output.metrics["divergence_per_token"]

    def dense(params):
        log_probs, losses = [], []
        for each in jax.random.split(key):
            hidden = noisy.decode(params, batch, rng=each)
            kernel, scale, _ = noisy.projection(params)
            logits = scale * hidden @ kernel
            log_probs.append(jax.nn.log_softmax(logits))
            other = 0.1 / (vocabulary - 1)
            target = jax.nn.one_hot(batch["decoder_target_tokens"], vocabulary)
            target = target * (0.9 - other) + other
            entropy = -0.9 * np.log(0.9) - 0.1 * np.log(other)
            z_loss = 1e-2 * jax.nn.logsumexp(logits, axis=-1) ** 2
            losses.append(-jnp.sum(target * log_probs[-1], -1) - entropy + z_loss)
        first, second = log_probs
        there, back = jnp.exp(first) * (first - second), jnp.exp(second) * (second - first)
        total = sum(losses) / 2 + WEIGHT * jnp.sum(there + back, -1) / 2
        return jnp.sum(total * weights) / jnp.sum(weights)

    (value, divergence), gradient = jax.jit(jax.value_and_grad(chunked, has_aux=True))(
        toy.params["policy"]
    )
    expected, expected_gradient = jax.jit(jax.value_and_grad(dense))(toy.params["policy"])
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert divergence.total / divergence.weight > 1e-3
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        gradient,
        expected_gradient,
    )


def test_a_second_pass_is_made_only_for_a_weight_and_dropout(noisy, toy, batch, monkeypatch):
    """Stock SFT's numbers themselves are pinned by the golden step."""
    calls = []
    decode = Policy.decode
    monkeypatch.setattr(
        Policy, "decode", lambda *args, **kwargs: calls.append(1) or decode(*args, **kwargs)
    )
    key = jax.random.key(5)
    for policy, weight, rng, passes in (
        (noisy, WEIGHT, key, 2),
        (noisy, 0.0, key, 1),
        (noisy, WEIGHT, None, 1),
        (toy.policy, WEIGHT, key, 1),
    ):
        calls.clear()
        jax.eval_shape(SFT(policy=policy, r_drop_weight=weight).loss, toy.params, batch, rng)
        assert len(calls) == passes


def test_without_dropout_the_term_is_exactly_zero(toy, batch):
    losses = [SFT(policy=toy.policy, r_drop_weight=weight).loss for weight in (0.0, WEIGHT)]
    stock, found = jax.jit(lambda params, key: [loss(params, batch, key) for loss in losses])(
        toy.params, jax.random.key(5)
    )
    assert found.metrics["divergence_per_token"].total == 0
    assert found.loss_sum == stock.loss_sum


def test_a_token_outside_of_the_softmax_is_left_out_of_both_passes(toy, batch):
    policy = Policy(toy.policy.config.replace(dropout_rate=0.3), value_token=47)
    objective = SFT(policy=policy, label_smoothing=0.1, r_drop_weight=WEIGHT)
    output = jax.jit(objective.loss)(toy.params, batch, jax.random.key(5))
    assert np.isfinite(output.loss_sum) and 0 < output.loss_sum / output.weight < 50


def test_gin_files_set_the_weight(toy):
    assert objective_from_gin(["sft"], {}, policy=toy.policy).r_drop_weight == 0
    objective = objective_from_gin(["sft_r_drop"], {}, policy=toy.policy)
    assert objective.r_drop_weight == 1
    changed = objective_from_gin(["sft"], {"R_DROP_WEIGHT": 0.3}, policy=toy.policy)
    assert changed == dataclasses.replace(objective, r_drop_weight=0.3)
