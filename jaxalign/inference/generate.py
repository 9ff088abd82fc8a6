"""`jaxalign generate`: responses of a policy to a JSON Lines file of prompts, resumable.

Output lines come in the order of the input. A run that was interrupted is started again with the
same command: complete lines are kept, a torn last line is dropped, and the rest is exactly what the
uninterrupted run would have written.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from jaxalign.data.evaluation_set import prompt_of, read_json_lines
from jaxalign.errors import UserError
from jaxalign.inference.rows import decode_tokens, encode_text
from jaxalign.inference.sampling import DecodingSettings, generate_batches
from jaxalign.runs import opened

_WRITTEN = ("id", "responses", "log_probs")


def generate(
    checkpoint: str,
    input: str,
    output: str,
    *,
    num_samples: int = 1,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    num_beams: int = 0,
    alpha: float = 0.6,
    batch_size: int = 32,
    max_input_length: int = 0,
    max_target_length: int = 0,
    long_prompts: str = "truncate",
    seed: int = 0,
    role: str = "policy",
    step: int | str | None = None,
    overwrite: bool = False,
    prompt_field: str = "prompt",
) -> dict[str, Any]:
    """Writes `num_samples` responses for every prompt.

    Args:
      checkpoint: run folder or checkpoint.
      input: JSON Lines with one prompt a line; blank lines are passed over.
      output: JSON Lines; each line has `id` (index of the prompt from 0), `prompt`, `responses`
        [num_samples], `log_probs` [num_samples] (nats, under the untempered policy, EOS included)
        and the other fields of the input line. An input field `id` is kept as `source_id`;
        `responses` and `log_probs` of the input are replaced.
      num_samples, temperature, top_k, top_p, num_beams, alpha: see DecodingSettings.
      batch_size: prompts decoded together. Samples depend on it, and on the seed.
      max_input_length, max_target_length: tokens, EOS included; 0 takes the run's own lengths.
      long_prompts: "truncate" keeps the beginning of a prompt that is too long, "truncate_left" its
        end; as the cache of the run was made.
      seed: batch b samples with fold_in(seed, b).
      role: which of the run's networks answers, such as `policy`.
      step: a step number, `best` or `latest`; by default the best where one was kept, else the latest.
      overwrite: start afresh although the output exists.
      prompt_field: name of the input field with the prompt.

    Returns:
      `prompts`: lines in the output; `generated`: those written by this call; `output`.

    Raises:
      UserError: a malformed input line (with file and line), or an output that was written from
        other prompts or with other settings.
    """
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, got {batch_size}.")
    records, prompts = _read_input(input, prompt_field)
    run = opened.open_policy(checkpoint, role=role, step=step)
    settings = DecodingSettings(
        max_target_length=run.length("targets", max_target_length),
        num_samples=num_samples,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        num_beams=num_beams,
        alpha=alpha,
    )
    max_input_length = run.length("inputs", max_input_length)
    fingerprint = {
        "checkpoint": str(checkpoint),
        "role": role,
        "step": run.info.get("step"),
        "seed": seed,
        "batch_size": batch_size,
        "max_input_length": max_input_length,
        "long_prompts": long_prompts,
        **vars(settings),
    }
    done = _resume(Path(output), fingerprint, prompts, overwrite)
    encoded = [
        encode_text(run.vocabulary, prompt, max_input_length, long_prompts=long_prompts)
        for prompt in prompts
    ]
    written = done
    with Path(output).open("ab") as file:
        for part, tokens, log_probs in generate_batches(
            run.network,
            run.params,
            encoded,
            settings,
            batch_size=batch_size,
            seed=seed,
            first_batch=done // batch_size,
        ):
            for row, index in enumerate(range(part.start, part.stop)):
                if index < done:
                    continue
                line = {
                    **records[index],
                    "id": index,
                    "prompt": prompts[index],
                    "responses": [decode_tokens(run.vocabulary, sample) for sample in tokens[row]],
                    "log_probs": [float(value) for value in log_probs[row]],
                }
                file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                written += 1
            file.flush()
            os.fsync(file.fileno())
    return {"output": str(output), "prompts": written, "generated": written - done}


def _read_input(path: str, prompt_field: str) -> tuple[list[dict[str, Any]], list[str]]:
    records, prompts = [], []
    for number, record in read_json_lines(path):
        prompts.append(prompt_of(record, prompt_field, path, number))
        kept = {key: value for key, value in record.items() if key not in _WRITTEN}
        if "id" in record:
            kept["source_id"] = record["id"]
        records.append(kept)
    if not prompts:
        raise UserError(f"{path}: holds no prompts.")
    return records, prompts


def _resume(output: Path, fingerprint: dict[str, Any], prompts: list[str], overwrite: bool) -> int:
    """Prepares the output and returns the number of complete lines it already holds."""
    side_file = output.with_name(output.name + ".settings.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    if overwrite:
        output.unlink(missing_ok=True)
    done = 0
    if output.exists() and output.stat().st_size:
        _check_settings(output, side_file, fingerprint)
        _drop_torn_line(output)
        done = _check_lines(output, prompts)
    side_file.write_text(json.dumps(fingerprint, indent=1) + "\n", encoding="utf-8")
    return done


def _check_settings(output: Path, side_file: Path, fingerprint: dict[str, Any]) -> None:
    advice = "give another output, or overwrite=true."
    if not side_file.is_file():
        raise UserError(
            f"{output} exists without {side_file.name}, so it cannot be resumed; {advice}"
        )
    try:
        before = json.loads(side_file.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        raise UserError(f"{side_file}: not JSON; {advice}") from None
    changed = [
        f"{key}: {before.get(key)!r} then, {fingerprint.get(key)!r} now"
        for key in sorted({*before, *fingerprint})
        if before.get(key) != fingerprint.get(key)
    ]
    if changed:
        raise UserError(
            f"{output} was written with other settings ({'; '.join(changed)}); {advice}"
        )


def _drop_torn_line(output: Path) -> None:
    """Cuts what follows the last newline: a line that was being written when the run died."""
    content = output.read_bytes()
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        with output.open("rb+") as file:
            file.truncate(complete)


def _check_lines(output: Path, prompts: list[str]) -> int:
    done = 0
    for number, record in read_json_lines(output):
        if done >= len(prompts):
            raise UserError(
                f"{output}:{number}: more lines than the input has prompts ({len(prompts)}); "
                "give another output, or overwrite=true."
            )
        if record.get("id") != done or record.get("prompt") != prompts[done]:
            raise UserError(
                f"{output}:{number}: its prompt is not prompt {done} of the input; "
                "give another output, or overwrite=true."
            )
        done += 1
    return done
