"""The folder of a data set: what lies where in it is known here and nowhere else.

data/<name>/
  <split>.json              the questions of a split, and their soft targets (see vqadata.records)
  answers.json              the answers in label order
  annotations/<split>.json  what humans answered, for official scores, where it is known
  features/<store>/         region features (see vqadata.features), or features.json: where they are
  images/<image id>.png     pictures for reports, or .jpg; nothing else needs them
  encoded/<split>.bin       what runs keep of a split (see vqadata.encoded); may be deleted at any time
  prepared.json             what the last preparation wrote; the next one removes what it does not
  manifest.json             of the embedded scenes: recipe, versions, checksums
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.errors import DataError
from common.files import LONGEST_NAME, check_name, replace_files, visible
from vqadata.encoded import Encode, Questions, read_questions
from vqadata.feature_layout import MANIFEST
from vqadata.features import FeatureStores, read_manifest
from vqadata.files import is_there, read_json
from vqadata.official import Annotation, annotation_json
from vqadata.records import Record, read_answers, read_records, record_fault
from vqadata.scoring import GroundTruth, read_ground_truth

# VQA-CP v2 asks about the same images as VQA v2.
SHARED_FEATURES = {"vqacpv2": "vqav2"}

# Splits for training: those that exist of the first group whose first member exists.
TRAIN_SPLITS = (("cp_train",), ("train", "nominival"))
VALID_SPLITS = ("cp_val", "minival", "valid", "val")  # the split for validation: the first that exists

PICTURES = (".png", ".jpg", ".jpeg")
ANSWERS, PREPARED, POINTER = "answers.json", "prepared.json", "features.json"
NOT_SPLITS = frozenset({ANSWERS, PREPARED, POINTER, MANIFEST})
OURS = re.compile(r"(annotations/)?[^/\\]+\.json")  # what a preparation may have written


class Prepared(NamedTuple):
    """A data set in memory."""

    splits: dict[str, list[Record]]  # LXMERT's records by split
    annotations: dict[str, list[Annotation]]  # for official scores; splits without answers have none
    answers: list[str]  # in label order


class DataFolder:
    """The data set `name` below `data`, which need not exist."""

    def __init__(self, data: Path, name: str) -> None:
        self.path = data / check_name("data set", name, DataError)

    @classmethod
    def at(cls, path: Path) -> DataFolder:
        """The data set in a folder that the user named by its path, whatever its name is."""
        folder = cls.__new__(cls)
        folder.path = path if path.name not in ("", "..") else path.resolve()
        return folder

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def answers_file(self) -> Path:
        return self.path / ANSWERS

    @property
    def manifest_file(self) -> Path:
        """What the embedded scenes say of themselves."""
        return self.path / MANIFEST

    def split_file(self, split: str) -> Path:
        return self.path / f"{check_name('split', split, DataError)}.json"

    def ground_truth_file(self, split: str) -> Path:
        return self.path / "annotations" / self.split_file(split).name

    @property
    def own_features(self) -> Path:
        """Where its feature stores are unless it shares those of another data set."""
        return self.path / "features"

    @property
    def features(self) -> Path:
        """Where its feature stores are, which may be those of another data set about the same images.

        If there is a features.json, {"folder": path from this folder}, that decides; else VQA-CP v2 has those
        of VQA v2, and any other data set its own. DataError if a features.json holds anything else.
        """
        pointer = self.path / POINTER
        if is_there(pointer):
            document = read_json(pointer)
            target = document.get("folder") if isinstance(document, dict) else None
            if not isinstance(target, str):
                raise DataError(f'{pointer} does not hold {{"folder": "<path>"}}.')
            return Path(os.path.normpath(self.path / target))
        if self.name in SHARED_FEATURES:
            return DataFolder(self.path.parent, SHARED_FEATURES[self.name]).features
        return self.own_features

    def store(self, name: str) -> Path:
        """The folder of one of its feature stores."""
        return self.features / check_name("feature store", name, DataError)

    def exists(self) -> bool:
        return is_there(self.path) and self.path.is_dir()

    def picture(self, image_id: str) -> Path | None:
        """The picture of an image: images/<image id>.png or .jpg beside the features, if there is one."""
        if Path(image_id).name != image_id or len(image_id) > LONGEST_NAME:  # else it could lead elsewhere
            return None
        files = (self.features.parent / "images" / f"{image_id}{ending}" for ending in PICTURES)
        return next(filter(is_there, files), None)

    @property
    def is_prepared(self) -> bool:
        """Whether a command of `vqa_prepare` wrote it."""
        return is_there(self.path / PREPARED)

    def splits(self) -> list[str]:
        """The names of the splits that exist, sorted; DataError if there is no such folder."""
        if not self.exists():
            raise DataError(f"There is no folder {self.path}.")
        return [path.stem for path in visible(self.path, "*.json") if path.name not in NOT_SPLITS]

    def usual_splits(self) -> tuple[list[str], list[str]]:
        """The splits for training and for validation if the user names none; either list may be empty."""
        splits = self.splits()
        names = next((names for names in TRAIN_SPLITS if names[0] in splits), ())
        train = [name for name in names if name in splits]
        return train, [name for name in VALID_SPLITS if name in splits][:1]

    def missing(self, splits: Iterable[str]) -> list[Path]:
        """The files that a run on these splits needs and that do not exist."""
        files = [*map(self.split_file, splits), self.answers_file]
        missing = [path for path in files if not is_there(path)]
        if not visible(self.features, f"*/{MANIFEST}"):
            missing.append(self.features / "<image set>" / MANIFEST)
        return missing

    def read_splits(self, splits: Iterable[str]) -> dict[str, list[Record]]:
        """The records, in file order, of splits that are used together: no question id may come twice.

        DataError with file, record and field of the first fault.
        """
        seen: set[int] = set()
        return {
            split: read_records(self.split_file(split), "questions", record_fault, seen)
            for split in dict.fromkeys(splits)
        }

    def read_questions(self, splits: Iterable[str], encode: Encode, fingerprint: str) -> dict[str, Questions]:
        """The same as columns, in word pieces; see `vqadata.encoded.read_questions`."""
        splits = list(dict.fromkeys(splits))
        questions = {}
        for split in splits:
            kept = self.path / "encoded" / f"{split}.bin"
            questions[split] = read_questions(self.split_file(split), kept, encode, fingerprint)
        ids = [part.question_ids for part in questions.values()]
        if len(np.unique(np.concatenate(ids))) < sum(map(len, ids)):
            self.read_splits(splits)  # says which one comes twice
        return questions

    def read_answers(self) -> list[str]:
        """The answers in label order."""
        return read_answers(self.answers_file)

    def ground_truth(self, splits: Sequence[str]) -> GroundTruth | None:
        """What humans answered to the questions of these splits; None if any split has none."""
        files = [self.ground_truth_file(split) for split in splits]
        if not all(map(is_there, files)):
            return None
        return {number: truth for file in files for number, truth in read_ground_truth(file).items()}

    def manifests(self) -> list[dict[str, Any]]:
        """What its finished feature stores say of themselves; StoreError if one cannot be read."""
        return [read_manifest(file.parent) for file in visible(self.features, f"*/{MANIFEST}")]

    def open_features(self) -> FeatureStores:
        """All its feature stores, read as one; StoreError if there is none or one is damaged."""
        return FeatureStores(self.features)

    def write(self, prepared: Prepared, features: Path | None = None) -> list[str]:
        """Write a data set, all of it or nothing, and with `features` where to find those it shares.

        What an earlier call wrote beyond that is removed: returns those files.
        """
        files = {self.split_file(name).name: json_list(rows) for name, rows in prepared.splits.items()}
        for name, answered in prepared.annotations.items():
            rows = (annotation_json(annotation) for annotation in answered)
            file = self.ground_truth_file(name).relative_to(self.path).as_posix()
            files[file] = json_list(rows, '{"annotations": [', "]}")
        if features:
            target = Path(os.path.relpath(features, self.path)).as_posix()
            files[POINTER] = iter([json.dumps({"folder": target}, indent=1), "\n"])
        names = [*files, ANSWERS]
        stale = [name for name in self._written_before() if name not in names and is_there(self.path / name)]
        files[PREPARED] = json_list(names)
        files[ANSWERS] = json_list(prepared.answers)  # the last: without it no run begins
        replace_files(self.path, files, stale)
        return stale

    def _written_before(self) -> list[str]:
        """What an earlier call wrote, by its own list; paths that lead elsewhere are not ours."""
        file = self.path / PREPARED
        if not is_there(file):
            return []
        names = read_json(file)
        known = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if not known or not all(OURS.fullmatch(name) for name in names):
            raise DataError(f"{file} is not the list of files that an earlier call wrote; delete it.")
        return names


def json_list(rows: Iterable[Any], before: str = "[", after: str = "]") -> Iterator[str]:
    """The text of a JSON list, one entry per line, in pieces."""
    encode = json.JSONEncoder(separators=(",", ":")).encode
    yield before
    for number, row in enumerate(rows):
        yield (",\n" if number else "\n") + encode(row)
    yield f"\n{after}\n"
