"""Token rows of an evaluation, against the layout of training and closed-form scores."""

import numpy as np
import pytest

from jaxalign.inference import rows


def test_layout_of_a_row_with_two_responses():
    batch = rows.response_batch(
        [[5, 6, 1]], [[[7, 8, 1], [9, 1]]], rows=1, input_length=4, target_length=6
    )
    expected = {
        "encoder_input_tokens": [[5, 6, 1, 0]],
        "encoder_segment_ids": [[1, 1, 1, 0]],
        "decoder_input_tokens": [[0, 7, 8, 0, 9, 0]],
        "decoder_target_tokens": [[7, 8, 1, 9, 1, 0]],
        "decoder_segment_ids": [[1, 1, 1, 2, 2, 0]],
        "decoder_loss_weights": [[1, 1, 1, 1, 1, 0]],
        "response_mask": [[[1, 1]]],
        "prompt_ids": [[1]],
        "example_ids": [[0]],
    }
    assert set(batch) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(batch[name], value)


def test_scores_come_back_in_the_order_of_the_prompts(letter_policy):
    rng = np.random.default_rng(0)
    prompts = [[5] * n + [1] for n in rng.integers(0, 40, 11)]
    responses = [[[7] * n + [1], [8, 1]] for n in rng.integers(0, 30, 11)]
    log_probs, lengths = rows.score_responses(
        letter_policy, {"cost": 2.0}, prompts, responses, batch_size=4
    )
    expected = np.array([[len(r) for r in group] for group in responses])
    np.testing.assert_array_equal(lengths, expected)
    prompt_lengths = np.array([[len(p)] for p in prompts])
    np.testing.assert_allclose(log_probs, -2.0 * expected - prompt_lengths)


def test_values_come_back_in_the_order_of_the_prompts(mean_token_value):
    prompts = [[n] * (1 + n % 7) for n in range(2, 30)]
    values = rows.predict_values(mean_token_value, {"scale": 1.0}, prompts, batch_size=8)
    np.testing.assert_allclose(values, [n / 100 for n in range(2, 30)], rtol=1e-6)


@pytest.mark.parametrize("longest", [1, 16, 17, 24, 25, 47, 49, 100, 500])
def test_bucket_lengths_hold_the_longest_and_waste_at_most_a_third(longest):
    length = rows.bucket_length(longest, 10**6)
    assert length >= longest
    assert longest <= 16 or longest > length * 2 / 3 - 1
    assert rows.bucket_length(longest, 40) == min(length, 40)


def test_a_response_ends_at_eos_and_padding_is_left_out(vocabulary):
    assert rows.decode_tokens(vocabulary, [97, 98, 1, 99, 0]) == "ab"


def test_response_tokens_end_at_eos_or_before_the_padding():
    assert rows.response_tokens(np.array([5, 1, 0, 0])) == [5, 1]
    assert rows.response_tokens(np.array([5, 6, 0, 0])) == [5, 6]
    assert rows.response_tokens(np.array([5, 6, 7])) == [5, 6, 7]
