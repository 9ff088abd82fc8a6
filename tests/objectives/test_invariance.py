"""Laws that hold for every objective: microbatches, packing, padding and holes do not change the step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.losses.pairwise import dpo_loss
from jaxalign.networks.value import SharedTrunkValue, ValueNetwork
from jaxalign.networks.value_variants import ScalarValue, SentinelValue, ZeroValue
from jaxalign.objectives.dro import DROP, DROV
from jaxalign.objectives.kto import KTO
from jaxalign.objectives.responses import Pairwise
from jaxalign.objectives.sft import SFT

UNUSED_TOKEN = 47


@dataclasses.dataclass(frozen=True)
class Case:
    """An objective, what it trains, and how many responses a prompt has."""

    make: object
    value: object = None
    responses: int = 1
    sentinel: bool = False


def drov(value=ValueNetwork, **options):
    return Case(lambda policy, v: DROV(policy=policy, value=v, temperature=0.7, **options), value)


CASES = {
    "sft": Case(
        lambda policy, _: SFT(policy=policy, label_smoothing=0.1, z_loss=1e-2), responses=2
    ),
    "sft_constant": Case(lambda policy, _: SFT(policy=policy, loss_normalizing_factor=100.0)),
    "drov_update": drov(),
    "drov_grad": drov(rescale="grad"),
    "drov_none": dataclasses.replace(drov(rescale="none"), responses=2),
    "drov_literal": drov(rescale="literal"),
    "drov_single": drov(values_per_batch="single"),
    "drov_live": drov(reference="live"),
    "drov_scalar": drov(lambda toy: ScalarValue()),
    "drov_zero": drov(lambda toy: ZeroValue()),
    "drov_shared_trunk": drov(lambda toy: SharedTrunkValue(toy.policy)),
    "drov_shared_single": drov(lambda toy: SharedTrunkValue(toy.policy), values_per_batch="single"),
    "drov_sentinel": dataclasses.replace(
        drov(lambda toy: SentinelValue(toy.policy)), sentinel=True
    ),
    "drop": Case(lambda policy, _: DROP(policy=policy, temperature=0.7)),
    "drop_grad": Case(lambda policy, _: DROP(policy=policy, temperature=0.7, rescale="grad")),
    "drop_literal": Case(lambda policy, _: DROP(policy=policy, temperature=0.7, literal=True)),
    "kto_feedback": Case(lambda policy, _: KTO(policy=policy, desirable_weight=1.3)),
    "kto_batch_mean": Case(
        lambda policy, _: KTO(policy=policy, beta=2.0, labels="batch_mean"), responses=2
    ),
    "dpo": Case(
        lambda policy, _: Pairwise(
            policy=policy, loss_function=functools.partial(dpo_loss, beta=0.5)
        ),
        responses=2,
    ),
}


# Combinations of what the other cases test one by one.
SLOW = {"drov_grad", "drov_zero", "drov_shared_single", "drop_grad", "drov_scalar", "drov_live"}
SLOW |= {"drov_literal", "drop_literal"}


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in CASES],
)
def case(request, toy, make_toy, run_step):
    """The objective, its toy, and its step on eight unpacked examples."""
    chosen = CASES[request.param]
    world = make_toy(value_token=UNUSED_TOKEN) if chosen.sentinel else toy
    if chosen.value is ValueNetwork:
        value, params = ValueNetwork(world.policy.config), world.params["value"]
    elif chosen.value is not None:
        value = chosen.value(world)
        params = jax.tree.map(lambda leaf: leaf * 100 + 0.1, value.init(jax.random.key(3)))
    else:
        value = params = None
    objective = chosen.make(world.policy, value)
    params = world.params | {"value": params}
    plain = run_step(objective, params, world.batch(chosen.responses))
    return objective, params, world, chosen.responses, plain


def assert_same_step(found, expected, skip=()):
    """Gradients, loss and every metric to 1e-5."""
    scale = max(np.abs(leaf).max(initial=0) for leaf in jax.tree.leaves(expected.gradients))
    assert scale > 1e-4, "the gradient vanishes, so this test would say nothing"
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * scale),
        found.gradients,
        expected.gradients,
    )
    assert found.means.keys() == expected.means.keys()
    for name, mean in expected.means.items():
        if name not in skip:
            np.testing.assert_allclose(found.means[name], mean, rtol=1e-5, atol=2e-6, err_msg=name)


def test_microbatches_equal_one_batch(case, run_step):
    objective, params, world, responses, plain = case
    assert_same_step(run_step(objective, params, world.batch(responses), 4), plain)


def test_packing_padding_and_holes_change_nothing(case, run_step):
    """Two examples a row, in two microbatches; empty rows, longer rows, garbage where nothing is."""
    objective, params, world, responses, plain = case
    layout = {"per_row": 2, "rows": 6, "extra": 3}
    packed = {k: np.array(v) for k, v in world.batch(responses, **layout).items()}
    assert not packed["response_mask"][4:].any()
    packed["encoder_input_tokens"][4:] = 5
    packed["decoder_target_tokens"][4:] = 6
    for name in ("rewards", "feedback", "reference_log_probs"):
        packed[name][4:] = 1e4
    if not isinstance(objective, KTO):
        assert_same_step(run_step(objective, params, packed, 2), plain)
        return
    # Which prompts a response meets depends on the layout, so the statistics of the batch are given here; see test_kto.
    given = {"kto_reference_point": np.float32(0.3), "mean_reward": np.float32(-0.1)}
    unpacked = world.batch(responses) | given
    assert_same_step(
        run_step(objective, params, packed | given), run_step(objective, params, unpacked)
    )


def test_missing_fields_are_named(case):
    objective, _, world, responses, _ = case
    batch = world.batch(responses)
    objective.check_batch(batch)
    for field in objective.required_fields():
        with pytest.raises(ValueError, match=f"objective {objective.name} needs .*{field}"):
            objective.check_batch({name: batch[name] for name in batch if name != field})


def test_the_parameters_are_float32_and_metrics_scalars(case):
    _, _, _, _, plain = case
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(plain.gradients))
    assert all(np.shape(total) == () for total, _ in plain.metrics.values())
    assert plain.means["finite"] == 1
