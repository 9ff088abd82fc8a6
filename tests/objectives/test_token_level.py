"""Token-level objectives: microbatches, packing, padding and holes change nothing; IFT without its parameters is SFT."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import UserError
from jaxalign.losses import token_level
from jaxalign.losses.distillation import jensen_shannon, reverse_kl
from jaxalign.networks.policy import Policy
from jaxalign.networks.token_value import TokenValueNetwork
from jaxalign.objectives.distillation import Distillation, top_log_probs
from jaxalign.objectives.ift import IFT, mixed_embeddings
from jaxalign.objectives.oreo import OREO
from jaxalign.objectives.sft import SFT
from jaxalign.objectives.token_weighted import TokenWeighted

PACKED = {"per_row": 2, "rows": 6, "extra": 3}


def weighted(loss, **options):
    return lambda policy: TokenWeighted(policy=policy, loss_function=loss, **options)


def distillation(**options):
    def make(policy):
        teacher = Policy(policy.config.replace(emb_dim=8))
        return Distillation(
            policy=policy,
            teacher=teacher,
            teacher_path="elsewhere",
            divergence=functools.partial(jensen_shannon, beta=0.3),
            hard_weight=0.2,
            **options,
        )

    return make


def stored(policy):
    return Distillation(
        policy=policy, divergence=reverse_kl, source="stored", normalization="tokens"
    )


CASES = {
    "ift": lambda policy: IFT(policy=policy, mix=0.4, normalization="responses", z_loss=1e-3),
    "gold": weighted(token_level.gold_loss, normalization="tokens"),
    "a_lol_seq": weighted(token_level.a_lol_seq_loss),
    "distillation": distillation(),
    "distillation_stored": stored,
    "oreo": lambda policy: OREO(
        policy=policy, value=TokenValueNetwork(policy.config), beta=0.3, kl_weight=0.1
    ),
}


COUNT = 5  # tokens of a stored teacher
_top_log_probs = jax.jit(
    lambda policy, params, batch: top_log_probs(policy, params, batch, COUNT), static_argnums=0
)


# Fed by the same code as another case.
SLOW = {"gold"}


@pytest.fixture(scope="module")
def batches(toy):
    """Two responses a prompt: eight rows; and the same examples packed, with empty rows and garbage where nothing is."""
    plain = toy.batch(2)
    stored_ids, stored_log_probs = _top_log_probs(toy.policy, toy.params["reference"], plain)
    packed = {name: np.array(array) for name, array in toy.batch(2, **PACKED).items()}
    exists, packed_exists = (batch["decoder_segment_ids"] > 0 for batch in (plain, packed))
    for name, array, garbage in (
        ("teacher_top_ids", stored_ids, 3),
        ("teacher_top_log_probs", stored_log_probs, np.nan),
    ):
        plain[name] = np.array(array)
        # Both layouts hold the tokens in one order.
        packed[name] = np.full((*packed_exists.shape, COUNT), garbage, array.dtype)
        packed[name][packed_exists] = plain[name][exists]
    packed["decoder_target_tokens"][~packed_exists] = 6
    packed["decoder_input_tokens"][~packed_exists] = 7
    for batch in (plain, packed):
        batch["advantages"] = batch["rewards"] + 0.3
    for name in ("rewards", "feedback", "advantages"):
        packed[name][4:] = 1e4
    return plain, packed


@pytest.fixture(scope="module")
def roles(toy):
    """Parameters of every role."""
    network = TokenValueNetwork(toy.policy.config)
    value = network.from_policy(jax.random.key(5), toy.params["reference"])
    value["head"] = jax.tree.map(lambda leaf: leaf * 100 + 0.1, value["head"])
    teacher = Policy(toy.policy.config.replace(emb_dim=8)).init(jax.random.key(6))
    return toy.params | {"value": value, "teacher": teacher}


@pytest.fixture(scope="module")
def case_of(toy, roles, batches, run_step):
    """`case_of(name)`: an objective, and its step on one batch of unpacked rows."""

    @functools.cache
    def make(name):
        objective = CASES[name](toy.policy)
        return objective, run_step(objective, roles, batches[0])

    return make


@pytest.fixture(
    params=[pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in CASES]
)
def case(request, case_of):
    return case_of(request.param)


@pytest.fixture(scope="module")
def sft(toy, roles, batches, run_step):
    """Supervised fine-tuning on the packed batch."""
    return run_step(SFT(policy=toy.policy, z_loss=1e-3), roles, batches[1])


def assert_same_step(found, expected):
    scale = max(np.abs(leaf).max(initial=0) for leaf in jax.tree.leaves(expected.gradients))
    assert scale > 1e-4, "the gradient vanishes, so this test would say nothing"
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * scale),
        found.gradients,
        expected.gradients,
    )
    assert found.means.keys() == expected.means.keys()
    for name, mean in expected.means.items():
        np.testing.assert_allclose(found.means[name], mean, rtol=1e-5, atol=2e-6, err_msg=name)


def test_packing_padding_holes_and_microbatches_change_nothing(case, roles, batches, run_step):
    objective, plain = case
    assert_same_step(run_step(objective, roles, batches[1], 2), plain)


def test_every_trained_network_moves_and_stays_finite(case):
    objective, plain = case
    assert plain.means["finite"] == 1
    for role in objective.trained():
        leaves = jax.tree.leaves(plain.gradients[role])
        assert max(np.abs(leaf).max() for leaf in leaves) > 1e-5, role


def test_missing_fields_are_named(case, batches):
    objective, _ = case
    objective.check_batch(batches[0])
    for field in objective.required_fields():
        with pytest.raises(UserError, match=f"objective {objective.name} needs .*{field}"):
            objective.check_batch({k: v for k, v in batches[0].items() if k != field})


class TestIFT:
    def test_without_mixture_and_discount_it_is_sft(self, toy, roles, batches, run_step, sft):
        objective = IFT(policy=toy.policy, mix=0.0, discount=0.0, z_loss=1e-3)
        found = run_step(objective, roles, batches[1])
        for name in ("loss", "negative_log_prob_per_token", "response_length"):
            np.testing.assert_allclose(found.means[name], sft.means[name], rtol=1e-6)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
            found.gradients,
            sft.gradients,
        )

    def test_no_gradient_reaches_the_table_through_decoder_inputs(self, batches, sft, case_of):
        """The output projection is untied here, so rows of tokens that no prompt holds get no gradient; with SFT they do."""
        batch = batches[0]
        rows = np.setdiff1d(batch["decoder_input_tokens"], batch["encoder_input_tokens"])
        assert rows.size > 5
        found, usual = (
            step.gradients["policy"]["token_embedder"]["embedding"]
            for step in (case_of("ift")[1], sft)
        )
        assert not np.any(found[rows]) and np.any(found)
        assert np.any(usual[rows])

    def test_inputs_are_mixed_with_the_prediction_of_the_token_before(self, toy, batches):
        policy, params, batch = toy.policy, toy.params["policy"], batches[1]
        table = params["token_embedder"]["embedding"]
        predicted = jnp.asarray(
            np.random.default_rng(0).integers(2, 47, batch["decoder_input_tokens"].shape)
        )
        found = mixed_embeddings(policy, params, batch, predicted, mix=0.3)
        segments = batch["decoder_segment_ids"]
        for row, t in np.argwhere(segments > 0)[::5]:
            expected = table[batch["decoder_input_tokens"][row, t]]
            if t and segments[row, t - 1] == segments[row, t]:
                expected = 0.7 * expected + 0.3 * table[predicted[row, t - 1]]
            np.testing.assert_allclose(found[row, t], expected, rtol=1e-5, atol=1e-6)

    def test_a_perfect_prediction_or_no_mixture_is_teacher_forcing(self, toy, batches):
        policy, params, batch = toy.policy, toy.params["policy"], batches[1]
        exists = batch["decoder_segment_ids"] > 0
        forced = policy.embed(params, jnp.asarray(batch["decoder_input_tokens"]))
        targets = jnp.asarray(batch["decoder_target_tokens"])
        perfect = mixed_embeddings(policy, params, batch, targets, mix=1.0)
        np.testing.assert_array_equal(perfect[exists], forced[exists])
        unmixed = mixed_embeddings(policy, params, batch, targets[::-1], mix=0.0)
        np.testing.assert_array_equal(unmixed, forced)

    def test_wrong_settings_are_refused_by_name(self, toy):
        for options, words in (
            ({"mix": 1.5}, r"IFT\.mix"),
            ({"discount": 1.0}, r"IFT\.discount"),
            ({"form": "eq"}, r"IFT\.form must be one of code, algorithm_1, equation_21"),
            ({"normalization": "batch"}, r"IFT\.normalization must be one of responses, tokens"),
        ):
            with pytest.raises(UserError, match=words):
                IFT(policy=toy.policy, **options)


@pytest.mark.parametrize("name", ["oreo", "distillation"])
def test_equal_networks_start_without_divergence(toy, roles, batches, name):
    """Policy equal to reference or teacher."""
    objective = CASES[name](toy.policy)
    if name == "distillation":
        objective = Distillation(policy=toy.policy)
    start = roles | dict.fromkeys(("reference", "teacher"), toy.params["policy"])
    metrics = jax.jit(lambda params, batch: objective.loss(params, batch, None).metrics)(
        start, batches[1]
    )
    means = {key: float(metric.total / metric.weight) for key, metric in metrics.items()}
    if name == "distillation":
        assert abs(means["loss"]) < 1e-5
        return
    assert means["log_ratio_squared"] == 0
    assert abs(means["kl_per_token"]) < 1e-6
    np.testing.assert_allclose(means["policy_loss"], means["value_loss"], rtol=1e-6)


def test_settings_and_data_that_do_not_fit_are_refused_by_name(toy, batches):
    policy = toy.policy
    other = Policy(policy.config.replace(emb_dim=8))
    for make, words in (
        (lambda: Distillation(policy=policy, teacher=other), "set Distillation.teacher_path"),
        (lambda: Distillation(policy=policy, source="cached"), "'live' or 'stored'"),
        (lambda: Distillation(policy=policy, hard_weight=2.0), "hard_weight"),
        (lambda: weighted(lambda lengths: lengths)(policy), "asks for 'lengths'; TokenWeighted"),
        (lambda: dataclasses.replace(CASES["oreo"](policy), beta=0.0), "OREO.beta"),
    ):
        with pytest.raises(UserError, match=words):
            make()
    short = batches[0] | {"teacher_top_ids": batches[0]["teacher_top_ids"][:, :-1]}
    with pytest.raises(UserError, match=r"one shape \[rows, length, k\]"):
        stored(policy).check_batch(short)
    r_gold = weighted(token_level.r_gold_loss)(policy)
    r_gold.check_batch(batches[0] | {"feedback": np.abs(batches[0]["feedback"])})
    with pytest.raises(UserError, match="r_gold needs feedback that are not negative"):
        r_gold.check_batch(batches[0])


def test_only_a_live_teacher_of_its_own_is_read_from_elsewhere(toy):
    made = distillation()(toy.policy)
    assert made.frozen_roles() == ("teacher",)
    assert made.frozen_sources() == {"teacher": (made.teacher, "elsewhere")}
    assert Distillation(policy=toy.policy).frozen_sources() == {}
    assert stored(toy.policy).frozen_roles() == ()
