"""One question about one image that is in a feature store: the likeliest answers, and what ran tuned.

    bash run/vqa_test.bash 0 demo --question "how many red objects are there?" --image-id scene_000400

Answers come with the model's own probability of each: it was trained to judge every answer by itself, so they
need not sum to 100 %.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.errors import DataError, UserError
from lxmert.tokens import encode, load_tokenizer
from lxmert.units import Unit
from tasks.finetune.args import VqaArgs
from tasks.finetune.best import Best, load_base_weights, load_best
from tasks.finetune.data import write_scenes_if_missing
from tasks.finetune.model import build
from tasks.finetune.strategies import STRATEGIES
from training.machine import Machine
from vqadata.dataset import VqaDataset
from vqadata.features import FeatureStores
from vqadata.folder import DataFolder

ANSWERS_SHOWN = 5
EXAMPLES = 3  # of image ids
PARTS_A_LINE = 4
MARKS = {True: "1", False: "0", None: "-"}


@torch.no_grad()
def ask(args: VqaArgs, machine: Machine, best: Best) -> dict[str, Any]:
    """Print and return the answers to `--question` about `--image-id`; UserError for an unknown image."""
    folder = DataFolder(Path(args.data), args.dataset)
    with machine.accelerator.main_process_first():
        write_scenes_if_missing(folder)
    stores = folder.open_features()
    if args.image_id not in stores:
        raise DataError(unknown_image(args.image_id, folder, stores))
    if stores.feature_size != best.features:
        raise UserError(
            f"{best.folder} reads region features of size {best.features}, and those of --dataset "
            f"{args.dataset} have {stores.feature_size}; choose the data set that it was trained on"
        )
    weights = load_base_weights(best)
    model, units, _ = build(best.spec, weights, best.answers, machine.precision)
    load_best(best, model, weights)
    record = {"question_id": 0, "img_id": args.image_id, "sent": args.question}
    ids, lengths = encode(load_tokenizer(weights.tokenizer), [args.question])
    dataset = VqaDataset([record], ids, lengths, stores, best.answers)
    (batch,) = machine.loader(dataset, 1)
    inputs = {name: column.to(machine.device) for name, column in batch["inputs"].items()}
    output = machine.accelerator.prepare(model).eval()(**inputs)
    probability = output.outputs[0].float().sigmoid()
    top = probability.topk(min(ANSWERS_SHOWN, len(best.answers)))
    answers = {best.answers[n]: p for n, p in zip(top.indices.tolist(), top.values.tolist(), strict=True)}
    tuned = output.gates_of(output.outputs)[0].bool().tolist()
    title = f"{args.question.strip()}  ({args.image_id} of {args.dataset})"
    machine.say("\n".join([title, *describe_answers(answers), "", *describe_gates(best, units, tuned)]))
    return {"answers": answers, "tuned": tuned}


def describe_answers(answers: dict[str, float]) -> Iterator[str]:
    """One line per answer."""
    width = max(map(len, answers))
    for answer, probability in answers.items():
        yield f"  {answer:<{width}}  {probability:6.1%}"
    yield "  (each answer's own probability; they need not sum to 100 %)"


def describe_gates(best: Best, units: Sequence[Unit], tuned: Sequence[bool]) -> Iterator[str]:
    """What ran tuned and what frozen, one line per layer; `tuned` has the G gates of all units, in order."""
    strategy = STRATEGIES[best.spec.strategy]
    if not strategy.adaptive:
        yield f"{strategy.name} has no gates: {strategy.about}"
        return
    rest = iter(tuned)
    marks = [(unit, [on if unit.live else None for on in islice(rest, unit.width)]) for unit in units]
    live = [on for _, gates in marks for on in gates if on is not None]
    dead = len(tuned) - len(live)
    yield f"{strategy.name}: {sum(live)} of {len(live)} gates ran tuned ({np.mean(live):.0%})" + (
        f"; {dead} cannot reach the answer (-)" if dead else ""
    )
    for (stream, layer), parts in groupby(marks, key=lambda part: (part[0].stream, part[0].layer)):
        yield from _describe_layer(f"  {stream + ' ' + str(layer):<12}", list(parts))
    if any(unit.width > 1 for unit in units):
        yield "  (1 tuned, 0 frozen; attention heads in their order)"


def _describe_layer(name: str, parts: Sequence[tuple[Unit, list[bool | None]]]) -> Iterator[str]:
    """A layer's units with the marks of their gates, in as many lines as it takes."""
    if len(parts) == 1:
        (_, (on,)) = parts[0]
        yield name + {True: "tuned", False: "frozen", None: "-"}[on]
        return
    live = [on for _, gates in parts for on in gates if on is not None]
    share = f"{np.mean(live):4.0%} tuned" if live else " -"
    words = [f"{unit.component} {''.join(MARKS[on] for on in gates)}" for unit, gates in parts]
    for first in range(0, len(words), PARTS_A_LINE):
        start = f"{name}{share:<12}" if not first else " " * (len(name) + 12)
        yield f"{start}{'  '.join(words[first : first + PARTS_A_LINE])}"


def unknown_image(image_id: str, folder: DataFolder, stores: FeatureStores) -> str:
    """Says that an image is not in the stores, and names some that are."""
    ids = [image for store in stores.stores for image in islice(store.rows, EXAMPLES)][:EXAMPLES]
    count = sum(len(store.rows) for store in stores.stores)
    return (
        f"There is no image {image_id} below {folder.features}, which has {count:,} images, such as "
        f"{', '.join(ids)}."
    )
