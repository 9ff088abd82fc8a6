"""The command `jaxalign evaluate`: compares two or more policies on the same prompts."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign import files, hub
from jaxalign.annotation import judges as judging
from jaxalign.data.evaluation_set import EvaluationSet
from jaxalign.errors import UserError
from jaxalign.evaluation import output_folder, results
from jaxalign.evaluation.comparison import Comparison
from jaxalign.evaluation.inputs import (
    common_image_format,
    linear_baseline,
    named_checkpoints,
    read_records,
    sample_records,
    training_feedback,
)
from jaxalign.evaluation.judge_agreement import judge_agreement
from jaxalign.evaluation.measure import Evaluator
from jaxalign.evaluation.page import page
from jaxalign.evaluation.report_records import SUMMARY
from jaxalign.evaluation.settings import EvaluationSettings
from jaxalign.evaluation.summary import summary_text
from jaxalign.interop.opening import open_run
from jaxalign.runs.folder import Run


def evaluate(
    checkpoints: list[str],
    prompts: str,
    output_dir: str,
    *,
    split: str = "validation",
    judges: list[str] | None = None,
    reference: str = "",
    num_prompts: int = 0,
    temperature: float = 0.0,
    kl_samples: int = 1,
    judge_feedback: int = 200,
    ranking_only: bool = False,
    ranking_train: str = "",
    batch_size: int = 32,
    max_input_length: int = 0,
    max_target_length: int = 0,
    long_prompts: str = "",
    kind: str = "",
    duplicates: str = "reject",
    max_rejected_fraction: float = 0.05,
    bootstrap: int = 1000,
    step: int | str | None = None,
    layout: str = "records",
    chat_template: str = "",
    fields: str = "",
    prompt_field: str = "prompt",
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Compares policies, writes evaluation.json, responses, plots and a page to read (report.html), and prints a table.

    Args:
      checkpoints: `name=path` of run folders or checkpoints; the others are compared with the first. A
        path without a name gets the name of its folder.
      prompts: a data file or a cache folder. Each distinct prompt is answered once; logged
        responses with feedback are used for the ranking and the calibration of V.
      output_dir: the folder for report.html, evaluation.json, responses/<name>.jsonl, logged/<name>.jsonl (each logged response with its
        log-ratio, V and residual) and plots/*.png. The same evaluation may be repeated there;
        another one is an error unless `overwrite` is set.
      split: the split of a cache folder.
      judges: `name`, `name:argument` or `module:function`, see `jaxalign.annotation.judges`; the
        score of the first judge is the reward in the table. The default is slot_error.
      reference: the policy against which KL and log-ratios are computed, as a name among the checkpoints
        or as a path; the first policy by default, so a policy that is evaluated alone is its own reference.
      num_prompts: use only the first num_prompts prompts; 0 uses all.
      temperature: temperature of the judged responses; 0 is greedy.
      kl_samples: number of responses to each prompt, sampled at temperature 1, for the KL; 0 leaves the KL out.
      judge_feedback: about how many logged responses with feedback every judge scores too, to say how far it agrees with people; 0: none.
        Each costs a request where a language model judges.
      ranking_only: generate nothing; only rank logged responses and check V.
      ranking_train: JSON Lines file with the feedback of training: the TF-IDF baseline is fitted on it, and V is checked on as many of its
        responses as there are held-out ones; for a cache folder the default is its `train` split. Without either both are left out.
      batch_size: number of prompts in a batch.
      max_input_length, max_target_length: limits in tokens, including EOS; 0 uses the limits of each run.
      long_prompts: "truncate", "truncate_left" or "reject"; the setting of each run by default.
      kind: record kind of a file: triplet, pair, ranked, seq2seq or multi; detected from the fields by default.
      duplicates: "reject" or "keep" repeated records of a file, as for `jaxalign cache`.
      max_rejected_fraction: the largest share of a file's lines that may be unusable, as for `jaxalign cache`.
      bootstrap: number of resamples for intervals (a fifth of them for rankings).
      step: a checkpoint's step, `best` or `latest`; by default `best` if a best checkpoint was kept.
      layout, fields: how to read a data file, as for `jaxalign cache`; fields such as response=completion,feedback=label.
      chat_template: what turns the chat messages of a data file into text, as for `jaxalign cache`.
      prompt_field: name of the prompt's field in a data file.
      seed: seed of sampling and of the bootstrap.
      overwrite: replace another evaluation in `output_dir`.

    Returns:
      The content of evaluation.json.

    Raises:
      UserError: names or paths are wrong, prompts are malformed, a judge fails, or `output_dir` holds another evaluation.
    """
    settings = EvaluationSettings(
        prompts=prompts,
        split=split,
        judges=None if judges is None else tuple(judges),
        reference=reference,
        num_prompts=num_prompts,
        temperature=temperature,
        kl_samples=kl_samples,
        judge_feedback=judge_feedback,
        ranking_only=ranking_only,
        ranking_train=ranking_train,
        batch_size=batch_size,
        max_input_length=max_input_length,
        max_target_length=max_target_length,
        long_prompts=long_prompts,
        kind=kind,
        layout=layout,
        chat_template=chat_template,
        fields=fields,
        duplicates=duplicates,
        max_rejected_fraction=max_rejected_fraction,
        bootstrap=bootstrap,
        step=step,
        prompt_field=prompt_field,
        seed=seed,
    )
    return compare(
        named_checkpoints(checkpoints),
        settings,
        Path(output_dir).expanduser(),
        overwrite=overwrite,
    )


