"""Decoding of many prompts: a response does not depend on the batch, nor on where a run began, and equals the plain decoder's."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.data.batches import prompt_rows
from jaxalign.inference import continuous_batching, cpu_threads, sampling
from jaxalign.inference.rows import response_tokens, score_responses
from jaxalign.inference.sampling import DecodingSettings, generate_tokens, generate_windows
from jaxalign.networks import decoding_rows as programs
from jaxalign.networks.config import T5Config
from jaxalign.networks.decoding import generate
from jaxalign.networks.policy import Policy
from jaxalign.networks.token_choice import draw

LENGTH = 12
SAMPLES = DecodingSettings(max_target_length=LENGTH, num_samples=3, temperature=1.0)


@pytest.fixture(scope="module")
def small():
    """A policy of six tokens, whose responses have very different lengths."""
    config = T5Config(
        vocab_size=6, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32,
        num_encoder_layers=1, num_decoder_layers=1,
    )  # fmt: skip
    policy = Policy(config)
    return policy, jax.tree.map(np.array, policy.init(jax.random.key(1)))


@pytest.fixture
def small_cache(monkeypatch):
    """A cache that has to grow for the longer responses, and to become small again after them."""
    monkeypatch.setattr(continuous_batching, "SMALLEST_CACHE", LENGTH // 2)
    monkeypatch.setattr(continuous_batching, "MARGIN", 2)


@pytest.fixture(scope="module")
def prompts():
    random = np.random.default_rng(0)
    lengths = random.integers(1, 20, 21)
    return [[*random.integers(2, 6, length).tolist(), 1] for length in lengths]


@pytest.fixture(scope="module")
def plain(small, prompts):
    """What the plain decoder samples for all prompts at once."""
    policy, params = small
    rows = prompt_rows(prompts, 24)
    key = jax.random.key(5)
    options = {"max_decode_len": LENGTH, "rng": key, "temperature": 1.0, "num_samples": 3}
    return jax.device_get(generate(policy, params, rows, **options))


def test_samples_in_a_growing_cache_are_those_of_the_plain_decoder(
    small, prompts, plain, small_cache
):
    tokens, log_probs = generate_tokens(*small, prompts, SAMPLES, batch_size=4, seed=5)
    np.testing.assert_array_equal(tokens, plain.tokens)
    np.testing.assert_allclose(log_probs, plain.log_probs, rtol=1e-5, atol=1e-5)
    lengths = (tokens > 0).sum(axis=-1)
    assert lengths.min() <= 2 and lengths.max() == LENGTH  # else it shows nothing


def test_another_batch_size_gives_the_same_samples_with_the_log_probs_of_scoring(
    small, prompts, plain
):
    tokens, log_probs = generate_tokens(*small, prompts, SAMPLES, batch_size=8, seed=5)
    np.testing.assert_array_equal(tokens, plain.tokens)
    responses = [[response_tokens(row) for row in group] for group in tokens]
    scored, _ = score_responses(*small, prompts, responses, batch_size=8)
    np.testing.assert_allclose(log_probs, scored, atol=1e-4)


def test_a_run_that_begins_at_a_later_window_gives_the_same_bits(small, prompts, monkeypatch):
    monkeypatch.setattr(sampling, "WINDOW", 1)
    whole = list(generate_windows(*small, prompts, SAMPLES, batch_size=8, seed=5))
    assert [part.start for part, _, _ in whole] == [0, 8, 16]
    later = list(generate_windows(*small, prompts, SAMPLES, batch_size=8, seed=5, first=9))
    assert [part.start for part, _, _ in later] == [8, 16]
    for (_, *found), (_, *expected) in zip(later, whole[1:], strict=True):
        for values, others in zip(found, expected, strict=True):
            np.testing.assert_array_equal(values, others)


def test_greedy_responses_are_those_of_the_plain_decoder(small, prompts):
    policy, params = small
    expected = generate(policy, params, prompt_rows(prompts, 24), max_decode_len=LENGTH)
    greedy = DecodingSettings(max_target_length=LENGTH)
    tokens, log_probs = generate_tokens(policy, params, prompts, greedy, batch_size=8)
    np.testing.assert_array_equal(tokens, expected.tokens)
    np.testing.assert_allclose(log_probs, expected.log_probs[:, :1], rtol=1e-5, atol=1e-5)


def test_other_parameters_and_prompts_of_the_next_round_compile_nothing(small, prompts):
    policy, params = small
    generate_tokens(policy, params, prompts, SAMPLES, batch_size=8)
    names = ("constants", "encode", "replace_rows", "decode")
    before = {name: getattr(programs, name)._cache_size() for name in names}
    others = jax.tree.map(lambda leaf: 1.1 * leaf, params)
    generate_tokens(policy, others, prompts[::-1], SAMPLES, batch_size=8, seed=1)
    assert {name: getattr(programs, name)._cache_size() for name in names} == before


@hypothesis.given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=80), rows=st.integers(1, 9)
)
def test_groups_hold_every_prompt_once_in_rows_that_are_long_enough(lengths, rows):
    groups = list(sampling.by_length(lengths, rows))
    assert sorted(np.concatenate([index for _, index in groups])) == list(range(len(lengths)))
    for padded, index in groups:
        assert max(lengths[i] for i in index) <= padded
        assert len(groups) == 1 or len(index) >= sampling.FILLS * rows


@hypothesis.given(
    weights=st.lists(st.sampled_from([0.0, 1e-30, 1e-7, 0.3, 1.0, 50.0]), min_size=40, max_size=40),
    uniform=st.sampled_from([0.0, 1e-8, 0.25, 0.5, 1 - 2.0**-24]),
)
@hypothesis.settings(max_examples=50)
def test_a_token_of_weight_0_is_never_drawn(weights, uniform):
    weights = np.float32([*weights, 1.0])
    numbers = jnp.full((1, 1), uniform, jnp.float32)
    chosen = int(draw(numbers, jnp.asarray(weights)[None, None])[0, 0])
    assert weights[chosen] > 0
    share = np.cumsum(weights.astype(np.float64)) / weights.sum(dtype=np.float64)
    assert share[chosen] >= uniform - 1e-6
    assert chosen == 0 or share[chosen - 1] <= uniform + 1e-6


@pytest.mark.parametrize(
    "settings", [SAMPLES, DecodingSettings(LENGTH, num_samples=2, num_beams=3)], ids=str
)
def test_parts_in_two_threads_give_the_same_responses(small, prompts, monkeypatch, settings):
    alone = generate_tokens(*small, prompts, settings, batch_size=4, seed=5)
    monkeypatch.setattr(cpu_threads, "count", lambda: 2)
    together = generate_tokens(*small, prompts, settings, batch_size=4, seed=5)
    np.testing.assert_array_equal(together[0], alone[0])
    np.testing.assert_allclose(together[1], alone[1], rtol=1e-5, atol=1e-5)
