"""Reward against KL, method by method: frontiers instead of points.

    python -m studies.frontiers --data <folder with rnnlg.seq2seq.*.jsonl> --workers 2
    python -m studies.frontiers_report

A T5 of a million parameters is fine-tuned on sentences for dialogue acts; four samples to each of 3,000 acts, with exact slot errors as
feedback, are what every method reads. Five strengths of each method are trained with three seeds at a constant learning rate, and
judged after 50, 100 and 200 updates of about 30 responses, by four samples to each act: every checkpoint is a point. The learning rate
is one of three, chosen at the middle strength by the area under the validation frontier. Three tasks: `rnnlg`; the bundled acts, whose
writers differ in care by domain; and the same with an annotator who is stricter with some acts than with others. Jobs are ordered by
seed. The same command continues an interrupted study.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.annotation.cache_pass import PassSettings
from jaxalign.annotation.score import score_splits
from jaxalign.cli.gin_objectives import objective_from_gin
from jaxalign.data.derived import write_jsonl
from jaxalign.data.task_data import TaskData
from jaxalign.evaluation.statistics import distinct_n, kl_estimate
from jaxalign.inference.encoders import encoder_of
from jaxalign.inference.rows import EOS, decode_tokens, response_tokens
from jaxalign.inference.sampling import DecodingSettings, generate_tokens
from jaxalign.inference.sequence_kl import sequence_kl
from jaxalign.objectives.sft import SFT
from jaxalign.parallel.row_devices import local_mesh
from jaxalign.recipes.jobs import Job, read_result
from jaxalign.runs.folder import Run
from jaxalign.selection.from_feedback import pairs_from_groups
from jaxalign.training.checkpointing import CheckpointPolicy
from jaxalign.training.loop import LoopConfig
from jaxalign.training.optimizers import adamw
from jaxalign.training.run import train
from jaxalign.training.start import StartFrom
from studies import rnnlg_data
from studies.command_line import run_study
from studies.equal_footing import constant_loop
from studies.frontiers_curves import area, frontier
from studies.frontiers_tasks import METHODS, SOURCES, TASKS, Source, Task


@dataclasses.dataclass(frozen=True)
class Size:
    """The numbers that make the study small or large.

    Attributes:
      sft_updates: updates of the policies to start from.
      checkpoints: updates after which a policy is judged.
      acts: acts whose samples are training data.
      samples: samples to each of them.
      judged: acts that are judged, by split.
      judged_samples: samples to each of them. The KL is measured along the first.
      rows: rows of a batch, by form.
      learning_rates: that are searched.
    """

    sft_updates: int = 600
    checkpoints: tuple[int, ...] = (50, 100, 200)
    acts: int = 3000
    samples: int = 4
    judged: dict[str, int] = dataclasses.field(
        default_factory=lambda: {"validation": 200, "test": 400}
    )
    judged_samples: int = 4
    rows: dict[str, int] = dataclasses.field(default_factory=lambda: {"triplets": 6, "pairs": 5})
    learning_rates: tuple[float, ...] = (3e-5, 1e-4, 3e-4)


SEEDS = (0, 1, 2)
SCORES = "sft"


def jobs(data: Path, folder: Path, size: Size = Size()) -> list[Job]:
    """Returns the jobs: data, starts and samples of the sources, forms of the tasks, searched learning rates, and the grids."""
    bound = functools.partial
    made = [Job(f"{source.name}/data", bound(source.prepare, data)) for source in SOURCES]
    for seed in SEEDS:
        for source in SOURCES:
            sft, samples = (f"{source.name}/{each}/seed{seed}" for each in ("sft", "samples"))
            made += [
                Job(sft, bound(_sft, folder, size, source, seed), (f"{source.name}/data",)),
                Job(samples, bound(_sample, folder, size, source, seed), (sft,)),
            ]
        for name, task in TASKS.items():
            forms = f"{name}/forms/seed{seed}"
            needs = (f"{task.source.name}/samples/seed{seed}",)
            made.append(Job(forms, bound(_forms, folder, size, name, seed), needs))
            for method in task.methods:
                search = [search_name(name, method, rate) for rate in size.learning_rates]
                if seed == 0:
                    middle = METHODS[method].strength[1][2]
                    made += [
                        Job(
                            job,
                            bound(_run, folder, size, name, method, middle, seed, rate),
                            (forms,),
                        )
                        for job, rate in zip(search, size.learning_rates, strict=True)
                    ]
                made += [
                    Job(
                        run_name(name, method, strength, seed),
                        bound(_chosen, folder, size, name, method, strength, seed),
                        (forms, *search),
                    )
                    for strength in METHODS[method].strength[1]
                ]
    return made


def run_name(task: str, method: str, strength: float, seed: int) -> str:
    """Returns the name of the job of a strength."""
    return f"{task}/{method}/{strength:g}/seed{seed}"


def search_name(task: str, method: str, rate: float) -> str:
    """Returns the name of the job of a learning rate."""
    return f"{task}/search/{method}/lr{rate:g}"


def chosen_rate(folder: Path, size: Size, task: str, method: str) -> float | None:
    """Returns the learning rate with the largest area under the validation frontier; None before the end of the search."""
    found = [read_result(folder, search_name(task, method, rate)) for rate in size.learning_rates]
    if any(result is None for result in found):
        return None
    areas = [area(frontier([r["points"]], r["start"])) for r in found if r is not None]
    return size.learning_rates[int(np.argmax(areas))]


def start_of(folder: Path, source: Source, seed: int) -> Path:
    """Returns the run folder of a fine-tuned policy."""
    return folder / source.name / f"sft/seed{seed}" / "run"


def acts_of(folder: Path, source: Source, split: str, count: int) -> list[str]:
    """Returns acts of a split, drawn at random because files are ordered by domain; the same for all seeds."""
    prepared = folder / source.name / "data"
    found = rnnlg_data.acts(prepared, split, judged_only=source.name == "rnnlg")
    order = np.random.default_rng(0).permutation(len(found))[:count]
    return [found[index] for index in sorted(order)]


def _task_data(folder: Path, source: Source, files: Path, form: str, kind: str) -> TaskData:
    return TaskData(
        task=f"{source.name}_{form}",
        cache_dir=str(files / f"cache_{form}"),
        feature_lengths=source.lengths,
        vocabulary=str(folder / source.name / "data" / "spm.model"),
        train_file=str(files / f"{form}.jsonl"),
        # A tenth of the acts is set aside and not read: validation acts have samples of their own.
        validation_file=None,
        kind=kind,
        duplicates="keep",
        eval_split="",
        pack=True,
        row_lengths=source.rows["pairs" if kind == "pair" else "triplets"],
    )


def _sft(folder: Path, size: Size, source: Source, seed: int, job: Path) -> dict[str, Any]:
    prepared = folder / source.name / "data"
    data = dataclasses.replace(
        _task_data(folder, source, job, "train", "seq2seq"),
        train_file=str(prepared / "train.jsonl"),
        validation_file=str(prepared / "validation.jsonl"),
    )
    summary = train(
        model_dir=str(job / "run"),
        objective=SFT(policy=source.policy),
        data=data,
        optimizers={
            "policy": adamw(
                2e-3,
                warmup_steps=max(size.sft_updates // 10, 1),
                schedule="cosine",
                total_steps=size.sft_updates,
                clip_norm=1.0,
            )
        },
        loop=constant_loop(size.sft_updates),
        batch_size=16,
        random_seed=seed,
    )
    return {"loss": summary["train"]["loss"]}


def _sample(folder: Path, size: Size, source: Source, seed: int, job: Path) -> dict[str, Any]:
    acts = acts_of(folder, source, "train", size.acts)
    opened = Run(start_of(folder, source, seed)).policy()
    settings = DecodingSettings(
        source.lengths["targets"], num_samples=size.samples, temperature=1.0
    )
    prompts = encoder_of(opened).prompts(acts).tokens
    tokens, _ = generate_tokens(
        opened.network, opened.params, prompts, settings, batch_size=128, seed=seed
    )
    texts = [[decode_tokens(opened.vocabulary, row) for row in group] for group in tokens]
    (job / "samples.json").write_text(json.dumps([acts, texts]), encoding="utf-8")
    rewards = [source.reward(a, text) for a, group in zip(acts, texts, strict=True) for text in group]  # fmt: skip
    return {"acts": len(acts), "reward": float(np.mean(rewards))}


def _forms(folder: Path, size: Size, name: str, seed: int, job: Path) -> dict[str, Any]:
    """Writes triplets and pairs, and stores the log-probabilities of the start."""
    task = TASKS[name]
    samples = folder / task.source.name / f"samples/seed{seed}" / "samples.json"
    records = task.records(*json.loads(samples.read_text(encoding="utf-8")))
    start = start_of(folder, task.source, seed)
    opened = Run(start).policy()
    counts: dict[str, Any] = {}
    for form in sorted({METHODS[method].form for method in task.methods}):
        kind = "pair" if form == "pairs" else "triplet"
        made = pairs_from_groups(records) if kind == "pair" else records
        write_jsonl(made, str(job / f"{form}.jsonl"), kind)
        data = _task_data(folder, task.source, job, form, kind)
        counts[form] = data.prepare().num_examples["train"]
        settings = PassSettings(
            splits=("train",),
            feature_lengths=data.feature_lengths,
            batch_size=32,
            mesh=local_mesh(),
            info={"run": opened.run.description.run_id, "step": opened.step},
        )
        score_splits(opened.network, opened.params, data.cache(), SCORES, settings)
    points = {split: _judge(folder, size, task, start, start, split) for split in size.judged}
    return {"examples": counts, "start": points}


def _chosen(
    folder: Path, size: Size, name: str, method: str, strength: float, seed: int, job: Path
) -> dict[str, Any]:
    rate = chosen_rate(folder, size, name, method)
    assert rate is not None
    if seed == 0 and strength == METHODS[method].strength[1][2]:
        # The search has trained it.
        searched = read_result(folder, search_name(name, method, rate))
        assert searched is not None
        return searched
    return _run(folder, size, name, method, strength, seed, rate, job)


def _run(
    folder: Path, size: Size, name: str, method: str, strength: float, seed: int, rate: float, job: Path
) -> dict[str, Any]:  # fmt: skip
    """Trains one strength and judges every checkpoint on both splits."""
    task, chosen = TASKS[name], METHODS[method]
    start = start_of(folder, task.source, seed)
    updates = max(size.checkpoints)
    period = int(np.gcd.reduce(size.checkpoints))
    train(
        model_dir=str(job / "run"),
        objective=objective_from_gin(
            [method],
            {**chosen.macros, chosen.strength[0]: strength},
            policy=task.source.policy,
            train_steps=updates,
        ),
        data=_task_data(
            folder,
            task.source,
            folder / name / f"forms/seed{seed}",
            chosen.form,
            "pair" if chosen.form == "pairs" else "triplet",
        ),
        optimizers={"policy": adamw(rate, warmup_steps=20, clip_norm=1.0)},
        loop=LoopConfig(
            train_steps=updates,
            log_period=50,
            eval_period=0,
            checkpoint=CheckpointPolicy(period=period, keep_latest=None),
            progress=False,
        ),
        batch_size=size.rows[chosen.form],
        start_from=StartFrom(str(start)),
        reference_scores=SCORES,
        random_seed=seed,
    )
    points = []
    for step in size.checkpoints:
        run = job / "run" / "checkpoints" / str(step)
        point = {split: _judge(folder, size, task, run, start, split) for split in size.judged}
        points.append({"updates": step, "strength": strength, **point})
    begun = read_result(folder, f"{name}/forms/seed{seed}")
    assert begun is not None
    return {"rate": rate, "points": points, "start": begun["start"]}


def _judge(
    folder: Path, size: Size, task: Task, run: Path, start: Path, split: str
) -> dict[str, Any]:
    """Judges samples at temperature 1: reward, KL from the start, length, and the diversity of the first samples."""
    acts = acts_of(folder, task.source, split, size.judged[split])
    opened = Run(run).policy()
    prompts = encoder_of(opened).prompts(acts).tokens
    settings = DecodingSettings(
        task.source.lengths["targets"], num_samples=size.judged_samples, temperature=1.0
    )
    tokens, _ = generate_tokens(
        opened.network, opened.params, prompts, settings, batch_size=128, seed=1
    )
    rows = [[response_tokens(row) or [EOS] for row in group] for group in tokens]
    own, first = ((each.network, each.params) for each in (opened, Run(start).policy()))
    kl = kl_estimate(sequence_kl(own, first, prompts, [group[:1] for group in rows], batch_size=128))  # fmt: skip
    texts = [[decode_tokens(opened.vocabulary, row) for row in group] for group in rows]
    rewards = [
        [task.source.reward(act, text) for text in group]
        for act, group in zip(acts, texts, strict=True)
    ]
    return {
        "reward": float(np.mean(rewards)),
        "kl": kl.mean,
        "kl_error": kl.standard_error,
        "length": float(np.mean([len(row) for group in rows for row in group])),
        "distinct_2": distinct_n([group[0] for group in texts], 2),
        "rewards": np.round(rewards, 4).tolist(),
    }


def main() -> None:
    """Command line."""
    run_study(__doc__ or "", "frontiers", jobs)


if __name__ == "__main__":
    main()