def compare(
    named: Mapping[str, str], settings: EvaluationSettings, folder: Path, *, overwrite: bool = False
) -> dict[str, Any]:
    """Compares policies by name and path, writes the results into a folder and prints a table.

    Returns:
      The content of evaluation.json.

    Raises:
      UserError: as in `evaluate`.
    """
    reference_path = named.get(settings.reference, settings.reference) or next(iter(named.values()))
    opened = {
        path: open_run(path, settings.step)
        for path in dict.fromkeys([reference_path, *named.values()])
    }
    request: dict[str, Any] = {
        "settings": settings.request(),
        "policies": {name: _identity(path, opened[path]) for name, path in named.items()},
        "reference": _identity(reference_path, opened[reference_path]),
    }
    if not overwrite:
        output_folder.check(folder, request)
    page.require_page_or_nothing(folder / page.PAGE)
    images = common_image_format(opened)
    records = read_records(settings, settings.prompts, settings.split, folder, images)
    # Records that one of the policies cannot read are left out for all of them.
    reader = Evaluator(EvaluationSet(), settings)
    records = records.readable([reader.encoder(run) for run in opened.values()])
    for note in filter(None, (records.describe_rejected(), records.note)):
        _progress(note)
    if (told := _template_note(settings, opened)) is not None:
        _progress(told)
    data = records.to_set().first(settings.num_prompts)
    if settings.ranking_only and not data.feedback:
        raise UserError(f"{settings.prompts}: ranking_only needs logged responses with feedback.")
    panel = _panel(settings, data)
    request["data"] = output_folder.digest(data)
    with output_folder.lock(folder):
        if not overwrite:
            output_folder.check(folder, request)
        reference = opened[reference_path].policy()
        session = Comparison(data, settings, reference, list(panel.values()))
        training = training_feedback(settings, folder, images) if data.feedback else None
        if training is not None:
            session.linear = linear_baseline(data, training.to_set().feedback)
            readable = training.readable([reader.encoder(run) for run in opened.values()])
            session.training = sample_records(
                readable.to_set().feedback, len(data.feedback), settings.seed
            )
        for name, path in named.items():
            # The reference's parameters are already in memory.
            same = _same_checkpoint(opened[path], opened[reference_path])
            run = reference if same else opened[path].policy()
            session.measure(name, path, run)
            _progress(f"measured {name} (step {run.step})")
        described = {"rejected": dict(records.rejected), "reference": reference_path}
        result = _write(folder, session, named, panel, described, request)
        _write_page(folder, [opened[path].folder for path in named.values()])
        return result


