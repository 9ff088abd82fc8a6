"""Pairwise losses: start values and slopes, what each equals in a limit, best margins, optima of populations, robustness."""

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
from jaxalign.losses import dro, pairwise, soft_preference
from jaxalign.losses.requirements import quantities_of, requirements_of
from tests.fixtures.numbers import close

BETA, TAU, ETA = 0.4, 0.3, 0.7
EXTREME = st.floats(-1e4, 1e4, width=32)
METHODS = {
    "length_normalized_dpo": functools.partial(pairwise.length_normalized_dpo_loss, beta=BETA),
    "cdpo": functools.partial(pairwise.cdpo_loss, beta=BETA, label_smoothing=0.1),
    "robust_dpo": functools.partial(pairwise.robust_dpo_loss, beta=BETA, flip_rate=0.1),
    "ipo": functools.partial(pairwise.ipo_loss, tau=TAU),
    "ipo_sum": functools.partial(pairwise.ipo_loss, tau=TAU, length_average=False),
    "slic": functools.partial(pairwise.slic_loss),
    "hinge": functools.partial(pairwise.hinge_loss, beta=BETA),
    "rebel": functools.partial(pairwise.rebel_loss, eta=ETA),
    "two_sample_dro": functools.partial(pairwise.two_sample_dro_loss, temperature=1 / ETA),
    "selm": functools.partial(pairwise.selm_loss, beta=BETA, alpha=0.5),
    "selm_clipped": functools.partial(pairwise.selm_loss, beta=BETA, alpha=0.5, clip=2.0),
    "osp": functools.partial(soft_preference.osp_loss, beta=BETA),
    "osp_logistic": functools.partial(soft_preference.osp_logistic_loss, beta=BETA, scale=2.0),
}
POLICY = ("log_ratios", "log_probs")


def made(seed=0, pairs=5, dtype=np.float32):
    """Every array that a pairwise loss may ask for."""
    generator = np.random.default_rng(seed)
    numbers = generator.normal(size=(9, pairs)).astype(dtype)
    names = [
        *(f"{who}_log_ratios" for who in ("chosen", "rejected", "third")),
        *(f"{who}_{what}" for what in ("log_probs", "rewards") for who in ("chosen", "rejected")),
    ]
    arrays = dict(zip(names, map(jnp.asarray, numbers), strict=False))
    arrays["chosen_feedback"] = jax.nn.sigmoid(jnp.asarray(numbers[7]))
    arrays["rejected_feedback"] = jax.nn.sigmoid(jnp.asarray(numbers[8]))
    for who in ("chosen", "rejected"):
        arrays[f"{who}_lengths"] = jnp.asarray(generator.integers(1, 9, pairs).astype(dtype))
    return arrays | {"third_mask": jnp.asarray(generator.integers(0, 2, pairs) > 0)}


@functools.partial(jax.jit, static_argnums=0)
def losses_of(function, arrays):
    required, _ = quantities_of(function)
    result = function(**{name: arrays[name] for name in required})
    return result[0] if isinstance(result, tuple) else result


@functools.partial(jax.jit, static_argnums=0)
def slopes(function, arrays):
    """Gradients of the summed losses with respect to everything the policy decides, by name."""
    moving = {name: array for name, array in arrays.items() if name.endswith(POLICY)}
    return jax.grad(lambda part: jnp.sum(losses_of(function, arrays | part)))(moving)


def assert_same(first, second, arrays, exact=True, factor=1.0):
    """Equal values and gradients; ``factor`` times the second."""
    check = np.testing.assert_array_equal if exact else functools.partial(close, tolerance=2e-6)
    check(losses_of(first, arrays), factor * losses_of(second, arrays))
    jax.tree.map(lambda a, b: check(a, factor * b), slopes(first, arrays), slopes(second, arrays))


def dpo(beta=BETA):
    return functools.partial(pairwise.dpo_loss, beta=beta)


