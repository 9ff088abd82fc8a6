"""SPA: extrapolated logits by chunks, what is suspect, and that without suspects it is DPO."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import UserError
from jaxalign.losses.pairwise import dpo_loss
from jaxalign.losses.self_annotation import extrapolated_token_log_probs
from jaxalign.networks.policy import Policy
from jaxalign.objectives.responses import Pairwise
from jaxalign.objectives.spa import SPA
from jaxalign.training.optimizers import sgd
from jaxalign.training.state import build_transformations, create_state
from jaxalign.training.step import make_train_step

BETA = 0.5


@pytest.fixture(scope="module")
def batch(toy):
    return toy.batch(2)


@pytest.fixture(scope="module")
def log_ratios(toy, batch):
    """Extrapolated log-ratios ``[8, 2]`` of an objective."""

    def compute(objective, params=toy.params, batch=batch):
        found = jax.jit(objective.extrapolated_log_ratios)
        return np.asarray(found(params, batch))

    return compute


@pytest.fixture(scope="module")
def expected(toy, batch):
    """The same by full logits and the pure function, strength 0.5, and with strength 0."""

    @jax.jit
    def compute(params, batch):
        logits = [
            toy.policy.module.apply(
                {"params": params[role]},
                *(batch[f"{side}_tokens"] for side in ("encoder_input", "decoder_input")),
                batch["decoder_target_tokens"],
                batch["encoder_segment_ids"],
                batch["decoder_segment_ids"],
                jnp.minimum(batch["decoder_segment_ids"], 1),
            )
            for role in ("policy", "reference")
        ]
        results = []
        for strength, first in ((0.5, logits[0]), (0.0, logits[0]), (0.0, logits[1])):
            log_probs = extrapolated_token_log_probs(
                first, logits[1], batch["decoder_target_tokens"], strength=strength
            )
            results.append(
                jnp.stack(
                    [
                        jnp.where(batch["decoder_segment_ids"] == segment, log_probs, 0).sum(-1)
                        for segment in (1, 2)
                    ],
                    axis=1,
                )
            )
        return results[0] - results[2], results[1] - results[2]

    return [np.asarray(array) for array in compute(toy.params, batch)]


@pytest.mark.parametrize("chunk", [None, 8, 24])
def test_chunks_of_positions_give_what_full_logits_give(toy, log_ratios, expected, chunk):
    """8 rows of 14 tokens: one position at a time, three (which do not divide the length), or all."""
    policy = dataclasses.replace(toy.policy, logits_chunk_size=chunk)
    found = log_ratios(SPA(policy=policy, strength=0.5, total_steps=10))
    np.testing.assert_allclose(found, expected[0], rtol=1e-5, atol=1e-5)
    assert np.abs(found - expected[1]).max() > 1e-2


def test_without_strength_they_are_the_log_ratios(toy, log_ratios, expected):
    found = log_ratios(SPA(policy=toy.policy, strength=0.0, total_steps=10))
    np.testing.assert_allclose(found, expected[1], rtol=1e-5, atol=1e-5)


def test_packing_changes_nothing(toy, log_ratios):
    objective = SPA(policy=toy.policy, total_steps=10)
    packed = toy.batch(2, per_row=2, rows=6, extra=3)
    alone, together = log_ratios(objective), log_ratios(objective, batch=packed)
    np.testing.assert_allclose(together[:8], alone, rtol=1e-5, atol=1e-5)
    assert not together[8:].any()


def test_the_reserved_value_token_has_no_part_in_it(make_toy, batch, log_ratios):
    """Its logit, however large, changes nothing."""
    world = make_toy(value_token=47)
    assert isinstance(world.policy, Policy)
    loud = jax.tree.map(np.array, world.params)
    loud["policy"]["decoder"]["logits_dense"]["kernel"][:, 47] += 50
    plain, changed = (
        log_ratios(SPA(policy=world.policy, total_steps=10), p, batch) for p in (world.params, loud)
    )
    np.testing.assert_allclose(plain, changed, rtol=1e-5, atol=1e-5)


def run(objective, params, batch, steps=1, microbatches=1):
    """Gradients of the last step of gradient descent at rate 0, means of its metrics, and statistics."""
    transformations = build_transformations({"policy": sgd(1e-30)}, {})
    step = jax.jit(
        make_train_step(objective, transformations, microbatches=microbatches),
    )
    start = {"policy": params["policy"], "statistics": objective.initial_statistics()}
    state = create_state(start, transformations)
    for _ in range(steps):
        state, metrics = step(state, {"reference": params["reference"]}, batch)
    means = {n: float(total / weight) for n, (total, weight) in metrics.items() if weight > 0}
    return means, state.params["statistics"]


@pytest.fixture(scope="module")
def spa(toy):
    return SPA(
        policy=toy.policy,
        beta=BETA,
        alpha=0.3,
        strength=0.5,
        window=16,
        fraction=0.3,
        warmup_fraction=0.25,
        total_steps=4,
    )


def test_suspects_have_the_lowest_margins_of_the_window(toy, batch, spa, log_ratios):
    """Two steps of eight pairs fill the window of sixteen: before that and before the warm-up ends it is DPO."""
    first, statistics = run(spa, toy.params, batch)
    assert first["suspects"] == 0 and "suspect_threshold" not in first
    assert statistics["filled"] == 8 and statistics["steps"] == 1
    second, statistics = run(spa, toy.params, batch, steps=2)
    extrapolated = log_ratios(spa)
    margins = BETA * (extrapolated[:, 0] - extrapolated[:, 1])
    np.testing.assert_allclose(statistics["recent"], np.tile(margins, 2), rtol=1e-5, atol=1e-6)
    ranks = np.sort(np.tile(margins, 2))
    threshold = (ranks[4] + ranks[5]) / 2
    np.testing.assert_allclose(second["suspect_threshold"], threshold, rtol=1e-5)
    suspects = margins <= threshold
    assert second["suspects"] == suspects.mean() > 0
    reference = batch["reference_log_probs"][:, 0]
    h = BETA * (toy.score(toy.params["policy"], batch) - reference) @ np.array([1.0, -1.0])
    losses = np.logaddexp(0, -h) + 0.3 * suspects * h
    np.testing.assert_allclose(second["loss"], losses.mean(), rtol=1e-5)


def test_a_window_that_the_first_step_fills_makes_no_suspects_before_the_warm_up_ends(toy, batch):
    """At the start every margin is the threshold, so all pairs would be suspects."""
    objective = SPA(policy=toy.policy, window=8, total_steps=10)
    start = {**toy.params, "reference": toy.params["policy"]}
    means, statistics = run(objective, start, batch)
    assert statistics["filled"] == 8 and means["suspects"] == 0
    unguarded, _ = run(dataclasses.replace(objective, warmup_fraction=0.0), start, batch)
    assert unguarded["suspects"] == 1


def test_without_suspects_it_is_dpo(toy, batch, spa):
    """Loss, margin up to beta, and the gradient's norm, live and cached."""
    dpo = Pairwise(policy=toy.policy, loss_function=functools.partial(dpo_loss, beta=BETA))
    expected, _ = run(dpo, toy.params, batch)
    for reference in ("live", "cached"):
        objective = dataclasses.replace(spa, reference=reference)
        found, _ = run(objective, toy.params, batch)
        for name in ("loss", "policy/gradient_norm", "accuracy", "log_ratio_squared"):
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)
        np.testing.assert_allclose(found["margin"], BETA * expected["margin"], rtol=1e-4)


