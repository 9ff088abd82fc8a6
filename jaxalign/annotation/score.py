"""Computes reference log-probabilities and rewards once, and stores them beside the cached examples."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.annotation import teacher
from jaxalign.annotation.advantages import check_vocabulary, say_other_cut
from jaxalign.annotation.cache_pass import CachePass, PassSettings
from jaxalign.data.task_cache import TaskCache
from jaxalign.errors import UserError, require_range
from jaxalign.interop.opening import open_run
from jaxalign.networks.lora import LoraPolicy
from jaxalign.networks.policy import Policy
from jaxalign.networks.protocols import RewardPredictor
from jaxalign.parallel import distributed, row_devices


def score(
    *,
    checkpoint: str,
    cache_dir: str,
    name: str = "",
    splits: list[str] | None = None,
    batch_size: int = 32,
    max_input_length: int = 0,
    max_target_length: int = 0,
    step: str = "",
    role: str = "policy",
    top_tokens: int = 0,
) -> None:
    """Adds a policy's log-probabilities, a reward model's rewards, or a teacher's most likely tokens to a cached task, once.

    Args:
      checkpoint: the run folder of the reference policy or of the reward model.
      cache_dir: the cached task.
      name: the name of the set of scores. The default is made from the checkpoint's run id and step, and training finds it
        automatically for a reference policy. A run reads a set of rewards with ``TaskData.stored = {'margin_rewards': NAME}``.
      splits: the splits to score; by default all splits of the cache.
      batch_size: the number of rows per forward pass.
      max_input_length: the maximum number of tokens of a prompt; the checkpoint's training length by default.
      max_target_length: the maximum number of tokens of a response; the checkpoint's training length by default.
      step: the checkpoint: a number, 'best' or 'latest'; by default the best if one was kept, else the latest.
      role: 'policy' for log-probabilities, 'reward' for rewards.
      top_tokens: the number of the policy's most likely tokens to store at every position instead. Distillation reads them with
        ``TEACHER_SOURCE = 'stored'`` and ``STORED_FIELDS = {'teacher_top': NAME}``.
    """
    require_range("score", "[1, inf)", batch_size=batch_size)
    require_range("score", "[0, inf)", max_input_length=max_input_length, top_tokens=top_tokens)
    require_range("score", "[0, inf)", max_target_length=max_target_length)
    if top_tokens and role != "policy":
        raise UserError("top_tokens is for the role 'policy' only")
    run = open_run(checkpoint, step)
    lengths = {
        "inputs": run.length("inputs", max_input_length),
        "targets": run.length("targets", max_target_length),
    }
    cache = TaskCache(cache_dir)
    check_vocabulary(cache.metadata, cache_dir, run)
    say_other_cut(cache, run)
    trained = run.policy() if role == "policy" else run.reward(role=role)
    network, params = trained.network, trained.params
    if role == "policy":
        suffix = f"-top{top_tokens}" if top_tokens else ""
        identity = {"run_id": run.description.run_id, "step": run.step}
        name = name or reference_name(identity, network) + suffix
    else:
        name = name or f"{role}-{run.description.run_id}-{run.step}"
    mesh = row_devices.local_mesh()
    settings = PassSettings(
        splits=splits,
        feature_lengths=lengths,
        row_lengths=run.description.row_lengths,
        batch_size=row_devices.divisible_rows(mesh, batch_size),
        mesh=mesh,
        info={"role": role, "checkpoint": str(run.folder), "step": run.step},
    )
    if top_tokens:
        teacher.store_top_tokens(network, params, cache, name, settings, count=top_tokens)
        print(
            f"wrote the {top_tokens} likeliest tokens {name!r} of {run.folder} (step {run.step}) beside {cache_dir}"
        )
        return
    wanted = settings.splits_of(cache)
    missing = unscored(cache, wanted, name)
    refuse_other_scores(cache, set(wanted) - set(missing), name, settings.info)
    score_splits(network, params, cache, name, settings)
    done = "wrote" if missing else "there were already"
    print(f"{done} {role} scores {name!r} of {run.folder} (step {run.step}) beside {cache_dir}")


def refuse_other_scores(
    cache: TaskCache, present: Iterable[str], name: str, info: Mapping[str, Any]
) -> None:
    """Refuses a name under which a split has the scores of another checkpoint: they are kept, and would be taken for these."""
    for split in sorted(present):
        before = cache.stored(split, name).info
        if "checkpoint" not in before:
            # Training stores its reference's scores under a name that says whose they are.
            continue
        # A run folder may have moved since then; its name and step stay.
        theirs, ours = (
            (each.get("role"), Path(str(each.get("checkpoint"))).name, each.get("step"))
            for each in (before, info)
        )
        if theirs != ours:
            raise UserError(
                f"{cache.path}, split {split} has scores {name!r} already, of {before.get('checkpoint')} (step {before.get('step')}); "
                "give another --name"
            )


def reference_name(info: Mapping[str, Any], policy: Policy) -> str:
    """Returns the default name of a reference policy's scores: run, step, and policy options that change log-probabilities."""
    name = f"{info.get('run_id', 'unnamed')}-{info['step']}-{policy.config.dtype}"
    if isinstance(policy, LoraPolicy) and policy.lora.base_dtype != "float32":
        name += f"-of-{policy.lora.base_dtype}"
    return name if policy.value_token is None else f"{name}-without-{policy.value_token}"


def score_splits(
    network: Any, params: Any, cache: TaskCache, name: str, settings: PassSettings
) -> None:
    """Scores every response of a cache with a network; skips splits that already have these scores.

    Args:
      network: a policy, for log-probabilities, or a network with ``rewards(params, batch)``.
      params: its parameters.
      cache: the cached task.
      name: the name of the set of scores.
      settings: the splits, how to read them, and what is stored beside the scores.

    Raises:
      UserError: if a response has no finite score.
    """
    gives_rewards = isinstance(network, RewardPredictor)

    def compute(params: Any, batch: Mapping[str, Any]) -> tuple[Any, Any, Any]:
        if gives_rewards:
            values = network.rewards(params, batch)
        else:
            values = network.score(params, batch).log_probs
        return values, batch["example_ids"], batch["response_mask"]

    # A reward network may unpack packed rows, and then empty places cost as much as full ones.
    computed = CachePass(compute, params, settings, pack=not gives_rewards)
    responses = cache.metadata.responses_per_example
    for split in unscored(cache, settings.splits_of(cache), name):
        scores = np.zeros((len(cache.split(split)), responses), np.float32)
        for values, ids, mask in computed.outputs(cache, split):
            present = ids.reshape(-1) >= 0
            kept = np.where(mask.reshape(-1, responses) > 0, values, 0)
            scores[ids.reshape(-1)[present]] = kept[present]
        if not np.all(np.isfinite(scores)):
            raise UserError(
                f"{'the reward network' if gives_rewards else 'the reference policy'} gives NaN or infinite "
                f"{'rewards' if gives_rewards else 'log-probabilities'} on {cache.path}, split {split}"
            )
        write = functools.partial(cache.write_stored, split, name, scores, dict(settings.info))
        distributed.broadcast_from_first(write)


def unscored(cache: TaskCache, splits: Sequence[str], name: str) -> list[str]:
    """Returns the splits of a cache that have no such set of scores, as determined by the first process."""

    def find() -> list[str]:
        return [split for split in splits if name not in cache.stored_names(split)]

    return distributed.broadcast_from_first(find)
