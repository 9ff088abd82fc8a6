"""Tiny networks, random packed batches, and the goldens made with T5X."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.networks.config import T5Config
from jaxalign.networks.policy import Policy

GOLDENS = Path(__file__).resolve().parent.parent / "goldens"
GOLDEN_DIMENSIONS = {
    "vocab_size": 512,
    "emb_dim": 32,
    "num_heads": 4,
    "head_dim": 8,
    "mlp_dim": 64,
    "num_encoder_layers": 2,
    "num_decoder_layers": 3,
}
VARIANTS = {
    "t5_1_1_f32": {},
    "t5_1_0_f32": {"mlp_activations": ("relu",), "logits_via_embedding": True},
    "t5_1_1_bf16": {"dtype": "bfloat16"},
}


@dataclasses.dataclass(frozen=True)
class Golden:
    config: T5Config
    params: dict
    arrays: dict

    def group(self, prefix):
        """Arrays below `prefix/`."""
        return {
            key.removeprefix(f"{prefix}/"): array
            for key, array in self.arrays.items()
            if key.startswith(f"{prefix}/")
        }


def nest(flat):
    tree = {}
    for path, array in flat.items():
        branch = tree
        *parents, leaf = path.split(".")
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[leaf] = jnp.asarray(array)
    return tree


@pytest.fixture(scope="session")
def golden(request):
    """`golden(name)` loads one of VARIANTS, from the checkout or else from the shared folder."""
    cache = {}

    def load(name):
        if name not in cache:
            path = GOLDENS / f"{name}.npz"
            if not path.exists():
                path = request.getfixturevalue("shared_dir") / "goldens" / "t5x" / f"{name}.npz"
            with np.load(path, allow_pickle=False) as archive:
                arrays = {key: archive[key] for key in archive.files}
            config = T5Config(**GOLDEN_DIMENSIONS, **VARIANTS[name])
            loaded = Golden(config, {}, arrays)
            cache[name] = dataclasses.replace(loaded, params=nest(loaded.group("params")))
        return cache[name]

    return load


@pytest.fixture(scope="session")
def tiny_config():
    return T5Config(
        vocab_size=64,
        emb_dim=16,
        num_heads=2,
        head_dim=8,
        mlp_dim=32,
        num_encoder_layers=2,
        num_decoder_layers=2,
    )


@pytest.fixture(scope="session")
def tiny_params(tiny_config):
    return jax.device_get(Policy(tiny_config).init(jax.random.key(0)))


def shift_right(targets, segments):
    """Inputs of the decoder: targets one later within each segment, 0 at its start."""
    shifted = np.zeros_like(targets)
    shifted[:, 1:] = np.where(segments[:, 1:] == segments[:, :-1], targets[:, :-1], 0)
    return shifted


def pack(examples, *, rows, num_examples, num_responses, source_length, target_length):
    """A batch of `examples`, each (prompt, [response or None, ...]) of token lists, row by row."""
    batch = {
        "encoder_input_tokens": np.zeros((rows, source_length), np.int32),
        "encoder_segment_ids": np.zeros((rows, source_length), np.int32),
        "decoder_target_tokens": np.zeros((rows, target_length), np.int32),
        "decoder_segment_ids": np.zeros((rows, target_length), np.int32),
        "response_mask": np.zeros((rows, num_examples, num_responses), np.float32),
    }
    for number, (prompt, responses) in enumerate(examples):
        row, place = divmod(number, num_examples)
        start = np.count_nonzero(batch["encoder_segment_ids"][row])
        stop = start + len(prompt)
        batch["encoder_input_tokens"][row, start:stop] = prompt
        batch["encoder_segment_ids"][row, start:stop] = place + 1
        for index, response in enumerate(responses):
            if response is None:
                continue
            start = np.count_nonzero(batch["decoder_segment_ids"][row])
            stop = start + len(response)
            assert stop <= target_length
            batch["decoder_target_tokens"][row, start:stop] = response
            batch["decoder_segment_ids"][row, start:stop] = place * num_responses + index + 1
            batch["response_mask"][row, place, index] = 1
    segments = batch["decoder_segment_ids"]
    batch["decoder_input_tokens"] = shift_right(batch["decoder_target_tokens"], segments)
    batch["decoder_loss_weights"] = (segments > 0).astype(np.float32)
    return batch


@pytest.fixture(scope="session")
def make_batch():
    return pack


@pytest.fixture(scope="session")
def random_examples():
    """`random_examples(seed, count, num_responses)`: prompts of 3-6 tokens, responses of 2-5, all ending in EOS."""

    def make(seed, count, num_responses, vocab_size=64):
        rng = np.random.default_rng(seed)

        def text(low, high):
            return [*rng.integers(2, vocab_size, rng.integers(low, high)).tolist(), 1]

        return [(text(2, 6), [text(1, 5) for _ in range(num_responses)]) for _ in range(count)]

    return make
