"""Every other method on the tabular bandit reaches pi*, or its own optimum."""

import numpy as np
import pytest

from jaxalign.training.optimizers import adamw
from studies import bandit_methods as study
from studies import bandit_weights
from studies.bandit_problem import divergence, judge, make_bandit, solve

STEPS = 4000
TAU = 1.0


@pytest.fixture(scope="module")
def policy_of():
    bandit, solved = make_bandit(), {}

    def find(name):
        if name not in solved:
            objective, batch = study.METHODS[name].make(bandit, TAU)
            optimizer = adamw(study.LEARNING_RATE, schedule="cosine", total_steps=STEPS)
            solved[name] = solve(bandit, objective, steps=STEPS, batch=batch, optimizer=optimizer)
        return bandit, solved[name]

    return find


@pytest.mark.parametrize(
    "name",
    [
        "DPO",
        "robust DPO, the same labels",
        "soft preferences (OSP), exact p",
        "REBEL, two-sample DRO",
        "InfoNCA",
        "NCA, responses of pi_ref",
        "AGRO (variance within a prompt)",
        "A*-PO, exact V*",
    ],
)
def test_a_consistent_method_reaches_the_optimum(policy_of, name):
    bandit, policy = policy_of(name)
    assert judge(bandit, policy, TAU).divergence < 1e-4


@pytest.mark.parametrize(
    "name", ["SFT", "reward-weighted regression", "weighted behaviour cloning", "IPO (sums)"]
)
def test_a_method_with_its_own_optimum_reaches_that_one_and_misses_pi_star(policy_of, name):
    bandit, policy = policy_of(name)
    target = study.METHODS[name].target(bandit, TAU)
    assert divergence(target, policy) < 1e-4
    assert judge(bandit, policy, TAU).divergence > 0.05


@pytest.mark.parametrize(
    "name", ["DPO, a tenth of the labels flipped", "NCA, responses of mu", "QRPO"]
)
def test_a_violated_assumption_is_visible(policy_of, name):
    bandit, policy = policy_of(name)
    assert judge(bandit, policy, TAU).divergence > 0.01


# Total variation of loss weighting, from a float64 solution of the same problem.
@pytest.mark.parametrize(("weight", "missed"), [(0.1, 0.0438), (0.75, 0.0548)])
def test_modpo_reaches_the_optimum_of_a_weighting_and_loss_weighting_does_not(weight, missed):
    problem = bandit_weights.make_problem()
    best = problem.optimum(weight)
    assert bandit_weights.total_variation(best, bandit_weights.modpo(problem, weight)) < 5e-4
    found = bandit_weights.loss_weighting(problem, weight)
    assert bandit_weights.total_variation(best, found) == pytest.approx(missed, rel=0.02)
    assert problem.value(found, weight) < problem.value(best, weight) - 1e-3


def test_pairs_are_an_exact_expectation():
    """The weights of a pair and of its reverse have the odds that the rewards give."""
    bandit = make_bandit()
    batch = study.pairs_batch(bandit)
    weights, rewards = batch["density_ratios"][:, 0, 0], batch["rewards"][:, 0]
    found = {
        (int(p), *map(int, pair)): (weight, reward)
        for p, pair, weight, reward in zip(
            batch["example_ids"][:, 0], batch["actions"][:, 0], weights, rewards, strict=True
        )
    }
    weight, (first, second) = found[2, 0, 3]
    np.testing.assert_allclose(weight / found[2, 3, 0][0], np.exp(first - second), rtol=1e-5)
