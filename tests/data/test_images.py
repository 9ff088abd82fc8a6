"""Images of records: read from every kind of file, checked, cached as pixels, and placed in batches; text alone is as before."""

import dataclasses
import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from jaxalign.data.batches import make_batch
from jaxalign.data.cache import cache
from jaxalign.data.cache_metadata import CacheMetadata
from jaxalign.data.examples import decode_example, encode_example, make_example
from jaxalign.data.images import ImageFormat, ImageReader
from jaxalign.data.logged_responses import read_responses
from jaxalign.data.pipeline import one_pass
from jaxalign.data.record_fields import RecordError
from jaxalign.data.rejections import DataError
from jaxalign.data.task_cache import TaskCache
from jaxalign.networks.image_tokens import IMAGE_TOKENS, PATCHES
from jaxalign.selection.usable import pair_line
from tests.fixtures import shapes

FORMAT = ImageFormat(8, 4)
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    """One picture in every kind of file, and files that are no pictures."""
    (tmp_path / "inner").mkdir()
    Image.fromarray(PIXELS[1]).save(tmp_path / "inner" / "one.png")
    Image.fromarray(PIXELS[1]).save(tmp_path / "one.jpg", quality=95)
    transparent = np.dstack([PIXELS[1], np.full((8, 8), 0, np.uint8)])
    Image.fromarray(transparent).save(tmp_path / "clear.png")
    Image.fromarray(PIXELS[1, :6]).save(tmp_path / "flat.png")
    np.save(tmp_path / "one.npy", PIXELS[1])
    np.save(tmp_path / "gray.npy", PIXELS[1, :, :, 0])
    np.save(tmp_path / "floats.npy", PIXELS[1] / 255)
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    np.save(tmp_path / "all.npy", PIXELS)
    np.savez(tmp_path / "all.npz", images=PIXELS, floats=PIXELS / 255)
    np.savez_compressed(tmp_path / "small.npz", images=PIXELS)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "link.png").symlink_to(tmp_path / "inner" / "one.png")
    (tmp_path / "away").symlink_to(tmp_path / "inner")
    return tmp_path


def read(folder, value):
    pixels = ImageReader(FORMAT).read(value, str(folder / "data.jsonl"))
    return np.frombuffer(pixels, np.uint8).reshape(8, 8, 3)


@pytest.mark.parametrize(
    "value",
    [
        "inner/one.png",
        "one.npy",
        {"file": "one.npy"},
        {"file": "all.npy", "row": 1},
        {"file": "all.npz", "key": "images", "row": 1},
        {"file": "small.npz", "key": "images", "row": 1},
    ],
)
def test_every_kind_of_file_gives_the_same_pixels(folder, value):
    np.testing.assert_array_equal(read(folder, value), PIXELS[1])


def test_other_pixels_become_rgb(folder):
    np.testing.assert_array_equal(read(folder, "gray.npy"), np.repeat(PIXELS[1, :, :, :1], 3, 2))
    assert np.all(read(folder, "clear.png") == 255), "transparent pixels are white"
    assert np.abs(read(folder, "one.jpg").astype(int) - PIXELS[1]).mean() < 60


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "image is a number, not a path"),
        ({"key": "images"}, "not a path or an object with 'file'"),
        ({"file": "one.npy", "index": 1}, "unknown key 'index'"),
        ("nowhere.png", "'nowhere.png' does not exist beside the data"),
        ("one.npy/x.png", "does not exist"),
        ("../one.npy", "not a path inside the folder"),
        ("inner/../one.npy", "not a path inside the folder"),
        ("/etc/passwd", "not a path inside the folder"),
        ("", "not a path inside the folder"),
        ("a\0b", "not a path inside the folder"),
        ("link.png", "behind a symbolic link"),
        ("away/one.png", "behind a symbolic link"),
        ("text.png", "the image 'text.png' is none .PNG, JPEG"),
        ("text.npz", "needs the key of an array"),
        ({"file": "text.npz", "key": "x"}, "cannot be read: File is not a zip file"),
        ({"file": "all.npz", "key": "x"}, "there is no array 'x'"),
        ({"file": "all.npz", "key": "floats", "row": 0}, "holds float64, not uint8"),
        ({"file": "all.npz", "key": "images", "row": 3}, "row 3 is not one of the 3"),
        ({"file": "all.npz", "key": "images", "row": -1}, "row -1 is not one"),
        ({"file": "all.npz", "key": "images", "row": True}, "row True is not one"),
        (
            {"file": "all.npz", "key": "images"},
            "has the shape 3 x 8 x 8 x 3; wanted .height, width.",
        ),
        ({"file": "inner/one.png", "row": 1}, "is no array, so it has no key or row"),
        ("floats.npy", "holds float64, not uint8"),
        ("objects.npy", "cannot be read: .*Python objects"),
        ("flat.png", "has 6 x 8 pixels; wanted 8 x 8"),
        ("inner", "cannot be read"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(folder, value, message):
    with pytest.raises(RecordError, match=message) as caught:
        read(folder, value)
    assert caught.value.reason == "unreadable_image" and "\n" not in str(caught.value)


def test_an_array_that_claims_to_be_larger_than_its_file_is_not_read(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (1 << 40, 8, 8, 3)}
    )

    with zipfile.ZipFile(tmp_path / "large.npz", "w") as archive:
        archive.writestr("images.npy", header.getvalue())
    with pytest.raises(RecordError, match="is larger than its file"):
        read(tmp_path, {"file": "large.npz", "key": "images", "row": 0})


