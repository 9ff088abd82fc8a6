"""Decoding with hooks equals enumeration: of all responses of a trie, of all allowed ones, of all scores."""

import itertools

import jax
import numpy as np
import pytest

from jaxalign.inference import continuous_batching
from jaxalign.networks import beam_search as beam_programs
from jaxalign.networks.allowed_tokens import (
    ForcedPrefix,
    Intersection,
    MinimumLength,
    forced_prefix,
    token_sets,
)
from jaxalign.networks.beam_search import EMPTY, beam_search
from jaxalign.networks.config import T5Config
from jaxalign.networks.decoding import generate
from jaxalign.networks.decoding_hooks import NO_HOOKS, Hooks
from jaxalign.networks.decoding_scores import PolicyLogRatio, reward_score
from jaxalign.networks.policy import Policy
from jaxalign.networks.reward import DecoderRewardNetwork
from jaxalign.networks.token_bans import NoRepeatedNGram, banned_sequences
from jaxalign.networks.trie import Trie
from tests.fixtures.prefix_policy import PrefixPolicy, all_responses

SIZE, LENGTH = 12, 5
POLICY = PrefixPolicy(SIZE)
PARAMS = POLICY.table(0)
PROMPTS = [[3, 2, 1], [7, 1], [5, 5, 5, 1]]
ROWS = np.array([[*prompt, *[0] * (4 - len(prompt))] for prompt in PROMPTS], np.int32)
# One is a prefix of another, some share prefixes, and the root has many children.
RESPONSES = [
    [2, 3], [2, 3, 4], [2, 5, 2], [3], [4, 4, 4, 4], [4, 4, 2], [5, 9], [6, 7, 8, 9],
    [7, 2], [8], [9, 9], [10, 2, 2], [10, 3], [11, 11, 3, 2],
]  # fmt: skip
TRIE = Trie.from_sequences(RESPONSES, SIZE)
ALL = MinimumLength(np.int32(0))  # allows everything


def padded(response, length=LENGTH):
    return [*response, *[0] * (length - len(response))]


def token_log_probs(prompt, response, allowed=None, params=PARAMS):
    """Log-probabilities of a response's tokens, among all tokens or those that `allowed(prefix)` gives."""
    table = POLICY.log_probs(params, prompt, response[:-1])
    found = []
    for position, token in enumerate(response):
        log_probs = table[position]
        among = range(SIZE) if allowed is None else allowed(response[:position])
        found.append(log_probs[token] - np.log(np.exp(log_probs[list(among)]).sum()))
    return np.array(found)


def after_in_trie(prefix):
    count = len(prefix)
    ended = [[*response, 1] for response in RESPONSES]
    return {response[count] for response in ended if response[:count] == prefix}


@pytest.mark.parametrize("renormalize", [False, True])
def test_beam_search_in_a_trie_ranks_all_its_responses_as_enumeration_does(renormalize):
    count, alpha = len(RESPONSES), 0.6
    hooks = Hooks(TRIE, renormalize=renormalize)
    found = beam_search(
        POLICY, PARAMS, ROWS, num_beams=count + 2, alpha=alpha, max_decode_len=LENGTH, hooks=hooks
    )
    for row, prompt in enumerate(PROMPTS):
        ended = [[*response, 1] for response in RESPONSES]
        log_probs = np.array([token_log_probs(prompt, each).sum() for each in ended])
        totals = log_probs
        if renormalize:
            totals = [token_log_probs(prompt, each, after_in_trie).sum() for each in ended]
            assert np.exp(totals).sum() == pytest.approx(1)
        lengths = np.array([len(each) for each in ended])
        scores = totals / ((5 + lengths) / 6) ** alpha
        order = np.argsort(scores)
        expected = np.array([padded(ended[i]) for i in order])
        np.testing.assert_array_equal(found.tokens[row, -count:], expected)
        np.testing.assert_allclose(found.scores[row, -count:], scores[order], rtol=1e-4)
        np.testing.assert_allclose(found.log_probs[row, -count:], log_probs[order], rtol=1e-4)
    # More beams than responses: the first are empty.
    np.testing.assert_array_equal(found.scores[:, :2], EMPTY)
    assert not np.any(found.tokens[:, :2])
    assert not np.any(found.dead_ends)


