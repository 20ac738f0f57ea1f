"""`check`: whether all of a data set is there and can be used: files, records, features, checksums."""

import argparse
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from common.errors import DataError, StoreError, UserError
from common.files import visible
from common.words import counted
from tasks.finetune.data import choose_recipe
from tasks.prepare.command import Command, flag, path_flag, say
from vqadata.dataset import answers_fault, images_fault, split_names
from vqadata.encoded import Questions
from vqadata.feature_layout import MANIFEST, intact_rows
from vqadata.feature_writer import JOURNAL
from vqadata.features import DAMAGE, FeatureStore
from vqadata.files import is_there
from vqadata.folder import TRAIN_SPLITS, VALID_SPLITS, DataFolder
from vqadata.records import Record, find_faults, read_list, record_fault
from vqadata.sample import is_to_be_drawn, parse_draw
from vqadata.scoring import read_ground_truth, restrict

FAULTS_SHOWN = 10

# Splits that no training needs, for predictions and for the final figure.
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
}
EMBEDDED_SOURCE = "The first run with `--dataset {dataset}` writes it again, if the folder is deleted before"
OWN_QUESTIONS = (
    "`bash run/vqa_prepare.bash own` makes it from your questions and answers, `changing-priors` from "
    "another data set"
)
OWN_FEATURES = (
    "`bash run/vqa_prepare.bash features <file> --dataset {dataset}` makes it from a .tsv or a folder of "
    ".npz, `regions <folder> --dataset {dataset}` from photos"
)
FEATURE_SOURCE = (
    "`bash run/vqa_prepare.bash features <file>` makes it from LXMERT's {name}_obj36.tsv or .zip "
    f"(links under 'VQA' in the README of {LXMERT})"
)
IMAGE_SETS = {"train2014": "32.7 GB", "val2014": "16.0 GB", "test2015": "32.2 GB"}  # sizes of the .tsv files


class Finding(NamedTuple):
    """One thing looked at. `needed`: training with the default splits is impossible unless it is ok."""

    state: str  # ok, missing, damaged (a file), faulty (its records), unfinished and ignored (a store)
    what: str
    advice: str = ""
    needed: bool = True
    faults: Sequence[str] = ()  # the first of them by file, record and field

    def __str__(self) -> str:
        optional = " (not needed for training)" if self.state == "missing" and not self.needed else ""
        return f"{self.state:<11}{self.what}{optional}"


def run(args: argparse.Namespace) -> int:
    """Print the findings, each advice once, and the first faults; 1 if it cannot be trained on or has any."""
    if args.folder and args.dataset:
        raise UserError(f"check {args.folder} names a data set, and --dataset {args.dataset} another way")
    folder = DataFolder.at(args.folder) if args.folder else DataFolder(args.data, args.dataset or "vqav2")
    findings: list[Finding] = []
    for finding in examine(folder, verify=args.verify):
        print(finding)
        if finding.advice and finding.advice not in (earlier.advice for earlier in findings):
            say(f"{finding.advice}.", indent=11)
        findings.append(finding)
    ready = can_train(findings)
    whole = not any(finding.state in ("damaged", "faulty") for finding in findings)
    faults = [fault for finding in findings for fault in finding.faults]
    if faults:
        print("\n" + "\n".join([*faults[:FAULTS_SHOWN], *["... and more"] * (len(faults) > FAULTS_SHOWN)]))
    verdict = "can be trained on" if ready else "cannot be trained on yet"
    print(f"\n--dataset {folder.name} {verdict}{', but has faults' if ready and not whole else ''}.")
    return 0 if ready and whole else 1


