"""One question about one image that is in a feature store: the likeliest answers, and what ran tuned.

    bash run/vqa_test.bash 0 demo --question "how many red objects are there?" --image-id scene_000400

Answers come with the model's own probability of each: it was trained to judge every answer by itself, so they
need not sum to 100 %.
"""

from collections.abc import Iterator, Sequence
from itertools import chain, groupby, islice
from pathlib import Path
from textwrap import wrap
from typing import Any

import torch

from common.errors import DataError, UserError
from lxmert.tokens import encode
from lxmert.units import Unit
from tasks.finetune.args import VqaArgs
from tasks.finetune.best import Best, load_base_weights, load_best, load_same_tokenizer
from tasks.finetune.data import open_data
from tasks.finetune.gating import chooses, decided_by
from tasks.finetune.model import build
from tasks.finetune.strategies import STRATEGIES
from training.machine import Machine
from vqadata.dataset import VqaDataset
from vqadata.encoded import Questions

ANSWERS_SHOWN = 5
EXAMPLES = 3  # of image ids
WORDS = {"1": "tuned", "0": "frozen", "-": "-"}


@torch.no_grad()
def ask(args: VqaArgs, machine: Machine, best: Best) -> dict[str, Any]:
    """Print and return the answers to `--question` about `--image-id`; UserError for an unknown image."""
    folder = open_data(Path(args.data), args.dataset, machine)
    stores = folder.open_features()
    if args.image_id not in stores:
        ids = list(chain.from_iterable(store.rows for store in stores.stores))
        raise DataError(
            f"There is no image {args.image_id} below {folder.features}, which has {len(ids):,} images, such "
            f"as {', '.join(ids[:EXAMPLES])}."
        )
    if stores.feature_size != best.features:
        raise UserError(
            f"{best.folder} reads region features of size {best.features}, and those of --dataset "
            f"{args.dataset} have {stores.feature_size}; choose the data set that it was trained on"
        )
    weights = load_base_weights(best)
    model, units, _ = build(best.spec, weights, best.answers, machine.precision)
    load_best(best, model, weights, args.interpolate)
    record = {"question_id": 0, "img_id": args.image_id, "sent": args.question}
    encoded = encode(load_same_tokenizer(best, weights), [args.question])
    dataset = VqaDataset(Questions.of([record], *encoded), stores, best.answers)
    (batch,) = machine.batches(machine.loader(dataset, 1))
    inputs = {name: column.to(machine.device) for name, column in batch["inputs"].items()}
    model = machine.accelerator.prepare(model).eval()
    inputs |= decided_by(best.spec)(machine.accelerator.unwrap_model(model), inputs, batch["question_id"])
    output = model(**inputs)
    probability = output.outputs[0].float().sigmoid()
    if not probability.isfinite().all():
        raise DataError(f"The answers are not finite: look at the features of {args.image_id}.")
    top = probability.topk(min(ANSWERS_SHOWN, len(best.answers)))
    answers = {best.answers[n]: p for n, p in zip(top.indices.tolist(), top.values.tolist(), strict=True)}
    tuned = output.gates_of(output.outputs)[0].bool().tolist()
    title = f"{args.question.strip()}  ({args.image_id} of {args.dataset})"
    width = max(map(len, answers))
    lines = [f"  {answer:<{width}}  {probability:6.1%}" for answer, probability in answers.items()]
    lines += ["  (each answer's own probability; they need not sum to 100 %)", ""]
    machine.say("\n".join([title, *lines, *describe_gates(best, units, tuned)]))
    return {"answers": answers, "tuned": tuned}


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
    yield f"{strategy.name}: {ones} of {ones + zeros} gates ran tuned ({ones / (ones + zeros):.0%})" + (
        f"; {dead} cannot reach the answer (-)" if dead else ""
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
