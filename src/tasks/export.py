"""Take a fine-tuned model elsewhere: the best epoch of a run as one folder that needs nothing else.

    bash run/export.bash demo --to demo_export
    bash run/export.bash --run <folder> --to demo_export

- standard and Frozen: a model of transformers, `LxmertForQuestionAnswering.from_pretrained(DIR)`, with the
  answers as its label map, and a tokenizer
- adaptive strategies, which transformers does not know: a BEST folder with the pre-trained model in it

README.md in it says what it was trained on, how well it does and what its scores are worth.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LxmertConfig

from common.cli import Parser, run_command
from common.errors import RunError, UserError
from common.files import check_name, read_json, replace_folder, sha256_of
from lxmert.loading import Pretrained, check_match
from lxmert.modeling import AnswerHead, LxmertModel
from lxmert.sources import read_tensors
from lxmert.tokens import load_tokenizer
from lxmert.units import unused_modules
from tasks.finetune.best import ENCODER, HEAD, INSIDE, WEIGHTS, Best, load_base_weights, read_best, write_best
from tasks.finetune.spec import LOCATIONS
from tasks.finetune.strategies import STRATEGIES

RUNS = Path("snap/vqa")

LEAKAGE = """\
The released LXMERT was pre-trained on questions and answers of VQA v2 train and nominival, and VQA-CP v2 is a
new division of the same questions: a model that starts from it has seen VQA-CP v2's test questions with
answers. Its scores on VQA-CP v2 measure less than the name says."""
SCENES = """\
The embedded scenes are a small synthetic data set that illustrates the method. These are not VQA results."""
OTHER = f"If questions of VQA are among the data: {LEAKAGE[0].lower()}{LEAKAGE[1:]}"
WORTH = {"scenes": SCENES, "vqav2": LEAKAGE, "vqacpv2": LEAKAGE}  # what scores mean, by data set
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
CARD = """\
# {name}: LXMERT fine-tuned for visual question answering

