"""The way out: what was fine-tuned, as a folder that needs nothing else.

- standard and Frozen: a model of transformers, `LxmertForQuestionAnswering.from_pretrained(DIR)`, with the
  answers as its label map, and a tokenizer;
- adaptive strategies, which transformers does not know: a BEST folder with the pre-trained model in it.

README.md in it says what it was trained on, how well it does and what its scores are worth.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LxmertConfig

from common.files import sha256_of
from lxmert.best import INSIDE, WEIGHTS, Best, write_best
from lxmert.files import read_tensors
from lxmert.modeling import AnswerHead, LxmertModel
from lxmert.tokens import load_tokenizer
from lxmert.units import unused_modules
from lxmert.weights import Pretrained, check_match

# Names of tensors in a BEST folder begin with these, or with `policy.`.
ENCODER, HEAD = "model.lxmert.", "model.answer_head."

LEAKAGE = """\
The released LXMERT was pre-trained on questions and answers of VQA v2 train and nominival, and VQA-CP v2 is a
new division of the same questions: a model that starts from it has seen VQA-CP v2's test questions with
answers. Its scores on VQA-CP v2 measure less than the name says."""
SCENES = """\
The embedded scenes are a small synthetic data set that illustrates the method. These are not VQA results."""
OTHER = f"If questions of VQA are among the data: {LEAKAGE[0].lower()}{LEAKAGE[1:]}"
WORTH = {"scenes": SCENES, "vqav2": LEAKAGE, "vqacpv2": LEAKAGE}  # what scores mean, by data set
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


def write_export(run: Path, best: Best, weights: Pretrained, folder: Path, to: Path) -> None:
    """Fill the empty `folder`, which will be called `to`, with the best epoch of a run.

    `best` is of that run, and `weights` are those behind it. CheckpointError if the two do not make a model.
    """
    tensors = read_tensors(best.folder / WEIGHTS)
    encoder = {**weights.encoder, **encoder_of(tensors)}
    head = {name.removeprefix(HEAD): t for name, t in tensors.items() if name.startswith(HEAD)}
    source = str(best.folder / WEIGHTS)
    with torch.device("meta"):
        check_match(LxmertModel(weights.config), encoder, source)
        check_match(AnswerHead(weights.config, len(best.answers)), head, source)
    if best.spec["strategy"].startswith("SpotTune"):
        write_encoder(folder / INSIDE, weights.config, encoder, weights.tokenizer)
        _write_adaptive(best, tensors, weights.config, folder)
    else:
        both = {f"lxmert.{name}": t for name, t in encoder.items()}
        both |= {f"answer_head.{name}": t for name, t in head.items()}
        write_question_answering(folder, weights.config, both, best.answers, weights.tokenizer)
    (folder / "README.md").write_text(model_card(run, best, to), encoding="utf-8")


def encoder_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a BEST folder holds of LxmertModel, under its names; of a pair, the frozen copy."""
    return {
        name.removeprefix(ENCODER).replace(".frozen.", "."): tensor
        for name, tensor in tensors.items()
        if name.startswith(ENCODER) and ".tuned." not in name
    }


def write_question_answering(
    folder: Path, config: LxmertConfig, tensors: Mapping[str, Tensor], answers: Sequence[str], tokenizer: str
) -> None:
    """Write what `LxmertForQuestionAnswering.from_pretrained(folder)` loads, label map included.

    tensors: names of LxmertModel behind `lxmert.`, of AnswerHead behind `answer_head.`. tokenizer: folder or
    hub id; AutoTokenizer reads the copy. Raises CheckpointError if there is no tokenizer.
    """
    config.num_qa_labels = len(answers)
    config.id2label = dict(enumerate(answers))
    config.label2id = {answer: index for index, answer in enumerate(answers)}
    _write(folder, config, tensors, "LxmertForQuestionAnswering", tokenizer)


def write_encoder(folder: Path, config: LxmertConfig, tensors: Mapping[str, Tensor], tokenizer: str) -> None:
    """Write what `LxmertModel.from_pretrained(folder)` loads; tensors has the names of LxmertModel."""
    _write(folder, config, tensors, "LxmertModel", tokenizer)


def model_card(run: Path, best: Best, to: Path) -> str:
    """README.md of an exported model: data, strategy, scores, origin, and what the scores are worth."""
    environment = _read(run / "env.json")
    commit = environment.get("commit") or "unknown"
    changed = " with uncommitted changes" if environment.get("dirty") else ""
    spec, metrics = best.spec, best.metrics
    start = "random weights with the sizes of " if spec["from_scratch"] else ""
    start += f"`{best.pretrained_source}`"
    scores = [
        ("epoch", f"{metrics['epoch']:.0f}"),
        ("training accuracy (running)", f"{metrics['train_accuracy']:.2f} %"),
        ("validation accuracy", f"{metrics['val_accuracy']:.2f} %"),
        ("gap", f"{metrics['gap']:+.2f} points"),
    ]
    if metrics.get("val_official"):
        scores.append(("official VQA accuracy (validation)", f"{metrics['val_official']['overall']:.2f} %"))
    adaptive = spec["strategy"].startswith("SpotTune")
    if adaptive:
        scores.append(("share tuned (validation)", f"{metrics['share_tuned']:.3f}"))
    held = ", frozen copies in bf16" if spec.get("frozen_dtype") == "bf16" else ""
    arguments = _read(run / "args.json")
    splits = f", trained on {arguments['train']}, validated on {arguments['valid']}" if arguments else ""
    use = USE_ADAPTIVE if adaptive else USE_PLAIN
    return "\n".join(
        [
            f"# {run.resolve().name}: LXMERT fine-tuned for visual question answering",
            "",
            f"- data: {best.dataset}{splits}, {len(best.answers):,} answers",
            f"- strategy: {spec['strategy']}{held}",
            f"- start: {start} (sha256 `{best.pretrained_sha256}`)",
            f"- code: commit `{commit}`{changed}",
            "",
            "| best epoch by validation accuracy | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in scores),
            "",
            "The best epoch was chosen on the validation data, so its accuracy there is a little too high.",
            "",
            WORTH.get(best.dataset, OTHER),
            "",
            "## Use",
            "",
            use.format(to=to, version=run.resolve().name),
            "",
        ]
    )


def _write_adaptive(best: Best, tensors: Mapping[str, Tensor], config: LxmertConfig, folder: Path) -> None:
    """The BEST folder again, as of a run that started from the model that now lies inside it."""
    given = tuple(f"{ENCODER}{name}." for name in unused_modules(config))
    own = {
        name: tensor
        for name, tensor in tensors.items()
        if ".frozen." not in name and not name.replace(".tuned.", ".").startswith(given)
    }
    no_other = {"pretrained": INSIDE, "load_lxmert": None, "load_lxmert_qa": None, "from_scratch": False}
    sha256 = sha256_of(folder / INSIDE / WEIGHTS)
    inside = best._replace(folder=folder, spec=best.spec | no_other, pretrained_sha256=sha256)
    write_best(inside, own)


def _write(
    folder: Path, config: LxmertConfig, tensors: Mapping[str, Tensor], architecture: str, tokenizer: str
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config.architectures = [architecture]
    config.dtype = torch.float32
    config.save_pretrained(folder)
    # Copies, because safetensors refuses two names for one memory.
    plain = {name: tensor.detach().cpu().float().clone() for name, tensor in tensors.items()}
    save_file(plain, folder / WEIGHTS, metadata={"format": "pt"})
    load_tokenizer(tokenizer).save_pretrained(folder)


def _read(file: Path) -> dict[str, Any]:
    """A JSON file; nothing if it is not there."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
