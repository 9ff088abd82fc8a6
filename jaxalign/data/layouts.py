"""Record layouts of other libraries and their conversion to ours; `recognition` detects the layout of a file.

| layout         | what a line holds                                                                                                  |
|----------------|--------------------------------------------------------------------------------------------------------------------|
| `records`      | the fields of `records`, or fields that `fields` renames                                                            |
| `trl`          | TRL's: `prompt`, `completion`, `label`; lists of messages; `chosen` and `rejected` that begin with the prompt        |
| `hh`           | Anthropic HH: `chosen` and `rejected` are whole dialogues (`Human:`, `Assistant:`) with the same beginning            |
| `instructions` | `instruction`, `input` (may be empty), `output`                                                                     |
| `compared`     | `response_a`, `response_b` and who prefers which: `human_labels` (1 first, 2 second, 0 tie), or `winner`; SHP's too   |
| `halos`        | HALOs': `prompt` and `output` as messages with `label` or `reward`; or `output_A`, `output_B` and `label` (1: A)      |
| `openai`       | OpenAI's preferences: `input` with `messages`, `preferred_output`, `non_preferred_output`                            |
| `ultrafeedback`| UltraFeedback's own layout, see `ultrafeedback`                                                                      |
| `candidates`   | several responses with named annotations, as `jaxalign generate` and `annotate` write them, see `candidate_records`   |

Messages become text by a chat template, or without one as lines `role: content` with the last assistant message alone as the response
(`chat_messages`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxalign.data.chat_messages import (
    hh_messages,
    is_messages,
    prompt_text,
    response_text,
    role_of,
)
from jaxalign.data.chat_templates import ChatTemplate
from jaxalign.data.record_fields import RecordError, field_value, number
from jaxalign.data.records import FIELDS
from jaxalign.data.rejections import DataError

LAYOUTS = (
    "records",
    "trl",
    "hh",
    "instructions",
    "compared",
    "halos",
    "openai",
    "ultrafeedback",
    "candidates",
)
TURN = re.compile(r"\n\n(?:Assistant|ASSISTANT):")
_FIRST = ("model_a", "a", "first", "1", "response_a")
_SECOND = ("model_b", "b", "second", "2", "response_b")
# The names under which scores of the two responses of a pair are published.
_PAIR_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
)


def check_layout(layout: str) -> str:
    """Returns the layout itself; raises DataError, which lists the known layouts, if it is unknown."""
    if layout not in LAYOUTS:
        raise DataError(f"Unknown layout {layout!r}; known: {', '.join(LAYOUTS)}.")
    return layout


def parse_fields(fields: str | Sequence[str] | Mapping[str, str] | None) -> dict[str, str]:
    """Returns {our name: the file's name} from "response=completion,feedback=label", or a list of such parts.

    Raises:
      DataError: the text does not have that form, or a name is not a field of any record.
    """
    if fields is None or isinstance(fields, Mapping):
        result = dict(fields or {})
    else:
        listed = fields if isinstance(fields, str) else ",".join(fields)
        parts = [part.strip() for part in listed.split(",") if part.strip()]
        malformed = [part for part in parts if not re.fullmatch(r"[^=]+=[^=]+", part)]
        if malformed:
            raise DataError(
                f"fields: {malformed[0]!r} must be written ours=theirs, for example fields=response=completion,feedback=label."
            )
        result = {
            ours.strip(): theirs.strip() for ours, theirs in (part.split("=") for part in parts)
        }
    unknown = [name for name in result if name not in FIELDS]
    if unknown:
        raise DataError(
            f"fields: {unknown[0]!r} is not a field of records; known: {', '.join(FIELDS)}."
        )
    return result


def to_record_fields(
    obj: Any, layout: str, fields: Mapping[str, str], template: ChatTemplate | None = None
) -> Any:
    """Converts an object of another layout to our fields; `ultrafeedback` and `candidates` have parsers of their own.

    Args:
      obj: the object.
      layout: its layout.
      fields: the file's names of our fields, if they differ.
      template: turns chat messages into text; None for lines `role: content`.

    Raises:
      RecordError: the object does not have that layout.
    """
    if layout == "records" or not isinstance(obj, Mapping):
        return obj
    renamed = dict(obj)
    for ours, theirs in fields.items():
        renamed[ours] = field_value(obj, theirs)
    return _READERS[layout](renamed, template)


def _read_trl(obj: dict[str, Any], template: ChatTemplate | None) -> dict[str, Any]:
    result = dict(obj)
    if "label" in obj and "feedback" not in obj:
        result["feedback"] = obj["label"]
    dialogue = obj.get("messages", obj.get("conversations"))
    if is_messages(dialogue):
        if role_of(dialogue[-1]) != "assistant":
            raise RecordError("missing_field", "the last message is not the assistant's")
        if len(dialogue) < 2:
            raise RecordError("empty_prompt", "there is no message before the response")
        return result | _answered(dialogue[:-1], dialogue[-1:], template)
    if "chosen" in obj and "rejected" in obj:
        return result | _pair(obj, template)
    return result | _answered(obj.get("prompt"), obj.get("completion"), template)


def _answered(prompt: Any, response: Any, template: ChatTemplate | None) -> dict[str, Any]:
    """Returns the fields prompt and response, without one that is None."""
    texts = {
        "prompt": prompt_text(prompt, template) if is_messages(prompt) else prompt,
        "response": response_text(prompt, response, template),
    }
    return {name: text for name, text in texts.items() if text is not None}


def _pair(obj: Mapping[str, Any], template: ChatTemplate | None) -> dict[str, Any]:
    chosen, rejected, prompt = obj["chosen"], obj["rejected"], obj.get("prompt")
    if is_messages(chosen) and is_messages(rejected):
        shared = 0
        for one, other in zip(chosen[:-1], rejected[:-1], strict=False):
            if one != other:
                break
            shared += 1
        if shared:
            prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    elif isinstance(chosen, str) and isinstance(rejected, str) and prompt is None:
        if TURN.search(chosen):
            return _read_hh(dict(obj), template)
        # As in TRL: the common beginning, up to the last space in it.
        shared = chosen.rfind(" ", 0, _common_length(chosen, rejected)) + 1
        prompt, chosen, rejected = chosen[:shared].strip(), chosen[shared:], rejected[shared:]
    result: dict[str, Any] = {
        "chosen": response_text(prompt, chosen, template),
        "rejected": response_text(prompt, rejected, template),
    }
    if prompt is not None:
        result["prompt"] = prompt_text(prompt, template) if is_messages(prompt) else prompt
    for names in _PAIR_SCORES:
        scores = [obj.get(name) for name in names]
        if None not in scores and obj.get("margin") is None:
            result["margin"] = number(scores[0], names[0]) - number(scores[1], names[1])
            break
    return result


def _common_length(one: str, other: str) -> int:
    """Returns the number of characters in the common beginning of two texts."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _read_hh(obj: dict[str, Any], template: ChatTemplate | None) -> dict[str, Any]:
    chosen, rejected = obj.get("chosen"), obj.get("rejected")
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        raise RecordError("wrong_type", "'chosen' and 'rejected' must be dialogues as text")
    common = _common_length(chosen, rejected)
    turns = [match.end() for match in TURN.finditer(chosen) if match.end() <= common]
    if not turns:
        raise RecordError(
            "wrong_type", "'chosen' and 'rejected' do not begin with the same dialogue"
        )
    end = turns[-1]
    prompt, chosen, rejected = (
        text.strip() for text in (chosen[:end], chosen[end:], rejected[end:])
    )
    messages = None if template is None else hh_messages(prompt)
    if template is None or not messages:
        return obj | {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    answers = {"chosen": chosen, "rejected": rejected}
    return obj | {
        "prompt": template.prompt(messages),
        **{
            name: template.response(messages, [{"role": "assistant", "content": text}])
            for name, text in answers.items()
        },
    }


def _read_instructions(obj: dict[str, Any], template: ChatTemplate | None) -> dict[str, Any]:
    del template  # there are no messages
    result = dict(obj)
    parts = [obj.get("instruction"), obj.get("input")]
    texts = [part for part in parts if isinstance(part, str) and part.strip()]
    if not isinstance(obj.get("instruction"), str):
        raise RecordError("missing_field", "the field 'instruction' is missing")
    result["prompt"] = "\n".join(texts)
    if "response" not in obj and "output" in obj:
        result["response"] = obj["output"]
    return result


def _read_compared(obj: dict[str, Any], template: ChatTemplate | None) -> dict[str, Any]:
    del template  # there are no messages
    result = dict(obj)
    if "human_ref_A" in obj:
        # SHP names the preferred response in `labels`: 1 is A, 0 is B.
        result.setdefault("prompt", obj.get("history"))
        first, second = obj.get("human_ref_A"), obj.get("human_ref_B")
        margin = 1.0 if number(obj.get("labels"), "labels") == 1 else -1.0
        return result | _ordered(first, second, margin)
    first, second = obj.get("response_a"), obj.get("response_b")
    labels = obj.get("human_labels")
    if isinstance(labels, list) and labels:
        for_first, for_second = labels.count(1), labels.count(2)
        margin = (for_first - for_second) / len(labels)
    else:
        winner = str(obj.get("winner", obj.get("preference", ""))).lower()
        if not winner:
            raise RecordError("missing_field", "the fields 'human_labels' and 'winner' are missing")
        margin = 1.0 if winner in _FIRST else -1.0 if winner in _SECOND else 0.0
    return result | _ordered(first, second, margin)


def _ordered(first: Any, second: Any, margin: float) -> dict[str, Any]:
    """Returns a pair from two responses and how much better the first is."""
    if margin < 0:
        first, second = second, first
    return {"chosen": first, "rejected": second, "margin": abs(margin)}


def _read_halos(obj: dict[str, Any], template: ChatTemplate | None) -> dict[str, Any]:
    prompt = obj.get("prompt")
    if "output_A" not in obj:
        feedback = obj.get("feedback", obj.get("label", obj.get("reward")))
        response = obj.get("response", obj.get("output"))
        return obj | {"feedback": feedback} | _answered(prompt, response, template)
    texts = [response_text(prompt, obj.get(name), template) for name in ("output_A", "output_B")]
    rewards = [obj.get("reward_A"), obj.get("reward_B")]
    sign = 1.0 if number(obj.get("label"), "label") == 1 else -1.0
    pair = _ordered(texts[0], texts[1], sign)
    if None in rewards:
        del pair["margin"]
    else:
        pair["margin"] = abs(number(rewards[0], "reward_A") - number(rewards[1], "reward_B"))
    return obj | _answered(prompt, None, template) | pair


def _read_openai(obj: dict[str, Any], template: ChatTemplate | None) -> dict[str, Any]:
    given = obj.get("input")
    prompt = given.get("messages") if isinstance(given, Mapping) else None
    if not is_messages(prompt):
        raise RecordError("missing_field", "the field 'input.messages' is missing")
    pair = {
        "prompt": prompt,
        "chosen": obj.get("preferred_output"),
        "rejected": obj.get("non_preferred_output"),
    }
    return obj | _pair(pair, template)


_READERS = {
    "trl": _read_trl,
    "hh": _read_hh,
    "instructions": _read_instructions,
    "compared": _read_compared,
    "halos": _read_halos,
    "openai": _read_openai,
}
