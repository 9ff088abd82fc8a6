"""MODPO and loss weighting: one objective is DPO, where margins come from, the closed-form optimum for any weights."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from jaxalign.errors import UserError
from jaxalign.losses import multi_objective
from jaxalign.losses.pairwise import dpo_loss, hinge_loss
from jaxalign.losses.requirements import quantities_of
from tests.fixtures.numbers import close

BETA = 0.4
EXTREME = st.floats(-1e4, 1e4, width=32)
BOTH = ("logistic", "hinge")
METHODS = {
    "rewards": functools.partial(
        multi_objective.modpo_rewards_loss, beta=BETA, weight=0.7, margin_weight=0.3
    ),
    "policy": functools.partial(
        multi_objective.modpo_policy_loss, beta=BETA, weight=0.7, margin_weight=0.3
    ),
    "length": functools.partial(
        multi_objective.modpo_length_loss, beta=BETA, weight=1.0, margin_weight=0.1
    ),
    "scores": functools.partial(
        multi_objective.modpo_scores_loss, beta=BETA, weights=(0.5, 0.3, 0.2)
    ),
    "loss_weighting": functools.partial(
        multi_objective.dpo_loss_weighting_loss, beta=BETA, weights=(0.5, 0.3, 0.2)
    ),
}


def made(pairs=5, seed=0, dtype=jnp.float32):
    generator = np.random.default_rng(seed)
    arrays = {}
    for who in ("chosen", "rejected"):
        for what in ("log_ratios", "margin_rewards", "margin_log_probs", "reference_log_probs"):
            arrays[f"{who}_{what}"] = jnp.asarray(generator.normal(size=pairs), dtype)
        arrays[f"{who}_lengths"] = jnp.asarray(generator.integers(1, 30, pairs), dtype)
        arrays[f"{who}_scores"] = jnp.asarray(generator.normal(size=(pairs, 3)), dtype)
    return arrays


@functools.partial(jax.jit, static_argnums=0)
def call(function, arrays):
    result = function(**{name: arrays[name] for name in quantities_of(function)[0]})
    return result if isinstance(result, tuple) else (result, jnp.ones_like(result))


@functools.partial(jax.jit, static_argnums=0)
def slopes(function, arrays):
    names = ("chosen_log_ratios", "rejected_log_ratios")

    def total(part):
        return jnp.sum(call(function, arrays | part)[0])

    return jax.grad(total)({name: arrays[name] for name in names})


def assert_same(first, second, arrays):
    close(call(first, arrays)[0], call(second, arrays)[0])
    jax.tree.map(close, slopes(first, arrays), slopes(second, arrays))


def difference(arrays, name):
    return arrays[f"chosen_{name}"] - arrays[f"rejected_{name}"]


def labelled_first(arrays):
    """The arrays with positive score differences, so that every objective prefers the first response."""
    scores = arrays["rejected_scores"] + jnp.abs(difference(arrays, "scores")) + 0.1
    return arrays | {"chosen_scores": scores}


# With one objective all of them are DPO.


@pytest.mark.parametrize("method", ["rewards", "policy", "length"])
def test_without_other_objectives_modpo_is_dpo(method):
    alone = functools.partial(METHODS[method], weight=1.0, margin_weight=0.0)
    assert_same(alone, functools.partial(dpo_loss, beta=BETA), made())
    hinge = functools.partial(alone, form="hinge")
    assert_same(hinge, functools.partial(hinge_loss, beta=BETA), made())


@pytest.mark.parametrize("objective", [0, 2])
@pytest.mark.parametrize("labels", ["scores", "pair"])
def test_all_weight_on_the_labelling_objective_is_dpo(objective, labels):
    weights = tuple(float(index == objective) for index in range(3))
    function = functools.partial(
        METHODS["scores"], weights=weights, objective=objective, labels=labels
    )
    arrays = labelled_first(made())
    assert_same(function, functools.partial(dpo_loss, beta=BETA), arrays)
    weighted = functools.partial(METHODS["loss_weighting"], weights=weights)
    assert_same(weighted, functools.partial(dpo_loss, beta=BETA), arrays)


def test_equal_margins_on_both_responses_are_dpo_with_a_larger_beta():
    arrays = made()
    arrays["rejected_margin_rewards"] = arrays["chosen_margin_rewards"]
    assert_same(METHODS["rewards"], functools.partial(dpo_loss, beta=BETA / 0.7), arrays)


@given(constant=st.floats(-5, 5, width=32))
def test_a_constant_on_both_margins_of_a_prompt_changes_nothing(constant):
    arrays = made()
    moved = {
        f"{who}_margin_rewards": arrays[f"{who}_margin_rewards"] + constant
        for who in ("chosen", "rejected")
    }
    first, second = (call(METHODS["rewards"], arrays | part)[0] for part in ({}, moved))
    close(first, second, 1e-5)


# Where margins come from.


@pytest.mark.parametrize("form", BOTH)
def test_the_loss_by_its_formula(form):
    arrays = made()
    logits = BETA * difference(arrays, "log_ratios") - 0.3 * difference(arrays, "margin_rewards")
    logits = np.asarray(logits, np.float64) / 0.7
    expected = np.logaddexp(0, -logits) if form == "logistic" else np.maximum(0, 1 - logits)
    close(call(functools.partial(METHODS["rewards"], form=form), arrays)[0], expected, 1e-5)


@pytest.mark.parametrize("form", BOTH)
def test_an_implicit_reward_is_beta_times_the_other_policys_log_ratio(form):
    arrays = made()
    rewards = {
        f"{who}_margin_rewards": BETA
        * (arrays[f"{who}_margin_log_probs"] - arrays[f"{who}_reference_log_probs"])
        for who in ("chosen", "rejected")
    }
    functions = (functools.partial(METHODS[name], form=form) for name in ("policy", "rewards"))
    assert_same(*functions, arrays | rewards)


def test_the_length_rule_rewards_brevity():
    arrays = made()
    rewards = {f"{who}_margin_rewards": -arrays[f"{who}_lengths"] for who in ("chosen", "rejected")}
    stored = functools.partial(METHODS["rewards"], weight=1.0, margin_weight=0.1)
    assert_same(METHODS["length"], stored, arrays | rewards)


@pytest.mark.parametrize("objective", [0, 1, 2])
def test_margins_from_scores_are_the_other_objectives(objective):
    weights, scale = (0.5, 0.3, 0.2), 2.0
    arrays = labelled_first(made())
    function = functools.partial(
        METHODS["scores"], weights=weights, objective=objective, score_scale=scale
    )
    others = [index for index in range(3) if index != objective]
    margins = sum(
        scale * weights[index] * difference(arrays, "scores")[:, index] for index in others
    )
    direct = multi_objective.modpo_loss(
        arrays["chosen_log_ratios"],
        arrays["rejected_log_ratios"],
        margins,
        beta=BETA,
        weight=weights[objective],
    )
    close(call(function, arrays)[0], direct, 1e-5)


def swapped(arrays):
    other = {"chosen": "rejected", "rejected": "chosen"}
    return {
        f"{other[who]}_{what}": array
        for (who, _, what), array in ((name.partition("_"), a) for name, a in arrays.items())
    }


@pytest.mark.parametrize("method", ["scores", "loss_weighting"])
def test_labels_from_scores_do_not_depend_on_the_order_of_the_pair(method):
    arrays = made()
    for found, expected in zip(
        call(METHODS[method], swapped(arrays)), call(METHODS[method], arrays), strict=True
    ):
        close(found, expected)


def test_ties_on_the_labelling_objective_are_left_out():
    arrays = made()
    arrays["chosen_scores"] = arrays["chosen_scores"].at[1, 0].set(arrays["rejected_scores"][1, 0])
    losses, weights = call(METHODS["scores"], arrays)
    np.testing.assert_array_equal(weights, [1, 0, 1, 1, 1])
    assert losses[1] == 0 and slopes(METHODS["scores"], arrays)["chosen_log_ratios"][1] == 0
    _, weights = call(functools.partial(METHODS["scores"], labels="pair"), arrays)
    assert weights.all()


def test_loss_weighting_adds_the_dpo_losses_of_every_objectives_labels():
    arrays = made()
    tie = arrays["rejected_scores"]
    arrays["chosen_scores"] = arrays["chosen_scores"].at[0].set(tie[0]).at[1, 2].set(tie[1, 2])
    signs = np.sign(np.asarray(difference(arrays, "scores")))
    logits = BETA * np.asarray(difference(arrays, "log_ratios"), np.float64)
    nats = np.abs(signs) * np.logaddexp(0, -signs * logits[:, None])
    losses, weights = call(METHODS["loss_weighting"], arrays)
    close(losses, nats @ [0.5, 0.3, 0.2])
    np.testing.assert_array_equal(weights, [0, 1, 1, 1, 1])


@pytest.mark.parametrize("method", METHODS)
def test_the_start_without_margins(method):
    """log 2, with slope beta/(2 w_k) for MODPO and beta/2 for loss weighting."""
    zeroed = {name: 0 * a for name, a in made().items() if not name.endswith("scores")}
    arrays = labelled_first(made()) | zeroed
    if method == "scores":
        arrays["chosen_scores"] = arrays["rejected_scores"] + jnp.array([1.0, 0.0, 0.0])
    close(call(METHODS[method], arrays)[0], math.log(2))
    weight = {"length": 1.0, "scores": 0.5, "loss_weighting": 1.0}.get(method, 0.7)
    close(slopes(METHODS[method], arrays)["chosen_log_ratios"], -BETA / (2 * weight))


# The optimum of a population of Bradley-Terry pairs over 40 arms with two rewards.


@pytest.fixture
def arms():
    with jax.enable_x64(True):
        generator = np.random.default_rng(0)
        first = generator.normal(size=40)
        rewards = np.stack([first, -0.6 * first + 0.8 * generator.normal(size=40)])
        reference = np.asarray(jax.nn.log_softmax(jnp.asarray(generator.normal(size=40))))
        yield jnp.asarray(reference), jnp.asarray(rewards)


def population_gradient(loss, reference, rewards, logits):
    """Gradient of the summed loss over all ordered pairs, weighted by the probability that objective 0 prefers the first."""
    first, second = (index.reshape(-1) for index in np.indices((40, 40)))
    any_weights = np.random.default_rng(1).uniform(0.2, 1, size=(40, 40))
    weights = jnp.asarray((any_weights + any_weights.T)[first, second])

    def total(logits):
        ratios = jax.nn.log_softmax(logits) - reference
        return jnp.sum(weights * loss(ratios[first], ratios[second], first, second)) / 40**2

    return np.asarray(jax.jit(jax.grad(total))(logits))


@pytest.mark.parametrize("w", [0.1, 0.25, 0.5, 0.75, 0.9])
def test_modpo_reaches_the_closed_form_for_any_weights_and_loss_weighting_does_not(arms, w):
    """Both are convex in the logits, so a policy is the optimum where the gradient vanishes."""
    beta = 0.5
    reference, rewards = arms
    optimum = reference + (w * rewards[0] + (1 - w) * rewards[1]) / beta

    def preference(index, i, j):
        return jax.nn.sigmoid(rewards[index][i] - rewards[index][j])

    def modpo(chosen, rejected, i, j):
        losses, _ = multi_objective.modpo_scores_loss(
            chosen,
            rejected,
            rewards[:, i].T,
            rewards[:, j].T,
            beta=beta,
            weights=(w, 1 - w),
            labels="pair",
        )
        return preference(0, i, j) * losses

    def weighted(chosen, rejected, i, j):
        losses = dpo_loss(chosen, rejected, beta=beta)
        return (w * preference(0, i, j) + (1 - w) * preference(1, i, j)) * losses

    close(population_gradient(modpo, reference, rewards, optimum), 0, 1e-13)
    assert np.abs(population_gradient(modpo, reference, rewards, reference)).max() > 1e-3
    assert np.abs(population_gradient(weighted, reference, rewards, optimum)).max() > 1e-4


# Robustness.


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("rewards", {"weight": 0.0}, "weight of the objective that labels .* positive, not 0"),
        ("policy", {"weight": -0.5}, "positive, not -0.5"),
        ("length", {"weight": math.inf}, "positive, not inf"),
        ("length", {"beta": 0.0}, "modpo.beta must be positive"),
        ("length", {"form": "soft"}, "modpo.form must be one of logistic, hinge, not 'soft'"),
        ("scores", {"weights": (0.0, 0.5, 0.5)}, "positive, not 0"),
        ("scores", {"weights": (0.5, 0.5)}, "modpo.weights has 2 numbers, .* have 3 scores"),
        ("scores", {"weights": (0.5, math.nan, 0.5)}, "modpo.weights must be finite"),
        ("scores", {"objective": 3}, "modpo.objective is 3; there are 3 scores"),
        ("scores", {"labels": "guess"}, "modpo.labels must be one of"),
        ("loss_weighting", {"weights": (1.0, -0.1, 0.1)}, r"weights\[1\] must be at least 0"),
        ("loss_weighting", {"weights": (0.0, 0.0, 0.0)}, "sum_of_weights must be positive"),
        ("loss_weighting", {"weights": (1.0,)}, "weights has 1 numbers"),
    ],
)
def test_impossible_hyperparameters_are_refused_by_name(method, changes, message):
    with pytest.raises(UserError, match=message):
        call(functools.partial(METHODS[method], **changes), made())


@pytest.mark.parametrize("method", METHODS)
def test_no_gradient_passes_the_margins(method):
    arrays = made()
    fixed = {name: a for name, a in arrays.items() if not name.endswith("log_ratios")}

    def total(part):
        return jnp.sum(call(METHODS[method], arrays | part)[0])

    assert not any(np.any(leaf) for leaf in jax.tree.leaves(jax.grad(total)(fixed)))


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=15)
@given(numbers=st.lists(EXTREME, min_size=16, max_size=16))
def test_extreme_inputs_give_finite_losses_and_gradients(method, numbers):
    arrays, left = {}, iter(numbers)
    for name, array in made(1).items():
        size = [next(left) for _ in range(array.size)]
        arrays[name] = jnp.float32(size).reshape(array.shape)
    assert np.isfinite(call(METHODS[method], arrays)[0]).all()
    assert all(np.isfinite(x).all() for x in slopes(METHODS[method], arrays).values())


@pytest.mark.parametrize("method", METHODS)
def test_gradients_equal_finite_differences(method):
    with jax.enable_x64(True):
        arrays = made(dtype=jnp.float64)

        def loss(chosen, rejected):
            moved = {"chosen_log_ratios": jnp.asarray(chosen)}
            moved["rejected_log_ratios"] = jnp.asarray(rejected)
            return call(METHODS[method], arrays | moved)[0]

        start = (arrays["chosen_log_ratios"], arrays["rejected_log_ratios"])
        assert loss(*start).dtype == jnp.float64
        check_grads(loss, start, 1, modes=["rev"])


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_is_computed_in_float32(method):
    """Lengths above 256 too, which bfloat16 cannot tell apart once they are in it."""
    arrays = made()
    low = {n: a.astype(jnp.bfloat16) if n.endswith("log_ratios") else a for n, a in arrays.items()}
    high = {name: array.astype(jnp.float32) for name, array in low.items()}
    found = call(METHODS[method], low)[0]
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, call(METHODS[method], high)[0])
