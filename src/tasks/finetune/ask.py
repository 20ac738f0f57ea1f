"""Questions about images: the likeliest answers, and what ran tuned.

    bash run/vqa_test.bash 0 demo --question "how many red objects are there?" --image-id scene_000400
    bash run/vqa_test.bash 0 demo --questions questions.txt --image photo.jpg

and the same from Python, see `load`. The image is one of a feature store, named by its id or its file, or a
photo, whose regions are found as those of the store were (see `tasks.finetune.photo`). Answers come with the
model's own probability of each: it was trained to judge every answer by itself, so they need not sum to
100 %.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from textwrap import wrap
from typing import Any

import torch
from accelerate import PartialState

from common.errors import DataError, UserError
from common.files import read_text
from common.words import counted, cut
from lxmert.formats import SUFFIX
from lxmert.tokens import encode, unknown_words
from lxmert.units import Unit
from report.run import RUNS
from tasks.finetune.args import VqaArgs
from tasks.finetune.best import Best, find_best, load_base_weights, load_best, load_same_tokenizer
from tasks.finetune.data import open_data
from tasks.finetune.gating import chooses, decided_by
from tasks.finetune.model import build
from tasks.finetune.photo import Found, Images
from tasks.finetune.spec import FILES, ModelSpec
from tasks.finetune.strategies import STRATEGIES
from training.machine import Machine, usual_precision
from training.record import recorded_arguments
from training.tracker import wrapped
from vqadata.dataset import VqaDataset
from vqadata.encoded import Questions
from vqadata.folder import DataFolder

REPOSITORY = Path(__file__).resolve().parents[3]
ANSWERS_SHOWN = 5
LONGEST = 64  # letters of an answer that are shown
WORDS = {"1": "tuned", "0": "frozen", "-": "-"}
REDUCED = {"bf16": torch.bfloat16, "fp16": torch.float16}

Layers = Mapping[str, Sequence[tuple[Unit, str]]]  # of each its units, with a mark for each of their gates


@dataclass(frozen=True)
class Answer:
    """What a model answers to a question about an image; `str` of it is what the command prints.

    answers: the likeliest, from the first on, with the probability of each by itself, in [0, 1]. gates: of
    each layer, such as "language 1", the share of its gates that ran tuned, in [0, 1], among those that can
    reach the answer; None where no gate chose a copy. tuned: whether each of all G gates did.
    """

    question: str
    image: str  # its id
    answers: dict[str, float]
    gates: dict[str, float] | None
    tuned: list[bool] = field(repr=False)
    text: str = field(repr=False)

    def __str__(self) -> str:
        return self.text


class Vqa:
    """A fine-tuned model that answers questions about images, in evaluation mode.

    folder: the data set whose images it knows by their ids. precision: of the arithmetic, fp32, bf16 or fp16.
    weights: those of the detector, for photos. share: see `load_best`. UserError if any cannot be used.
    """

    def __init__(
        self,
        best: Best,
        folder: DataFolder,
        device: torch.device,
        precision: str,
        weights: Path | None = None,
        share: float | None = None,
    ) -> None:
        base = load_base_weights(best)
        with torch.random.fork_rng(devices=[]):  # what is drawn here gives way to what was saved
            model, self._units, _ = build(best.spec, base, best.answers, precision)
        load_best(best, model, base, share)
        self._model = model.to(device).eval()
        self._best, self._device, self._dtype = best, device, REDUCED.get(precision)
        self._tokenizer = load_same_tokenizer(best, base)
        self._images = Images(folder, best.features, weights)

    def answer(self, image: str | Path, question: str) -> Answer:
        """The answer to a question about an image: the id of one in the data set, or the path of a photo.

        UserError if the question is empty or there is no such image; for photos, see `Images.find`.
        """
        (answer,) = self.answers(image, [question])
        return answer

    def answers(self, image: str | Path, questions: Sequence[str]) -> list[Answer]:
        """The same for several questions about one image, which is looked at once.

        Each is answered by itself, so that its probabilities do not depend, by rounding, on the others.
        """
        if not all(map(str.strip, questions)):
            raise UserError("the question is empty: ask one in words")
        with self._images.find(image) as found:
            if found.stores.feature_size != self._best.features:
                raise UserError(
                    f"{self._best.folder} reads region features of size {self._best.features}, and those of "
                    f"{found.image_id}{found.where} have {found.stores.feature_size}; choose the data set "
                    "that it was trained on"
                )
            return [self._answer(found, question) for question in questions]

    @torch.no_grad()
    def _answer(self, found: Found, question: str) -> Answer:
        best, image = self._best, found.image_id
        record = {"question_id": 0, "img_id": image, "sent": question}
        encoded = encode(self._tokenizer, [question])
        dataset = VqaDataset(Questions.of([record], *encoded), found.stores, best.answers)
        batch = dataset[0]
        columns = batch["inputs"] | {"question_id": batch["question_id"]}
        inputs = {name: torch.from_numpy(column).to(self._device) for name, column in columns.items()}
        number = inputs.pop("question_id")
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype is not None):
            output = self._model(**inputs | decided_by(best.spec)(self._model, inputs, number))
        answers = likeliest(output.outputs[0].float(), best.answers, image)
        (tuned,) = output.gates_of(output.outputs).bool().tolist()
        layers = by_layer(self._units, tuned)
        shares = {name: share for name in layers if (share := share_tuned(layers[name])) is not None}
        lines = [f"{question.strip()}  ({image}{found.where})"]
        if unknown := unknown_words(self._tokenizer, [question]):
            lines.append(f"unknown to the model, which reads [UNK] instead: {', '.join(unknown)}")
        lines = [*map(wrapped, lines), *answer_lines(answers), ""]
        text = "\n".join([*lines, *map(wrapped, describe_gates(best, layers))])
        return Answer(question, image, answers, shares if chooses(best.spec) else None, tuned, text)


def load(
    folder: str | Path,
    *,
    data: str | Path | None = None,
    dataset: str | None = None,
    weights: str | Path | None = None,
) -> Vqa:
    """The best epoch of a run folder, that of a BEST folder, or an exported model, ready to be asked.

        vqa = load("snap/vqa/demo")
        vqa.answer("photo.jpg", "is there a circle?").answers

    data, dataset: where the data sets are, and which one has the images; by default those that it was trained
    on. weights: the detector's, a file or folder, for photos if a detector made that data set's features.
    Paths count from where the caller stands; those that the run recorded, from where it was started, else
    from here or from this repository, the first at which they exist. UserError if anything cannot be used.
    """
    best = find_best(Path(folder))
    run = best.folder.resolve().parent
    arguments = recorded_arguments(run) or {}
    started = started_at(run, arguments)
    bases = [*started, Path.cwd(), REPOSITORY]
    best = best._replace(spec=located(best.spec, bases))
    name = dataset or best.dataset
    recorded = arguments.get("data", "data")
    shelves = [Path(data)] if data else [base / recorded for base in bases]
    home = shelves[0] if started or data else REPOSITORY / recorded  # for what nobody has drawn yet
    shelf = next((shelf for shelf in shelves if DataFolder(shelf, name).exists()), home)
    device = PartialState().device
    return Vqa(best, open_data(shelf, name), device, usual_precision(), Path(weights) if weights else None)


def started_at(run: Path, arguments: Mapping[str, Any]) -> list[Path]:
    """The folder in which the run with these arguments was started, if where its folder lies tells."""
    if not arguments:
        return []
    below = Path(arguments.get("output") or RUNS / run.name).parts
    return [Path(*run.parts[: -len(below)])] if run.parts[-len(below) :] == below else []


def located(spec: ModelSpec, bases: Sequence[Path]) -> ModelSpec:
    """The spec with absolute paths of the pre-trained files, for those that exist from one of the bases.

    The answer head, which the checkpoint replaces, is not read: lists of its answers may be elsewhere.
    """
    found: dict[str, str | None] = {}
    for name in FILES:
        value = getattr(spec, name)
        paths = [str(base / value) for base in bases] if value else []
        found[name] = next((p for p in paths if Path(p).exists() or Path(p + SUFFIX).exists()), value)
    found |= {"load_lxmert": found["load_lxmert"] or found["load_lxmert_qa"], "load_lxmert_qa": None}
    return replace(spec, **found)


def ask(args: VqaArgs, machine: Machine, best: Best) -> dict[str, Any]:
    """Print and return the answers to each question about the image; UserError if it cannot be had."""
    texts = [*(args.question or ()), *(questions_in(Path(args.questions)) if args.questions else ())]
    folder = open_data(Path(args.data), args.dataset)
    weights = Path(args.weights) if args.weights else None
    vqa = Vqa(best, folder, machine.device, machine.precision, weights, args.interpolate)
    answers = vqa.answers(Path(args.image) if args.image else args.image_id, texts)
    for answer in answers:
        machine.say(str(answer))
    return {"asked": answers}


def questions_in(file: Path) -> list[str]:
    """The lines of a file that are not blank; DataError if it has none or cannot be read."""
    questions = [line.strip() for line in read_text(file, DataError).splitlines() if line.strip()]
    if not questions:
        raise DataError(f"{file} holds no questions; write one a line.")
    return questions


def likeliest(logits: torch.Tensor, answers: Sequence[str], image_id: str) -> dict[str, float]:
    """The likeliest answers and their probabilities, from logits (A,); DataError if those are not finite."""
    probability = logits.sigmoid()
    if not probability.isfinite().all():
        raise DataError(f"The answers are not finite: look at the features of {image_id}.")
    top = probability.topk(min(ANSWERS_SHOWN, len(answers)))
    return {answers[n]: p for n, p in zip(top.indices.tolist(), top.values.tolist(), strict=True)}


def answer_lines(answers: dict[str, float]) -> Iterator[str]:
    """Answers and their probabilities, one per line."""
    shown = [(cut(answer, LONGEST), probability) for answer, probability in answers.items()]
    width = max(len(answer) for answer, _ in shown)
    yield from (f"  {answer:<{width}}  {probability:6.1%}" for answer, probability in shown)
    yield "  (each answer's own probability; they need not sum to 100 %)"


def by_layer(units: Sequence[Unit], tuned: Sequence[bool]) -> Layers:
    """The units by layer, with a mark for each gate: 1 tuned, 0 frozen, - if it cannot reach the answer.

    tuned: the G gates of all units, in order.
    """
    rest = iter(tuned)
    layers: dict[str, list[tuple[Unit, str]]] = {}
    for unit in units:
        marks = "".join("01"[on] if unit.live else "-" for on in islice(rest, unit.width))
        layers.setdefault(f"{unit.stream} {unit.layer}", []).append((unit, marks))
    return layers


def share_tuned(parts: Sequence[tuple[Unit, str]]) -> float | None:
    """The share tuned of a layer's gates, among those that can reach the answer; None if none can."""
    live = "".join(marks for _, marks in parts).replace("-", "")
    return live.count("1") / len(live) if live else None