LN2 = math.log(2)
START = {
    "length_normalized_dpo": lambda a: LN2,
    "cdpo": lambda a: LN2,
    "robust_dpo": lambda a: LN2,
    "ipo": lambda a: 1 / (4 * TAU**2),
    "ipo_sum": lambda a: 1 / (4 * TAU**2),
    "slic": lambda a: 1.0,
    "hinge": lambda a: 1.0,
    "rebel": lambda a: ETA**2 * (a["chosen_rewards"] - a["rejected_rewards"]) ** 2,
    "two_sample_dro": lambda a: (a["chosen_rewards"] - a["rejected_rewards"]) ** 2 / 4,
    "selm": lambda a: LN2,
    "selm_clipped": lambda a: LN2,
    "osp": lambda a: LN2,
    "osp_logistic": lambda a: LN2,
}
START_SLOPES = {
    "cdpo": -BETA * (0.5 - 0.1),
    "robust_dpo": -BETA / (2 * (1 - 2 * 0.1)),
    "ipo_sum": -1 / TAU,
    "hinge": -BETA,
    "selm": -BETA / 2,
}


@pytest.mark.parametrize("method", METHODS)
def test_the_start(method):
    """Policy equal to reference: the values and slopes that the papers' formulas have at 0."""
    arrays = {
        name: jnp.zeros_like(array) if name.endswith(POLICY) else array
        for name, array in made().items()
    }
    close(losses_of(METHODS[method], arrays), START[method](arrays))
    found = slopes(METHODS[method], arrays)
    if method in START_SLOPES:
        close(found["chosen_log_ratios"], START_SLOPES[method])
        close(found["rejected_log_ratios"], -START_SLOPES[method])


def test_values_by_hand():
    two, one, half = (jnp.array([x]) for x in (2.0, 1.0, 0.5))
    close(pairwise.slic_loss(-two, -half), (1 + 2 - 0.5) + 0.1 * 2)
    close(pairwise.slic_loss(-half, -two), 0.1 * 0.5)
    close(pairwise.hinge_loss(two, one, beta=0.25), 0.75)
    close(pairwise.hinge_loss(two, -two, beta=0.25), 0.0)
    close(pairwise.ipo_loss(two, one, 4 * one, 2 * one, tau=0.5), (0.5 - 0.5 - 1) ** 2)
    close(pairwise.ipo_loss(two, one, one, one, tau=0.5, length_average=False), 0.0)
    close(pairwise.rebel_loss(two, one, 3 * one, one, eta=0.25), (1 - 0.5) ** 2)
    close(
        pairwise.length_normalized_dpo_loss(two, one, 4 * one, 2 * one, beta=5.0),
        math.log1p(math.exp(-5 * (2 / 4 - 1 / 2))),
    )
    selm = pairwise.selm_loss(two, one, half, jnp.array([True]), beta=0.4, alpha=0.5)
    close(selm, math.log1p(math.exp(-0.4)) + 0.5 * 0.4 * 0.5)
    p = 1 / (1 + math.exp(-1.5))
    osp, _ = soft_preference.osp_logistic_loss(two, one, 4 * one, one, beta=1.0, scale=2.0)
    close(osp, p * math.log1p(math.exp(-1)) + (1 - p) * math.log1p(math.exp(1)))


# What each loss equals, value and gradient, in a limit.


def test_without_label_noise_conservative_and_robust_dpo_are_dpo():
    cdpo = functools.partial(pairwise.cdpo_loss, beta=BETA, label_smoothing=0.0)
    robust = functools.partial(pairwise.robust_dpo_loss, beta=BETA, flip_rate=0.0)
    assert_same(cdpo, dpo(), made())
    assert_same(robust, dpo(), made())


def test_soft_preferences_of_one_are_dpo_and_constant_ones_conservative_dpo():
    arrays = made() | {"chosen_feedback": jnp.ones(5)}
    assert_same(METHODS["osp"], dpo(), arrays)
    arrays["chosen_feedback"] = jnp.full(5, 0.9)
    assert_same(METHODS["osp"], METHODS["cdpo"], arrays, exact=False)


def test_selm_without_optimism_or_without_a_third_response_is_dpo():
    assert_same(functools.partial(pairwise.selm_loss, beta=BETA, alpha=0.0), dpo(), made())
    assert_same(METHODS["selm"], dpo(), made() | {"third_mask": jnp.zeros(5, bool)})


@pytest.mark.parametrize("length", [1.0, 7.0])
def test_length_normalized_dpo_of_equal_lengths_is_dpo_with_beta_over_length(length):
    lengths = {f"{who}_lengths": jnp.full(5, length) for who in ("chosen", "rejected")}
    same = dpo(BETA / length)
    assert_same(METHODS["length_normalized_dpo"], same, made() | lengths, exact=False)


