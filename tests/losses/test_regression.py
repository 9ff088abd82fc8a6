"""Relatives of DRO: values by hand, the optima that each one aims at, AGRO's gradient, QRPO's partition functions, robustness."""

import functools
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from jaxalign.errors import UserError
from jaxalign.losses import dro, regression
from jaxalign.losses.requirements import requirements_of
from tests.fixtures import numbers

close = functools.partial(numbers.close, tolerance=1e-12)


def compiled(function):
    """Compiled as a whole, with the hyperparameters static: faster than one operation after another."""
    parameters = inspect.signature(function).parameters.values()
    static = [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]
    return jax.jit(function, static_argnames=static)


zero_value_loss = compiled(regression.zero_value_loss)
agro_loss = compiled(regression.agro_loss)
kimi_loss = compiled(regression.kimi_loss)
reward_partitioning_loss = compiled(regression.reward_partitioning_loss)
astar_po_loss = compiled(regression.astar_po_loss)
qrpo_loss = compiled(regression.qrpo_loss)
quantile_rewards = compiled(regression.quantile_rewards)
soft_value = compiled(regression.soft_value)

EXTREME = st.floats(-1e4, 1e4, width=32)
TAUS = (0.3, 1.0, 5.0)
SAMPLES = 40


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


class Bandit:
    """Six prompts with five responses; drawn in the order of the specification, so that its table of published numbers applies."""

    def __init__(self):
        generator = np.random.default_rng(0)
        logits, behaviour = generator.normal(size=(2, 6, 5))
        self.rewards = jnp.asarray(
            generator.normal(size=(6, 5)) + 1.5 * generator.normal(size=(6, 1))
        )
        self.reference = jax.nn.log_softmax(jnp.asarray(logits))
        self.behaviour = jax.nn.softmax(jnp.asarray(behaviour))

    def log_ratios(self, log_probs):
        return log_probs - self.reference

    def optimum(self, temperature):
        return dro.optimal_policy_log_probs(self.reference, self.rewards, temperature=temperature)

    def lost(self, log_probs, temperature):
        """KL(pi* || pi) and the regularised reward below pi*'s, means over prompts."""
        best, values = self.optimum(temperature)
        divergence = jnp.mean(jnp.sum(jnp.exp(best) * (best - log_probs), axis=-1))
        targets = self.rewards - temperature * self.log_ratios(log_probs)
        return divergence, jnp.mean(values - jnp.sum(jnp.exp(log_probs) * targets, axis=-1))


@pytest.fixture(scope="module")
def bandit():
    with jax.enable_x64(True):
        return Bandit()


def minimise(loss, start):
    """The log-probabilities whose logits minimise a loss, from those of the reference policy."""
    found = minimum(lambda logits: loss(jax.nn.log_softmax(logits.reshape(start.shape))), start)
    return jax.nn.log_softmax(found.reshape(start.shape))


def minimum(function, start):
    """Where a function of a vector is least."""
    objective = jax.jit(jax.value_and_grad(function))

    def on_host(variables):
        value, gradient = objective(variables)
        return float(value), np.asarray(gradient)

    options = {"gtol": 1e-11, "maxiter": 3000}
    found = scipy.optimize.minimize(
        on_host, np.ravel(start), jac=True, method="BFGS", options=options
    )
    return jnp.asarray(found.x)


def kl(expected, found):
    return float(jnp.max(jnp.sum(jnp.exp(expected) * (expected - found), axis=-1)))


def logged(policy, samples=SAMPLES):
    """Indices of responses, ``[prompts, samples]``: every response about as often as the policy says, and at least once."""
    counts = np.maximum(1, np.floor(np.asarray(policy) * samples)).astype(int)
    counts[np.arange(len(counts)), counts.argmax(axis=1)] += samples - counts.sum(axis=1)
    return np.stack([np.repeat(np.arange(row.size), row) for row in counts])


def take(table, indices):
    return jnp.take_along_axis(table, jnp.asarray(indices), axis=-1)


def empirical_log_probs(indices, responses):
    counts = np.stack([np.bincount(row, minlength=responses) for row in indices])
    return jnp.log(jnp.asarray(counts / counts.sum(axis=1, keepdims=True)))


