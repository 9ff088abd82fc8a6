"""Implements `jaxalign vote`: the answers of several responses to a prompt vote, and a reward model may stop bad responses early."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign import files
from jaxalign.annotation.answers import get_answer_extractor
from jaxalign.annotation.correct_answers import correct_answers
from jaxalign.annotation.prefixes import PrefixScorer
from jaxalign.annotation.voting import Vote
from jaxalign.data.candidates import Annotation, Candidates
from jaxalign.data.logged_responses import read_responses
from jaxalign.errors import UserError, require_range
from jaxalign.evaluation.statistics import LEAST
from jaxalign.evaluation.tables import text_table
from jaxalign.evaluation.vote_methods import (
    Outcome,
    filtered_outcome,
    matched_threshold,
    softmax_weights,
    summarise,
    voted,
)


def vote(
    input: str,
    output: str,
    *,
    answers: str = "last_number",
    correct: str = "",
    correct_extractor: str = "",
    weights: str = "",
    weight_temperature: float = 1.0,
    reward_run: str = "",
    goal_file: str = "",
    threshold: float = 0.0,
    reward_threshold: float | None = None,
    ignored_tokens: int = 5,
    num_responses: int = 0,
    join_prompts: bool = False,
    kind: str = "",
    layout: str = "",
    fields: str = "",
    batch_size: int = 32,
    bootstrap_samples: int = 1000,
) -> dict[str, Any]:
    """Lets the answers of several responses to a prompt vote: by majority, weighted, or without responses that a filter stops early.

    The output has one line per prompt and is written atomically; OUTPUT.votes.json has the settings and the table that is printed.

    Args:
      input: candidates (of `jaxalign generate`, `annotate` or `select`), or logged records of any kind and layout.
      output: the JSON Lines file of the votes. It replaces earlier votes, and no other file.
      answers: what extracts the answer of a response: `last_number`, `last_number:after=####`, `regex:PATTERN`, `whole_text`, or
        `module:function` (text -> answer or None); see docs/voting.md.
      correct: where the correct answers are: `field:NAME`, `file:PATH` or `annotation:NAME`; without it no accuracy is computed.
      correct_extractor: what extracts the answer of a correct text; by default the extractor of the responses.
      weights: an annotation of kind `scores` whose softmax over a prompt's responses weights their votes; by default the reward of
        `reward_run`.
      weight_temperature: the temperature of this softmax.
      reward_run: a run that trained a reward on decoder states (`goal_conditioned_reward_model`), which filters prefixes.
      goal_file: good responses whose mean last state is the goal, usually the pairs that `reward_run` was trained on.
      threshold: a response is dropped at its first token whose Q-value is below this.
      reward_threshold: the same for the reward head, the control; by default it drops as many responses as Q does.
      ignored_tokens: the number of first tokens that drop nothing.
      num_responses: the first so many responses to every prompt vote; 0 for all, which must then be equally many.
      join_prompts: whether the lines of one prompt become one line.
      kind, layout, fields: how to read logged records; recognised by default.
      batch_size: the number of responses that the reward scores together.
      bootstrap_samples: the number of resamples of the intervals.

    Returns:
      `output`, `prompts`, `responses`, `methods` (the rows of the table) and `report`, all of this in words.

    Raises:
      UserError: a malformed input, no answer in any response, or a run that cannot filter.
    """
    require_range("vote", "(0, inf)", weight_temperature=weight_temperature)
    require_range("vote", "[0, inf)", ignored_tokens=ignored_tokens, num_responses=num_responses)
    require_range("vote", "(-inf, inf)", threshold=threshold, reward_threshold=reward_threshold)
    require_range("vote", "[1, inf)", batch_size=batch_size)
    require_range("vote", "[0, inf)", bootstrap_samples=bootstrap_samples)
    if bool(reward_run) != bool(goal_file):
        given, lacking = ("reward_run", "goal_file") if reward_run else ("goal_file", "reward_run")
        raise UserError(
            f"vote.{given} needs {lacking}: Q-values compare the states of a reward run with a goal, the mean state of good responses: "
            "--reward_run=RUN --goal_file=<the pairs that it was trained on>"
        )
    # What cannot be used is reported before a large file is read.
    extract = get_answer_extractor(answers)
    extract_correct = get_answer_extractor(correct_extractor or answers)
    _check_output(output, input, goal_file, correct)
    files.make_writable_folder(Path(output).expanduser().parent, "--output's folder")
    scorer = PrefixScorer(reward_run, goal_file, batch_size=batch_size) if reward_run else None
    candidates, _ = read_responses(
        input,
        kind=kind,
        layout=layout,
        fields=fields,
        join_prompts=join_prompts,
        side_file=f"{output}.rejected.jsonl",
    )
    candidates = _equally_many(candidates, num_responses)
    found = [[extract(text) for text in texts] for texts in candidates.responses]
    _check_answers(found, candidates, answers)
    truths = correct_answers(correct, candidates, found, extract_correct) if correct else None

    outcomes = {"majority": voted(found, truths)}
    scores = candidates.annotation(weights, "scores").values if weights else None
    if scorer is not None:
        prefixes = scorer.score(*_flat(candidates), candidates.path)
        if scores is None:
            last = prefixes.mask.sum(axis=1) - 1
            rewards = prefixes.rewards[np.arange(len(last)), last].astype(np.float64)
            scores = rewards.reshape(len(candidates), -1)
        if reward_threshold is None:
            reward_threshold = matched_threshold(prefixes, threshold, ignored_tokens)
        for name, values, limit in (
            ("Q filter", prefixes.values, threshold),
            ("reward filter", prefixes.rewards, reward_threshold),
        ):
            outcomes[name] = filtered_outcome(
                found, truths, values, prefixes.mask, threshold=limit, ignored_tokens=ignored_tokens
            )
    if scores is not None:
        outcomes["weighted"] = voted(
            found, truths, weights=softmax_weights(scores, weight_temperature)
        )
    rows = summarise(outcomes, found, truths, bootstrap_samples)
    cut = scorer.cut if scorer is not None else 0
    report = _report(candidates, found, rows, output, cut, outcomes)
    _write(
        output,
        [_line(candidates, index, found, truths, outcomes) for index in range(len(candidates))],
        {
            "input": str(input),
            "answers": answers,
            "correct": correct,
            "weights": weights or ("reward" if scorer else ""),
            "weight_temperature": weight_temperature,
            "reward_run": reward_run,
            "goal_file": goal_file,
            "threshold": threshold,
            "reward_threshold": reward_threshold,
            "ignored_tokens": ignored_tokens,
            "methods": rows,
        },
    )
    return {
        "output": str(output),
        "prompts": len(candidates),
        "responses": sum(map(len, candidates.responses)),
        "methods": rows,
        "report": report,
    }


def _check_output(output: str, input: str, goal_file: str, correct: str) -> None:
    """Refuses an output that is a file which the command reads, or that it did not write."""
    answers = correct.removeprefix("file:") if correct.startswith("file:") else ""
    place = Path(output).expanduser().resolve()
    for name, path in (("input", input), ("goal_file", goal_file), ("correct", answers)):
        if path and Path(path).expanduser().resolve() == place:
            what = "input" if name == "input" else f"file of --{name},"
            raise UserError(f"--output is the {what} {path}; give another file")
    files.refuse_other_output(place, _side_file(place), "vote")


def _side_file(output: Path) -> Path:
    return output.with_name(f"{output.name}.votes.json")


def _equally_many(candidates: Candidates, wanted: int) -> Candidates:
    """Returns the candidates with the first `wanted` responses to every prompt."""
    counts = [len(texts) for texts in candidates.responses]
    least = wanted or counts[0]
    for index, count in enumerate(counts):
        if count < least or (not wanted and count != least):
            needed = f"{wanted} are wanted" if wanted else f"prompt 0 has {least}"
            raise UserError(
                f"{candidates.path}: prompt {index} has {count} responses, and {needed}; votes of unequal numbers are not comparable: give "
                f"--num_responses={max(min(counts), 1)}, sample as many for every prompt, or join the lines of a prompt with --join_prompts"
            )
    if least < 1:
        raise UserError(f"{candidates.path}: prompt 0 has no response; nothing can vote")
    return Candidates(
        candidates.prompts,
        [texts[:least] for texts in candidates.responses],
        {
            name: Annotation(
                annotation.kind, [values[:least] for values in annotation.values], annotation.names
            )
            for name, annotation in candidates.annotations.items()
            if annotation.kind != "preferences"
        },
        candidates.fields,
        candidates.path,
    )


def _check_answers(
    found: Sequence[Sequence[str | None]], candidates: Candidates, spec: str
) -> None:
    if all(answer is None for group in found for answer in group):
        raise UserError(
            f"{candidates.path}: {spec!r} finds no answer in any response, for example not in {candidates.responses[0][0][-60:]!r}; name "
            "another extractor with --answers"
        )


def _flat(candidates: Candidates) -> tuple[list[str], list[str]]:
    pairs = [
        (prompt, text)
        for prompt, texts in zip(candidates.prompts, candidates.responses, strict=True)
        for text in texts
    ]
    return [prompt for prompt, _ in pairs], [text for _, text in pairs]


def _line(
    candidates: Candidates,
    index: int,
    found: Sequence[Sequence[str | None]],
    truths: Sequence[set[str]] | None,
    outcomes: dict[str, Outcome],
) -> dict[str, Any]:
    line: dict[str, Any] = {
        "id": candidates.fields[index].get("id", index),
        "prompt": candidates.prompts[index],
        "answers": list(found[index]),
    }
    if truths is not None:
        line["correct"] = sorted(truths[index])
    line["votes"] = {
        name.replace(" ", "_").lower(): _vote(outcome.votes[index])
        | ({} if outcome.kept is None else outcome.of_filter(index))
        for name, outcome in outcomes.items()
    }
    return line


def _vote(found: Vote) -> dict[str, Any]:
    described: dict[str, Any] = {"winners": list(found.winners), "votes": found.votes}
    return described if found.correct is None else {**described, "correct": found.correct}


def _report(
    candidates: Candidates,
    found: Sequence[Sequence[str | None]],
    rows: Sequence[dict[str, Any]],
    output: str,
    cut: int,
    outcomes: dict[str, Outcome],
) -> str:
    silent = sum(answer is None for group in found for answer in group)
    unfinished = sum(
        ended is False
        for fields in candidates.fields
        if isinstance(fields.get("finished"), list)
        for ended in fields["finished"][: len(found[0])]
    )
    told = f"{output} holds votes of {len(found[0])} responses to each of {len(candidates)} prompts"
    told += f"; responses without an answer: {silent}" if silent else ""
    if unfinished:
        told += f"; responses that were cut at the length limit, and vote with what they hold: {unfinished}"
    for name, outcome in outcomes.items():
        without = sum(not vote.winners for vote in outcome.votes)
        told += f"; prompts without a vote in {name!r}: {without}" if without else ""
    told += f"; responses of which the reward read only the beginning: {cut}" if cut else ""
    if len(candidates) < LEAST and "accuracy" in rows[0]:
        told += f"; no intervals with fewer than {LEAST} prompts"
    return f"{text_table(rows)}\n{told}"


def _write(output: str, lines: Sequence[dict[str, Any]], summary: dict[str, Any]) -> None:
    path = Path(output).expanduser()
    side_file = _side_file(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Removed before the votes change, so that it never describes other votes.
        side_file.unlink(missing_ok=True)
        with files.replacing(path) as file:
            for line in lines:
                file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        files.write_text(side_file, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