def test_rebel_is_two_sample_dro_at_temperature_one_over_eta():
    """Two-sample DRO is tau^2/4 of REBEL, and both are what `dro.two_sample_loss` computes."""
    arrays = made()
    factor = 1 / (4 * ETA**2)
    assert_same(METHODS["two_sample_dro"], METHODS["rebel"], arrays, exact=False, factor=factor)
    pairs = [
        jnp.stack([arrays[f"chosen_{name}"], arrays[f"rejected_{name}"]], axis=1)
        for name in ("log_ratios", "rewards")
    ]
    found = dro.two_sample_loss(*pairs, temperature=1 / ETA)
    np.testing.assert_array_equal(losses_of(METHODS["two_sample_dro"], arrays), found)


def test_ipo_on_sums_is_two_sample_dro_with_a_reward_difference_of_one():
    """``(h - 1/(2 tau))^2 = 1/tau^2 * 1/4 (1 - 2 tau h)^2``."""
    unit = {"chosen_rewards": jnp.ones(5), "rejected_rewards": jnp.zeros(5)}
    regression = functools.partial(pairwise.two_sample_dro_loss, temperature=2 * TAU)
    arrays = made() | unit
    assert_same(METHODS["ipo_sum"], regression, arrays, exact=False, factor=1 / TAU**2)


def test_ipo_per_token_is_ipo_on_divided_log_ratios():
    arrays = made()
    divided = arrays | {
        f"{who}_log_ratios": arrays[f"{who}_log_ratios"] / arrays[f"{who}_lengths"]
        for who in ("chosen", "rejected")
    }
    close(losses_of(METHODS["ipo"], arrays), losses_of(METHODS["ipo_sum"], divided))


# Properties of single pairs.


@given(margin=st.floats(-20, 20), rate=st.sampled_from([0.05, 0.2, 0.45]))
def test_robust_dpo_is_unbiased_under_flipped_labels(margin, rate):
    with jax.enable_x64(True):
        h, zero = jnp.array([margin]), jnp.zeros(1)
        loss = functools.partial(pairwise.robust_dpo_loss, beta=BETA, flip_rate=rate)
        mean = (1 - rate) * loss(h, zero) + rate * loss(zero, h)
        close(mean, pairwise.dpo_loss(h, zero, beta=BETA), 1e-12)


@settings(max_examples=20)
@given(probability=st.floats(0.01, 0.99), margin=st.floats(-15, 15))
def test_a_soft_preference_has_its_minimum_at_the_logit_where_it_is_the_entropy(
    probability, margin
):
    """L(z) - H(p) = KL(Bernoulli(p), Bernoulli(sigmoid z)) >= 0, with slope -beta (p - sigmoid z)."""
    with jax.enable_x64(True):
        p, zero = jnp.array([probability]), jnp.zeros(1)

        def loss(h):
            return soft_preference.soft_preference_loss(h, zero, p, beta=BETA)

        best = jnp.log(p / (1 - p)) / BETA
        entropy = -(p * jnp.log(p) + (1 - p) * jnp.log1p(-p))
        close(loss(best), entropy, 1e-12)
        h = jnp.array([margin])
        q = jax.nn.sigmoid(BETA * h)
        divergence = p * jnp.log(p / q) + (1 - p) * (jnp.log1p(-p) - jnp.log1p(-q))
        close(loss(h) - entropy, divergence, 1e-9)
        slope = jax.grad(lambda h: jnp.sum(loss(h)))
        close(slope(best), 0, 1e-12)
        close(slope(h), -BETA * (p - q), 1e-12)


def test_even_preferences_want_no_margin():
    loss = functools.partial(soft_preference.soft_preference_loss, beta=BETA)
    h = jnp.linspace(-3, 3, 7)
    values = loss(h, jnp.zeros(7), jnp.full(7, 0.5))
    assert values.argmin() == 3 and values[3] == np.float32(LN2)


@given(probability=st.floats(0, 1), margin=st.floats(-30, 30))
def test_soft_preferences_are_the_mean_of_dpo_over_sampled_labels(probability, margin):
    """And swapping the responses while replacing p by 1 - p changes nothing."""
    with jax.enable_x64(True):
        p, h, zero = jnp.array([probability]), jnp.array([margin]), jnp.zeros(1)

        def soft(h, p):
            return jnp.sum(soft_preference.soft_preference_loss(h, zero, p, beta=1.0))

        def sampled(h, p):
            first = pairwise.dpo_loss(h, zero, beta=1.0)
            return jnp.sum(p * first + (1 - p) * pairwise.dpo_loss(zero, h, beta=1.0))

        for compare in (lambda f: f, jax.grad):
            close(compare(soft)(h, p), compare(sampled)(h, p), 1e-12)
        close(soft(h, p), soft(-h, 1 - p), 1e-12)