@pytest.mark.parametrize(
    ("shape", "message"), [((-1, 8, 8, 3), "larger than"), ((), "a single number")]
)
def test_arrays_of_impossible_shapes_are_refused(tmp_path, shape, message):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    with zipfile.ZipFile(tmp_path / "odd.npz", "w") as archive:
        archive.writestr("images.npy", header.getvalue() + bytes(192))
    with pytest.raises(RecordError, match=message):
        read(tmp_path, {"file": "odd.npz", "key": "images", "row": 0})


def test_damaged_headers_and_archives_of_images_are_refused(tmp_path):
    np.save(tmp_path / "image.npy", np.zeros((8, 8, 3), np.uint8))
    header = (tmp_path / "image.npy").read_bytes().replace(b"}", b"(")
    (tmp_path / "image.npy").write_bytes(header)
    with zipfile.ZipFile(tmp_path / "image.npz", "w") as archive:
        archive.writestr("images.npy", header)
    content = bytearray((tmp_path / "image.npz").read_bytes())
    content[content.rindex(b"PK\1\2") + 10] = 99  # a method of compression that does not exist
    (tmp_path / "image.npz").write_bytes(content)
    for value in ("image.npy", {"file": "image.npz", "key": "images"}):
        with pytest.raises(RecordError, match="cannot be read"):
            read(tmp_path, value)


def test_sizes_that_do_not_fit_are_refused():
    for sizes in ((8, 3), (0, 4), (8, 0), (-8, 4)):
        with pytest.raises(ValueError, match="image_size"):
            ImageFormat(*sizes)


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    pictures, captions = shapes.write(folder, count=40)
    lines = (folder / "data.jsonl").read_text().splitlines()
    lines += ['{"prompt": "plain", "response": "text"}', lines[0].replace("images.npz", "no.npz")]
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
    metadata = cache(
        "shapes", str(folder / "cache"), kind="seq2seq", train_file=str(folder / "data.jsonl"),
        max_input_length=32, max_target_length=16, image_size=8, patch_size=4,
    )  # fmt: skip
    return folder, metadata, pictures, captions


def test_a_cache_holds_pixels_and_counts_what_is_none(cached):
    folder, metadata, pictures, captions = cached
    assert metadata.images == CacheMetadata.read(str(folder / "cache")).images == FORMAT
    assert sum(metadata.num_examples.values()) == 41
    assert metadata.rejected_because("unreadable_image") == 1
    assert len(metadata.splits) == 2, "equal prompts with different images are different prompts"
    found = 0
    for split in metadata.splits:
        for example in TaskCache(str(folder / "cache")).split(split):
            if example.image is None:
                assert example.prompt == "plain" and max(example.inputs) < 300
                continue
            assert example.responses == (captions[example.line - 1],)
            assert example.image == pictures[example.line - 1].tobytes()
            assert example.inputs[:4].tolist() == list(FORMAT.tokens)
            found += 1
    assert found == 40


