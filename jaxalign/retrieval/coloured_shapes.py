"""Generated pictures of coloured shapes with captions: for tests and for the documentation of retrieval.

Every picture is one shape with a colour, a size and a place. A caption names all four, in one of several wordings; no caption for testing
is one for training.
"""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from jaxalign import files
from jaxalign.errors import require_range

COLOURS = {
    "red": (214, 40, 40),
    "green": (60, 160, 70),
    "blue": (40, 90, 200),
    "yellow": (240, 200, 40),
    "purple": (140, 60, 170),
    "orange": (240, 130, 30),
    "black": (20, 20, 20),
    "pink": (245, 150, 190),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond")
SIZES = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
PLACES = {
    "left": ("on the left", "at the left side"),
    "right": ("on the right", "at the right side"),
    "top": ("at the top", "in the upper part"),
    "bottom": ("at the bottom", "in the lower part"),
    "middle": ("in the middle", "in the centre"),
}
_CENTRES = {
    "left": (0.5, 0.27),
    "right": (0.5, 0.73),
    "top": (0.27, 0.5),
    "bottom": (0.73, 0.5),
    "middle": (0.5, 0.5),
}
_RADII = {"small": 0.12, "large": 0.24}
_WORDINGS = (
    "a {size} {colour} {shape} {place}",
    "{place} , a {size} {colour} {shape}",
    "a {shape} that is {size} and {colour} {place}",
    "{colour} {shape} , {size} , {place}",
)


class Shape(NamedTuple):
    """What a picture shows."""

    colour: str
    shape: str
    size: str
    place: str

    @property
    def name(self) -> str:
        """The id of the item."""
        return "_".join(self)


def draw(shown: Shape, pixels: int) -> UInt8[np.ndarray, "pixels pixels 3"]:
    """Returns the picture of a shape on white."""
    rows, columns = np.mgrid[0:pixels, 0:pixels] / pixels + 0.5 / pixels
    centre = _CENTRES[shown.place]
    y, x = (rows - centre[0]) / _RADII[shown.size], (columns - centre[1]) / _RADII[shown.size]
    picture = np.full((pixels, pixels, 3), 255, np.uint8)
    picture[_inside(shown.shape, x, y)] = COLOURS[shown.colour]
    return picture


def _inside(shape: str, x: np.ndarray, y: np.ndarray) -> Bool[np.ndarray, "pixels pixels"]:
    distance = np.hypot(x, y)
    inside = {
        "circle": distance < 1,
        "square": np.maximum(abs(x), abs(y)) < 0.85,
        "triangle": (y < 0.8) & (y > 2 * abs(x) - 1),
        "cross": (np.minimum(abs(x), abs(y)) < 0.3) & (np.maximum(abs(x), abs(y)) < 1),
        "ring": (distance < 1) & (distance > 0.6),
        "diamond": abs(x) + abs(y) < 1.1,
    }
    return inside[shape]


def captions(shown: Shape) -> list[str]:
    """Returns all captions of a picture."""
    return [
        wording.format(size=size, colour=shown.colour, shape=shown.shape, place=place)
        for wording in _WORDINGS
        for size in SIZES[shown.size]
        for place in PLACES[shown.place]
    ]


def write_shapes(
    folder: str,
    *,
    num_items: int = 120,
    train_captions: int = 6,
    test_captions: int = 1,
    pixels: int = 32,
    seed: int = 0,
) -> None:
    """Writes pictures as PNG files, `items.jsonl`, `train.jsonl` and `test.jsonl` with captions as queries.

    Args:
      folder: the folder; it is made if it does not exist.
      num_items: pictures, of the 480 that there are.
      train_captions, test_captions: captions of a picture; together at most 24.
      pixels: width and height.
      seed: chooses pictures and captions.
    """
    from PIL import Image

    every = [Shape(*parts) for parts in itertools.product(COLOURS, SHAPES, SIZES, PLACES)]
    wordings = len(captions(every[0]))
    require_range("write_shapes", f"[1, {len(every)}]", num_items=num_items)
    require_range("write_shapes", f"[1, {wordings - 1}]", train_captions=train_captions)
    require_range("write_shapes", f"[0, {wordings - train_captions}]", test_captions=test_captions)
    rng = random.Random(f"shapes {seed}")
    root = Path(folder).expanduser()
    (root / "pictures").mkdir(parents=True, exist_ok=True)
    lines: dict[str, list[dict[str, object]]] = {"items": [], "train": [], "test": []}
    for shown in rng.sample(every, num_items):
        image = f"pictures/{shown.name}.png"
        Image.fromarray(draw(shown, pixels)).save(root / image)
        lines["items"].append({"item": shown.name, "image": image, "text": captions(shown)[0]})
        chosen = rng.sample(captions(shown), train_captions + test_captions)
        for number, caption in enumerate(chosen):
            split = "train" if number < train_captions else "test"
            lines[split].append({"query": caption, "item": shown.name})
    for name, records in lines.items():
        text = "".join(json.dumps(record) + "\n" for record in records)
        files.write_text(root / f"{name}.jsonl", text)
