"""OSP: do soft labels of a policy's own judgement resist over-fitting in long training? Four kinds of labels, three seeds.

    python -m studies.rounds_osp --data <folder with rnnlg.seq2seq.*.jsonl> --output runs/rounds_osp --workers 2
    python -m studies.rounds_osp_report

The policy is fine-tuned on all `rnnlg` acts, and then on the same pairs mixed with 800 comparisons of its own samples in the format of the
annotator `self_judge`, in both orders, labelled by slot errors; so one model answers and judges. Its vocabulary has seen that format, so
that both choices are single pieces. It then judges four samples of its own to other acts, in both orders. All arms train on the same ranked
pairs, with the OSP loss and many more steps than an epoch: with the judge's probabilities (soft), with the likelier response (argmax), with
one label drawn from the probability (sampled), and with the strengths of an exact judge, sigmoid of the difference of rewards over
EXACT_SCALE (exact). The largest margin is that of beta times the log-ratios of the training pairs; accuracy and cross-entropy are those of
held-out pairs against the exact strengths.

The same command continues an interrupted study; an arm of a seed that was interrupted starts again. Expected: 2.5 core-hours (an estimate;
an arm of a seed takes about .15).
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.annotation.judge_calibration import calibration
from jaxalign.annotation.self_judge import TEMPLATE, SelfJudge, choice_pieces, fill
from jaxalign.data import slots
from jaxalign.data.candidates import Annotation, Candidates
from jaxalign.data.derived import write_jsonl
from jaxalign.data.encoding import TextEncoder
from jaxalign.data.records import Record
from jaxalign.data.task_data import TaskData
from jaxalign.data.train_vocabulary import train_sentencepiece
from jaxalign.inference.encoders import encoder_of
from jaxalign.inference.sampling import DecodingSettings, generate_responses
from jaxalign.losses.soft_preference import osp_loss
from jaxalign.objectives.sft import SFT
from jaxalign.recipes.jobs import Job
from jaxalign.runs.folder import Run
from jaxalign.selection.self_judged import RankedPairs
from jaxalign.training.optimizers import adamw
from jaxalign.training.run import train
from jaxalign.training.start import StartFrom
from studies import rnnlg_data
from studies.command_line import run_study
from studies.equal_footing import constant_loop
from studies.equal_footing_forms import read_rows
from studies.repeated_steps import endless_batches, make_step, of_examples
from studies.rounds_osp_pairs import BETA, POLICY, Pairs, comparisons, cross_entropy, exact_strength

SEEDS = (0, 1, 2)
ARMS = ("soft", "argmax", "sampled", "exact")
# A comparison has a prompt and two responses.
LENGTHS = {"inputs": 256, "targets": 64}
VOCAB_SIZE = 1000
SFT_STEPS, JUDGE_STEPS = 600, 800
JUDGE_PAIRS, JUDGE_ACTS, ROUND_ACTS, HELD_OUT_ACTS, TEST_ACTS = 800, 600, 300, 150, 150
SAMPLES = 4
LEARNING_RATE, ROWS = 1e-4, 16
MEASURED = (0, 50, 100, 200, 400, 800, 1600)


def jobs(source: Path, folder: Path) -> list[Job]:
    """Returns all jobs, seed after seed."""
    made = [Job("data", functools.partial(_prepare, source))]
    for seed in SEEDS:
        sft, judge, pairs = f"sft/seed{seed}", f"judge/seed{seed}", f"pairs/seed{seed}"
        made += [
            Job(sft, functools.partial(_sft, folder, seed), ("data",)),
            Job(judge, functools.partial(_judge, folder, seed), (sft,)),
            Job(pairs, functools.partial(_pairs, folder, seed), (judge,)),
        ]
        made += [
            Job(f"{arm}/seed{seed}", functools.partial(_arm, folder, arm, seed), (pairs,))
            for arm in ARMS
        ]
    return made


def _prepare(source: Path, job: Path) -> dict[str, Any]:
    counts = rnnlg_data.prepare(source, job, VOCAB_SIZE)
    rows = read_rows(job / "train.jsonl")
    texts = [row[field] for row in rows for field in ("prompt", "response")]
    # The vocabulary sees the words of the judge's texts. The answers are too rare to become pieces of their own accord.
    texts += [
        fill(TEMPLATE, first["prompt"], first["response"], second["response"])
        for first, second in zip(rows[::2], rows[1::2], strict=False)
    ]
    answers = [f"\N{LOWER ONE EIGHTH BLOCK}{choice}" for choice in SelfJudge.choices.split("/")]
    vocabulary = train_sentencepiece(
        texts,
        str(job / "spm.model"),
        vocab_size=VOCAB_SIZE,
        user_defined_symbols=[*slots.placeholders(texts), *answers],
    )
    pieces = choice_pieces(vocabulary, SelfJudge.choices)
    acts = rnnlg_data.acts(job, "train")
    order = np.random.default_rng(0).permutation(len(acts))
    acts = [acts[i] for i in order]
    splits = {
        "judge": acts[:JUDGE_ACTS],
        "round": acts[JUDGE_ACTS : JUDGE_ACTS + ROUND_ACTS],
        "held_out": rnnlg_data.acts(job, "validation")[:HELD_OUT_ACTS],
        "test": rnnlg_data.acts(job, "test")[:TEST_ACTS],
    }
    (job / "acts.json").write_text(json.dumps(splits, indent=1), encoding="utf-8")
    return {"acts": counts, "choices": list(pieces)}


def _acts(folder: Path, split: str) -> list[str]:
    acts: list[str] = json.loads((folder / "data/acts.json").read_text("utf-8"))[split]
    return acts


def _train(
    folder: Path, job: Path, file: Path, steps: int, rate: float, start: Path | None, seed: int
) -> dict[str, Any]:
    return train(
        model_dir=str(job / "run"),
        objective=SFT(policy=POLICY),
        data=TaskData(
            task="rnnlg",
            cache_dir=str(job / "cache"),
            feature_lengths=LENGTHS,
            vocabulary=str(folder / "data/spm.model"),
            train_file=str(file),
            validation_file=str(folder / "data/validation.jsonl"),
            kind="seq2seq",
            duplicates="keep",
            pack=True,
            row_lengths={"inputs": 256, "targets": 128},
        ),
        optimizers={
            "policy": adamw(
                rate, warmup_steps=steps // 10, schedule="cosine", total_steps=steps, clip_norm=1.0
            )
        },
        loop=constant_loop(steps),
        batch_size=16,
        start_from=StartFrom(str(start) if start else None),
        random_seed=seed,
    )


def _sft(folder: Path, seed: int, job: Path) -> dict[str, Any]:
    return {
        "summary": _train(folder, job, folder / "data/train.jsonl", SFT_STEPS, 2e-3, None, seed)
    }


def _judge(folder: Path, seed: int, job: Path) -> dict[str, Any]:
    """Trains the policy that judges, and measures its judgement of its own samples to held-out acts."""
    sft = folder / f"sft/seed{seed}/run"
    acts = _acts(folder, "judge")
    rows = comparisons(acts, _samples(sft, acts, seed), JUDGE_PAIRS)
    task = [(row["prompt"], row["response"]) for row in read_rows(folder / "data/train.jsonl")]
    # As many sentences as comparisons, so that the policy does not forget its task.
    order = np.random.default_rng(seed).permutation(len(task))[: len(rows)]
    records = [Record(prompt, (text,)) for prompt, text in (*rows, *(task[i] for i in order))]
    file = job / "train.jsonl"
    write_jsonl(records, str(file), "seq2seq")
    _train(folder, job, file, JUDGE_STEPS, 1e-3, sft, seed)
    held_out = _acts(folder, "held_out")
    groups = _samples(job / "run", held_out, seed + 100)
    groups = [list(dict.fromkeys(text for text in group if text.strip())) for group in groups]
    preferences = SelfJudge(str(job / "run")).annotate(Candidates(held_out, groups, {}))
    truths = [
        np.array([rnnlg_data.feedback(act, text) for text in group])
        for act, group in zip(held_out, groups, strict=True)
    ]
    found = dataclasses.asdict(calibration(preferences, truths))
    return {"judge_pairs": len(rows) // 2, "calibration": found}


def _samples(run: Path, acts: list[str], seed: int) -> list[list[str]]:
    opened = Run(run).policy()
    settings = DecodingSettings(LENGTHS["targets"], num_samples=SAMPLES, temperature=1.0)
    texts, _ = generate_responses(
        POLICY, opened.params, encoder_of(opened), acts, settings, batch_size=64, seed=seed
    )
    return texts


def _pairs(folder: Path, seed: int, job: Path) -> dict[str, Any]:
    """Writes the labelled pairs of every arm, and held-out pairs with their exact strengths."""
    run = folder / f"judge/seed{seed}/run"
    counts = {}
    for split, arms in (("round", ARMS), ("held_out", ("exact",))):
        acts = _acts(folder, split)
        groups = _samples(run, acts, seed + (200 if split == "round" else 300))
        groups = [list(dict.fromkeys(text for text in group if text.strip())) for group in groups]
        candidates = Candidates(acts, groups, {})
        preferences = SelfJudge(str(run)).annotate(candidates)
        candidates = Candidates(
            acts, groups, {"self_judge": Annotation("preferences", list(preferences))}, path=split
        )
        for arm in arms:
            labels = "soft" if arm == "exact" else arm
            lines = RankedPairs(labels=labels, seed=seed)(candidates).lines
            if arm == "exact":
                lines = [
                    {
                        **line,
                        "margin": exact_strength(line["prompt"], line["chosen"], line["rejected"]),
                    }
                    for line in lines
                ]
            name = arm if split == "round" else split
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            (job / f"{name}.jsonl").write_text(text, encoding="utf-8")
            counts[name] = len(lines)
    return counts


def _arm(folder: Path, arm: str, seed: int, job: Path) -> dict[str, Any]:
    """Trains with the OSP loss for many steps, and measures the policy as training goes on."""
    del job
    start = Run(folder / f"judge/seed{seed}/run").policy()
    encoder = encoder_of(start)
    pairs = folder / f"pairs/seed{seed}"
    training, held_out = (
        Pairs.read(pairs / f"{name}.jsonl", encoder, start.params) for name in (arm, "held_out")
    )

    def loss(params: Any, batch: Any, reference: Any, strengths: Any) -> Any:
        ratios = of_examples(POLICY.score(params, batch).log_probs, batch) - reference
        losses, weights = osp_loss(ratios[:, 0], ratios[:, 1], strengths, beta=BETA)
        return losses.sum() / weights.sum()

    initial, step = make_step(loss, adamw(LEARNING_RATE, warmup_steps=20, clip_norm=1.0))
    params, state = start.params, initial(start.params)
    batches = endless_batches(
        training.prompts, training.pairs, size=ROWS, generator=np.random.default_rng(seed)
    )
    measures = []
    for number in range(MEASURED[-1] + 1):
        if number in MEASURED:
            measures.append(
                {"step": number, **_measure(folder, params, encoder, training, held_out)}
            )
        if number == MEASURED[-1]:
            break
        index, batch = next(batches)
        params, state, _ = step(
            params, state, batch, training.reference[index], training.strengths[index]
        )
    return {"pairs": len(training.pairs), "measures": measures}


def _measure(
    folder: Path, params: Any, encoder: TextEncoder, training: Pairs, held_out: Pairs
) -> dict[str, Any]:
    acts = _acts(folder, "test")
    settings = DecodingSettings(LENGTHS["targets"], temperature=1.0)
    texts, _ = generate_responses(
        POLICY, params, encoder, acts, settings, batch_size=64, seed=12345
    )
    rewards = [rnnlg_data.feedback(act, group[0]) for act, group in zip(acts, texts, strict=True)]
    margins = training.margins(params)
    outside = held_out.margins(params)
    differ = held_out.strengths != 0.5
    right = np.where(outside == 0, 0.5, (outside > 0) == (held_out.strengths > 0.5))
    return {
        "reward": float(np.mean(rewards)),
        "reward_error": float(np.std(rewards, ddof=1) / np.sqrt(len(rewards))),
        "length": float(np.mean([len(group[0].split()) for group in texts])),
        "largest_margin": float(np.abs(margins).max()),
        "mean_margin": float(np.abs(margins).mean()),
        "accuracy": float(right[differ].mean()),
        "cross_entropy": cross_entropy(outside, held_out.strengths),
    }


def main() -> None:
    """Command line."""
    run_study(__doc__ or "", "rounds_osp", jobs)


if __name__ == "__main__":
    main()
