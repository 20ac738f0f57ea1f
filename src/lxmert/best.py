"""BEST/: what training changed, and how to build the rest again.

model.safetensors   every tensor that the pre-trained file does not give
model.json          what was built (`spec`, which has the fields of `Origin` among others), data set, size of
                    region features, name and sha256 of the pre-trained file, epoch and accuracy
answers.json        the answers in label order
pretrained/         the pre-trained model; only in exported folders, which need nothing else
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save_file
from torch import Tensor

from common.errors import CheckpointError

FORMAT = 1
INSIDE = "pretrained"
WEIGHTS = "model.safetensors"


class Best(NamedTuple):
    """A BEST folder without its tensors."""

    folder: Path
    spec: Any  # a dictionary in the file; whoever builds the model makes it a class
    dataset: str
    features: int  # size of a region's features
    answers: list[str]
    pretrained_source: str
    pretrained_sha256: str
    metrics: dict[str, Any]  # of the epoch that it holds


def write_best(best: Best, tensors: Mapping[str, Tensor]) -> None:
    """Write the files of `best` into its folder, which is there and empty."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(plain, best.folder / WEIGHTS)
    description = {
        "format": FORMAT,
        "spec": best.spec,
        "dataset": best.dataset,
        "features": best.features,
        "pretrained": {"source": best.pretrained_source, "sha256": best.pretrained_sha256},
        "metrics": best.metrics,
    }
    (best.folder / "model.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    (best.folder / "answers.json").write_text(json.dumps(best.answers) + "\n", encoding="utf-8")


def read_best(folder: Path) -> Best:
    """All but the tensors, with `spec` as it stands there; CheckpointError if one is missing or damaged."""
    try:
        description = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        answers = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
        if description["format"] != FORMAT:
            raise CheckpointError(f"{folder} is of format {description['format']}; this code reads {FORMAT}.")
        spec = {**description["spec"]}
        if (folder / INSIDE).is_dir():
            spec |= {"pretrained": str(folder / INSIDE), "load_lxmert": None, "load_lxmert_qa": None}
        return Best(
            folder,
            spec,
            description["dataset"],
            description["features"],
            answers,
            description["pretrained"]["source"],
            description["pretrained"]["sha256"],
            description["metrics"],
        )
    except FileNotFoundError as error:
        name = Path(error.filename).name
        raise CheckpointError(
            f"{folder} is not a BEST folder: {name} is missing. It looks like snap/vqa/<version>/BEST."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} is damaged: {error}.") from None
