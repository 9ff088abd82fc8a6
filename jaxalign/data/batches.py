"""The token layout of a batch: places examples in rows with numpy, without a loop over tokens.

A row holds up to P examples. Its encoder side holds their prompts one after another, and its decoder side holds all their
responses one after another. Response k of example p is decoder segment p * K + k + 1 and reads encoder segment p + 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxalign.data.examples import CachedExample
from jaxalign.data.images import ImageFormat
from jaxalign.networks.image_tokens import IMAGE_TOKENS, PATCHES

Batch = dict[str, np.ndarray]


def place_segments(
    tokens: Int[np.ndarray, " tokens"],
    lengths: Int[np.ndarray, "rows segments"],
    width: int,
) -> tuple[Int[np.ndarray, "rows width"], Int[np.ndarray, "rows width"]]:
    """Writes segments side by side into rows.

    Args:
      tokens: the tokens of all segments, row after row.
      lengths: the number of tokens of every segment. A segment of length 0 is absent; its id is skipped and not reused.
      width: the number of tokens of a row; the lengths of every row must fit.

    Returns:
      The tokens and the segment ids (1 .. segments, 0 on padding) of the rows.
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
    """Returns the encoder tokens with one prompt in each row, padded with 0."""
    lengths = np.asarray([[len(prompt)] for prompt in prompts], np.int64).reshape(-1, 1)
    tokens = np.asarray([token for prompt in prompts for token in prompt], np.int32)
    return place_segments(tokens, lengths, width)[0]


def shift_right_within_segments(
    tokens: Int[np.ndarray, "rows width"], segment_ids: Int[np.ndarray, "rows width"]
) -> Int[np.ndarray, "rows width"]:
    """Returns the decoder inputs: every segment is shifted right by one and begins with the start token 0."""
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
    images: ImageFormat | None = None,
) -> Batch:
    """Builds a batch in the package's layout.

    Args:
      rows: the examples of every row, with their index in the cache; rows beyond `len(rows)` are empty (all masks are 0).
      num_rows: the number of rows of the batch.
      input_length, target_length: the number of encoder and decoder tokens of a row.
      examples_per_row, responses_per_example: P and K.
      reward_mean, reward_std: statistics of the training split; rewards = (feedback - mean) / std.
      with_feedback: whether the batch has `feedback` and `rewards`.
      num_scores: the number of scores of a response; with 0 the batch has no `scores`.
      reference_samples: the number of values in an example's `reference_feedback`; with 0 the batch has no `reference_rewards`.
      reference_log_probs: the values of the whole split, looked up by example index.
      stored: further arrays of this form by batch field, with a number or a vector for each response.
      teacher_top: the number of teacher tokens that an example has at every position; with 0 the batch has none.
      images: the format of the images of examples; with None the batch has none.

    Returns:
      encoder_input_tokens, encoder_segment_ids [rows, S]; decoder_input_tokens, decoder_target_tokens,
      decoder_segment_ids, decoder_loss_weights [rows, T]; response_mask, feedback, rewards, reference_log_probs and the
      stored fields [rows, P, K] (vectors: [rows, P, K, length]); scores [rows, P, K, scores]; reference_rewards
      [rows, P, samples], the standardised feedback of samples of the reference policy; prompt_ids, example_ids
      [rows, P]; teacher_top_ids and teacher_top_log_probs [rows, T, teacher_top], 0 on padding;
      encoder_input_patches uint8 [rows, P, patches, values], to which the image tokens point (`networks.image_patches`).
    """
    places = _Places.of(rows, num_rows, examples_per_row, responses_per_example)
    batch = _tokens(places, input_length, target_length)
    if images is not None:
        batch |= _images(
            places, images, batch["encoder_input_tokens"], batch["encoder_segment_ids"]
        )
    if with_feedback:
        feedback = places.per_response([each.feedback for each in places.examples], np.float32)
        # The division is done in float64, so that every machine rounds once and obtains the same result.
        rewards = (feedback.astype(np.float64) - reward_mean) / reward_std
        batch["feedback"] = feedback
        batch["rewards"] = np.where(places.present, rewards, 0).astype(np.float32)
    if num_scores:
        scores = [each.scores for each in places.examples]
        batch["scores"] = places.per_response(scores, np.float32, (num_scores,))
    if reference_samples:
        samples = [each.reference_feedback for each in places.examples]
        found = _joined(samples, np.float64).reshape(-1, reference_samples)
        standardised = ((found - reward_mean) / reward_std).astype(np.float32)
        batch["reference_rewards"] = places.per_example(standardised)
    if teacher_top:
        batch |= _teacher_top(places, batch["decoder_segment_ids"] > 0, teacher_top)
    looked_up = dict(stored or {})
    if reference_log_probs is not None:
        looked_up["reference_log_probs"] = reference_log_probs
    for field, array in looked_up.items():
        values = places.per_example(array[places.indices].astype(np.float32))
        values[~places.present] = 0
        batch[field] = values
    return batch


