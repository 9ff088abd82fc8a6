"""Samples from the mean logits of passes with dropout."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.data.batches import prompt_rows
from jaxalign.data.encoding import TextEncoder
from jaxalign.data.tokenization import Limits
from jaxalign.data.vocabularies import ByteVocabulary
from jaxalign.errors import UserError
from jaxalign.inference.dropout_ensemble import ensemble_responses, mc_mean_logits_decode
from jaxalign.networks import decoding
from jaxalign.networks.config import T5Config
from jaxalign.networks.policy import Policy
from jaxalign.networks.token_choice import sequence_keys

CONFIG = T5Config(
    vocab_size=262,
    emb_dim=8,
    num_heads=1,
    head_dim=8,
    mlp_dim=8,
    num_encoder_layers=1,
    num_decoder_layers=1,
    mlp_activations=("relu",),
)
PROMPTS = prompt_rows([[50, 60, 1], [70, 1]], 4)
LENGTH = 6


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda leaf: 4 * leaf, Policy(CONFIG).init(jax.random.key(0)))


def decode(params, dropout_rate, seeds, key):
    policy = Policy(dataclasses.replace(CONFIG, dropout_rate=dropout_rate))
    keys = jnp.stack([jax.random.key(seed, impl="rbg") for seed in seeds])
    rows = sequence_keys(key, jnp.arange(2), 1)[:, 0]
    return np.asarray(
        mc_mean_logits_decode(policy, params, PROMPTS, keys, rows, top_p=0.9, max_decode_len=LENGTH)
    )


def test_one_pass_without_dropout_is_ordinary_sampling(params):
    key = jax.random.key(3)
    found = decode(params, 0.0, [0], key)
    wanted = decoding.generate(
        Policy(CONFIG), params, PROMPTS, max_decode_len=LENGTH, rng=key, temperature=1.0, top_p=0.9
    )
    np.testing.assert_array_equal(found, np.asarray(wanted.tokens)[:, 0])


def test_the_order_of_passes_does_not_matter_but_their_keys_do(params):
    key = jax.random.key(3)
    found = decode(params, 0.5, [1, 2], key)
    np.testing.assert_array_equal(decode(params, 0.5, [2, 1], key), found)
    assert (decode(params, 0.5, [3, 4], key) != found).any()
    ended = np.cumsum(found == 1, axis=1) - (found == 1) > 0
    assert (found[ended] == 0).all()


def test_responses_are_texts_that_the_seed_determines(params):
    policy = Policy(dataclasses.replace(CONFIG, dropout_rate=0.5))
    encoder = TextEncoder(ByteVocabulary(0), Limits(8, LENGTH))
    options = {"passes": 2, "batch_size": 2}
    first = ensemble_responses(policy, params, encoder, ["a", "b", "c"], **options)
    assert len(first) == 3 and all(isinstance(text, str) for text in first)
    assert ensemble_responses(policy, params, encoder, ["a", "b", "c"], **options) == first
    with pytest.raises(UserError, match="has no dropout"):
        ensemble_responses(Policy(CONFIG), params, encoder, ["a"])
