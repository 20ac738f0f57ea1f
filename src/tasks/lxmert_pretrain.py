"""Pre-train the small LXMERT of the embedded data sets, on clean scenes.

    bash run/lxmert_pretrain.bash             the shipped one
    bash run/lxmert_pretrain.bash --seed 1    that of draw 1: of scenes-draw1, scenes-mixed-draw1, ...

LXMERT with 3 language, 2 vision and 2 cross layers learns to answer questions about clean scenes, with the
loss of fine-tuning, so that fine-tuning need not calibrate the answer head first. Two auxiliary heads name
the colour and the shape of every region, as LXMERT's pre-training names the object and the attribute of every
box; without them the model does not learn to look within minutes. They are thrown away at the end. What is
written is a folder in Hugging Face format, with the weights in half precision.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import accelerate
import numpy as np
import PIL
import torch
import torch.nn.functional as F
import transformers
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import BertTokenizer, LxmertConfig, get_linear_schedule_with_warmup

from common.cli import Parser, run_command
from common.files import replace_folder, sha256_of, write_json
from lxmert.modeling import AnswerHead, LxmertModel, initialise
from lxmert.sizes import MAX_TOKENS, SIZES
from lxmert.tokens import SPECIAL_PIECES, write_tokenizer
from tasks.finetune.args import SCENES_MODEL
from tasks.finetune.data import small_model
from tasks.finetune.model import vqa_loss
from vqadata import scenes

WORDING = 0
CHECK_SCENES = 200  # clean scenes that validation asks about
NOTHING = -100  # target of a padded region; cross_entropy ignores it
BAR = "{desc} {percentage:3.0f}% |{bar}| {elapsed}<{remaining}{postfix}"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="lxmert_pretrain.bash",
        description="Pre-train the small LXMERT of the embedded data sets on clean scenes: 9 to 22 minutes "
        "on one thread, which the checksum needs.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    flag = parser.add_argument
    flag("--scenes", type=int, default=4000, help="scenes to learn from")
    flag("--questions", type=int, default=10, help="questions per scene")
    flag("--epochs", type=int, default=12, help="passes over all questions")
    flag("--batch-size", type=int, default=128, help="questions per step")
    flag("--lr", type=float, default=2e-3, help="peak learning rate of AdamW")
    help = "decides scenes, weights, order and dropout; N > 0 makes the model of draw N of the data sets"
    flag("--seed", type=int, default=0, help=help)
    help = f"folder to write; an earlier model in it is replaced at the end (default: {SCENES_MODEL}, "
    help += f"{SCENES_MODEL}-draw<N> for --seed N)"
    flag("--output", type=Path, default=argparse.SUPPRESS, help=help)
    flag("--threads", type=int, default=1, help="CPU threads; a second one gains little")
    args = parser.parse_args(argv)
    vars(args).setdefault("output", Path(small_model(args.seed or None)))
    for name in ("scenes", "questions", "epochs", "batch_size", "lr", "threads"):
        if getattr(args, name) <= 0:
            parser.error(f"--{name.replace('_', '-')} must be greater than 0, not {getattr(args, name)}")
    if args.seed < 0:
        parser.error(f"--seed must be 0 or greater, not {args.seed}")
    if args.output.exists() and not (args.output / "pretraining.json").is_file():
        parser.error(f"{args.output} exists and is no model of this command; name another --output")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    pretrain(parse_args(argv))


def pretrain(args: argparse.Namespace) -> dict[str, Any]:
    """Do all that the command is for; returns what pretraining.json records."""
    started = time.perf_counter()
    torch.set_num_threads(args.threads)
    accelerator = Accelerator()
    set_seed(args.seed)

    # 1. Questions about scenes, to learn from and to check with.
    vocabulary = [*SPECIAL_PIECES, *scenes.vocabulary()]
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(vocabulary)})
    train = draw_examples(scenes.PRETRAINING, args.seed, args.scenes, args.questions, tokenizer)
    check = draw_examples(scenes.PRETRAINING_CHECK, args.seed, CHECK_SCENES, args.questions, tokenizer)
    train, check = train.to(accelerator.device), check.to(accelerator.device)

    # 2. The model with its three objectives, and what moves it.
    model = PretrainingModel(small_config(len(vocabulary)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01)
    steps = args.epochs * -(-len(train.answers) // args.batch_size)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    model, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)

    # 3. Training.
    for epoch in range(args.epochs):
        model.train()
        order = torch.randperm(len(train.answers)).to(accelerator.device)
        bar = tqdm(total=len(order), desc=f"epoch {epoch + 1}/{args.epochs}", ncols=79, bar_format=BAR)
        correct = 0
        for batch in train.batches(order, args.batch_size):
            logits, losses = model(batch)
            loss = losses["answer"] + losses["color"] + losses["shape"]
            optimizer.zero_grad()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            correct += int((logits.argmax(-1) == batch.answers).sum())
            bar.update(len(logits))
            bar.set_postfix(loss=f"{loss.item():.3f}", accuracy=f"{100 * correct / bar.n:.1f} %")
        bar.close()
        print(f"epoch {epoch + 1}: clean validation accuracy {accuracy(model, check)['all']:.1f} %")

    # 4. The weights as they are written, checked once more: the figure belongs to the file.
    model = accelerator.unwrap_model(model).half().float()
    libraries = (accelerate, np, PIL, torch, transformers)
    record = {
        "recipe": {name: value for name, value in vars(args).items() if name != "output"},
        "accuracy": accuracy(model, check),
        "seconds": round(time.perf_counter() - started, 1),
        "versions": {library.__name__: library.__version__ for library in libraries},
    }
    write_model(args.output, model, vocabulary, record)
    print(f"{args.output / 'model.safetensors'}: sha256 {record['sha256']}")
    print(f"clean validation accuracy {record['accuracy']['all']:.1f} % after {record['seconds']:.0f} s")
    return record


class Examples(NamedTuple):
    """N questions, each with the R regions of its scene: all there are, or a batch of them."""

    input_ids: Tensor  # (N, T) word pieces, padded with 0
    features: Tensor  # (N, R, D)
    boxes: Tensor  # (N, R, 4)
    colors: Tensor  # (N, R) index into COLORS, or NOTHING
    shapes: Tensor  # (N, R) index into SHAPES, or NOTHING
    answers: Tensor  # (N,) index into ANSWERS
    families: Tensor  # (N,) index into WORDINGS

    def to(self, device: torch.device) -> Examples:
        return Examples(*(column.to(device) for column in self))

    def batches(self, order: Tensor, size: int) -> Iterator[Examples]:
        """The questions `order` (N,), `size` at a time; the last batch may be smaller."""
        for rows in order.split(size):
            yield Examples(*(column[rows] for column in self))


def draw_examples(use: int, seed: int, count: int, questions: int, tokenizer: BertTokenizer) -> Examples:
    """`count` clean scenes with `questions` questions each; `use` is one of the streams of vqadata.scenes."""
    regions = (count, scenes.MAX_OBJECTS)
    features = torch.zeros(*regions, scenes.FEATURE_SIZE)
    boxes = torch.zeros(*regions, 4)
    colors, shapes = torch.full(regions, NOTHING), torch.full(regions, NOTHING)
    drawn: list[scenes.Question] = []
    for number in tqdm(range(count), desc="drawing scenes", unit="scene"):
        rng = np.random.default_rng([seed, use, number])
        scene = scenes.draw_scene(rng)
        size = len(scene.things)
        features[number, :size] = torch.from_numpy(scene.features)
        boxes[number, :size] = torch.from_numpy(scene.boxes)
        colors[number, :size] = torch.tensor([list(scenes.COLORS).index(t.color) for t in scene.things])
        shapes[number, :size] = torch.tensor([scenes.SHAPES.index(t.shape) for t in scene.things])
        drawn += scenes.ask(scene.things, questions, WORDING, rng)
    encoded = tokenizer([question.text for question in drawn], padding=True, return_tensors="pt")
    answers = torch.tensor([scenes.ANSWERS.index(question.answer) for question in drawn])
    families = torch.tensor([list(scenes.WORDINGS).index(question.family) for question in drawn])
    of_scenes = (column.repeat_interleave(questions, 0) for column in (features, boxes, colors, shapes))
    return Examples(encoded["input_ids"], *of_scenes, answers, families)


def small_config(words: int) -> LxmertConfig:
    """3/2/2 layers of width 64: about 0.4 million weights."""
    return LxmertConfig(
        **asdict(SIZES["small"]),
        vocab_size=words,
        max_position_embeddings=MAX_TOKENS,
        visual_feat_dim=scenes.FEATURE_SIZE,
        num_qa_labels=len(scenes.ANSWERS),
        num_object_labels=len(scenes.SHAPES),
        num_attr_labels=len(scenes.COLORS),
        id2label=dict(enumerate(scenes.ANSWERS)),
        label2id={answer: index for index, answer in enumerate(scenes.ANSWERS)},
        architectures=["LxmertForQuestionAnswering"],
        dtype="float32",  # to compute in, whatever the file holds
    )


class PretrainingModel(nn.Module):
    """LXMERT and its answer head, under the names of a Hugging Face checkpoint, with the auxiliary heads."""

    def __init__(self, config: LxmertConfig) -> None:
        super().__init__()
        self.config = config
        self.lxmert = LxmertModel(config)
        self.answer_head = AnswerHead(config, config.num_qa_labels)
        self.color_head = nn.Linear(config.hidden_size, config.num_attr_labels)
        self.shape_head = nn.Linear(config.hidden_size, config.num_object_labels)
        for head in (self.color_head, self.shape_head):
            initialise(head, config.initializer_range)

    def forward(self, batch: Examples) -> tuple[Tensor, dict[str, Tensor]]:
        """Answer logits (N, answers), and the mean loss of each objective."""
        words, regions = batch.input_ids != 0, batch.colors != NOTHING
        output = self.lxmert(batch.input_ids, words, batch.features, batch.boxes, regions)
        logits = self.answer_head(output.pooled)
        return logits, {
            "answer": vqa_loss(logits, F.one_hot(batch.answers, logits.shape[1]).to(logits.dtype)),
            "color": F.cross_entropy(self.color_head(output.vision).mT, batch.colors),
            "shape": F.cross_entropy(self.shape_head(output.vision).mT, batch.shapes),
        }


@torch.no_grad()
def accuracy(model: nn.Module, examples: Examples) -> dict[str, float]:
    """Per cent of the questions answered right: of all, and of each family."""
    model.eval()
    everything = torch.arange(len(examples.answers), device=examples.answers.device)
    chosen = torch.cat([model(batch)[0].argmax(-1) for batch in examples.batches(everything, 512)])
    right = chosen == examples.answers
    hits = {family: right[examples.families == row] for row, family in enumerate(scenes.WORDINGS)}
    hits = {"all": right} | {family: found for family, found in hits.items() if len(found)}
    return {family: round(100 * int(found.sum()) / len(found), 2) for family, found in hits.items()}


def write_model(output: Path, model: PretrainingModel, vocabulary: list[str], record: dict[str, Any]) -> None:
    """Write the folder as a whole, in the place of an earlier one; `record` gets its sha256."""
    weights = {
        name: value.detach().cpu().half().contiguous()
        for name, value in model.state_dict().items()
        if name.startswith(("lxmert.", "answer_head."))
    }
    with replace_folder(output) as folder:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        model.config.save_pretrained(folder)
        write_tokenizer(folder, vocabulary, MAX_TOKENS)
        record["sha256"] = sha256_of(folder / "model.safetensors")
        write_json(folder / "pretraining.json", record)


if __name__ == "__main__":
    sys.exit(run_command(main, "interrupted; nothing was written"))
