import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, features

from imprint_jax.errors import InputError
from imprint_jax.images import (
    as_rgb_or_rgba,
    decode_image,
    decode_mask,
    encode_png,
    read_image,
    read_mask,
)
from tests.pictures import display_p3, write_png


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture
def colors():
    return np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)


def test_rgb_and_rgba_are_exact(colors):
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(colors)), "x"), colors)
    rgba = np.dstack([colors, colors[..., 0]])
    for format, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
        data = encoded(Image.fromarray(rgba), format, **options)
        np.testing.assert_array_equal(decode_image(data, "x"), rgba)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(colors, orientation):
    upright = Image.fromarray(colors)
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = upright if undo is None else upright.transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(decode_image(encoded(stored, exif=exif), "x"), colors)


def test_grey_palette_and_bilevel_become_rgb(colors):
    grey = colors[..., 0]
    expected = np.dstack([grey] * 3)
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(grey)), "x"), expected)
    palette = Image.fromarray(grey).convert("P")
    assert palette.mode == "P"
    np.testing.assert_array_equal(decode_image(encoded(palette), "x"), expected)
    bilevel = Image.fromarray(grey >= 128)
    got = decode_image(encoded(bilevel), "x")
    np.testing.assert_array_equal(got, np.dstack([(grey >= 128).astype(np.uint8) * 255] * 3))


def test_transparency_of_every_kind_becomes_alpha():
    palette = Image.new("P", (4, 2), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    rgba = decode_image(encoded(palette, transparency=0), "x")
    assert rgba.shape == (2, 4, 4)
    assert rgba[0, 0, 3] == 0 and tuple(rgba[0, 1]) == (40, 50, 60, 255)

    grey_alpha = np.array([[[7, 0], [7, 200]]], np.uint8)
    rgba = decode_image(encoded(Image.fromarray(grey_alpha, "LA")), "x")
    np.testing.assert_array_equal(rgba, [[[7, 7, 7, 0], [7, 7, 7, 200]]])

    keyed = decode_image(encoded(Image.new("RGB", (2, 2), (1, 2, 3)), transparency=(1, 2, 3)), "x")
    np.testing.assert_array_equal(keyed, np.broadcast_to([1, 2, 3, 0], (2, 2, 4)))


def test_16_bit_is_scaled_not_clipped():
    values = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    expected = np.rint(values / 257).astype(np.uint8)
    for format in ("PNG", "TIFF"):
        got = decode_image(encoded(Image.fromarray(values), format), "x")
        np.testing.assert_array_equal(got[..., 0], expected)

    # Pillow cannot write 16-bit colour.
    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    pixels = values.astype(">u2").repeat(3).tobytes()
    color = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 5, 1, 16, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b"\0" + pixels))
        + chunk(b"IEND", b"")
    )
    got = decode_image(color, "x")
    assert got.shape == (1, 5, 3)
    np.testing.assert_allclose(got[..., 0], expected, atol=1)


def test_cmyk_becomes_rgb():
    cmyk = Image.new("RGB", (16, 16), (200, 30, 60)).convert("CMYK")
    got = decode_image(encoded(cmyk, "JPEG", quality=95), "x")
    np.testing.assert_allclose(got, np.broadcast_to([200, 30, 60], (16, 16, 3)), atol=4)


