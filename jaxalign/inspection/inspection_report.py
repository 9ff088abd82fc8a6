"""The report that `jaxalign inspect` prints about a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from jaxalign.data.vocabularies import Vocabulary
from jaxalign.inspection.findings import Inspection
from jaxalign.inspection.suggestions import TOLERATED, Settings

_NOTHING = "nothing"


def describe(
    inspection: Inspection, vocabulary: Vocabulary, settings: Settings | None
) -> Iterator[str]:
    """Yields the lines of the report."""
    count, notes = inspection.examples_count, inspection.notes
    yield from counts(inspection)
    if settings is not None and set(inspection.responses) != {1}:
        several = ", ".join(f"{n} x {k}" for k, n in sorted(inspection.responses.items()))
        yield f"responses to a prompt (records x responses): {several}"
    yield _lengths("prompt", inspection.prompt_lengths)
    if settings is None:
        yield f"unknown to the vocabulary: {_affected(notes['unknown_prompts'], count)}"
        return
    yield _lengths("response", inspection.response_lengths)
    unstated = notes["without_margin"] + notes["without_feedback"]
    if inspection.feedback and unstated < inspection.records:
        yield _feedback(inspection)
    if unstated:
        yield f"feedback: {unstated} records state none; the order of their responses implies it"
    if notes["reordered"]:
        yield f"feedback contradicts the order of the responses in {notes['reordered']} records; it is followed"
    if notes["ties"]:
        yield f"ties (all responses with the same feedback): {notes['ties']}"
    if notes["unread_images"]:
        yield (
            f"images: {notes['unread_images']} records have one, which is not measured here; a run reads them with IMAGE_SIZE and "
            "PATCH_SIZE, and its inputs need room for the patches"
        )
    responses = len(inspection.response_lengths)
    unknown = _affected(notes["unknown_prompts"], count, notes["unknown_responses"], responses)
    yield f"unknown to the vocabulary: {unknown}"
    changed = _affected(notes["changed_prompts"], count, notes["changed_responses"], responses)
    kept = "; --vocabulary=bytes keeps all text"
    if changed == _NOTHING or settings.checkpoint:  # a checkpoint has its own vocabulary
        kept = ""
    yield f"changed by the vocabulary (line breaks, repeated spaces, unknown characters): {changed}{kept}"
    side = "beginning" if settings.keeps_end else "end"
    yield (
        f"with TASK_FEATURE_LENGTHS {{'inputs': {settings.inputs}, 'targets': {settings.targets}}}: prompts cut at their {side}: "
        f"{settings.cut_prompts} of {count}; records left out because of a long response: {settings.long_responses}"
    )
    if settings.max_rejected_fraction > TOLERATED:
        yield (
            "many records cannot be used (rejected, or with a long response, as counted above): max_rejected_fraction is set to "
            f"{settings.max_rejected_fraction:g}"
        )
    for number, (record, inputs, targets) in enumerate(inspection.examples, start=1):
        room = settings.inputs - 1
        cut = inputs[-room:] if settings.keeps_end else inputs[:room]
        yield f"example {number}, as the model sees it:"
        yield f"  prompt ({len(cut) + 1} tokens): {_shown(vocabulary.decode(cut))}"
        for k, target in enumerate(targets):
            value = "" if record.feedback is None else f", feedback {record.feedback[k]:g}"
            yield f"  response ({len(target) + 1} tokens{value}): {_shown(vocabulary.decode(target))}"


def counts(inspection: Inspection) -> Iterator[str]:
    """Yields the lines that count the records of a file."""
    rejected = ", ".join(f"{number} {reason}" for reason, number in inspection.rejected.items())
    yield (
        f"records: {inspection.records}, usable {inspection.examples_count}, distinct prompts {len(inspection.prompts)}, repeated "
        f"{inspection.repeated}"
    )
    if rejected:
        yield f"rejected: {rejected}; the first: {inspection.first_rejected}"


def _lengths(name: str, lengths: Sequence[int]) -> str:
    found = np.percentile(lengths, (50, 90, 99, 100))
    return f"{name} tokens: median {found[0]:.0f}, 90 % {found[1]:.0f}, 99 % {found[2]:.0f}, longest {found[3]:.0f}"


def _feedback(inspection: Inspection) -> str:
    values, total = inspection.feedback, sum(inspection.feedback.values())
    if len(values) <= 8:
        said = ", ".join(f"{value:g}: {_share(values[value], total)}" for value in sorted(values))
        return f"feedback: {said}"
    found = np.repeat(list(values), list(values.values()))
    low, median, high = np.percentile(found, (5, 50, 95))
    return (
        f"feedback: {len(values)} values from {found.min():g} to {found.max():g}, mean {found.mean():.3g}, median {median:g}, "
        f"90 % between {low:g} and {high:g}"
    )


def _affected(prompts: int, of: int, responses: int = 0, of_responses: int = 0) -> str:
    """Returns the shares of prompts and responses in words."""
    if not prompts and not responses:
        return _NOTHING
    said = f"something in {_share(prompts, of)} of the prompts"
    return (
        f"{said} and {_share(responses, of_responses)} of the responses" if of_responses else said
    )


def _share(part: int, total: int) -> str:
    percent = 100 * part / max(total, 1)
    return "less than 0.1 %" if 0 < percent < 0.05 else f"{percent:.1f} %"


def _shown(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 300 else f"{text[:140]} ... {text[-140:]}")
