"""Worker: the same step in PyTorch with Hugging Face transformers; batches are padded to their longest example."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import peak_memory, run_for, serve
from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration
from transformers.utils import logging
from workloads import Examples, load


def hf_config(model: dict[str, Any]) -> T5Config:
    """Returns the configuration with Hugging Face's names."""
    return T5Config(
        vocab_size=model["vocab_size"],
        d_model=model["emb_dim"],
        d_kv=model["head_dim"],
        d_ff=model["mlp_dim"],
        num_layers=model["num_encoder_layers"],
        num_decoder_layers=model["num_decoder_layers"],
        num_heads=model["num_heads"],
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        use_cache=False,
    )


class Value(torch.nn.Module):
    """T5 encoder, mean over the prompt's tokens, linear head."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.encoder = T5EncoderModel(config)
        self.head = torch.nn.Linear(config.d_model, 1)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask[..., None].float()
        return self.head((states * weights).sum(1) / weights.sum(1))[:, 0]


def pad(sequences: list[np.ndarray], value: int) -> torch.Tensor:
    """Pads sequences to the length of the longest."""
    rows = np.full((len(sequences), max(map(len, sequences))), value, np.int64)
    for row, sequence in zip(rows, sequences, strict=True):
        row[: len(sequence)] = sequence
    return torch.from_numpy(rows)


def batch_of(examples: Examples) -> tuple[dict[str, torch.Tensor], int, int]:
    """Returns a padded batch and its numbers of examples and of tokens."""
    input_ids = pad(examples.inputs, 0)
    return (
        {
            "input_ids": input_ids,
            "attention_mask": (input_ids > 0).long(),
            "labels": pad(examples.targets, -100),
            "rewards": torch.from_numpy(examples.rewards),
            "reference_log_probs": torch.from_numpy(examples.reference_log_probs),
        },
        len(examples.inputs),
        int(examples.tokens.sum()),
    )


def log_probs(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns the sum of the log-probabilities of each response's tokens."""
    token_losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="none"
    )
    return -token_losses.view(labels.shape).sum(1)


def dro_v_loss(
    policy: torch.nn.Module,
    value: torch.nn.Module,
    batch: dict[str, torch.Tensor],
    tau: float = 1.0,
) -> torch.Tensor:
    """Equations 7 and 8 of arXiv 2405.19107 as one loss, with cached reference log-probabilities."""
    logits = policy(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]
    ).logits
    scores = log_probs(logits, batch["labels"])
    log_ratio = scores - batch["reference_log_probs"]
    values = value(batch["input_ids"], batch["attention_mask"])
    advantage = batch["rewards"] - values.detach()
    policy_loss = -(scores * advantage) + tau / 2 * log_ratio**2
    residual = batch["rewards"] - tau * log_ratio.detach() - values
    return (tau * policy_loss + 0.5 * residual**2).mean()


def start(arguments: dict[str, Any]) -> tuple[dict[str, Any], Callable[..., Any]]:
    """See `common.serve`."""
    logging.set_verbosity_error()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(0)
    examples = load(arguments["examples_file"])
    size = arguments["examples"]
    batches = [
        batch_of(examples.take(list(range(begin, begin + size))))
        for begin in range(0, len(examples.inputs) - size + 1, size)
    ]
    config = hf_config(arguments["model"])
    policy = T5ForConditionalGeneration(config).train()
    # transformers 5 ignores tie_word_embeddings=False for T5; T5 1.1 has a separate projection.
    policy.lm_head.weight = torch.nn.Parameter(policy.lm_head.weight.detach().clone())
    networks = [policy]
    if arguments["objective"] == "dro_v":
        networks.append(Value(config).train())
    parameters = [parameter for network in networks for parameter in network.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.01, fused=True)
    used = 0

    def step(batch: dict[str, torch.Tensor]) -> float:
        optimizer.zero_grad(set_to_none=True)
        if arguments["objective"] == "sft":
            loss = policy(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                labels=batch["labels"],
            ).loss
        else:
            loss = dro_v_loss(policy, networks[1], batch)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    step(batches[0][0])

    def answer(seconds: float) -> dict[str, float]:
        nonlocal used
        seen = [0, 0]

        def one(_: int) -> None:
            nonlocal used
            batch, count, tokens = batches[used % len(batches)]
            used += 1
            seen[0] += count
            seen[1] += tokens
            step(batch)

        result = run_for(seconds, one)
        return {**result, "examples": seen[0], "tokens": seen[1], "memory": peak_memory()}

    padded = [tokens / (b["input_ids"].numel() + b["labels"].numel()) for b, _, tokens in batches]
    return {
        "batches": len(batches),
        "filled": float(np.mean(padded)),
        "examples_per_step": float(size),
        "parameters": sum(p.numel() for p in policy.parameters()),
        "attention": str(getattr(config, "_attn_implementation", None)),
    }, answer


if __name__ == "__main__":
    serve(start)