@dataclasses.dataclass(frozen=True)
class _Places:
    """The positions of the examples in a batch.

    Attributes:
      examples, indices: the examples in row order, and their indices in the cache.
      slots: for each example, row * P + its position in the row.
      present: a mask of the responses that exist.
    """

    examples: Sequence[CachedExample]
    indices: Int[np.ndarray, " examples"]
    slots: Int[np.ndarray, " examples"]
    present: Bool[np.ndarray, "rows P K"]

    @classmethod
    def of(
        cls, rows: Sequence[Sequence[tuple[int, CachedExample]]], num_rows: int, P: int, K: int
    ) -> _Places:
        """Returns the places for P examples in a row and K responses of an example."""
        slots = [row * P + p for row, examples in enumerate(rows) for p in range(len(examples))]
        items = [item for examples in rows for item in examples]
        counts = np.asarray([len(example.target_lengths) for _, example in items], np.int64)
        if items and int(counts.max()) > K:
            raise ValueError(
                f"An example has {int(counts.max())} responses, the batch room for {K}."
            )
        present = np.zeros((num_rows * P, K), bool)
        present[slots] = np.arange(K) < counts[:, None]
        return cls(
            [example for _, example in items],
            np.asarray([index for index, _ in items], np.int32),
            np.asarray(slots, np.int64),
            present.reshape(num_rows, P, K),
        )

    def per_example(self, values: np.ndarray, empty: int = 0) -> np.ndarray:
        """Returns [rows, P, ...] from one entry for each example, with `empty` where there is no example."""
        rows, P, _ = self.present.shape
        found = np.full((rows * P, *values.shape[1:]), empty, values.dtype)
        found[self.slots] = values
        return found.reshape(rows, P, *values.shape[1:])

    def per_response(
        self, arrays: Sequence[np.ndarray | None], dtype: type, more: tuple[int, ...] = ()
    ) -> np.ndarray:
        """Returns [rows, P, K, ...] from the array of responses of every example, with 0 where a response is absent."""
        found = np.zeros((*self.present.shape, *more), dtype)
        # Boolean indexing runs in row order, which is the order of the concatenated arrays.
        found[self.present] = _joined(arrays, dtype).reshape(-1, *more)
        return found


def _tokens(places: _Places, input_length: int, target_length: int) -> Batch:
    """Returns the tokens, segments, masks and ids of the batch."""
    examples = places.examples
    rows, P, K = places.present.shape
    input_lengths = np.asarray([len(example.inputs) for example in examples], np.int64)
    inputs, input_segments = place_segments(
        _joined([example.inputs for example in examples], np.int32),
        places.per_example(input_lengths),
        input_length,
    )
    target_lengths = places.per_response([each.target_lengths for each in examples], np.int64)
    targets, target_segments = place_segments(
        _joined([example.targets for example in examples], np.int32),
        target_lengths.reshape(rows, P * K),
        target_length,
    )
    prompt_ids = np.asarray([example.prompt_id for example in examples], np.int32)
    return {
        "encoder_input_tokens": inputs,
        "encoder_segment_ids": input_segments,
        "decoder_input_tokens": shift_right_within_segments(targets, target_segments),
        "decoder_target_tokens": targets,
        "decoder_segment_ids": target_segments,
        "decoder_loss_weights": (target_segments > 0).astype(np.float32),
        "response_mask": places.present.astype(np.float32),
        "prompt_ids": places.per_example(prompt_ids),
        "example_ids": places.per_example(places.indices, empty=-1),
    }


def _images(
    places: _Places,
    images: ImageFormat,
    tokens: Int[np.ndarray, "rows width"],
    segment_ids: Int[np.ndarray, "rows width"],
) -> Batch:
    """Returns the patches, and the tokens with image tokens that point to their example's place in the row."""
    shape = (images.num_patches, 3 * images.patch_size**2)
    patches = np.zeros((len(places.examples), *shape), np.uint8)
    for number, example in enumerate(places.examples):
        if example.image is not None:
            patches[number] = images.patches(example.image)
    first = (segment_ids - 1) * images.num_patches
    return {
        "encoder_input_tokens": np.where(tokens >= IMAGE_TOKENS, tokens + first, tokens),
        PATCHES: places.per_example(patches),
    }


def _teacher_top(places: _Places, at: Bool[np.ndarray, "rows width"], count: int) -> Batch:
    """Returns a teacher's `count` most likely tokens at the target positions, in the row order of the concatenated targets."""
    ids = [example.teacher_ids for example in places.examples]
    log_probs = [example.teacher_log_probs for example in places.examples]
    found = {
        "teacher_top_ids": np.zeros((*at.shape, count), np.int32),
        "teacher_top_log_probs": np.zeros((*at.shape, count), np.float32),
    }
    found["teacher_top_ids"][at] = _joined(ids, np.int32).reshape(-1, count)
    found["teacher_top_log_probs"][at] = _joined(log_probs, np.float32).reshape(-1, count)
    return found


def _joined(arrays: Sequence[np.ndarray | None], dtype: type) -> np.ndarray:
    if not arrays:
        return np.zeros(0, dtype)
    return np.concatenate([a for a in arrays if a is not None]).astype(dtype, copy=False)