- data: {data}, {answers:,} answers
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
    parser = Parser(
        prog="export.bash", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    run = parser.add_mutually_exclusive_group(required=True)
    run.add_argument("version", nargs="?", help="the name of a run, whose folder is snap/vqa/<version>")
    run.add_argument("--run", type=Path, metavar="FOLDER", help="a run folder elsewhere")
    parser.add_argument("--to", type=Path, metavar="DIR", required=True, help="a new folder, to be written")
    args = parser.parse_args(argv)
    export(args.run or RUNS / check_name("version", args.version), args.to)
    print(f"wrote {args.to}; see {args.to / 'README.md'}")


def export(run: Path, to: Path) -> None:
    """Write the best epoch of a run folder to the new folder `to`, whole or not at all.

    UserError if the run, or the pre-trained file that it started from, cannot be used, or if `to` exists.
    """
    if to.exists():
        raise UserError(f"{to} exists already; name a new folder, or delete it.")
    best = read_best(run / "BEST")
    card = model_card(run, best, to)
    pretrained = load_base_weights(best)
    tensors = read_tensors(best.folder / WEIGHTS)
    encoder = pretrained.encoder | encoder_of(tensors)
    head = {name.removeprefix(HEAD): t for name, t in tensors.items() if name.startswith(HEAD)}
    with torch.device("meta"):
        check_match(LxmertModel(pretrained.config).state_dict(), encoder, str(best.folder / WEIGHTS))
        whole_head = AnswerHead(pretrained.config, len(best.answers)).state_dict()
    check_match(whole_head, head, str(best.folder / WEIGHTS))
    with replace_folder(to) as folder:
        if STRATEGIES[best.spec.strategy].adaptive:
            write_adaptive(folder, best, tensors, pretrained, encoder)
        else:
            write_question_answering(folder, best, pretrained, encoder, head)
        (folder / "README.md").write_text(card, encoding="utf-8")


def encoder_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a BEST folder holds of LxmertModel, under its names; of a pair, the frozen copy."""
    return {
        name.removeprefix(ENCODER).replace(".frozen.", "."): tensor
        for name, tensor in tensors.items()
        if name.startswith(ENCODER) and ".tuned." not in name
    }


def write_adaptive(
    folder: Path,
    best: Best,
    tensors: Mapping[str, Tensor],
    pretrained: Pretrained,
    encoder: Mapping[str, Tensor],
) -> None:
    """The BEST folder again, as of a run that started from the model that now lies inside it."""
    inside = folder / INSIDE
    inside.mkdir()
    write_hugging_face(inside, "LxmertModel", pretrained.config, encoder, pretrained.tokenizer)
    inherited = tuple(f"{ENCODER}{name}." for name in unused_modules(pretrained.config))
    own = {
        name: tensor
        for name, tensor in tensors.items()
        if ".frozen." not in name and not name.replace(".tuned.", ".").startswith(inherited)
    }
    origin = {**dict.fromkeys(LOCATIONS), "pretrained": INSIDE, "from_scratch": False}
    spec = replace(best.spec, **origin)
    best = best._replace(folder=folder, spec=spec, pretrained_sha256=sha256_of(inside / WEIGHTS))
    write_best(best, own)


def write_question_answering(
    folder: Path,
    best: Best,
    pretrained: Pretrained,
    encoder: Mapping[str, Tensor],
    head: Mapping[str, Tensor],
) -> None:
    """What `LxmertForQuestionAnswering.from_pretrained(folder)` loads, label map included."""
    config = pretrained.config
    config.num_qa_labels = len(best.answers)
    config.id2label = dict(enumerate(best.answers))
    config.label2id = {answer: index for index, answer in enumerate(best.answers)}
    tensors = {f"lxmert.{name}": t for name, t in encoder.items()}
    tensors |= {f"answer_head.{name}": t for name, t in head.items()}
    write_hugging_face(folder, "LxmertForQuestionAnswering", config, tensors, pretrained.tokenizer)


def write_hugging_face(
    folder: Path, architecture: str, config: LxmertConfig, tensors: Mapping[str, Tensor], tokenizer: str
) -> None:
    """What `from_pretrained(folder)` of a class of transformers loads; `tokenizer` is a folder or hub id.

    CheckpointError if there is no tokenizer.
    """
    config.architectures = [architecture]
    config.dtype = torch.float32
    config.save_pretrained(folder)
    # Copies, because safetensors refuses two names for one memory.
    plain = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    save_file(plain, folder / WEIGHTS, metadata={"format": "pt"})
    load_tokenizer(tokenizer).save_pretrained(folder)


def model_card(run: Path, best: Best, to: Path) -> str:
    """README.md of an exported model: data, strategy, scores, origin, and what the scores are worth."""
    environment, arguments = _facts(run / "env.json"), _facts(run / "args.json")
    strategy = STRATEGIES[best.spec.strategy]
    frozen_in = ", frozen copies in bf16" if best.spec.frozen_dtype == "bf16" else ""
    splits = ""
    if arguments:
        splits = f", trained on {arguments.get('train')}, validated on {arguments.get('valid')}"
    random = "random weights with the sizes of " if best.spec.from_scratch else ""
    changed = " with uncommitted changes" if environment.get("dirty") else ""
    official = best.metrics.get("val_official")
    figures = best.metrics | (official if isinstance(official, dict) else {})
    scores = [
        f"| {title} | {form.format(figures[name])} |"
        for name, (title, form) in SCORES.items()
        if isinstance(figures.get(name), int | float)
    ]
    use = USE_ADAPTIVE if strategy.adaptive else USE_PLAIN
    version = run.resolve().name
    return CARD.format(
        name=version,
        data=f"{best.dataset}{splits}",
        answers=len(best.answers),
        strategy=f"{strategy.name}{frozen_in}",
        start=f"{random}`{best.pretrained_source}` (sha256 `{best.pretrained_sha256}`)",
        commit=f"`{environment.get('commit') or 'unknown'}`{changed}",
        scores="\n".join(scores),
        worth=WORTH.get(best.dataset, OTHER),
        use=use.format(to=to, version=version),
    )


def _facts(file: Path) -> dict[str, Any]:
    """What a file of the run folder says; nothing if it is not there."""
    content = read_json(file, RunError) if file.is_file() else {}
    if not isinstance(content, dict):
        raise RunError(f"{file} holds no JSON object.")
    return content


if __name__ == "__main__":
    sys.exit(run_command(main, "interrupted; nothing was written"))
