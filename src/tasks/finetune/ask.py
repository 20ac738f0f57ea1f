"""Questions about one image: the likeliest answers, and what ran tuned.

    bash run/vqa_test.bash 0 demo --question "how many red objects are there?" --image-id scene_000400
    bash run/vqa_test.bash 0 demo --questions questions.txt --image photo.jpg

The image is one of a feature store, named by its id or its file, or a photo, whose regions are found as those
of the store were (see `tasks.finetune.photo`). Answers come with the model's own probability of each: it was
trained to judge every answer by itself, so they need not sum to 100 %.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import chain, groupby, islice
from pathlib import Path
from textwrap import wrap
from typing import Any

import torch

from common.errors import DataError, UserError
from common.files import nfc, read_text
from common.words import counted, cut
from lxmert.tokens import encode, unknown_words
from lxmert.units import Unit
from tasks.finetune.args import VqaArgs
from tasks.finetune.best import Best, load_base_weights, load_best, load_same_tokenizer
from tasks.finetune.data import open_data
from tasks.finetune.gating import chooses, decided_by
from tasks.finetune.model import build
from tasks.finetune.photo import Found, find_regions
from tasks.finetune.strategies import STRATEGIES
from training.machine import Machine
from training.tracker import wrapped
from vqadata.dataset import VqaDataset
from vqadata.encoded import Questions
from vqadata.folder import DataFolder

ANSWERS_SHOWN = 5
EXAMPLES = 3  # of image ids
BATCH = 32  # questions
LONGEST = 64  # letters of an answer that are shown
WORDS = {"1": "tuned", "0": "frozen", "-": "-"}


@torch.no_grad()
def ask(args: VqaArgs, machine: Machine, best: Best) -> dict[str, Any]:
    """Print and return the answers to each question about the image; UserError if it cannot be had."""
    texts = [*(args.question or ()), *(questions_in(Path(args.questions)) if args.questions else ())]
    folder = open_data(Path(args.data), args.dataset, machine)
    with ExitStack() as stack:
        if args.image:
            weights = Path(args.weights) if args.weights else None
            found = stack.enter_context(find_regions(Path(args.image), folder, best.features, weights))
        else:
            found = stored(nfc(args.image_id), folder)
        if found.stores.feature_size != best.features:
            raise UserError(
                f"{best.folder} reads region features of size {best.features}, and those of --dataset "
                f"{args.dataset} have {found.stores.feature_size}; choose the data set that it was trained on"
            )
        base = load_base_weights(best)
        model, units, _ = build(best.spec, base, best.answers, machine.precision)
        load_best(best, model, base, args.interpolate)
        records = [{"question_id": n, "img_id": found.image_id, "sent": text} for n, text in enumerate(texts)]
        tokenizer = load_same_tokenizer(best, base)
        encoded = encode(tokenizer, texts)
        dataset = VqaDataset(Questions.of(records, *encoded), found.stores, best.answers)
        model = machine.accelerator.prepare(model).eval()
        asked = []
        for batch in machine.batches(machine.loader(dataset, BATCH)):
            inputs = {name: column.to(machine.device) for name, column in batch["inputs"].items()}
            plain = machine.accelerator.unwrap_model(model)
            inputs |= decided_by(best.spec)(plain, inputs, batch["question_id"])
            output = model(**inputs)
            gates = output.gates_of(output.outputs).bool().tolist()
            for logits, tuned in zip(output.outputs.float(), gates, strict=True):
                asked.append({"answers": likeliest(logits, best.answers, found.image_id), "tuned": tuned})
    for text, answer in zip(texts, asked, strict=True):
        lines = [f"{text.strip()}  ({found.image_id}{found.where})"]
        if unknown := unknown_words(tokenizer, [text]):
            lines.append(f"unknown to the model, which reads [UNK] instead: {', '.join(unknown)}")
        lines = [*map(wrapped, lines), *answer_lines(answer["answers"])]
        machine.say("\n".join([*lines, "", *map(wrapped, describe_gates(best, units, answer["tuned"]))]))
    return {"asked": asked}


def questions_in(file: Path) -> list[str]:
    """The lines of a file that are not blank; DataError if it has none or cannot be read."""
    questions = [line.strip() for line in read_text(file, DataError).splitlines() if line.strip()]
    if not questions:
        raise DataError(f"{file} holds no questions; write one a line.")
    return questions


def stored(image_id: str, folder: DataFolder) -> Found:
    """An image of the data set's feature stores; DataError if they do not have it."""
    stores = folder.open_features()
    if image_id not in stores:
        ids = list(chain.from_iterable(store.rows for store in stores.stores))
        raise DataError(
            f"There is no image {image_id} below {folder.features}, which has "
            f"{counted(len(ids), 'image')}, such as {', '.join(ids[:EXAMPLES])}."
        )
    return Found(image_id, stores, f" of {folder.name}")


