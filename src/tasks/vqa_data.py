"""From `--dataset`, `--train`, `--valid` and `--test` to data sets: where files are, and what is missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from lxmert.tokens import encode
from tasks.vqa_args import VqaArgs, resolve
from tasks.vqa_checkpoint import Best, read_best
from vqadata.dataset import VqaDataset, keep_images, read_split, split_names
from vqadata.features import FeatureStores
from vqadata.files import DataError, read_answer_list
from vqadata.sample import ensure_scenes

DEFAULT_STRATEGY = "SpotTune"
IMAGES_TINY, IMAGES_FAST = 512, 5000

# VQA-CP v2 asks about the same images as VQA v2, so it shares its features.
FEATURES = {"scenes": "scenes", "vqav2": "vqav2", "vqacpv2": "vqav2"}

BANNER = """\
------------------------------------------------------------------------------
No VQA data below {data}/: this run uses the EMBEDDED SCENES, a small synthetic
data set that the repository draws itself. Its numbers illustrate the method;
they are not VQA results. For VQA v2 and VQA-CP v2 see data/README.md.
------------------------------------------------------------------------------"""


def complete(args: VqaArgs) -> tuple[VqaArgs, Best | None]:
    """Settle what was left open: data set and strategy, by `--load` if it is given, and the recipe's values.

    Returns the BEST folder too. DataError if flags contradict it.
    """
    best = read_best(Path(args.load)) if args.load else None
    if best:
        for flag, asked, there in (
            ("strategy", args.strategy, best.spec.strategy),
            ("dataset", args.dataset if args.dataset != "auto" else None, best.dataset),
        ):
            if asked not in (None, there):
                raise DataError(f"--{flag} {asked} contradicts {args.load}, which was trained with {there}")
        args = replace(args, strategy=best.spec.strategy, dataset=best.dataset)
    dataset = choose_dataset(args)
    return resolve(replace(args, strategy=args.strategy or DEFAULT_STRATEGY), dataset), best


def choose_dataset(args: VqaArgs) -> str:
    """The data set that `--dataset` means here: auto is vqav2 as soon as anything of it is there."""
    if args.dataset != "auto":
        return args.dataset
    folder = Path(args.data) / "vqav2"
    return "vqav2" if any(folder.glob("*.json")) or any(folder.glob("features/*")) else "scenes"


def data_folder(args: VqaArgs) -> Path:
    return Path(args.data) / args.dataset


def prepare_data(args: VqaArgs) -> None:
    """Write the embedded scenes if they are asked for and not there; for the others, check that all is there.

    DataError lists each missing file.
    """
    folder = data_folder(args)
    if args.dataset == "scenes":
        ensure_scenes(folder)
    missing = [path for path in required_files(args) if not path.exists()]
    features = Path(args.data) / FEATURES[args.dataset] / "features"
    if not any(features.glob("*/manifest.json")):
        missing.append(features / "<image set>" / "manifest.json")
    if missing:
        raise DataError(
            f"--dataset {args.dataset} needs files that are not there:\n"
            + "".join(f"  {path}\n" for path in missing)
            + "data/README.md says where each comes from. Without VQA data use --dataset scenes."
        )


def required_files(args: VqaArgs) -> list[Path]:
    """The question files of the splits that this run touches, and the answer list."""
    splits = args.test if args.test else f"{args.train},{args.valid}"
    folder = data_folder(args)
    return [folder / f"{name}.json" for name in split_names(splits)] + [folder / "answers.json"]


def load_answers(args: VqaArgs) -> list[str]:
    """The answers in label order."""
    return read_answer_list(data_folder(args) / "answers.json")


def load_split(args: VqaArgs, splits: str, tokenizer: Any, answers: list[str]) -> VqaDataset:
    """The data set of one or more splits, tokenised."""
    records = read_split(data_folder(args), splits)
    if args.tiny or args.fast:
        records = keep_images(records, IMAGES_TINY if args.tiny else IMAGES_FAST)
    token_ids, lengths = encode(tokenizer, [record["sent"] for record in records])
    stores = FeatureStores(Path(args.data) / FEATURES[args.dataset] / "features")
    return VqaDataset(records, token_ids, lengths, stores, answers)
