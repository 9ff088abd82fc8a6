"""Images in prompts: they matter, each for its own prompt, packed or not, in every network, decoded as scored."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.data.batches import make_batch
from jaxalign.data.examples import make_example
from jaxalign.data.images import ImageFormat
from jaxalign.errors import UserError
from jaxalign.inference.image_prompts import PromptImages, with_table
from jaxalign.inference.sampling import DecodingSettings, generate_tokens
from jaxalign.networks.config import T5Config
from jaxalign.networks.image_patches import ImageEmbedder
from jaxalign.networks.image_tokens import PATCHES, TABLE
from jaxalign.networks.policy import Policy
from jaxalign.networks.reward import RewardNetwork
from jaxalign.networks.value import ValueNetwork

FORMAT = ImageFormat(8, 4)
GENERATOR = np.random.default_rng(0)
IMAGES = [GENERATOR.integers(0, 256, 192).astype(np.uint8).tobytes() for _ in range(4)]
PROMPTS = [[*FORMAT.tokens, *GENERATOR.integers(2, 60, 3).tolist(), 1] for _ in IMAGES]
RESPONSES = [[*GENERATOR.integers(2, 60, 2).tolist(), 1] for _ in IMAGES]


def batch_of(images, per_row=1, prompts=PROMPTS):
    examples = [
        make_example(prompt, [response], None, None, prompt_id=7, image=image)
        for prompt, response, image in zip(prompts, RESPONSES, images, strict=True)
    ]
    numbered = list(enumerate(examples))
    rows = [numbered[start : start + per_row] for start in range(0, len(examples), per_row)]
    batch = make_batch(
        rows, num_rows=len(rows), input_length=10 * per_row, target_length=4 * per_row,
        examples_per_row=per_row, responses_per_example=1, images=FORMAT, with_feedback=False,
    )  # fmt: skip
    return batch


@pytest.fixture(scope="module")
def policy(tiny_config):
    return Policy(tiny_config.replace(image_size=8, patch_size=4, num_decoder_layers=1))


@pytest.fixture(scope="module")
def params(policy):
    return jax.device_get(policy.init(jax.random.key(0)))


_score = jax.jit(
    lambda policy, params, batch: policy.score(params, batch).log_probs[:, 0], static_argnums=0
)


@pytest.fixture(scope="module")
def scores(policy, params):
    return np.asarray(_score(policy, params, batch_of(IMAGES)))


def test_an_image_changes_its_own_prompt_and_no_other(policy, params, scores):
    changed = np.asarray(_score(policy, params, batch_of([IMAGES[3], *IMAGES[1:]])))
    assert abs(changed[0] - scores[0]) > 1e-3
    np.testing.assert_allclose(changed[1:], scores[1:], rtol=1e-6)
    # Every pixel is read: the last one as well.
    last = IMAGES[1][:-1] + bytes([IMAGES[1][-1] ^ 0x80])
    assert _score(policy, params, batch_of([IMAGES[0], last, *IMAGES[2:]]))[1] != scores[1]


def test_permuted_images_permute_the_results(policy, params):
    same = [PROMPTS[0]] * 4
    order = [2, 0, 3, 1]
    batch, permuted = (
        batch_of(each, prompts=same) for each in (IMAGES, [IMAGES[i] for i in order])
    )
    for name in batch:
        if name.startswith("decoder"):
            for each in (batch, permuted):
                each[name] = np.repeat(each[name][:1], 4, axis=0)
    found = _score(policy, params, permuted)
    np.testing.assert_allclose(found, _score(policy, params, batch)[np.array(order)], rtol=1e-5)
    assert len(set(np.round(found, 4).tolist())) == 4


def test_packed_rows_give_the_same_scores(policy, params, scores):
    packed = batch_of([*IMAGES[:3], None], per_row=2, prompts=[*PROMPTS[:3], PROMPTS[3][4:]])
    found = np.asarray(_score(policy, params, packed))
    np.testing.assert_allclose(found[:3], scores[:3], rtol=1e-5)
    alone = batch_of([None] * 4, prompts=[prompt[4:] for prompt in PROMPTS])
    np.testing.assert_allclose(found[3], _score(policy, params, alone)[3], rtol=1e-5)


def test_text_needs_no_images(policy, params, tiny_config):
    batch = batch_of([None] * 4, prompts=[prompt[4:] for prompt in PROMPTS])
    del batch[PATCHES]
    stock = Policy(policy.config.stock())
    inner = {name: branch for name, branch in params.items() if name != "image_embedder"}
    assert jax.tree.map(jnp.shape, inner) == jax.tree.map(jnp.shape, stock.abstract_params())
    np.testing.assert_array_equal(_score(policy, params, batch), _score(stock, inner, batch))
    same = stock.init(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, inner, jax.device_get(same))


def test_a_patch_is_one_linear_map_of_its_pixels(policy, params):
    patches = FORMAT.patches(IMAGES[0])
    picture = np.frombuffer(IMAGES[0], np.uint8).reshape(8, 8, 3)
    np.testing.assert_array_equal(patches[1].reshape(4, 4, 3), picture[:4, 4:])
    own = params["image_embedder"]
    found = ImageEmbedder(policy.config).apply({"params": own}, patches[None])[0]
    expected = (patches / 127.5 - 1) @ own["patch"]["kernel"] + own["places"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_values_and_rewards_read_images(policy, params):
    value, reward = ValueNetwork(policy.config), RewardNetwork(policy.config)
    of_value = value.from_policy(jax.random.key(1), params)
    of_value["head"]["kernel"] = of_value["head"]["kernel"] * 100

    @jax.jit
    def read(batch):
        return value.values(of_value, batch), reward.rewards(of_value, batch)[:, 0]

    plain, packed = read(batch_of(IMAGES)), read(batch_of(IMAGES, per_row=2))
    other = read(batch_of([IMAGES[3], *IMAGES[1:]]))
    for of_plain, of_packed, of_other in zip(plain, packed, other, strict=True):
        np.testing.assert_allclose(of_packed, of_plain, rtol=1e-4)
        assert abs(of_other[0] - of_plain[0]) > 1e-4
        np.testing.assert_allclose(of_other[1:], of_plain[1:], rtol=1e-5)


@pytest.mark.parametrize("beams", [0, 2])
def test_responses_to_images_have_the_scores_of_teacher_forcing(policy, params, beams):
    settings = DecodingSettings(
        max_target_length=4, num_samples=1, num_beams=beams, temperature=0.0 if beams else 1.0
    )
    images = PromptImages(FORMAT, IMAGES)
    prompts = [PROMPTS[0]] * 4
    tokens, log_probs = generate_tokens(
        policy, params, prompts, settings, batch_size=4, images=images
    )
    table, placed = with_table(params, prompts, images, 4)
    assert table[TABLE].shape == (4, 4, 48) and placed[2][0] == placed[0][0] + 8
    batch = batch_of(IMAGES, prompts=prompts)
    targets = tokens[:, 0]
    batch |= {
        "decoder_target_tokens": targets,
        "decoder_input_tokens": np.pad(targets[:, :-1], ((0, 0), (1, 0))),
        "decoder_segment_ids": (targets > 0).astype(np.int32),
        "decoder_loss_weights": (targets > 0).astype(np.float32),
    }
    np.testing.assert_allclose(log_probs[:, 0], _score(policy, params, batch), atol=1e-4)


def test_other_formats_are_refused_in_one_line(policy, params):
    batch = batch_of(IMAGES)
    for config, message in (
        (policy.config.stock(), "the network reads none: set IMAGE_SIZE"),
        (policy.config.replace(patch_size=2), "IMAGE_SIZE 8 and PATCH_SIZE 2 reads 16 with 12"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            jax.eval_shape(Policy(config).score, params, batch)
        assert "\n" not in str(caught.value)


def test_settings_that_do_not_fit_are_refused():
    sizes = dataclasses.asdict(T5Config(64, 16, 2, 8, 32, 2, 2))
    for image_size, patch_size in ((8, 3), (8, 0), (0, 4), (-8, 4)):
        with pytest.raises(ValueError, match=r"T5Config\.image_size is .* multiple of the patch's"):
            T5Config(**sizes | {"image_size": image_size, "patch_size": patch_size})
