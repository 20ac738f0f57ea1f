"""The report of runs, put together: what run folders hold, and what the data set says of the questions."""

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from common.errors import UserError
from report.examples import Asked, Picture
from report.html import write_report
from report.run import Run
from vqadata.files import is_there
from vqadata.folder import DataFolder
from vqadata.official import read_annotations

PICTURE_BYTES = 1_200_000  # of all pictures together
SIZES = ((360, 75), (280, 65), (200, 55), (140, 45), (90, 40))  # longest side in pixels, quality
DIGITS = 4  # of a box


def make_report(runs: Sequence[Run], file: Path) -> Path:
    """Write the report of the runs, and return its file; RunError if a run has not ended an epoch."""
    arguments = runs[0].arguments

    def look_up(images: Mapping[int, str]) -> Asked:
        asked = Asked()
        for add in (add_texts, add_human_answers, add_boxes, add_pictures):
            try:
                folder = DataFolder(Path(arguments["data"]), arguments["dataset"])
                add(asked, folder, [name for name in arguments["valid"].split(",") if name], images)
            except UserError as fault:
                asked.faults.append(str(fault))
        return asked

    write_report(runs, file, look_up)
    return file


# Each of these adds to `asked` what the splits of a data folder say of some questions, `images` by their id.
# UserError for what is missing or damaged.


def add_texts(asked: Asked, folder: DataFolder, splits: Sequence[str], images: Mapping[int, str]) -> None:
    """Their texts, and as human answers those of the labels, with their scores."""
    for records in folder.read_splits(splits).values():
        for record in records:
            if (question := record["question_id"]) in images:
                asked.texts[question] = record["sent"]
                label = _largest_first(record.get("label", {}))
                asked.human[question] = [(answer, f"score {score:g}") for answer, score in label]


def add_human_answers(
    asked: Asked, folder: DataFolder, splits: Sequence[str], images: Mapping[int, str]
) -> None:
    """All human answers with their counts, where annotations are at hand."""
    for file in filter(is_there, map(folder.ground_truth_file, splits)):
        for annotation in read_annotations(file):
            if annotation.question_id in images:
                total = len(annotation.answers)
                counts = _largest_first(Counter(annotation.answers))
                asked.human[annotation.question_id] = [(text, f"{n} of {total}") for text, n in counts]


def add_boxes(asked: Asked, folder: DataFolder, splits: Sequence[str], images: Mapping[int, str]) -> None:
    """The boxes of the images."""
    stores = folder.open_features()
    for image in dict.fromkeys(images.values()):
        if image in stores:
            regions = stores.read(stores.locate([image]))
            asked.boxes[image] = regions.boxes[0][regions.mask[0]].astype(float).round(DIGITS).tolist()


def add_pictures(asked: Asked, folder: DataFolder, splits: Sequence[str], images: Mapping[int, str]) -> None:
    """The images themselves, where the folder has them."""
    names = list(dict.fromkeys(images.values()))
    for name in names:
        if (file := folder.picture(name)) and (picture := shrunk(file, PICTURE_BYTES // len(names))):
            asked.pictures[name] = picture


def shrunk(file: Path, most_bytes: int) -> Picture | None:
    """A picture as a JPEG, as small as it takes to have at most so many bytes; None if it cannot be read."""
    try:
        with Image.open(file) as image:
            image.draft("RGB", (SIZES[0][0],) * 2)  # a JPEG is decoded at once to little more than that
            picture = image.convert("RGB")
    except Exception:  # whatever is wrong with a picture, the question can be shown without it
        return None
    for side, quality in SIZES:
        picture.thumbnail((side, side))
        content = io.BytesIO()
        picture.save(content, "JPEG", quality=quality, optimize=True)
        if content.tell() <= most_bytes:
            break
    url = "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
    return Picture(url, *picture.size)


def _largest_first(numbers: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(numbers.items(), key=lambda pair: -pair[1])
