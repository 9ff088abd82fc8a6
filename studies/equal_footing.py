"""Every method on the same feedback, from its own gin file, with the same budget: three seeds, two tasks.

    python -m studies.equal_footing --data <folder with the JSON Lines files> --workers 2

Two hyperparameters of each method are searched with two values each: the learning rate and the most important one of the method. A method
without such a hyperparameter gets four learning rates. Four runs of one seed are judged on a validation split, the best setting is trained
with two more seeds, and the results of the test split are reported. The data of `rnnlg` are four samples per dialogue act from the SFT
policy with exact slot errors as feedback, as in the study `rnnlg`; new samples are judged. The data of `nlg_ratings` are human ratings; the
ranking of held-out responses by the log-ratio is judged. The same command continues an interrupted study.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.annotation.advantages import advantages
from jaxalign.annotation.cache_pass import PassSettings
from jaxalign.annotation.score import score_splits
from jaxalign.cli.gin_objectives import objective_from_gin
from jaxalign.data.task_data import TaskData
from jaxalign.networks.policy import Policy
from jaxalign.networks.value import ValueNetwork
from jaxalign.objectives.value_regression import ValueRegression
from jaxalign.parallel.partitioning import make_mesh
from jaxalign.recipes.jobs import Job, read_result
from jaxalign.runs.folder import Run
from jaxalign.training.checkpointing import CheckpointPolicy
from jaxalign.training.loop import LoopConfig
from jaxalign.training.optimizers import adamw
from jaxalign.training.run import train
from jaxalign.training.start import StartFrom
from studies import human_feedback, rnnlg
from studies.command_line import run_study
from studies.equal_footing_forms import FORMS, RATINGS, ratings_forms, rnnlg_forms
from studies.equal_footing_judging import judge_ranking, judge_samples
from studies.equal_footing_methods import METHODS

SEEDS = (0, 1, 2)
UPDATES = {"rnnlg": 150, "nlg_ratings": 80}
VALUE_UPDATES = 150
SCORES = ("informativeness", "naturalness", "quality")
ADVANTAGES = "of_the_reference"
# Without dropout, because noise in the log-ratio would be noise in the loss.
POLICIES = {
    task: Policy(dataclasses.replace(config, dropout_rate=0.0), logits_chunk_size=None)
    for task, config in (("rnnlg", rnnlg.CONFIG), ("nlg_ratings", human_feedback.CONFIG))
}


def jobs(data: Path, folder: Path) -> list[Job]:
    """Returns all jobs: SFT policies and samples of the two tasks, forms of the data, search, final runs."""
    made = [
        dataclasses.replace(
            job, name=f"rnnlg/{job.name}", needs=tuple(f"rnnlg/{n}" for n in job.needs)
        )
        for job in rnnlg.jobs(data, folder / "rnnlg")
        if job.name.split("/")[0] in ("data", "sft", "samples")
    ]
    made += [
        job
        for job in human_feedback.jobs(data, folder)
        if job.name.startswith((f"{RATINGS.name}/data", f"{RATINGS.name}/sft"))
    ]
    for seed in SEEDS:
        made.append(
            Job(
                f"rnnlg/forms/seed{seed}",
                functools.partial(rnnlg_forms, folder, seed),
                (f"rnnlg/samples/seed{seed}",),
            )
        )
        made.append(
            Job(
                f"nlg_ratings/forms/seed{seed}",
                functools.partial(ratings_forms, folder, seed),
                (f"nlg_ratings/sft/seed{seed}",),
            )
        )
        for task in UPDATES:
            made.append(
                Job(
                    f"{task}/prepared/seed{seed}",
                    functools.partial(_prepare, folder, task, seed),
                    (f"{task}/forms/seed{seed}",),
                )
            )
    for name, method in METHODS.items():
        for task in method.tasks:
            search = [
                Job(
                    _search_name(task, name, *setting),
                    functools.partial(_run, folder, task, name, 0, *setting),
                    (f"{task}/prepared/seed0",),
                )
                for setting in method.settings
            ]
            made += search
            made += [
                Job(
                    f"{task}/final/{name}/seed{seed}",
                    functools.partial(_final, folder, task, name, seed),
                    (f"{task}/prepared/seed{seed}", *(job.name for job in search)),
                )
                for seed in SEEDS[1:]
            ]
    return made


def _search_name(task: str, name: str, strength: Any, rate: float) -> str:
    label = f"{strength:g}" if isinstance(strength, float) else str(strength)
    return f"{task}/search/{name}/{label}/lr{rate:g}"


def selected(folder: Path, task: str, name: str) -> tuple[Any, float] | None:
    """Returns the strength and learning rate with the best score on the validation split; None before the end of the search."""
    settings = METHODS[name].settings
    results = [read_result(folder, _search_name(task, name, *setting)) for setting in settings]
    if any(result is None for result in results):
        return None
    scores = [result["validation"]["score"] for result in results if result is not None]
    # If the policy equals the reference, all log-ratios are equal and the correlation is NaN.
    return settings[int(np.argmax(np.nan_to_num(scores, nan=-np.inf)))]


def seed_results(folder: Path, task: str, name: str) -> list[dict[str, Any]]:
    """Returns the finished runs of the selected setting over seeds; the run of seed 0 is the one of the search."""
    setting = selected(folder, task, name)
    if setting is None:
        return []
    names = [
        _search_name(task, name, *setting),
        *(f"{task}/final/{name}/seed{seed}" for seed in SEEDS[1:]),
    ]
    return [found for each in names if (found := read_result(folder, each)) is not None]


def _final(folder: Path, task: str, name: str, seed: int, job: Path) -> dict[str, Any]:
    setting = selected(folder, task, name)
    assert setting is not None
    return _run(folder, task, name, seed, *setting, job)


def _prepare(folder: Path, task: str, seed: int, job: Path) -> dict[str, Any]:
    """Caches every form, and stores reference log-probabilities and the advantages of triplets."""
    run = str(_sft_run(folder, task, seed))
    sft = Run(run).policy()
    forms = {METHODS[name].form for name in METHODS if task in METHODS[name].tasks}
    examples = {}
    for form in sorted(forms):
        data = _data(folder, task, seed, form)
        examples[form] = data.prepare().num_examples
        if form != "best":
            score_splits(
                sft.network,
                sft.params,
                data.cache(),
                "sft",
                PassSettings(
                    splits=("train",),
                    feature_lengths=data.feature_lengths,
                    batch_size=32,
                    mesh=make_mesh(),
                    info={"run": sft.run.description.run_id, "step": sft.step},
                ),
            )
    triplets = _data(folder, task, seed, "triplets")
    policy = POLICIES[task]
    rows, inputs, targets = FORMS["triplets"].packing[task]
    train(
        model_dir=str(job / "value"),
        objective=ValueRegression(policy=policy, value=ValueNetwork(policy.config)),
        data=dataclasses.replace(
            triplets, pack=True, row_lengths={"inputs": inputs, "targets": targets}
        ),
        optimizers={"policy": adamw(1e-4, warmup_steps=20, clip_norm=1.0)},
        loop=constant_loop(VALUE_UPDATES),
        batch_size=rows,
        start_from=StartFrom(run),
        random_seed=seed,
    )
    shares = advantages(
        value_checkpoint=str(job / "value"),
        cache_dir=triplets.cache_dir,
        name=ADVANTAGES,
        splits=["train"],
    )
    result: dict[str, Any] = {"examples": examples, "positive_advantages": shares["train"]}
    if task == "rnnlg":
        result["test"] = judge_samples(folder, Path(run), Path(run), "test")
    return result


def _sft_run(folder: Path, task: str, seed: int) -> Path:
    return folder / task / f"sft/seed{seed}" / "run"


def _data(folder: Path, task: str, seed: int, form: str) -> TaskData:
    chosen = FORMS[form]
    files = folder / task / f"forms/seed{seed}"
    return TaskData(
        task=f"{task}_{form}",
        cache_dir=str(files / f"cache_{form}"),
        feature_lengths=rnnlg.LENGTHS if task == "rnnlg" else RATINGS.lengths,
        vocabulary=str(folder / task / "data" / "spm.model"),
        train_file=str(files / f"{chosen.file}.train.jsonl"),
        validation_file=str(files / f"{chosen.file}.validation.jsonl"),
        kind=chosen.kind,
        responses_per_example=chosen.joined.get(task, 1),
        duplicates="keep",
        long_prompts="truncate_left",
        eval_split="",
    )


def constant_loop(steps: int) -> LoopConfig:
    """Returns the settings of training without evaluation and intermediate checkpoints."""
    return LoopConfig(
        train_steps=steps,
        log_period=50,
        eval_period=0,
        checkpoint=CheckpointPolicy(period=10_000, keep_latest=1),
        progress=False,
    )


def _run(
    folder: Path,
    task: str,
    name: str,
    seed: int,
    strength: Any,
    learning_rate: float,
    job: Path,
) -> dict[str, Any]:
    """Trains one method with one setting and judges it on both splits; the selection uses `validation` only."""
    method = METHODS[name]
    form = FORMS[method.form]
    rows, inputs, targets = form.packing[task]
    data = dataclasses.replace(
        _data(folder, task, seed, method.form),
        pack=True,
        row_lengths={"inputs": inputs, "targets": targets},
        sampling=method.sampling,
        stored={"advantages": ADVANTAGES} if method.needs_advantages else {},
    )
    macros = dict(method.macros.get(task, {}))
    if method.strength is not None:
        macros[method.strength[0]] = strength
    reference = _sft_run(folder, task, seed)
    objective = objective_from_gin(
        method.gin or (name,), macros, policy=POLICIES[task], train_steps=UPDATES[task]
    )
    summary = train(
        model_dir=str(job / "run"),
        objective=objective,
        data=data,
        optimizers={
            "policy": adamw(
                learning_rate,
                warmup_steps=20,
                schedule="cosine",
                total_steps=UPDATES[task],
                clip_norm=1.0,
            )
        },
        loop=constant_loop(UPDATES[task]),
        batch_size=rows,
        start_from=StartFrom(str(reference)),
        reference_scores="sft",
        random_seed=seed,
    )
    judge = judge_samples if task == "rnnlg" else judge_ranking
    return {
        "method": name,
        "strength": strength,
        "learning_rate": learning_rate,
        "train": summary["train"],
        "responses": summary["examples"],
        **{split: judge(folder, job / "run", reference, split) for split in ("validation", "test")},
    }


def main() -> None:
    """Command line."""
    run_study(__doc__ or "", "equal_footing", jobs)


if __name__ == "__main__":
    main()
