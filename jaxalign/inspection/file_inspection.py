"""The command `jaxalign inspect`: reports what a data file holds, and writes a gin file that trains on it."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxalign import files
from jaxalign.data import data_files, layouts, recognition, sources
from jaxalign.data.chat_templates import ChatTemplate, read_chat_template
from jaxalign.data.json_lines import read_json_lines
from jaxalign.data.recognition import Found
from jaxalign.data.records import Record
from jaxalign.data.rejections import DataError, RejectionLog
from jaxalign.data.tokenization import Limits, make_examples, tokenize
from jaxalign.data.vocabularies import (
    Vocabulary,
)
from jaxalign.inspection import inspection_report, model_presets, suggestions
from jaxalign.inspection.findings import Inspection
from jaxalign.inspection.start import read_start
from jaxalign.inspection.vocabulary_choice import (
    given_or_trained_vocabulary,
    vocabulary_of_preset,
    vocabulary_of_start,
)

_LOOKED_AT = 500
_FORMAT = re.compile(r"(?:\.(?:jsonl|ndjson|json|csv|tsv|parquet))?(?:\.\w{2,3})?$", re.IGNORECASE)
_TURN = re.compile(
    r"^(?:user|human|customer|agent|assistant|system|bot|speaker \w+)\s?:",
    re.IGNORECASE | re.MULTILINE,
)


def inspect(
    file: str,
    *,
    output: str | None = None,
    validation_file: str | None = None,
    kind: str | None = None,
    layout: str | None = None,
    fields: str | None = None,
    chat_template: str | None = None,
    vocabulary: str | None = None,
    extra_ids: int = 0,
    vocab_size: int = 1000,
    model: str = "",
    checkpoint: str = "",
    objective: str | None = None,
    examples: int = 3,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Reports what a data file holds and writes a gin file that trains on it (`jaxalign inspect FILE`).

    Args:
      file: JSON Lines, a JSON list, CSV, TSV, Parquet or Arrow, compressed or uncompressed; also a pattern, a folder of such files, or
        the address of a dataset of the Hugging Face Hub, hf_dataset://OWNER/NAME[@REVISION][/CONFIG][:SPLIT].
      output: the gin file; by default NAME.gin in the current folder.
      validation_file: held-out records; without it a tenth of the prompts is held out.
      kind, layout, fields: how to read the file, if the detected values are wrong.
      chat_template: a Jinja file, or the folder of a tokenizer that has a chat template, which turns chat messages into text; by default
        they become lines `role: content`.
      vocabulary: 'bytes', or the path of a SentencePiece model, a tokenizer.json or their folder; by default that of the checkpoint, or a
        small model that is trained on the file; it is written beside the gin file.
      extra_ids: number of sentinels after the vocabulary (100 for T5).
      vocab_size: number of pieces of the trained vocabulary.
      model: a file of gin_configs/models, such as flan_t5_base, mini by default. One that has a pretrained checkpoint needs the
        vocabulary of that checkpoint.
      checkpoint: what to start from: a run folder, a Hugging Face folder, or a model of the hub, such as hf://google/flan-t5-small. Its
        network and its vocabulary are taken; leave model out.
      objective: a file of gin_configs/objectives; by default one that suits the data.
      examples: number of records to show in the form that the model reads.
      overwrite: replace an existing gin file and the vocabulary beside it.

    Raises:
      DataError: the file has no readable record, or its format is not supported.
    """
    found = _found(file, kind, layout, fields)
    name = _name(file)
    output = os.path.expanduser(output or f"{name}.gin")
    if os.path.exists(output) and not overwrite:
        raise DataError(
            f"{output} exists already, and may have been edited; give another --output, or --overwrite."
        )
    print(f"{file}: {found.describe()}")
    if validation_file is not None:
        theirs = _found(validation_file, kind, layout, fields)
        if theirs != found:
            raise DataError(
                f"{validation_file} holds {theirs.describe()}, and {file} {found.describe()}; both files of a run are read alike."
            )
    if checkpoint and model:
        raise DataError(
            f"--checkpoint={checkpoint} says what the network is; leave --model={model} out"
        )
    start = read_start(checkpoint) if checkpoint else None
    model = model or "mini"
    preset = model_presets.Preset() if start else model_presets.read_preset(model)
    if objective is not None:
        model_presets.check_objective(objective)
    if preset.checkpoint and vocabulary is None:
        vocabulary = vocabulary_of_preset(model, preset)
    template = read_chat_template(chat_template) if chat_template else None
    source = _source(file, found, template)
    if start is not None and vocabulary is None:
        chosen, trained, vocabulary, extra_ids = vocabulary_of_start(start, output)
    else:
        chosen, trained = given_or_trained_vocabulary(
            source, vocabulary, extra_ids, vocab_size, output
        )
    inspection = _inspect(source, found, chosen, examples, held_out=validation_file is None)
    _check_usable(file, inspection)
    held_out = None
    if validation_file is not None:
        held_out = _inspect(
            _source(validation_file, found, template), found, chosen, 0, held_out=False
        )
        _check_usable(validation_file, held_out)
    settings = None
    if found.kind != "prompts":
        settings = suggestions.suggest(
            inspection,
            chosen.size,
            model=model,
            checkpoint=start.address if start else preset.checkpoint,
            network=start.network if start else None,
            objective=objective,
        )
    print(*inspection_report.describe(inspection, chosen, settings), sep="\n")
    if held_out is not None:
        print(f"{validation_file}:", *inspection_report.counts(held_out), sep="\n  ")
    if settings is None:
        print(
            "Prompts without responses cannot be trained on; they are for: "
            f"jaxalign generate --checkpoint=RUN --input={file} --output=responses.jsonl"
        )
        return {"kind": found.kind, "records": inspection.records, "gin_file": None}
    text, next_commands = suggestions.gin_file(
        settings,
        inspection,
        name=name,
        output=output,
        train_file=data_files.absolute(file),
        validation_file=validation_file and data_files.absolute(validation_file),
        vocabulary=os.path.abspath(trained.path) if trained else vocabulary or "bytes",
        extra_ids=extra_ids,
        chat_template=chat_template and data_files.absolute(chat_template),
    )
    os.makedirs(os.path.dirname(os.path.abspath(output)), exist_ok=True)
    if trained:
        files.write_bytes(trained.path, trained.model)
        whose = f"the vocabulary of {checkpoint}" if start else "a vocabulary"
        print(
            f"{trained.path} is written, {whose} of {trained.size} pieces{'' if start else ' of this text'}."
        )
    files.write_text(output, text)
    print(*next_commands, sep="\n")
    return {"kind": found.kind, "records": inspection.records, "gin_file": output}


