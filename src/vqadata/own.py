"""Questions and answers of one's own, in any of three formats, as records by split.

<split>.json             a list of records, see vqadata.records
<split>.csv              a table, a question a line, whose first line names the columns
<split>_questions.json   the format of the official VQA files, with <split>_annotations.json if there are
                         answers; names such as v2_OpenEnded_mscoco_val2014_questions.json give "val"
"""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

from common.errors import DataError
from common.files import nfc, visible
from vqadata.files import Source, read_source
from vqadata.folder import NOT_SPLITS, DataFolder
from vqadata.official import Answered, Question, read_answered, read_questions
from vqadata.records import Record, find_faults, read_list, record_fault

QUESTIONS, ANNOTATIONS = "_questions", "_annotations"  # ends of the names of official files
PUBLISHED = re.compile(r"(?:v2_)?(?:OpenEnded_)?mscoco_((train|val|test(?:-dev)?)\d{4})")
DELIMITERS = ",;\t"  # what programs write between the columns of a table, by country
BETWEEN_ANSWERS = "|"
# The columns of a table, and the fields of a record that they are.
CSV_FIELDS = {
    **{"question_id": "question_id", "image": "img_id", "img_id": "img_id"},
    **{"question": "sent", "sent": "sent", "answer": "answer", "answers": "answers"},
    **{"question_type": "question_type", "answer_type": "answer_type", "group": "group"},
}
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff"})


def read_own(source: DataFolder) -> dict[str, list[Record]]:
    """The records of each split; DataError with the first fault, or if there are none.

    Question ids differ between all splits.
    """
    seen: set[int] = set()
    splits: dict[str, list[Record]] = {}
    for split, file in sorted(_question_files(source).items()):
        if file.suffix == ".csv":
            records, fault_of = read_table(file, max(seen, default=0) + 1), record_fault
        elif file.stem.endswith(QUESTIONS):
            records, fault_of = _read_official(file), _no_fault
        else:
            records, fault_of = read_list(file, "questions"), record_fault
        for fault in find_faults(records, file, fault_of, seen):
            raise DataError(f"{fault}.")
        splits[split] = records
    if not splits:
        raise DataError(f"{source.path} holds no <split>.json, <split>.csv or <split>{QUESTIONS}.json.")
    return splits


def read_table(file: Path, first_id: int = 1) -> list[Record]:
    """The lines of a .csv as records, not checked yet; without a column question_id they are numbered.

    DataError for a file that is no such table.
    """
    text = read_source(file)
    header, _, _ = text.partition("\n")
    lines = csv.reader(
        io.StringIO(text, newline=""), delimiter=max(DELIMITERS, key=header.count), strict=True
    )
    records: list[Record] = []
    try:
        fields = _fields(file, [name.strip().lower() for name in next(lines, [])])
        for cells in lines:
            if not any(map(str.strip, cells)):
                continue
            if len(cells) != len(fields):
                raise DataError(
                    f"{file}, line {lines.line_num} has {len(cells)} columns where the first has "
                    f"{len(fields)}."
                )
            numbered = {} if "question_id" in fields else {"question_id": first_id + len(records)}
            records.append(numbered | dict(_values(fields, map(str.strip, cells))))
    except csv.Error as error:
        raise DataError(f"{file}, line {lines.line_num} is no line of a table: {error}.") from None
    if not records:
        raise DataError(f"{file} holds no questions.")
    return records


def _fields(file: Path, columns: Sequence[str]) -> list[str]:
    """The columns, if they are those of a table; DataError for others, of which one may be misspelt."""
    if unknown := [name for name in columns if name not in CSV_FIELDS]:
        raise DataError(
            f"{file} has the column {unknown[0]!r}, which nothing is known of; there are "
            f"{', '.join(CSV_FIELDS)}. Rename it or take it out."
        )
    fields = [CSV_FIELDS[name] for name in columns]
    missing = {"img_id": "image", "sent": "question"}
    if lacking := [name for field, name in missing.items() if field not in fields]:
        raise DataError(f"{file} has no column {' and no column '.join(lacking)}.")
    if len(set(fields)) < len(fields) or {"answer", "answers"} <= set(fields):
        raise DataError(f"{file} has two columns of one meaning: {', '.join(columns)}.")
    return list(columns)


def _values(columns: Sequence[str], cells: Iterator[str]) -> Iterator[tuple[str, object]]:
    """The fields of a record; an empty cell is none."""
    for column, cell in zip(columns, cells, strict=True):
        value: object = cell
        if column == "question_id" and re.fullmatch(r"-?[0-9]{1,19}", cell):
            value = int(cell)
        elif column == "image":
            value = image_id(cell)
        elif column == "img_id":
            value = nfc(cell)
        elif column == "answers":
            value = [answer.strip() for answer in cell.split(BETWEEN_ANSWERS)]
        if cell:
            yield CSV_FIELDS[column], value


def image_id(name: str) -> str:
    """The id of an image that is named by its file: photos/red car.jpg -> red car."""
    path = PurePath(name)
    return nfc(path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name)


def _question_files(source: DataFolder) -> dict[str, Path]:
    """The file with the questions of each split."""
    source.splits()  # says so if there is no such folder
    files: dict[str, Path] = {}
    answered: dict[str, Path] = {}
    for file in [*visible(source.path, "*.json"), *visible(source.path, "*.csv")]:
        if file.name in NOT_SPLITS:
            continue
        if file.suffix == ".json" and file.stem.endswith(ANNOTATIONS):
            answered[_split_of(file)] = file
            continue
        split = _split_of(file)
        if split in files:
            raise DataError(f"{files[split]} and {file} both hold the questions of {split}: take one away.")
        files[split] = file
    if stray := sorted(answered.keys() - files.keys()):
        raise DataError(f"{answered[stray[0]]} has no questions beside it, {stray[0]}{QUESTIONS}.json.")
    return files


def _split_of(file: Path) -> str:
    """train_questions.json, v2_mscoco_train2014_annotations.json, train.csv -> train."""
    name = file.stem
    if file.suffix == ".json":
        name = name.removesuffix(QUESTIONS).removesuffix(ANNOTATIONS)
        name = match[2] if (match := PUBLISHED.fullmatch(name)) else name
    return name


def _read_official(file: Path) -> list[Record]:
    """An official question file, with its annotations if they lie beside it, as records."""
    match = PUBLISHED.match(file.stem)
    image_set = match[1].replace("-dev", "") if match else None  # test-dev is about images of test
    split = _split_of(file)
    beside = [path for path in visible(file.parent, f"*{ANNOTATIONS}.json") if _split_of(path) == split]
    if not beside:
        return [_record(question) for question in read_questions(file, image_set, own=True)]
    pairs = read_answered(Source(file), Source(beside[0]), image_set, own=True)
    return [_record(pair.question) | _answers(pair) for pair in pairs]


def _record(question: Question) -> Record:
    return question._asdict()


def _answers(pair: Answered) -> Record:
    annotation = pair.annotation
    return {
        "answers": list(annotation.answers),
        "multiple_choice_answer": annotation.right,
        "answer_type": annotation.answer_type,
        "question_type": annotation.question_type,
    }


def _no_fault(record: Record) -> None:
    """Questions and annotations in the official format were looked at where they were read."""
