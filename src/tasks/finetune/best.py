"""BEST/: what training changed, and how to build the rest again.

model.safetensors   every tensor that the pre-trained file does not give
model.json          what was built (`spec`, the fields of `ModelSpec`), data set, size of region features,
                    name and sha256 of the pre-trained file, its configuration, a digest of its tokenizer,
                    metrics of the epoch
the answers         in label order, in the file that data sets have for them
pretrained/         the pre-trained model; only in exports of two copies, which need nothing else
checksums.json      of these files

An export of a plain model is such a folder too: its model.safetensors and config.json are then all of it.
"""

import dataclasses
import json
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from common.errors import CheckpointError, UserError
from common.files import (
    CHECKSUMS,
    check_name,
    fault_of,
    latest_complete,
    read_json,
    replace_folder,
    write_json,
)
from lxmert.loading import FUNCTION_FIELDS, Pretrained, check_match, load_pretrained, set_feature_size
from lxmert.sources import read_tensors
from lxmert.tokens import fingerprint, load_tokenizer
from tasks.finetune.args import VqaArgs, validate
from tasks.finetune.spec import FILES, LOCATIONS, YOUNGER, ModelSpec
from tasks.finetune.strategies import STRATEGIES
from training.run_folder import BEST
from vqadata.folder import ANSWERS
from vqadata.records import read_answers

FORMAT = 1
WEIGHTS, DESCRIPTION, INSIDE, CONFIG = "model.safetensors", "model.json", "pretrained", "config.json"
ENCODER, HEAD = "model.lxmert.", "model.answer_head."  # before the tensors' names; others are the policy's
LOW_RANK = (".down", ".up")  # the ends of the names of low-rank factors

DESCRIBED = {"spec": dict, "dataset": str, "features": int, "pretrained": dict, "metrics": dict}


class Best(NamedTuple):
    """A BEST folder without its tensors."""

    folder: Path
    spec: ModelSpec
    dataset: str
    features: int  # size of a region's features
    answers: list[str]
    pretrained_source: str
    pretrained_sha256: str
    metrics: dict[str, Any]  # of the epoch that it holds
    config: dict[str, Any] | None = None  # of the pre-trained model, see `function_of`; None: not recorded
    tokenizer: str | None = None  # its fingerprint, see lxmert.tokens

    @property
    def is_whole(self) -> bool:
        """Whether its pre-trained model is the folder itself, with nothing trained beside it."""
        source = self.spec.pretrained
        return source is not None and Path(source).absolute() == self.folder.absolute()


def save_best(best: Best, model: nn.Module, pretrained: Pretrained) -> None:
    """Write the folder of `best` as a whole; UserError if that cannot be done."""
    with replace_folder(best.folder) as fresh:
        write_best(best._replace(folder=fresh), _own_tensors(model, pretrained))


