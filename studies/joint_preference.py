"""JPO: do comparisons between prompts add anything that as many ordinary ones do not? Human ratings of `nlg_ratings`.

    python -m studies.joint_preference --data <folder with nlg_ratings.triplets.*.jsonl> --workers 2
    python -m studies.joint_preference_report

Ratings of quality are on one scale of 1 to 6, so that sentences for different acts can be compared too. All arms start from the same SFT
policies (those of the study `human_feedback`) and have equal updates. They differ in which comparisons they read: n within acts, n within
and n between, 2n within, n between, 2n between. No hyperparameter is searched. The same command continues an interrupted study.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.cli.gin_objectives import objective_from_gin
from jaxalign.data import slots
from jaxalign.data.candidates import Annotation, Candidates
from jaxalign.data.task_data import TaskData
from jaxalign.evaluation.statistics import spearman
from jaxalign.networks.policy import Policy
from jaxalign.recipes.jobs import Job
from jaxalign.selection.selectors import get_selector
from jaxalign.training.optimizers import adamw
from jaxalign.training.run import train
from jaxalign.training.start import StartFrom
from studies import human_feedback, rnnlg, rnnlg_data
from studies.command_line import MINI_T5, run_study
from studies.equal_footing import constant_loop
from studies.equal_footing_forms import RATINGS, read_rows
from studies.equal_footing_judging import rating_log_probs

SEEDS = (0, 1, 2)
N = 350
# (comparisons within acts, comparisons between acts)
ARMS = {
    "n within": (N, 0),
    "n within, n between": (N, N),
    "2n within": (2 * N, 0),
    "n between": (0, N),
    "2n between": (0, 2 * N),
}
HELD_OUT_BETWEEN = 300
BETA, LEARNING_RATE, UPDATES = 0.1, 1e-4, 100
ROWS = 32
POLICY = Policy(MINI_T5, logits_chunk_size=None)


def jobs(data: Path, folder: Path) -> list[Job]:
    """Returns the jobs: SFT policies as in the study `human_feedback`, the comparisons, and a run per arm and seed."""
    made = [
        job
        for job in human_feedback.jobs(data, folder)
        if job.name.startswith((f"{RATINGS.name}/data", f"{RATINGS.name}/sft"))
    ]
    made.append(
        Job("comparisons", functools.partial(_comparisons, folder), (f"{RATINGS.name}/data",))
    )
    made += [
        Job(
            f"{arm.replace(', ', '_').replace(' ', '_')}/seed{seed}",
            functools.partial(_run, folder, arm, seed),
            ("comparisons", f"{RATINGS.name}/sft/seed{seed}"),
        )
        for seed in SEEDS
        for arm in ARMS
    ]
    return made


def rated_candidates(folder: Path, split: str) -> Candidates:
    """Returns the rated sentences of every act."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in read_rows(folder / RATINGS.name / "data" / f"{split}.jsonl"):
        groups.setdefault(row["prompt"], []).append(row)
    return Candidates(
        list(groups),
        [[row["response"] for row in group] for group in groups.values()],
        {
            "quality": Annotation(
                "scores",
                [np.array([row["feedback"] for row in group]) for group in groups.values()],
            )
        },
        path=split,
    )


