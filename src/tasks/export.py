"""Take the best epoch of a run elsewhere, as one folder that needs nothing else.

    bash run/export.bash demo --to demo_export
    bash run/export.bash --run <folder> --to demo_export

- standard and Frozen: a model that transformers' LxmertForQuestionAnswering
  loads with `from_pretrained`, low-rank updates merged into its weights, the
  answers as its label map, and a tokenizer
- adaptive strategies, which transformers does not know: a BEST folder with the
  pre-trained model in it; with --plain, if each gate was the same for all
  validation questions, the model for transformers that this makes

README.md in it says what it was trained on, how well it does and what its
scores are worth.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from adaptive.copies import is_tuned_side, plain_name
from common.cli import Parser, run_command
from common.errors import UserError
from common.files import check_name, replace_folder, sha256_of
from lxmert.loading import Pretrained, answer_rows, check_complete
from lxmert.sources import read_tensors
from lxmert.tokens import load_tokenizer
from lxmert.units import unused_modules
from report.run import RUNS, Run
from tasks.finetune.best import (
    DATASET,
    ENCODER,
    HEAD,
    INSIDE,
    PLAIN,
    WEIGHTS,
    Best,
    interpolate,
    load_base_weights,
    read_best,
    write_best,
)
from tasks.finetune.fold import constant_gates, fold
from tasks.finetune.spec import LOCATIONS
from tasks.finetune.strategies import STRATEGIES
from vqadata.answers import convert_answer
from vqadata.sample import parse_draw

LEAKAGE = """\
The released LXMERT was pre-trained on questions and answers of VQA v2 train and nominival, and VQA-CP v2 is a
new division of the same questions: a model that starts from it has seen VQA-CP v2's test questions with
answers. Its scores on VQA-CP v2 measure less than the name says."""
SCENES = """\
The embedded scenes are a small synthetic data set that illustrates the method. These are not VQA results."""
OTHER = f"If questions of VQA are among the data: {LEAKAGE[0].lower()}{LEAKAGE[1:]}"
WORTH = {"vqav2": LEAKAGE, "vqacpv2": LEAKAGE}  # what scores mean, by data set
SCORES = {  # of the metrics of an epoch: what the model card calls each, and how it writes it
    "epoch": ("epoch", "{:.0f}"),
    "train_accuracy": ("training accuracy (running)", "{:.2f} %"),
    "val_accuracy": ("validation accuracy", "{:.2f} %"),
    "gap": ("gap", "{:+.2f} points"),
    "overall": ("official VQA accuracy (validation)", "{:.2f} %"),
    "share_tuned": ("share tuned (validation)", "{:.3f}"),
}
USE_PLAIN = """\
    from transformers import AutoTokenizer, LxmertForQuestionAnswering
    model = LxmertForQuestionAnswering.from_pretrained("{to}")
    tokenizer = AutoTokenizer.from_pretrained("{to}")

`model.config.id2label` names the answers. Questions are lower case, region boxes divided by the image's width
and height, visual_attention_mask 1 for regions and 0 for padding."""
USE_ADAPTIVE = """\
    bash run/vqa_test.bash 0 {version} --load {to}

in the repository of this project: transformers has no class for a model with two copies and a policy.
`pretrained/` is the frozen side, `model.safetensors` what training changed, policy included."""
FOLDED = "; its gates were the same for all validation questions, so what they chose is all there is here"
INTERPOLATED = "; weights are {share:g} times these and the rest pre-trained, which has other scores"
CARD = """\
# {name}: LXMERT fine-tuned for visual question answering

- data: {data}
- strategy: {strategy}
- start: {start}
- code: commit {commit}

| best epoch by validation accuracy | |
|---|---|
{scores}

The best epoch was chosen on the validation data, so its accuracy there is a little too high.

{worth}

## Use

{use}
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(prog="export.bash", description=__doc__)
    run = parser.add_mutually_exclusive_group(required=True)
    run.add_argument("version", nargs="?", help="the name of a run, whose folder is snap/vqa/<version>")
    run.add_argument("--run", type=Path, metavar="FOLDER", help="a run folder elsewhere")
    parser.add_argument("--to", type=Path, metavar="DIR", required=True, help="a new folder, to be written")
    parser.add_argument("--plain", action="store_true", help="for transformers, where gates are constant")
    flag = {"type": float, "metavar": "A"}
    parser.add_argument("--interpolate", **flag, help="A x tuned + (1 - A) x pre-trained weights")
    args = parser.parse_args(argv)
    if args.interpolate is not None and not 0 <= args.interpolate <= 1:
        parser.error(f"--interpolate is between 0 and 1, not {args.interpolate}")
    export(args.run or RUNS / check_name("version", args.version), args.to, args.plain, args.interpolate)
    print(f"wrote {args.to}; see {args.to / 'README.md'}")


