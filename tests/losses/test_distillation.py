"""Divergences: gradients in closed form, limits, the chain rule over sequences, buckets of stored teachers, extreme logits."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from jaxalign.errors import UserError
from jaxalign.losses.distillation import (
    forward_kl,
    jensen_shannon,
    reverse_kl,
    student_buckets,
    teacher_buckets,
)

VOCABULARY = 7
HALF = functools.partial(jensen_shannon, beta=0.5)
ALL = {
    "forward": forward_kl,
    "reverse": reverse_kl,
    "js": functools.partial(jensen_shannon, beta=0.3),
}


def random_logits(seed, *shape):
    return 2 * jax.random.normal(jax.random.key(seed), shape)


TEACHER = jax.nn.log_softmax(random_logits(0, 4, VOCABULARY))
LOGITS = random_logits(1, 4, VOCABULARY)
STUDENT = jax.nn.log_softmax(LOGITS)


def logit_gradient(divergence, teacher=TEACHER, logits=LOGITS):
    def loss(logits):
        return jnp.sum(divergence(teacher, jax.nn.log_softmax(logits)))

    return jax.jit(jax.grad(loss))(logits)


@pytest.mark.parametrize("divergence", ALL.values(), ids=ALL)
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(divergence):
    np.testing.assert_allclose(divergence(STUDENT, STUDENT), 0, atol=1e-6)
    np.testing.assert_allclose(logit_gradient(divergence, STUDENT), 0, atol=1e-6)
    assert np.min(divergence(TEACHER, STUDENT)) > 0.01


def test_the_gradient_of_forward_kl_is_student_minus_teacher():
    np.testing.assert_allclose(
        logit_gradient(forward_kl), jnp.exp(STUDENT) - jnp.exp(TEACHER), atol=1e-6
    )


def test_the_gradient_of_reverse_kl():
    probabilities, ratios = jnp.exp(STUDENT), STUDENT - TEACHER
    expected = probabilities * (ratios - reverse_kl(TEACHER, STUDENT)[:, None])
    np.testing.assert_allclose(logit_gradient(reverse_kl), expected, atol=1e-6)


def test_fine_tuning_on_the_teachers_tokens_has_the_gradient_of_forward_kl_on_average():
    def fine_tuning(logits, token):
        return -jnp.sum(jax.nn.log_softmax(logits)[:, token])

    gradients = jax.vmap(jax.grad(fine_tuning), in_axes=(None, 0))(LOGITS, jnp.arange(VOCABULARY))
    expected = jnp.einsum("rv,vrw->rw", jnp.exp(TEACHER), gradients)
    np.testing.assert_allclose(logit_gradient(forward_kl), expected, atol=1e-6)


def test_no_gradient_reaches_the_teacher():
    for divergence in ALL.values():
        gradient = jax.grad(lambda teacher, f=divergence: jnp.sum(f(teacher, STUDENT)))(TEACHER)
        assert not np.any(gradient)


def test_jensen_shannon_is_symmetric_at_one_half_and_bounded():
    np.testing.assert_allclose(HALF(TEACHER, STUDENT), HALF(STUDENT, TEACHER), rtol=1e-6)
    far = jax.nn.log_softmax(jnp.array([[80.0, 0.0], [0.0, 80.0]]))
    for beta in (0.1, 0.5, 0.9):
        bound = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
        found = jensen_shannon(far, far[::-1], beta=beta)
        np.testing.assert_allclose(found, bound, rtol=1e-5)
        assert np.all(jensen_shannon(TEACHER, STUDENT, beta=beta) < bound)


def test_jensen_shannon_has_the_kls_as_limits_after_division():
    with jax.enable_x64(True):
        teacher, student = (
            jax.nn.log_softmax(np.asarray(x, np.float64)) for x in (TEACHER, LOGITS)
        )
        small = 1e-6
        low = jensen_shannon(teacher, student, beta=small) / small
        high = jensen_shannon(teacher, student, beta=1 - small) / small
        np.testing.assert_allclose(low, forward_kl(teacher, student), rtol=1e-4)
        np.testing.assert_allclose(high, reverse_kl(teacher, student), rtol=1e-4)


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.5, 2.0, math.nan])
def test_the_ends_of_jensen_shannon_are_refused(beta):
    with pytest.raises(UserError, match=r"jensen_shannon\.beta.*forward_kl or reverse_kl"):
        jensen_shannon(TEACHER, STUDENT, beta=beta)


def test_position_by_position_it_estimates_the_divergence_of_sequences():
    """KL(A || B) = E_{y ~ A} sum_t KL_t: all 27 sequences of three tokens out of three, weighted by A, against the definition."""
    length, vocabulary = 3, 3
    # Log-probabilities of the next token after every prefix.
    first, second = (
        [
            jax.nn.log_softmax(random_logits(seed + t, *[vocabulary] * (t + 1)))
            for t in range(length)
        ]
        for seed in (10, 20)
    )
    per_prefix = [np.asarray(forward_kl(a, b)) for a, b in zip(first, second, strict=True)]
    first, second = ([np.asarray(table) for table in tables] for tables in (first, second))
    definition = estimate = 0.0
    for sequence in itertools.product(range(vocabulary), repeat=length):
        logs = [
            sum(float(model[t][sequence[: t + 1]]) for t in range(length))
            for model in (first, second)
        ]
        definition += np.exp(logs[0]) * (logs[0] - logs[1])
        estimate += np.exp(logs[0]) * sum(per_prefix[t][sequence[:t]] for t in range(length))
    assert definition > 0.1
    np.testing.assert_allclose(estimate, definition, atol=1e-6)


def top(log_probs, count):
    values, ids = jax.lax.top_k(log_probs, count)
    return values, ids


class TestBuckets:
    @pytest.mark.parametrize("count", [VOCABULARY - 1, VOCABULARY])
    @pytest.mark.parametrize("divergence", ALL.values(), ids=ALL)
    def test_all_tokens_but_one_give_the_divergence_itself(self, divergence, count):
        values, ids = top(TEACHER, count)
        found = divergence(teacher_buckets(values), student_buckets(STUDENT, ids))
        np.testing.assert_allclose(found, divergence(TEACHER, STUDENT), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("divergence", ALL.values(), ids=ALL)
    def test_fewer_tokens_never_give_more(self, divergence):
        found = [divergence(TEACHER, STUDENT)]
        for count in (4, 2, 1):
            values, ids = top(TEACHER, count)
            found.append(divergence(teacher_buckets(values), student_buckets(STUDENT, ids)))
        assert np.all(np.diff(np.stack(found), axis=0) <= 1e-6)
        assert np.all(found[-1] < found[0])

    def test_both_are_distributions(self):
        values, ids = top(TEACHER, 3)
        for buckets in (teacher_buckets(values), student_buckets(STUDENT, ids)):
            assert buckets.shape == (4, 4)
            np.testing.assert_allclose(jnp.exp(buckets).sum(-1), 1, rtol=1e-5)

    def test_an_equal_student_has_nothing_to_learn(self):
        values, ids = top(STUDENT, 2)
        gradient = logit_gradient(
            lambda teacher, student: forward_kl(
                teacher_buckets(teacher), student_buckets(student, ids)
            ),
            values,
        )
        np.testing.assert_allclose(gradient, 0, atol=1e-6)

    def test_a_student_that_has_given_up_the_rest_still_has_a_gradient(self):
        """Its rest is 1e-22 of its mass, which no difference from 1 could tell; the teacher's is a half."""
        logits = jnp.array([[50.0, 0.0, 0.0, 0.0]])
        values, ids = jnp.log(jnp.array([[0.5]])), jnp.array([[0]])

        def loss(teacher, student):
            return forward_kl(teacher_buckets(teacher), student_buckets(student, ids))

        np.testing.assert_allclose(
            logit_gradient(loss, values, logits), [[0.5, -1 / 6, -1 / 6, -1 / 6]], rtol=1e-5
        )
        exact = 0.5 * math.log(0.5) + 0.5 * (math.log(0.5) + 50 - math.log(3))
        np.testing.assert_allclose(loss(values, jax.nn.log_softmax(logits)), exact, rtol=1e-6)