def write_best(best: Best, tensors: Mapping[str, Tensor]) -> None:
    """Write the files of `best` into its folder, which is there."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(plain, best.folder / WEIGHTS)
    describe(best)


def describe(best: Best) -> None:
    """Write all but the tensors of `best` into its folder, which is there."""
    description = {
        "format": FORMAT,
        "spec": dataclasses.asdict(best.spec),
        "dataset": best.dataset,
        "features": best.features,
        "pretrained": {
            "source": best.pretrained_source,
            "sha256": best.pretrained_sha256,
            "config": best.config,
            "tokenizer": best.tokenizer,
        },
        "metrics": best.metrics,
    }
    write_json(best.folder / DESCRIPTION, description)
    (best.folder / ANSWERS).write_text(json.dumps(best.answers) + "\n", encoding="utf-8")


def find_best(folder: Path) -> Best:
    """That of a run folder, of a BEST folder, or of an export.

    CheckpointError if the folder is none of them, or damaged.
    """
    return read_best(folder / BEST if latest_complete(folder / BEST) else folder)


def read_best(folder: Path) -> Best:
    """All but the tensors; CheckpointError if a file is missing or says what cannot be."""
    folder = latest_complete(folder) or folder
    for name in (DESCRIPTION, ANSWERS):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder} is not a BEST folder: {name} is missing. It looks like snap/vqa/<version>/BEST."
            )
    if (folder / CHECKSUMS).exists() and (fault := fault_of(folder)):  # older ones have none
        raise CheckpointError(
            f"{fault}. Get it from a copy, or, if it was changed on purpose, delete {folder / CHECKSUMS}."
        )
    try:
        description = _require(read_json(folder / DESCRIPTION), {"format": int})
        if description["format"] != FORMAT:
            raise CheckpointError(f"{folder} is of format {description['format']}; this code reads {FORMAT}.")
        _require(description, DESCRIBED)
        if description["features"] < 1:
            raise UserError(f"{DESCRIPTION} says features is {description['features']}, which cannot be")
        origin = _require(description["pretrained"], {"source": str, "sha256": str})
        return Best(
            folder,
            _read_spec(description["spec"], folder),
            check_name("data set", description["dataset"]),
            description["features"],
            read_answers(folder / ANSWERS),
            origin["source"],
            origin["sha256"],
            description["metrics"],
            origin.get("config"),
            origin.get("tokenizer"),
        )
    except CheckpointError:
        raise
    except UserError as error:
        raise CheckpointError(f"{folder} is damaged: {str(error).rstrip('.')}.") from None


def refuse_two_copies(source: str | None) -> None:
    """CheckpointError if what is to be a pre-trained model is a BEST folder of which that is only a part."""
    if source and (Path(source) / DESCRIPTION).is_file() and not (Path(source) / CONFIG).is_file():
        raise CheckpointError(
            f"{source} holds what a run trained, not a pre-trained model: --load {source} goes on from it"
            + f", --pretrained {source}/{INSIDE} from its frozen copies" * (Path(source) / INSIDE).is_dir()
        )


def best_fault(folder: Path, epoch: int) -> str | None:
    """What is wrong with the BEST folder of a run whose best epoch so far is this one, or None.

    It may hold a later epoch: of a run that went back to an earlier state.
    """
    folder = latest_complete(folder) or folder
    if fault := fault_of(folder):
        return fault
    held = read_best(folder).metrics.get("epoch", 0)
    return None if held >= epoch else f"{folder} holds epoch {held}"


def load_base_weights(best: Best) -> Pretrained:
    """The pre-trained weights that a BEST folder was trained from.

    CheckpointError says which file is missing, or is another one than it was.
    """
    try:
        pretrained = load_pretrained(best.spec)
    except CheckpointError as error:
        raise CheckpointError(
            f"{best.folder} needs the pre-trained {best.pretrained_source} (sha256 "
            f"{best.pretrained_sha256[:12]}...), from which it was trained: {error}"
        ) from None
    _require_same_file(best, pretrained)
    set_feature_size(pretrained, best.features)
    now = function_of(pretrained)
    before = best.config if isinstance(best.config, dict) else now
    if changed := [name for name, value in now.items() if before.get(name) != value]:
        raise CheckpointError(
            f"{best.folder} was trained with another config.json of {pretrained.source}, which differs in "
            f"{', '.join(changed)}: its answers would be others. Put the original file back."
        )
    return pretrained


def load_same_tokenizer(best: Best, pretrained: Pretrained) -> PreTrainedTokenizerBase:
    """The tokenizer that a BEST folder was trained with; CheckpointError if it is another one now."""
    tokenizer = load_tokenizer(pretrained.tokenizer)
    if best.tokenizer not in (None, fingerprint(tokenizer)):
        raise CheckpointError(
            f"{best.folder} was trained with another tokenizer than that of {pretrained.tokenizer} is now "
            "(vocab.txt, tokenizer.json or tokenizer_config.json): its answers would be others. Put the "
            "original files back."
        )
    return tokenizer


def function_of(pretrained: Pretrained) -> dict[str, Any]:
    """What its configuration says of the function that the weights make."""
    return {name: getattr(pretrained.config, name) for name in FUNCTION_FIELDS}


def load_best(best: Best, model: nn.Module, pretrained: Pretrained, share: float | None = None) -> None:
    """Put the saved tensors over a model freshly built from the same pre-trained file.

    share: of the saved tensors; the rest is that of the pre-trained ones, see `interpolate`. CheckpointError
    if that file is another one, or if not exactly the expected tensors are there.
    """
    _require_same_file(best, pretrained)
    if best.is_whole:
        if share is not None:
            raise UserError(f"--interpolate needs the pre-trained model, which {best.folder} does not hold")
        return
    file = best.folder / WEIGHTS
    tensors = read_tensors(file)
    check_match(_own_tensors(model, pretrained), tensors, str(file))
    if share is not None:
        state, names = model.state_dict(), pretrained_names(model, pretrained)
        tensors = interpolate(best.spec, tensors, {name: state[name] for name in names}, share)
    model.load_state_dict(tensors, strict=False)


def pretrained_names(model: nn.Module, pretrained: Pretrained) -> set[str]:
    """The tensors, of a model that was built from it, which start from the values of a pre-trained file."""
    parts = (ENCODER, HEAD) if pretrained.answer_head is not None else (ENCODER,)
    random = tuple(f"{ENCODER}{start}" for start in pretrained.initialised)
    names = {name for name in model.state_dict() if name.startswith(parts) and not name.endswith(LOW_RANK)}
    return {name for name in names if not name.startswith(random)}


def interpolate(
    spec: ModelSpec, tuned: Mapping[str, Tensor], pretrained: Mapping[str, Tensor], share: float
) -> dict[str, Tensor]:
    """share * tuned + (1 - share) * pre-trained weights (WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903).

    What is not pre-trained stays as it is tuned; low-rank updates, which start from 0, are scaled. UserError
    for models that hold both weights anyway, or that began with random ones.
    """
    if STRATEGIES[spec.strategy].adaptive or spec.from_scratch:
        why = "began with random weights" if spec.from_scratch else f"({spec.strategy}) holds two copies"
        raise UserError(f"--interpolate is between a tuned and a pre-trained model, and this one {why}")
    mixed = {name: share * tensor for name, tensor in tuned.items() if name.endswith(LOW_RANK[1])}
    shared = tuned.keys() & pretrained.keys()
    mixed |= {name: torch.lerp(pretrained[name], tuned[name], share) for name in shared}
    return {**tuned, **mixed}


def _require_same_file(best: Best, pretrained: Pretrained) -> None:
    if pretrained.sha256 != best.pretrained_sha256:
        raise CheckpointError(
            f"{best.folder} was trained from {best.pretrained_source} with the sha256 "
            f"{best.pretrained_sha256[:12]}..., but {pretrained.source} has {pretrained.sha256[:12]}...; "
            "its frozen parts would be wrong. Put the original file back."
        )


def _own_tensors(model: nn.Module, pretrained: Pretrained) -> dict[str, Tensor]:
    """What the pre-trained file does not give: all but those tensors of LXMERT that came from it and stay."""
    stays = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    random = tuple(f"{ENCODER}{start}" for start in pretrained.initialised)
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name not in stays or not name.startswith(ENCODER) or name.startswith(random)
    }


def _read_spec(entries: dict[str, Any], folder: Path) -> ModelSpec:
    """The spec of a description, by the rules of the command line; UserError if it breaks one."""
    kinds = typing.get_type_hints(ModelSpec)
    entries = YOUNGER | entries
    _require(entries, kinds)
    if unknown := entries.keys() - kinds.keys():
        raise UserError(f"{DESCRIPTION} says something unknown of the model: {', '.join(sorted(unknown))}")
    validate(VqaArgs(**entries))
    if inside := next((at for at in (folder, folder / INSIDE) if (at / CONFIG).is_file()), None):
        entries |= {**dict.fromkeys(FILES), "pretrained": str(inside)}
    if not any(entries[name] for name in LOCATIONS):
        raise UserError(f"{DESCRIPTION} names no pre-trained model")
    return ModelSpec(**entries)


def _require(entries: Any, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """`entries`, if it is an object that has each of these names with a value of its kind; else UserError."""
    if not isinstance(entries, dict):
        raise UserError(f"{DESCRIPTION} does not hold an object where it should")
    for name, kind in kinds.items():
        if name not in entries:
            raise UserError(f"{DESCRIPTION} does not say {name!r}")
        types, found = typing.get_args(kind) or (kind,), type(entries[name])  # type(): true is no number,
        if found not in types and not (found is int and float in types):  # but 5 is a number like 5.0
            raise UserError(f"{DESCRIPTION} says {name} is {entries[name]!r}, which cannot be")
    return entries
