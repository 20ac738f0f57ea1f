"""Checkpoints: every road in, and the one way out.

    python src/lxmert/checkpoint.py export --run snap/vqa/<version> --to DIR

In: `load_weights` takes the road that an `Origin` names; nothing in a file is ever executed. Out: the best
epoch of a run becomes one folder that needs nothing else, for `standard` and `Frozen` one that plain
transformers loads (see `lxmert.export`).
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # as a script it is not in a package: make it one
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from transformers import LxmertConfig

from common.errors import CheckpointError
from lxmert.best import Best, read_best
from lxmert.export import write_export
from lxmert.hub import load_pretrained
from lxmert.original import load_original
from lxmert.weights import Origin, Pretrained


def load_weights(origin: Origin) -> Pretrained:
    """The pre-trained weights; from scratch only sizes and tokenizer, with all of LXMERT `initialised`.

    Raises CheckpointError if they cannot be used, or if `origin` asks for other numbers of layers.
    """
    if origin.load_lxmert_qa:
        weights = load_original(origin.load_lxmert_qa, with_head=True)
    elif origin.load_lxmert:
        weights = load_original(origin.load_lxmert, with_head=False)
    else:
        weights = load_pretrained(origin.pretrained, (origin.llayers, origin.rlayers, origin.xlayers))
    if origin.from_scratch:
        report = [f"initialised everything: random weights with the sizes of {weights.source}"]
        weights = weights._replace(
            encoder={}, answer_head=None, answers=None, initialised=("",), report=report
        )
    _apply_sizes(weights.config, origin)
    return weights


def fit_features(weights: Pretrained, size: int) -> None:
    """Make the size of a region's features, `size` in the data, that of the weights' configuration.

    Only where what reads them is random; else CheckpointError unless the two agree.
    """
    config = weights.config
    if size != config.visual_feat_dim and not "encoder.visn_fc.".startswith(weights.initialised):
        raise CheckpointError(
            f"{weights.source} reads region features of size {config.visual_feat_dim}, and those of the data "
            f"have {size}; choose the features or the pre-trained model that go together"
        )
    config.visual_feat_dim = size


def weights_behind(best: Best, origin: Origin) -> Pretrained:
    """The pre-trained weights that a BEST folder was trained from; `origin` is what its `spec` says of them.

    CheckpointError says which file is missing, or is another one than it was.
    """
    try:
        weights = load_weights(origin)
    except CheckpointError as error:
        raise CheckpointError(
            f"{best.folder} needs the pre-trained {best.pretrained_source} (sha256 "
            f"{best.pretrained_sha256[:12]}...), from which it was trained: {error}"
        ) from None
    require_same_file(best, weights)
    fit_features(weights, best.features)
    return weights


def require_same_file(best: Best, weights: Pretrained) -> None:
    """CheckpointError unless `weights` are those that `best` was trained from, by checksum."""
    if weights.sha256 != best.pretrained_sha256:
        raise CheckpointError(
            f"{best.folder} was trained from {best.pretrained_source} with the sha256 "
            f"{best.pretrained_sha256[:12]}..., but {weights.source} has {weights.sha256[:12]}...; "
            "its frozen parts would be wrong. Put the original file back."
        )


def export(run: Path, to: Path) -> None:
    """Write the best epoch of a run folder to the new folder `to`, whole or not at all.

    CheckpointError or CheckpointError if the run, or the pre-trained file it started from, cannot be used.
    """
    if to.exists():
        raise CheckpointError(f"{to} exists already; name a new folder, or delete it.")
    best = read_best(run / "BEST")
    try:
        origin = Origin(**{field.name: best.spec[field.name] for field in dataclasses.fields(Origin)})
    except KeyError as error:
        raise CheckpointError(f"{best.folder} is damaged: its model.json does not say {error}.") from None
    weights = weights_behind(best, origin)
    aside = to.with_name(f"{to.name}.new")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        write_export(run, best, weights, aside, to)
    except BaseException:
        shutil.rmtree(aside)
        raise
    aside.rename(to)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Take a fine-tuned model elsewhere.", allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="export")
    what = "write the best epoch of a run as one folder that needs nothing else"
    out = commands.add_parser("export", help=what, description=what, allow_abbrev=False)
    out.add_argument("--run", type=Path, required=True, help="a run folder, snap/vqa/<version>")
    out.add_argument("--to", type=Path, required=True, help="the folder to write; must not exist")
    options = parser.parse_args(arguments)
    try:
        export(options.run, options.to)
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename or options.to}: {error.strerror or error}", file=sys.stderr)
        return 2
    print(f"wrote {options.to}; see {options.to / 'README.md'}")
    return 0


def _apply_sizes(config: LxmertConfig, origin: Origin) -> None:
    """Layer counts come from the checkpoint; flags may set them only from scratch."""
    for flag, field in (("llayers", "l_layers"), ("xlayers", "x_layers"), ("rlayers", "r_layers")):
        wanted, there = getattr(origin, flag), getattr(config, field)
        if wanted is None or wanted == there:
            continue
        if not origin.from_scratch:
            raise CheckpointError(
                f"--{flag} {wanted} contradicts the pre-trained model, which has {there}; leave it out"
            )
        if wanted < 1:
            raise CheckpointError(f"--{flag} must be at least 1, not {wanted}")
        setattr(config, field, wanted)
    if origin.dropout is not None:
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = origin.dropout


if __name__ == "__main__":
    sys.exit(main())
