"""Counted operations agree with XLA's own count on models without loops, where XLA's count is correct."""

import jax
import jax.numpy as jnp
import pytest

from jaxalign.data.batches import make_batch
from jaxalign.networks.config import T5Config
from jaxalign.networks.policy import Policy
from jaxalign.networks.value import SharedTrunkValue
from jaxalign.networks.value_variants import ZeroValue
from jaxalign.objectives.dro import DROV
from jaxalign.planning import flops
from jaxalign.training.build import abstract_params
from tests.fixtures.families import FAMILIES

SOURCE, TARGET, ROWS = 48, 32, 2
CONFIG = T5Config(
    vocab_size=512,
    emb_dim=128,
    num_heads=4,
    head_dim=32,
    mlp_dim=256,
    num_encoder_layers=1,
    num_decoder_layers=2,
)
# XLA also counts element-wise operations, 1 to 2 % of these small networks, and it removes common subexpressions.
TOLERANCE = 0.04


def batch_of():
    return make_batch(
        [],
        num_rows=ROWS,
        input_length=SOURCE,
        target_length=TARGET,
        examples_per_row=1,
        responses_per_example=1,
    )


def policy_of(**changes):
    return Policy(CONFIG.replace(**changes), logits_chunk_size=None)


def encode(policy):
    return lambda params, batch: jnp.sum(policy.encode(params, batch))


def decode(policy):
    return lambda params, batch: jnp.sum(policy.decode(params, batch))


def score(policy):
    return lambda params, batch: jnp.sum(policy.score(params, batch).log_probs)


def xla_flops(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


@pytest.mark.parametrize("fusion", ["last", "gated"])
def test_parts_of_the_forward_pass_match_xla(fusion):
    layers = 1 if fusion == "last" else 2
    policy, batch = policy_of(encoder_fusion=fusion, num_encoder_layers=layers), batch_of()
    params = policy.abstract_params()
    parts = flops.parts(policy.config, ROWS, SOURCE, TARGET)
    counts = [xla_flops(part(policy), params, batch) for part in (encode, decode, score)]
    assert counts[0] == pytest.approx(parts["encoder"], rel=TOLERANCE)
    assert counts[1] - counts[0] == pytest.approx(parts["decoder"], rel=TOLERANCE)
    assert counts[2] - counts[1] == pytest.approx(parts["logits"], rel=TOLERANCE)


@pytest.mark.parametrize("family", ["t5gemma", "t5gemma2"])
def test_parts_of_other_families_are_their_matrix_products(family):
    policy, batch = Policy(FAMILIES[family]), batch_of()
    params = policy.abstract_params()
    parts = flops.parts(policy.config, ROWS, SOURCE, TARGET)
    encoder, both = (flops.count_flops(part(policy), params, batch) for part in (encode, decode))
    assert encoder == parts["encoder"]
    assert both - encoder == parts["decoder"]


@pytest.mark.parametrize("remat_policy", ["none", "full"])
def test_gradient_with_and_without_recomputation_matches_xla(remat_policy):
    policy, batch = policy_of(remat_policy=remat_policy), batch_of()
    params = policy.abstract_params()
    gradient = jax.grad(score(policy))
    counted = flops.count_flops(gradient, params, batch)
    assert counted == pytest.approx(xla_flops(gradient, params, batch), rel=TOLERANCE)


def recomputed_flops(config, length):
    """Operations that the backward pass of one self-attention layer repeats under ``config.remat_policy``, for one row.

    'full' recomputes the layer up to the last product, which no gradient needs. 'minimal' recomputes the two products of attention.
    """
    joined = config.num_heads * config.head_dim
    if config.remat_policy == "full":
        return flops.layer_flops(config, length) - 2 * length * config.mlp_dim * config.emb_dim
    return 4 * length * length * joined if config.remat_policy == "minimal" else 0


@pytest.mark.parametrize("remat_policy", ["none", "minimal", "full"])
def test_recomputation_of_the_encoder_follows_the_formula(remat_policy):
    policy = policy_of(remat_policy=remat_policy)
    counted = flops.count_flops(jax.grad(encode(policy)), policy.abstract_params(), batch_of())
    forward = flops.encoder_flops(policy.config, SOURCE)
    recomputed = policy.config.num_encoder_layers * recomputed_flops(policy.config, SOURCE)
    assert counted == pytest.approx(ROWS * (3 * forward + recomputed), rel=0.005)


def test_scanned_layers_count_as_often_as_they_run():
    counts = [
        flops.count_flops(
            jax.grad(score(policy)), jax.eval_shape(policy.init, jax.random.key(0)), batch_of()
        )
        for policy in (policy_of(), policy_of(scan_layers=True))
    ]
    assert counts[1] == pytest.approx(counts[0], rel=0.005)


def test_a_value_on_the_policys_encoder_states_costs_no_further_pass():
    policy = policy_of()
    alone, shared = (
        flops.count_flops(jax.grad(loss_of(objective)), *shapes_of(objective))
        for objective in (
            DROV(policy=policy, value=ZeroValue()),
            DROV(policy=policy, value=SharedTrunkValue(policy)),
        )
    )
    assert alone < shared < 1.01 * alone


def loss_of(objective):
    return lambda params, batch: objective.loss(params, batch, None).loss_sum


def shapes_of(objective):
    fields = ("rewards", "reference_log_probs")
    batch = batch_of()
    batch |= dict.fromkeys(fields, batch["response_mask"])
    return abstract_params(objective), batch


def test_attention_grows_with_the_square_of_the_length():
    joined = CONFIG.num_heads * CONFIG.head_dim
    linear = flops.layer_flops(CONFIG, 1) - 4 * joined
    assert flops.layer_flops(CONFIG, 100) == 100 * linear + 4 * 100 * 100 * joined


def test_the_more_expensive_branch_of_a_condition_counts():
    def function(x, flag):
        return jax.lax.cond(flag, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert flops.count_flops(function, jnp.ones((8, 8)), True) == 2 * 2 * 8**3
