"""What an evaluation reads: checkpoints by name, records of prompts and logged responses, and the feedback of training for baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxalign.data.evaluation_records import EvaluationRecords, read_evaluation_records
from jaxalign.data.evaluation_set import EvaluationSet, FeedbackRecord
from jaxalign.data.images import ImageFormat, image_format
from jaxalign.errors import UserError
from jaxalign.evaluation.settings import EvaluationSettings
from jaxalign.evaluation.tfidf import TfidfRidge
from jaxalign.inference.encoders import reads_images
from jaxalign.runs.folder import Run


def named_checkpoints(checkpoints: Sequence[str]) -> dict[str, str]:
    """Returns paths by name, in order, from `name=path` or bare paths.

    Raises:
      UserError: no checkpoint is given, or a name occurs twice.
    """
    named: dict[str, str] = {}
    for entry in checkpoints:
        name, separator, path = entry.partition("=")
        # Names contain no slash, so runs/lr=1e-3 is a path.
        if not separator or "/" in name or Path(entry).exists():
            name, path = Path(entry).name, entry
        if not name or not path:
            raise UserError(f"checkpoint '{entry}': write name=path.")
        if name in named:
            raise UserError(
                f"checkpoint name '{name}' is given twice; write name=path with two names."
            )
        named[name] = path
    if not named:
        raise UserError("checkpoints: give at least one name=path.")
    return named


def common_image_format(opened: Mapping[str, Run]) -> ImageFormat | None:
    """Returns the format of the images that all policies read; None if they read text only."""
    formats = {
        path: image_format(run.network("policy")) if reads_images(run, "policy") else None
        for path, run in opened.items()
    }
    if len(set(formats.values())) > 1:
        found = ", ".join(f"{path} reads {each or 'text only'}" for path, each in formats.items())
        raise UserError(f"policies that read different prompts cannot be compared: {found}")
    return next(iter(formats.values()))


def read_records(
    settings: EvaluationSettings,
    source: str,
    split: str,
    folder: Path,
    images: ImageFormat | None = None,
) -> EvaluationRecords:
    """Returns the records of a file or of a cache's split; rejected records are listed beside the results."""
    return read_evaluation_records(
        source,
        split=split,
        side_file=str(folder / "rejected.jsonl"),
        kind=settings.kind,
        layout=settings.layout,
        chat_template=settings.chat_template,
        fields=settings.fields,
        prompt_field=settings.prompt_field,
        duplicates=settings.duplicates,
        max_rejected_fraction=settings.max_rejected_fraction,
        images=images,
    )


def training_feedback(
    settings: EvaluationSettings, folder: Path, images: ImageFormat | None
) -> EvaluationRecords | None:
    """Returns the training records of the evaluated cache, or of `ranking_train`; None if there are none."""
    prompts = settings.prompts
    source = settings.ranking_train or (prompts if Path(prompts).is_dir() else "")
    if not source:
        return None
    records = read_records(settings, source, "train", folder, images)
    if not records.to_set().feedback:
        raise UserError(f"{source}: holds no feedback to fit the TF-IDF baseline on.")
    return records


def linear_baseline(data: EvaluationSet, training: Sequence[FeedbackRecord]) -> np.ndarray:
    """Returns predictions of the TF-IDF model for the logged responses."""
    model = TfidfRidge().fit(
        [record.prompt for record in training],
        [record.response for record in training],
        np.array([record.feedback for record in training]),
    )
    return model.predict(
        [record.prompt for record in data.feedback], [record.response for record in data.feedback]
    )


def sample_records(
    records: Sequence[FeedbackRecord], count: int, seed: int
) -> list[FeedbackRecord]:
    """Returns at most `count` records, drawn without replacement."""
    drawn = np.random.default_rng(seed).permutation(len(records))[:count]
    return [records[index] for index in sorted(drawn)]
