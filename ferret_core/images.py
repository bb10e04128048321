"""Opening images that somebody sent: checked before they are decoded, upright, RGB."""

from __future__ import annotations

import hashlib
import io
import re
from itertools import islice
from pathlib import Path

from PIL import ExifTags, Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_BYTES = 20 * 2**20
MAX_PIXELS = 50_000_000
MIN_SIDE, MAX_ASPECT = 8, 100

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by EXIF orientation

# A few bytes each, of which a decoder makes seconds or gigabytes if there are millions. Pictures have a dozen; as data that
# happen to look like them, thousands of segments and a few comments.
_MOST = {
    b"\xff\xd8": (
        (re.compile(rb"\xff\xda\x00(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)"), 100, "scans"),  # each is a pass over all pixels
        (re.compile(rb"\xff[\xe0-\xef\xfe]"), 20_000, "segments"),
        (re.compile(rb"Exif\0\0"), 100, "EXIF segments"),  # Pillow copies those before with each
    ),
    b"GIF8": ((re.compile(rb"\x21\xfe"), 5_000, "comments"),),
}  # by how a file begins

ImageSource = str | Path | bytes | Image.Image


class ImageError(ValueError):
    """Not an image we read, or a larger one than we accept. The message names the limit."""


def read_image_bytes(source: str | Path | bytes, max_bytes: int = MAX_BYTES) -> bytes:
    """The encoded image. Raises `ImageError` if it is larger than `max_bytes`; `FileNotFoundError` for a missing file."""
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise FileNotFoundError(f"image: no such file: {source}")
    size = len(source) if isinstance(source, bytes) else Path(source).stat().st_size
    if size > max_bytes:
        raise ImageError(f"image: {size:,} bytes; at most {max_bytes:,} are accepted")
    return source if isinstance(source, bytes) else Path(source).read_bytes()


def open_image(source: ImageSource, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An upright RGB image (EXIF rotation applied) from a path, encoded bytes or a PIL image.

    Raises:
        ImageError: not an image, truncated, too many bytes, pixels or parts, or absurdly shaped.
        FileNotFoundError: a path that does not exist.
    """
    if isinstance(source, Image.Image):
        image = source
        _check_shape(image, max_pixels)
    else:
        data = read_image_bytes(source, max_bytes)
        _check_parts(data)
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except Image.DecompressionBombError as error:
            raise ImageError(f"image: at most {max_pixels:,} pixels are accepted") from error
        except Exception as error:  # damaged files make Pillow raise almost anything
            raise ImageError(f"image: not one of {', '.join(FORMATS)}") from error
        _check_shape(image, max_pixels)  # by the header, before any pixel is decoded
    try:
        image.load()
        upright = _upright(image).convert("RGB")
        upright.info = {}  # it must not be turned again
        return upright
    except Exception as error:
        raise ImageError(f"image: truncated or damaged ({error})") from error


def image_bytes(source: ImageSource) -> bytes:
    """Encoded bytes of an image: a file's or the given ones as they are, a PIL image as PNG, upright and RGB."""
    if isinstance(source, Image.Image):
        buffer = io.BytesIO()
        open_image(source).save(buffer, "PNG")
        return buffer.getvalue()
    return read_image_bytes(source)


def image_id(data: bytes) -> str:
    """Content id of an encoded image: `sha256:` and the digest."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says. `ImageOps.exif_transpose` would also write the EXIF anew, and fail where that is odd."""
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # unreadable EXIF: a picture all the same
        turn = None
    return image if turn is None else image.transpose(turn)


def _check_parts(data: bytes) -> None:
    for beginning, limits in _MOST.items():
        if data.startswith(beginning):
            for pattern, most, parts in limits:
                if next(islice(pattern.finditer(data), most, None), None):
                    raise ImageError(f"image: more than {most:,} {parts}; save it anew without them")


def _check_shape(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(f"image: {width} x {height} pixels; at most {max_pixels:,} pixels are accepted")
    if min(width, height) < MIN_SIDE or max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(f"image: {width} x {height} pixels; sides must be at least {MIN_SIDE}, and at most {MAX_ASPECT} : 1")