# What each method aims at.


@pytest.mark.parametrize("tau", TAUS)
def test_agro_reaches_the_optimum_whatever_policy_wrote_the_responses(bandit, tau):
    indices = logged(bandit.behaviour)
    rewards, everywhere = take(bandit.rewards, indices), jnp.ones(indices.shape, bool)

    def loss(log_probs):
        ratios = take(bandit.log_ratios(log_probs), indices)
        return agro_loss(ratios, rewards, everywhere, temperature=tau)[0].sum()

    assert kl(bandit.optimum(tau)[0], minimise(loss, bandit.reference)) < 1e-6


@pytest.mark.parametrize("tau", [0.3, 1.0])
def test_astar_po_with_all_of_the_reference_policy_is_dro_with_an_oracle(bandit, tau):
    """beta1 = beta2 = tau and samples in the proportions of pi_ref: V is exact and so is the optimum; another beta1 misses it."""
    indices = logged(jnp.exp(bandit.reference))
    reference = empirical_log_probs(indices, 5)
    best, values = dro.optimal_policy_log_probs(reference, bandit.rewards, temperature=tau)
    samples = take(bandit.rewards, indices)
    close(soft_value(samples, temperature=tau), values)

    def solve(beta1):
        def loss(log_probs):
            losses = astar_po_loss(
                log_probs - reference, bandit.rewards, samples, beta1=beta1, beta2=tau
            )
            return jnp.sum(bandit.behaviour * losses)

        return minimise(loss, reference)

    assert kl(best, solve(tau)) < 1e-6
    assert kl(best, solve(0.0)) > 1e-3


@pytest.mark.parametrize(
    ("transform", "tied"),
    [("identity", False), ("identity", True), ("log", True), ("normal", False)],
)
def test_qrpo_reaches_the_optimum_of_the_quantile_reward(bandit, transform, tied):
    """With Z over the very samples that define the quantile, ties included: pi_ref exp(R / beta), normalised."""
    beta = 0.5
    rewards = jnp.round(bandit.rewards) if tied else bandit.rewards
    indices = logged(jnp.exp(bandit.reference))
    reference, samples = empirical_log_probs(indices, 5), take(rewards, indices)
    quantiles = quantile_rewards(rewards, samples, transform=transform)

    def loss(log_probs):
        losses = qrpo_loss(
            log_probs - reference,
            rewards,
            samples,
            beta=beta,
            transform=transform,
            log_partition="samples",
        )
        return jnp.sum(bandit.behaviour * losses)

    expected = jax.nn.log_softmax(reference + quantiles / beta)
    assert kl(expected, minimise(loss, reference)) < 1e-6


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_qrpo_with_the_exact_partition_function_is_right_up_to_one_over_n(beta):
    """n equally likely responses without ties: the residual at pi_ref exp(R / beta) / Z is the same for all of them and O(1/n)."""
    for count in (100, 500):
        rewards = jnp.asarray(np.random.default_rng(0).normal(size=(1, count)))
        reference = jnp.full((1, count), -math.log(count))
        quantiles = quantile_rewards(rewards, rewards)
        best = jax.nn.log_softmax(reference + quantiles / beta)
        residuals = jnp.sqrt(qrpo_loss(best - reference, rewards, rewards, beta=beta))
        close(residuals, residuals[0, 0], tolerance=1e-9)
        assert 0.1 / count < residuals[0, 0] < 1 / count


# Means over prompts from the specification's table: KL(pi* || pi) and the regularised reward lost, by temperature.
BIASED = [
    ("V = 0", 0.3, 0.513, 0.274),
    ("V = 0", 1.0, 0.184, 0.214),
    ("V = 0", 5.0, 0.018, 0.091),
    ("mean reward", 0.3, 0.324, 0.214),
    ("mean reward", 1.0, 0.076, 0.094),
    ("mean reward", 5.0, 0.004, 0.022),
]