@given(margin=st.floats(-30, 30, width=32), probability=st.floats(0, 1, width=32))
def test_the_stable_form_of_a_soft_preference_equals_the_textbook_form(margin, probability):
    p, h, zero = jnp.float32([probability]), jnp.float32([margin]), jnp.zeros(1)
    textbook = -(p * jax.nn.log_sigmoid(h) + (1 - p) * jax.nn.log_sigmoid(-h))
    found = soft_preference.soft_preference_loss(h, zero, p, beta=1.0)
    np.testing.assert_allclose(found, textbook, rtol=2e-6, atol=4e-6)


def test_pairs_in_the_band_around_one_half_are_left_out():
    arrays = [jnp.ones(3), jnp.zeros(3), jnp.array([0.5, 0.59, 0.61])]
    losses, weights = soft_preference.osp_loss(*arrays, beta=BETA, band=0.1)
    np.testing.assert_array_equal(weights, [0, 0, 1])
    assert losses[2] > 0 and not losses[:2].any()
    _, everywhere = soft_preference.osp_loss(*arrays, beta=BETA)
    assert everywhere.all()


def test_no_gradient_passes_the_preference():
    h = jnp.ones(2)

    def total(p):
        return jnp.sum(soft_preference.soft_preference_loss(h, 0 * h, p, beta=BETA))

    assert not jax.grad(total)(jnp.array([0.2, 0.9])).any()


def test_the_best_margin_of_conservative_dpo_is_finite_and_of_ipo_one_over_two_tau():
    arrays = made() | {"rejected_log_ratios": jnp.zeros(5)}
    best = jnp.full(5, math.log(0.9 / 0.1) / BETA)
    close(slopes(METHODS["cdpo"], arrays | {"chosen_log_ratios": best})["chosen_log_ratios"], 0)
    best = jnp.full(5, 1 / (2 * TAU))
    close(slopes(METHODS["ipo_sum"], arrays | {"chosen_log_ratios": best})["chosen_log_ratios"], 0)


@given(chosen=EXTREME, rejected=EXTREME)
def test_slic_always_pushes_the_chosen_response_up(chosen, rejected):
    """So it has no finite optimum."""
    up = jax.grad(lambda c: jnp.sum(pairwise.slic_loss(c, jnp.array([rejected]))))
    assert up(jnp.array([chosen])) <= np.float32(-0.1)


# SELM's optimistic term.


def test_selm_is_affine_in_the_third_response():
    arrays = made() | {"third_mask": jnp.ones(5, bool)}
    found = slopes(METHODS["selm"], arrays)
    close(found["third_log_ratios"], 0.5 * BETA)
    moved = arrays | {"third_log_ratios": arrays["third_log_ratios"] + 3}
    change = losses_of(METHODS["selm"], moved) - losses_of(METHODS["selm"], arrays)
    close(change, 0.5 * BETA * 3, 1e-5)
    same = slopes(METHODS["selm"], moved)
    jax.tree.map(np.testing.assert_array_equal, found, same)


def selm_where_the_third_is(which, alpha):
    """Slope in the log-ratio that the third response shares with one of the pair."""

    def total(moving, other):
        chosen, rejected = (moving, other) if which == "chosen" else (other, moving)
        mask = jnp.ones(moving.shape, bool)
        return jnp.sum(pairwise.selm_loss(chosen, rejected, moving, mask, beta=BETA, alpha=alpha))

    return jax.grad(total)


def test_selm_pushes_a_rejected_third_response_further_and_fights_for_a_chosen_one():
    arrays = made()
    chosen, rejected = arrays["chosen_log_ratios"], arrays["rejected_log_ratios"]
    push = BETA * jax.nn.sigmoid(-BETA * (chosen - rejected))
    close(selm_where_the_third_is("rejected", 0.2)(rejected, chosen), push + 0.2 * BETA)
    close(selm_where_the_third_is("chosen", 0.2)(chosen, rejected), -push + 0.2 * BETA)
    zero = jnp.zeros(1)
    slope = [float(selm_where_the_third_is("chosen", a)(zero, zero)[0]) for a in (0.4, 0.5, 0.6)]
    assert slope[0] < 0 and abs(slope[1]) < 1e-7 and slope[2] > 0