def _comparisons(folder: Path, job: Path) -> dict[str, Any]:
    """Writes the training comparisons of every arm and seed, and the held-out ones."""
    counts = {}
    train_candidates = rated_candidates(folder, "train")
    files = [
        (f"{arm}.seed{seed}", train_candidates, within, joint, seed)
        for arm, (within, joint) in ARMS.items()
        for seed in SEEDS
    ]
    files.append(("validation", rated_candidates(folder, "validation"), -1, 0, 0))
    files.append(("test", rated_candidates(folder, "test"), -1, HELD_OUT_BETWEEN, 0))
    for name, candidates, within, joint, seed in files:
        spec = f"joint_pairs:annotation=quality,within={within},joint={joint},seed={seed}"
        selection = get_selector(spec)(candidates)
        lines = [json.dumps(line, ensure_ascii=False) for line in selection.lines]
        (job / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        counts[name] = {**selection.measures, "ties": selection.dropped.get("tie", 0)}
    return counts


def _run(folder: Path, arm: str, seed: int, job: Path) -> dict[str, Any]:
    reference = folder / RATINGS.name / f"sft/seed{seed}" / "run"
    comparisons = folder / "comparisons"
    summary = train(
        model_dir=str(job / "run"),
        objective=objective_from_gin(["jpo_pairs"], {"BETA": BETA}, policy=POLICY),
        data=TaskData(
            task="nlg_ratings_comparisons",
            cache_dir=str(job / "cache"),
            feature_lengths=RATINGS.lengths,
            vocabulary=str(folder / RATINGS.name / "data" / "spm.model"),
            train_file=str(comparisons / f"{arm}.seed{seed}.jsonl"),
            validation_file=str(comparisons / "validation.jsonl"),
            kind="triplet",
            duplicates="keep",
            long_prompts="truncate_left",
            eval_split="",
        ),
        optimizers={
            "policy": adamw(
                LEARNING_RATE,
                warmup_steps=20,
                schedule="cosine",
                total_steps=UPDATES,
                clip_norm=1.0,
            )
        },
        loop=constant_loop(UPDATES),
        batch_size=ROWS,
        start_from=StartFrom(str(reference)),
        random_seed=seed,
    )
    return {"loss": summary["train"]["loss"], **_judge(folder, job / "run", reference)}


def _judge(folder: Path, run: Path, reference: Path) -> dict[str, Any]:
    """Measures on held-out acts: how often the log-ratio orders a comparison as people do, and whether greedy sentences win."""
    rows = read_rows(folder / "comparisons" / "test.jsonl")
    log_probs, lengths = rating_log_probs(rows, run, reference)
    ratios = log_probs[0] - log_probs[1]
    winners, losers = ratios[0::2], ratios[1::2]
    wins = np.where(winners == losers, 0.5, winners > losers)
    within = np.array(
        [a["prompt"] == b["prompt"] for a, b in zip(rows[::2], rows[1::2], strict=True)]
    )
    rated = read_rows(folder / RATINGS.name / "data" / "test.jsonl")
    rated_probs, _ = rating_log_probs(rated, run, reference)
    # Acts without slots cannot be judged.
    acts = [
        act
        for act in dict.fromkeys(row["prompt"] for row in rated)
        if slots.counted_slots(slots.parse_act(act))
    ]
    errors = [_greedy_errors(path, acts) for path in (run, reference)]
    return {
        "within": float(wins[within].mean()),
        "between": float(wins[~within].mean()),
        "held_out": [int(within.sum()), int((~within).sum())],
        "spearman": spearman(
            rated_probs[0] - rated_probs[1], np.array([row["feedback"] for row in rated])
        ),
        "win_rate": float(np.mean(np.where(errors[0] == errors[1], 0.5, errors[0] < errors[1]))),
        "slot_errors": [float(each.mean()) for each in errors],
        "log_ratio_std": float(ratios.std()),
        "length_correlation": float(
            np.corrcoef(winners - losers, lengths[0::2] - lengths[1::2])[0, 1]
        ),
    }


def _greedy_errors(run: Path, acts: list[str]) -> np.ndarray:
    """Returns the share of wrong slots in the greedy sentence for every act."""
    policy, params, vocabulary = rnnlg.load_policy(run)
    tokens = rnnlg.generate_responses(policy, params, vocabulary, acts)
    return np.array(
        [
            -rnnlg_data.feedback(act, vocabulary.decode(each[0]))
            for act, each in zip(acts, tokens, strict=True)
        ]
    )


def main() -> None:
    """Command line."""
    run_study(__doc__ or "", "joint_preference", jobs)


if __name__ == "__main__":
    main()
