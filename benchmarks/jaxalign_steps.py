"""Worker: jaxalign's training step (the jitted step of `jaxalign train`) on given examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from common import peak_memory, run_for, serve
from workloads import Examples, load

from jaxalign.data.batches import make_batch
from jaxalign.data.examples import make_example
from jaxalign.data.packing import PackIndices
from jaxalign.networks.config import T5Config
from jaxalign.networks.policy import Policy
from jaxalign.networks.value import ValueNetwork
from jaxalign.objectives.dro import DROV
from jaxalign.objectives.sft import SFT
from jaxalign.parallel import partitioning
from jaxalign.training import optimizers
from jaxalign.training import state as states
from jaxalign.training import step as steps


def batches_of(examples: Examples, arguments: dict[str, Any]) -> list[tuple[dict, int, int]]:
    """Makes batches with their numbers of examples and of tokens; packed if `arguments` describe the packing."""
    if arguments["rows"] is None:
        size = arguments["examples"]
        groups = [
            [[index] for index in range(start, start + size)]
            for start in range(0, len(examples.inputs) - size + 1, size)
        ]
        rows, per_row = size, 1
        lengths = (max(map(len, examples.inputs)), max(map(len, examples.targets)))
    else:
        import grain

        rows, lengths = arguments["rows"], tuple(arguments["row_lengths"])
        per_row = arguments["examples_per_row"]
        indices = grain.MapDataset.range(len(examples.inputs)).to_iter_dataset()
        example_lengths = np.asarray(
            [[len(x), len(y)] for x, y in zip(examples.inputs, examples.targets, strict=True)]
        )
        groups = list(
            PackIndices(
                indices,
                example_lengths=example_lengths,
                row_lengths=lengths,
                rows=rows,
                max_examples_per_row=per_row,
                lookahead=2 * rows,
                drop_remainder=True,
            )
        )
    batches = []
    tokens = examples.tokens
    for group in groups:
        batch = make_batch(
            [[(index, _cached(examples, index)) for index in row] for row in group],
            num_rows=rows,
            input_length=lengths[0],
            target_length=lengths[1],
            examples_per_row=per_row,
            responses_per_example=1,
            reference_log_probs=examples.reference_log_probs[:, None],
        )
        chosen = [index for row in group for index in row]
        batches.append((batch, len(chosen), int(tokens[chosen].sum())))
    return batches


def _cached(examples: Examples, index: int) -> Any:
    return make_example(
        examples.inputs[index],
        [examples.targets[index]],
        [float(examples.rewards[index])],
        None,
        prompt_id=index + 1,
    )


def make_step(
    config: T5Config, objective_name: str, batch: dict[str, Any]
) -> tuple[Callable[..., Any], Any]:
    """Returns the jitted step and the initial state."""
    policy = Policy(config)
    if objective_name == "sft":
        objective: Any = SFT(policy=policy, z_loss=0.0)
        params = {"policy": policy.init(jax.random.key(0))}
    else:
        value = ValueNetwork(config)
        objective = DROV(policy=policy, value=value)
        params = {"policy": policy.init(jax.random.key(0))}
        params["value"] = value.from_policy(jax.random.key(1), params["policy"])
    transformations = states.build_transformations(
        {role: optimizers.adamw(1e-4, weight_decay=0.01) for role in params},
        objective.update_scales(),
    )
    state = states.create_state(params, transformations)
    mesh = partitioning.make_mesh()
    axes = {role: network.logical_axes() for role, network in objective.trained().items()}
    shardings = states.state_shardings(mesh, jax.eval_shape(lambda: state), axes)
    step = steps.jit_train_step(
        steps.make_train_step(objective, transformations), mesh, shardings, {}, batch
    )
    return step, state


def start(arguments: dict[str, Any]) -> tuple[dict[str, Any], Callable[..., Any]]:
    """See `common.serve`."""
    batches = batches_of(load(arguments["examples_file"]), arguments)
    config = T5Config(**arguments["model"])
    step, state = make_step(config, arguments["objective"], batches[0][0])
    state, metrics = step(state, {}, batches[0][0])
    jax.block_until_ready(metrics)
    used = 0

    def answer(seconds: float) -> dict[str, float]:
        nonlocal state, used
        seen = [0, 0]

        def one(_: int) -> None:
            nonlocal state, used
            batch, examples, tokens = batches[used % len(batches)]
            used += 1
            seen[0] += examples
            seen[1] += tokens
            state, metrics = step(state, {}, batch)
            jax.block_until_ready(metrics["loss"])

        result = run_for(seconds, one)
        return {**result, "examples": seen[0], "tokens": seen[1], "memory": peak_memory()}

    filled = [
        tokens / (b["encoder_input_tokens"].size + b["decoder_input_tokens"].size)
        for b, _, tokens in batches
    ]
    sizes = sum(leaf.size for leaf in jax.tree.leaves(state.params["policy"]))
    return {
        "batches": len(batches),
        "filled": float(np.mean(filled)),
        "examples_per_step": float(np.mean([examples for _, examples, _ in batches])),
        "parameters": int(sizes),
    }, answer


if __name__ == "__main__":
    serve(start)
