"""Every kind of photo is read as people see it, or named with a sentence; and how photos are scaled."""

from __future__ import annotations

import os
import random
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from tests.helpers.detector import picture
from torch.nn import functional as F

from common.errors import DataError
from regions.images import MEAN, PhotoFault, list_photos, read_photo, scale
from regions.selection import RECIPES

RGB = picture(60, 40)
PIXELS = np.asarray(RGB)


def fault(photo: Path) -> str:
    """The one sentence on a photo, without its path."""
    with pytest.raises(PhotoFault) as caught:
        read_photo(photo)
    assert str(caught.value) == f"{photo}: {caught.value.reason}." and "\n" not in str(caught.value)
    return caught.value.reason


# Photos that are read


@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "ppm", "webp"])
def test_lossless_formats_are_read_to_the_pixel(tmp_path: Path, ending: str) -> None:
    RGB.save(tmp_path / f"a.{ending}", **({"lossless": True} if ending == "webp" else {}))
    found = read_photo(tmp_path / f"a.{ending}")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, PIXELS)


def test_a_jpeg_is_read_as_pillow_reads_it_whatever_its_ending(tmp_path: Path) -> None:
    RGB.save(tmp_path / "a.png", format="JPEG")
    np.testing.assert_array_equal(read_photo(tmp_path / "a.png"), np.asarray(Image.open(tmp_path / "a.png")))


TURNED = {  # how the pixels are to be turned, by the EXIF standard's eight orientations
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_photos_are_turned_as_their_exif_data_say(tmp_path: Path, orientation: int, ending: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"png": {}, "jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}[ending]
    file = tmp_path / f"a.{ending}"
    RGB.save(file, exif=exif, **options)
    found, expected = read_photo(file), TURNED[orientation](PIXELS)
    assert found.shape == expected.shape
    if ending == "jpg":
        assert np.abs(found.astype(int) - expected).mean() < 3
    else:
        np.testing.assert_array_equal(found, expected)


def test_damaged_exif_data_do_not_keep_a_photo_from_being_read(tmp_path: Path) -> None:
    RGB.save(tmp_path / "a.jpg", exif=b"Exif\x00\x00no such thing as a header", quality=95)
    assert read_photo(tmp_path / "a.jpg").shape == PIXELS.shape


def test_grey_and_palette_pictures_become_rgb(tmp_path: Path) -> None:
    grey, palette = RGB.convert("L"), RGB.quantize(64)
    grey.save(tmp_path / "grey.png")
    palette.save(tmp_path / "palette.png")
    palette.save(tmp_path / "palette.gif")
    RGB.convert("1").save(tmp_path / "line.png")
    np.testing.assert_array_equal(
        read_photo(tmp_path / "grey.png"), np.repeat(np.asarray(grey)[..., None], 3, 2)
    )
    for name in ("palette.png", "palette.gif"):
        np.testing.assert_array_equal(read_photo(tmp_path / name), np.asarray(palette.convert("RGB")))
    assert set(np.unique(read_photo(tmp_path / "line.png"))) == {0, 255}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(tmp_path: Path, mode: str) -> None:
    image = RGB.convert("RGBA")
    image.putalpha(Image.fromarray(np.where(np.arange(60) < 30, 0, 255).astype(np.uint8)[None].repeat(40, 0)))
    shown = image.convert("LA") if mode == "LA" else image
    if mode == "P":
        flat = RGB.quantize(16)
        first = flat.getpixel((0, 0))
        flat.save(tmp_path / "a.png", transparency=first)
        found, places = read_photo(tmp_path / "a.png"), np.asarray(flat) == first
        assert (found[places] == 255).all()
        np.testing.assert_array_equal(found[~places], np.asarray(flat.convert("RGB"))[~places])
        return
    shown.save(tmp_path / "a.png")
    found = read_photo(tmp_path / "a.png")
    assert (found[:, :30] == 255).all()
    np.testing.assert_array_equal(found[:, 30:], np.asarray(shown.convert("RGB"))[:, 30:])


def test_half_transparent_pixels_are_half_white(tmp_path: Path) -> None:
    Image.new("RGBA", (20, 20), (0, 100, 200, 128)).save(tmp_path / "a.png")
    assert np.abs(read_photo(tmp_path / "a.png")[0, 0].astype(int) - [127, 177, 227]).max() <= 1


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    image = Image.new("CMYK", (20, 20), (0, 255, 255, 0))  # no cyan: red
    for name in ("a.jpg", "a.tif"):
        image.save(tmp_path / name, **({"quality": 100} if name == "a.jpg" else {}))
        assert np.abs(read_photo(tmp_path / name)[5, 5].astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_of_16_bits_the_upper_8_are_taken(tmp_path: Path, ending: str) -> None:
    deep = (np.arange(40 * 60).reshape(40, 60) * 27).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / f"a.{ending}")
    found = read_photo(tmp_path / f"a.{ending}")
    np.testing.assert_array_equal(found, np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, 2))


def test_a_camera_file_with_a_preview_behind_the_photo_is_read(tmp_path: Path) -> None:
    RGB.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[picture(30, 20)], quality=95)
    assert Image.open(tmp_path / "a.jpg").n_frames == 2
    assert read_photo(tmp_path / "a.jpg").shape == PIXELS.shape


