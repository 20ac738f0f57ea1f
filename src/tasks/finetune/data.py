"""Which data set a run takes, with which recipe, and its splits as data sets of tokenised questions."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState

from common.errors import CheckpointError, DataError
from common.files import visible
from lxmert.loading import Origin
from lxmert.tokens import encode, fingerprint
from tasks.finetune.args import RECIPES, SCENES_MODEL, Recipe
from vqadata.dataset import VqaDataset, answers_fault, images_fault, split_names
from vqadata.encoded import join
from vqadata.folder import DataFolder
from vqadata.sample import ensure_scenes, parse_draw
from vqadata.scenes import FEATURE_SIZE

SCENES, VQA = "scenes", "vqav2"
MODELS = "snap/pretrained"


def choose_dataset(data: Path) -> str:
    """What `--dataset auto` means: vqav2 as soon as anything of it is there, else the embedded scenes."""
    folder = data / VQA
    return VQA if visible(folder, "*.json") or visible(folder, "features/*") else SCENES


def choose_recipe(folder: DataFolder) -> Recipe:
    """The recipe of a data set; one of your own has that of the pre-trained model which reads its features.

    A draw of an embedded one has a pre-trained model of its own. Splits are left empty where the default ones
    do not exist. DataError if there is no such data set.
    """
    if draw := parse_draw(folder.name):
        return replace(RECIPES[draw.dataset], pretrained=small_model(draw.number))
    if folder.name in RECIPES:
        return RECIPES[folder.name]
    if not folder.exists():
        found = {path.name for path in visible(folder.path.parent) if path.is_dir()}
        names = ", ".join([*RECIPES, *sorted(found - RECIPES.keys())])
        raise DataError(
            f"There is no data set {folder.name}: {folder.path} is missing. --dataset takes {names}; "
            "data/README.md says how to prepare one of your own."
        )
    train, valid = folder.usual_splits()
    manifests = folder.manifests()
    small = any(manifest["feature_size"] == FEATURE_SIZE for manifest in manifests)
    recipe = replace(RECIPES["scenes" if small else "vqav2"], train=",".join(train), valid=",".join(valid))
    # What is on a grid no shipped or published model has learned to read, though it may be of the right size.
    on_grid = any((manifest.get("extractor") or {}).get("kind") == "grid" for manifest in manifests)
    return replace(recipe, pretrained=own_model(folder.name)) if on_grid else recipe


def own_model(dataset: str) -> str:
    """The folder of the model that `vqa_prepare model` makes for a data set."""
    return f"{MODELS}/{dataset}"


def small_model(draw: int | None) -> str:
    """The folder of the small model of a draw of the scenes; the default draw, None, has the shipped one."""
    return f"{SCENES_MODEL}-draw{draw}" if draw else SCENES_MODEL


def require_small_model(dataset: str, origin: Origin) -> None:
    """CheckpointError if the model is to be that of a data set or of its draw, and nobody has made it yet."""
    if origin.pretrained == own_model(dataset) and not Path(origin.pretrained).exists():
        raise CheckpointError(
            f"{origin.pretrained} is missing: `bash run/vqa_prepare.bash model --from data/{dataset}` makes "
            "it, or --pretrained names another model"
        )
    draw = parse_draw(dataset)
    elsewhere = origin.load_lxmert or origin.load_lxmert_qa
    if not draw or elsewhere or origin.pretrained != small_model(draw.number):
        return
    if draw.number and not Path(origin.pretrained).exists():
        raise CheckpointError(
            f"{origin.pretrained} is missing: `bash run/lxmert_pretrain.bash --seed {draw.number}` makes it, "
            "or --pretrained names another model"
        )


def open_data(data: Path, name: str) -> DataFolder:
    """The folder of a data set; an embedded one is written by the first run on it."""
    folder = DataFolder(data, name)
    if draw := parse_draw(name):
        with PartialState().main_process_first():
            ensure_scenes(folder, draw.embedded, draw.seed)
    return folder


def require_data(folder: DataFolder, flags: dict[str, str]) -> None:
    """Check that all that a run needs is there.

    flags: the splits that each flag names, such as {"train": "train,nominival"}. DataError lists each missing
    file, and the splits there are if a flag names none.
    """
    for flag, splits in flags.items():
        if not split_names(splits):
            found = ", ".join(folder.splits()) or "none"
            raise DataError(f"Which splits of {folder.path} are for --{flag}? Name them; there are: {found}.")
    missing = folder.missing([name for splits in flags.values() for name in split_names(splits)])
    if missing:
        raise DataError(
            f"--dataset {folder.name} needs files that are not there:\n"
            + "".join(f"  {path}\n" for path in missing)
            + "data/README.md says where each comes from. Without VQA data use --dataset scenes."
        )


def load_splits(
    folder: DataFolder,
    flags: dict[str, str],
    tokenizer: Any,
    answers: Sequence[str],
    images: int | None,
    skip_missing: bool = False,
) -> list[VqaDataset]:
    """A data set for each flag, of all the splits it names; with `images`, of the first images of each split.

    skip_missing: leave out, and count, questions about images without features. DataError for a record that
    cannot be used, a question id that comes twice, an image without features, and for questions without
    answers where a run learns from them or is scored against them.
    """
    names = [name for splits in flags.values() for name in split_names(splits)]
    parts = folder.read_questions(names, partial(encode, tokenizer), fingerprint(tokenizer))
    if images is not None:
        parts = {name: part.of_first_images(images) for name, part in parts.items()}
    stores = folder.open_features()
    left_out: dict[str, int] = {}
    for split, part in parts.items():
        fault = images_fault(split, part.images, stores)
        if fault and not skip_missing:
            raise DataError(
                f"{fault}. Prepare the features of their image set, choose other splits, or leave out the "
                "questions about them with --skip-missing."
            )
        if fault:
            parts[split] = part.of_images(np.array([image in stores for image in part.images]))
            left_out[split] = len(part) - len(parts[split])
        if not len(parts[split]):
            raise DataError(f"{fault}. That leaves no question of {split}.")
    datasets = []
    for flag, splits in flags.items():
        for name in split_names(splits) if flag != "test" else ():
            if fault := answers_fault(parts[name], answers):
                advice = f"Choose other splits for --{flag}; --test {name} predicts without answers."
                raise DataError(f"{folder.split_file(name)}: {fault}. {advice}")
        chosen = join([parts[name] for name in split_names(splits)], tokenizer.pad_token_id)
        dataset = VqaDataset(chosen, stores, answers)
        dataset.left_out = {name: left_out[name] for name in split_names(splits) if name in left_out}
        datasets.append(dataset)
    return datasets