def test_unusable_pixels_are_refused():
    for image in (Image.new("F", (4, 4)), Image.fromarray(np.full((2, 2), 70_000, np.int32))):
        with pytest.raises(InputError, match="cannot be read as a picture"):
            decode_image(encoded(image, "TIFF"), "x.tif")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_file_cut_short_is_refused_or_read_never_anything_else(colors, format):
    data = encoded(Image.fromarray(colors), format)
    refused = 0
    for length in range(0, len(data) - 1, max(len(data) // 60, 1)):
        try:
            image = decode_image(data[:length], "cut.file")
        except InputError as error:
            assert "cut.file" in str(error)
            refused += 1
        else:
            assert image.shape[2] == 3
    assert refused > 40


def test_damaged_bytes_are_refused_or_read_never_anything_else(colors):
    rng = np.random.default_rng(1)
    refused = 0
    for format in ("PNG", "JPEG", "WEBP", "TIFF"):
        data = np.frombuffer(encoded(Image.fromarray(colors), format), np.uint8)
        for _ in range(40):
            bad = data.copy()
            bad[rng.integers(len(bad), size=4)] = rng.integers(256, size=4)
            try:
                decode_image(bad.tobytes(), "x")
            except InputError:
                refused += 1
    assert refused > 20


def test_missing_folder_text_and_huge_files_are_refused(tmp_path, monkeypatch, colors):
    with pytest.raises(InputError, match=r"Cannot read .*nothing\.png: No such file"):
        read_image(tmp_path / "nothing.png")
    with pytest.raises(InputError, match="Cannot read"):
        read_image(tmp_path)
    text = tmp_path / "a.png"
    text.write_text("hello")
    with pytest.raises(InputError, match="not a picture of a known format"):
        read_image(text)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", colors.shape[0] * colors.shape[1] // 3)
    with pytest.raises(InputError, match="exceeds limit"):
        decode_image(encoded(Image.fromarray(colors)), "huge.png")


def test_least_shrinks_only_jpeg_and_only_as_far_as_allowed():
    image = Image.new("RGB", (400, 800), (90, 90, 90))
    jpeg = encoded(image, "JPEG")
    assert decode_image(jpeg, "x").shape == (800, 400, 3)
    assert decode_image(jpeg, "x", least=60).shape == (200, 100, 3)
    assert decode_image(jpeg, "x", least=101).shape == (400, 200, 3)
    assert decode_image(jpeg, "x", least=500).shape == (800, 400, 3)
    assert decode_image(encoded(image), "x", least=60).shape == (800, 400, 3)


def test_masks_of_every_kind(tmp_path):
    truth = np.zeros((6, 8), bool)
    truth[1:4, 2:7] = True
    white = truth.astype(np.uint8) * 255
    soft = np.where(truth, 128, 127).astype(np.uint8)
    cutout = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    images = {
        "grey": Image.fromarray(white),
        "bilevel": Image.fromarray(truth),
        "half": Image.fromarray(soft),
        "sixteen": Image.fromarray(white.astype(np.uint16) * 257),
        "rgb": Image.fromarray(np.dstack([white] * 3)),
        "palette": Image.fromarray(white).convert("P"),
        "opaque_rgba": Image.fromarray(np.dstack([white] * 3 + [np.full_like(white, 255)])),
        "alpha_only": Image.fromarray(np.dstack([0 * white] * 3 + [white])),
        "grey_alpha": Image.fromarray(np.dstack([0 * white, white]), "LA"),
    }
    for name, image in images.items():
        path = tmp_path / f"{name}.png"
        image.save(path)
        for of_object in (False, True):
            mask = read_mask(path, (6, 8), of_object=of_object)
            assert mask.dtype == bool
            np.testing.assert_array_equal(mask, truth, err_msg=name)
    # A photo with the hole erased, or what goes into the hole: only of an object there is no doubt.
    path = tmp_path / "cutout.png"
    Image.fromarray(np.dstack([cutout, white])).save(path)
    np.testing.assert_array_equal(read_mask(path, (6, 8), of_object=True), truth)
    with pytest.raises(InputError, match="can be read in two ways"):
        read_mask(path, (6, 8))


def drawn() -> np.ndarray:
    """Black and white, (100 100 4), opaque."""
    mask = np.zeros((100, 100, 4), np.uint8)
    mask[..., 3] = 255
    mask[40:60, 40:60, :3] = 255
    return mask


def test_transparency_decides_only_where_it_separates():
    truth = drawn()[..., 0] > 0
    one_pixel, corners, faint, shaded = (drawn() for _ in range(4))
    one_pixel[0, 0, 3] = 254
    rows, columns = np.mgrid[:100, :100]
    far = np.hypot(
        np.maximum(abs(rows - 49.5) - 39.5, 0), np.maximum(abs(columns - 49.5) - 39.5, 0)
    )
    corners[far > 10, 3] = 0
    faint[..., 3] = 199
    shaded[..., 3] = 102
    for mask in (one_pixel, corners, faint, shaded):
        for of_object in (False, True):
            got = decode_mask(encoded(Image.fromarray(mask)), "m", of_object=of_object)
            np.testing.assert_array_equal(got, truth)


def test_masks_with_two_readings_are_refused(colors):
    erased = np.dstack([colors, np.full((24, 40), 255, np.uint8)])
    erased[8:16, 10:20, 3] = 0
    half_black = drawn()
    half_black[:50, :, 3] = 0
    for mask in (erased, half_black):
        with pytest.raises(InputError, match="can be read in two ways"):
            decode_mask(encoded(Image.fromarray(mask)), "m")
    red = np.full((100, 100, 3), 255, np.uint8)
    red[40:60, 40:60] = (220, 20, 20)
    for mask in (red, colors):
        with pytest.raises(InputError, match="has colours"):
            decode_mask(encoded(Image.fromarray(mask)), "m")
    faintly_drawn = np.zeros((100, 100, 4), np.uint8)
    faintly_drawn[40:60, 40:60] = (255, 255, 255, 102)
    with pytest.raises(InputError, match="nowhere brighter than 102"):
        decode_mask(encoded(Image.fromarray(faintly_drawn)), "m")


def test_pictures_of_labels_are_no_masks():
    voc = np.zeros((100, 100), np.uint8)
    voc[38:62, 38:62] = 255  # the border that counts as nothing
    voc[40:60, 40:60] = 1
    with pytest.raises(InputError, match="holds the values 0, 1, 255"):
        decode_mask(encoded(Image.fromarray(voc)), "m")


@pytest.mark.parametrize("noise", [3, 40])
def test_soft_and_noisy_masks_are_no_labels(noise):
    soft = cv2.GaussianBlur(drawn()[..., 0], (0, 0), 3).astype(int)
    soft = soft + np.random.default_rng(0).integers(0, noise, soft.shape)
    data = encoded(Image.fromarray(np.clip(soft, 0, 255).astype(np.uint8)), "JPEG", quality=60)
    assert decode_mask(data, "m")[45:55, 45:55].all()


def test_odd_exif_does_not_stand_before_the_pixels(colors):
    """Make stored as RATIONAL beside the orientation, as some phones write it."""
    entries = struct.pack("<HHII", 0x010F, 5, 1, 38) + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)
    data = encoded(Image.fromarray(colors), "PNG", exif=exif + struct.pack("<II", 1, 1))
    np.testing.assert_array_equal(decode_image(data, "x"), np.rot90(colors, -1))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("entries", [2, 60])
def test_a_tag_whose_value_is_lost_does_not_stand_before_the_orientation(
    colors, order, entries, caplog
):
    """Pillow stops at such a tag, and says nothing of those after it."""
    lost = struct.pack(order + "HHII", 0x010F, 2, 100_000, 9999)
    turned = struct.pack(order + "HHIHH", 0x0112, 3, 1, 6, 0)
    mark = b"II*\0" if order == "<" else b"MM\0*"
    exif = mark + struct.pack(order + "IH", 8, entries) + lost + turned + bytes(4)
    image = Image.fromarray(colors)
    data = encoded(image, "PNG", exif=b"Exif\0\0" + exif)
    np.testing.assert_array_equal(decode_image(data, "x"), np.rot90(colors, -1))
    image.info["exif"] = exif
    np.testing.assert_array_equal(as_rgb_or_rgba(image, "x"), np.rot90(colors, -1))
    assert not caplog.records


@pytest.mark.parametrize(
    "exif", [b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\0\x09\x01", b"non" * 9]
)
def test_an_orientation_that_cannot_be_read_is_said(colors, exif, caplog):
    data = encoded(Image.fromarray(colors), "PNG", exif=b"Exif\0\0" + exif)
    np.testing.assert_array_equal(decode_image(data, "a.png"), colors)
    assert "the EXIF of a.png is damaged" in caplog.text


def test_pictures_of_other_colour_spaces_are_srgb(colors):
    red = np.full((4, 4, 3), (234, 51, 35), np.uint8)  # sRGB's red, in numbers of Display P3
    for image in (Image.fromarray(red), Image.fromarray(np.dstack([red, red[..., :1]]))):
        got = decode_image(encoded(image, icc_profile=display_p3()), "x")
        assert np.abs(got[..., :3].astype(int) - (255, 0, 0)).max() <= 2
        assert got.shape[2] == len(image.getbands())


@pytest.mark.parametrize("format", ["AVIF", "BMP", "GIF", "WEBP", "TIFF", "JPEG2000"])
def test_common_formats_are_read(format):
    flat = np.full((32, 48, 3), (200, 60, 40), np.uint8)
    got = decode_image(encoded(Image.fromarray(flat), format), "x")
    assert got.shape == flat.shape and np.abs(got.astype(int) - flat).max() < 8


@pytest.mark.parametrize(
    "brands, name",
    [
        (b"heic\0\0\0\0mif1heic", "HEIC"),
        (b"hevc\0\0\0\0msf1", "HEIC"),
        (b"mif1\0\0\0\0avifmif1", "AVIF"),
    ],
)
def test_heic_and_avif_that_pillow_cannot_open_are_named(monkeypatch, brands, name):
    data = struct.pack(">I", 8 + len(brands)) + b"ftyp" + brands + bytes(100)
    monkeypatch.setattr(features, "check", lambda feature: feature != "avif")
    with pytest.raises(InputError, match=f"a.x is .* does not read {name} .* JPEG or PNG"):
        decode_image(data, "a.x")


def test_a_damaged_avif_is_not_called_unreadable(colors):
    data = encoded(Image.fromarray(colors), "AVIF")
    with pytest.raises(InputError, match=r"a\.avif (is not|cannot be)") as caught:
        decode_image(data[:40] + bytes(100), "a.avif")
    assert "does not read" not in str(caught.value)


def test_mask_of_another_size_says_both(tmp_path):
    write_png(tmp_path / "m.png", np.ones((6, 8), bool))
    with pytest.raises(InputError, match=r"8x6 pixels.*10x6"):
        read_mask(tmp_path / "m.png", (6, 10))


def test_mask_of_zeros_and_ones_is_refused_but_an_empty_one_is_not():
    with pytest.raises(InputError, match="brighter than 1 of 255"):
        decode_mask(encoded(Image.fromarray(np.eye(4, dtype=np.uint8))), "m")
    assert not decode_mask(encoded(Image.new("L", (4, 4))), "m").any()


def test_encode_png_keeps_text(colors):
    data = encode_png(colors, {"seed": "7", "prompt": "grün ✓"})
    np.testing.assert_array_equal(decode_image(data, ""), colors)
    with Image.open(io.BytesIO(data)) as image:
        assert image.text == {"seed": "7", "prompt": "grün ✓"}


def test_encode_png_is_the_same_every_time(colors):
    assert encode_png(colors) == encode_png(colors)
