"""The commands of `vqa_prepare` that deal with questions and answers."""

import argparse
import time
from pathlib import Path

from common.errors import DataError
from common.files import visible
from common.words import counted
from tasks.prepare.command import Command, flag, path_flag, say, share, whole_number
from vqadata import questions
from vqadata.answers import MIN_OCCURRENCES
from vqadata.dataset import split_names
from vqadata.feature_layout import IMAGE_IDS, MANIFEST
from vqadata.files import is_there
from vqadata.folder import ANSWERS, DataFolder, Prepared
from vqadata.official import read_annotations, read_vqacp, read_vqav2, read_vqav2_tests, require_vqav2
from vqadata.priors import TEST_SHARE, changing_priors, prepare_priors, prior_shift, word_coverage
from vqadata.records import read_answers
from vqadata.sample import parse_draw
from vqadata.scoring import make_ground_truth, oracle_scores


def prepare_questions(args: argparse.Namespace) -> int:
    """VQA v2."""
    started = time.perf_counter()
    folder = DataFolder(args.data, "vqav2")
    if args.lxmert:
        prepared = questions.prepare_lxmert(args.lxmert, _vocabulary(args))
        if args.source:
            prepared = questions.annotate_lxmert(prepared, args.source)
            prepared = questions.add_tests(prepared, read_vqav2_tests(args.source))
    elif args.source:
        require_vqav2(args.source)
        minival = questions.read_minival_images(_minival_file(args, folder))
        parts = *read_vqav2(args.source), read_vqav2_tests(args.source)
        prepared = questions.prepare_vqav2(
            *parts, minival, answers=_vocabulary(args), occurrences=args.occurrences
        )
    else:
        raise DataError("name the folder of the published files with --from, or LXMERT's with --lxmert.")
    write(folder, prepared, started)
    if "test" not in prepared.splits:
        say("There is no test split: its question file was not found.")
    if not prepared.annotations:
        say(
            "LXMERT's files hold no human answers: for official scores, give the published files with --from."
        )
    return 0


def prepare_questions_cp(args: argparse.Namespace) -> int:
    """VQA-CP v2."""
    started = time.perf_counter()
    folder = DataFolder(args.data, "vqacpv2")
    if args.test_ids:
        train, test = questions.rebuild_vqacp(args.source, questions.read_test_ids(args.test_ids))
    else:
        train, test = read_vqacp(args.source)
    vocabulary = {"answers": _vocabulary(args), "occurrences": args.occurrences}
    prepared = questions.prepare_vqacp(train, test, holdout=args.holdout, seed=args.seed, **vocabulary)
    write(folder, prepared, started, DataFolder(args.data, "vqav2").features)
    return 0


def prepare_changing_priors(args: argparse.Namespace) -> int:
    """A changing-priors split of a data set that is there."""
    started = time.perf_counter()
    source, folder = _source_and_target(args)
    answers = source.read_answers()
    names = split_names(args.splits)
    records = [record for split in source.read_splits(names).values() for record in split]
    files = [source.ground_truth_file(name) for name in names]
    annotated = all(map(is_there, files))
    annotations = [entry for file in files for entry in read_annotations(file)] if annotated else []
    in_test = changing_priors(records, test_share=args.test_share, mix=args.mix, seed=args.seed)
    prepared = prepare_priors(records, in_test, annotations, answers, holdout=args.holdout, seed=args.seed)
    write(folder, prepared, started, source.features)
    say(
        f"Within a question type, {prior_shift(records, in_test):.0%} of the answers change between training "
        f"and test; {word_coverage(records, in_test):.1%} of the words of the test questions and answers "
        "occur in training."
    )
    return 0


def prepare_own_data(args: argparse.Namespace) -> int:
    """Your own questions and answers."""
    started = time.perf_counter()
    source, folder = _source_and_target(args)
    prepared = questions.prepare_own(source, args.occurrences)
    shares = source.features.is_dir() and not visible(folder.own_features, f"*/{MANIFEST}")
    write(folder, prepared, started, source.features if shares else None)
    if not folder.features.is_dir():
        say(f"Its features go into {folder.own_features}: `features --dataset {args.name}` converts them.")
    return 0


def write(folder: DataFolder, prepared: Prepared, started: float, features: Path | None = None) -> None:
    """Write the data set and say so, and how good a model with this vocabulary can get.

    started: when the command began. features: where the data set's features are, if not with it.
    """
    if stale := folder.write(prepared, features):
        say(f"Removed what an earlier command wrote and this one does not: {', '.join(stale)}.")
    seconds = time.perf_counter() - started
    print(f"{folder.path}: {counted(len(prepared.answers), 'answer')}, written in {seconds:.1f} s")
    print(f"{'split':<10} {'questions':>9} {'images':>7} {'with a target':>14} {'best possible':>14}")
    for name, records in prepared.splits.items():
        images = len({record["img_id"] for record in records})
        targets, bound = "-", "-"
        if any("label" in record for record in records):
            targets = f"{sum(bool(record.get('label')) for record in records) / len(records):.1%}"
        if prepared.annotations.get(name):
            truth = make_ground_truth(prepared.annotations[name])
            bound = f"{oracle_scores(truth, prepared.answers).overall:.2f} %"
        print(f"{name:<10} {len(records):>9,} {images:>7,} {targets:>14} {bound:>14}")
    answered = [annotation for part in prepared.annotations.values() for annotation in part]
    if empty := sum(not all(map(str.strip, annotation.answers)) for annotation in answered):
        say(f"{counted(empty, 'question', 'has')} an empty human answer, kept as in the official accuracy.")


