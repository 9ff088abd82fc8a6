"""The KL divergence of whole responses by exact sums at every position."""

import itertools

import jax
import numpy as np
import pytest

from jaxalign.errors import UserError
from jaxalign.inference.rows import EOS, score_responses
from jaxalign.inference.sequence_kl import sequence_kl
from jaxalign.networks.config import T5Config
from jaxalign.networks.policy import Policy

VOCAB, LENGTH = 5, 3
CONFIG = T5Config(
    vocab_size=VOCAB,
    emb_dim=8,
    num_heads=2,
    head_dim=4,
    mlp_dim=16,
    num_encoder_layers=1,
    num_decoder_layers=1,
    dtype="float32",
)
PROMPTS = [[2, 3, 1], [4, 1]]


@pytest.fixture(scope="module")
def policies():
    policy = Policy(CONFIG, logits_chunk_size=None)
    first, second = (policy.init(jax.random.key(seed)) for seed in (0, 1))
    return (policy, first), (policy, second)


def every_response():
    """All responses of at most LENGTH tokens that end with EOS or at the limit; PAD is a token like any other here."""
    others = [token for token in range(VOCAB) if token != EOS]
    ended = [
        [*head, EOS]
        for length in range(LENGTH)
        for head in itertools.product(others, repeat=length)
    ]
    return [*ended, *map(list, itertools.product(others, repeat=LENGTH))]


def test_its_expectation_over_all_responses_is_the_kl_of_their_distributions(policies):
    first, second = policies
    responses = every_response()
    for prompt in PROMPTS:
        rows, groups = [prompt] * len(responses), [[each] for each in responses]
        own, theirs = (
            score_responses(*each, rows, groups, batch_size=64)[0][:, 0] for each in policies
        )
        assert np.exp(own).sum() == pytest.approx(1, abs=1e-5)
        exact = np.sum(np.exp(own) * (own - theirs))
        along = sequence_kl(first, second, rows, groups, batch_size=64)[:, 0]
        assert np.sum(np.exp(own) * along) == pytest.approx(exact, rel=1e-4)
        assert (along >= 0).all()
        # The same expectation, with less variance over responses than the log-ratio has.
        variance = [np.sum(np.exp(own) * (each - exact) ** 2) for each in (along, own - theirs)]
        assert variance[0] < 0.5 * variance[1]


def test_a_policy_has_no_distance_from_itself_and_responses_of_one_row_are_apart(policies):
    first, second = policies
    responses = [[[3, 1], [2, 4, 1]], [[4, 4, 4], [1]]]
    assert (sequence_kl(first, first, PROMPTS, responses) == 0).all()
    together = sequence_kl(first, second, PROMPTS, responses)
    assert together.shape == (2, 2)
    for k in range(2):
        alone = sequence_kl(first, second, PROMPTS, [[group[k]] for group in responses])
        np.testing.assert_allclose(together[:, k], alone[:, 0], rtol=1e-5)
    one_by_one = sequence_kl(first, second, PROMPTS, responses, batch_size=1)
    np.testing.assert_allclose(one_by_one, together, rtol=1e-5)
    chunked = Policy(CONFIG, logits_chunk_size=4)
    np.testing.assert_allclose(
        sequence_kl((chunked, first[1]), (chunked, second[1]), PROMPTS, responses),
        together,
        rtol=1e-5,
    )


def test_other_tokens_are_refused(policies):
    larger = Policy(CONFIG.replace(vocab_size=VOCAB + 1))
    with pytest.raises(UserError, match="these have 5 and 6"):
        sequence_kl(policies[0], (larger, {}), PROMPTS, [[[1]], [[1]]])
