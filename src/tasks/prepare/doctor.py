"""What a data set on disk has and lacks: files, features of every image, sizes and checksums."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from common.errors import DataError, StoreError
from tasks.finetune.data import VALID_SPLITS, choose_recipe, stores_folder
from vqadata.dataset import read_split, split_names
from vqadata.feature_layout import MANIFEST, check_sizes, intact_rows, store_checksum
from vqadata.feature_writer import JOURNAL
from vqadata.features import FeatureStore
from vqadata.files import read_answer_list
from vqadata.own import split_files

# Splits that no training needs, for predictions and for the final figure; of other data sets, all the rest.
EXTRA_SPLITS = {"vqav2": ["test"], "vqacpv2": ["cp_test"]}

LXMERT = "https://github.com/airsplay/lxmert"
QUESTION_SOURCES = {
    "vqav2": (
        "`bash run/vqa_prepare.bash` makes it from the official question and annotation files "
        f"(https://visualqa.org/download.html) or from LXMERT's JSON files (links in the README of {LXMERT})"
    ),
    "vqacpv2": (
        "`bash run/vqa_prepare.bash` makes it from vqacp_v2_{train,test}_{questions,annotations}.json, or, "
        "since their original host is gone, from VQA v2 and a list of the test question ids"
    ),
    "scenes": "The first run with `--dataset scenes` writes it again, if the folder is deleted before",
}
OWN_QUESTIONS = (
    "`bash run/vqa_prepare.bash own` makes it from your questions and answers, `changing-priors` from "
    "another data set"
)
OWN_FEATURES = (
    "`bash run/vqa_prepare.bash features <file> --dataset {dataset}` makes it from a .tsv or a folder of .npz"
)
FEATURE_SOURCE = (
    "`bash run/vqa_prepare.bash features <file>` makes it from LXMERT's {name}_obj36.tsv or .zip "
    f"(links under 'VQA' in the README of {LXMERT})"
)
IMAGE_SETS = {"train2014": "32.7 GB", "val2014": "16.0 GB", "test2015": "32.2 GB"}  # sizes of the .tsv files


class Finding(NamedTuple):
    """One thing looked at. `needed`: training with the default splits is impossible unless it is ok."""

    state: str  # ok, missing, unfinished, damaged
    what: str
    advice: str = ""
    needed: bool = True

    def __str__(self) -> str:
        optional = " (not needed for training)" if self.state == "missing" and not self.needed else ""
        return f"{self.state:<11}{self.what}{optional}"


def examine(dataset: str, data: Path, *, verify: bool = False) -> Iterator[Finding]:
    """Look at everything a data set consists of; with `verify` read every row of the features too.

    DataError if there is no such data set.
    """
    folder = data / dataset
    if dataset == "scenes" and not (folder / "manifest.json").exists():
        yield Finding("ok", f"{folder}: not there yet, and the first run writes it")
        return
    recipe = choose_recipe(data, dataset)
    yield _answers(folder, dataset)
    images: dict[str, set[str]] = {}
    needed = split_names(f"{recipe.train},{recipe.valid}")
    for purpose, splits, names in (
        ("training", recipe.train, ("cp_train", "train")),
        ("validation", recipe.valid, VALID_SPLITS),
    ):
        if not splits:
            files = " or ".join(str(folder / f"{name}.json") for name in names)
            yield Finding("missing", f"a split for {purpose}: {files}", _question_source(dataset))
    for split in [*needed, *_extra_splits(folder, dataset, needed)]:
        finding, records = _split(folder, split, dataset, split in needed)
        if records:
            images[split] = {record["img_id"] for record in records}
        yield finding
    held: set[str] = set()
    features = stores_folder(data, dataset)
    owner = features.parent.name  # two data sets may share their features
    for path in sorted(path for path in features.glob("*/") if path.is_dir()):
        finding, held_here = _store(path, _feature_source(owner, path.name), verify, held)
        held |= held_here
        yield finding
    if not held:
        yield Finding("missing", f"{features}/<image set>/", _feature_source(owner, "<image set>"))
    for split, wanted in images.items():
        yield _coverage(split, wanted, held, features, split in needed, owner)


def can_train(findings: Iterable[Finding]) -> bool:
    """Whether nothing that training with the default splits needs is other than ok."""
    return all(finding.state == "ok" for finding in findings if finding.needed)


def _extra_splits(folder: Path, dataset: str, needed: Sequence[str]) -> list[str]:
    if dataset in EXTRA_SPLITS:
        return EXTRA_SPLITS[dataset]
    files = split_files(folder) if folder.is_dir() else []
    return [file.stem for file in files if file.stem not in needed]


def _question_source(dataset: str) -> str:
    return QUESTION_SOURCES.get(dataset, OWN_QUESTIONS)


def _feature_source(owner: str, name: str) -> str:
    """Where a store of the data set `owner` comes from."""
    if owner == "vqav2":
        return FEATURE_SOURCE.format(name=name)
    return QUESTION_SOURCES.get(owner) or OWN_FEATURES.format(dataset=owner)


def _answers(folder: Path, dataset: str) -> Finding:
    path = folder / "answers.json"
    if not path.exists():
        return Finding("missing", str(path), _question_source(dataset))
    try:
        return Finding("ok", f"{path}: {len(read_answer_list(path)):,} answers")
    except DataError as error:
        return Finding("damaged", str(error), _question_source(dataset))


def _split(folder: Path, split: str, dataset: str, needed: bool) -> tuple[Finding, list[dict[str, Any]]]:
    path = folder / f"{split}.json"
    if not path.exists():
        return Finding("missing", str(path), _question_source(dataset), needed), []
    try:
        records = read_split(folder, split)
    except DataError as error:
        return Finding("damaged", str(error), _question_source(dataset), needed), []
    return Finding("ok", f"{path}: {len(records):,} questions", needed=needed), records


def _store(path: Path, source: str, verify: bool, held: set[str]) -> tuple[Finding, set[str]]:
    """A feature store, and the images that can be had from it."""
    again = f"Delete {path}, then: {source}"
    if not (path / MANIFEST).exists():
        if (path / JOURNAL).exists():
            advice = "Run the command that was interrupted once more: it goes on where it was"
            return Finding("unfinished", f"{path}: its conversion has not ended", advice, needed=False), set()
        return Finding("damaged", f"{path} is no feature store: {MANIFEST} is missing", again, False), set()
    try:
        store = FeatureStore(path)
        check_sizes(path, store.manifest)
        if store_checksum(path) != store.manifest["checksum"]:
            raise StoreError(f"{path} is damaged: its ids or row checksums do not match its manifest.")
        if verify:
            _verify(store)
    except StoreError as error:
        return Finding("damaged", str(error), again), set()
    except (OSError, KeyError) as error:
        return Finding(
            "damaged", f"{path} is not as this version writes it: {error} is missing", again
        ), set()
    twice = held & store.rows.keys()
    if twice:
        what = f"{path} repeats {len(twice):,} images of another store, such as {min(twice)}"
        return Finding("damaged", what, "Move one of the two stores elsewhere"), set()
    left_out, checksum = len(store.manifest["faults"]), store.manifest["checksum"]
    extent = f"{len(store.rows):,} images, {store.manifest['dtype']}, checksum {checksum[:12]}"
    note = f"; {left_out} faulty rows of its source were left out" if left_out else ""
    return Finding("ok", f"{path}: {extent}{', every row verified' if verify else ''}{note}"), set(store.rows)


def _verify(store: FeatureStore) -> None:
    image_ids = list(store.rows)
    rows = tqdm(
        intact_rows(store.path, store.manifest), total=len(image_ids), desc=store.path.name, leave=False
    )
    damaged = [image_id for image_id, intact in zip(image_ids, rows, strict=True) if not intact]
    if damaged:
        raise StoreError(
            f"{store.path}: {len(damaged)} images do not match their checksums, "
            f"the first: {', '.join(damaged[:3])}."
        )


def _coverage(
    split: str, wanted: set[str], held: set[str], features: Path, needed: bool, owner: str
) -> Finding:
    lacking = sorted(wanted - held)
    if not lacking:
        return Finding("ok", f"{split}: features of all {len(wanted):,} images", needed=needed)
    sets = [name for name in IMAGE_SETS if any(f"_{name}_" in image_id for image_id in lacking)]
    advice = ". ".join(
        f"{features / name}/: {_feature_source(owner, name)}, {IMAGE_SETS[name]}" for name in sets
    )
    advice = advice or f"{features}/<image set>/: {_feature_source(owner, '<image set>')}"
    first = ", ".join(lacking[:3])
    what = f"{split}: {len(lacking):,} of {len(wanted):,} images have no features, the first: {first}"
    return Finding("missing", what, advice, needed)
