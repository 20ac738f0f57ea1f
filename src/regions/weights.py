"""The detector's weights, from each of the files in which they are published; nothing in a file is run.

- `pytorch_model.bin` of unc-nlp/frcnn-vg-finetuned on the Hugging Face hub, with the names of detectron2
- `faster_rcnn_from_caffe_attr.pkl` of py-bottom-up-attention: the same as numpy arrays in a pickle
- `bua-caffe-frcn-r101_with_attributes.pth` of bottom-up-attention.pytorch, in the order of the original: no
  object comes first instead of last, objectness has a logit for yes and one for no, and anchors are in order
  of their ratios, not of their sides
"""

import pickle
import re
import struct
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.errors import CheckpointError
from common.files import read_text
from regions.network import Detector, Sizes
from regions.proposals import ANCHORS, RATIOS, SIDES
from regions.selection import WEIGHTS

HUB = "unc-nlp/frcnn-vg-finetuned"
FILE = "pytorch_model.bin"
SIZES = Sizes()
MISSING = (
    f"The detector needs its weights, {FILE} (262 MB) of {HUB} on the Hugging Face hub "
    f"(https://huggingface.co/{HUB}): give the file or its folder with --weights. Features of any other "
    "detector do not fit LXMERT's released weights; for a model of your own, --extractor grid needs none."
)
ENDINGS = (".bin", ".pth", ".pt", ".pkl")
NAMES = {"object_names": "objects_vocab.txt", "attribute_names": "attributes_vocab.txt"}

HEAD, RPN = "roi_heads.box_predictor.", "proposal_generator.rpn_head."
# Constants, counters and settings of training that files hold beside the weights.
DROPPED = re.compile(r"pixel_(mean|std)|proposal_generator\.anchor_generator\..*|.*\.num_batches_tracked")
RENAMED = {"cls_embed": "cls_embedding", "attr_linear1": "fc_attr", "attr_linear2": "attr_score"}
MARK = f"{HEAD}cls_embed.weight"  # a name that only files in the original's order have,
MORE_ROWS = {  # which have more rows,
    **{f"{RPN}objectness_logits.{kind}": ANCHORS for kind in ("weight", "bias")},
    **{f"{HEAD}bbox_pred.{kind}": 4 for kind in ("weight", "bias")},
}
NOTHING_FIRST = [  # and the row for no object, or no attribute, before the others
    *(f"{HEAD}{layer}.{kind}" for layer in ("cls_score", "attr_score") for kind in ("weight", "bias")),
    f"{HEAD}cls_embedding.weight",
]

# What numpy arrays in a pickle are made with.
ARRAYS = {
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    *(("numpy", "ndarray"), ("numpy", "dtype"), ("collections", "OrderedDict"), ("_codecs", "encode")),
}
DAMAGE = (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, LookupError, AssertionError)
DAMAGE = (*DAMAGE, AttributeError, TypeError, ImportError, MemoryError, OverflowError, struct.error)


def find_file(weights: Path | None) -> Path:
    """The file with the weights, which may be given by its folder; CheckpointError says what is needed."""
    if weights is None:
        raise CheckpointError(MISSING)
    if not weights.exists():
        raise CheckpointError(f"{weights} does not exist. {MISSING}")
    if not weights.is_dir():
        return weights
    files = sorted(path for path in weights.iterdir() if path.suffix in ENDINGS and path.is_file())
    usual = [path for path in files if path.name == FILE] or files
    if len(usual) != 1:
        what = "no file" if not usual else f"{len(usual)} files"
        raise CheckpointError(f"{weights} holds {what} with weights: give the file itself. {MISSING}")
    return usual[0]


def load_detector(file: Path) -> Detector:
    """The detector with the weights of a file; CheckpointError unless it has all of them and no others."""
    tensors = {name: tensor for name, tensor in _read(file).items() if not DROPPED.fullmatch(name)}
    with torch.device("meta"):
        detector = Detector(SIZES)
    shapes = {name: tuple(tensor.shape) for name, tensor in detector.state_dict().items()}
    original = MARK in tensors
    if original:
        tensors = {_renamed(name): tensor for name, tensor in tensors.items()}
        for name, more in MORE_ROWS.items():
            shapes[name] = (shapes[name][0] + more, *shapes[name][1:])
    _check(tensors, shapes, file)
    if original:
        _reorder(tensors)
    detector.load_state_dict(tensors, assign=True)
    return detector.eval().requires_grad_(False)


