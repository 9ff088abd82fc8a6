"""Lists of chat messages as the texts of prompts and responses, by a chat template or, without one, as lines `role: content`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from jaxalign.data.chat_templates import ChatTemplate
from jaxalign.data.record_fields import RecordError

Messages = Sequence[Mapping[str, Any]]
_ROLES = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant"}
_HH_TURN = re.compile(r"\n\n(Human|HUMAN|Assistant|ASSISTANT):")


def is_messages(value: Any) -> TypeGuard[list[Mapping[str, Any]]]:
    """Returns whether a value is a list of messages: `{"role", "content"}`, or ShareGPT's `{"from", "value"}`."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(item, Mapping) and ("content" in item or "value" in item) for item in value
        )
    )


def role_of(message: Mapping[str, Any]) -> str:
    """Returns the role of a message; ShareGPT's names become user and assistant."""
    role = str(message.get("role", message.get("from", "user")))
    return _ROLES.get(role, role)


def content_of(message: Mapping[str, Any]) -> str:
    """Returns the text of a message, or of the parts of its content.

    Raises:
      RecordError: it has no text.
    """
    content = message.get("content", message.get("value"))
    if isinstance(content, list):
        content = "".join(
            str(part.get("text", "")) for part in content if isinstance(part, Mapping)
        )
    if not isinstance(content, str):
        raise RecordError("wrong_type", "a message has no text as its content")
    return content


def prompt_text(messages: Messages, template: ChatTemplate | None) -> str:
    """Returns the text of the messages before a response."""
    if template is None:
        return _lines(messages)
    return template.prompt(_normalised(messages))


def response_text(prompt: Any, response: Any, template: ChatTemplate | None) -> Any:
    """Returns the text of a response given as messages; any other value as it is.

    Without a template a single message is its content, and several are lines with roles.

    Args:
      prompt: the messages before it; a prompt of another type was written without a template, and so is the response.
      response: the messages of the response, or a value that is none.
      template: the template; None to write lines.
    """
    if not is_messages(response):
        return response
    if template is not None and is_messages(prompt):
        return template.response(_normalised(prompt), _normalised(response))
    return content_of(response[0]) if len(response) == 1 else _lines(response)


def hh_messages(dialogue: str) -> list[dict[str, str]] | None:
    """Returns the messages of a dialogue of Anthropic HH without its last, open turn; None if it does not begin with a turn."""
    parts = _HH_TURN.split("\n\n" + dialogue.strip())
    if parts[0].strip() or len(parts) < 3:
        return None
    roles = {"human": "user", "assistant": "assistant"}
    turns = zip(parts[1::2], parts[2::2], strict=True)
    found = [{"role": roles[name.lower()], "content": text.strip()} for name, text in turns]
    return found[:-1] if not found[-1]["content"] else found


def _normalised(messages: Messages) -> list[dict[str, Any]]:
    return [{**m, "role": role_of(m), "content": content_of(m)} for m in messages]


def _lines(messages: Messages) -> str:
    return "\n".join(f"{role_of(message)}: {content_of(message)}" for message in messages)