def bonus(logits, reference, probabilities):
    """SELM's term averaged over a third response drawn with the probabilities, alpha = beta = 1."""
    log_ratios = jax.nn.log_softmax(logits) - reference
    zero, mask = jnp.zeros_like(log_ratios), jnp.ones(log_ratios.shape, bool)
    losses = pairwise.selm_loss(zero, zero, log_ratios, mask, beta=1.0, alpha=1.0)
    return jnp.sum(probabilities * (losses - LN2))


def test_selm_rewards_leaving_the_reference_that_the_third_response_is_sampled_from():
    """The term's mean is -KL(pi_ref, pi); at pi = pi_ref its gradient is 0, unless the third response is greedy."""
    with jax.enable_x64(True):
        generator = np.random.default_rng(0)
        reference = jax.nn.log_softmax(jnp.asarray(generator.normal(size=6)))
        logits = jnp.asarray(generator.normal(size=6))
        sampled = jnp.exp(reference)
        divergence = jnp.sum(sampled * (reference - jax.nn.log_softmax(logits)))
        close(bonus(logits, reference, sampled), -divergence, 1e-12)
        gradient = jax.grad(bonus)
        close(gradient(reference, reference, sampled), 0, 1e-14)
        greedy = jax.nn.one_hot(reference.argmax(), 6)
        assert gradient(reference, reference, greedy)[reference.argmax()] > 0.1


def test_selm_clipping_ends_the_push():
    arrays = made() | {
        "third_log_ratios": jnp.array([-3.0, -2.1, -1.9, 0.0, 5.0]),
        "third_mask": jnp.ones(5, bool),
    }
    found = slopes(METHODS["selm_clipped"], arrays)["third_log_ratios"]
    close(found, 0.5 * BETA * np.array([0, 0, 1, 1, 1]))


# Optima of populations: every response can be enumerated, so the optimal policy is known. All these losses are convex in the logits
# (they depend on differences only), so a vanishing gradient means the optimum.


@pytest.fixture
def table():
    """Log pi_ref, rewards and a behaviour policy over six responses, in float64."""
    with jax.enable_x64(True):
        reference, rewards, behaviour = jnp.asarray(
            np.random.default_rng(1).normal(size=(3, 6)), jnp.float64
        )
        yield jax.nn.log_softmax(reference), rewards, jax.nn.softmax(behaviour)


def assert_optimal(loss, reference, logits):
    """``loss`` is a function of log-ratios of all ordered pairs; logits are those of the claimed optimum."""
    first, second = (index.reshape(-1) for index in np.indices((6, 6)))

    def total(logits):
        ratios = jax.nn.log_softmax(logits) - reference
        return jnp.sum(loss(ratios[first], ratios[second], first, second))

    close(jax.grad(total)(logits), 0, 1e-12)
    assert np.abs(jax.grad(total)(reference)).max() > 1e-3


def test_dpo_and_rebel_reach_the_optimum_of_regularised_reward(table):
    """DPO for Bradley-Terry labels and any distribution of pairs; REBEL and two-sample DRO likewise."""
    reference, rewards, _ = table
    any_weights = jnp.asarray(np.random.default_rng(2).uniform(0.1, 1, size=(6, 6)))
    optimum = reference + rewards / BETA

    def of_dpo(chosen, rejected, i, j):
        probability = jax.nn.sigmoid(rewards[i] - rewards[j])
        weights = (any_weights + any_weights.T)[i, j] * probability
        return weights * pairwise.dpo_loss(chosen, rejected, beta=BETA)

    def of_rebel(chosen, rejected, i, j):
        losses = pairwise.rebel_loss(chosen, rejected, rewards[i], rewards[j], eta=1 / BETA)
        return any_weights[i, j] * losses

    def of_dro(chosen, rejected, i, j):
        return any_weights[i, j] * pairwise.two_sample_dro_loss(
            chosen, rejected, rewards[i], rewards[j], temperature=BETA
        )

    for loss in (of_dpo, of_rebel, of_dro):
        assert_optimal(loss, reference, optimum)