@pytest.mark.parametrize("tau", [0.3, 1.0, 5.0])
def test_dro_reaches_the_optimum_with_its_value_fitted_or_profiled_out(bandit, tau):
    """V of its own, and V that is at every moment the mean of the targets: the specification's first and last rows."""

    def loss(log_probs, values):
        ratios = bandit.log_ratios(log_probs)
        if values is None:
            targets = dro.value_target(ratios, bandit.rewards, temperature=tau)
            values = jnp.sum(bandit.behaviour * targets, axis=-1)
        values = jnp.broadcast_to(values[:, None], ratios.shape)
        delta = dro.value_target(ratios, bandit.rewards, temperature=tau) - values
        return jnp.sum(bandit.behaviour * jnp.square(delta)) / 2

    profiled = minimise(lambda log_probs: loss(log_probs, None), bandit.reference)
    assert kl(bandit.optimum(tau)[0], profiled) < 1e-6

    def of_both(variables):
        table = variables.reshape(6, 6)
        return loss(jax.nn.log_softmax(table[:, :5]), table[:, 5])

    start = jnp.pad(bandit.reference, ((0, 0), (0, 1)))
    table = minimum(of_both, start).reshape(6, 6)
    assert kl(bandit.optimum(tau)[0], jax.nn.log_softmax(table[:, :5])) < 1e-6
    np.testing.assert_allclose(table[:, 5], bandit.optimum(tau)[1].ravel(), atol=1e-4)


@pytest.mark.parametrize(("value", "tau", "divergence", "lost"), BIASED)
def test_a_value_that_is_not_learned_misses_the_optimum_by_a_known_amount(
    bandit, value, tau, divergence, lost
):
    means = jnp.sum(bandit.behaviour * bandit.rewards, axis=-1, keepdims=True)
    rewards = bandit.rewards - means if value == "mean reward" else bandit.rewards

    def loss(log_probs):
        losses = zero_value_loss(bandit.log_ratios(log_probs), rewards, temperature=tau)
        return jnp.sum(bandit.behaviour * losses)

    found = bandit.lost(minimise(loss, bandit.reference), tau)
    np.testing.assert_allclose(found, (divergence, lost), atol=1e-3)


@pytest.mark.parametrize("tau", [0.3, 1.0])
def test_kimi_aims_where_the_regression_with_the_mean_reward_does(bandit, tau):
    indices = logged(bandit.behaviour)
    rewards, everywhere = take(bandit.rewards, indices), jnp.ones(indices.shape, bool)
    centred = rewards - rewards.mean(axis=1, keepdims=True)

    def kimi(log_probs):
        taken = (take(log_probs, indices), take(bandit.log_ratios(log_probs), indices))
        return kimi_loss(*taken, rewards, everywhere, temperature=tau)[0].sum()

    def mean_value(log_probs):
        ratios = take(bandit.log_ratios(log_probs), indices)
        return zero_value_loss(ratios, centred, temperature=tau).sum()

    found = minimise(kimi, bandit.reference)
    assert kl(minimise(mean_value, bandit.reference), found) < 1e-8
    assert kl(bandit.optimum(tau)[0], found) > 1e-2


# Values and gradients.


@pytest.fixture
def arrays():
    """Log-probabilities, reference log-probabilities and rewards, `[4, 3]` in float64, and a mask with all sizes of group."""
    log_probs, reference, rewards = np.random.default_rng(1).normal(size=(3, 4, 3))
    mask = jnp.arange(3)[None] < jnp.array([3, 2, 1, 0])[:, None]
    return jnp.asarray(log_probs - 9), jnp.asarray(reference - 9), jnp.asarray(rewards), mask


def test_losses_before_the_first_step_are_those_of_the_rewards(arrays):
    _, _, rewards, _ = arrays
    zero = jnp.zeros_like(rewards)
    close(zero_value_loss(zero, rewards, temperature=2.0), rewards**2)
    losses, _ = agro_loss(zero, rewards, zero == 0, temperature=2.0)
    close(losses, 0.5 * np.var(rewards, axis=1, ddof=1))
    samples = jnp.tile(rewards[:, :1], (1, 4))
    found = astar_po_loss(zero, rewards, samples, beta1=0.7, beta2=2.0)
    close(found, (rewards - rewards[:, :1]) ** 2)


