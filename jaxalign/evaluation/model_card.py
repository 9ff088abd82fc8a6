"""Writes the model card of a run: the README.md of a repository, with what the run records of its data, method and results.

The card holds no path of this machine: of files, only names are shown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from jaxalign import hub
from jaxalign.errors import UserError
from jaxalign.evaluation.page.runs import RunRecord, read_run
from jaxalign.evaluation.report import evaluation_tables
from jaxalign.evaluation.report_records import SUMMARY
from jaxalign.evaluation.tables import format_cell, markdown_table
from jaxalign.runs.description import RunDescription, read_description
from jaxalign.runs.folder import Run

# Settings of config.gin that describe the training; no other line of it is shown.
_SETTINGS = (
    "LEARNING_RATE",
    "SCHEDULE",
    "WARMUP_STEPS",
    "TRAIN_STEPS",
    "BATCH_SIZE",
    "MICROBATCHES",
    "DROPOUT_RATE",
    "RANDOM_SEED",
)
# A path in a table: what comes before its last part is left out.
_WHERE = re.compile(r"(?<=\| )(?:~|\.{0,2})?/?(?:[^|/\n]+/)+([^|/\n]+)(?= \|)")
_LONGEST_CHAIN = 20  # runs that started from each other
_PAPERS = {"dro_v": "2405.19107", "dro_p": "2405.19107", "dpo": "2305.18290", "kto": "2402.01306"}


def model_card(
    run: Run,
    *,
    name: str,
    license: str = "",
    intended_use: str = "",
    evaluations: Sequence[Path] = (),
) -> str:
    """Returns the text of the card.

    Args:
      run: the run and its checkpoint.
      name: the title: ``OWNER/NAME`` or the name of a folder.
      license: an identifier of the hub, such as ``apache-2.0``; left out if empty.
      intended_use: what the model is for, in Markdown.
      evaluations: evaluation.json files whose tables are shown.

    Raises:
      UserError: a file of the run or of an evaluation is malformed.
    """
    description = run.description
    base = base_model(run.folder)
    method = description.method or "unknown"
    metadata: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text2text-generation",
        "tags": ["jaxalign", _family(run), method],
    }
    if license:
        metadata["license"] = license
    if base is not None:
        repository = hub.parse(base)
        metadata["base_model"] = repository.name
    summary = run.folder / SUMMARY
    record = read_run(summary, name) if summary.exists() else None
    blocks = [
        f"# {name}",
        _introduction(run, method, base),
        _use(name, description, on_the_hub="/" in name),
        "## Intended use and limits\n\n" + (intended_use or _LIMITS),
        _data(description, record),
        _training(description, record, run.step),
        _results(record),
    ]
    blocks += [_WHERE.sub(r"\1", block) for block in evaluation_tables(list(evaluations))]
    header = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    return f"---\n{header}---\n\n" + "\n\n".join(block for block in blocks if block) + "\n"


_LIMITS = (
    "Responses in the manner of the training data, to prompts in its form. Nothing was measured beyond what stands under Results. The "
    "model repeats the errors and the taste of those who gave the feedback. Evaluate it on your own prompts before you use it."
)


def base_model(folder: Path) -> str | None:
    """Returns the address on the hub from which a chain of runs began; None if it did not, or if a run of the chain is not here."""
    for _ in range(_LONGEST_CHAIN):
        try:
            origin = read_description(folder).content.get("initial_checkpoint")
        except UserError:
            return None
        path = origin.get("path") if isinstance(origin, Mapping) else None
        if not isinstance(path, str):
            return None
        if hub.is_address(path):
            return path
        folder = Path(path)
    return None


def _introduction(run: Run, method: str, base: str | None) -> str:
    paper = _PAPERS.get(method)
    method_text = f"`{method}`" + (
        f" ([arXiv:{paper}](https://arxiv.org/abs/{paper}))" if paper else ""
    )
    beginning = f" It began from `{base}`." if base else ""
    return (
        f"An encoder-decoder of the family {_family(run)}, trained with the objective {method_text} by jaxalign.{beginning} These are the "
        f"parameters of step {run.step}."
    )


def _family(run: Run) -> str:
    return str(getattr(run.config("policy"), "family", "t5"))


def _without_folder(value: Any) -> Any:
    return Path(value).name if isinstance(value, str) and "/" in value else value


def _use(name: str, description: RunDescription, *, on_the_hub: bool) -> str:
    lengths = description.feature_lengths
    limits = (
        f"\n\nIt was trained on prompts of up to {lengths['inputs']} and responses of up to {lengths['targets']} tokens."
        if {"inputs", "targets"} <= lengths.keys()
        else ""
    )
    return (
        "## Use\n\n```python\nfrom transformers import AutoModelForSeq2SeqLM, AutoTokenizer\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n'
        f'model = AutoModelForSeq2SeqLM.from_pretrained("{name}")\n'
        'inputs = tokenizer("a prompt", return_tensors="pt")\n'
        "print(tokenizer.decode(model.generate(**inputs)[0], skip_special_tokens=True))\n```\n\n"
        f"With jaxalign: `jaxalign generate --checkpoint={'hf://' if on_the_hub else ''}{name} --input=prompts.jsonl "
        f"--output=responses.jsonl`.{limits}"
    )


def _data(description: RunDescription, record: RunRecord | None) -> str:
    task = description.content.get("task")
    data = record.summary.get("data") if record else None
    lines = [f"Task: `{Path(str(task)).name}`."] if task else []
    if isinstance(data, Mapping):
        counts = data.get("num_examples")
        if isinstance(counts, Mapping):
            lines.append(
                "Examples: "
                + ", ".join(f"{value:,} {split}" for split, value in counts.items())
                + "."
            )
        for what in ("rejected", "notes"):
            reasons = _reasons(data.get(what))
            if reasons:
                lines.append(f"{'Rejected' if what == 'rejected' else 'Noted'}: {reasons}.")
        if isinstance(cut := data.get("cut_prompts"), (int, float)):
            lines.append(f"Prompts that were cut: {cut:.1%}.")
        feedback = data.get("feedback")
        if isinstance(feedback, Mapping) and {"mean", "std"} <= feedback.keys():
            lines.append(
                f"Feedback: mean {format_cell(feedback['mean'])}, standard deviation {format_cell(feedback['std'])}."
            )
    return "## Training data\n\n" + "\n".join(f"- {line}" for line in lines) if lines else ""


def _reasons(by_split: Any) -> str:
    if not isinstance(by_split, Mapping):
        return ""
    return ", ".join(
        f"{count} {reason} ({split})"
        for split, counts in by_split.items()
        if isinstance(counts, Mapping)
        for reason, count in counts.items()
    )


def _training(description: RunDescription, record: RunRecord | None, step: int) -> str:
    rows = [
        {"setting": name, "value": f"`{_without_folder(value)}`"}
        for name, value in description.hyperparameters.items()
        if not isinstance(value, (Mapping, list))
    ]
    if record is not None:
        for name in _SETTINGS:
            found = re.search(rf"^{name} = ([\w.+-]+|'[\w.+-]*')$", record.config, re.MULTILINE)
            if found:
                rows.append({"setting": name.lower(), "value": f"`{found[1]}`"})
    rows.append({"setting": "step of these parameters", "value": f"`{step}`"})
    text = "## Training\n\n" + markdown_table(rows)
    packages = record.versions.get("packages") if record else None
    if isinstance(packages, Mapping):
        used = ", ".join(f"{package} {version}" for package, version in packages.items())
        text += f"\n\nVersions: {used}, Python {record.versions.get('python') if record else ''}."
    return text


def _results(record: RunRecord | None) -> str:
    evaluation = record.summary.get("evaluation") if record else None
    if not isinstance(evaluation, Mapping) or not evaluation:
        return "## Results\n\nThe run records no evaluation."
    rows = [{"metric": f"`{name}`", "value": value} for name, value in evaluation.items()]
    # The summary is that of the end of the run, and a best checkpoint can be an earlier one.
    step = record.summary.get("step") if record else None
    return (
        f"## Results\n\nAt the end of the run (step {step}), on held-out data:\n\n"
        + markdown_table(rows)
    )