def test_empty_beams_stay_empty_in_long_responses_too():
    """The length penalty divides a score: a number that stands for nothing would come near to real scores."""
    response = [2 + i % 3 for i in range(20)]
    trie = Trie.from_sequences([response], SIZE)
    found = beam_search(
        POLICY, PARAMS, ROWS, num_beams=3, alpha=1.0, max_decode_len=24, hooks=Hooks(trie)
    )
    np.testing.assert_array_equal(found.scores[:, :2], EMPTY)
    np.testing.assert_array_equal(found.log_probs[:, :2], EMPTY)
    assert not np.any(found.tokens[:, :2])
    np.testing.assert_array_equal(found.tokens[:, -1, :20], [response] * len(ROWS))


def decoded(hooks, numbers=None, **options):
    """Tokens, log-probabilities, scores and dead ends of samples or greedy responses."""
    found = generate(
        POLICY,
        options.pop("params", PARAMS),
        ROWS,
        max_decode_len=LENGTH,
        hooks=hooks,
        prompt_numbers=numbers,
        **options,
    )
    return jax.device_get(found)


SAMPLING = {"temperature": 1.0, "num_samples": 3, "rng": jax.random.key(3)}


def in_ring(hooks, params=PARAMS, top_k=0):
    """The samples of SAMPLING from continuous batching, with two rows and a cache that has to grow."""
    return continuous_batching.decode_prompts(
        POLICY, params, PROMPTS, np.arange(3), continuous_batching.Shapes(2, 3, 4, LENGTH),
        continuous_batching.Choice(1.0, top_k, 1.0), SAMPLING["rng"], hooks,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def small_cache(monkeypatch):
    monkeypatch.setattr(continuous_batching, "SMALLEST_CACHE", 3)
    monkeypatch.setattr(continuous_batching, "MARGIN", 1)


@pytest.mark.parametrize("seed", [0, None], ids=["random", "ties"])
def test_hooks_that_change_nothing_change_nothing(seed):
    """A machine that allows everything, and a score of weight 0; with a policy of equal logits all is ties."""
    params = PARAMS if seed == 0 else np.zeros_like(PARAMS)
    nothing = PolicyLogRatio(POLICY.table(9), np.float32(0), POLICY)
    hooks = Hooks(ALL, nothing)
    same = [
        (
            decoded(NO_HOOKS, params=params, **options),
            decoded(hooks, params=params, **options),
        )
        for options in ({}, SAMPLING)
    ]
    beams = [
        jax.device_get(
            beam_search(POLICY, params, ROWS, num_beams=3, max_decode_len=LENGTH, hooks=each)
        )
        for each in (NO_HOOKS, hooks)
    ]
    for plain, hooked in [*same, tuple(beams)]:
        np.testing.assert_array_equal(hooked.tokens, plain.tokens)
        np.testing.assert_allclose(hooked.log_probs, plain.log_probs, rtol=1e-5, atol=1e-6)
        assert not hooked.dead_ends.any()
    np.testing.assert_allclose(beams[1].scores, beams[0].scores, rtol=1e-5)
    np.testing.assert_allclose(same[0][1].scores, same[0][0].log_probs, rtol=1e-5)
    tokens, log_probs = in_ring(hooks, params)
    np.testing.assert_array_equal(tokens, same[1][0].tokens)
    np.testing.assert_allclose(log_probs, same[1][0].log_probs, rtol=1e-5, atol=1e-6)


def test_samples_in_a_trie_have_the_renormalised_probabilities():
    """Top-k with a k larger than what is allowed leaves all of it."""
    samples = decoded(
        Hooks(TRIE, renormalize=True), temperature=1.0, num_samples=3000, rng=jax.random.key(0),
        top_k=6,
    )  # fmt: skip
    tokens, count = tuple(map(tuple, RESPONSES)), 3000
    top = sorted({len(after_in_trie(r[:i])) for r in RESPONSES for i in range(len(r) + 1)})
    assert top[-2] < 6 < top[-1]  # k cuts at the root only
    for row, prompt in enumerate(PROMPTS):
        root = POLICY.log_probs(PARAMS, prompt, [])[0]
        kept = sorted(after_in_trie([]), key=lambda token: -root[token])[:6]

        def among(prefix, kept=kept):
            return after_in_trie(prefix) if prefix else kept

        found = [tuple(t for t in response if t > 1) for response in samples.tokens[row].tolist()]
        for response in tokens:
            share = found.count(response) / count
            ended = [*response, 1]
            expected = np.exp(token_log_probs(prompt, ended, among).sum())
            expected = expected if response[0] in kept else 0.0
            assert share == pytest.approx(expected, abs=0.035)
        scores = [token_log_probs(prompt, [*each, 1], after_in_trie).sum() for each in found[:9]]
        np.testing.assert_allclose(samples.scores[row, :9], scores, rtol=1e-4)


def test_the_only_response_of_a_chain_has_the_score_0():
    chain = Trie.from_sequences([[4, 4, 2, 1]], SIZE)
    hooks = Hooks(chain, renormalize=True)
    options = {"num_beams": 2, "max_decode_len": LENGTH, "hooks": hooks}
    for each in (decoded(hooks), beam_search(POLICY, PARAMS, ROWS, **options)):
        np.testing.assert_array_equal(each.tokens[:, -1], [padded([4, 4, 2, 1])] * 3)
        np.testing.assert_array_equal(np.asarray(each.scores)[:, -1], 0.0)
        expected = [token_log_probs(prompt, [4, 4, 2, 1]).sum() for prompt in PROMPTS]
        np.testing.assert_allclose(each.log_probs[:, -1], expected, rtol=1e-4)


def test_another_trie_of_the_same_shape_compiles_nothing():
    options = {"num_beams": 4, "max_decode_len": LENGTH}
    beam_search(POLICY, PARAMS, ROWS, hooks=Hooks(TRIE), **options)
    before = beam_programs._beam_search._cache_size()
    others = [[13 - token for token in response] for response in RESPONSES]
    other = Trie.from_sequences(others, SIZE)
    found = beam_search(POLICY, PARAMS, ROWS, hooks=Hooks(other), **options)
    assert beam_programs._beam_search._cache_size() == before
    allowed = {tuple(padded([*response, 1])) for response in others}
    assert {tuple(beam) for row in found.tokens.tolist() for beam in row} <= allowed


def test_prompts_have_prefixes_of_their_own():
    """The prefix goes with the number of the prompt, in the ring too, where row and number differ."""
    prefixes = [[4, 5], [], [6]]
    hooks = Hooks(Intersection((forced_prefix(prefixes), MinimumLength(np.int32(4)))))
    found = decoded(hooks, **SAMPLING)
    tokens, log_probs = in_ring(hooks)
    np.testing.assert_array_equal(tokens, found.tokens)
    np.testing.assert_allclose(log_probs, found.log_probs, rtol=1e-5)
    for prefix, responses in zip(prefixes, found.tokens.tolist(), strict=True):
        for response in responses:
            assert response[: len(prefix)] == prefix
            assert 1 not in response[:3]
    swapped = decoded(hooks, numbers=np.array([2, 1, 0]))
    assert swapped.tokens[0, 0, 0] == 6 and swapped.tokens[2, 0, :2].tolist() == [4, 5]


DEAD = Intersection((token_sets([[2], [3, 4]], SIZE), banned_sequences([[2, 3], [2, 4]])))


def test_a_response_after_which_nothing_is_allowed_ends_there():
    for options in ({}, SAMPLING):
        found = decoded(Hooks(DEAD), **options)
        assert found.dead_ends.all()
        assert np.all(found.tokens == padded([2]))
        expected = [token_log_probs(prompt, [2]) for prompt in PROMPTS]
        np.testing.assert_allclose(found.log_probs[:, :1], expected, rtol=1e-4)
    tokens, log_probs = in_ring(Hooks(DEAD))
    assert np.all(tokens == padded([2]))
    np.testing.assert_allclose(log_probs, found.log_probs, rtol=1e-5)
    beams = beam_search(POLICY, PARAMS, ROWS, num_beams=3, max_decode_len=LENGTH, hooks=Hooks(DEAD))
    assert np.all(beams.dead_ends) and not np.any(beams.tokens)
    np.testing.assert_array_equal(beams.log_probs, EMPTY)


def test_beams_that_may_not_go_on_make_room_for_others():
    """Without [6, 7] a response of the trie is out of reach; all others are found."""
    hooks = Hooks(Intersection((TRIE, banned_sequences([[6, 7]]))))
    found = beam_search(POLICY, PARAMS, ROWS, num_beams=14, max_decode_len=LENGTH, hooks=hooks)
    left = {tuple(padded([*response, 1])) for response in RESPONSES if response[0] != 6}
    for row in found.tokens.tolist():
        assert {tuple(beam) for beam in row if any(beam)} == left
    assert not np.any(found.dead_ends)


def masks_along(machine, histories):
    """The masks before every token of some sequences, and after the last."""
    state, masks = machine.start(np.zeros((len(histories), 1), np.int32), 12), []
    for tokens in [*histories.T, None]:
        masks.append(np.asarray(machine.allowed(state, 6))[:, 0])
        if tokens is not None:
            state = machine.advance(state, tokens[:, None])
    return np.stack(masks, axis=1)


def test_bans_equal_brute_force():
    random = np.random.default_rng(0)
    histories = random.integers(2, 6, (40, 11)).astype(np.int32)
    words = [random.integers(2, 6, size).tolist() for size in (1, 2, 2, 3, 4)]
    banned = masks_along(banned_sequences(words), histories)
    ngrams = {size: masks_along(NoRepeatedNGram(size), histories) for size in (1, 3)}
    for row, history in enumerate(histories.tolist()):
        for length, token in itertools.product(range(12), range(6)):
            text = [*history[:length], token]
            expected = not any(text[-len(word) :] == word for word in words)
            assert banned[row, length, token] == expected
            for size, masks in ngrams.items():
                grams = [tuple(text[i : i + size]) for i in range(len(text) - size + 1)]
                assert masks[row, length, token] == (grams.count(tuple(text[-size:])) < 2)


def test_samples_repeat_no_bigram():
    def repeats(hooks):
        found = decoded(hooks, **{**SAMPLING, "num_samples": 200})
        rows = [[token for token in row if token] for row in found.tokens.reshape(-1, LENGTH)]
        bigrams = [list(itertools.pairwise(row)) for row in rows]
        return sum(len(set(each)) < len(each) for each in bigrams)

    assert repeats(NO_HOOKS)  # else it shows nothing
    assert not repeats(Hooks(NoRepeatedNGram(2)))


@pytest.mark.parametrize(
    ("machine", "message"),
    [
        (lambda: Trie.from_sequences([], SIZE), "allows nothing"),
        (lambda: Trie.from_sequences([[2], []], SIZE), "response 1 of the trie is empty"),
        (lambda: Trie.from_sequences([[2, 1, 3]], SIZE), "EOS before its end"),
        (lambda: Trie.from_sequences([[2, 12]], SIZE), "has token 12"),
        (lambda: Trie.from_sequences([[2] * LENGTH], SIZE), "6 tokens with EOS"),
        (lambda: Trie.from_sequences([[2]], SIZE + 1), "vocabulary of 13 tokens"),
        (lambda: token_sets([[2], [0]], SIZE), "position 1 allows nothing"),
        (lambda: forced_prefix([[2] * 6]), "6 tokens, and responses are cut after 5"),
        (lambda: ForcedPrefix(np.array([[20]])), "has token 20"),
        (lambda: forced_prefix([[2], [3]]), "no first token for prompt 2"),
        (lambda: NoRepeatedNGram(0), "no_repeat_ngram is 0"),
        (lambda: banned_sequences([[1]]), "no response could end"),
        (
            lambda: Intersection((forced_prefix([[3], [2], [3]]), banned_sequences([[2]]))),
            "no first token for prompt 1",
        ),
    ],
)
def test_machines_that_cannot_work_are_refused_before_decoding(machine, message):
    with pytest.raises(ValueError, match=message):
        Hooks(machine()).check(POLICY, np.arange(3), LENGTH)


def test_a_score_without_a_machine_lets_pad_be_chosen_where_it_may():
    score = PolicyLogRatio(POLICY.table(9), np.float32(0), POLICY)
    plain, scored = (decoded(each, choose_pad=True) for each in (NO_HOOKS, Hooks(score=score)))
    np.testing.assert_array_equal(scored.tokens, plain.tokens)


def test_a_log_ratio_ranks_as_enumeration_does():
    """Among all responses of a vocabulary of five, with a second and a third policy."""
    policy, length, weight = PrefixPolicy(5), 3, 1.7
    tables = [policy.table(seed) for seed in (1, 2, 3)]
    responses = all_responses(5, length)

    def totals(table, prompt):
        return np.array(
            [
                policy.log_probs(table, prompt, each[:-1])[np.arange(len(each)), each].sum()
                for each in responses
            ]
        )

    for reference in (False, True):
        score = PolicyLogRatio(tables[1], np.float32(weight), policy)
        if reference:
            score = PolicyLogRatio(tables[1], np.float32(weight), policy, tables[2], policy)
        found = beam_search(
            policy, tables[0], ROWS, num_beams=40, alpha=0.0, max_decode_len=length,
            hooks=Hooks(score=score),
        )  # fmt: skip
        for row, prompt in enumerate(PROMPTS):
            own, other, third = (totals(table, prompt) for table in tables)
            scores = own + weight * (other - (third if reference else own))
            order, count = np.argsort(scores), len(responses)
            expected = np.array([padded(responses[i], length) for i in order])
            np.testing.assert_array_equal(found.tokens[row, -count:], expected)
            np.testing.assert_allclose(found.scores[row, -count:], scores[order], rtol=1e-4)
            np.testing.assert_allclose(found.log_probs[row, -count:], own[order], rtol=1e-4)


@pytest.fixture(scope="module")
def reward():
    """A reward network of seven tokens."""
    network = DecoderRewardNetwork(T5Config(7, 8, 2, 4, 16, 1, 1))
    return network, random_params(network)


def random_params(network):
    random = np.random.default_rng(0)
    shapes = network.abstract_params()
    return jax.tree.map(lambda leaf: random.normal(0, 0.7, leaf.shape).astype(np.float32), shapes)


def rewards_of(network, params, prompt, responses, length):
    tokens = np.array([padded(each, length) for each in responses], np.int32)
    prompts = np.repeat(np.array([prompt], np.int32), len(tokens), axis=0)
    batch = {
        "encoder_input_tokens": prompts,
        "encoder_segment_ids": (prompts > 0).astype(np.int32),
        "decoder_target_tokens": tokens,
        "decoder_input_tokens": np.pad(tokens[:, :-1], ((0, 0), (1, 0))),
        "decoder_segment_ids": (tokens > 0).astype(np.int32),
        "response_mask": np.ones((len(tokens), 1, 1), np.float32),
    }
    return np.asarray(jax.jit(network.rewards)(params, batch))[:, 0]


def test_a_reward_score_ranks_as_enumeration_does_and_the_ring_agrees(reward):
    policy, length, weight = PrefixPolicy(7), 3, 1.5
    table = policy.table(4)
    responses = all_responses(7, length)
    hooks = Hooks(score=reward_score(*reward, weight, num_candidates=7))
    prompts = [[6, 2, 1], [3, 1, 0]]
    rows = np.array(prompts, np.int32)
    # Twice as many candidates as the 25 live beams of the last position have.
    options = {"num_beams": 80, "alpha": 0.0, "max_decode_len": length}
    found = beam_search(policy, table, rows, hooks=hooks, **options)
    for row, prompt in enumerate(prompts):
        # The first response is EOS alone, whose reward is that of the empty prefix.
        values = rewards_of(*reward, prompt, responses, length)
        log_probs = np.array(
            [
                policy.log_probs(table, prompt, each[:-1])[np.arange(len(each)), each].sum()
                for each in responses
            ]
        )
        scores = log_probs + weight * (values - values[0])
        order, count = np.argsort(scores), len(responses)
        assert not np.array_equal(order, np.argsort(log_probs))
        expected = np.array([padded(responses[i], length) for i in order])
        np.testing.assert_array_equal(found.tokens[row, -count:], expected)
        np.testing.assert_allclose(found.scores[row, -count:], scores[order], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(found.log_probs[row, -count:], log_probs[order], rtol=1e-4)

    key = jax.random.key(1)
    plain = generate(
        policy, table, rows, max_decode_len=6, hooks=hooks, temperature=1.0, rng=key, num_samples=2
    )
    tokens, log_probs = continuous_batching.decode_prompts(
        policy, table, [[6, 2, 1], [3, 1]], np.arange(2),
        continuous_batching.Shapes(1, 2, 3, 6), continuous_batching.Choice(1.0, 0, 1.0), key, hooks,
    )  # fmt: skip
    np.testing.assert_array_equal(tokens, plain.tokens)
    np.testing.assert_allclose(log_probs, plain.log_probs, rtol=1e-4)


def test_the_caches_of_a_t5_follow_the_beams_of_a_trie():
    """As the first test, with a real network."""
    config = T5Config(SIZE, 8, 2, 4, 16, 1, 1)
    policy = Policy(config)
    params = random_params(policy)
    hooks = Hooks(TRIE)
    found = beam_search(
        policy, params, ROWS, num_beams=14, alpha=0.0, max_decode_len=LENGTH, hooks=hooks
    )
    tokens = np.asarray(found.tokens)
    expected = {tuple(padded([*response, 1])) for response in RESPONSES}
    assert all({tuple(beam) for beam in row} == expected for row in tokens.tolist())
    flat = tokens.reshape(-1, LENGTH)
    batch = {
        "encoder_input_tokens": np.repeat(ROWS, 14, axis=0),
        "encoder_segment_ids": np.repeat(ROWS > 0, 14, axis=0).astype(np.int32),
        "decoder_target_tokens": flat,
        "decoder_input_tokens": np.pad(flat[:, :-1], ((0, 0), (1, 0))),
        "decoder_segment_ids": (flat > 0).astype(np.int32),
        "decoder_loss_weights": (flat > 0).astype(np.float32),
        "response_mask": np.ones((len(flat), 1, 1), np.float32),
    }
    log_probs = jax.jit(policy.score)(params, batch).log_probs[:, 0].reshape(3, 14)
    np.testing.assert_allclose(found.log_probs, log_probs, rtol=1e-4)
    assert np.all(np.diff(found.scores, axis=1) >= 0)
    assert list(itertools.chain.from_iterable(found.dead_ends.tolist())) == [False] * 42
