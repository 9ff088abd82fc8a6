"""SA2: which pseudo-labelled sentences help a model that has 50 labelled sentences of a domain? Three rounds, three seeds.

    python -m studies.self_augmented_selection --data <folder with rnnlg.seq2seq.*.jsonl and fewshotwoz.*.jsonl> --workers 2
    python -m studies.self_augmented_selection_report

A random T5 with 50 pairs would be a straw man. So the base is fine-tuned on other domains: for ``tv``, on the three other domains of
`rnnlg`; as a check, for ``attraction`` of `fewshotwoz`, on all four domains of `rnnlg`. It is then fine-tuned on 50 labelled pairs (44 of
``attraction``, which has no more acts; round 0). In each of three rounds the policy writes a sentence for every unlabelled act, some of
them are selected, and training goes on from the policy with a new optimizer on the labelled and the selected pairs, in equal numbers of
steps: no pseudo-labels, all, as many random ones as phase I selects, phase I (low loss and high uncertainty over ten passes with dropout),
and phase I with sentences written again by the mean logits of the passes (phase II). Each also with a filter that keeps pairs without slot
errors only; the check has the filtered ones. Pseudo-labels are replaced in every round. The last checkpoint is measured.

The same command continues an interrupted study. Measured: 1.3 core-hours beside other work.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.annotation.uncertainty import Uncertainty
from jaxalign.data import slots
from jaxalign.data.candidates import Candidates
from jaxalign.data.derived import write_jsonl
from jaxalign.data.records import Record
from jaxalign.data.task_data import TaskData
from jaxalign.data.train_vocabulary import train_sentencepiece
from jaxalign.inference.dropout_ensemble import ensemble_responses
from jaxalign.inference.encoders import encoder_of
from jaxalign.inference.sampling import DecodingSettings, generate_responses
from jaxalign.networks.policy import Policy
from jaxalign.objectives.sft import SFT
from jaxalign.recipes.jobs import Job
from jaxalign.runs.folder import Run
from jaxalign.selection.low_loss_uncertain import phase_one
from jaxalign.training.optimizers import adamw
from jaxalign.training.run import train
from jaxalign.training.start import StartFrom
from studies import rnnlg_data
from studies.bleu import corpus_bleu
from studies.command_line import MINI_T5, run_study
from studies.equal_footing import constant_loop
from studies.equal_footing_forms import read_rows
from studies.self_augmented_selection_data import DOMAINS, domain_rows

SEEDS = (0, 1, 2)
ROUNDS = 3
LENGTHS = {"inputs": 96, "targets": 64}
LABELLED, UNLABELLED, TEST_ACTS = 50, 300, 200
BASE_STEPS, LABELLED_STEPS, ROUND_STEPS = 800, 100, 150
# Packed rows of a batch; a row has about five sentences.
BASE_ROWS, ROWS = 16, 3
PASSES, TOP_P, DROPOUT = 10, 0.9, 0.1
POLICY = Policy(dataclasses.replace(MINI_T5, dropout_rate=DROPOUT), logits_chunk_size=None)
SELECTIONS = ("all", "random", "phase_one", "both_phases")
# (selection, whether pairs with slot errors are dropped)
ARMS: dict[str, tuple[str, bool]] = {
    "none": ("none", False),
    **{
        f"{selection}{'_filtered' if checked else ''}": (selection, checked)
        for checked in (False, True)
        for selection in SELECTIONS
    },
}
# The check on the second domain has the filter only, which decides the quality of pseudo-labels.
DOMAIN_ARMS = {
    "tv": tuple(ARMS),
    "attraction": ("none", *(name for name, (_, checked) in ARMS.items() if checked)),
}


def jobs(source: Path, folder: Path) -> list[Job]:
    """Returns all jobs: of the first domain seed after seed, then of the second."""
    made: list[Job] = []
    for domain in DOMAINS:
        data = f"{domain}/data"
        made.append(Job(data, functools.partial(_prepare, source, domain)))
        for seed in SEEDS:
            base, start = f"{domain}/base/seed{seed}", f"{domain}/labelled/seed{seed}"
            made.append(Job(base, functools.partial(_base, folder, domain, seed), (data,)))
            made.append(Job(start, functools.partial(_labelled, folder, domain, seed), (base,)))
            for arm in DOMAIN_ARMS[domain]:
                before = start
                for number in range(1, ROUNDS + 1):
                    name = f"{domain}/{arm}/round{number}/seed{seed}"
                    run = functools.partial(_round, folder, domain, arm, seed, number, before)
                    made.append(Job(name, run, (before,)))
                    before = name
    return made


def _prepare(source: Path, domain: str, job: Path) -> dict[str, Any]:
    """Writes all pairs, the unlabelled acts and the vocabulary, which has seen sentences of the other domains and acts of this one."""
    rows = domain_rows(source, domain)
    test_acts = list(dict.fromkeys(act for act, _ in rows["test"]))
    known = {act for name in ("train", "base") for act, _ in rows[name]}
    # Acts that training has seen would measure memory.
    test_acts = [act for act in test_acts if act not in known][:TEST_ACTS]
    held_out = set(test_acts)
    rows["test"] = [row for row in rows["test"] if row[0] in held_out]
    rows["unlabelled"] = [
        row for row in dict.fromkeys(rows["unlabelled"]) if row[0] not in held_out
    ]
    for name, pairs in rows.items():
        lines = [json.dumps({"prompt": act, "response": text}) + "\n" for act, text in pairs]
        (job / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    texts = [text for pair in (*rows["base"], *rows["unlabelled"]) for text in pair if text]
    train_sentencepiece(
        texts,
        str(job / "spm.model"),
        vocab_size=1000,
        user_defined_symbols=slots.placeholders(texts),
    )
    people = rnnlg_data.slot_error_rate(*map(list, zip(*rows["test"], strict=True)))
    return {**{name: len(pairs) for name, pairs in rows.items()}, "people_slot_error": people}


def _train(
    folder: Path,
    domain: str,
    job: Path,
    file: Path,
    steps: int,
    *,
    rate: float = 5e-4,
    start: Path | None = None,
    seed: int,
) -> None:
    data = folder / domain / "data"
    train(
        model_dir=str(job / "run"),
        objective=SFT(policy=POLICY),
        data=TaskData(
            task=domain,
            cache_dir=str(job / "cache"),
            feature_lengths=LENGTHS,
            vocabulary=str(data / "spm.model"),
            train_file=str(file),
            kind="seq2seq",
            duplicates="keep",
            eval_split="",
            # No prompt is held out: the split of training is all of the file.
            validation_file=str(data / "test.jsonl"),
            pack=True,
            row_lengths={"inputs": 160, "targets": 128},
        ),
        optimizers={
            "policy": adamw(
                rate, warmup_steps=steps // 10, schedule="cosine", total_steps=steps, clip_norm=1.0
            )
        },
        loop=constant_loop(steps),
        batch_size=BASE_ROWS if start is None else ROWS,
        start_from=StartFrom(str(start) if start else None),
        random_seed=seed,
    )


def _base(folder: Path, domain: str, seed: int, job: Path) -> dict[str, Any]:
    file = folder / domain / "data/base.jsonl"
    _train(folder, domain, job, file, BASE_STEPS, rate=2e-3, seed=seed)
    return measure(folder, domain, job / "run")


def _labelled(folder: Path, domain: str, seed: int, job: Path) -> dict[str, Any]:
    rows = read_rows(folder / domain / "data/train.jsonl")
    # One sentence for each act first, so that the labelled acts differ.
    by_act = {row["prompt"]: row for row in reversed(rows)}
    acts = list(by_act)
    order = np.random.default_rng(seed).permutation(len(acts))[:LABELLED]
    records = [Record(acts[i], (by_act[acts[i]]["response"],)) for i in order]
    file = job / "labelled.jsonl"
    write_jsonl(records, str(file), "seq2seq")
    start = folder / f"{domain}/base/seed{seed}/run"
    _train(folder, domain, job, file, LABELLED_STEPS, start=start, seed=seed)
    return {"labelled": len(records), **measure(folder, domain, job / "run")}


def _round(
    folder: Path, domain: str, arm: str, seed: int, number: int, before: str, job: Path
) -> dict[str, Any]:
    selection, checked = ARMS[arm]
    run = folder / before / "run"
    rows = read_rows(folder / f"{domain}/labelled/seed{seed}/labelled.jsonl")
    labelled = [(row["prompt"], row["response"]) for row in rows]
    pseudo: list[tuple[str, str]] = []
    found: dict[str, Any] = {}
    if selection != "none":
        known = {act for act, _ in labelled}
        acts = [row["prompt"] for row in read_rows(folder / domain / "data/unlabelled.jsonl")]
        acts = [act for act in dict.fromkeys(acts) if act not in known]
        order = np.random.default_rng(seed).permutation(len(acts))[:UNLABELLED]
        acts = [acts[i] for i in order]
        pseudo = _pseudo_labels(run, acts, labelled, selection, 100 * seed + number)
        found = {"unlabelled": len(acts), "selected": len(pseudo)}
        if pseudo:
            found["selected_slot_error"] = rnnlg_data.slot_error_rate(
                [act for act, _ in pseudo], [text for _, text in pseudo]
            )
        if checked:
            pseudo = [pair for pair in pseudo if not rnnlg_data.feedback(*pair)]
    file = job / "train.jsonl"
    write_jsonl([Record(act, (text,)) for act, text in (*labelled, *pseudo)], str(file), "seq2seq")
    _train(folder, domain, job, file, ROUND_STEPS, start=run, seed=100 * seed + number)
    return {**found, "pseudo_labels": len(pseudo), **measure(folder, domain, job / "run")}


def _pseudo_labels(
    run: Path, acts: list[str], labelled: list[tuple[str, str]], selection: str, seed: int
) -> list[tuple[str, str]]:
    """Returns the selected acts with the policy's sentences; empty sentences are left out."""
    opened = Run(run).policy()
    settings = DecodingSettings(LENGTHS["targets"], temperature=1.0, top_p=TOP_P)
    texts, _ = generate_responses(
        POLICY, opened.params, encoder_of(opened), acts, settings, batch_size=64, seed=seed
    )
    pairs = [(act, group[0]) for act, group in zip(acts, texts, strict=True) if group[0].strip()]
    if selection == "all" or not pairs:
        return pairs
    uncertainty = Uncertainty(str(run), passes=PASSES, dropout_rate=DROPOUT, seed=seed)
    theirs, ours = (_losses(uncertainty, each) for each in (labelled, pairs))
    mask = phase_one(theirs[:, 0], theirs[:, 1], ours[:, 0], ours[:, 1]).selected
    if selection == "random":
        drawn = np.random.default_rng(seed).permutation(len(mask))[: int(mask.sum())]
        return [pairs[i] for i in sorted(drawn)]
    chosen = [pair for pair, selected in zip(pairs, mask, strict=True) if selected]
    if selection == "phase_one" or not chosen:
        return chosen
    again = ensemble_responses(
        POLICY,
        opened.params,
        encoder_of(opened),
        [act for act, _ in chosen],
        passes=PASSES,
        top_p=TOP_P,
        seed=seed,
    )
    return [(act, text) for (act, _), text in zip(chosen, again, strict=True) if text.strip()]


