"""One tokenised example of the cache and its encoding: msgpack of integers, byte strings and text (no pickle)."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import msgpack
import numpy as np

from jaxalign.data.records import prompt_key
from jaxalign.data.rejections import DataError

_VERSION = 1
_INT = np.dtype("<i4")
_FLOAT = np.dtype("<f4")


@dataclasses.dataclass(frozen=True)
class CachedExample:
    """A prompt and its responses as tokens.

    Attributes:
      inputs: int32 [prompt length], ending in EOS.
      targets: int32 [sum of response lengths], the responses one after another, each ending in EOS.
      target_lengths: int32 [responses].
      feedback: float32 [responses] as given (not standardised), or None.
      scores: float32 [responses, scores], or None.
      reference_feedback: float32 [samples] as given, the feedback of samples of the reference policy, or None.
      prompt_id: a positive hash of the prompt's text.
      prompt, responses, group, source, file, line: the record from which the tokens were made.
      image: the pixels (uint8, red, green and blue) to which the image tokens of `inputs` belong, or None.
      teacher_ids, teacher_log_probs: int32 and float32 [length of targets, k], a teacher's most likely tokens at every position, or
        None. They are stored beside the cache, not in it.
    """

    inputs: np.ndarray
    targets: np.ndarray
    target_lengths: np.ndarray
    feedback: np.ndarray | None
    scores: np.ndarray | None
    prompt_id: int
    prompt: str = ""
    responses: tuple[str, ...] = ()
    group: str | None = None
    source: str = ""
    file: str = ""
    line: int = 0
    reference_feedback: np.ndarray | None = None
    image: bytes | None = None
    teacher_ids: np.ndarray | None = None
    teacher_log_probs: np.ndarray | None = None

    @property
    def prompt_key(self) -> str:
        """A text that equal prompts have in common: the prompt's, with a digest of its image if it has one."""
        return prompt_key(self.prompt, self.image)

    def target(self, response: int) -> np.ndarray:
        """Returns the tokens of one response, with EOS."""
        return self.targets[self.target_slice(response)]

    def target_slice(self, response: int) -> slice:
        """Returns the slice of a response's tokens in `targets`."""
        end = int(self.target_lengths[: response + 1].sum())
        return slice(end - int(self.target_lengths[response]), end)


def best_response(example: CachedExample, kind: str) -> int:
    """Returns the index of the response to imitate: the chosen one of a pair, else the first with the highest feedback, else the first."""
    if kind == "pair" or example.feedback is None:
        return 0
    return int(np.argmax(example.feedback))


def only_response(example: CachedExample, response: int) -> CachedExample:
    """Returns the example with only one of its responses."""
    kept, tokens = slice(response, response + 1), example.target_slice(response)
    return dataclasses.replace(
        example,
        targets=example.targets[tokens],
        target_lengths=example.target_lengths[kept],
        teacher_ids=None if example.teacher_ids is None else example.teacher_ids[tokens],
        teacher_log_probs=(
            None if example.teacher_log_probs is None else example.teacher_log_probs[tokens]
        ),
        feedback=None if example.feedback is None else example.feedback[kept],
        scores=None if example.scores is None else example.scores[kept],
        responses=example.responses[kept],
    )


def make_example(
    inputs: Sequence[int],
    targets: Sequence[Sequence[int]],
    feedback: Sequence[float] | None,
    scores: Sequence[Sequence[float]] | None,
    reference_feedback: Sequence[float] | None = None,
    **fields: Any,
) -> CachedExample:
    """Makes an example from token lists, one list for each response."""
    return CachedExample(
        inputs=np.asarray(inputs, np.int32),
        targets=np.asarray(list(itertools.chain.from_iterable(targets)), np.int32),
        target_lengths=np.asarray([len(target) for target in targets], np.int32),
        feedback=None if feedback is None else np.asarray(feedback, np.float32),
        scores=None if scores is None else np.asarray(scores, np.float32),
        reference_feedback=(
            None if reference_feedback is None else np.asarray(reference_feedback, np.float32)
        ),
        **fields,
    )


def encode_example(example: CachedExample) -> bytes:
    """Returns the bytes of an example; equal examples give equal bytes."""
    header = {
        "v": _VERSION,
        "i": example.inputs.astype(_INT, copy=False).tobytes(),
        "t": example.targets.astype(_INT, copy=False).tobytes(),
        "l": example.target_lengths.astype(_INT, copy=False).tobytes(),
        "p": example.prompt_id,
    }
    if example.feedback is not None:
        header["f"] = example.feedback.astype(_FLOAT).tobytes()
    if example.scores is not None:
        header["s"] = example.scores.astype(_FLOAT).tobytes()
    # Fields are left out if there are none, so that the bytes of a cache without them do not change.
    if example.reference_feedback is not None:
        header["r"] = example.reference_feedback.astype(_FLOAT).tobytes()
    if example.image is not None:
        header["m"] = example.image
    text = (
        example.prompt,
        list(example.responses),
        example.group,
        example.source,
        example.file,
        example.line,
    )
    # The text is a nested byte string, so that training can skip it without decoding it.
    header["x"] = msgpack.packb(text, use_bin_type=True)
    return msgpack.packb(header, use_bin_type=True)


def decode_example(
    data: bytes, *, with_text: bool = True, where: str = "the cache"
) -> CachedExample:
    """Returns the example in the bytes. Raises DataError, which names `where`, if the bytes are not an example."""
    try:
        header = msgpack.unpackb(data, raw=False)
        if header["v"] != _VERSION:
            raise ValueError(f"format {header['v']}, this program reads {_VERSION}")
        lengths = np.frombuffer(header["l"], _INT)
        responses = len(lengths)
        targets = np.frombuffer(header["t"], _INT)
        if int(lengths.sum()) != len(targets) or responses == 0:
            raise ValueError("response lengths do not add up to the number of tokens")
        feedback = np.frombuffer(header["f"], _FLOAT) if "f" in header else None
        if feedback is not None and len(feedback) != responses:
            raise ValueError(f"{len(feedback)} feedback numbers for {responses} responses")
        scores = (
            np.frombuffer(header["s"], _FLOAT).reshape(responses, -1) if "s" in header else None
        )
        text: dict[str, Any] = {}
        if with_text:
            names = ("prompt", "responses", "group", "source", "file", "line")
            text = dict(zip(names, msgpack.unpackb(header["x"], raw=False), strict=True))
            text["responses"] = tuple(text["responses"])
        return CachedExample(
            inputs=np.frombuffer(header["i"], _INT),
            targets=targets,
            target_lengths=lengths,
            feedback=feedback,
            scores=scores,
            reference_feedback=np.frombuffer(header["r"], _FLOAT) if "r" in header else None,
            image=header.get("m"),
            prompt_id=header["p"],
            **text,
        )
    except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
        raise DataError(
            f"A record of {where} is damaged ({error}); delete the folder and run `jaxalign cache` again."
        ) from error