def export(run: Path, to: Path, plain: bool = False, share: float | None = None) -> None:
    """Write the best epoch of a run folder to the new folder `to`, whole or not at all.

    plain: an adaptive run as a plain LXMERT, if its gates are constant. share: of the tuned weights; the rest
    is that of the pre-trained ones. UserError if gates are not constant, or weights not those of one copy, if
    the run or the pre-trained file that it started from cannot be used, or if `to` exists.
    """
    if to.exists():
        raise UserError(f"{to} exists already; name a new folder, or delete it.")
    best = read_best(run / "BEST")
    gated = STRATEGIES[best.spec.strategy].adaptive
    gates = constant_gates(Run(run), best) if gated and plain else None
    adaptive = gated and not plain
    card = model_card(Run(run), best, to, plain, share)
    pretrained = load_base_weights(best)
    file = best.folder / WEIGHTS
    tensors = read_tensors(file)
    if share is not None:
        tensors = interpolate(best.spec, tensors, by_saved_names(pretrained, best.answers), share)
    head = {name.removeprefix(HEAD): t for name, t in tensors.items() if name.startswith(HEAD)}
    encoder = pretrained.encoder | {  # of a module that is adapted, the frozen side
        plain_name(name.removeprefix(ENCODER)): tensor
        for name, tensor in tensors.items()
        if name.startswith(ENCODER) and not is_tuned_side(name)
    }
    if not adaptive:
        encoder = fold(encoder, best, tensors, pretrained.config, gates)
    fine_tuned = {"encoder": encoder, "answer_head": head, "answers": best.answers, "initialised": ()}
    pretrained = pretrained._replace(source=str(file), **fine_tuned)
    check_complete(pretrained)
    with replace_folder(to) as folder:
        if adaptive:
            write_adaptive(folder, best, tensors, pretrained)
        else:
            write_question_answering(folder, pretrained, best.dataset)
        (folder / "README.md").write_text(card, encoding="utf-8")


def by_saved_names(pretrained: Pretrained, answers: Sequence[str]) -> dict[str, Tensor]:
    """The tensors of a pre-trained model as BEST folders name them, its head with a row for each answer."""
    named = {f"{ENCODER}{name}": tensor for name, tensor in pretrained.encoder.items()}
    if pretrained.answer_head is None:
        return named
    rows, _ = answer_rows(pretrained.answer_head, pretrained.answers, answers, convert_answer)
    return named | {f"{HEAD}{name}": tensor for name, tensor in rows.items()}


def write_adaptive(folder: Path, best: Best, tensors: Mapping[str, Tensor], pretrained: Pretrained) -> None:
    """The BEST folder again, as of a run that started from the model that now lies inside it."""
    inside = folder / INSIDE
    inside.mkdir()
    write_hugging_face(inside, "LxmertModel", pretrained, pretrained.encoder)
    inherited = tuple(f"{ENCODER}{name}." for name in unused_modules(pretrained.config))
    own = {
        name: tensor
        for name, tensor in tensors.items()
        if ".frozen." not in name and not plain_name(name).startswith(inherited)
    }
    refit = best.spec.refit and Path(best.spec.refit).name
    origin = dict.fromkeys(LOCATIONS) | {"pretrained": INSIDE, "from_scratch": False, "refit": refit}
    spec = replace(best.spec, **origin)
    write_best(best._replace(folder=folder, spec=spec, pretrained_sha256=sha256_of(inside / WEIGHTS)), own)


def write_question_answering(folder: Path, model: Pretrained, dataset: str) -> None:
    """What `LxmertForQuestionAnswering.from_pretrained(folder)` loads, label map included."""
    model.config.num_qa_labels = len(model.answers)
    setattr(model.config, DATASET, dataset)  # what it is asked about if nothing else is said
    model.config.id2label = dict(enumerate(model.answers))
    model.config.label2id = {answer: index for index, answer in enumerate(model.answers)}
    tensors = {f"lxmert.{name}": t for name, t in model.encoder.items()}
    tensors |= {f"answer_head.{name}": t for name, t in model.answer_head.items()}
    write_hugging_face(folder, PLAIN, model, tensors)


def write_hugging_face(
    folder: Path, architecture: str, model: Pretrained, tensors: Mapping[str, Tensor]
) -> None:
    """What `from_pretrained(folder)` of a class of transformers loads, with the tokenizer of `model`.

    CheckpointError if there is no tokenizer.
    """
    model.config.architectures = [architecture]
    model.config.dtype = torch.float32
    model.config.save_pretrained(folder)
    # Copies, because safetensors refuses two names for one memory.
    plain = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    save_file(plain, folder / WEIGHTS, metadata={"format": "pt"})
    load_tokenizer(model.tokenizer).save_pretrained(folder)


def model_card(run: Run, best: Best, to: Path, plain: bool, share: float | None) -> str:
    """README.md of an exported model: data, strategy, scores, origin, and what the scores are worth."""
    splits = f"trained on {run.arguments.get('train')}, validated on {run.arguments.get('valid')}"
    strategy, spec = STRATEGIES[best.spec.strategy], best.spec
    random = "random weights with the sizes of " if spec.from_scratch else ""
    commit, changed = run.environment.get("commit") or "unknown", run.environment.get("dirty")
    official = best.metrics.get("val_official")
    figures = best.metrics | (official if isinstance(official, dict) else {})
    scores = [
        f"| {title} | {form.format(figures[name])} |"
        for name, (title, form) in SCORES.items()
        if isinstance(figures.get(name), int | float)
    ]
    return CARD.format(
        name=run.name,
        data=f"{best.dataset}, {splits}, {len(best.answers):,} answers",
        strategy=spec.title
        + (", frozen weights in bf16" if spec.frozen_dtype == "bf16" else "")
        + (FOLDED if strategy.adaptive and plain else "")
        + (INTERPOLATED.format(share=share) if share is not None else ""),
        start=f"{random}`{best.pretrained_source}` (sha256 `{best.pretrained_sha256}`)",
        commit=f"`{commit}`" + (" with uncommitted changes" if changed else ""),
        scores="\n".join(scores),
        worth=SCENES if parse_draw(best.dataset) else WORTH.get(best.dataset, OTHER),
        use=(USE_ADAPTIVE if strategy.adaptive and not plain else USE_PLAIN).format(to=to, version=run.name),
    )


if __name__ == "__main__":
    sys.exit(run_command(main, "interrupted; nothing was written"))
