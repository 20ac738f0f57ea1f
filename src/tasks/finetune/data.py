"""From `--dataset`, `--train`, `--valid` and `--test` to data sets: where files are, and what is missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from common.errors import DataError
from lxmert.tokens import encode
from tasks.finetune.args import RECIPES, Recipe, VqaArgs, resolve
from tasks.finetune.best import Best, read_best
from vqadata.dataset import VqaDataset, keep_images
from vqadata.features import FeatureStores
from vqadata.folder import DataFolder
from vqadata.sample import ensure_scenes
from vqadata.scenes import FEATURE_SIZE

DEFAULT_STRATEGY = "SpotTune"
IMAGES_TINY, IMAGES_FAST = 512, 5000

BANNER = """\
------------------------------------------------------------------------------
No VQA data below {data}/: this run uses the EMBEDDED SCENES, a small synthetic
data set that the repository draws itself. Its numbers illustrate the method;
they are not VQA results. For VQA v2 and VQA-CP v2 see data/README.md.
------------------------------------------------------------------------------"""


def split_names(splits: str) -> list[str]:
    """ "train,nominival" -> ["train", "nominival"]."""
    return [name for name in splits.split(",") if name]


def complete(args: VqaArgs) -> tuple[VqaArgs, Best | None]:
    """Settle what was left open: data set and strategy, by `--load` if it is given, and the recipe's values.

    Returns the BEST folder too. DataError if flags contradict it; only evaluation may be on other data.
    """
    best = read_best(Path(args.load)) if args.load else None
    dataset = args.dataset
    if best:
        asked = None if args.test or args.question or dataset == "auto" else dataset
        for flag, given, there in (
            ("strategy", args.strategy, best.spec.strategy),
            ("dataset", asked, best.dataset),
        ):
            if given not in (None, there):
                raise DataError(f"--{flag} {given} contradicts {args.load}, which was trained with {there}")
        dataset = best.dataset if dataset == "auto" else dataset
        args = replace(args, strategy=best.spec.strategy)
    dataset = choose_dataset(Path(args.data)) if dataset == "auto" else dataset
    args = replace(args, dataset=dataset, strategy=args.strategy or DEFAULT_STRATEGY)
    return resolve(args, choose_recipe(DataFolder(Path(args.data), dataset))), best


def choose_dataset(data: Path) -> str:
    """What `--dataset auto` means: vqav2 as soon as anything of it is there, else the embedded scenes."""
    folder = data / "vqav2"
    return "vqav2" if any(folder.glob("*.json")) or any(folder.glob("features/*")) else "scenes"


def choose_recipe(folder: DataFolder) -> Recipe:
    """The recipe of a data set; one of your own has that of the pre-trained model which reads its features.

    Splits are left empty where the default ones do not exist. DataError if there is no such data set.
    """
    if folder.name in RECIPES:
        return RECIPES[folder.name]
    if not folder.exists():
        here = {path.name for path in folder.path.parent.glob("*") if path.is_dir()}
        names = ", ".join([*RECIPES, *sorted(here - RECIPES.keys())])
        raise DataError(
            f"There is no data set {folder.name}: {folder.path} is missing. --dataset takes {names}; "
            "data/README.md says how to prepare one of your own."
        )
    small = any(manifest["feature_size"] == FEATURE_SIZE for manifest in folder.manifests())
    train, valid = folder.usual_splits()
    return replace(RECIPES["scenes" if small else "vqav2"], train=",".join(train), valid=",".join(valid))


def open_stores(args: VqaArgs) -> FeatureStores:
    """All feature stores of the data set."""
    return data_folder(args).open_features()


def data_folder(args: VqaArgs) -> DataFolder:
    return DataFolder(Path(args.data), args.dataset)


def prepare_data(args: VqaArgs, *, banner: bool = False) -> None:
    """Write the embedded scenes if they are asked for and not there; for the others, check that all is there.

    banner: say that the scenes are taken because there is nothing else. DataError lists each missing file.
    """
    folder = data_folder(args)
    if args.dataset == "scenes":
        if banner and args.question is None:
            print(BANNER.format(data=args.data))
        ensure_scenes(folder.path)
    evaluates = args.test or args.question
    for flag, splits in (("train", args.train), ("valid", args.valid)):
        if not splits and not evaluates:
            here = ", ".join(folder.splits()) or "none"
            raise DataError(f"Which splits of {folder.path} are for --{flag}? Name them; there are: {here}.")
    if missing := folder.missing(required_splits(args)):
        raise DataError(
            f"--dataset {args.dataset} needs files that are not there:\n"
            + "".join(f"  {path}\n" for path in missing)
            + "data/README.md says where each comes from. Without VQA data use --dataset scenes."
        )


def required_splits(args: VqaArgs) -> list[str]:
    """The splits that this run reads."""
    if args.question is not None:
        return []
    return split_names(args.test if args.test else f"{args.train},{args.valid}")


def required_files(args: VqaArgs) -> list[Path]:
    """The question files of the splits that this run touches, and the answer list."""
    folder = data_folder(args)
    return [*map(folder.split_file, required_splits(args)), folder.answers_file]


def load_answers(args: VqaArgs) -> list[str]:
    """The answers in label order."""
    return data_folder(args).read_answers()


def load_split(args: VqaArgs, splits: str, tokenizer: Any, answers: list[str]) -> VqaDataset:
    """The data set of one or more splits, tokenised; with --tiny or --fast, some images of each split."""
    records = []
    read = data_folder(args).read_splits(required_splits(args))
    for name in split_names(splits):
        split = read[name]
        if args.tiny or args.fast:
            split = keep_images(split, IMAGES_TINY if args.tiny else IMAGES_FAST)
        records += split
    token_ids, lengths = encode(tokenizer, [record["sent"] for record in records])
    return VqaDataset(records, token_ids, lengths, open_stores(args), answers)
