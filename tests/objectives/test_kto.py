"""KTO's reference point: mismatched pairs, from the whole step's batch, whatever labels, microbatches and packing."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxalign.errors import UserError
from jaxalign.objectives.kto import KTO, mismatched_batch


@pytest.fixture(scope="module")
def objective(toy):
    return KTO(policy=toy.policy, beta=1.0)


@pytest.fixture(scope="module")
def reference_point(objective):
    prepare = jax.jit(objective.prepare)

    def point(toy, batch):
        return float(prepare(toy.params, batch)["kto_reference_point"])

    return point


def explicit_point(toy, batch):
    """The definition, pair by pair: every slot's prompt with the response of the same slot one row before."""
    ids, ratios = batch["prompt_ids"], []
    for row in range(len(ids)):
        mixed = {name: array[[row - 1]] for name, array in batch.items()}
        for name in ("encoder_input_tokens", "encoder_segment_ids"):
            mixed[name] = batch[name][[row]]
        policy, reference = (toy.score(toy.params[role], mixed) for role in ("policy", "reference"))
        for slot in range(ids.shape[1]):
            if (
                ids[row, slot] > 0
                and ids[row - 1, slot] > 0
                and ids[row, slot] != ids[row - 1, slot]
            ):
                ratios += list((policy - reference)[slot])
    return max(0.0, float(np.mean(ratios)))


@pytest.fixture(scope="module")
def positive(toy):
    """Policy and reference the way round that makes the mean log-ratio positive, or the clamp would hide everything."""
    roles = toy.params
    swapped = roles | {"policy": roles["reference"], "reference": roles["policy"]}
    batch = toy.batch()
    return toy if explicit_point(toy, batch) > 0 else dataclasses.replace(toy, params=swapped)


@pytest.mark.parametrize("per_row", [1, 2])
def test_it_is_the_mean_over_mismatched_pairs(positive, reference_point, per_row):
    batch = positive.batch(per_row=per_row)
    batch["prompt_ids"][2] = batch["prompt_ids"][1]  # equal prompts are left out
    expected = explicit_point(positive, batch)
    assert expected > 0
    np.testing.assert_allclose(reference_point(positive, batch), expected, rtol=1e-5)


def test_it_ignores_labels(positive, reference_point):
    batch = positive.batch()
    flipped = batch | {name: -batch[name] for name in ("feedback", "rewards")}
    assert reference_point(positive, batch) == reference_point(positive, flipped)


def test_it_does_not_depend_on_microbatches(positive, objective, run_step):
    batch = positive.batch()
    points = [
        run_step(objective, positive.params, batch, count).means["reference_point"]
        for count in (1, 4)
    ]
    np.testing.assert_allclose(points[0], points[1], rtol=1e-6)


def test_no_gradient_passes_it(positive, objective):
    batch = positive.batch()

    def point(params):
        return objective.prepare(params, batch)["kto_reference_point"]

    assert not any(
        np.any(leaf) for leaf in jax.tree.leaves(jax.jit(jax.grad(point))(positive.params))
    )


def test_equal_prompts_are_never_paired(toy):
    batch = toy.batch(per_row=2)
    batch["prompt_ids"][:] = [[1, 2], [1, 3], [4, 3], [4, 0]]
    mask = np.asarray(mismatched_batch(batch)["response_mask"])[:, :, 0]
    # Slot by slot with the row before: 1-4 differ, 2-0 no example, 1-1 equal, 3-2 differ, 4-1 differ, ...
    np.testing.assert_array_equal(mask, [[1, 0], [0, 1], [1, 0], [0, 0]])


def test_a_batch_without_two_prompts_is_refused(toy, objective):
    good = toy.batch()
    objective.check_batch(good)
    for ids in ([5] * 8, [5, 0, 7, 0, 5, 0, 7, 0]):
        with pytest.raises(UserError, match="needs at least two rows with distinct prompts"):
            objective.check_batch(good | {"prompt_ids": np.array(ids)[:, None]})
    one_row = {name: array[:1] for name, array in good.items()}
    with pytest.raises(UserError, match=r"batch of 1 row.*BATCH_SIZE"):
        objective.check_batch(one_row)


def test_labels(toy, run_step):
    """By feedback against a threshold, or by reward against the mean of the batch, where a tie is undesirable."""
    batch = toy.batch()
    batch["feedback"][:, 0, 0] = [0, 0, 0, 1, 1, 0, 0, 0]
    batch["rewards"][:, 0, 0] = [1, 1, 1, 1, 1, 1, 1, -7]
    by_feedback = run_step(KTO(policy=toy.policy), toy.params, batch)
    by_mean = run_step(KTO(policy=toy.policy, labels="batch_mean"), toy.params, batch)
    assert by_feedback.means["desirable"] == 2 / 8 and by_mean.means["desirable"] == 7 / 8
    batch["rewards"][:] = 1
    tied = run_step(KTO(policy=toy.policy, labels="batch_mean"), toy.params, batch)
    assert tied.means["desirable"] == 0
