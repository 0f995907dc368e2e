import io

import numpy as np
import pytest
import simplejpeg
from pictures import by_pillow, encoded, photo
from PIL import Image

from nml_jax.core.errors import UserError
from nml_jax.data import decode, fast_jpeg, jpeg
from nml_jax.data.decode import Box, Undecodable

PHOTO = photo(375, 500)
FILES = {
    "colour": encoded(PHOTO),
    "full chroma": encoded(PHOTO, subsampling="4:4:4"),
    "half chroma": encoded(PHOTO, subsampling="4:2:2"),
    "odd size": encoded(photo(241, 333)),
    "progressive": encoded(PHOTO, progressive=True),
    "restarts": encoded(PHOTO, restart_marker_rows=1),
    "grey": encoded(PHOTO, mode="L"),
    "cmyk": encoded(PHOTO, mode="CMYK"),
    "png": encoded(PHOTO, "PNG"),  # records do not say their kind, whatever the name of the file was
    "grey png": encoded(PHOTO, "PNG", mode="L"),
    "palette png": encoded(PHOTO, "PNG", mode="P"),
    "transparent png": encoded(PHOTO, "PNG", mode="RGBA"),
    "black and white": encoded(PHOTO, "PNG", mode="1"),
    "gif": encoded(PHOTO, "GIF"),
    "trailing bytes": encoded(PHOTO) + bytes(50),
}


@pytest.mark.parametrize("decoder", decode.DECODERS)
@pytest.mark.parametrize("kind", FILES)
def test_every_decoder_gives_pillows_pixels(kind, decoder, capfd):
    file = FILES[kind]
    picture = decode.picture(file, name="x", decoder=decoder)
    expected = by_pillow(file)
    assert (picture.height, picture.width, 3) == expected.shape
    np.testing.assert_array_equal(picture.rgb(), expected)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("decoder", ["pillow", "simplejpeg"])
@pytest.mark.parametrize(
    "box",
    [Box(0, 0, 1, 1), Box(0, 3, 17, 30), Box(100, 90, 131, 60), Box(240, 60, 135, 240), Box(0, 0, 375, 500)],
)
@pytest.mark.parametrize("kind", ["colour", "full chroma", "half chroma", "progressive", "restarts", "grey"])
def test_cutting_the_file_leaves_the_crop_as_it_was(kind, box, decoder, capfd):
    """A crop of its own size is not resized: its pixels are those of the whole image."""
    picture = decode.picture(FILES[kind], name="x", decoder=decoder)
    expected = by_pillow(FILES[kind])[box.top : box.top + box.height, box.left : box.left + box.width]
    np.testing.assert_array_equal(picture.crop_resized(box, box.height, box.width, "bicubic"), expected)
    assert capfd.readouterr().err == ""


def test_no_more_rows_are_decoded_than_the_crop_needs():
    header = jpeg.frame(FILES["colour"])
    part = jpeg.cut(FILES["colour"], header, 100)
    assert by_pillow(part).shape[0] == 100 + jpeg.MARGIN
    assert jpeg.cut(FILES["colour"], header, 370) == FILES["colour"]
    progressive = FILES["progressive"]
    assert jpeg.cut(progressive, jpeg.frame(progressive), 100) == progressive


@pytest.mark.parametrize("interpolation", decode.INTERPOLATIONS)
@pytest.mark.parametrize("kind", FILES)
def test_pillow_crops_are_exactly_pillows(kind, interpolation):
    box = Box(31, 40, 170, 203)
    seen = decode.picture(FILES[kind], name="x").crop_resized(box, 96, 96, interpolation)
    whole = Image.open(io.BytesIO(FILES[kind])).convert("RGB")
    part = whole.crop((box.left, box.top, box.left + box.width, box.top + box.height))
    np.testing.assert_array_equal(seen, part.resize((96, 96), decode.INTERPOLATIONS[interpolation]))


@pytest.mark.parametrize("decoder", ["simplejpeg", "opencv"])
@pytest.mark.parametrize("interpolation", decode.INTERPOLATIONS)
@pytest.mark.parametrize(
    ("file", "box", "size", "tolerance"),
    [
        (FILES["colour"], Box(0, 0, 375, 500), 224, 1.5),  # smaller by nearly 2
        (FILES["colour"], Box(50, 20, 250, 230), 224, 1.5),
        (FILES["colour"], Box(50, 20, 100, 130), 224, 1.5),  # larger
        (encoded(photo(1500, 1200)), Box(123, 77, 1211, 1001), 224, 2.0),  # decoded at a quarter of the size
        (FILES["grey"], Box(0, 0, 375, 375), 128, 2.0),
    ],
)
def test_fast_crops_are_close_to_pillows(file, box, size, tolerance, interpolation, decoder):
    exact = decode.picture(file, name="x").crop_resized(box, size, size, interpolation).astype(float)
    fast = decode.picture(file, name="x", decoder=decoder).crop_resized(box, size, size, interpolation)
    assert fast.shape == exact.shape
    difference = fast - exact
    assert np.abs(difference).mean() < tolerance
    assert abs(difference.mean()) < 0.3  # neither lighter nor darker
    # The same place: moved by a pixel either way, the images differ more.
    for axis in (0, 1):
        moved = np.abs(np.roll(fast, 1, axis)[2:-2, 2:-2] - exact[2:-2, 2:-2]).mean()
        assert np.abs(difference[2:-2, 2:-2]).mean() < 0.6 * moved