def _vocabulary(args: argparse.Namespace) -> list[str] | None:
    return read_answers(args.answers) if args.answers else None


def _minival_file(args: argparse.Namespace, folder: DataFolder) -> Path:
    path = args.minival_images or folder.store("val2014") / IMAGE_IDS
    if not is_there(path):
        raise DataError(
            f"which images are minival? {path} is missing. Convert the features of val2014 first (minival is "
            "their first 5000 images), or give LXMERT's minival.json or a list of image ids with "
            "--minival-images."
        )
    return path


def _source_and_target(args: argparse.Namespace) -> tuple[DataFolder, DataFolder]:
    source, target = DataFolder.at(args.source), DataFolder(args.data, args.name)
    if source.path.resolve() == target.path.resolve():
        raise DataError(f"{target.path} would be written over itself; choose another --name.")
    if parse_draw(args.name):
        raise DataError(f"{args.name} is the name of an embedded data set; choose another --name.")
    return source, target


SOURCE = {"dest": "source", "required": True}
NAME = {"--name": flag("name of the new data set", required=True)}
HOLDOUT_FLAGS = {
    "--holdout": flag(
        "share of the training images for cp_val (%(default)s)", type=share, default=questions.HOLDOUT
    ),
    "--seed": flag("decides what is random (0)", type=whole_number, default=0),
}
VOCABULARY_FLAGS = {
    "--answers": path_flag(
        "take the vocabulary from a list such as LXMERT's trainval_label2ans.json and keep its label "
        "order, as published checkpoints need it; default: build it",
        "FILE",
    ),
    "--occurrences": flag(
        "questions an answer must be right for to get into a built vocabulary (%(default)s)",
        type=whole_number,
        default=MIN_OCCURRENCES,
    ),
}
COMMANDS = {
    "questions": Command(
        prepare_questions,
        "VQA v2, from the published or from LXMERT's files",
        f"""\
VQA v2: train, nominival, minival, test and test-dev. Writes <split>.json,
{ANSWERS} and, for official scores, annotations/<split>.json to data/vqav2/.
minival is the first {questions.MINIVAL_IMAGES} images in the row order of
val2014_obj36.tsv, nominival the rest of val2014; test and its part test-dev
need their question files, of test2015 and test-dev2015, and are left out
without them.""",
        {
            "--from": path_flag(
                "folder of VQA v2's published files: plain, .gz or the .zip they come in", dest="source"
            ),
            "--lxmert": path_flag(
                "folder of LXMERT's train.json, nominival.json, minival.json, test.json and "
                "trainval_label2ans.json; with --from its questions get the published annotations"
            ),
            "--minival-images": path_flag(
                "LXMERT's minival.json, or a JSON list of val2014's image ids in the order of its "
                "features; default: the order of data/vqav2/features/val2014",
                "FILE",
            ),
        }
        | VOCABULARY_FLAGS,
    ),
    "questions-cp": Command(
        prepare_questions_cp,
        "VQA-CP v2",
        """\
VQA-CP v2: cp_train, cp_val and cp_test. Writes data/vqacpv2/, which shares the
features of data/vqav2/. VQA-CP has no validation split: cp_val is held out of
its training split by image. Report cp_test once.""",
        {
            "--from": path_flag(
                "folder of VQA-CP v2's four files; with --test-ids, of VQA v2's files", **SOURCE
            ),
            "--test-ids": path_flag(
                "rebuild the split from VQA v2: ids of the test questions, one per line or as JSON", "FILE"
            ),
        }
        | HOLDOUT_FLAGS
        | VOCABULARY_FLAGS,
    ),
    "changing-priors": Command(
        prepare_changing_priors,
        "a split of any data set in which the usual answers differ between training and test",
        """\
A split of any data set in which the usual answers differ between training and
test. Questions of one type with the same usual answer are for training or for
test as a whole, such that the words of the test questions occur in training
(the idea of VQA-CP, Agrawal et al. 2018). Writes cp_train, cp_val and cp_test
to data/<name>/, which shares the features of the source.""",
        {
            "--from": path_flag("folder of the data set to split, such as data/scenes", **SOURCE),
            **NAME,
            "--splits": flag("splits to pool (%(default)s)", default="train,nominival,minival"),
            "--test-share": flag("share for cp_test (1/3)", type=share, default=TEST_SHARE),
            "--mix": flag(
                "random share of the questions that changes sides in the end, so that training has "
                "seen every answer of a question type (0, as published)",
                type=share,
                default=0.0,
            ),
        }
        | HOLDOUT_FLAGS,
    ),
    "own": Command(
        prepare_own_data,
        "your own questions and answers",
        """\
Your own questions and answers. Reads of each split in a folder one of
  <split>.json   a list of records with question_id, img_id, sent and answers
                 (1 to 10), answer or label
  <split>.csv    a table with the columns image, question, answer or answers
  <split>_questions.json, and <split>_annotations.json if there are answers,
                 in the format of the official VQA files
Writes data/<name>/ with soft targets, vocabulary and annotations.""",
        {
            "--from": path_flag(f"folder of these files, and of {ANSWERS} to set the vocabulary", **SOURCE),
            **NAME,
            "--occurrences": flag("questions an answer needs (1)", type=whole_number, default=1),
        },
    ),
}
