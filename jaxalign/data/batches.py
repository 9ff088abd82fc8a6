"""Token layout of a batch: examples placed in rows, with numpy and without a loop over tokens.

A row holds up to P examples. Its encoder side is their prompts one after another, its decoder side all their responses one
after another; response k of example p is decoder segment p * K + k + 1 and reads encoder segment p + 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from jaxalign.data.examples import CachedExample

Batch = dict[str, np.ndarray]


def place_segments(
    tokens: Int[np.ndarray, tokens],
    lengths: Int[np.ndarray, "rows segments"],
    width: int,
) -> tuple[Int[np.ndarray, "rows width"], Int[np.ndarray, "rows width"]]:
    """Writes segments side by side into rows.

    Args:
      tokens: all segments' tokens, row after row.
      lengths: tokens of every segment; 0 for a segment that is absent (its id is left out, not reused).
      width: tokens a row has; every row's lengths must fit.

    Returns:
      tokens and segment ids (1 .. segments, 0 on padding) of the rows.
    """
    rows, segments = lengths.shape
    used = lengths.sum(axis=1)
    if rows and int(used.max()) > width:
        row = int(used.argmax())
        raise ValueError(f"Row {row} has {int(used[row])} tokens and room for {width}.")
    filled = np.arange(width) < used[:, None]
    placed = np.zeros((rows, width), np.int32)
    segment_ids = np.zeros((rows, width), np.int32)
    placed[filled] = tokens
    numbers = np.tile(np.arange(1, segments + 1, dtype=np.int32), rows)
    segment_ids[filled] = np.repeat(numbers, lengths.reshape(-1))
    return placed, segment_ids


def prompt_rows(prompts: Sequence[Sequence[int]], width: int) -> Int[np.ndarray, "prompts width"]:
    """Encoder tokens of one prompt a row, padded with 0."""
    lengths = np.asarray([[len(prompt)] for prompt in prompts], np.int64).reshape(-1, 1)
    tokens = np.asarray([token for prompt in prompts for token in prompt], np.int32)
    return place_segments(tokens, lengths, width)[0]


def shift_right_within_segments(
    tokens: Int[np.ndarray, "rows width"], segment_ids: Int[np.ndarray, "rows width"]
) -> Int[np.ndarray, "rows width"]:
    """Decoder inputs: every segment shifted right by one, beginning with the start token 0."""
    shifted = np.zeros_like(tokens)
    same = segment_ids[:, 1:] == segment_ids[:, :-1]
    shifted[:, 1:] = np.where(same, tokens[:, :-1], 0)
    return shifted


def make_batch(
    rows: Sequence[Sequence[tuple[int, CachedExample]]],
    *,
    num_rows: int,
    input_length: int,
    target_length: int,
    examples_per_row: int,
    responses_per_example: int,
    reward_mean: float = 0.0,
    reward_std: float = 1.0,
    with_feedback: bool = True,
    num_scores: int = 0,
    reference_samples: int = 0,
    reference_log_probs: Float[np.ndarray, "examples responses"] | None = None,
    stored: Mapping[str, Float[np.ndarray, "examples responses *vector"]] | None = None,
    teacher_top: int = 0,
) -> Batch:
    """A batch in the package's layout.

    Args:
      rows: the examples of every row, with their index in the cache; rows beyond `len(rows)` are empty (all masks 0).
      num_rows: rows of the batch.
      input_length, target_length: encoder and decoder tokens of a row.
      examples_per_row, responses_per_example: P and K.
      reward_mean, reward_std: of the training split; rewards = (feedback - mean) / std.
      with_feedback: whether the batch has `feedback` and `rewards`.
      num_scores: scores a response has; 0 leaves `scores` out.
      reference_samples: numbers in an example's `reference_feedback`; 0 leaves `reference_rewards` out.
      reference_log_probs: of the whole split, looked up by example index.
      stored: more such arrays by batch field, of numbers or of vectors.
      teacher_top: tokens of a teacher that an example has at every position; 0 leaves them out.

    Returns:
      encoder_input_tokens, encoder_segment_ids [rows, S]; decoder_input_tokens, decoder_target_tokens,
      decoder_segment_ids, decoder_loss_weights [rows, T]; response_mask, feedback, rewards, reference_log_probs and the
      stored fields [rows, P, K] (vectors: [rows, P, K, length]); scores [rows, P, K, scores]; reference_rewards
      [rows, P, samples], the standardised feedback of samples of the reference policy; prompt_ids, example_ids
      [rows, P]; teacher_top_ids and teacher_top_log_probs [rows, T, teacher_top], 0 on padding.
    """
    P, K = examples_per_row, responses_per_example
    slots = [row * P + p for row, examples in enumerate(rows) for p in range(len(examples))]
    flat = [item for examples in rows for item in examples]
    indices = np.asarray([index for index, _ in flat], np.int32)
    examples = [example for _, example in flat]
    input_lengths = np.zeros(num_rows * P, np.int64)
    target_lengths = np.zeros((num_rows * P, K), np.int64)
    counts = np.asarray([len(example.target_lengths) for example in examples], np.int64)
    if examples:
        if int(counts.max()) > K:
            raise ValueError(
                f"An example has {int(counts.max())} responses, the batch room for {K}."
            )
        input_lengths[slots] = [len(example.inputs) for example in examples]
    present = np.zeros((num_rows * P, K), bool)
    present[slots] = np.arange(K) < counts[:, None]
    # Boolean indexing runs in row order, which is the order of the concatenated per-response arrays.
    target_lengths[present] = _joined([example.target_lengths for example in examples], np.int64)
    inputs, input_segments = place_segments(
        _joined([example.inputs for example in examples], np.int32),
        input_lengths.reshape(num_rows, P),
        input_length,
    )
    targets, target_segments = place_segments(
        _joined([example.targets for example in examples], np.int32),
        target_lengths.reshape(num_rows, P * K),
        target_length,
    )
    prompt_ids = np.zeros(num_rows * P, np.int32)
    example_ids = np.full(num_rows * P, -1, np.int32)
    prompt_ids[slots] = [example.prompt_id for example in examples]
    example_ids[slots] = indices
    batch = {
        "encoder_input_tokens": inputs,
        "encoder_segment_ids": input_segments,
        "decoder_input_tokens": shift_right_within_segments(targets, target_segments),
        "decoder_target_tokens": targets,
        "decoder_segment_ids": target_segments,
        "decoder_loss_weights": (target_segments > 0).astype(np.float32),
        "response_mask": present.astype(np.float32).reshape(num_rows, P, K),
        "prompt_ids": prompt_ids.reshape(num_rows, P),
        "example_ids": example_ids.reshape(num_rows, P),
    }
    if with_feedback:
        feedback = np.zeros((num_rows * P, K), np.float32)
        feedback[present] = _joined([example.feedback for example in examples], np.float32)
        # Standardised in float64, so that every machine rounds once and alike.
        rewards = (feedback.astype(np.float64) - reward_mean) / reward_std
        batch["feedback"] = feedback.reshape(num_rows, P, K)
        batch["rewards"] = np.where(present, rewards, 0).astype(np.float32).reshape(num_rows, P, K)
    if num_scores:
        scores = np.zeros((num_rows * P, K, num_scores), np.float32)
        if examples:
            scores[present] = np.concatenate([example.scores for example in examples])
        batch["scores"] = scores.reshape(num_rows, P, K, num_scores)
    if reference_samples:
        samples = np.zeros((num_rows * P, reference_samples), np.float64)
        if examples:
            found = _joined([e.reference_feedback for e in examples], np.float64)
            samples[slots] = (found.reshape(-1, reference_samples) - reward_mean) / reward_std
        batch["reference_rewards"] = samples.astype(np.float32).reshape(
            num_rows, P, reference_samples
        )
    if teacher_top:
        # Positions in row order are the order of the concatenated targets.
        at = target_segments > 0
        for field, dtype, arrays in (
            ("teacher_top_ids", np.int32, [each.teacher_ids for each in examples]),
            ("teacher_top_log_probs", np.float32, [each.teacher_log_probs for each in examples]),
        ):
            batch[field] = np.zeros((*targets.shape, teacher_top), dtype)
            batch[field][at] = _joined(arrays, dtype).reshape(-1, teacher_top)
    looked_up = dict(stored or {})
    if reference_log_probs is not None:
        looked_up["reference_log_probs"] = reference_log_probs
    for field, array in looked_up.items():
        values = np.zeros((num_rows * P, *array.shape[1:]), np.float32)
        values[slots] = array[indices]
        values[~present] = 0
        batch[field] = values.reshape(num_rows, P, *array.shape[1:])
    return batch


def _joined(arrays: Sequence[np.ndarray | None], dtype: type) -> np.ndarray:
    if not arrays:
        return np.zeros(0, dtype)
    return np.concatenate([a for a in arrays if a is not None]).astype(dtype, copy=False)
