"""From splits to data sets of tokenised questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vqadata.folder import DataFolder

from common.errors import DataError
from lxmert.tokens import encode
from vqadata.dataset import VqaDataset, keep_images
from vqadata.sample import ensure_scenes

SCENES = "scenes"


def split_names(splits: str) -> list[str]:
    """ "train,nominival" -> ["train", "nominival"]."""
    return [name for name in splits.split(",") if name]


def write_scenes_if_missing(folder: DataFolder) -> None:
    """The embedded scenes are written by the first run on them."""
    if folder.name == SCENES:
        ensure_scenes(folder.path)


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
    folder: DataFolder, flags: dict[str, str], tokenizer: Any, answers: Sequence[str], images: int | None
) -> list[VqaDataset]:
    """A data set for each flag, of all the splits it names; with `images`, of the first images of each split.

    DataError for a record that cannot be used, and for a question id that comes twice.
    """
    records = folder.read_splits(name for splits in flags.values() for name in split_names(splits))
    if images is not None:
        records = {name: keep_images(split, images) for name, split in records.items()}
    stores = folder.open_features()
    datasets = []
    for splits in flags.values():
        chosen = [record for name in split_names(splits) for record in records[name]]
        token_ids, lengths = encode(tokenizer, [record["sent"] for record in chosen])
        datasets.append(VqaDataset(chosen, token_ids, lengths, stores, answers))
    return datasets