def test_values_by_hand():
    # r = 2, l = 0.3.
    one = jnp.ones((1, 1))
    ratios, rewards = 0.3 * one, 2 * one
    close(zero_value_loss(ratios, rewards, temperature=2.0), 1.4**2)
    samples = jnp.array([[0.0, 2.0, 1.0, 3.0]])
    mean = astar_po_loss(ratios, rewards, samples, beta1=0.0, beta2=2.0)
    close(mean, (0.6 + 1.5 - 2) ** 2)
    value = 0.5 * math.log((1 + math.exp(4) + math.exp(2) + math.exp(6)) / 4)
    soft = astar_po_loss(ratios, rewards, samples, beta1=0.5, beta2=2.0)
    close(soft, (0.6 + value - 2) ** 2)
    # Three of four samples are at most 2.
    found = qrpo_loss(ratios, rewards, samples, beta=0.5)
    close(found, (0.75 - 0.5 * math.log(0.5 * (math.exp(2) - 1)) - 0.15) ** 2)
    two = jnp.ones((1, 2), bool)
    pair = jnp.array([[0.3, 0.1]]), jnp.array([[2.0, 1.0]])
    losses, weights = agro_loss(*pair, two, temperature=2.0)
    close(losses, 0.25 * 0.6**2)
    assert weights.tolist() == [1]
    losses, weights = kimi_loss(jnp.array([[-4.0, -5.0]]), *pair, two, temperature=2.0)
    close(losses, [[0.5 * 4 + 0.09, -0.5 * 5 + 0.01]])
    assert weights.tolist() == [[1, 1]]


@pytest.mark.parametrize("tau", TAUS)
def test_agro_gradient_has_the_leave_one_out_baseline(arrays, tau):
    """Over tau: ``-(1/n) sum_j (z_j - mean of the other z) grad log pi_j``."""
    log_probs, reference, rewards, mask = arrays

    def loss(log_probs):
        return agro_loss(log_probs - reference, rewards, mask, temperature=tau)[0].sum()

    found = jax.grad(loss)(log_probs) / tau
    expected = np.zeros_like(found)
    targets = np.asarray(rewards - tau * (log_probs - reference))
    for prompt, size in enumerate((3, 2)):
        for j in range(size):
            others = [targets[prompt, k] for k in range(size) if k != j]
            expected[prompt, j] = -(targets[prompt, j] - np.mean(others)) / size
    close(found, expected)


@pytest.mark.parametrize("size", [2, 5])
def test_leave_one_out_identities(size):
    """``z_j - zbar_{-j} = n/(n-1) (z_j - zbar)``; a differentiated leave-one-out baseline only changes the factor, to its square."""
    z = jnp.asarray(np.random.default_rng(size).normal(size=size))
    factor = size / (size - 1)

    def leave_one_out(z):
        return z - (jnp.sum(z) - z) / (size - 1)

    close(leave_one_out(z), factor * (z - z.mean()))
    everywhere = jnp.ones((1, size), bool)

    def agro(z):
        losses, _ = agro_loss(-z[None], jnp.zeros((1, size)), everywhere, temperature=1.0)
        return losses[0]

    gradient = jax.jit(jax.grad(agro))(z)
    close(gradient, leave_one_out(z) / size)
    differentiated = jax.grad(lambda z: 0.5 * jnp.mean(jnp.square(leave_one_out(z))))
    through_baseline = jax.jit(differentiated)(z)
    close(through_baseline, factor * gradient)


def test_agro_on_pairs_is_the_two_sample_loss(arrays):
    log_probs, reference, rewards, _ = arrays
    ratios, rewards = (log_probs - reference)[:, :2], rewards[:, :2]
    found, _ = agro_loss(ratios, rewards, jnp.ones((4, 2), bool), temperature=0.7)
    close(found, dro.two_sample_loss(ratios, rewards, temperature=0.7))


def test_agro_and_kimi_ignore_the_difficulty_of_a_prompt(arrays):
    log_probs, reference, rewards, mask = arrays
    ratios, harder = log_probs - reference, rewards + jnp.arange(4.0)[:, None]
    for loss in (
        functools.partial(agro_loss, ratios),
        functools.partial(kimi_loss, log_probs, ratios),
    ):
        found, expected = (loss(r, mask, temperature=0.7)[0] for r in (harder, rewards))
        close(found, expected)


