"""Makes tests/goldens/huggingface_t5gemma2: a tiny random T5Gemma 2 of transformers, and what transformers computes with it.

    python scripts/t5gemma2_golden.py FOLDER

It was run with transformers 5.24.0 and torch 2.13.0 on a CPU. jaxalign does not need these packages.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import T5Gemma2Config, T5Gemma2ForConditionalGeneration

EOI, LENGTH = 60, 8
TEXT = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "query_pre_attn_scalar": 10,
    "max_position_embeddings": 64,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
}
# The window of the encoder is even and that of the decoder odd; both are shorter than the texts.
ENCODER = TEXT | {"num_hidden_layers": 3, "sliding_window": 4, "sliding_window_pattern": 2}
DECODER = TEXT | {"num_hidden_layers": 4, "sliding_window": 3, "sliding_window_pattern": 3}
VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 4,
    "intermediate_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 4,
    "patch_size": 2,
    "vision_use_head": False,
}


def tiny_model() -> T5Gemma2ForConditionalGeneration:
    """A model whose parameters are all random, also those that begin as zeros."""
    encoder = {
        "text_config": ENCODER,
        "vision_config": VISION,
        "mm_tokens_per_image": 4,
        "boi_token_index": 59,
        "eoi_token_index": EOI,
    }
    config = T5Gemma2Config(encoder=encoder, decoder=DECODER, image_token_index=61)
    config._attn_implementation = "eager"
    model = T5Gemma2ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
            parameter.normal_(std=0.15 if name.endswith("embed_tokens.weight") else scale)
    model.generation_config.decoder_start_token_id = 2
    return model


def main(folder: Path) -> None:
    """Writes the model and the numbers."""
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    model = tiny_model()
    model.save_pretrained(folder)
    prompts = generator.integers(2, 64, (4, 11))
    targets = generator.integers(3, 64, (4, LENGTH))
    prompts[0, 2] = targets[1, 2] = EOI
    for row, (source, target) in enumerate(((11, 8), (7, 5), (3, 8), (9, 2))):
        prompts[row, source - 1 :] = [1] + [0] * (11 - source)
        targets[row, target - 1 :] = [1] + [0] * (LENGTH - target)
    inputs = np.pad(targets[:, :-1], ((0, 0), (1, 0)), constant_values=2)
    tokens, mask = torch.tensor(prompts), torch.tensor(prompts > 0, dtype=torch.long)
    with torch.no_grad():
        out = model(input_ids=tokens, attention_mask=mask, decoder_input_ids=torch.tensor(inputs))
        greedy = model.generate(
            input_ids=tokens, attention_mask=mask, max_new_tokens=LENGTH, do_sample=False
        )
    chosen = out.logits.log_softmax(-1).gather(-1, torch.tensor(targets)[..., None])[..., 0]
    np.savez_compressed(
        folder / "expected.npz",
        encoder_input_tokens=prompts.astype(np.int32),
        decoder_target_tokens=targets.astype(np.int32),
        encoded=out.encoder_last_hidden_state.numpy(),
        logits=out.logits.numpy(),
        sequence_log_probs=(chosen.numpy() * (targets > 0)).sum(-1),
        greedy=greedy.numpy().astype(np.int32),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
