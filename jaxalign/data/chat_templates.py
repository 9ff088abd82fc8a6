"""Jinja templates that turn chat messages into text, as transformers applies them: a file of one's own, or a tokenizer's.

A template is text from a stranger. It runs in jinja2's sandbox, which gives it the messages and nothing else: no files, no modules, no
attributes of Python objects, no date and nothing random. Powers, large products and formats are refused, but a template that means harm can
still use up time and memory.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from jaxalign import files, hub, untrusted
from jaxalign.data.record_fields import RecordError
from jaxalign.errors import UserError, first_line

TEMPLATE_FILE, _IN_JSON, _CONFIG = (
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer_config.json",
)
_MAX_BYTES = 1 << 20
_MAX_CHARACTERS = 1 << 22
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
# Every prompt and response gets the tokens of its vocabulary (EOS; BOS where prompts begin with it), so a template writes no BOS.
_T5_TOKENS = {"bos_token": "", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A chat template.

    Attributes:
      text: the Jinja source.
      tokens: the texts of special tokens that it may write, such as `eos_token`.
      path: where it was read; templates with the same text are equal wherever they are.
    """

    text: str
    tokens: Mapping[str, str] = dataclasses.field(default_factory=lambda: dict(_T5_TOKENS))
    path: str = dataclasses.field(default="", compare=False)

    def describe(self) -> dict[str, Any]:
        """Returns what determines the texts: the source and the tokens."""
        return {"text": self.text, "tokens": dict(self.tokens)}

    def prompt(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Returns the text of messages, up to where the assistant's answer begins.

        Raises:
          RecordError: the template does not accept the messages.
        """
        return self._render(messages, add_generation_prompt=True)

    def response(
        self, prompt: Sequence[Mapping[str, Any]], response: Sequence[Mapping[str, Any]]
    ) -> str:
        """Returns the text that follows that of the prompt, without the spaces around it and without EOS.

        Raises:
          RecordError: the template does not accept the messages, or writes the prompt otherwise if an answer follows.
        """
        before = self.prompt(prompt)
        whole = self._render([*prompt, *response], add_generation_prompt=False)
        if not whole.startswith(before):
            raise RecordError(
                "wrong_type",
                f"the chat template {self.path} writes the prompt otherwise when an answer follows it, so the answer's text is unknown; "
                "use a template without this",
            )
        return whole[len(before) :].strip().removesuffix(self.tokens["eos_token"]).strip()

    def _render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool) -> str:
        try:
            text = self._compiled.render(
                messages=list(messages),
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self.tokens,
            )
        except Exception as error:
            # A template can raise errors of its own, and of any kind.
            raise RecordError(
                "wrong_type",
                f"the chat template {self.path} does not accept the messages: {first_line(error)}",
            ) from error
        if len(text) > _MAX_CHARACTERS:
            raise RecordError(
                "wrong_type", f"the chat template {self.path} writes {len(text)} characters"
            )
        return text

    @functools.cached_property
    def _compiled(self) -> Any:
        return _environment().from_string(self.text)


def read_chat_template(path: str) -> ChatTemplate:
    """Reads a Jinja file, `tokenizer_config.json`, the folder of a tokenizer (or its address hf://OWNER/NAME), or a run folder whose task
    had a template.

    Raises:
      UserError: the file is missing or too large, holds no chat template, or its template is no Jinja.
    """
    place = hub.download_tokenizer(path) if hub.is_address(path) else os.path.expanduser(path)
    if os.path.isdir(place):
        text, where = _of_folder(place)
    elif place.endswith(".json"):
        text, where = _of_json(place, untrusted.read_json_object(place)), place
    else:
        text, where = _text(place), place
    tokens = _tokens(where)
    template = ChatTemplate(text, tokens, path)
    _check(template, where)
    return template


def _check(template: ChatTemplate, where: str) -> None:
    try:
        import jinja2
    except ImportError:
        raise UserError(
            f"the chat template {where} needs jinja2: pip install 'jaxalign[chat]' or jinja2"
        ) from None
    try:
        _ = template._compiled
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"{where}:{error.lineno}: not a Jinja template: {error.message}") from error


def _text(path: str, inside: str | None = None) -> str:
    try:
        return untrusted.read_bytes(path, _MAX_BYTES, inside=inside).decode("utf-8")
    except FileNotFoundError:
        raise UserError(
            f"the chat template {path} does not exist; give a Jinja file, or the folder of a tokenizer that has one"
        ) from None
    except OSError as error:
        raise UserError(f"the chat template {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the chat template {path} is not UTF-8: {error.reason}") from error


def _of_folder(folder: str) -> tuple[str, str]:
    """Returns the template of a tokenizer's folder, and its file."""
    file = os.path.join(folder, TEMPLATE_FILE)
    if os.path.exists(file):
        return _text(file, inside=folder), file
    for name in (_IN_JSON, _CONFIG):
        file = os.path.join(folder, name)
        if os.path.exists(file):
            found = untrusted.read_json_object(file, inside=folder)
            if "chat_template" in found:
                return _of_json(file, found), file
    raise UserError(
        f"{folder} has no chat template (neither {TEMPLATE_FILE} nor the field chat_template in {_CONFIG}); give a Jinja file"
    )


def _of_json(path: str, content: Mapping[str, Any]) -> str:
    found = content.get("chat_template")
    if isinstance(found, list):
        named = {
            entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)
        }
        found = named.get("default")
    if not isinstance(found, str):
        raise UserError(f"{path} has no field chat_template with the text of a default template")
    return found


def write_chat_template(folder: str | os.PathLike[str], described: Mapping[str, Any]) -> None:
    """Writes a template that `ChatTemplate.describe` described into a folder, from which `read_chat_template` reads it."""
    content = {"chat_template": described["text"], **described["tokens"]}
    files.write_text(
        os.path.join(folder, _IN_JSON), json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    )


def _tokens(file: str) -> dict[str, str]:
    """Returns the special tokens that the file of a template or a tokenizer's configuration beside it names; T5's by default."""
    tokens = dict(_T5_TOKENS)
    config = os.path.join(os.path.dirname(file), _CONFIG)
    for path in dict.fromkeys((config, file)):
        found = (
            untrusted.read_json_object(path)
            if path.endswith(".json") and os.path.exists(path)
            else {}
        )
        for name in _SPECIAL[1:]:
            value = found.get(name)
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                tokens[name] = text
    return tokens


@functools.cache
def _environment() -> Any:
    import jinja2
    from jinja2 import ext, nodes, sandbox

    class Generation(ext.Extension):
        """`{% generation %}` marks the assistant's text for training; here it only writes the text."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    class Environment(sandbox.ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(["*", "**", "%"])

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "%" and isinstance(left, str):
                raise jinja2.exceptions.SecurityError("a format with %")
            sizes = [len(x) if hasattr(x, "__len__") else abs(x) for x in (left, right)]
            if operator == "**" or (operator == "*" and sizes[0] * sizes[1] > _MAX_CHARACTERS):
                raise jinja2.exceptions.SecurityError("a power or a product of this size")
            return super().call_binop(context, operator, left, right)

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    def to_json(value: Any, indent: int | None = None, **options: Any) -> str:
        del options
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    for name in ("random", "center", "format"):
        del environment.filters[name]
    for name in ("lipsum", "cycler", "joiner"):
        del environment.globals[name]
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    return environment
