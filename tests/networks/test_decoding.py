"""Decoding equals T5X's, stops in time, and its log-probabilities are those that scoring gives."""

import itertools

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.networks.beam_search import EMPTY, beam_search
from jaxalign.networks.decoding import generate
from jaxalign.networks.policy import Policy
from jaxalign.networks.stacking import stack_layers
from jaxalign.networks.token_choice import nucleus_mask


@pytest.mark.parametrize("name", ["t5_1_1_f32", "t5_1_0_f32"])
def test_greedy_and_beam_search_equal_t5x(golden, name):
    expected = golden(name)
    policy = Policy(expected.config)
    prompts = expected.group("batch")["encoder_input_tokens"]
    greedy = generate(policy, expected.params, prompts, max_decode_len=12)
    np.testing.assert_array_equal(greedy.tokens, expected.arrays["decode/greedy/tokens"])
    beams = beam_search(policy, expected.params, prompts, num_beams=4, max_decode_len=12)
    np.testing.assert_array_equal(beams.tokens, expected.arrays["decode/beam4/tokens"])
    np.testing.assert_allclose(beams.scores, expected.arrays["decode/beam4/scores"], rtol=1e-5)


@pytest.fixture(scope="module")
def small(tiny_config):
    """A policy of six tokens, so that EOS is common and all short responses can be listed."""
    config = tiny_config.replace(vocab_size=6)
    params = jax.device_get(Policy(config).init(jax.random.key(1)))
    return Policy(config), params


PROMPTS = np.array([[3, 2, 1, 0, 0], [4, 5, 5, 2, 1], [2, 1, 0, 0, 0]], np.int32)


def scores_of(policy, params, prompts, tokens):
    """Log-probability of one response per prompt by teacher forcing."""
    tokens = np.asarray(tokens)
    batch = {
        "encoder_input_tokens": prompts,
        "encoder_segment_ids": (prompts > 0).astype(np.int32),
        "decoder_target_tokens": tokens,
        "decoder_input_tokens": np.pad(tokens[:, :-1], ((0, 0), (1, 0))),
        "decoder_segment_ids": (tokens > 0).astype(np.int32),
        "decoder_loss_weights": (tokens > 0).astype(np.float32),
        "response_mask": np.ones((len(prompts), 1, 1), np.float32),
    }
    return policy.score(params, batch).log_probs[:, 0]


def test_sampled_log_probs_are_those_of_the_untempered_policy(small):
    policy, params = small
    samples = generate(
        policy,
        params,
        PROMPTS,
        max_decode_len=8,
        rng=jax.random.key(0),
        temperature=0.7,
        top_p=0.95,
        num_samples=16,
    )
    tokens = np.asarray(samples.tokens)
    assert tokens.shape == (3, 16, 8)
    expected = scores_of(policy, params, np.repeat(PROMPTS, 16, axis=0), tokens.reshape(48, 8))
    np.testing.assert_allclose(samples.log_probs.reshape(-1), expected, atol=1e-4)

    for response in tokens.reshape(48, 8).tolist():
        end = response.index(1) + 1 if 1 in response else 8
        assert 0 not in response[:end]
        assert not any(response[end:])
    assert len({tuple(response) for response in tokens[0].tolist()}) > 1


def test_sampling_frequencies_are_the_probabilities(small):
    policy, params = small
    samples = generate(
        policy,
        params,
        PROMPTS[:1],
        max_decode_len=1,
        rng=jax.random.key(0),
        temperature=1.0,
        num_samples=4000,
    )
    tokens = np.asarray(samples.tokens)[0, :, 0]
    frequencies = np.bincount(tokens, minlength=6) / 4000
    single = np.arange(1, 6, dtype=np.int32)[:, None]
    log_probs = scores_of(policy, params, np.repeat(PROMPTS[:1], 5, axis=0), single)
    expected = np.exp(log_probs) / np.exp(log_probs).sum()
    np.testing.assert_allclose(frequencies[1:], expected, atol=0.03)
    assert frequencies[0] == 0


