"""What of a photo a result keeps beside pixels: colours, transparency, EXIF, resolution."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from imprint_jax import images
from imprint_jax.composing.photo import Pictures, open_photo
from imprint_jax.errors import InputError
from tests.pictures import display_p3

RNG = np.random.default_rng(0)
COLORS = RNG.integers(0, 256, (24, 40, 3), dtype=np.uint8)


def saved(image: Image.Image, path, **options):
    image.save(path, **options)
    return path


def shown(picture: Image.Image) -> np.ndarray:
    """The colours of a picture as a colour-managed viewer shows them: sRGB."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return images.decode_image(buffer.getvalue(), "x")


def test_a_photo_of_another_colour_space_keeps_its_numbers_and_their_meaning(tmp_path):
    path = saved(Image.fromarray(COLORS), tmp_path / "p3.png", icc_profile=display_p3())
    photo = open_photo(path)
    np.testing.assert_array_equal(photo.pixels, COLORS)
    seen = photo.to_srgb(photo.pixels)
    np.testing.assert_array_equal(seen, images.read_image(path))
    assert np.abs(seen.astype(int) - COLORS).max() > 20
    result = photo.finished(photo.visible)
    assert result.info["icc_profile"] == display_p3()
    np.testing.assert_array_equal(shown(result), seen)


def test_what_is_composed_has_the_colours_it_was_composed_with(tmp_path):
    path = saved(Image.fromarray(COLORS), tmp_path / "p3.png", icc_profile=display_p3())
    photo = open_photo(path)
    generated = np.full((24, 40, 3), (200, 60, 40), np.uint8)
    result = photo.finished(photo.from_srgb(generated))
    assert np.abs(shown(result).astype(int) - generated).max() <= 1
    assert (np.asarray(result) != generated).any()  # in other numbers


def test_srgb_photos_stay_as_they_are(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photo = open_photo(saved(Image.fromarray(COLORS), tmp_path / "s.png", icc_profile=profile))
    np.testing.assert_array_equal(photo.to_srgb(COLORS), COLORS)
    np.testing.assert_array_equal(photo.from_srgb(COLORS), COLORS)
    assert photo.metadata["icc_profile"] == profile


# The last: names of its colour space that are no ASCII, which Pillow decodes.
@pytest.mark.parametrize(
    "profile",
    [b"nonsense", display_p3()[:200], display_p3()[:16] + b"\xff" * 4 + display_p3()[20:]],
)
def test_damaged_profiles_are_said_and_left_out(tmp_path, caplog, profile):
    path = saved(Image.fromarray(COLORS), tmp_path / "bad.png", icc_profile=profile)
    photo = open_photo(path)
    np.testing.assert_array_equal(photo.pixels, COLORS)
    assert photo.profile is None and "colour profile" in caplog.text


def test_pil_images_keep_their_profile_too():
    image = Image.fromarray(COLORS)
    image.info["icc_profile"] = display_p3()
    assert open_photo(image).profile == display_p3()


def test_transparent_photos_keep_their_transparency_outside_of_what_is_composed():
    rgba = np.dstack([COLORS, RNG.integers(0, 256, (24, 40), dtype=np.uint8)])
    rgba[:4, :, 3] = 0
    photo = open_photo(rgba)
    assert (photo.visible[:4, :, :3] == 255).all()  # what no one sees does not come in
    composed = photo.visible.copy()
    composed[10:14, 10:20] = photo.from_srgb(np.full((4, 10, 3), 7, np.uint8))
    result = np.asarray(photo.finished(composed))
    expected = rgba.copy()
    expected[10:14, 10:20] = (7, 7, 7, 255)
    np.testing.assert_array_equal(result, expected)
    opaque = np.dstack([COLORS, np.full((24, 40), 255, np.uint8)])
    np.testing.assert_array_equal(np.asarray(open_photo(opaque).pixels), COLORS)


def exif_with(orientation: int, order: str = "<") -> bytes:
    """Orientation, an ill-typed Make, a thumbnail directory."""
    start = 8 + 2 + 2 * 12 + 4
    entries = struct.pack(order + "HHII", 0x010F, 5, 1, start)
    entries += struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0)
    mark = b"II*\0" if order == "<" else b"MM\0*"
    head = mark + struct.pack(order + "IH", 8, 2) + entries + struct.pack(order + "I", start)
    return b"Exif\0\0" + head + struct.pack(order + "II", 1, 1)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("format", ["png", "jpg", "webp"])
def test_exif_and_resolution_are_carried_over_upright(tmp_path, order, format):
    path = tmp_path / f"a.{format}"
    Image.fromarray(COLORS).save(path, exif=exif_with(6, order), dpi=(300, 300))
    photo = open_photo(path)
    assert photo.pixels.shape == (40, 24, 3)  # turned
    # The orientation is upright, the thumbnail's directory is unlinked, all else is as it was.
    expected = bytearray(exif_with(1, order)[6:])
    expected[-12:-8] = bytes(4)
    assert photo.metadata["exif"][: len(expected)] == expected
    encoded = images.encode_png(photo.pixels, **photo.metadata)
    np.testing.assert_array_equal(images.decode_image(encoded, "x"), photo.pixels)
    if format != "webp":
        assert Image.open(io.BytesIO(encoded)).info["dpi"] == pytest.approx((300, 300), abs=0.1)


@pytest.mark.parametrize("exif", [b"", b"Exif\0\0", b"II*\0\xff\xff\xff\xff", b"nonsense" * 9])
def test_exif_that_cannot_be_read_is_left_out(exif):
    image = Image.fromarray(COLORS)
    image.info["exif"] = exif
    photo = open_photo(image)
    np.testing.assert_array_equal(photo.pixels, COLORS)
    assert "exif" not in photo.metadata


@pytest.mark.parametrize("dpi", [(0, 0), (float("nan"), 72), (72, "x"), (1e300, 72), (72,), None])
def test_resolutions_that_cannot_be_are_left_out(dpi):
    image = Image.fromarray(COLORS)
    image.info["dpi"] = dpi
    assert "dpi" not in open_photo(image).metadata


def test_pictures_are_shown_side_by_side():
    first, second = Image.fromarray(COLORS), Image.fromarray(255 - COLORS)
    first.info["icc_profile"] = display_p3()
    with Image.open(io.BytesIO(Pictures([first, second])._repr_png_())) as shown_row:
        np.testing.assert_array_equal(np.asarray(shown_row), np.hstack([COLORS, 255 - COLORS]))
        assert shown_row.info["icc_profile"] == display_p3()
    large = Pictures([first.resize((3000, 1000))] * 2)
    assert Image.open(io.BytesIO(large._repr_png_())).size == (1600, 267)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"Cannot read .*gone\.png"):
        open_photo(tmp_path / "gone.png")
