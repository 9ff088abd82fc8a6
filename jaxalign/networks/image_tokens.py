"""What data and networks agree on about images in prompts; without JAX, so that reading data does not load it."""

from __future__ import annotations

# Token IMAGE_TOKENS + i is patch i of a table. More than any vocabulary has pieces.
IMAGE_TOKENS = 1 << 24
PATCHES = "encoder_input_patches"  # of a batch, [rows, examples per row, patches, values]
TABLE = "prompt_images"  # beside the parameters: one table for all rows, [images, patches, values]


def check_image_sizes(owner: str, image_size: int, patch_size: int) -> None:
    """Raises ValueError unless both sizes are 0, or an image consists of whole patches."""
    if image_size == patch_size == 0:
        return
    if image_size < 1 or patch_size < 1 or image_size % patch_size:
        raise ValueError(
            f"{owner}.image_size is {image_size} and patch_size is {patch_size}; the image's side must be a multiple of the patch's, or "
            "both 0 for text only."
        )
