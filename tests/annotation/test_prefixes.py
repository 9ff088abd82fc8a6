"""Q-values and rewards of prefixes from a tiny decoder reward network."""

import jax
import numpy as np
import pytest

from jaxalign.annotation.prefixes import score_prefixes
from jaxalign.inference.goals import goal_vector
from jaxalign.inference.rows import predict_rewards
from jaxalign.networks.config import T5Config
from jaxalign.networks.reward import DecoderRewardNetwork

CONFIG = T5Config(
    vocab_size=32,
    emb_dim=8,
    num_heads=2,
    head_dim=4,
    mlp_dim=16,
    num_encoder_layers=1,
    num_decoder_layers=1,
)
PROMPTS = [[5, 6, 1], [7, 1], [8, 9, 10, 1]]
RESPONSES = [[3, 4, 1], [11, 12, 13, 14, 1], [15, 1]]


@pytest.fixture(scope="module")
def reward():
    network = DecoderRewardNetwork(CONFIG)
    return network, network.init(jax.random.key(0))


def test_the_goal_of_one_response_gives_its_last_prefix_q_1(reward):
    goal = goal_vector(*reward, PROMPTS[1:2], RESPONSES[1:2], batch_size=2)
    assert goal.shape == (8,)
    scores = score_prefixes(*reward, goal, PROMPTS, RESPONSES, batch_size=2)
    np.testing.assert_array_equal(scores.mask.sum(axis=1), [3, 5, 2])
    assert scores.values[1, 4] == pytest.approx(1, abs=1e-5)
    assert np.all(np.abs(scores.values) <= 1 + 1e-5) and np.all(scores.values[1, :4] < 0.9999)
    assert not scores.values[~scores.mask].any() and not scores.rewards[~scores.mask].any()


def test_the_goal_is_the_mean_over_responses(reward):
    one_by_one = [
        goal_vector(*reward, [prompt], [response], batch_size=2)
        for prompt, response in zip(PROMPTS, RESPONSES, strict=True)
    ]
    together = goal_vector(*reward, PROMPTS, RESPONSES, batch_size=2)
    np.testing.assert_allclose(together, np.mean(one_by_one, axis=0), rtol=1e-5, atol=1e-6)


def test_the_reward_of_the_last_prefix_is_that_of_the_response(reward):
    goal = np.ones(8, np.float32)
    scores = score_prefixes(*reward, goal, PROMPTS, RESPONSES, batch_size=2)
    rewards = predict_rewards(*reward, PROMPTS, RESPONSES, batch_size=2)
    last = scores.rewards[np.arange(3), scores.mask.sum(axis=1) - 1]
    np.testing.assert_allclose(last, rewards, rtol=1e-5, atol=1e-6)