def test_gradients_equal_finite_differences():
    with jax.enable_x64(True):
        teacher, logits = (jnp.asarray(np.asarray(x[:2], np.float64)) for x in (TEACHER, LOGITS))
        values, ids = top(teacher, 3)

        @jax.jit
        def everything(logits):
            student = jax.nn.log_softmax(logits)
            stored = forward_kl(teacher_buckets(values), student_buckets(student, ids))
            return [f(teacher, student) for f in ALL.values()] + [stored]

        check_grads(lambda x: everything(jnp.asarray(x)), (logits,), 1, modes=["rev"])


EXTREME = st.lists(st.floats(-1e9, 1e9, width=32), min_size=3, max_size=3)


@jax.jit
@functools.partial(jax.value_and_grad, argnums=1)
def sum_of_all(teacher_logits, logits):
    teacher, student = jax.nn.log_softmax(teacher_logits), jax.nn.log_softmax(logits)
    values, ids = top(teacher, 2)
    stored = forward_kl(teacher_buckets(values), student_buckets(student, ids))
    return jnp.sum(stored) + sum(jnp.sum(f(teacher, student)) for f in ALL.values())


@given(EXTREME, EXTREME)
def test_extreme_logits_give_finite_values_and_gradients(teacher, student):
    value, gradient = sum_of_all(jnp.array([teacher]), jnp.array([student]))
    assert np.isfinite(value) and np.all(np.isfinite(gradient))


def test_impossible_tokens_of_the_teacher_are_no_harm_to_forward_kl():
    teacher = jnp.array([[math.log(0.5), math.log(0.5), -math.inf]])
    student = jax.nn.log_softmax(jnp.zeros((1, 3)))
    np.testing.assert_allclose(forward_kl(teacher, student), math.log(1.5), rtol=1e-6)
    gradient = logit_gradient(forward_kl, teacher, jnp.zeros((1, 3)))
    np.testing.assert_allclose(gradient, [[-1 / 6, -1 / 6, 1 / 3]], rtol=1e-5)


def test_bfloat16_is_computed_in_float32():
    teacher, student = TEACHER.astype(jnp.bfloat16), STUDENT.astype(jnp.bfloat16)
    for divergence in ALL.values():
        assert divergence(teacher, student).dtype == jnp.float32
