"""Pictures of any size: the two commands that read the field `image` read and refuse the same files."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from jaxalign.data.images import ImageFormat, ImageReader
from jaxalign.data.pictures import PictureReader, check_pixels, on_white, resized
from jaxalign.data.record_fields import RecordError
from jaxalign.errors import UserError


def read(folder, value):
    return PictureReader().read(value, str(folder / "items.jsonl"))


def test_pictures_are_resized_to_squares_of_rgb_on_white(tmp_path):
    half = Image.new("RGBA", (4, 8), (255, 0, 0, 255))
    half.paste((0, 0, 0, 0), (0, 4, 4, 8))
    half.save(tmp_path / "half.png")
    pixels = resized(read(tmp_path, "half.png"), 4)
    assert pixels.shape == (4, 4, 3) and pixels.dtype == np.uint8
    assert (pixels[:2] == (255, 0, 0)).all() and (pixels[2:] == 255).all()


def test_the_hidden_colour_of_transparent_pixels_does_not_show(tmp_path):
    black = np.zeros((2, 2, 4), np.uint8)
    black[:, 0] = (10, 20, 30, 255)
    np.save(tmp_path / "half.npy", black)
    assert np.abs(resized(read(tmp_path, "half.npy"), 1)[0, 0] - [132.5, 137.5, 142.5]).max() <= 1


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 1), (6, 4, 3), (6, 4, 4)])
def test_arrays_of_all_shapes_of_pictures_are_resized(tmp_path, shape):
    pixels = np.full((3, *shape), 90, np.uint8)
    if shape[2:] == (4,):
        pixels[..., 3] = 255
    np.savez(tmp_path / "all.npz", images=pixels)
    value = {"file": "all.npz", "key": "images", "row": 1}
    np.testing.assert_array_equal(resized(read(tmp_path, value), 2), np.full((2, 2, 3), 90))


def png_of_size(width, height):
    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(b"0" * 99)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.fixture
def bad(tmp_path):
    """Files that are no pictures."""
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(tmp_path / "deep.png")
    (tmp_path / "huge.png").write_bytes(png_of_size(30_000, 30_000))
    (tmp_path / "large.png").write_bytes(png_of_size(9_000, 9_500))
    (tmp_path / "text.png").write_text("not a picture")
    whole = io.BytesIO()
    Image.effect_noise((8, 8), 50).save(whole, "PNG")
    (tmp_path / "cut.png").write_bytes(whole.getvalue()[:60])
    Image.new("RGB", (8, 8)).save(tmp_path / "x.tiff")
    (tmp_path / "link.png").symlink_to(tmp_path / "deep.png")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("deep.png", "pixels of kind I;16; save it with 8 bits a value"),
        ("huge.png", "far more than 64000000 pixels"),
        ("large.png", "9500 x 9000 pixels"),
        ("text.png", "the image 'text.png' is none .PNG, JPEG"),
        ("x.tiff", "is none .PNG, JPEG"),
        ("cut.png", "cannot be read: .*truncated"),
        ("link.png", "behind a symbolic link"),
        ("../link.png", "not a path inside the folder"),
        ("none.png", "does not exist beside the data"),
    ],
)
def test_both_readers_refuse_what_is_no_picture_in_the_same_words(bad, name, message):
    with pytest.raises(RecordError, match=message) as of_items:
        read(bad, name)
    with pytest.raises(RecordError, match=message) as of_records:
        ImageReader(ImageFormat(8, 4)).read(name, str(bad / "data.jsonl"))
    assert "\n" not in str(of_items.value) and "0x" not in str(of_items.value)
    assert of_items.value.reason == of_records.value.reason == "unreadable_image"


def test_arrays_that_hold_no_picture_are_refused(tmp_path):
    for shape in ((4,), (2, 2, 2), (2, 3, 2, 3), (0, 4, 3)):
        np.save(tmp_path / "x.npy", np.zeros(shape, np.uint8))
        with pytest.raises(RecordError, match=r"has the shape|has 0 x 4 pixels"):
            read(tmp_path, "x.npy")
    with pytest.raises(UserError, match="pictures are uint8"):
        check_pixels(np.zeros((2, 4, 4, 3)), "x.npy")


def test_gray_and_rgb_stay_as_they_are():
    gray = np.arange(4, dtype=np.uint8).reshape(2, 2)
    np.testing.assert_array_equal(on_white(gray), np.repeat(gray[:, :, None], 3, axis=2))
