"""Options of the objectives: what they refuse, and what DRO's rescaling does under an optimizer that normalises gradients."""

import functools

import jax
import numpy as np
import pytest

from jaxalign.errors import UserError
from jaxalign.losses.contrastive import rpo_loss
from jaxalign.losses.multi_objective import modpo_scores_loss
from jaxalign.losses.pairwise import dpo_loss
from jaxalign.losses.regression import agro_loss
from jaxalign.losses.token_level import gold_loss
from jaxalign.losses.unpaired import RunningMean, bco_loss
from jaxalign.networks.value import ValueNetwork
from jaxalign.objectives.dro import DROP, DROV
from jaxalign.objectives.kto import KTO
from jaxalign.objectives.responses import Pairwise, Responses
from jaxalign.objectives.sft import SFT
from jaxalign.objectives.token_weighted import TokenWeighted
from jaxalign.objectives.whole_batch import WholeBatch
from jaxalign.training.optimizers import adafactor
from jaxalign.training.state import build_transformations, create_state
from jaxalign.training.step import make_train_step

DPO = functools.partial(dpo_loss, beta=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda p, v: DROV(policy=p, value=v, rescale="loud"),
            "DROV.rescale must be one of .*'loud'",
        ),
        (lambda p, v: DROV(policy=p, value=v, values_per_batch="two"), "values_per_batch.*'two'"),
        (
            lambda p, v: DROV(policy=p, value=v, temperature=0.0),
            "DROV.temperature must be positive",
        ),
        (
            lambda p, v: DROP(policy=p, temperature=float("inf")),
            "DROP.temperature must be positive",
        ),
        (lambda p, v: DROP(policy=p, rescale="literal"), "DROP.rescale.*'literal'"),
        (lambda p, v: KTO(policy=p, labels="stars"), "KTO.labels.*'stars'"),
        (
            lambda p, v: Pairwise(loss_function=DPO, policy=p, reference="old"),
            "'cached' or 'live', not 'old'",
        ),
    ],
)
def test_an_unknown_option_is_refused(toy, make, message):
    with pytest.raises(UserError, match=message):
        make(toy.policy, ValueNetwork(toy.policy.config))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: Pairwise(policy=p, loss_function=functools.partial(dpo_loss, beta=-1.0)), "dpo.beta must be positive"),
        (lambda p: Pairwise(policy=p, loss_function=dpo_loss), "objective dpo: the loss function has no value for 'beta'"),
        (lambda p: Responses(policy=p, loss_function=functools.partial(agro_loss, temperature=0.0)), "agro.temperature must be positive"),
        (
            lambda p: Responses(policy=p, loss_function=functools.partial(bco_loss, beta=0.0), statistics=RunningMean()),
            "bco.beta must be positive",
        ),
        (lambda p: WholeBatch(policy=p, loss_function=functools.partial(rpo_loss, beta=0.1, tau=0.0)), "rpo.tau must be positive"),
        (
            lambda p: Pairwise(policy=p, loss_function=functools.partial(modpo_scores_loss, beta=1.0, weights=(0.0, 1.0, 2.0))),
            "which must be positive, not 0.0",
        ),
        (lambda p: TokenWeighted(policy=p, loss_function=functools.partial(gold_loss, discount=2.0)), "gold.discount is a probability"),
    ],
)  # fmt: skip
def test_a_hyperparameter_is_refused_when_the_objective_is_built(toy, make, message):
    with pytest.raises(UserError, match=message):
        make(toy.policy)


def test_the_number_of_responses_is_checked(toy):
    with pytest.raises(
        UserError, match=r"objective dpo needs 2 response\(s\) per prompt, but the task has 1"
    ):
        Pairwise(loss_function=DPO, policy=toy.policy).check_batch(toy.batch(1))
    SFT(policy=toy.policy).check_batch(toy.batch(3))


def test_live_scoring_needs_no_scores_and_a_frozen_reference(toy):
    live, cached = (
        Pairwise(loss_function=DPO, policy=toy.policy, reference=where)
        for where in ("live", "cached")
    )
    assert live.frozen_roles() == ("reference",) and cached.frozen_roles() == ()
    batch = toy.batch(2)
    del batch["reference_log_probs"]
    live.check_batch(batch)


def test_live_and_cached_reference_agree(toy, run_step):
    batch = toy.batch(2)
    live, cached = (
        run_step(Pairwise(loss_function=DPO, policy=toy.policy, reference=where), toy.params, batch)
        for where in ("live", "cached")
    )
    np.testing.assert_allclose(live.means["loss"], cached.means["loss"], rtol=1e-5)
    for one, other in zip(*(jax.tree.leaves(s.gradients) for s in (live, cached)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_rescaling_the_gradient_does_nothing_under_adafactor(toy):
    """'grad' and 'none' give the same policy; 'update' does not, and at tau = 0.2 moves five times as far."""
    batch = toy.batch()

    def policy_after(rescale, steps=3):
        objective = DROV(
            policy=toy.policy,
            value=ValueNetwork(toy.policy.config),
            temperature=0.2,
            rescale=rescale,
        )
        roles = objective.trained()
        transformations = build_transformations(
            {role: adafactor(1e-3) for role in roles}, objective.update_scales()
        )
        step = jax.jit(make_train_step(objective, transformations))
        state = create_state({role: toy.params[role] for role in roles}, transformations)
        for _ in range(steps):
            state, metrics = step(state, {}, batch)
        return state.params["policy"], float(metrics["policy/update_norm"].total)

    (none, none_norm), (grad, grad_norm), (update, update_norm) = map(
        policy_after, ("none", "grad", "update")
    )
    for one, other in zip(jax.tree.leaves(none), jax.tree.leaves(grad), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(none_norm, grad_norm, rtol=1e-3)
    assert 4 < update_norm / none_norm < 6
    kernels = [tree["decoder"]["logits_dense"]["kernel"] for tree in (none, update)]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-4


def test_a_metric_summary_derives_the_fit_of_the_value():
    """Correlation and R^2 from moments: V = 2, 4; target = 1, 3; residual -1, -1."""
    moments = {
        "value": 3.0,
        "value_squared": 10.0,
        "target": 2.0,
        "target_squared": 5.0,
        "value_times_target": 7.0,
        "residual_squared": 1.0,
    }
    found = DROV.summarize(None, moments)
    assert found["value_target_correlation"] == pytest.approx(1.0)
    assert found["value_r_squared"] == pytest.approx(0.0)
    assert "value_squared" not in found