def examine(folder: DataFolder, *, verify: bool = False) -> Iterator[Finding]:
    """Look at everything a data set consists of; with `verify` read every row of the features too.

    DataError if there is no such data set.
    """
    if is_to_be_drawn(folder):
        yield Finding("ok", f"{folder.path}: not there yet, and the first run writes it")
        return
    recipe = choose_recipe(folder)
    finding, answers = _read(folder, folder.answers_file, folder.read_answers)
    yield finding or Finding("ok", f"{folder.answers_file}: {counted(len(answers), 'answer')}")
    for purpose, splits, names in (
        ("training", recipe.train, [names[0] for names in TRAIN_SPLITS]),
        ("validation", recipe.valid, VALID_SPLITS),
    ):
        if not splits:
            files = " or ".join(str(folder.split_file(name)) for name in names)
            yield Finding("missing", f"a split for {purpose}: {files}", _question_source(folder.name))
    needed = split_names(f"{recipe.train},{recipe.valid}")
    images: dict[str, dict[str, int]] = {}  # by split, with the first record about each
    seen: set[int] = set()
    present = folder.splits() if folder.exists() else []
    for split in dict.fromkeys([*needed, *EXTRA_SPLITS.get(folder.name, []), *present]):
        finding, records = _split(folder, split, seen if split in needed else set())
        if split in needed and records and (fault := answers_fault(Questions.of(records), answers or ())):
            finding = Finding("faulty", f"{folder.split_file(split)}: {fault}", _question_source(folder.name))
        yield finding._replace(needed=split in needed)
        if records and is_there(folder.ground_truth_file(split)):
            finding = _ground_truth(folder, split, [record["question_id"] for record in records])
            yield finding._replace(needed=split in split_names(recipe.valid))
        images[split] = {}
        for index, record in enumerate(records):
            images[split].setdefault(record["img_id"], index)
    with_features: set[str] = set()
    yield from _features(folder, verify, with_features)
    for split in filter(images.get, images):
        yield _coverage(folder, split, images[split], with_features, split in needed)


def can_train(findings: Sequence[Finding]) -> bool:
    """Whether nothing that training with the default splits needs is other than ok."""
    return all(finding.state == "ok" for finding in findings if finding.needed)


def _question_source(dataset: str) -> str:
    own = EMBEDDED_SOURCE.format(dataset=dataset) if parse_draw(dataset) else OWN_QUESTIONS
    return QUESTION_SOURCES.get(dataset, own)


def _feature_source(owner: str, name: str) -> str:
    """Where a store of the data set `owner` comes from."""
    if owner == "vqav2":
        return FEATURE_SOURCE.format(name=name)
    known = owner in QUESTION_SOURCES or parse_draw(owner)
    return _question_source(owner) if known else OWN_FEATURES.format(dataset=owner)


def _read(folder: DataFolder, path: Path, read: Callable[[], Any]) -> tuple[Finding | None, Any]:
    """What `read` makes of a file, or the finding that it is missing or damaged."""
    if not is_there(path):
        return Finding("missing", str(path), _question_source(folder.name)), None
    try:
        return None, read()
    except DataError as error:
        what = str(error) if str(path) in str(error) else f"{path}: {error}"
        return Finding("damaged", what, _question_source(folder.name)), None


def _split(folder: DataFolder, split: str, seen: set[int]) -> tuple[Finding, list[Record]]:
    """A file of questions, and its records if all of them can be used."""
    path = folder.split_file(split)
    finding, records = _read(folder, path, lambda: read_list(path, "questions"))
    if finding:
        return finding, []
    if faults := list(find_faults(records, path, record_fault, seen)):
        what = f"{path}: {len(faults):,} of {len(records):,} questions cannot be used"
        source = _question_source(folder.name)
        return Finding("faulty", what, source, faults=faults[: FAULTS_SHOWN + 1]), []
    return Finding("ok", f"{path}: {counted(len(records), 'question')}"), records


def _ground_truth(folder: DataFolder, split: str, question_ids: Collection[int]) -> Finding:
    """What humans answered to a split's questions: a run does without, but not with a damaged file."""
    path = folder.ground_truth_file(split)
    finding, _ = _read(folder, path, lambda: restrict(read_ground_truth(path), question_ids))
    return finding or Finding("ok", f"{path}: what humans answered")