def _losses(uncertainty: Uncertainty, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """Returns the mean and the deviation of the loss over passes, [pairs, 2]."""
    candidates = Candidates([act for act, _ in pairs], [[text] for _, text in pairs], {})
    return np.concatenate(list(uncertainty.annotate(candidates)))


def measure(folder: Path, domain: str, run: Path) -> dict[str, Any]:
    """Returns BLEU-4 of greedy sentences, and slot errors of greedy and of single sampled sentences, on the held-out acts."""
    references: dict[str, list[str]] = {}
    for row in read_rows(folder / domain / "data/test.jsonl"):
        references.setdefault(row["prompt"], []).append(row["response"])
    acts = list(references)
    opened = Run(run).policy()
    found = {}
    for name, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        settings = DecodingSettings(LENGTHS["targets"], temperature=temperature)
        groups, _ = generate_responses(
            POLICY, opened.params, encoder_of(opened), acts, settings, batch_size=64
        )
        texts = [group[0] for group in groups]
        found[f"{name}_slot_error"] = rnnlg_data.slot_error_rate(acts, texts)
        found[f"{name}_bleu"] = corpus_bleu(texts, [references[act] for act in acts])
    return {"test_acts": len(acts), **found}


def main() -> None:
    """Command line."""
    run_study(__doc__ or "", "self_augmented_selection", jobs)


if __name__ == "__main__":
    main()
