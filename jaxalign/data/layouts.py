"""Record layouts of other libraries and their conversion to ours; `recognition` detects the layout of a file.

| layout         | what a line holds                                                                                                  |
|----------------|--------------------------------------------------------------------------------------------------------------------|
| `records`      | the fields of `records`, or fields that `fields` renames                                                            |
| `trl`          | TRL's: `prompt`, `completion`, `label`; lists of messages; `chosen` and `rejected` that begin with the prompt        |
| `hh`           | Anthropic HH: `chosen` and `rejected` are whole dialogues (`Human:`, `Assistant:`) with the same beginning            |
| `instructions` | `instruction`, `input` (may be empty), `output`                                                                     |
| `compared`     | `response_a`, `response_b` and who prefers which: `human_labels` (1 first, 2 second, 0 tie), or `winner`              |
| `ultrafeedback`| UltraFeedback's own layout, see `ultrafeedback`                                                                      |
| `candidates`   | several responses with named annotations, as `jaxalign generate` and `annotate` write them, see `candidate_records`   |

A list of messages becomes text with one line for each message, `role: content`; the response is only the last assistant message.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from jaxalign.data.record_fields import RecordError, field_value, number
from jaxalign.data.records import FIELDS
from jaxalign.data.rejections import DataError

LAYOUTS = ("records", "trl", "hh", "instructions", "compared", "ultrafeedback", "candidates")
_ROLES = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant"}
TURN = re.compile(r"\n\n(?:Assistant|ASSISTANT):")
_FIRST = ("model_a", "a", "first", "1", "response_a")
_SECOND = ("model_b", "b", "second", "2", "response_b")


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


def to_record_fields(obj: Any, layout: str, fields: Mapping[str, str]) -> Any:
    """Converts an object of another layout to our fields; `ultrafeedback` and `candidates` have parsers of their own.

    Raises:
      RecordError: the object does not have that layout.
    """
    if layout == "records" or not isinstance(obj, Mapping):
        return obj
    renamed = dict(obj)
    for ours, theirs in fields.items():
        renamed[ours] = field_value(obj, theirs)
    return _READERS[layout](renamed)


def is_messages(value: Any) -> TypeGuard[list[Mapping[str, Any]]]:
    """Returns whether a value is a list of messages: `{"role", "content"}`, or ShareGPT's `{"from", "value"}`."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(item, Mapping) and ("content" in item or "value" in item) for item in value
        )
    )


def render_messages(messages: Sequence[Mapping[str, Any]]) -> str:
    """Returns a text with one line for each message, `role: content`."""
    return "\n".join(f"{_role(message)}: {_content(message)}" for message in messages)


def _role(message: Mapping[str, Any]) -> str:
    role = str(message.get("role", message.get("from", "user")))
    return _ROLES.get(role, role)


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content", message.get("value"))
    if isinstance(content, list):
        content = "".join(
            str(part.get("text", "")) for part in content if isinstance(part, Mapping)
        )
    if not isinstance(content, str):
        raise RecordError("wrong_type", "a message has no text as its content")
    return content


def _reply(messages: Any) -> Any:
    """Returns the text of a response given as messages: the content of a single message, or several messages with roles."""
    if not is_messages(messages):
        return messages
    return _content(messages[0]) if len(messages) == 1 else render_messages(messages)


def _read_trl(obj: dict[str, Any]) -> dict[str, Any]:
    result = dict(obj)
    if "label" in obj and "feedback" not in obj:
        result["feedback"] = obj["label"]
    dialogue = obj.get("messages", obj.get("conversations"))
    if is_messages(dialogue):
        if _role(dialogue[-1]) != "assistant":
            raise RecordError("missing_field", "the last message is not the assistant's")
        if len(dialogue) < 2:
            raise RecordError("empty_prompt", "there is no message before the response")
        return result | {
            "prompt": render_messages(dialogue[:-1]),
            "response": _content(dialogue[-1]),
        }
    if "chosen" in obj and "rejected" in obj:
        return result | _pair(obj)
    if is_messages(obj.get("prompt")):
        result["prompt"] = render_messages(obj["prompt"])
    if "completion" in obj:
        result["response"] = _reply(obj["completion"])
    return result


def _pair(obj: Mapping[str, Any]) -> dict[str, Any]:
    chosen, rejected, prompt = obj["chosen"], obj["rejected"], obj.get("prompt")
    result: dict[str, Any] = {}
    if is_messages(chosen) and is_messages(rejected):
        shared = 0
        for one, other in zip(chosen[:-1], rejected[:-1], strict=False):
            if one != other:
                break
            shared += 1
        if shared:
            prompt = chosen[:shared]
        chosen, rejected = _reply(chosen[shared:]), _reply(rejected[shared:])
    elif isinstance(chosen, str) and isinstance(rejected, str) and prompt is None:
        if TURN.search(chosen):
            return _read_hh(obj)
        # As in TRL: the common beginning, up to the last space in it.
        shared = chosen.rfind(" ", 0, _common_length(chosen, rejected)) + 1
        prompt, chosen, rejected = chosen[:shared].strip(), chosen[shared:], rejected[shared:]
    result |= {"chosen": chosen, "rejected": rejected}
    if prompt is not None:
        result["prompt"] = render_messages(prompt) if is_messages(prompt) else prompt
    scores = obj.get("score_chosen"), obj.get("score_rejected")
    if None not in scores and obj.get("margin") is None:
        result["margin"] = number(scores[0], "score_chosen") - number(scores[1], "score_rejected")
    return result


def _common_length(one: str, other: str) -> int:
    """Returns the number of characters in the common beginning of two texts."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _read_hh(obj: Mapping[str, Any]) -> dict[str, Any]:
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
    return dict(obj) | {
        "prompt": chosen[:end].strip(),
        "chosen": chosen[end:].strip(),
        "rejected": rejected[end:].strip(),
    }


def _read_instructions(obj: dict[str, Any]) -> dict[str, Any]:
    result = dict(obj)
    parts = [obj.get("instruction"), obj.get("input")]
    texts = [part for part in parts if isinstance(part, str) and part.strip()]
    if not isinstance(obj.get("instruction"), str):
        raise RecordError("missing_field", "the field 'instruction' is missing")
    result["prompt"] = "\n".join(texts)
    if "response" not in obj and "output" in obj:
        result["response"] = obj["output"]
    return result


def _read_compared(obj: dict[str, Any]) -> dict[str, Any]:
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
    if margin < 0:
        first, second = second, first
    return dict(obj) | {"chosen": first, "rejected": second, "margin": abs(margin)}


_READERS = {
    "trl": _read_trl,
    "hh": _read_hh,
    "instructions": _read_instructions,
    "compared": _read_compared,
}
