"""One try of a request to a chat endpoint: what was answered, and which failures may pass. Standard library only."""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import http.client
import json
import socket
import ssl
import time
import urllib.error
import urllib.request
from email.message import Message
from typing import Any

from jaxalign.annotation.chat_cache import Reply
from jaxalign.annotation.chat_endpoint import Endpoint
from jaxalign.errors import UserError
from jaxalign.version import __version__

# Timeout, too early, too many requests. Every status from 500 may pass too.
_TRANSIENT = (408, 425, 429)
# The server refuses this one request: malformed, too long, or stopped by a filter of contents.
_REFUSALS = (400, 413, 422)
# An answer that is no chat completion may come from a proxy that restarts. More tries would only delay the message.
_TRIES_OF_NONSENSE = 3
_MAX_QUOTED = 200
_REMEDIES = {
    401: "the key is wrong or missing",
    402: "the account has no credit",
    403: "the key may not use this model or server",
    404: "the model or the path does not exist; the base URL usually ends in /v1",
}


class RequestRefusedError(UserError):
    """The server refuses one request, and repeating it is useless. Others may be answered."""


class PassingError(Exception):
    """A failure that may pass.

    Attributes:
      wait: the seconds that the server asks to wait.
      tries: the number of tries after which it will not pass; None for that of the client.
    """

    def __init__(self, text: str, wait: float = 0.0, tries: int | None = None) -> None:
        super().__init__(text)
        self.wait, self.tries = wait, tries


class Connection:
    """Sends requests to an endpoint, one HTTP connection each. Redirects are not followed.

    Args:
      endpoint: the server and the key.
      timeout: seconds to connect, to wait for a part of the answer, and for the whole content of the answer.
      max_reply_bytes: a longer answer is refused.
    """

    def __init__(self, endpoint: Endpoint, *, timeout: float, max_reply_bytes: int) -> None:
        self._endpoint, self._timeout, self._max_reply_bytes = endpoint, timeout, max_reply_bytes
        # A proxy of the environment must not see what goes to a server of this machine.
        proxies = urllib.request.ProxyHandler({} if endpoint.is_local else None)
        self._opener = urllib.request.build_opener(proxies, _NoRedirects)

    def send(self, body: bytes) -> Reply:
        """Returns the reply to one request, which is sent once.

        Raises:
          PassingError: a failure that may pass.
          UserError: one that will not; of the kind RequestRefusedError if it concerns this request only.
        """
        try:
            status, headers, content = self._exchange(body)
        except (OSError, http.client.HTTPException) as error:
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise UserError(
                    f"{self._endpoint.url}: its certificate is not trusted ({cause.verify_message}); set SSL_CERT_FILE to the "
                    "certificate of its authority"
                ) from None
            raise PassingError(self._clean(_in_words(cause, self._timeout))) from None
        if 200 <= status < 300:
            reply = _reply_in(content)
            if reply is None:
                start = self._clean(content.decode("utf-8", "replace"))
                raise PassingError(f"no chat completion but {start!r}", tries=_TRIES_OF_NONSENSE)
            redact = self._endpoint.key.redact
            return Reply(
                redact(reply.text),
                redact(reply.finish_reason),
                reply.prompt_tokens,
                reply.reply_tokens,
            )
        code, said = _error_in(content)
        said = self._clean(said)
        told = f"{status} {said}" if said else str(status)
        if 300 <= status < 400:
            target = self._clean(headers.get("Location", "nowhere"))
            raise UserError(
                f"{self._endpoint.url} answered {status}, a redirect to {target}; it is not followed, because the key and the "
                "texts would go there. Set the base URL to the final address"
            )
        if status in _REFUSALS:
            raise RequestRefusedError(f"{self._endpoint.url} refused a request with {told}")
        transient = status in _TRANSIENT or status >= 500
        if not transient or code == "insufficient_quota":
            remedy = _REMEDIES.get(status, "the server does not accept such requests")
            if status in (401, 403):
                remedy += f" ({self._endpoint.key_source})"
            raise UserError(
                f"{self._endpoint.url} answered {told}; model {self._endpoint.model!r}: {remedy}"
            )
        raise PassingError(told, _retry_after(headers))

    def _exchange(self, body: bytes) -> tuple[int, Message, bytes]:
        """Returns status, headers and content of one answer."""
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"jaxalign/{__version__}",
        }
        request = urllib.request.Request(self._endpoint.url, body, headers, method="POST")
        if self._endpoint.key:
            request.add_unredirected_header("Authorization", self._endpoint.key.header())
        deadline = time.monotonic() + self._timeout
        try:
            answer: Any = self._opener.open(request, timeout=self._timeout)
        except urllib.error.HTTPError as error:
            answer = error
        with contextlib.closing(answer):
            content = bytearray()
            while part := answer.read1(65536):
                content += part
                if len(content) > self._max_reply_bytes:
                    raise UserError(
                        f"{self._endpoint.url} answered more than {self._max_reply_bytes} bytes; is it a chat endpoint?"
                    )
                if time.monotonic() > deadline:
                    raise TimeoutError
            length = answer.headers.get("Content-Length", "")
            if length.isdigit() and len(content) < int(length):
                raise http.client.IncompleteRead(bytes(content))
            return answer.status, answer.headers, bytes(content)

    def _clean(self, text: str) -> str:
        """Returns words of the server as part of one line of a message, without the key."""
        line = " ".join(self._endpoint.key.redact(text).split())
        line = "".join(sign if sign.isprintable() else "?" for sign in line)
        return line if len(line) <= _MAX_QUOTED else line[:_MAX_QUOTED] + "..."


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any) -> None:
        return None


def _in_words(error: Any, timeout: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no complete answer within {timeout:g} s"
    if isinstance(error, socket.gaierror):
        return "the host is unknown"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, (http.client.HTTPException, ConnectionError)):
        return f"the connection ended early ({type(error).__name__})"
    return str(error)


def _retry_after(headers: Message) -> float:
    """Returns the seconds that a server asks to wait, given as a number or as a date; 0 if it says nothing that can be read."""
    given = headers.get("Retry-After", "")
    try:
        return max(0.0, float(given)) if float(given) < float("inf") else 0.0
    except ValueError:
        pass
    try:
        date = email.utils.parsedate_to_datetime(given)
        return max(0.0, (date - datetime.datetime.now(datetime.UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _reply_in(content: bytes) -> Reply | None:
    """Returns the reply of a chat completion; None if the content is not one."""
    body = _parsed(content)
    try:
        choice = body["choices"][0]
        text = choice["message"].get("content") or ""
        if isinstance(text, list):
            text = "".join(part["text"] for part in text if part.get("type") == "text")
        reason = choice.get("finish_reason") or ""
        usage = body.get("usage") or {}
        counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    except (LookupError, TypeError, AttributeError):
        return None
    if not isinstance(text, str) or not isinstance(reason, str):
        return None
    prompt_tokens, reply_tokens = (
        count if type(count) is int and 0 <= count < 1 << 40 else 0 for count in counts
    )
    return Reply(text, reason, prompt_tokens, reply_tokens)


def _error_in(content: bytes) -> tuple[str, str]:
    """Returns code and message of an error that a server explains; the whole text if it is not in the usual form."""
    body = _parsed(content)
    error = body.get("error", body) if isinstance(body, dict) else None
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        return str(error.get("code") or ""), error["message"]
    if isinstance(error, str):
        return "", error
    return "", content.decode("utf-8", "replace")
