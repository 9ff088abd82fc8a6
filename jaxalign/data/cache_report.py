"""The report on a cache: counts, lengths, feedback, lost records, and the options that keep those records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from jaxalign.data.validation import UNUSED_SCORE


class Described(Protocol):
    """The part of `cache_metadata.CacheMetadata` that the report reads."""

    @property
    def splits(self) -> Mapping[str, Any]: ...

    @property
    def num_examples(self) -> Mapping[str, int]: ...

    @property
    def rejected(self) -> Mapping[str, Mapping[str, int]]: ...

    def noted(self, note: str) -> int: ...

    def describe_cut(self, remedy: str) -> str: ...


def lines(metadata: Described, cut_remedy: str) -> list[str]:
    """Returns all lines of the report; ``cut_remedy`` names the option that changes how prompts are cut."""
    counts = ", ".join(f"{count} {split}" for split, count in metadata.num_examples.items())
    rejected: Counter[str] = Counter()
    for by_reason in metadata.rejected.values():
        rejected.update(by_reason)
    said = ", ".join(f"{count} {reason}" for reason, count in rejected.items()) or "none"
    return [
        f"examples: {counts}; rejected records: {said}",
        summary(metadata),
        *losses(metadata, cut_remedy),
    ]


def summary(metadata: Described) -> str:
    """Returns one line about the first split: its lengths in tokens and its feedback."""
    split = next(iter(metadata.splits.values()))
    parts = [
        f"{name}s: {lengths.p50:.0f} tokens at the median, {lengths.max:.0f} at most"
        for name, lengths in (
            ("prompt", split.prompt_lengths),
            ("response", split.response_lengths),
        )
    ]
    if split.feedback_range is not None:
        parts.append(f"feedback: {split.feedback_range.min:g} to {split.feedback_range.max:g}")
    return "; ".join(parts)


def losses(metadata: Described, cut_remedy: str) -> list[str]:
    """Returns a line for each way in which the examples differ from the data, with the option that keeps the data."""
    cut = metadata.describe_cut(cut_remedy)
    return [*([cut] if cut else []), *_losses(metadata)]


def _losses(metadata: Described) -> Iterator[str]:
    noted = metadata.noted
    prompts = sum(metadata.num_examples.values())
    responses = sum(split.num_responses for split in metadata.splits.values())
    if noted("unknown_prompts") or noted("unknown_responses"):
        yield (
            f"{noted('unknown_prompts')} of {prompts} prompts and {noted('unknown_responses')} of {responses} responses hold "
            "characters that are unknown to the vocabulary: VOCABULARY = 'bytes', or one that `jaxalign vocabulary` trains on the "
            "file, knows them"
        )
    if noted("changed_prompts") or noted("changed_responses"):
        prompt_share = noted("changed_prompts") / max(prompts, 1)
        response_share = noted("changed_responses") / max(responses, 1)
        yield (
            f"the vocabulary changes {noted('changed_prompts')} of {prompts} prompts ({prompt_share:.0%}) and "
            f"{noted('changed_responses')} of {responses} responses ({response_share:.0%}): line breaks and repeated spaces become one "
            "space, unknown characters are lost; VOCABULARY = 'bytes' keeps all text"
        )
    if unread := noted("unread_images"):
        yield (
            f"warning: {unread} records have an image, which is not read: give --image_size and --patch_size (IMAGE_SIZE and "
            "PATCH_SIZE of a run's model)"
        )
    if reordered := noted("reordered"):
        yield (
            f"{reordered} of {prompts} examples have feedback that contradicts the order of their responses; the feedback is followed"
        )
    if ties := noted("ties"):
        yield (
            f"{ties} of {prompts} examples are ties, all responses having the same feedback; methods that only learn which response is "
            "better leave them out"
        )
    outliers = sum(split.feedback_outliers for split in metadata.splits.values())
    ranges = [split.feedback_range for split in metadata.splits.values() if split.feedback_range]
    if outliers:
        low, high = min(found.min for found in ranges), max(found.max for found in ranges)
        yield (
            f"warning: {outliers} of {responses} responses have extreme feedback (from {low:g} to {high:g}), beside which all other "
            "feedback is nearly the same; correct or remove these records"
        )
    notes = {name for split in metadata.splits.values() for name in split.notes}
    unused = sorted(name for name in notes if name.startswith(UNUSED_SCORE))
    if unused:
        named = ", ".join(
            f"{name.removeprefix(UNUSED_SCORE)!r} (in {noted(name)} records)" for name in unused
        )
        yield f"scores that most records lack were left out: {named}"
