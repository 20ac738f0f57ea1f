"""Photos as arrays: whatever lies in a user's folder is read, or it is said why not."""

import struct
import unicodedata
import warnings
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from common.errors import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")  # no other one is tried, whatever a file holds
ENDINGS = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif", ".ppm")
    + (".pgm", ".pnm", ".heic", ".heif", ".avif")  # the last three are not read, which is said of each
)
LEAST_SIDE, MOST_OBLONG = 16, 50  # pixels; longer side / shorter side
MEAN = np.float32([102.9801, 115.9465, 122.7717])  # of blue, green and red in the detector's training
# What Pillow raises when the bytes it is given are no whole picture.
DAMAGE = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, ArithmeticError, AttributeError)
DAMAGE = (*DAMAGE, RuntimeError, struct.error, zlib.error)


class PhotoFault(DataError):
    """What is wrong with a photo; `reason` is the same without its path."""

    def __init__(self, photo: Path, reason: str) -> None:
        super().__init__(f"{photo}: {reason}.")
        self.reason = reason


class Scaled(NamedTuple):
    """A photo as the detector gets it."""

    image: np.ndarray  # (3, h, w) float32: blue, green and red, less MEAN
    scale: np.ndarray  # (4,) float32: its pixels for one of the photo's; horizontally, vertically, and again


def list_photos(folder: Path) -> dict[str, Path]:
    """The photos of a folder, by image id: their names without ending, in one Unicode form, sorted.

    DataError if there is no such folder, no photo in it, or if two would have one id.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder of photos.")
    try:
        files = sorted(path for path in folder.iterdir() if _is_photo(path))
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}.") from None
    photos: dict[str, Path] = {}
    for file in files:
        earlier = photos.setdefault(unicodedata.normalize("NFC", file.stem), file)
        if earlier is not file:
            raise DataError(f"{earlier} and {file.name} would both be image {file.stem}: rename one of them.")
    if not photos:
        within = next((path.parent for path in sorted(folder.glob("*/*")) if _is_photo(path)), None)
        advice = f"; there are some in {within}: give that folder" if within else ""
        raise DataError(
            f"There is no photo in {folder}, no file that ends in .jpg, .png or the like{advice}."
        )
    return photos


def _is_photo(path: Path) -> bool:
    """Whether a photo is meant; what is no file behind such a name is named by `read_photo`."""
    return path.suffix.lower() in ENDINGS and not path.name.startswith(".") and not path.is_dir()


def read_photo(photo: Path) -> np.ndarray:
    """A photo as people see it, (height, width, 3) uint8 in RGB.

    It is turned as its EXIF data say; what is transparent is white; grey, palette, CMYK and 16-bit pictures
    become 8-bit RGB. PhotoFault for what cannot be read, for several pictures in one file, and for what is
    too small or too oblong to show regions.
    """
    try:
        if photo.is_symlink() and not photo.exists():
            raise PhotoFault(photo, "is a link to nothing")
        if photo.exists() and not (photo.is_file() or photo.is_dir()):  # opened, a pipe waits for a writer
            raise PhotoFault(photo, "is no file")
        with warnings.catch_warnings():  # of large pictures, and of what Pillow had to guess
            warnings.simplefilter("ignore")
            with Image.open(photo, formats=FORMATS) as image:
                _check(photo, image)
                image.load()
                return np.asarray(_as_rgb(photo, _turned(image), image.format))
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise PhotoFault(photo, f"has more than {most:,} pixels: make it smaller") from None
    except UnidentifiedImageError:
        kinds = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise PhotoFault(photo, f"is no {kinds} picture, whatever its name says") from None
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno:
            raise PhotoFault(photo, f"cannot be read: {error.strerror}") from None
        raise PhotoFault(photo, "is damaged or cut short") from None


def _check(photo: Path, image: Image.Image) -> None:
    """PhotoFault if the header says that nothing can be made of it."""
    width, height = image.size
    shorter, longer = sorted(image.size)
    if shorter < LEAST_SIDE or longer > MOST_OBLONG * shorter:
        raise PhotoFault(
            photo,
            f"has {width} x {height} pixels; at least {LEAST_SIDE} each way are needed, and one side may be "
            f"{MOST_OBLONG} times as long as the other",
        )
    pictures = getattr(image, "n_frames", 1)
    if pictures > 1 and image.format != "MPO":  # cameras put previews behind the photo
        raise PhotoFault(
            photo, f"holds {pictures} pictures (an animation, or pages): save the one you mean by itself"
        )


def _turned(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except DAMAGE:  # of the notes; the picture is whole
        return image


def _as_rgb(photo: Path, image: Image.Image, kind: str | None) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and kind == "PNG"):
        image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
    if image.mode in ("I", "F", "LAB"):
        raise PhotoFault(photo, f"has pixels of kind {image.mode}, not colours: save it in RGB, 8 bits each")
    if image.mode.lower().endswith("a") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def scale(pixels: np.ndarray, shortest: int, longest: int, original: bool) -> Scaled:
    """A photo (height, width, 3) uint8 as the detector gets it.

    Its shorter side becomes `shortest`, unless the longer one would get longer than `longest`. Bilinear,
    between the four nearest pixels, however much smaller it gets: cv2.resize does so for the original, and
    torch's `interpolate` for transformers' port. `original`: the scale stays as it is when the sizes are
    rounded; else it is that of the rounded sizes.
    """
    height, width = pixels.shape[:2]
    factor = shortest / min(height, width)
    longer = factor * max(height, width)
    if (round(longer) if original else longer) > longest:
        factor = longest / max(height, width)
    if original:
        rows, columns = round(height * factor), round(width * factor)
        across = down = factor
    else:
        rows, columns = int(height * factor + 0.5), int(width * factor + 0.5)
        across, down = columns / width, rows / height
    above, below, weight = _neighbours(height, rows, down)
    left, right, share = _neighbours(width, columns, across)
    share = share[:, None]
    top, bottom = (
        pixels[line[:, None], left] * (1 - share) + pixels[line[:, None], right] * share
        for line in (above, below)
    )
    weight = weight[:, None, None]
    blended = top * (1 - weight) + bottom * weight
    image = np.ascontiguousarray((blended[..., ::-1] - MEAN).transpose(2, 0, 1))
    return Scaled(image, np.float32([across, down, across, down]))


def _neighbours(length: int, count: int, factor: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `count` pixels the two on either side of it among `length`, and the share of the second."""
    places = np.clip((np.arange(count) + 0.5) / factor - 0.5, 0, length - 1)
    first = np.floor(places).astype(np.intp)
    return first, np.minimum(first + 1, length - 1), (places - first).astype(np.float32)