def read_names(folder: Path) -> dict[str, list[str]]:
    """What classes and attributes are called, if the lists lie in this folder; of synonyms the first."""
    names = {}
    for key, file in NAMES.items():
        if (folder / file).is_file():
            lines = read_text(folder / file, CheckpointError).splitlines()
            names[key] = [line.split(",")[0].strip() for line in lines if line.strip()]
    counts = {"object_names": SIZES.classes, "attribute_names": SIZES.attributes}
    for key, found in names.items():
        if len(found) != counts[key]:
            raise CheckpointError(f"{folder / NAMES[key]} holds {len(found)} names, not {counts[key]}.")
    return names


def _renamed(name: str) -> str:
    part = name.removeprefix(HEAD).split(".")[0]
    return name.replace(part, RENAMED[part]) if name.startswith(HEAD) and part in RENAMED else name


def _reorder(tensors: dict[str, Tensor]) -> None:
    """Bring the original's rows into the order of detectron2."""
    for name in NOTHING_FIRST:
        tensors[name] = tensors[name].roll(-1, 0)
    for kind in ("weight", "bias"):
        no, yes = tensors[f"{RPN}objectness_logits.{kind}"].chunk(2)
        tensors[f"{RPN}objectness_logits.{kind}"] = _sides_first(yes - no)  # softmax of two: sigmoid of this
        tensors[f"{RPN}anchor_deltas.{kind}"] = _sides_first(tensors[f"{RPN}anchor_deltas.{kind}"])
        boxes = tensors[f"{HEAD}bbox_pred.{kind}"][4:].unflatten(0, (-1, 4))
        weights = torch.from_numpy(WEIGHTS).view(4, *[1] * (boxes.ndim - 2))
        tensors[f"{HEAD}bbox_pred.{kind}"] = (boxes * weights).flatten(0, 1)


def _sides_first(rows: Tensor) -> Tensor:
    """Rows for anchors in order of ratios and then sides -> in order of sides and then ratios."""
    return rows.unflatten(0, (len(RATIOS), len(SIDES), -1)).transpose(0, 1).flatten(0, 2).contiguous()


def _check(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], file: Path) -> None:
    """CheckpointError unless the tensors have these names and shapes."""
    network = "the detector of LXMERT's features (Faster R-CNN on ResNet-101, with attributes)"
    missing, unexpected = shapes.keys() - tensors.keys(), tensors.keys() - shapes.keys()
    if missing or unexpected:
        raise CheckpointError(
            f"{file} does not fit {network}: missing {_some(missing)}; unexpected {_some(unexpected)}."
        )
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != shapes[name]:
            raise CheckpointError(
                f"{file} does not fit {network}: {name} is {tuple(tensor.shape)}, not {shapes[name]}."
            )


def _some(names: Iterable[str], most: int = 3) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return (", ".join(ordered[:most]) + more) or "none"


def _read(file: Path) -> dict[str, Tensor]:
    """All tensors of a file by name, in float32; CheckpointError for whatever is not tensors or arrays."""
    if file.suffix not in ENDINGS:
        raise CheckpointError(f"{file} ends in none of {', '.join(ENDINGS)}, as weights of the detector do.")
    try:
        with warnings.catch_warnings():  # of pickles that it then refuses
            warnings.simplefilter("ignore")
            content = _read_arrays(file) if file.suffix == ".pkl" else _read_tensors(file)
    except PermissionError:
        raise CheckpointError(f"{file} may not be read by you.") from None
    except DAMAGE as error:
        if "GLOBAL" in str(error):  # how torch, and `_Arrays`, name what they did not call
            raise CheckpointError(
                f"{file} was refused: it holds more than tensors, and to read the rest could run code."
            ) from None
        raise CheckpointError(f"{file} is damaged, or no file of weights; nothing in it was run.") from None
    found = content.get("model", content) if isinstance(content, dict) else None
    numbers = isinstance(found, dict) and {name: _tensor(value) for name, value in found.items()}
    if not numbers or not all(isinstance(name, str) and t is not None for name, t in numbers.items()):
        raise CheckpointError(f"{file} holds no dictionary of weights by name.")
    return numbers


def _tensor(value: Any) -> Tensor | None:
    """Numbers as a tensor; None for anything else."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
        value = torch.from_numpy(np.array(value, np.float32))
    return value.detach().float().contiguous() if isinstance(value, Tensor) else None


def _read_tensors(file: Path) -> Any:
    return torch.load(file, map_location="cpu", weights_only=True)


def _read_arrays(file: Path) -> Any:
    with file.open("rb") as opened:
        return _Arrays(opened, encoding="latin1").load()  # Python 2 may have written it


class _Arrays(pickle.Unpickler):
    """Reads a pickle of numpy arrays, and refuses whatever else it would call."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ARRAYS:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return super().find_class(module, name)