def test_batches_point_to_the_images_of_their_row(cached):
    folder, _, pictures, _ = cached
    store = TaskCache(str(folder / "cache"))
    examples = list(store.split("train"))
    for pack in (False, True):
        count = 0
        for batch in one_pass(
            store, "train", feature_lengths={"inputs": 32, "targets": 16}, batch_size=4, pack=pack,
            row_lengths={"inputs": 64, "targets": 64} if pack else None,
        ):  # fmt: skip
            tokens, segments = batch["encoder_input_tokens"], batch["encoder_segment_ids"]
            patches = batch[PATCHES]
            assert patches.dtype == np.uint8
            for row, place in np.argwhere(batch["example_ids"] >= 0):
                example = examples[batch["example_ids"][row, place]]
                own = tokens[row][segments[row] == place + 1]
                if example.image is None:
                    assert not patches[row, place].any()
                    continue
                count += 1
                pointers = own[own >= IMAGE_TOKENS] - IMAGE_TOKENS
                table = patches[row].reshape(-1, 48)
                restored = table[pointers].reshape(2, 2, 4, 4, 3).swapaxes(1, 2).reshape(8, 8, 3)
                np.testing.assert_array_equal(restored, pictures[example.line - 1])
        assert count == sum(example.image is not None for example in examples)


def test_a_prompt_has_the_length_that_its_image_leaves(cached, tmp_path):
    folder, *_ = cached
    settings = {"kind": "seq2seq", "train_file": str(folder / "data.jsonl"), "image_size": 8}
    made = cache("s", str(tmp_path / "c"), max_input_length=9, patch_size=4, **settings)
    assert made.noted("truncated_prompts") == 40
    assert max(split.prompt_lengths.max for split in made.splits.values()) == 9
    with pytest.raises(DataError, match=r"An image has 64 patches.*max_input_length=64 leaves no"):
        cache("s", str(tmp_path / "d"), max_input_length=64, patch_size=1, **settings)
    with pytest.raises(DataError, match="read from data files only"):
        cache("synthetic_triplets", str(tmp_path / "e"), image_size=8, patch_size=4)


def test_images_are_not_read_unasked_and_that_is_said(cached, tmp_path):
    folder, *_ = cached
    made = cache(
        "shapes", str(tmp_path / "cache"), kind="seq2seq", train_file=str(folder / "data.jsonl"),
        duplicates="keep", splits=("train",),
    )  # fmt: skip
    assert "41 records have an image, which is not read: give --image_size" in made.report
    text = (tmp_path / "cache" / "metadata.json").read_text()
    assert "images" not in json.loads(text)


def test_examples_and_batches_of_text_are_the_bytes_of_before():
    example = make_example([5, 1], [[6, 1]], [0.5], None, prompt_id=3, prompt="p", responses=("r",))
    with_image = dataclasses.replace(example, image=b"123")
    assert len(encode_example(with_image)) > len(encode_example(example))
    assert b"\xa1m" not in encode_example(example)
    assert decode_example(encode_example(with_image)).image == b"123"
    shape = {"num_rows": 1, "input_length": 4, "target_length": 4, "examples_per_row": 1}
    batch = make_batch([[(0, example)]], responses_per_example=1, **shape)
    assert PATCHES not in batch


@pytest.mark.parametrize("kind", ["triplet", "candidates"])
def test_prompts_with_other_images_are_not_joined_and_keep_them(tmp_path, kind):
    path = tmp_path / "logged.jsonl"
    lines = []
    for image, texts in (("a.png", ("x", "y")), ("b.png", ("z",)), ("a.png", ("v",))):
        fields = {"prompt": "what is it?", "image": image}
        if kind == "candidates":
            lines.append({**fields, "responses": texts, "log_probs": [0.0] * len(texts)})
        else:
            lines += [{**fields, "response": text, "feedback": 1} for text in texts]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found, _ = read_responses(str(path), join_prompts=True)
    assert [list(group) for group in found.responses] == [["x", "y", "v"], ["z"]]
    assert [fields["image"] for fields in found.fields] == ["a.png", "b.png"]
    assert pair_line(found, 1, "z", "no")["image"] == "b.png"
