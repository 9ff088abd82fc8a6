"""Opens a run folder, or a Hugging Face model as the run folder that it becomes, so that commands answer with either."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from jaxalign import files, hub
from jaxalign.errors import UserError
from jaxalign.interop import checkpoint_sources, convert, huggingface_folder, storage
from jaxalign.runs.folder import Run
from jaxalign.version import __version__

# Lengths in tokens for a model whose folder names none.
DEFAULT_INPUTS, DEFAULT_TARGETS = 512, 128


def run_folder(path: str | os.PathLike[str], *, convert: bool = True) -> str:
    """Returns the run folder that a Hugging Face model becomes, as of `open_run`; other paths as they are.

    Args:
      path: as of `open_run`.
      convert: whether the model may be downloaded and converted.

    Raises:
      UserError: the model is not there or malformed, or it would have to be downloaded or converted.
    """
    if not hub.is_address(path) and not _is_huggingface(path):
        return os.fspath(path)
    if convert:
        return str(open_run(path).folder)
    if not hub.is_address(path):
        made = _converted_folder(checkpoint_sources.open_source(path, None))
        if made.exists():
            return str(made)
    raise UserError(
        "a dry run downloads and converts no model; give the command without --dry_run, or make a run folder of it first (jaxalign convert)"
    )


def open_run(path: str | os.PathLike[str], step: int | str | None = None) -> Run:
    """Opens a run. A Hugging Face folder, or the address of a model of the hub, is first converted into the user's cache.

    The converted folder is named by a digest of the identity of the model (`Source.run_id`) and of the files of its folder (path, size,
    time of the last change) and of this version, so that a model is converted once, and again if a file of it changes.

    Args:
      path: a run folder or one of its checkpoints, a Hugging Face folder, or ``hf://OWNER/NAME[@REVISION]``.
      step: a number, 'best', 'latest', or None; for a run only.

    Raises:
      UserError: there is no such run or model, or it is malformed.
    """
    if not hub.is_address(path) and not _is_huggingface(path):
        return Run(Path(path), step)
    source = checkpoint_sources.open_source(path, step)
    output = _converted_folder(source)
    if not output.exists():
        lengths = source.reading.lengths
        own = output.with_name(f"{output.name}.{os.getpid()}")
        said = convert.convert(
            checkpoint=source.path,
            output=str(own),
            max_input_length=lengths.get("inputs", DEFAULT_INPUTS),
            max_target_length=lengths.get("targets", DEFAULT_TARGETS),
        )
        print(f"jaxalign: {source.address}: {said['message']}", file=sys.stderr)
        try:
            own.rename(output)
        except OSError:
            # Another process converted the same model meanwhile.
            shutil.rmtree(own)
    return Run(output)


def _converted_folder(source: Any) -> Path:
    return files.user_cache() / "models" / f"{source.run_id()}-{_digest(Path(source.path))}"


def _is_huggingface(path: str | os.PathLike[str]) -> bool:
    folder = str(files.absolute_path(Path(path)))
    names = storage.children(folder)
    return huggingface_folder.CONFIG in names and not checkpoint_sources.is_run(folder)


def _digest(folder: Path) -> str:
    digest = hashlib.sha256(__version__.encode())
    for file in sorted(folder.iterdir()):
        real = file.resolve()
        try:
            status = real.stat()
        except OSError as error:
            raise UserError(f"{file} cannot be read: {error.strerror}") from error
        digest.update(f"{file.name}\0{real}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:12]