def _name(file: str) -> str:
    """Returns the name of a task on a file: that of the file without the endings of its format and compression."""
    name = _FORMAT.sub("", os.path.basename(file.rstrip("/")))
    return re.sub(r"\W+", "_", name).strip("_") or "data"


def _found(file: str, kind: str | None, layout: str | None, fields: str | None) -> Found:
    """Returns how to read the file: the given values, and values detected from the first records for the others."""
    log = RejectionLog()
    objects = itertools.chain.from_iterable(
        read_json_lines(path, log=log) for path in data_files.expand(file)
    )
    first = [obj for _, obj, _ in itertools.islice(objects, _LOOKED_AT)]
    if not first:
        raise DataError(
            f"{file} has no line that can be read; the first: {log.first}"
            if log.entries
            else f"{file} is empty."
        )
    renamed = None if fields is None else tuple(layouts.parse_fields(fields).items())
    looks = recognition.recognise(first)
    if kind is None and looks is None:
        names = ", ".join(sorted(first[0])) if first and isinstance(first[0], dict) else "none"
        raise DataError(
            f"No record of {file} could be recognised (fields of the first: {names}); say how to read it with --kind and "
            "--fields=prompt=...,response=...,feedback=... (docs/data.md has the kinds)."
        )
    looks = looks or Found(str(kind))
    return Found(
        kind or looks.kind,
        layouts.check_layout(layout or looks.layout),
        looks.fields if renamed is None else renamed,
    )


def _check_usable(file: str, inspection: Inspection) -> None:
    if not inspection.examples_count:
        raise DataError(
            f"{file} has no usable records ({inspection.records} read): {inspection.first_rejected}"
        )


def _source(file: str, found: Found, template: ChatTemplate | None) -> sources.JsonlSource:
    # A prompt alone is read as a record whose response repeats the prompt, so that the same code measures it.
    prompts_only = found.kind == "prompts"
    fields = dict(found.fields)
    if prompts_only:
        fields["response"] = fields.get("prompt", "prompt")
    return sources.JsonlSource(
        {"all": file},
        "seq2seq" if prompts_only else found.kind,
        layout=found.layout,
        fields=fields,
        duplicates="keep",
        chat_template=template,
    )


def _inspect(
    source: sources.JsonlSource,
    found: Found,
    vocabulary: Vocabulary,
    examples: int,
    *,
    held_out: bool,
) -> Inspection:
    result = Inspection(found, validation_prompts=0 if held_out else None)
    log = RejectionLog()
    seen: set[int] = set()
    limits = Limits(max_input_length=1 << 30, max_target_length=1 << 30, duplicates="keep")
    held: set[int] = set()

    def counted(records: Iterator[Record]) -> Iterator[Record]:
        for record in records:
            key = hash(record.key)
            result.repeated += key in seen
            seen.add(key)
            yield record

    tokenized = tokenize(counted(source.records("all", log)), vocabulary)
    for example in make_examples(tokenized, vocabulary, limits, log, kind=source.kind):
        lengths = example.target_lengths.tolist()
        result.prompt_lengths.append(len(example.inputs))
        result.response_lengths += lengths
        result.longest_responses.append(max(lengths))
        result.responses[len(lengths)] += 1
        result.dialogues += len(_TURN.findall(example.prompt)) > 1
        result.prompts.add(example.prompt_id)
        if held_out and sources.split_of_prompt(example.prompt, sources.SPLIT_FRACTIONS) != "train":
            held.add(example.prompt_id)
        if example.feedback is not None:
            result.feedback.update(np.round(example.feedback.astype(float), 6).tolist())
        if len(result.examples) < examples:
            record = Record(
                example.prompt,
                example.responses,
                None if example.feedback is None else tuple(example.feedback.tolist()),
            )
            targets = [example.target(k).tolist()[:-1] for k in range(len(lengths))]
            result.examples.append((record, example.inputs.tolist()[:-1], targets))
    if held_out:
        result.validation_prompts = len(held)
    result.records, result.rejected, result.notes = log.seen, log.counts, log.notes
    result.first_rejected = log.first
    return result
