"""Addresses of the Hugging Face hub, ``hf://OWNER/NAME[@REVISION]``: downloads a model repository into huggingface_hub's own cache.

The package ``huggingface_hub`` does everything that concerns the network: tokens, mirrors (``HF_ENDPOINT``), the place of the cache
(``HF_HOME``) and offline mode (``HF_HUB_OFFLINE``) are its settings. Only safetensors, configurations and tokenizers are downloaded.
"""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

from jaxalign.errors import UserError, first_line

SCHEME = "hf://"
_FORM = "hf://OWNER/NAME or hf://OWNER/NAME@REVISION"
_ADDRESS = re.compile(
    r"hf://(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w.-]+(?:/[\w.-]+)*))?/?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
# Files of a model that are read beside its weights; a repository may hold the same weights again for other frameworks.
_SMALL = (
    "config.json",
    "generation_config.json",
    "jaxalign.json",
    "spiece.model",
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


@dataclasses.dataclass(frozen=True)
class Repository:
    """A model repository of the hub.

    Attributes:
      name: ``OWNER/NAME``, or ``NAME`` for the few repositories that have no owner.
      revision: a branch, tag or commit; None for the main branch.
    """

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{SCHEME}{self.name}" + (f"@{self.revision}" if self.revision else "")


# What belongs to a model in a repository.
FILES = (*_SMALL, *_WEIGHTS)


def is_address(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path is an address of the hub."""
    return os.fspath(path).startswith(SCHEME)


def parse(address: str) -> Repository:
    """Returns the repository of an address.

    Raises:
      UserError: the address has another form.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise UserError(f"{address} is no address of a model of the hub; write {_FORM}")
    return Repository(match["name"], match["revision"])


def download(address: str) -> str:
    """Returns the folder of the local cache that holds a model; downloads what is missing there.

    Raises:
      UserError: ``huggingface_hub`` is not installed, there is no such repository or revision, access to it is refused, it cannot be
        reached and is not in the cache, or it has no safetensors.
    """
    repository = parse(address)
    folder = _snapshot(repository, _SMALL)
    if not os.path.exists(os.path.join(folder, "config.json")):
        raise UserError(f"{address} has no config.json: it is no model of transformers")
    # The commit that the first download found: the branch may move between the two.
    commit = dataclasses.replace(repository, revision=os.path.basename(folder))
    folder = _snapshot(commit, FILES)
    if not any(name.endswith(".safetensors") for name in os.listdir(folder)):
        raise UserError(
            f"{address} has no safetensors, and other files are not read, because they can run code when they are loaded; many "
            f"repositories have a branch with them: {SCHEME}{repository.name}@refs/pr/N (the tab Community of its page)"
        )
    return folder


def download_tokenizer(address: str) -> str:
    """Returns the folder of the local cache that holds a repository's configurations and tokenizer; raises what `download` raises."""
    return _snapshot(parse(address), _SMALL)


def pinned(address: str, folder: str) -> str:
    """Returns the address with the commit that was downloaded, so that it means the same later."""
    return str(Repository(parse(address).name, os.path.basename(folder)))


def same_repository(address: str, other: str) -> bool:
    """Returns whether both are addresses of one repository, and the first names a branch, no revision, or the commit of the second."""
    if not (is_address(address) and is_address(other)):
        return False
    one, two = parse(address), parse(other)
    moves = one.revision is None or not _COMMIT.fullmatch(one.revision)
    return one.name == two.name and (moves or one.revision == two.revision)


def require_package() -> Any:
    """Returns the package ``huggingface_hub``.

    Raises:
      UserError: it is not installed; the message says how to install it.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            f"{SCHEME} addresses need the package huggingface_hub: pip install huggingface_hub (the extra 'hub' of jaxalign); or "
            "download the repository's files elsewhere, and give the folder"
        ) from error
    return huggingface_hub


def explain(error: Exception, repository: Repository, doing: str) -> UserError:
    """Returns the one-line error for an exception of ``huggingface_hub``.

    Args:
      error: the exception.
      repository: the repository that was read or written.
      doing: "read" or "written".
    """
    from huggingface_hub import errors

    # Errors hold the address of a request, never its token.
    where = f"{repository} cannot be {doing}"
    if isinstance(error, errors.GatedRepoError):
        reason = "its owner asks to accept conditions; accept them on its page, then log in: hf auth login, or set HF_TOKEN"
    elif isinstance(error, errors.RevisionNotFoundError):
        reason = f"it has no revision {repository.revision!r}"
    elif isinstance(error, errors.RepositoryNotFoundError):
        reason = "there is no such repository, or it is private: check the name, or log in with hf auth login or HF_TOKEN"
    elif isinstance(error, errors.HFValidationError):
        reason = f"it is no valid name; write {_FORM}"
    elif isinstance(error, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)):
        offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
        reason = (
            "HF_HUB_OFFLINE forbids it"
            if offline and doing == "written"
            else "it is not in the cache, and HF_HUB_OFFLINE forbids a download"
            if offline
            else f"the hub cannot be reached and the cache has no copy ({first_line(error, 120)})"
        )
    elif isinstance(error, errors.HfHubHTTPError):
        status = getattr(error.response, "status_code", None)
        reason = {
            401: "the hub refuses the token: hf auth login, or correct HF_TOKEN",
            403: "the token has no right to it: use one with write access",
        }.get(status or 0, first_line(error, 200))
    else:
        reason = first_line(error, 200)
    return UserError(f"{where}: {reason}")


def _snapshot(repository: Repository, patterns: tuple[str, ...]) -> str:
    hub = require_package()
    try:
        folder = hub.snapshot_download(
            repository.name, revision=repository.revision, allow_patterns=list(patterns)
        )
    # The errors of its network client have no base in common with Python's.
    except Exception as error:
        raise explain(error, repository, "read") from error
    return str(Path(folder))