def test_kimi_is_dro_with_the_mean_reward_for_v(arrays):
    log_probs, reference, rewards, _ = arrays
    ratios = log_probs - reference
    found, _ = kimi_loss(log_probs, ratios, rewards, jnp.ones((4, 3), bool), temperature=0.7)
    means = jnp.broadcast_to(rewards.mean(axis=1, keepdims=True), rewards.shape)
    close(found, dro.policy_loss(log_probs, ratios, rewards, means, temperature=0.7))


def test_reward_partitioning_is_the_printed_formula(arrays):
    log_probs, reference, rewards, mask = arrays
    lengths, tau = jnp.asarray(np.random.default_rng(2).integers(1, 9, (4, 3)) * 1.0), 5.0
    losses, weights = reward_partitioning_loss(
        log_probs - reference, reference, lengths, rewards, mask, temperature=tau
    )
    expected = np.zeros((4, 3))
    for prompt, size in enumerate((3, 2)):
        first = slice(size)
        per_token = np.asarray(reference / lengths)[prompt, first]
        reward = np.asarray(rewards)[prompt, first]
        value = tau * np.log(np.sum(np.exp(per_token) * np.exp(reward / tau)))
        ratios = np.asarray((log_probs - reference) / lengths)[prompt, first]
        expected[prompt, first] = 0.5 * (ratios - (reward - value) / tau) ** 2
    close(losses, expected)
    assert weights.tolist() == [[1, 1, 1], [1, 1, 0], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("transform", "beta"),
    [
        *((transform, beta) for transform in ("identity", "log") for beta in (0.05, 0.3, 1.0, 4.0)),
        # Below, the mass lies beyond the quantiles that float64 can tell from 1.
        *(("normal", beta) for beta in (0.3, 1.0, 4.0)),
    ],
)
def test_quantile_partition_functions_equal_the_integral(transform, beta):
    """log E exp(R / beta) over a uniform quantile, by the trapezoidal rule in a variable that spreads both ends."""
    nodes = np.linspace(-40, 40, 200_001)
    quantiles = 1 / (1 + np.exp(-nodes))
    # log of the density of the nodes, exact in both tails.
    log_density = -np.logaddexp(0, -nodes) - np.logaddexp(0, nodes)
    values = {
        "identity": quantiles,
        "log": -np.logaddexp(0, -nodes),
        "normal": np.asarray(jax.scipy.special.ndtri(jnp.asarray(quantiles))),
    }[transform]
    exponents = values / beta + log_density
    exponents = np.where(np.isfinite(exponents), exponents, -np.inf)
    integral = np.logaddexp.reduce(exponents) + math.log(nodes[1] - nodes[0])
    tolerance = 1e-2 if transform == "normal" and beta < 1 else 1e-6
    close(
        regression.quantile_log_partition(beta, transform=transform), integral, tolerance=tolerance
    )


def test_the_released_partition_function_is_right_for_small_beta_only():
    both = [
        [
            regression.quantile_log_partition(beta, transform="identity", approximate=approximate)
            for approximate in (True, False)
        ]
        for beta in (0.003, 0.1, 1.0)
    ]
    assert both[0][0] == both[0][1]
    close(both[1][0], both[1][1], tolerance=1e-4)
    close(math.exp(both[2][0] - both[2][1]), math.e / (math.e - 1))


def test_qrpo_pushes_only_the_top_quantile_up_at_the_published_beta():
    """The log-ratio that a response is regressed to, at beta = 0.003: +5.8 nats for R = 1, -161 for R = 0.5."""
    samples, beta = jnp.array([[0.0, 1.0]]), 0.003
    slope = jax.grad(
        lambda ratios: qrpo_loss(ratios, jnp.array([[1.0, 0.0]]), samples, beta=beta).sum()
    )(jnp.zeros((1, 2)))
    # The slope at 0 of (t - beta l)^2 is -2 beta t.
    close(-slope / (2 * beta**2), [[5.8, -161]], tolerance=2e-2)