def test_microbatches_equal_one_batch(toy, batch, spa):
    # The threshold is between two margins: at a margin, rounding decides whether that pair is a suspect.
    spa = dataclasses.replace(spa, fraction=3.5 / 15)
    whole, split = (run(spa, toy.params, batch, steps=2, microbatches=k) for k in (1, 4))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), split, whole)


def test_the_reference_is_always_needed_and_options_are_checked(toy):
    for reference in ("live", "cached"):
        assert SPA(policy=toy.policy, reference=reference, total_steps=10).frozen_roles() == (
            "reference",
        )
    for options, message in (
        ({"alpha": 1.5}, r"SPA\.alpha"),
        ({"beta": 0.0}, r"SPA\.beta"),
        ({"strength": -0.5}, r"SPA\.strength"),
        ({"warmup_fraction": -0.1}, r"SPA\.warmup_fraction"),
        ({"total_steps": -1}, r"SPA\.total_steps"),
        ({"window": 1}, r"SPA\.window must be at least 2"),
        ({"fraction": 2.0}, r"RunningQuantile\.fraction"),
    ):
        with pytest.raises(UserError, match=message):
            SPA(policy=toy.policy, **({"total_steps": 10} | options))
    with pytest.raises(UserError, match=r"spa needs 2 response\(s\) per prompt"):
        SPA(policy=toy.policy, reference="live", total_steps=10).check_batch(toy.batch(1))
