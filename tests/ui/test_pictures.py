import io

import pytest
from PIL import ExifTags, Image

from ferret_core.geometry import ImageSize
from ferret_core.images import ImageError, image_id, open_image
from ui.pictures import Picture


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def open_picture(data):
    return Picture.open("x", data, max_bytes=1_000_000, max_side=512)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_what_browsers_show_stays_as_it_is(kind):
    data = encode(Image.new("RGB", (300, 200), "teal"), kind)
    picture = open_picture(data)
    assert picture.data == data
    assert picture.size == ImageSize(300, 200)
    assert picture.id == image_id(data)


@pytest.mark.parametrize(
    ("image", "kind", "size"),
    [
        (Image.new("RGB", (1024, 512), "teal"), "PNG", (512, 256)),  # too large
        (Image.new("RGB", (300, 200), "teal"), "TIFF", (300, 200)),  # browsers do not show it
        (Image.new("RGBA", (300, 200), (0, 0, 0, 0)), "PNG", (300, 200)),  # transparent: the model would see something else
    ],
)
def test_others_are_made_ready(image, kind, size):
    picture = open_picture(encode(image, kind))
    assert picture.size == size
    assert open_image(picture.data).size == size


def test_photos_are_turned_once():
    image = Image.new("RGB", (300, 200), "black")
    image.paste("red", (0, 0, 150, 200))  # the left half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: left is up
    picture = open_picture(encode(image, "JPEG", exif=exif))
    assert picture.size == ImageSize(200, 300)
    seen = open_image(picture.data)
    assert seen.size == picture.size
    assert seen.getpixel((100, 50))[0] > 200 > 50 > seen.getpixel((100, 250))[0]


def test_photos_turned_by_xmp():
    xmp = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
        <rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>"""
    picture = open_picture(encode(Image.new("RGB", (300, 200), "teal"), "JPEG", xmp=xmp))
    assert Image.open(io.BytesIO(picture.data)).size == picture.size  # browsers, which do not read XMP, see the same


def test_of_a_moving_picture_the_first_is_kept():
    frames = [Image.new("RGB", (300, 200), color) for color in ("teal", "red")]
    data = encode(frames[0], "WEBP", save_all=True, append_images=frames[1:])
    assert not getattr(Image.open(io.BytesIO(open_picture(data).data)), "is_animated", False)


def test_nobody_is_told_where_a_photo_was_taken():
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (47.0, 22.0, 0.0)
    data = encode(Image.new("RGB", (300, 200), "teal"), "JPEG", exif=exif)
    assert Image.open(io.BytesIO(data)).getexif()
    assert not Image.open(io.BytesIO(open_picture(data).data)).getexif()


@pytest.mark.parametrize(("data", "says"), [(b"hello", "not one of JPEG"), (b"x" * 1_000_001, "at most 1,000,000")])
def test_bad_files_say_why(data, says):
    with pytest.raises(ImageError, match=says):
        open_picture(data)