@pytest.mark.parametrize("decoder", ["simplejpeg", "opencv"])
@pytest.mark.parametrize("factor", [2, 4, 8])
def test_large_images_are_decoded_smaller(factor, decoder):
    """A crop with twice as many pixels as are wanted, or more: of an image that is smaller by a power of two."""
    file = encoded(photo(800, 640), subsampling="4:4:4", quality=98)
    box = Box(160, 80, 640, 480)
    exact = decode.picture(file, name="x").crop_resized(box, 500 // factor, 375 // factor, "bicubic")
    fast = decode.picture(file, name="x", decoder=decoder).crop_resized(
        box, 500 // factor, 375 // factor, "bicubic"
    )
    assert np.abs(fast.astype(float) - exact).mean() < 1.2
    function = fast_jpeg.DECODERS[decoder]
    part = function(file, jpeg.frame(file), 300, factor)
    assert part.shape[1] == 640 // factor
    assert part.shape[0] <= 800 // factor


@pytest.mark.parametrize("decoder", decode.DECODERS)
def test_adobes_cmyk_is_stored_inverted(decoder):
    """Ink (c, m, y, k) is red (255 - c) (255 - k) / 255, and so on; Adobe's files store 255 - ink."""
    ink = np.array([30, 90, 200, 60])
    stored = np.broadcast_to(np.uint8(255 - ink), (16, 24, 4))
    file = simplejpeg.encode_jpeg(np.ascontiguousarray(stored), 95, "CMYK", "444")
    expected = (255 - ink[:3]) * (255 - ink[3]) / 255
    picture = decode.picture(file, name="x", decoder=decoder)
    assert np.abs(picture.rgb() - expected).max() <= 3
    assert np.abs(picture.crop_resized(Box(2, 2, 8, 8), 8, 8, "bicubic") - expected).max() <= 3


@pytest.mark.parametrize("decoder", decode.DECODERS)
def test_orientation_is_left_alone(decoder):
    """timm and torchvision do not turn images by their EXIF tag."""
    exif = Image.Exif()
    exif[0x0112] = 6
    file = encoded(PHOTO, exif=exif)
    np.testing.assert_array_equal(decode.picture(file, name="x", decoder=decoder).rgb(), by_pillow(file))
    assert by_pillow(file).shape == PHOTO.shape


BROKEN = {
    "empty": b"",
    "text": b"<html>404</html>" * 20,
    "zeros": bytes(1000),
    "header only": FILES["colour"][:300],
    "half": FILES["colour"][: len(FILES["colour"]) // 2],
    "no end": FILES["colour"][:-2000],
    "half a progressive one": FILES["progressive"][: len(FILES["progressive"]) // 2],
    "half a png": FILES["png"][: len(FILES["png"]) // 2],
    "absurdly large": FILES["colour"].replace(
        PHOTO.shape[0].to_bytes(2, "big") + PHOTO.shape[1].to_bytes(2, "big"), b"\xff\xdc" * 2
    ),
    "beginning of a jpeg": b"\xff\xd8\xff\xe0" + bytes(40),
}


@pytest.mark.parametrize("decoder", decode.DECODERS)
@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_are_undecodable_with_every_decoder(kind, decoder, capfd):
    """Also where the part that is asked for is there: what is replaced must not depend on the crop."""
    for box in (Box(0, 0, 20, 20), Box(200, 200, 150, 150)):
        with pytest.raises(Undecodable, match="record n01.JPEG cannot be decoded"):
            decode.picture(BROKEN[kind], name="n01.JPEG", decoder=decoder).crop_resized(
                box, 16, 16, "bicubic"
            )
    with pytest.raises(UserError):
        decode.picture(BROKEN[kind], name="n01.JPEG", decoder=decoder).rgb()
    assert capfd.readouterr().err == ""


def test_decoders_agree_on_what_is_undecodable():
    """Bytes overwritten anywhere: both decode the same, or neither does."""
    rng = np.random.default_rng(0)
    small, outcomes = encoded(photo(96, 80)), []
    for _ in range(100):
        file = bytearray(small)
        at = rng.integers(2, len(file) - 40)
        file[at : at + 30] = rng.integers(0, 256, 30).astype(np.uint8).tobytes()
        box, seen = Box(8, 8, int(rng.integers(8, 88)), 64), []
        for decoder in ("pillow", "simplejpeg"):
            try:
                picture = decode.picture(bytes(file), name="x", decoder=decoder)
                seen.append(picture.crop_resized(box, box.height, box.width, "bicubic"))
            except Undecodable:
                seen.append(None)
        assert (seen[0] is None) == (seen[1] is None)
        if seen[0] is not None:
            np.testing.assert_array_equal(*seen)
        outcomes.append(seen[0] is not None)
    assert 50 < sum(outcomes) < 95


def test_arrays_are_images_too():
    assert decode.rgb(np.zeros((4, 5, 1), np.uint8), name="x").shape == (4, 5, 3)
    picture = decode.picture(PHOTO, name="x", decoder="simplejpeg")
    assert (picture.height, picture.width) == (375, 500)
    box = Box(10, 20, 100, 50)
    part = Image.fromarray(PHOTO).crop((20, 10, 70, 110)).resize((32, 64), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(picture.crop_resized(box, 64, 32, "bicubic"), part)


def test_unknown_decoder():
    with pytest.raises(UserError, match="valid: pillow, simplejpeg, opencv"):
        decode.check_decoder("turbo")