def test_a_large_photo_is_read(tmp_path: Path) -> None:
    Image.new("RGB", (10_000, 9_500), "red").save(tmp_path / "a.jpg")  # Pillow warns of it
    assert read_photo(tmp_path / "a.jpg").shape == (9_500, 10_000, 3)


# Photos that are named


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "bmp", "gif", "webp"])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_a_photo_that_is_cut_short_is_named(tmp_path: Path, ending: str, share: float) -> None:
    file = tmp_path / f"a.{ending}"
    picture(200, 150).save(file)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    assert fault(file) in ("is damaged or cut short", NO_PICTURE)


NO_PICTURE = "is no JPEG, PNG, WEBP, BMP, TIFF, GIF or PPM picture, whatever its name says"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"a text file",
        b"<html>not found</html>",
        b"\0" * 5000,
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    ],
)
def test_what_is_no_picture_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    assert fault(tmp_path / "a.jpg") == NO_PICTURE


@pytest.mark.parametrize("size", [(1, 1), (15, 200), (20_000, 10), (20, 1001)])
def test_a_photo_that_is_too_small_or_too_oblong_is_named(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size).save(tmp_path / "a.png")
    assert fault(tmp_path / "a.png").startswith(f"has {size[0]} x {size[1]} pixels; at least 16 each way")


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "tif"])
def test_several_pictures_in_one_file_are_named(tmp_path: Path, ending: str) -> None:
    others = [picture(60, 40, seed) for seed in (1, 2)]
    RGB.save(tmp_path / f"a.{ending}", save_all=True, append_images=others)
    assert fault(tmp_path / f"a.{ending}").startswith("holds 3 pictures")


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_that_are_no_colours_are_named(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (40, 40), 7).save(tmp_path / "a.tif")
    assert fault(tmp_path / "a.tif").startswith(f"has pixels of kind {mode}")


def test_more_pixels_than_pillow_reads_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    RGB.save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert fault(tmp_path / "a.png") == "has more than 2,000 pixels: make it smaller"


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    assert fault(tmp_path / "none.jpg") == "cannot be read: No such file or directory"
    assert fault(tmp_path) == "cannot be read: Is a directory"
    if os.geteuid():  # root may read everything
        RGB.save(tmp_path / "a.png")
        (tmp_path / "a.png").chmod(0)
        assert fault(tmp_path / "a.png") == "cannot be read: Permission denied"


def test_pipes_and_links_to_nothing_are_named_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "lost.jpg").symlink_to("none.jpg")
    (tmp_path / "round.jpg").symlink_to("round.jpg")
    assert fault(tmp_path / "pipe.jpg") == "is no file"
    assert fault(tmp_path / "lost.jpg") == fault(tmp_path / "round.jpg") == "is a link to nothing"
    (tmp_path / "folder.jpg").mkdir()
    assert list(list_photos(tmp_path)) == ["lost", "pipe", "round"]  # each to be named


@pytest.mark.parametrize("ending", ["jpg", "png", "gif", "tif", "webp", "bmp"])
def test_damage_anywhere_is_named_or_harmless(tmp_path: Path, ending: str) -> None:
    file, places = tmp_path / f"a.{ending}", random.Random(0)
    picture(40, 30).save(file)
    whole = file.read_bytes()
    outcomes = set()
    for _ in range(150):
        damaged = bytearray(whole[: places.randrange(len(whole))] if places.random() < 0.3 else whole)
        for _ in range(places.randrange(1, 4)):
            place = places.randrange(min(200, len(damaged)) + 1)
            damaged[place : place + 1] = places.randbytes(1)
        file.write_bytes(damaged)
        try:
            assert read_photo(file).shape[2] == 3
            outcomes.add("read")
        except PhotoFault as error:
            assert "\n" not in str(error)
            outcomes.add("named")
    assert "named" in outcomes


# Folders


