"""Opening pictures that somebody sent."""

import io
import struct
import subprocess
import sys
import zipfile
import zlib
from contextlib import suppress

import pytest
from PIL import Image

from ferret_core.images import FORMATS, ImageError, image_bytes, open_image

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


def segments(segment, count, kind="JPEG"):
    """A picture with parts that it does not need."""
    data = encoded(IMAGE, kind)
    start = 2 if kind == "JPEG" else data.index(b"\x21\xf9") if b"\x21\xf9" in data else data.index(b"\x2c")
    return data[:start] + segment * count + data[start:]


def scans(count):
    data = encoded(IMAGE.convert("L"), "JPEG", progressive=True)
    return data[:-2] + data[data.rfind(b"\xff\xda") : -2] * count + data[-2:]


def png_with(kind, content):
    data = encoded(IMAGE)
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return data[:33] + chunk + data[33:]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (scans(1_000_000), "more than 100 scans"),  # hours, at 50 megapixels
        (segments(b"\xff\xe1\x00\x09Exif\0\0x", 1_800_000), "more than 20,000 segments"),
        (segments(b"\xff\xe1\x00\x09Exif\0\0x", 10_000), "more than 100 EXIF segments"),
        (segments(b"\xff\xef\x00\x02", 4_900_000), "more than 20,000 segments"),
        (segments(b"\x21\xfe\x01x\0", 3_900_000, "GIF"), "more than 5,000 comments"),
        (png_with(b"zTXt", b"a\0\0" + zlib.compress(bytes(200 * 2**20))), "not one of JPEG"),
        (png_with(b"iCCP", b"a\0\0" + zlib.compress(bytes(200 * 2**20))), "not one of JPEG"),
    ],
    ids=["scans", "segments", "exif", "empty-segments", "comments", "text-bomb", "profile-bomb"],
)
def test_small_files_that_would_be_much_work_are_refused(data, says):
    """In bounded time and memory, measured in a process of its own."""
    script = """if True:
        import resource, sys, time
        from ferret_core.images import ImageError, open_image
        data = sys.stdin.buffer.read()
        before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        try:
            open_image(data)
        except ImageError as error:
            print(error)
        print(time.process_time() - started, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
    """
    data = data[: 20 * 2**20 - 2] + b"\xff\xd9" if len(data) > 20 * 2**20 else data
    done = subprocess.run([sys.executable, "-c", script], input=data, stdout=subprocess.PIPE, check=True)
    message, measured = done.stdout.decode().splitlines()
    seconds, megabytes = map(float, measured.split())
    assert says in message
    assert seconds < 3
    assert megabytes < 150


def test_pictures_with_ordinary_parts_are_read():
    assert open_image(scans(20)).size == (80, 60)
    assert open_image(segments(b"\xff\xe2\xff\xff" + bytes(65533), 100)).size == (80, 60)  # a profile of many parts
    frames = [Image.new("P", (80, 60), i % 256) for i in range(2000)]
    assert open_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])).size == (80, 60)
    assert open_image(encoded(IMAGE, "TIFF", save_all=True, append_images=[IMAGE] * 500)).size == (80, 60)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_picture_may_be_something_else_as_well(kind):
    """What follows a picture is nobody's business here: it is never written where it could be run."""
    data = encoded(IMAGE, kind)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("run.sh", "echo")
    assert open_image(data + archive.getvalue()).tobytes() == open_image(data).tobytes()
    for other in (b"%PDF-1.4\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"MZ", b"PK\3\4"):
        with pytest.raises(ImageError):
            open_image(other + data)


@pytest.mark.parametrize("kind", FORMATS)
def test_pictures_that_break_off_are_refused_or_read_and_nothing_else(kind):
    data = encoded(IMAGE, kind)
    for length in range(0, len(data), max(1, len(data) // 200)):
        with suppress(ImageError):
            assert open_image(data[:length]).size == (80, 60)


def test_exif_that_refers_to_itself_is_no_reason_to_refuse_a_picture():
    for tag in (0x8769, 0x8825, 0xA005, 0x014A):  # directories inside directories
        ifd = b"II*\0\x08\0\0\0" + struct.pack("<HHHII", 1, tag, 4, 1, 8) + struct.pack("<I", 8)
        data = encoded(IMAGE, "JPEG", exif=b"Exif\0\0" + ifd)
        assert open_image(data).size == (80, 60)
    endless = b"II*\0\x08\0\0\0" + struct.pack("<HHHII", 0xFFFF, 0x010E, 2, 0xFFFFFFFF, 8)  # more entries, and longer ones
    assert open_image(encoded(IMAGE, "JPEG", exif=b"Exif\0\0" + endless)).size == (80, 60)


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
