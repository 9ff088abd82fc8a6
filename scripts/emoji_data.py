"""Makes images.npz and captions.jsonl of the study `emoji_retrieval` from two npm packages, unpacked in folders. Nothing is downloaded.

    npm pack emoji-datasource-twitter@16.0.0 emojibase-data@17.0.0       # then unpack both with tar xzf
    python scripts/emoji_data.py --pictures=emoji-datasource-twitter --names=emojibase-data --output=data/emoji

The pictures are Twemoji (CC BY 4.0, copyright Twitter, Inc and other contributors), the names emojibase's (MIT). An item is an emoji with a
picture and at least four tags. Its names are its label and its short codes. The label is trained on; of the short codes, those whose SHA-1
with the item's code is below 30 modulo 100 are held out for tests.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

SHORT_CODES = ("cldr", "emojibase", "github", "iamcal", "joypixels")
LEAST_TAGS = 4
HELD_OUT_PERCENT = 30
PIXELS = 32


def without_selector(code: str) -> str:
    """The code without variation selectors, which the two packages write differently."""
    return code.replace("-FE0F", "")


def is_held_out(code: str, query: str) -> bool:
    digest = hashlib.sha1((code + query).encode()).hexdigest()
    return int(digest, 16) % 100 < HELD_OUT_PERCENT


def picture(path: Path) -> np.ndarray:
    """The picture on white, uint8 [32, 32, 3]."""
    with Image.open(path) as image:
        small = image.convert("RGBA").resize((PIXELS, PIXELS), Image.Resampling.LANCZOS)
    white = Image.new("RGBA", small.size, "white")
    return np.asarray(Image.alpha_composite(white, small).convert("RGB"))


def read_json(path: Path) -> object:
    if not path.is_file():
        sys.exit(f"{path} is missing: give the unpacked folder of the npm package, which has it")
    return json.loads(path.read_text(encoding="utf-8"))


def queries(code: str, label: str, codes: dict) -> tuple[list[str], list[str]]:
    """Queries for training, the label first, and for testing."""
    found = set()
    for by_emoji in codes.values():
        given = by_emoji.get(code, [])
        found |= {each.replace("_", " ") for each in ([given] if isinstance(given, str) else given)}
    others = sorted(found - {label})
    train = [label, *(query for query in others if not is_held_out(code, query))]
    return train, [query for query in others if is_held_out(code, query)]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=Path, required=True, help="emoji-datasource-twitter")
    parser.add_argument("--names", type=Path, required=True, help="emojibase-data")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    drawn = {
        without_selector(record["unified"]): record["image"]
        for record in read_json(arguments.pictures / "emoji.json")
        if record["has_img_twitter"]
    }
    english = arguments.names / "en"
    codes = {name: read_json(english / "shortcodes" / f"{name}.json") for name in SHORT_CODES}
    lines, pictures = [], []
    for record in read_json(english / "data.json"):
        code, tags = record["hexcode"], record.get("tags", [])
        image = drawn.get(without_selector(code))
        if image is None or len(tags) < LEAST_TAGS:
            continue
        train, test = queries(code, record["label"], codes)
        lines.append(
            {
                "item": len(lines),
                "name": code,
                "label": record["label"],
                "tags": tags,
                "train_queries": train,
                "test_queries": test,
            }
        )
        pictures.append(picture(arguments.pictures / "img" / "twitter" / "64" / image))
    arguments.output.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (arguments.output / "captions.jsonl").write_text(text, encoding="utf-8")
    np.savez_compressed(arguments.output / "images.npz", images=np.stack(pictures))
    held_out = sum(len(line["test_queries"]) for line in lines)
    print(f"{arguments.output} holds {len(lines)} items; {held_out} queries are held out")
    return 0


if __name__ == "__main__":
    sys.exit(main())
