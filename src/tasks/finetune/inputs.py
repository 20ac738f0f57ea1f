"""The identity of everything that decides a run's numbers, so that a resumed run is the run that it was."""

from pathlib import Path
from typing import Any

from common.files import sha256_of
from lxmert.loading import FUNCTION_FIELDS, TRAINING_FIELDS
from tasks.finetune.args import VqaArgs
from tasks.finetune.best import WEIGHTS, Best
from tasks.finetune.setup import Setup
from training.machine import Machine
from training.run_folder import PROCESSES
from vqadata.dataset import split_names
from vqadata.folder import DataFolder

TITLES = {"train": "training", "valid": "validation"}


def inputs_of(args: VqaArgs, machine: Machine, setup: Setup, start: Best | None) -> dict[str, Any]:
    """Digests of what is read, and values of what is settled, by names that say to people what they are.

    Where files lie is no part of it. `start` is the checkpoint of --load.
    """
    folder = DataFolder(Path(args.data), args.dataset)
    splits = {flag: split_names(names) for flag, names in args.splits.items()}
    files = [folder.answers_file, *(folder.split_file(name) for names in splits.values() for name in names)]
    files += [file for name in splits["valid"] if (file := folder.ground_truth_file(name)).is_file()]
    inputs: dict[str, Any] = {file.relative_to(folder.path).as_posix(): sha256_of(file) for file in files}
    for flag, dataset in zip(splits, setup.datasets, strict=True):
        inputs[f"features of the {TITLES[flag]} images"] = dataset.stores.digest(dataset.images)
    config = setup.weights.config
    inputs |= {f"config.json: {name}": getattr(config, name) for name in (*FUNCTION_FIELDS, *TRAINING_FIELDS)}
    return inputs | {
        "pre-trained weights (model.safetensors, pytorch_model.bin or _LXRT.pth)": setup.weights.sha256,
        "tokenizer (vocab.txt, tokenizer.json, tokenizer_config.json)": setup.tokenizer,
        "checkpoint of --load": sha256_of(start.folder / WEIGHTS) if start else None,
        "precision": machine.precision,
        PROCESSES: machine.processes,
    }