def test_photos_of_a_folder_are_found_by_their_endings_in_order(tmp_path: Path) -> None:
    names = ["b.JPG", "a.png", "c.webp", ".hidden.png", "._a.png", "notes.txt", "d.heic"]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.jpg").mkdir()
    assert list(list_photos(tmp_path)) == ["a", "b", "c", "d"]


@pytest.mark.parametrize(("first", "second"), [("a.jpg", "a.png"), ("caf\u00e9.jpg", "cafe\u0301.png")])
def test_two_photos_of_one_name_are_refused(tmp_path: Path, first: str, second: str) -> None:
    for name in (first, second):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=r"would both be image .*: rename one of them") as error:
        list_photos(tmp_path)
    assert all(name in str(error.value) for name in (first, second))


def test_image_ids_have_one_unicode_form(tmp_path: Path) -> None:
    (tmp_path / "cafe\u0301.jpg").write_bytes(b"")
    (name,) = list_photos(tmp_path)
    assert name == unicodedata.normalize("NFC", name) == "caf\u00e9"


def test_a_folder_without_photos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no photo in"):
        list_photos(tmp_path)
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "._a.jpg").write_bytes(b"")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=f"there are some in {tmp_path / 'train'}: give that folder"):
        list_photos(tmp_path)
    for other in (tmp_path / "none", tmp_path / "train" / "a.jpg"):
        with pytest.raises(DataError, match="is not a folder of photos"):
            list_photos(other)


# Scaling


@pytest.mark.parametrize(
    ("recipe", "size", "scaled"),
    [
        ("lxmert", (500, 333), (901, 600)),
        ("lxmert", (640, 480), (800, 600)),
        ("lxmert", (480, 640), (600, 800)),
        ("lxmert", (1000, 300), (1000, 300)),
        ("lxmert", (4000, 3000), (800, 600)),
        ("lxmert", (3000, 1000), (1000, 333)),
        ("huggingface", (500, 333), (1201, 800)),
        ("huggingface", (640, 480), (1067, 800)),
        ("huggingface", (900, 300), (1333, 444)),
    ],
)
def test_sizes_of_the_scaled_photo(recipe: str, size: tuple[int, int], scaled: tuple[int, int]) -> None:
    rule = RECIPES[recipe]
    found = scale(np.zeros((size[1], size[0], 3), np.uint8), rule.shortest, rule.longest, rule.original)
    assert found.image.shape == (3, scaled[1], scaled[0])
    if rule.original:
        assert len(set(found.scale.tolist())) == 1
    else:
        assert found.scale.tolist() == pytest.approx([scaled[0] / size[0], scaled[1] / size[1]] * 2)


@pytest.mark.parametrize("original", [True, False])
@pytest.mark.parametrize("size", [(45, 31), (400, 250), (31, 90)])
def test_scaling_is_torchs_bilinear_interpolation_in_bgr_less_the_mean(
    size: tuple[int, int], original: bool
) -> None:
    pixels = np.asarray(picture(*size))
    found = scale(pixels, 100, 160, original)
    image = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1).flip(0)[None]
    how = {"mode": "bilinear", "align_corners": False, "antialias": False}
    if original:  # the scale decides, not the rounded sizes; torch rounds these down, so a little is cut off
        factor = float(found.scale[0])
        expected = F.interpolate(image, scale_factor=factor, recompute_scale_factor=False, **how)
    else:
        expected = F.interpolate(image, found.image.shape[1:], **how)
    expected = expected[0].numpy() - MEAN[:, None, None]
    rows, columns = expected.shape[1:]
    assert found.image.dtype == np.float32 and found.image.shape[1] - rows in (0, 1)
    np.testing.assert_allclose(found.image[:, :rows, :columns], expected, atol=0.02)


def test_the_first_channel_is_blue() -> None:
    blue = np.zeros((50, 50, 3), np.uint8)
    blue[..., 2] = 200
    channels = scale(blue, 50, 80, True).image.mean((1, 2))
    np.testing.assert_allclose(channels, [200 - 102.9801, -115.9465, -122.7717], rtol=1e-5)


def test_scaling_a_line_does_not_blur_it_away() -> None:
    """Bilinear between the nearest pixels, not the mean of all: what the detector was trained on."""
    image = Image.new("RGB", (1000, 600), "black")
    ImageDraw.Draw(image).line([(0, 3), (1000, 3)], "white")
    found = scale(np.asarray(image), 100, 1000, True)
    assert found.image.shape[1:] == (100, 167)
    assert (found.image[0] + MEAN[0]).max() > 120  # the mean of six rows would be 42
