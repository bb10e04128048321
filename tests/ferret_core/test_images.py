"""Opening pictures that somebody sent."""

import io

import pytest
from PIL import Image

from ferret_core.images import ImageError, image_bytes, open_image

IMAGE = Image.effect_noise((80, 60), 90).convert("RGB")


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_images_are_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    assert open_image(encoded(IMAGE, "JPEG", exif=exif)).size == (60, 80)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not one of JPEG"),
        (b"GIF89a not really", "not one of JPEG"),
        (encoded(IMAGE)[:-2000], "truncated or damaged"),
        (encoded(Image.new("1", (9000, 9000))), r"9000 x 9000 pixels; at most 50,000,000"),
        (encoded(Image.new("1", (20_000, 20_000))), "at most 50,000,000 pixels"),
        (encoded(Image.new("1", (4, 400))), "sides must be at least 8"),
        (b"x" * (20 * 2**20 + 1), "bytes; at most 20,971,520"),
    ],
    ids=["empty", "not-an-image", "truncated", "bomb", "larger-bomb", "sliver", "too-large"],
)
def test_bad_images_say_what_is_wrong(data, says):
    with pytest.raises(ImageError, match=says):
        open_image(data)


def test_a_picture_is_turned_once():
    exif = Image.Exif()
    exif[0x0112] = 6
    once = open_image(encoded(IMAGE, "JPEG", exif=exif))
    assert open_image(once).tobytes() == once.tobytes()
    assert open_image(once).size == once.size


def test_odd_exif_is_no_reason_to_refuse_a_picture():
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    data = encoded(IMAGE, "JPEG", exif=exif)
    broken = data.replace(b"\x01\x0f\x00\x02", b"\x01\x0f\x00\x05", 1)  # says that the maker's name is a fraction
    assert broken != data
    assert open_image(broken).size == (60, 80)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "YCbCr", "F"])
def test_a_picture_in_memory_is_sent_as_it_would_be_seen(mode):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = IMAGE.convert("L").convert(mode) if mode == "F" else IMAGE.convert(mode)
    picture.getexif().update(exif)
    assert open_image(image_bytes(picture)).tobytes() == open_image(picture).tobytes()