def test_quantiles_by_hand():
    rewards, samples = jnp.array([[-1.0, 0.0, 1.0, 5.0]]), jnp.array([[0.0, 0.0, 1.0, 2.0]])
    identity = quantile_rewards(rewards, samples)
    close(identity, [[0, 0.5, 0.75, 1]])
    found = quantile_rewards(rewards, samples, transform="log")
    close(found, np.log([[0.25, 0.5, 0.75, 1]]))
    found = quantile_rewards(rewards, samples, transform="normal")
    close(found, jax.scipy.special.ndtri(jnp.array([[0.25, 0.5, 0.75, 0.75]])))


@given(scale=st.floats(0.1, 10), seed=st.integers(0, 20))
def test_quantiles_do_not_depend_on_the_scale_of_rewards(scale, seed):
    rewards, samples = jnp.asarray(np.random.default_rng(seed).normal(size=(2, 3, 4)))
    found = quantile_rewards(jnp.exp(scale * rewards), jnp.exp(scale * samples))
    close(found, quantile_rewards(rewards, samples))


def test_the_soft_value_lies_between_mean_and_maximum_and_never_overflows():
    samples = jnp.array([[0.0, 1.0, 500.0]])
    close(soft_value(samples, temperature=1e6), 167, tolerance=1e-3)
    close(soft_value(samples, temperature=1e-3), 500, tolerance=1e-5)
    close(soft_value(samples, temperature=0.0), 167)
    assert np.isfinite(soft_value(samples.astype(jnp.float32), temperature=1e-3))


# What every loss has to stand.


@functools.partial(jax.jit, static_argnames="tau")
def every_loss(log_probs, reference, rewards, mask, tau=0.7):
    """All losses of the file on the same numbers, ``[examples, responses or 1]`` each."""
    ratios, lengths = log_probs - reference, jnp.full_like(rewards, 3)
    return {
        "zero_value": zero_value_loss(ratios, rewards, temperature=tau),
        "agro": agro_loss(ratios, rewards, mask, temperature=tau)[0][:, None],
        "kimi": kimi_loss(log_probs, ratios, rewards, mask, temperature=tau)[0],
        "reward_partitioning": reward_partitioning_loss(
            ratios, reference, lengths, rewards, mask, temperature=tau
        )[0],
        "astar_po": astar_po_loss(ratios, rewards, rewards, beta1=tau, beta2=tau),
        **{
            f"qrpo {transform} {partition}": qrpo_loss(
                ratios, rewards, rewards, beta=tau, transform=transform, log_partition=partition
            )
            for transform, partition in (
                ("identity", "exact"),
                ("log", "samples"),
                ("normal", "exact"),
            )
        },
    }


GROUPED = ("agro", "kimi", "reward_partitioning")


def test_only_the_policy_has_a_gradient(arrays):
    log_probs, reference, rewards, mask = arrays
    ratios, lengths = log_probs - reference, jnp.full_like(rewards, 3)

    def constants(reference, samples):
        return (
            reward_partitioning_loss(ratios, reference, lengths, rewards, mask, temperature=0.7)[
                0
            ].sum()
            + astar_po_loss(ratios, rewards, samples, beta1=0.5, beta2=0.7).sum()
            + qrpo_loss(ratios, samples, samples, beta=0.7, log_partition="samples").sum()
        )

    by_reference, by_samples = jax.grad(constants, argnums=(0, 1))(reference, rewards)
    assert not by_reference.any() and not by_samples.any()


def test_gradients_equal_finite_differences(arrays):
    log_probs, reference, rewards, mask = arrays

    @jax.jit
    def total(log_probs):
        losses = every_loss(jnp.asarray(log_probs), reference, rewards, mask)
        return jnp.stack([jnp.sum(jnp.sin(1.0 + loss)) for loss in losses.values()])

    check_grads(total, (np.asarray(log_probs),), order=1, modes=["rev"])


def test_absent_responses_and_prompts_change_nothing(arrays):
    log_probs, reference, rewards, mask = arrays
    garbage = jnp.full((4, 2), 1e30)
    padded = [
        jnp.concatenate([array, garbage], axis=1) for array in (log_probs, reference, rewards)
    ]
    padded_mask = jnp.concatenate([mask, garbage < 0], axis=1)
    expected, found = every_loss(*arrays), every_loss(*padded, padded_mask)
    for name in GROUPED:
        size = expected[name].shape[1]
        close(found[name][:, :size], expected[name])
        # Prompts with one response or none.
        assert not found[name][2:].any()