def test_top_1_is_greedy_and_rows_do_not_influence_each_other(small):
    policy, params = small
    greedy = generate(policy, params, PROMPTS, max_decode_len=8)
    top_1 = generate(
        policy, params, PROMPTS, max_decode_len=8, rng=jax.random.key(0), temperature=1.0, top_k=1
    )
    np.testing.assert_array_equal(greedy.tokens, top_1.tokens)
    alone = generate(policy, params, PROMPTS[1:2, :], max_decode_len=8)
    np.testing.assert_array_equal(alone.tokens[0], greedy.tokens[1])
    np.testing.assert_allclose(alone.log_probs[0], greedy.log_probs[1], rtol=1e-5)


def test_scanned_parameters_decode_alike(small):
    policy, params = small
    scanned = Policy(policy.config.replace(scan_layers=True))
    ours = generate(scanned, stack_layers(params), PROMPTS, max_decode_len=8)
    np.testing.assert_array_equal(
        ours.tokens, generate(policy, params, PROMPTS, max_decode_len=8).tokens
    )


def test_a_wide_beam_search_is_exhaustive(small):
    """With a beam for every prefix, the ended beams are all responses, ranked by penalised log-probability."""
    policy, params = small
    length, alpha = 3, 0.6
    found = beam_search(policy, params, PROMPTS, num_beams=64, alpha=alpha, max_decode_len=length)
    words = [2, 3, 4, 5]
    responses = [
        [*words_before, 1] + [0] * (length - 1 - len(words_before))
        for count in range(length)
        for words_before in itertools.product(words, repeat=count)
    ]
    for row in range(len(PROMPTS)):
        prompts = np.repeat(PROMPTS[row : row + 1], len(responses), axis=0)
        log_probs = np.asarray(scores_of(policy, params, prompts, np.array(responses, np.int32)))
        lengths = np.count_nonzero(responses, axis=1)
        scores = log_probs / ((5 + lengths) / 6) ** alpha
        order = np.argsort(scores)
        count = len(responses)
        np.testing.assert_array_equal(found.tokens[row, -count:], np.array(responses)[order])
        np.testing.assert_allclose(found.scores[row, -count:], scores[order], rtol=1e-4)
        np.testing.assert_allclose(found.log_probs[row, -count:], log_probs[order], rtol=1e-4)
        np.testing.assert_array_equal(found.scores[row, :-count], EMPTY)
        assert not np.any(found.tokens[row, :-count])


def test_decoding_stops_when_every_row_has_ended(tiny_config):
    """A policy that ends at once: a cut of 4,096 tokens would otherwise take minutes."""
    policy = Policy(tiny_config.replace(logits_via_embedding=True, num_decoder_layers=1))
    params = jax.tree.map(np.array, policy.init(jax.random.key(0)))
    params["decoder"]["decoder_norm"]["scale"][:] = 0
    params["token_embedder"]["embedding"][:] = 0  # all logits equal: the first allowed token, EOS
    greedy = generate(policy, params, PROMPTS, max_decode_len=4096)
    np.testing.assert_array_equal(greedy.tokens[:, 0, :3], [[1, 0, 0]] * 3)
    np.testing.assert_allclose(greedy.log_probs, -np.log(64), rtol=1e-5)


@hypothesis.given(
    logits=hypothesis.extra.numpy.arrays(
        np.float32, (3, 17), elements=st.floats(-8, 8, width=32), unique=True
    ),
    top_p=st.floats(0.05, 0.99),
)
@hypothesis.settings(max_examples=25)
def test_nucleus_is_the_shortest_prefix_of_the_sorted_tokens(logits, top_p):
    probs = np.asarray(jax.nn.softmax(logits, axis=-1))
    mask = np.asarray(nucleus_mask(jnp.asarray(probs)[None], jnp.float32(top_p)))[0]
    for row, kept in zip(probs, mask, strict=True):
        inside, outside = row[kept], row[~kept]
        assert inside.sum() >= top_p - 1e-5
        assert outside.size == 0 or outside.max() < inside.min()
        # Without its least probable members the nucleus would be too small.
        assert row[row > inside.min()].sum() < top_p + 1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 2}, "repeat one response"),
        ({"temperature": 1.0}, "needs rng"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_k": 7}, "top_k=7"),
        ({"max_decode_len": 0}, "max_decode_len is 0"),
    ],
)
def test_impossible_arguments_are_refused(small, arguments, message):
    policy, params = small
    with pytest.raises(ValueError, match=message):
        generate(policy, params, PROMPTS, **({"max_decode_len": 4} | arguments))
