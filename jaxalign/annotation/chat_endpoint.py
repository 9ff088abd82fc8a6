"""Where a chat model answers, and the key for it, from environment variables. The key is never shown: see `Key`."""

from __future__ import annotations

import dataclasses
import html
import ipaddress
import os
import re
import urllib.parse
from collections.abc import Mapping

from jaxalign.errors import UserError

# A shorter key is a placeholder such as EMPTY. To hide it would change texts that are no secret.
_SECRET_LENGTH = 8
_JSON_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|([\"\\/]))")


class Key:
    """A secret that is not shown by `repr`, `str` or a message. Only `header` gives it out."""

    def __init__(self, text: str = "") -> None:
        self._text = text
        self._is_secret = len(text) >= _SECRET_LENGTH

    def __bool__(self) -> bool:
        return bool(self._text)

    def __repr__(self) -> str:
        return "Key(hidden)" if self._text else "Key(none)"

    def header(self) -> str:
        """Returns the value of the header `Authorization`."""
        return f"Bearer {self._text}"

    def redact(self, text: str) -> str:
        """Returns a text of the server without the key. A key of fewer than 8 characters is a placeholder and is left.

        If the text holds the key in an encoded form (JSON, URL or HTML), all of the text is removed.
        """
        if not self._is_secret:
            return text
        text = text.replace(self._text, "[key removed]")
        return "[text with the key removed]" if self._text in _decoded(text) else text


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """A model behind an OpenAI-compatible endpoint.

    Attributes:
      base_url: the URL before `/chat/completions`, for example `https://api.openai.com/v1`.
      model: the name of the model.
      key: the secret; false if there is none.
      key_source: what to say about the key where the server refuses it.
    """

    base_url: str
    model: str
    key: Key = dataclasses.field(default_factory=Key)
    key_source: str = ""

    def __post_init__(self) -> None:
        parts = _checked_url(self.base_url)
        if parts.scheme == "http" and self.key and not self.is_local:
            raise UserError(
                f"{self.base_url} would send the key unencrypted to another machine; use https, a tunnel to localhost "
                "(ssh -L), or no key"
            )

    @property
    def url(self) -> str:
        """The URL that requests go to."""
        return f"{self.base_url}/chat/completions"

    @property
    def is_local(self) -> bool:
        """Whether the server runs on this machine."""
        host = urllib.parse.urlsplit(self.base_url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"


def endpoint_from_environment(
    model: str = "", environment: Mapping[str, str] | None = None
) -> Endpoint:
    """Returns the endpoint that the environment names.

    JAXALIGN_LLM_BASE_URL wins over OPENAI_BASE_URL, a given model over JAXALIGN_LLM_MODEL, and JAXALIGN_LLM_API_KEY over
    OPENAI_API_KEY. OPENAI_API_KEY goes only to OPENAI_BASE_URL, so that it does not reach the server of somebody else.

    Raises:
      UserError: no URL or no model is named, or one of the values cannot be used.
    """
    given = os.environ if environment is None else environment

    def read(name: str) -> str:
        return given.get(name, "").strip()

    url = read("JAXALIGN_LLM_BASE_URL") or read("OPENAI_BASE_URL")
    if not url:
        raise UserError(
            "no LLM server is named: set JAXALIGN_LLM_BASE_URL (or OPENAI_BASE_URL), for example http://localhost:8000/v1"
        )
    model = model or read("JAXALIGN_LLM_MODEL")
    if not model:
        raise UserError("no LLM is named: set JAXALIGN_LLM_MODEL or the setting model=")
    url = url.rstrip("/").removesuffix("/chat/completions")
    theirs = read("OPENAI_BASE_URL").rstrip("/").removesuffix("/chat/completions") == url
    name = "JAXALIGN_LLM_API_KEY"
    if not read(name) and theirs:
        name = "OPENAI_API_KEY"
    key, source = read(name), f"the key is that of {name}"
    if not key:
        source = "no key was sent; set JAXALIGN_LLM_API_KEY"
        if read("OPENAI_API_KEY"):
            source += " (OPENAI_API_KEY goes to OPENAI_BASE_URL only)"
    # http.client would quote a value that it refuses.
    if not all("!" <= sign <= "~" for sign in key):
        raise UserError(f"{name} holds a character that a key cannot have, such as a line break")
    return Endpoint(url, model, Key(key), source)


def _decoded(text: str) -> str:
    """Returns a text with the escapes of JSON, URLs and HTML resolved."""
    text = _JSON_ESCAPE.sub(lambda found: chr(int(found[1], 16)) if found[1] else found[2], text)
    return html.unescape(urllib.parse.unquote(text))


def _checked_url(url: str) -> urllib.parse.SplitResult:
    """Returns the parts of a base URL. A URL with a password or a query is not quoted, because these may be secrets."""
    remedy = "write it as https://host/v1"
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise UserError(f"the base URL of the LLM server is malformed; {remedy}") from None
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UserError(
            "the base URL of the LLM server has a password, a query or a fragment; write it as https://host/v1, and give the "
            "key in JAXALIGN_LLM_API_KEY"
        )
    if parts.scheme not in ("http", "https") or not host:
        raise UserError(f"the base URL of the LLM server is {url[:80]!r}; {remedy}")
    if not all("!" <= sign <= "~" for sign in url):
        raise UserError(
            f"the base URL of the LLM server has a space or a sign outside ASCII; {remedy}"
        )
    return parts
