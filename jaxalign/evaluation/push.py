"""The command `jaxalign push`: a policy with a model card as a Hugging Face folder, on this machine or in a repository of the hub."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from jaxalign import files, hub
from jaxalign.errors import UserError
from jaxalign.evaluation.model_card import model_card
from jaxalign.evaluation.report import find_results
from jaxalign.interop import storage
from jaxalign.interop.convert import convert
from jaxalign.runs.folder import Run

CARD = "README.md"


def push(
    *,
    checkpoint: str,
    to: str,
    step: int | str | None = None,
    role: str = "policy",
    dtype: str = "",
    license: str = "",
    intended_use: str = "",
    evaluations: list[str] | None = None,
    private: bool = False,
    message: str = "",
) -> dict[str, Any]:
    """Writes a policy for transformers, with a model card made from the run, into a folder or a repository of the Hugging Face hub.

    The folder has safetensors, configurations, the tokenizer and README.md. Nothing else of the run leaves this machine: no data, no
    optimizer state, no path. Look at the card in a folder first; the repository gets the same files.

    Args:
      checkpoint: a run folder or one of its checkpoints.
      to: a new folder, or ``hf://OWNER/NAME``, which is created if it does not exist. The token is that of ``hf auth login`` or HF_TOKEN.
      step: a step number, 'best' or 'latest'; by default the best if one was kept, else the latest.
      role: the network of the run.
      dtype: float32 or bfloat16; by default float32.
      license: an identifier of the hub for the card, such as apache-2.0.
      intended_use: what the model is for, in a sentence or more, for the card.
      evaluations: folders of `jaxalign evaluate` whose tables the card shows.
      private: create the repository as a private one.
      message: the message of the commit.

    Returns:
      ``output``: the folder or address; ``message``: what was written.

    Raises:
      UserError: there is no such run, the folder exists, or the hub refuses.
    """
    run = Run(checkpoint, step)
    repository = hub.parse(to) if hub.is_address(to) else None
    if repository is not None and repository.revision:
        raise UserError(f"{to}: a push goes to the main branch; leave @{repository.revision} out")
    if repository is not None:
        hub.require_package()
    name = repository.name if repository else Path(to).expanduser().absolute().name
    results = find_results(evaluations)[0] if evaluations else []
    card = model_card(
        run, name=name, license=license, intended_use=intended_use, evaluations=results
    )

    def write(folder: Path) -> str:
        said = convert(
            checkpoint=str(run.folder),
            step=str(run.step),
            output=str(folder),
            to="huggingface",
            role=role,
            dtype=dtype,
        )
        files.write_text(folder / CARD, card)
        return str(said["message"])

    if repository is None:
        folder = Path(storage.absolute(to))
        return {"output": str(folder), "message": f"{write(folder)}\nthe card: {folder / CARD}"}
    with tempfile.TemporaryDirectory(prefix="jaxalign-push-") as temporary:
        folder = Path(temporary) / "model"
        write(folder)
        url = _upload(
            folder, repository, private, message or f"Step {run.step} of {run.description.method}"
        )
        names = ", ".join(sorted(os.listdir(folder)))
    return {"output": to, "message": f"{to} has {names}: {url}"}


def _upload(folder: Path, repository: hub.Repository, private: bool, message: str) -> str:
    api = hub.require_package().HfApi()
    try:
        api.create_repo(repository.name, private=private or None, exist_ok=True)
        # A repository that exists keeps its visibility, whatever is asked for.
        if private and not api.model_info(repository.name).private:
            raise UserError(f"{repository} exists and is public; --private is for a new one")
        # Weights and tokenizers of an earlier push would be read in place of the new ones.
        commit = api.upload_folder(
            repo_id=repository.name,
            folder_path=str(folder),
            commit_message=message,
            delete_patterns=list(hub.FILES),
        )
    except UserError:
        raise
    # The errors of its network client have no base in common with Python's.
    except Exception as error:
        raise hub.explain(error, repository, "written") from error
    return str(commit.commit_url)