def _features(folder: DataFolder, verify: bool, images: set[str]) -> Iterator[Finding]:
    """All feature stores; the images that can be had from them are added to `images`."""
    owner = folder.features.parent.name  # two data sets may share their features
    damaged = False
    for path in filter(Path.is_dir, visible(folder.features)):
        finding, found = _store(path, _feature_source(owner, path.name), verify)
        images |= found
        damaged |= finding.state == "damaged"
        yield finding
    if not images:
        yield Finding("missing", f"{folder.features}/<image set>/", _feature_source(owner, "<image set>"))
    elif not damaged:  # each is whole; do they go together?
        try:
            folder.open_features()
        except StoreError as error:
            yield Finding("damaged", str(error))


def _store(path: Path, source: str, verify: bool) -> tuple[Finding, set[str]]:
    """A feature store, and the images that can be had from it."""
    again = f"Delete {path}, then: {source}"
    if not (path / MANIFEST).exists():
        if (path / JOURNAL).exists():
            advice = "Run the command that was interrupted once more: it goes on where it was"
            return Finding("unfinished", f"{path}: its conversion has not ended", advice, needed=False), set()
        return Finding("ignored", f"{path} is no feature store: {MANIFEST} is missing", again, False), set()
    try:
        store = FeatureStore(path)
        checksum, dtype, faults = (store.manifest[name] for name in ("checksum", "dtype", "faults"))
        if verify:
            _verify(store)
    except StoreError as error:
        return Finding("damaged", str(error), again), set()
    except DAMAGE as error:
        what = f"{path} is not as this version writes it: {error} is missing or damaged"
        return Finding("damaged", what, again), set()
    extent = f"{counted(len(store.rows), 'image')}, {dtype}, checksum {checksum[:12]}"
    note = f"; {len(faults)} faulty rows of its source were left out" if faults else ""
    return Finding("ok", f"{path}: {extent}{', every row verified' if verify else ''}{note}"), set(store.rows)


def _verify(store: FeatureStore) -> None:
    image_ids = list(store.rows)
    rows = tqdm(
        intact_rows(store.path, store.manifest), total=len(image_ids), desc=store.path.name, leave=False
    )
    damaged = [image_id for image_id, intact in zip(image_ids, rows, strict=True) if not intact]
    if damaged:
        raise StoreError(
            f"{store.path}: {counted(len(damaged), 'image', 'does')} not match the checksums, "
            f"the first: {', '.join(damaged[:3])}."
        )


def _coverage(
    folder: DataFolder, split: str, images: dict[str, int], with_features: Collection[str], needed: bool
) -> Finding:
    """Whether all images of a split have features; `images` have the first record about each."""
    what = images_fault(split, images, with_features)
    if what is None:
        return Finding("ok", f"{split}: features of all {len(images):,} images", needed=needed)
    missing = [image for image in images if image not in with_features]
    sets = [name for name in IMAGE_SETS if any(f"_{name}_" in image_id for image_id in missing)]
    advice = ". ".join(
        f"{folder.features / name}/: {_feature_source(folder.features.parent.name, name)}"
        + (f", {IMAGE_SETS[name]}" if sets else "")
        for name in sets or ["<image set>"]
    )
    records = sorted((images[image], image) for image in missing) if needed and with_features else []
    file = folder.split_file(split)
    faults = [f"{file}, record {n}: img_id {image!r} has no features" for n, image in records]
    return Finding("missing", what, advice, needed, faults[: FAULTS_SHOWN + 1])


COMMAND = Command(
    run,
    "what is there, what is missing, and the first ten faults by file, record and field",
    """\
Say what of a data set is there, what is missing, where it goes and where it can
be had; name file, record and field of the first ten faults, in the words in
which training would stop at them; say which images have questions but no
features, and whether files are as long as they should be and match their
checksums. Ends with exit code 1 if the default splits cannot be trained on, or
if questions or answers have faults.""",
    {
        "folder": path_flag("a data set, data/mine say", nargs="?"),
        "--dataset": flag("or its name: a folder below --data (vqav2)"),
        "--verify": flag("also read all features and check every row", action="store_true"),
    },
    aliases=["doctor"],
)