def test_prompts_with_one_response_have_no_weight_and_no_gradient(arrays):
    log_probs, reference, rewards, mask = arrays

    def total(log_probs):
        losses = every_loss(log_probs, reference, rewards, mask)
        return sum(losses[name].sum() for name in GROUPED)

    gradient = jax.grad(total)(log_probs)
    assert not gradient[2:].any() and gradient[0].all()
    _, weights = agro_loss(log_probs, rewards, mask, temperature=1.0)
    assert weights.tolist() == [1, 1, 0, 0]


@functools.partial(jax.jit, static_argnames="tau")
def everything(log_probs, reference, rewards, mask, tau):
    def flat(log_probs):
        return jnp.concatenate(
            [loss.ravel() for loss in every_loss(log_probs, reference, rewards, mask, tau).values()]
        )

    return flat(log_probs), jax.jacobian(flat)(log_probs)


@given(
    numbers=st.lists(EXTREME, min_size=6, max_size=6),
    present=st.integers(0, 2),
    tau=st.sampled_from([0.01, 100.0]),
)
def test_extreme_inputs_give_finite_losses_and_gradients(numbers, present, tau):
    log_probs, reference, rewards = jnp.asarray(numbers, jnp.float32).reshape(3, 1, 2)
    mask = jnp.arange(2)[None] < present
    losses, gradients = everything(log_probs, reference, rewards, mask, tau)
    assert losses.dtype == jnp.float32
    assert np.isfinite(losses).all() and np.isfinite(gradients).all()


def test_bfloat16_is_computed_in_float32():
    low = jnp.array([[-300.0, -7.0]], jnp.bfloat16)
    reward = jnp.array([[0.1, 2.0]], jnp.bfloat16)
    both = jnp.ones((1, 2), bool)
    wide = every_loss(low.astype(jnp.float32), 0 * low, reward.astype(jnp.float32), both)
    for name, loss in every_loss(low, 0 * low, reward, both).items():
        assert loss.dtype == jnp.float32, name
        np.testing.assert_allclose(loss, wide[name], rtol=1e-6)


# Refusals.


def test_a_single_response_per_prompt_is_refused_by_name():
    one, mask = jnp.ones((2, 1)), jnp.ones((2, 1), bool)
    cases = {
        "agro": lambda: agro_loss(one, one, mask, temperature=1.0),
        "kimi": lambda: kimi_loss(one, one, one, mask, temperature=1.0),
        "reward_partitioning": lambda: reward_partitioning_loss(
            one, one, one, one, mask, temperature=1.0
        ),
    }
    for name, call in cases.items():
        with pytest.raises(UserError, match=f"{name} compares .* at least 2 per prompt, not 1"):
            call()
        assert requirements_of(getattr(regression, f"{name}_loss")).min_responses == 2


def test_hyperparameters_that_cannot_work_are_refused():
    one = jnp.ones((1, 1))
    for options, message in (
        ({"beta": 0.0}, "qrpo.beta must be positive"),
        ({"beta": 1.0, "transform": "rank"}, "qrpo.transform must be one of"),
        ({"beta": 1.0, "log_partition": "none"}, "qrpo.log_partition must be one of"),
        ({"beta": 1.0, "transform": "normal"}, "needs at least 2 reference rewards"),
        (
            {"beta": 1.0, "transform": "log", "log_partition": "approximate"},
            "'approximate' is for transform 'identity'",
        ),
    ):
        with pytest.raises(UserError, match=message):
            qrpo_loss(one, one, one, **options)
    with pytest.raises(UserError, match=r"astar_po\.beta2 must be positive"):
        astar_po_loss(one, one, one, beta1=0.0, beta2=0.0)
    with pytest.raises(UserError, match=r"astar_po\.beta1 must be at least 0"):
        astar_po_loss(one, one, one, beta1=-1.0, beta2=1.0)
    with pytest.raises(UserError, match=r"zero_value\.temperature must be positive"):
        zero_value_loss(one, one, temperature=math.inf)