def describe_gates(best: Best, layers: Layers) -> Iterator[str]:
    """What ran tuned and what frozen, one line per layer."""
    strategy = STRATEGIES[best.spec.strategy]
    if not strategy.adaptive:
        about = "an exported model is one copy" if best.is_whole else strategy.about
        yield f"{strategy.name} has no gates: {about}"
        return
    if not chooses(best.spec):
        weight = f"{best.spec.average:g} of the tuned one"
        yield f"{strategy.name}: at every gate both copies ran, and were averaged, with {weight}"
        return
    all_marks = "".join(marks for parts in layers.values() for _, marks in parts)
    ones, zeros, dead = map(all_marks.count, "10-")
    yield (
        f"{strategy.name}: {ones} of {counted(ones + zeros, 'gate')} ran tuned ({ones / (ones + zeros):.0%})"
        + (f"; {dead} cannot reach the answer (-)" if dead else "")
    )
    for name, parts in layers.items():
        start = f"  {name:<12}"
        if len(parts) == 1:
            yield start + WORDS[parts[0][1]]
            continue
        share = share_tuned(parts)
        start += " -".ljust(12) if share is None else f"{share:4.0%} tuned  "
        text = "  ".join(f"{unit.component} {marks}".replace(" ", "\xa0") for unit, marks in parts)
        indents = {"initial_indent": start, "subsequent_indent": " " * len(start)}
        lines = wrap(text, 80, **indents, break_on_hyphens=False)
        yield from (line.replace("\xa0", " ") for line in lines)
    if any(unit.width > 1 for parts in layers.values() for unit, _ in parts):
        yield "  (1 tuned, 0 frozen; attention heads in their order)"
