"""The folder of an evaluation: it is replaced by the same evaluation, and by another one only if the user asks for it."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxalign import files, untrusted
from jaxalign.data.evaluation_set import EvaluationSet
from jaxalign.data.records import prompt_key
from jaxalign.errors import UserError
from jaxalign.locks import Lock

EVALUATION = "evaluation.json"
REQUEST = "request"
_ADVICE = "give another --output_dir, or --overwrite"


def digest(data: EvaluationSet) -> str:
    """Returns a digest of the prompts with their images, references and feedback."""
    feedback = [[record.prompt, record.response, record.feedback] for record in data.feedback]
    content: list[Any] = [data.prompts, data.references, feedback]
    if any(data.images):
        content.append(list(map(prompt_key, data.prompts, data.images)))
        content.append([record.prompt_key for record in data.feedback])
    text = json.dumps(content)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check(folder: Path, request: Mapping[str, Any]) -> None:
    """Refuses a folder that holds another evaluation.

    Args:
      folder: the folder for the results; it need not exist.
      request: what this evaluation measures, as far as it is known. An evaluation.json holds the same under `REQUEST`.

    Raises:
      UserError: the folder holds another evaluation; the message names the first differences.
    """
    path = folder / EVALUATION
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give another --output_dir")
    if not path.exists():
        return
    before = _recorded(path)
    changed = [
        f"{name}: {then} then, {now} now"
        for key in request
        for name, then, now in _differences(key, before.get(key), request[key])
    ]
    if changed:
        raise UserError(f"{path} holds another evaluation ({'; '.join(changed[:4])}); {_ADVICE}")


def lock(folder: Path) -> Lock:
    """Returns a lock that keeps other processes from writing an evaluation into the folder."""
    place = files.absolute_path(folder)
    place.parent.mkdir(parents=True, exist_ok=True)
    return Lock(place.parent / f".{place.name}.lock", f"output {folder}")


def clear(folder: Path) -> None:
    """Removes the files of the evaluation that is replaced, so that none is taken for a result of the new one."""
    with contextlib.suppress(UserError, OSError):
        before = untrusted.read_json_object(folder / EVALUATION, inside=folder)
        policies, drawn = before.get("policies"), before.get("plots")
        names = [f"{name}.jsonl" for name in policies] if isinstance(policies, dict) else []
        plots = [Path(str(plot)).name for plot in drawn] if isinstance(drawn, list) else []
        (folder / EVALUATION).unlink()
        for subfolder, listed in (("responses", names), ("logged", names), ("plots", plots)):
            for name in filter(untrusted.file_name, listed):
                (folder / subfolder / name).unlink(missing_ok=True)


def _recorded(path: Path) -> Mapping[str, Any]:
    try:
        request = untrusted.read_json_object(path).get(REQUEST)
    except UserError as error:
        raise UserError(f"{error}; {_ADVICE}") from error
    if not isinstance(request, dict):
        raise UserError(f"{path} holds an evaluation that does not record its settings; {_ADVICE}")
    return request


def _differences(name: str, then: Any, now: Any) -> list[tuple[str, Any, Any]]:
    """Returns the names of the differing values with both values; mappings are compared key by key."""
    if not isinstance(then, dict) or not isinstance(now, dict):
        return [] if then == now else [(name, json.dumps(then), json.dumps(now))]
    return [
        difference
        for key in {**then, **now}
        for difference in _differences(f"{name}.{key}", then.get(key), now.get(key))
    ]