def test_ipo_on_sums_tilts_by_the_mean_preference(table):
    """pi_ref exp(E_{y' ~ mu} p(y > y') / tau), with pairs drawn from mu."""
    reference, rewards, behaviour = table
    preferences = jax.nn.sigmoid(rewards[:, None] - rewards[None, :])

    def loss(chosen, rejected, i, j):
        losses = pairwise.ipo_loss(
            chosen, rejected, jnp.ones(36), jnp.ones(36), tau=TAU, length_average=False
        )
        return behaviour[i] * behaviour[j] * preferences[i, j] * losses

    assert_optimal(loss, reference, reference + preferences @ behaviour / TAU)


def test_soft_preferences_reach_the_optimum_from_any_pairs(table):
    reference, rewards, _ = table

    def loss(chosen, rejected, i, j):
        probabilities = jax.nn.sigmoid(rewards[i] - rewards[j])
        losses = soft_preference.soft_preference_loss(chosen, rejected, probabilities, beta=BETA)
        return jnp.where(i < j, losses, 0)

    assert_optimal(loss, reference, reference + rewards / BETA)


# Robustness.


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=15)
@given(numbers=st.lists(EXTREME, min_size=9, max_size=9), length=st.sampled_from([0.0, 1.0, 300.0]))
def test_extreme_inputs_give_finite_losses_and_gradients(method, numbers, length):
    keys = [name for name in made() if not name.endswith(("lengths", "mask"))]
    arrays = {name: jnp.float32([x]) for name, x in zip(keys, numbers, strict=True)}
    arrays |= {f"{who}_lengths": jnp.float32([length]) for who in ("chosen", "rejected")}
    arrays["third_mask"] = jnp.array([numbers[0] > 0])
    assert np.isfinite(losses_of(METHODS[method], arrays)).all()
    assert all(np.isfinite(x).all() for x in slopes(METHODS[method], arrays).values())


@pytest.mark.parametrize("method", METHODS)
def test_gradients_equal_finite_differences(method):
    with jax.enable_x64(True):
        arrays = {
            name: array if array.dtype == bool else jnp.asarray(array, jnp.float64)
            for name, array in made(dtype=np.float64).items()
        }
        moving = [name for name in quantities_of(METHODS[method])[0] if name.endswith(POLICY)]

        def loss(*values):
            return losses_of(
                METHODS[method], arrays | dict(zip(moving, map(jnp.asarray, values), strict=True))
            )

        start = tuple(arrays[name] for name in moving)
        assert loss(*start).dtype == jnp.float64
        check_grads(loss, start, 1, modes=["rev"])


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_is_computed_in_float32(method):
    low = {n: a if a.dtype == bool else a.astype(jnp.bfloat16) for n, a in made().items()}
    high = {n: a if a.dtype == bool else a.astype(jnp.float32) for n, a in low.items()}
    found = losses_of(METHODS[method], low)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, losses_of(METHODS[method], high))


@pytest.mark.parametrize(
    ("function", "changes", "message"),
    [
        (pairwise.cdpo_loss, {"beta": 0.1, "label_smoothing": 0.5}, r"cdpo.label_smoothing.*0\.5"),
        (pairwise.robust_dpo_loss, {"beta": 0.1, "flip_rate": -0.1}, "robust_dpo.flip_rate"),
        (pairwise.robust_dpo_loss, {"beta": 0.0, "flip_rate": 0.1}, "robust_dpo.beta.*positive"),
        (pairwise.ipo_loss, {"tau": 0.0}, "ipo.tau must be positive"),
        (pairwise.slic_loss, {"margin": -1.0}, "slic.margin must be at least 0"),
        (pairwise.hinge_loss, {"beta": -1.0}, "hinge.beta"),
        (pairwise.rebel_loss, {"eta": math.inf}, "rebel.eta.*finite"),
        (pairwise.selm_loss, {"beta": 0.1, "alpha": -1.0}, "selm.alpha"),
        (pairwise.selm_loss, {"beta": 0.1, "alpha": 1.0, "clip": 0.0}, "selm.clip"),
        (soft_preference.osp_loss, {"beta": 0.1, "band": -0.1}, "osp.band"),
        (soft_preference.osp_logistic_loss, {"beta": 0.1, "scale": 0.0}, "osp_logistic.scale"),
    ],
)
def test_impossible_hyperparameters_are_refused_by_name(function, changes, message):
    with pytest.raises(UserError, match=message):
        losses_of(functools.partial(function, **changes), made())


def test_osp_declares_that_its_feedback_is_a_probability():
    assert requirements_of(METHODS["osp"]).probabilities == ("chosen_feedback",)
    assert requirements_of(METHODS["osp_logistic"]).probabilities == ()
