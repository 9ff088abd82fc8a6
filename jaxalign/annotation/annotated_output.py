"""The output of `jaxalign annotate` and its side file: whether it is finished, and how it takes its name when it is."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from jaxalign import files, untrusted
from jaxalign.data.candidates import Candidates, read_candidates
from jaxalign.data.stored_fields import sha256_of
from jaxalign.errors import UserError
from jaxalign.locks import Lock


@dataclasses.dataclass(frozen=True)
class Output:
    """One annotation of one file.

    Attributes:
      candidates: what is annotated.
      output: the file that is written.
      name: the name of the annotation.
      identity: what the annotation depends on.
    """

    candidates: Candidates
    output: Path
    name: str
    identity: dict[str, Any]

    def beside(self, suffix: str) -> Path:
        """Returns the path of a hidden file beside the output."""
        return self.output.with_name(f".{self.output.name}{suffix}")

    @property
    def unfinished(self) -> Path:
        """The file that takes the output's name when it is complete."""
        return self.beside(f".{self.name}.unfinished")

    @property
    def record(self) -> dict[str, Any]:
        """What OUTPUT.annotations.json holds of the annotation."""
        return {"annotator": self.identity, "responses": digest(self.candidates)}

    @property
    def side_file(self) -> Path:
        """The file that says what made each annotation of the output."""
        return side_file(self.output)

    def in_place(self) -> bool:
        """Returns whether the output is the input."""
        source = Path(self.candidates.path).expanduser()
        return source.exists() and self.output.exists() and source.samefile(self.output)

    def is_finished(self, overwrite: bool) -> bool:
        """Returns whether the output has this annotation already.

        Raises:
          UserError: the output exists and was made otherwise, and is not to be overwritten.
        """
        if overwrite or not self.output.exists():
            return False
        before = _recorded(self.side_file).get(self.name)
        # JSON has no tuples; compare what a file would hold.
        now = json.loads(json.dumps(self.record))
        if before != now and self._was_killed(now):
            self._write_record()
            return True
        if self.in_place() and self.name not in self.candidates.annotations:
            return False
        if before == now:
            self._check_output()
            return True
        others = [name for name in _recorded(self.side_file) if name != self.name]
        if before is None and others and not self.in_place():
            raise UserError(
                f"{self.output} exists already, with other annotations ({', '.join(others)}) and without {self.name!r}; to add "
                f"{self.name!r} to them, give it as --input too; give another --output, or --overwrite"
            )
        what = f"an annotation {self.name!r}" if self.in_place() else "an output"
        raise UserError(
            f"{self.output} exists already, with {what} that was made {_difference(before, self.record)}; give another --name or "
            "--output, or --overwrite"
        )

    def newer_annotations(self) -> list[str]:
        """Returns the annotations that the input got after the output was made."""
        if self.in_place():
            return []
        recorded = _recorded(self.side_file)
        source = _recorded(side_file(Path(self.candidates.path).expanduser()))
        return [
            name for name in self.candidates.annotations if name in source and name not in recorded
        ]

    def finish(self) -> None:
        """Gives the finished file its name and records what made it."""
        recorded = _recorded(self.side_file)
        # If the process is killed in between, no record describes other values, and the next call knows its own output.
        if recorded.pop(self.name, None) is not None:
            files.write_text(self.side_file, json.dumps(recorded, indent=1) + "\n")
        finishing = {"record": self.record, "sha256": sha256_of(self.unfinished)}
        files.write_text(self._finishing, json.dumps(finishing) + "\n")
        self.unfinished.replace(self.output)
        self._write_record()

    @property
    def _finishing(self) -> Path:
        """The file that exists while the output and its side file are replaced."""
        return self.beside(f".{self.name}.finishing.json")

    def _write_record(self) -> None:
        """Records what made the annotation, and removes the files of the work."""
        source = side_file(Path(self.candidates.path).expanduser())
        known = _recorded(source) | ({} if self.in_place() else _recorded(self.side_file))
        kept = {key: value for key, value in known.items() if key in self.candidates.annotations}
        text = json.dumps({**kept, self.name: self.record}, indent=1)
        files.write_text(self.side_file, text + "\n")
        self.unfinished.with_name(f"{self.unfinished.name}.settings.json").unlink(missing_ok=True)
        self._finishing.unlink(missing_ok=True)

    def _was_killed(self, record: dict[str, Any]) -> bool:
        """Returns whether a call like this one was killed after the output had its name, but before this was recorded."""
        found = _recorded(self._finishing)
        return found.get("record") == record and found.get("sha256") == sha256_of(self.output)

    def _check_output(self) -> None:
        """Refuses an output that was replaced after its annotation had been recorded."""
        found = self.candidates if self.in_place() else read_candidates(self.output)
        same = list(found.prompts) == list(self.candidates.prompts) and [
            list(texts) for texts in found.responses
        ] == [list(texts) for texts in self.candidates.responses]
        if not same or self.name not in found.annotations:
            raise UserError(
                f"{self.output} was replaced after the annotation {self.name!r} had been recorded in {self.side_file.name}; give another "
                "--output, or --overwrite"
            )


def lock_of(output: str | Path) -> Lock:
    """Returns a lock that keeps other processes from writing an output. The process that holds it may take it again."""
    path = Path(output).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    return Lock(path.with_name(f".{path.name}.lock"), f"output {path}")


def side_file(path: Path) -> Path:
    """Returns the path of the file that says what made each annotation of a file of candidates."""
    return path.with_name(f"{path.name}.annotations.json")


def digest(candidates: Candidates) -> str:
    """Returns a digest of prompts, responses and other fields, but not of annotations, so that they can be added in any order."""
    found = hashlib.sha256()
    for line in zip(candidates.prompts, candidates.responses, candidates.fields, strict=True):
        found.update(json.dumps(line, sort_keys=True, ensure_ascii=False).encode())
    return found.hexdigest()


def annotations_digest(candidates: Candidates) -> str:
    """Returns a digest of all annotations, because the lines of one file must not mix those of two versions of the input."""
    found = hashlib.sha256()
    for name, annotation in candidates.annotations.items():
        found.update(json.dumps([name, annotation.kind, list(annotation.names)]).encode())
        for array in annotation.values:
            found.update(json.dumps(array.tolist()).encode())
    return found.hexdigest()


def _recorded(path: Path) -> dict[str, Any]:
    """Returns the content of a side file; an empty dict if there is none that can be read."""
    try:
        return untrusted.read_json_object(path)
    except UserError:
        return {}


def _difference(before: Any, now: dict[str, Any]) -> str:
    if not isinstance(before, dict):
        return "from something that is not recorded"
    if before.get("responses") != now["responses"]:
        return "of other prompts or responses"
    then, current = before.get("annotator") or {}, now["annotator"]
    changed = [
        f"{key}: {then.get(key)!r} then, {current.get(key)!r} now"
        for key in sorted({*then, *current})
        if then.get(key) != current.get(key)
    ]
    return f"otherwise ({'; '.join(changed)})"
