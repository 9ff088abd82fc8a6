"""Step 0, policy equal to reference: log-ratios are exactly 0 and every loss has the value the papers give."""

import functools
import math

import jax
import numpy as np
import pytest

from jaxalign.errors import UserError
from jaxalign.losses.pairwise import dpo_loss
from jaxalign.networks.value_variants import SentinelValue
from jaxalign.objectives.dro import DROV
from jaxalign.objectives.kto import KTO
from jaxalign.objectives.responses import Pairwise

DPO = functools.partial(dpo_loss, beta=0.1)


@pytest.fixture(scope="module", params=["cached", "live"])
def reference(request):
    return request.param


@pytest.fixture(scope="module")
def start(toy):
    """Parameters by role, the reference being the policy."""
    return toy.params | {"reference": toy.params["policy"]}


def cached_elsewhere(toy, responses, per_row):
    """A packed batch whose reference scores were computed unpacked, by another program."""
    alone = toy.batch(responses, moved=False)
    packed = toy.batch(responses, per_row=per_row, moved=False)
    by_example = alone["reference_log_probs"][:, 0]
    return packed | {"reference_log_probs": by_example[packed["example_ids"]]}


def test_dpo_starts_at_ln_2(toy, start, run_step, reference):
    batch = cached_elsewhere(toy, 2, per_row=2)
    step = run_step(
        Pairwise(loss_function=DPO, policy=toy.policy, reference=reference),
        start,
        batch,
        microbatches=2,
    )
    assert step.means["log_ratio_squared"] == 0
    assert step.means["margin"] == 0
    assert step.means["loss"] == np.float32(math.log(2))


def test_kto_starts_without_margin_at_weight_one_half(toy, start, run_step, reference):
    batch = cached_elsewhere(toy, 1, per_row=2)
    step = run_step(KTO(policy=toy.policy, reference=reference), start, batch)
    assert step.means["log_ratio_squared"] == 0
    assert step.means["reference_point"] == 0
    assert step.means["loss"] == 0.5


def test_a_value_on_the_states_of_another_policy_is_refused(make_toy):
    """Its scores would be those of the other, with or without the sentinel's token."""
    toy, plain = make_toy(value_token=47), make_toy()
    with pytest.raises(UserError, match="another policy network than the objective's"):
        DROV(policy=plain.policy, value=SentinelValue(toy.policy))


def test_dro_starts_with_the_reward_as_its_target(make_toy, run_step):
    """And a sentinel value starts at 0."""
    toy = make_toy(value_token=47)
    start = {"policy": toy.params["policy"], "reference": toy.params["policy"], "value": {}}
    objective = DROV(policy=toy.policy, value=SentinelValue(toy.policy), temperature=0.3)
    step = run_step(objective, start, cached_elsewhere(toy, 1, per_row=4))
    assert step.means["log_ratio_squared"] == 0
    assert abs(step.means["value"]) < 1e-6
    np.testing.assert_allclose(step.means["target"], step.means["reward"], rtol=1e-6)


def test_the_gradient_at_the_start_is_not_zero(toy, start, run_step):
    """What is rounded off is the log-ratio's value, not its gradient."""
    step = run_step(
        Pairwise(loss_function=DPO, policy=toy.policy), start, toy.batch(2, moved=False)
    )
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(step.gradients)) > 1e-3