def likeliest(logits: torch.Tensor, answers: Sequence[str], image_id: str) -> dict[str, float]:
    """The likeliest answers and their probabilities, from logits (A,); DataError if those are not finite."""
    probability = logits.sigmoid()
    if not probability.isfinite().all():
        raise DataError(f"The answers are not finite: look at the features of {image_id}.")
    top = probability.topk(min(ANSWERS_SHOWN, len(answers)))
    return {answers[n]: p for n, p in zip(top.indices.tolist(), top.values.tolist(), strict=True)}


def answer_lines(answers: dict[str, float]) -> Iterator[str]:
    """Answers and their probabilities, one per line."""
    shown = {cut(answer, LONGEST): probability for answer, probability in answers.items()}
    width = max(map(len, shown))
    yield from (f"  {answer:<{width}}  {probability:6.1%}" for answer, probability in shown.items())
    yield "  (each answer's own probability; they need not sum to 100 %)"


def describe_gates(best: Best, units: Sequence[Unit], tuned: Sequence[bool]) -> Iterator[str]:
    """What ran tuned and what frozen, one line per layer; `tuned` has the G gates of all units, in order."""
    strategy = STRATEGIES[best.spec.strategy]
    if not strategy.adaptive:
        yield f"{strategy.name} has no gates: {strategy.about}"
        return
    if not chooses(best.spec):
        weight = f"{best.spec.average:g} of the tuned one"
        yield f"{strategy.name}: at every gate both copies ran, and were averaged, with {weight}"
        return
    rest = iter(tuned)
    marks = ["".join("01"[on] if unit.live else "-" for on in islice(rest, unit.width)) for unit in units]
    ones, zeros, dead = (sum(text.count(mark) for text in marks) for mark in "10-")
    yield (
        f"{strategy.name}: {ones} of {counted(ones + zeros, 'gate')} ran tuned ({ones / (ones + zeros):.0%})"
        + (f"; {dead} cannot reach the answer (-)" if dead else "")
    )
    for (stream, layer), group in groupby(
        zip(units, marks, strict=True), key=lambda pair: (pair[0].stream, pair[0].layer)
    ):
        pairs, start = list(group), f"  {stream + ' ' + str(layer):<12}"
        if len(pairs) == 1:
            yield start + WORDS[pairs[0][1]]
            continue
        live = "".join(text for _, text in pairs).replace("-", "")
        start += f"{live.count('1') / len(live):4.0%} tuned  " if live else " -".ljust(12)
        parts = "  ".join(f"{unit.component} {text}".replace(" ", "\xa0") for unit, text in pairs)
        indents = {"initial_indent": start, "subsequent_indent": " " * len(start)}
        lines = wrap(parts, 80, **indents, break_on_hyphens=False)
        yield from (line.replace("\xa0", " ") for line in lines)
    if any(unit.width > 1 for unit in units):
        yield "  (1 tuned, 0 frozen; attention heads in their order)"