def _template_note(settings: EvaluationSettings, opened: Mapping[str, Run]) -> str | None:
    """Returns a line about runs that were trained with a chat template, if a file is read without one."""
    if settings.chat_template or Path(settings.prompts).is_dir():
        return None
    for path, run in opened.items():
        if "chat_template" in run.description.content:
            return (
                f"{path} was trained with a chat template; prompts of {settings.prompts} that are chat messages need it: "
                f"--chat_template={path}"
            )
    return None


def _identity(path: str, run: Run) -> list[Any]:
    """Returns what identifies a policy of a request: a model of the hub by its content too, because its branch may move."""
    return [path, run.step, *([run.description.run_id] if hub.is_address(path) else [])]


def _same_checkpoint(one: Run, other: Run) -> bool:
    return (one.folder.resolve(), one.step) == (other.folder.resolve(), other.step)


def _write(
    folder: Path,
    session: Comparison,
    named: Mapping[str, str],
    panel: Mapping[str, judging.Judge],
    described: Mapping[str, Any],
    request: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes the results into the folder, prints the summary, and returns the content of evaluation.json."""
    data, settings = session.data, session.settings
    result: dict[str, Any] = {
        "settings": {
            **settings.describe(),
            "num_prompts": len(data.prompts),
            "num_feedback": len(data.feedback),
            "judges": [judge.name for judge in panel.values()],
            "judge_specs": list(panel),
            **described,
        },
        "policies": session.reports,
        "win_rates": results.win_rates(
            session.scores, bootstrap=settings.bootstrap, seed=settings.seed
        ),
        "judge_agreement": judge_agreement(
            session.panel,
            data,
            settings.judge_feedback,
            bootstrap=settings.bootstrap // 5,
            seed=settings.seed,
        ),
        output_folder.REQUEST: request,
    }
    folder.mkdir(parents=True, exist_ok=True)
    output_folder.clear(folder)
    (folder / page.PAGE).unlink(missing_ok=True)
    results.write_responses(folder, session, data)
    results.write_logged(folder, session, data)
    result["plots"] = results.draw(folder / "plots", named, session)
    result = results.finite_json(result)
    text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)
    files.write_text(folder / output_folder.EVALUATION, text + "\n")
    print(summary_text(result))
    return result


def _write_page(folder: Path, runs: Sequence[Path]) -> None:
    """Writes the report of the evaluation in the folder, with the curves of those of its policies that are runs."""
    summaries = [run / SUMMARY for run in dict.fromkeys(runs) if (run / SUMMARY).is_file()]
    try:
        page.write_page(folder / page.PAGE, [folder / output_folder.EVALUATION], summaries)
    except UserError as error:
        # The evaluation itself is complete; a damaged file in a run folder shall not look like its failure.
        _progress(f"no {page.PAGE}: {error}")
    else:
        print(f"\nresponses, plots and tables in one page: {folder / page.PAGE}")


def _panel(settings: EvaluationSettings, data: EvaluationSet) -> dict[str, judging.Judge]:
    """Returns the judges by their given names, after checking that they can judge these prompts."""
    if settings.ranking_only:
        return {}
    panel = {spec: judging.get_judge(spec) for spec in settings.judges or ("slot_error",)}
    names = [judge.name for judge in panel.values()]
    if len(set(names)) < len(names):
        raise UserError(
            f"two judges are called {max(names, key=names.count)}; evaluate with one of them at a time"
        )
    try:
        for judge in panel.values():
            judging.check_prompts(judge, data.prompts, data.references)
    except UserError as error:
        if settings.judges is not None:
            raise
        raise UserError(
            f"{error}; that is the default judge: choose others with --judges={','.join(judging.judge_names())} or "
            "--judges=module:function, or generate nothing with --ranking_only"
        ) from None
    return panel


def _progress(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
