"""Replies of a chat model on disk, so that no request is paid for twice. The replies are stored as they came, before any parsing.

There is one file per request. A file takes its name only when it is complete. Threads, processes and machines may share the folder, and a
killed process leaves no damaged entry. An entry that is damaged otherwise counts as absent.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxalign import files, untrusted
from jaxalign.errors import UserError

_MAX_ENTRY_BYTES = 32 << 20


@dataclasses.dataclass(frozen=True)
class Reply:
    """What a model answered.

    Attributes:
      text: the text; empty if the model gave none.
      finish_reason: why the text ends: `stop`, `length` if it was cut, or another word of the server.
      prompt_tokens, reply_tokens: what the server counted, 0 if it did not say.
    """

    text: str
    finish_reason: str = ""
    prompt_tokens: int = 0
    reply_tokens: int = 0


def digest_of(request: Mapping[str, Any]) -> str:
    """Returns the key of a request: SHA-256 of everything that it says."""
    return hashlib.sha256(_canonical(request)).hexdigest()


class ReplyCache:
    """A folder of replies by request.

    Raises:
      UserError: the folder cannot be made.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = files.absolute_path(folder)
        try:
            # The entries hold prompts and responses, which may be private.
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise UserError(
                f"the cache of LLM replies {self.folder} cannot be made: {error.strerror}; choose another with cache=FOLDER"
            ) from error

    def path(self, digest: str) -> Path:
        """Returns the file of a request."""
        return self.folder / digest[:2] / f"{digest}.json"

    def get(self, digest: str) -> Reply | None:
        """Returns the stored reply, or None if there is none or its entry is damaged."""
        try:
            entry = json.loads(untrusted.read_bytes(self.path(digest), _MAX_ENTRY_BYTES))
            reply = entry["reply"]
            if entry["checksum"] != _checksum(digest, reply):
                return None
            return Reply(**reply)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def put(self, digest: str, request: Mapping[str, Any], reply: Reply) -> None:
        """Stores a reply.

        Raises:
          UserError: the disk refuses; the message gives its reason.
        """
        stored = dataclasses.asdict(reply)
        entry = {"request": request, "reply": stored, "checksum": _checksum(digest, stored)}
        path = self.path(digest)
        try:
            path.parent.mkdir(exist_ok=True, mode=0o700)
            files.write_text(path, json.dumps(entry, indent=1))
        except OSError as error:
            raise UserError(
                f"the cache of LLM replies {self.folder} cannot be written: {error.strerror or error}; make room there, or "
                "choose another with cache=FOLDER"
            ) from error


def default_folder() -> str:
    """Returns the folder of the cache where none is named: JAXALIGN_LLM_CACHE, or a folder of the user's cache."""
    return os.environ.get("JAXALIGN_LLM_CACHE") or str(files.user_cache() / "llm")


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _checksum(digest: str, reply: Mapping[str, Any]) -> str:
    return hashlib.sha256(digest.encode() + _canonical(reply)).hexdigest()
