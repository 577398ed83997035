"""An uploaded image, decoded and written anew: what leaves here was made by our own encoder.

Neither the name nor the type that the browser said is believed. Sizes are looked at before anything is decompressed,
and nothing but the pixels (and the frames of an animation) goes into the new file: no place, camera or comment.
Knows nothing of Django or of where images are kept.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from io import BytesIO
from typing import IO, Any, NamedTuple

from PIL import Image, ImageOps, ImageSequence

from adcore.errors import AdcoreError

# Ad networks take 150 KiB for a whole creative; a page waits for it. A photograph from a camera is refused.
FILE_BYTES_MAX = 4 << 20
# The largest size of a creative that anybody shows, at three pixels a CSS pixel; whatever the placements say.
PIXELS_MAX = 6000 * 4000
# Of the new file: a palette of 256 colours becomes three bytes a pixel.
ENCODED_BYTES_MAX = 2 * FILE_BYTES_MAX
# Thirty seconds, the most that ad networks allow an animation, of ten frames each.
FRAMES_MAX = 300
# Of all frames together: this much is held in memory, at four bytes each.
ANIMATION_PIXELS_MAX = 40_000_000
SCALES = (1, 2, 3)

Size = tuple[int, int]
"""Width and height, in CSS pixels."""

_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}
_SUFFIXES = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "GIF": "gif"}


class ImageError(AdcoreError):
    """The file is no image that can be shown; the text says why."""


class EncodedImage(NamedTuple):
    """A file to keep. Its name follows from its content, so that it can be cached for ever."""

    name: str
    content_type: str
    content: bytes
    width: int
    height: int


def check_file(length: int) -> None:
    """Raises ImageError for a file that is not even opened."""
    if length > FILE_BYTES_MAX:
        raise ImageError(f"The file has more than {FILE_BYTES_MAX >> 20} MiB")


def decode_image(file: IO[bytes], size: Size, largest: Size | None = None) -> EncodedImage:
    """The image in a file, for a creative of `size` where placements go up to `largest`. Raises ImageError."""
    raw = file.read(FILE_BYTES_MAX + 1)
    check_file(len(raw))
    if largest is not None and (size[0] > largest[0] or size[1] > largest[1]):
        raise ImageError(f"The creative is {size[0]} × {size[1]}, larger than any placement")
    try:
        with _pixels_bounded(), Image.open(BytesIO(raw), formats=list(_TYPES)) as image:
            return _encode(image, size)
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError("The image has more pixels than any creative") from error
    except MemoryError as error:
        raise ImageError("The image takes more memory to be read than any creative") from error
    # Of damaged files Pillow's decoders raise whatever their reading comes upon.
    except Exception as error:
        raise ImageError("The file is no PNG, JPEG, WebP or GIF image, or a damaged one") from error


@contextmanager
def _pixels_bounded() -> Iterator[None]:
    """What is beyond Pillow's bound on pixels is an error. `_encode` lowers the bound, which is one of the process."""
    before = Image.MAX_IMAGE_PIXELS
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _encode(image: Image.Image, size: tuple[int, int]) -> EncodedImage:
    assert image.format is not None
    # Before a pixel is decoded.
    if image.width * image.height > PIXELS_MAX:
        raise ImageError(f"The image has {image.width} × {image.height} pixels, more than any creative")
    # A photograph may lie on its side; only its decoder knows, after the last pixel.
    if not (_fits(image, size) or _fits(image, size[::-1])):
        raise _misfit(image, size)
    # A frame of an animation may say that it is larger than the whole.
    Image.MAX_IMAGE_PIXELS = image.width * image.height
    frames = getattr(image, "n_frames", 1)
    if frames > FRAMES_MAX or (frames > 1 and frames * image.width * image.height > ANIMATION_PIXELS_MAX):
        raise ImageError(f"The animation is too long: {frames} frames of {image.width} × {image.height} pixels")
    content, shown = BytesIO(), ImageOps.exif_transpose(image) if frames == 1 else image
    if not _fits(shown, size):
        raise _misfit(shown, size)
    if frames == 1:
        _bare(shown, image.format).save(content, image.format, **_options(image.format))
    else:
        pictures = [_bare(frame, image.format) for frame in ImageSequence.Iterator(image)]
        pictures[0].save(
            content,
            image.format,
            save_all=True,
            append_images=pictures[1:],
            duration=[picture.info["duration"] for picture in pictures],
            loop=image.info.get("loop", 0),
            **_options(image.format),
        )
    encoded = content.getvalue()
    if len(encoded) > ENCODED_BYTES_MAX:
        raise ImageError(f"The image has more than {ENCODED_BYTES_MAX >> 20} MiB once it is written anew")
    name = f"{sha256(encoded).hexdigest()[:40]}.{_SUFFIXES[image.format]}"
    return EncodedImage(name, _TYPES[image.format], encoded, shown.width, shown.height)


def _fits(image: Image.Image, size: tuple[int, int]) -> bool:
    return any(image.size == (size[0] * scale, size[1] * scale) for scale in SCALES)


def _misfit(image: Image.Image, size: tuple[int, int]) -> ImageError:
    return ImageError(
        f"The image has {image.width} × {image.height} pixels, and the creative is {size[0]} × {size[1]}: "
        "make it that, or two or three times as large"
    )


def _bare(image: Image.Image, image_format: str) -> Image.Image:
    """The pixels alone, in a mode that the format writes. A colour profile goes too: browsers take them for sRGB."""
    has_alpha = image.has_transparency_data and image_format != "JPEG"
    bare = image.convert("RGBA" if has_alpha else "RGB")
    bare.info = {"duration": image.info.get("duration", 100)}
    return bare


def _options(image_format: str) -> dict[str, Any]:
    if image_format == "JPEG":
        return {"quality": 88, "optimize": True, "progressive": True}
    return {"quality": 88, "method": 4} if image_format == "WEBP" else {"optimize": True}
