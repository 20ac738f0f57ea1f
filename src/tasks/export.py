"""Take the best epoch of a run elsewhere, as one folder that needs nothing else.

    bash run/export.bash demo --to demo_export
    bash run/export.bash demo --to demo_export --onnx --torch-export
    bash run/export.bash --run <folder> --to demo_export

- standard and Frozen: a model that transformers' LxmertForQuestionAnswering
  loads with `from_pretrained`, low-rank updates merged into its weights, the
  answers as its label map, and a tokenizer
- adaptive strategies, which transformers does not know: a BEST folder with the
  pre-trained model in it; with --plain, if each gate was the same for all
  validation questions, the model for transformers that this makes

`bash run/vqa_test.bash 0 v --load demo_export` evaluates each of them, and
`bash run/vqa_finetune.bash 0 v --load demo_export` trains on; models for
transformers are also something to start from, with --pretrained.

--onnx and --torch-export add the model as a graph for any number of questions,
words and regions: both copies are computed, the likelier gate chooses. It must
give the model's logits on validation questions; graph.json says what goes in
and out, README.md what it was trained on and what its scores are worth.
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
from tasks.exports.card import PICTURE, draw_policy_of, model_card, public_name
from tasks.exports.graph import GRAPHS, questions_of, require_graphable, write_graphs
from tasks.finetune.best import (
    ENCODER,
    HEAD,
    INSIDE,
    WEIGHTS,
    Best,
    describe,
    interpolate,
    load_base_weights,
    read_best,
    write_best,
)
from tasks.finetune.fold import constant_gates, fold
from tasks.finetune.spec import FILES, ModelSpec
from tasks.finetune.strategies import STRATEGIES
from vqadata.answers import convert_answer


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(prog="export.bash", description=__doc__)
    run = parser.add_mutually_exclusive_group(required=True)
    run.add_argument("version", nargs="?", help="the name of a run, whose folder is snap/vqa/<version>")
    run.add_argument("--run", type=Path, metavar="FOLDER", help="a run folder elsewhere")
    parser.add_argument("--to", type=Path, metavar="DIR", required=True, help="a new folder, to be written")
    parser.add_argument("--plain", action="store_true", help="for transformers, where gates are constant")
    parser.add_argument("--interpolate", type=float, metavar="A", help="A x tuned + (1 - A) x pre-trained")
    for name, (file, _) in GRAPHS.items():
        parser.add_argument(f"--{name}", action="store_true", help=f"write {file} too")
    args = parser.parse_args(argv)
    if args.interpolate is not None and not 0 <= args.interpolate <= 1:
        parser.error(f"--interpolate is between 0 and 1, not {args.interpolate}")
    folder = args.run or RUNS / check_name("version", args.version)
    graphs = [name for name in GRAPHS if vars(args)[name.replace("-", "_")]]
    agreement = export(folder, args.to, args.plain, args.interpolate, graphs)
    print(*agreement, f"wrote {args.to}; see {args.to / 'README.md'}", sep="\n")


def export(
    run: Path, to: Path, plain: bool = False, share: float | None = None, graphs: Sequence[str] = ()
) -> list[str]:
    """Write the best epoch of a run folder to the new folder `to`, whole or not at all.

    plain: an adaptive run as a plain LXMERT, if its gates are constant. share: of the tuned weights; the rest
    is that of the pre-trained ones. graphs: names in GRAPHS; returns how well each agrees with the model.
    UserError if gates are not constant, or weights not those of one copy, if the run, its data or the
    pre-trained file that it started from cannot be used, if a graph disagrees, or if `to` exists.
    """
    if to.exists():
        raise UserError(f"{to} exists already; name a new folder, or delete it.")
    best = read_best(run / "BEST")
    gated = STRATEGIES[best.spec.strategy].adaptive
    adaptive = gated and not plain
    require_graphable(graphs, best.spec)
    gates = constant_gates(Run(run), best) if gated and plain else None
    pretrained = load_base_weights(best)
    questions = questions_of(Run(run), best, pretrained) if graphs else None
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
        named = best._replace(folder=folder, pretrained_source=public_name(best.pretrained_source))
        if adaptive:
            write_adaptive(named, tensors, pretrained)
        else:
            write_question_answering(named, pretrained)
        picture = gated and draw_policy_of(Run(run), best, folder / PICTURE)
        card = model_card(Run(run), best, to, not adaptive, share, picture)
        (folder / "README.md").write_text(card, encoding="utf-8")
        return write_graphs(folder, graphs, questions) if questions else []


def by_saved_names(pretrained: Pretrained, answers: Sequence[str]) -> dict[str, Tensor]:
    """The tensors of a pre-trained model as BEST folders name them, its head with a row for each answer."""
    named = {f"{ENCODER}{name}": tensor for name, tensor in pretrained.encoder.items()}
    if pretrained.answer_head is None:
        return named
    rows, _ = answer_rows(pretrained.answer_head, pretrained.answers, answers, convert_answer)
    return named | {f"{HEAD}{name}": tensor for name, tensor in rows.items()}


def write_adaptive(best: Best, tensors: Mapping[str, Tensor], pretrained: Pretrained) -> None:
    """The BEST folder again, as of a run that started from the model that now lies inside it."""
    inside = best.folder / INSIDE
    inside.mkdir()
    write_hugging_face(inside, "LxmertModel", pretrained, pretrained.encoder)
    inherited = tuple(f"{ENCODER}{name}." for name in unused_modules(pretrained.config))
    own = {
        name: tensor
        for name, tensor in tensors.items()
        if ".frozen." not in name and not plain_name(name).startswith(inherited)
    }
    refit = best.spec.refit and Path(best.spec.refit).name
    origin = dict.fromkeys(FILES)
    origin |= {"pretrained": INSIDE, "from_scratch": False, "refit": refit}
    spec = replace(best.spec, **origin)
    write_best(best._replace(spec=spec, pretrained_sha256=sha256_of(inside / WEIGHTS)), own)


def write_question_answering(best: Best, model: Pretrained) -> None:
    """What `LxmertForQuestionAnswering.from_pretrained(folder)` loads, label map included.

    It is a BEST folder too, of a run that started from this very model.
    """
    model.config.num_qa_labels = len(model.answers)
    model.config.id2label = dict(enumerate(model.answers))
    model.config.label2id = {answer: index for index, answer in enumerate(model.answers)}
    tensors = {f"lxmert.{name}": t for name, t in model.encoder.items()}
    tensors |= {f"answer_head.{name}": t for name, t in model.answer_head.items()}
    write_hugging_face(best.folder, "LxmertForQuestionAnswering", model, tensors)
    kept = ("llayers", "xlayers", "rlayers", "dropout", "embeddings", "tune")
    fields = dict.fromkeys(FILES) | {"pretrained": ".", "from_scratch": False}
    fields |= {name: getattr(best.spec, name) for name in kept}
    strategy = "standard" if STRATEGIES[best.spec.strategy].adaptive else best.spec.strategy
    spec = ModelSpec(strategy=strategy, **fields)
    describe(best._replace(spec=spec, pretrained_sha256=sha256_of(best.folder / WEIGHTS)))


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


if __name__ == "__main__":
    sys.exit(run_command(main, "interrupted; nothing was written"))
