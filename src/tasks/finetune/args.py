"""Every flag of `src/tasks/vqa.py`: one frozen dataclass, a sentence a field.

The spellings of the earlier implementation (`--batchSize`, `--numWorkers`, ...) are aliases.
"""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from adaptive.policy import ESTIMATORS
from adaptive.terms import TERMS
from common.cli import Parser, user_path
from common.errors import UserError
from common.files import check_name
from tasks.finetune.gating import WAYS
from tasks.finetune.policies import POLICIES
from tasks.finetune.spec import AVERAGE, EXAMPLE, LORA, RANK, WEIGHT, YOUNGER, ModelSpec
from tasks.finetune.strategies import STRATEGIES
from training.optim import OPTIMIZERS
from training.record import Record
from training.tracker import NONE, TENSORBOARD, WANDB, Channels, require_trackers

IMAGES_TINY, IMAGES_FAST = 512, 5000
OWN_SPLIT = "(valid)"  # a value of `test`: that on which the run validated
SCENES_MODEL = "snap/pretrained/lxmert-scenes"
RELEASED_MODEL = "unc-nlp/lxmert-base-uncased"


def flag(default: Any, help: str, **more: Any) -> Any:
    """A field that is a flag, and `more` about it.

    old: its spelling in the earlier implementation. section: opens a group in --help. bare: the value of the
    flag if it is given without one. choices: the values, or a table of what each of them is, `about` it; of
    `name:WORD` the word is free. The default None: it is settled later, see `tasks.finetune.settle`.
    """
    metadata = {"help": help, "old": "", "choices": (), "section": "", "bare": None} | more
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class VqaArgs:
    """What a run does."""

    version: str = flag("run", "Name of the run; its folder is snap/vqa/<version>.", section="run")
    output: str | None = flag(None, "Run folder, if not snap/vqa/<version>.")
    label: str | None = flag(None, "Name of its row in tables of results. Default: the way of fine-tuning.")
    strategy: str | None = flag(None, "How to fine-tune.", choices=STRATEGIES)
    seed: int = flag(9595, "Seed of initialisation, order, dropout and gate noise.")
    load: str | None = flag(
        None, "A BEST folder, its run, or an export, to start from, or with --test to evaluate."
    )
    test: str | None = flag(
        None,
        "Only evaluate --load on this split and write its predictions; without a name, on the validation "
        "split of its run.",
        bare=OWN_SPLIT,
    )
    controls: bool = flag(
        False,
        "With --test, evaluate the same weights under other gates too: exchanged between questions, a fixed "
        "mask, all tuned, all frozen, random, both copies averaged. It takes about twenty evaluations.",
    )
    question: tuple[str, ...] | None = flag(
        None,
        "Only let --load answer this question about --image-id or --image: answers, and what ran tuned. May "
        "be given several times.",
    )
    questions: str | None = flag(None, "The same for every line of a text file.")
    image_id: str | None = flag(None, "The image of --question, by its id in the feature store.")
    image: str | None = flag(
        None,
        "The image of --question, by its file. If the feature store has it, by the file's name, it is taken "
        "from there; else its regions are found as those of the store were.",
    )
    weights: str | None = flag(
        None, "The detector's weights, a file or folder, for --image if a detector made the feature store."
    )
    interpolate: float | None = flag(
        None,
        "With --test or --question, for runs without gates: so much of the tuned weights, the rest of the "
        "pre-trained ones.",
    )

    dataset: str = flag(
        "auto",
        "Data set, a folder below --data: vqav2, vqacpv2, one of your own, or one of the embedded scenes, "
        "scenes-mixed, scenes-cp and scenes-renamed, which are drawn at first use; with -draw<N> at the end, "
        "drawn from seed N. auto takes vqav2 if anything of it is there, else scenes.",
        section="data",
    )
    data: str = flag("data", "Folder of the data sets.")
    train: str | None = flag(
        None, "Training splits, comma-separated. Default: cp_train, or train and nominival if they exist."
    )
    valid: str | None = flag(
        None,
        "Validation splits, comma-separated. Default: the first that exists of cp_val, minival, valid, val.",
    )
    tiny: bool = flag(False, f"Use the first {IMAGES_TINY} images of each split.")
    fast: bool = flag(False, f"Use the first {IMAGES_FAST} images of each split.")
    skip_missing: bool = flag(
        False, "Leave out the questions about images without features; how many is told, and recorded."
    )

    pretrained: str | None = flag(
        None,
        "Pre-trained LXMERT: a folder or hub id in Hugging Face format. Default: the shipped small model "
        f"for scenes, {SCENES_MODEL}-draw<N> for draw N of them, {RELEASED_MODEL} otherwise.",
        section="model",
    )
    load_lxmert: str | None = flag(
        None, "The original's <path>_LXRT.pth, without its answer head.", old="loadLXMERT"
    )
    load_lxmert_qa: str | None = flag(
        None, "The original's <path>_LXRT.pth, with its answer head, matched by answer.", old="loadLXMERTQA"
    )
    vocab: str | None = flag(
        None,
        "BERT's vocab.txt, a file of word pieces, one per line. Default: that in the folder of the weights, "
        "else the hub's.",
    )
    from_scratch: bool | None = flag(None, "Start from random weights.", old="fromScratch")
    llayers: int | None = flag(None, "Language layers. Default: as in the pre-trained model.")
    xlayers: int | None = flag(None, "Cross-modality layers. Default: as in the pre-trained model.")
    rlayers: int | None = flag(None, "Vision (relational) layers. Default: as in the pre-trained model.")
    frozen_dtype: str | None = flag(
        None,
        "Type in which adaptive strategies hold their frozen copies: bf16 halves their memory. auto takes it "
        "where the arithmetic is in bf16 and it changes no number.",
        choices=("auto", "fp32", "bf16"),
    )

    tuned: str | None = flag(
        None,
        "The tuned side of a layer: full is a copy of all its weights, lora the frozen weights with a "
        "low-rank update of each matrix, faster and at half the memory.",
        choices=("full", LORA),
    )
    rank: int | None = flag(None, f"Rank of the updates of --tuned {LORA}. Default: {RANK}.")
    alpha: float | None = flag(None, "They are scaled by alpha / rank. Default: the rank, so by 1.")
    embeddings: str | None = flag(
        None,
        "Whether the embeddings of words and regions train, or stay as pre-trained and without dropout, "
        "which is faster, and less accurate on the scenes.",
        choices=("train", "frozen"),
    )
    tune: str | None = flag(
        None,
        "Tune only these layers, comma-separated; the others stay as pre-trained, and a step costs less. "
        "Names are language.1, vision.2, cross.3, ranges language.1-3, ends language.first2, cross.last1, "
        "patterns cross.*, parts language.1.ffn, cross.2.vision_attention. Strategies with gates have them "
        "there only. Without a --strategy it is standard.",
    )
    tune_from: str | None = flag(
        None,
        "A finished adaptive run, by version name or folder: --tune is what ran tuned for most validation "
        "questions in its best epoch.",
    )
    refit: str | None = flag(
        None,
        "The second act of --policy-holdout: train on all images, from the pre-trained state, under what "
        "this finished run chose. That is --tune (or Frozen, if it tuned nothing) where a mask says it all: "
        "nearly all gates (19 of 20) take their usual choice for nearly all questions (19 of 20), or the "
        "interval of the worth of choosing for each input is not above 0. Else its policy decides, as in "
        "evaluation, and learns no more.",
    )

    batch_size: int | None = flag(None, "Examples a step and process.", old="batchSize", section="training")
    lr: float | None = flag(None, "Peak learning rate: linear warm-up, then linear decay to 0.")
    layers_lr: float | None = flag(
        None,
        "Peak learning rate of the layers, if not --lr, which is that of embeddings, pooler and answer head "
        "then.",
    )
    epochs: int | None = flag(None, "Passes over the training data.")
    max_steps: int | None = flag(None, "End after so many optimizer steps, if that is before the last epoch.")
    patience: int | None = flag(
        None, "End when validation accuracy has had no new best for so many epochs. Default: never."
    )
    schedule: str = flag(
        "linear",
        "Learning rate after the warm-up: linear falls to 0 at the last step, constant stays. A constant one "
        "with --warmup 0 lets a run be taken up again with more --epochs.",
        choices=("linear", "constant"),
    )
    optim: str = flag("adamw", "Optimizer of the model.", choices=tuple(OPTIMIZERS))
    weight_decay: float = flag(0.01, "Decay of weight matrices; biases and layer norms do not decay.")
    warmup: float = flag(0.1, "Share of all steps that warm up.")
    clip: float = flag(5.0, "Largest gradient norm, of the model and of the policy each.")
    max_bad_steps: int = flag(
        0,
        "Leave out up to so many steps whose loss or gradient is not finite; at the next one the run ends, "
        "with what was saved before.",
    )
    dropout: float | None = flag(None, "Dropout of the model. Default: as in its configuration.")
    l2sp: float = flag(
        0.0,
        "Strength of a decay towards the values that weights start from (L2-SP), in place of --weight_decay "
        "towards 0.",
    )
    head_first: int = flag(
        0,
        "Epochs in which only the answer head trains, on features without dropout; then all trains. Each has "
        "a warm-up and a schedule of its own.",
    )
    accumulate: int = flag(
        1,
        "Batches whose gradients are averaged for one step, over examples: also if the last step of an epoch "
        "has fewer.",
    )
    group_by_length: bool = flag(True, "Put questions of like length into one batch.")

    policy: str | None = flag(None, "What decides.", choices=POLICIES, section="policy")
    policy_every: int = flag(
        1,
        "Train the policy on every K-th step; in the steps between only the chosen copies run. With "
        "--policy-holdout: take a step of the policy after every K-th step of the model.",
    )
    policy_holdout: float = flag(
        0.0,
        "Share of the training images, drawn by --seed, on which the policy learns and the weights never do. "
        "In a step of the policy the model stands still, without dropout, and gates are sampled.",
    )
    policy_lr: float = flag(1e-4, "Learning rate of the policy, constant.")
    policy_optim: str = flag("adamw", "Optimizer of the policy.", choices=tuple(OPTIMIZERS))
    policy_llayers: int | None = flag(None, "Language layers of the policy network.")
    policy_xlayers: int | None = flag(None, "Cross-modality layers of the policy network.")
    policy_rlayers: int | None = flag(None, "Vision layers of the policy network.")
    policy_start: float | None = flag(None, "Share tuned from which the policy starts; random keeps it.")
    decisions: str | None = flag(
        None,
        "What the policy decides for: each gate by itself, or once an example, for all its gates. With "
        "example and --policy-holdout the policy's gradient is that of the expected loss, without sampling.",
        choices=("gate", EXAMPLE),
    )
    estimator: str | None = flag(
        None,
        "What a drawn gate's logits get for a gradient, for g, the gradient of the gate.",
        choices=ESTIMATORS,
    )
    temperature: float | None = flag(
        None,
        "Temperature tau of the Gumbel-softmax in training. It weighs the gradient of each gate, by "
        "s (1 - s) / tau: an undecided gate gets less of it at a higher one, a decided gate more. It does "
        "not change how gates are drawn.",
        old="policy_temperature",
    )
    temperature_end: float | None = flag(
        None, "Temperature at the last step, reached geometrically. Default: it stays."
    )
    target_share: float | None = flag(
        None,
        "Hold the mean probability of tuned at this share, by a bias on all gates that moves 0.01 a step "
        "against what is too much or too little. The log's share tuned shows it.",
    )
    entropy: float = flag(0.0, f"Weight of a term for the policy: {TERMS['entropy'].about}.")
    batch_shaping: float = flag(0.0, f"Weight of another one: {TERMS['batch_shaping'].about}.")
    evaluate_gates: str | None = flag(
        None,
        "Gates in evaluation. With --policy random the default is sample.",
        choices=WAYS,
    )
    average: float | None = flag(
        None, f"Weight of the tuned copy with --evaluate-gates {AVERAGE}, from 0 to 1. Default: {WEIGHT}."
    )
    routing: str | None = flag(
        None,
        "How the gates of full copies are carried out: routed runs each example in the copies it chose, "
        "dense computes both copies for all (the same numbers up to rounding), auto is the faster one in a "
        "few steps at the start, and stays. Default: routed on a CPU, else auto.",
        choices=("auto", "routed", "dense"),
    )

    precision: str = flag(
        "auto",
        "Arithmetic: auto is bf16 on a GPU that has it, else fp32.",
        choices=("auto", "fp32", "bf16", "fp16"),
        section="machine",
    )
    compile: bool = flag(
        False,
        "Compile the model for training (torch.compile): minutes at the start, faster steps on a GPU. For "
        f"standard, Frozen and --tuned {LORA}.",
    )
    gradient_checkpointing: bool = flag(False, "Compute each layer again in backward, to save memory.")
    num_workers: int = flag(0, "Processes that read data ahead.", old="numWorkers")
    save_every: int = flag(2000, "Save the state for resuming every so many steps, and after each epoch.")
    keep: int = flag(1, "States to keep: LAST, and the ones before it as LAST-<steps>.")
    accept_changes: bool = flag(
        False, "Go on with a run although its data, pre-trained files or precision are not what they were."
    )
    log_every: int = flag(10, "Steps between updates of progress bar and curves.")
    tqdm: bool = flag(True, "Show progress bars.")
    tracker: str = flag(
        WANDB,
        f"Where curves go besides metrics.jsonl, comma-separated: {WANDB}, Weights & Biases; {TENSORBOARD}, "
        f"event files in the run folder, which needs `pip install tensorboard`; or {NONE}.",
    )
    wandb: str = flag(
        "auto",
        "Weights & Biases: auto is online if logged in, else offline.",
        choices=("auto", "online", "offline", "off"),
    )
    wandb_project: str | None = flag(None, "Its project. Default: WANDB_PROJECT, or lxmert-spottune.")
    wandb_entity: str | None = flag(None, "Its entity, a user or team. Default: WANDB_ENTITY, or your own.")
    wandb_group: str | None = flag(None, "Its group, of several runs. Default: WANDB_RUN_GROUP, or none.")
    report: bool = flag(True, "Write visualizations/<version>/report.html at the end.")

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.output or f"snap/vqa/{self.version}")

    @property
    def asks(self) -> bool:
        """Whether it only answers questions about one image."""
        return self.question is not None or self.questions is not None

    @property
    def splits(self) -> dict[str, str]:
        """The splits that this run reads, comma-separated, by the flag that names them."""
        if self.asks:
            return {}
        return {"test": self.test} if self.test else {"train": self.train, "valid": self.valid}

    @property
    def channels(self) -> Channels:
        """Where its curves go; UserError if that is unknown or not installed."""
        place = {"project": self.wandb_project, "entity": self.wandb_entity, "group": self.wandb_group}
        given = {name: value for name, value in place.items() if value}
        return Channels(require_trackers(self.tracker), self.wandb, given)

    @property
    def images(self) -> int | None:
        """How many images of each split are used; None: all."""
        return IMAGES_TINY if self.tiny else IMAGES_FAST if self.fast else None

    def record(self, inputs: Mapping[str, Any]) -> Record:
        """What a run folder remembers of a run with these arguments and inputs."""
        return Record(vars(self), inputs, deciding)

    def completed(self, values: Mapping[str, Any]) -> VqaArgs:
        """The arguments with `values` for those that are None."""
        open_ones = {name: value for name, value in values.items() if getattr(self, name) is None}
        return dataclasses.replace(self, **open_ones)


# Fields that do not influence a run's numbers: a run may be resumed with others. What lies at a path, and
# what `--precision auto` means, is compared by itself: see tasks.finetune.inputs.
FREE_FIELDS = frozenset(
    {"num_workers", "save_every", "log_every", "tqdm", "wandb", "test", "keep"}
    | {"tracker", "wandb_project", "wandb_entity", "wandb_group"}
    | {"question", "questions", "image_id", "image", "weights"}
    | {
        "controls",
        "max_bad_steps",
        "accept_changes",
        "version",
        "output",
        "label",
        "data",
        "pretrained",
        "vocab",
    }
    | {"precision", "interpolate", "tune_from", "report"}
)
# Of these it matters whether they were given: they choose how weights are read.
PATH_FIELDS = ("load", "load_lxmert", "load_lxmert_qa", "refit")


def deciding(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run's arguments those that decide its numbers, as they are compared when it is taken up again.

    Runs from before a flag was there had its default. Epochs may be raised where no step done would have been
    another one.
    """
    earlier = {field.name: field.default for field in dataclasses.fields(VqaArgs)} | YOUNGER
    compared = {n: value for n, value in (earlier | dict(arguments)).items() if n not in FREE_FIELDS}
    compared |= {name: bool(compared.get(name)) for name in PATH_FIELDS}
    constant = arguments.get("schedule") == "constant" and not arguments.get("warmup")
    if constant and arguments.get("temperature_end") is None:
        compared.pop("epochs", None)
    return compared


@dataclass(frozen=True)
class Recipe:
    """Defaults that depend on the data set."""

    batch_size: int
    lr: float
    lora_lr: float  # with --tuned lora
    epochs: int
    train: str
    valid: str
    pretrained: str

    def values(self, low_rank: bool) -> dict[str, Any]:
        """The arguments that it settles, for low-rank or full copies."""
        values = dataclasses.asdict(self)
        lora_lr = values.pop("lora_lr")
        return values | ({"lr": lora_lr} if low_rank else {})


# scenes: rates as in run/BENCHMARKS.md, the rest by trial. vqav2: LXMERT's published recipe; the rate of
# low-rank copies is untried there. vqacpv2: the same, validated on a part held out of its training split,
# because VQA-CP has no validation split.
SCENES_RECIPE = Recipe(64, 1e-3, 1e-3, 14, "train,nominival", "minival", SCENES_MODEL)
RECIPES = {
    **dict.fromkeys(("scenes", "scenes-mixed", "scenes-renamed"), SCENES_RECIPE),
    "scenes-cp": dataclasses.replace(SCENES_RECIPE, train="cp_train", valid="cp_val"),
    "vqav2": Recipe(32, 5e-5, 1.5e-4, 4, "train,nominival", "minival", RELEASED_MODEL),
    "vqacpv2": Recipe(32, 5e-5, 1.5e-4, 4, "cp_train", "cp_val", RELEASED_MODEL),
}


METAVARS = {int: "N", float: "X"}
_BY_DATA_SET = ("batch_size", "lr", "epochs")
# Flags that name files or folders; of these the second ones may be hub ids or names of runs.
NAMES_TOO = ("pretrained", "tune_from", "refit")
PATHS = (
    *("output", "load", "questions", "image", "weights", "data", "load_lxmert", "load_lxmert_qa", "vocab"),
    *NAMES_TOO,
)

# Those that must be greater than 0 where they are given.
POSITIVE = (
    "batch_size", "lr", "layers_lr", "epochs", "clip", "accumulate", "save_every", "log_every",
    "policy_lr", "policy_every", "temperature", "temperature_end", "max_steps", "patience", "keep",
    "rank", "alpha",
)  # fmt: skip
# Of these pairs at most one may be given.
EXCLUSIVE = (
    *(("tiny", "fast"), ("tune", "tune_from"), ("load", "tune_from"), ("image", "image_id")),
    *(("refit", "load"), ("refit", "tune_from"), ("refit", "policy_holdout")),
)


def parse_args(argv: Sequence[str] | None = None) -> VqaArgs:
    """The command line as a checked `VqaArgs`; exits with code 2 and a sentence on a mistake."""
    parser = Parser(
        prog="vqa.py",
        usage="bash run/vqa_finetune.bash <gpu> <version> [flags]",
        description="Fine-tune LXMERT for visual question answering: standard, Frozen or adaptively.",
        epilog="Exit codes: 0 done; 2 a mistake, in one sentence; 128 + the number of a signal that asked to "
        "stop (130 Ctrl-C, 143 SIGTERM, 129 SIGHUP, 138 SIGUSR1, 140 SIGUSR2, 152 SIGXCPU): all is saved, "
        "and the same command goes on.",
        argument_default=argparse.SUPPRESS,
    )
    group: Any = parser
    hints = typing.get_type_hints(VqaArgs)
    for field in dataclasses.fields(VqaArgs):
        if field.metadata["section"]:
            group = parser.add_argument_group(field.metadata["section"])
        _add_flag(group, field, hints[field.name])
    parser.add_argument("--multiGPU", action="store_true", help="Has no effect: name several GPUs, 0,1,2,3.")
    values, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.error(_unknown_flag(unknown[0], parser))
    given = {name: value for name, value in vars(values).items() if name != "multiGPU"}
    args = VqaArgs(**{name: tuple(v) if isinstance(v, list) else v for name, v in given.items()})
    try:
        validate(args)
        require_trackers(args.tracker)
    except UserError as error:
        parser.error(str(error))
    return args


def validate(args: VqaArgs) -> None:
    """UserError with one sentence for values that cannot be meant."""
    check_name("version", args.version)
    check_name("data set", args.dataset)
    for splits in (args.train, args.valid, args.test):
        for split in (splits or "").split(",") if splits != OWN_SPLIT else ():
            check_name("split", split or "train")
    for field in dataclasses.fields(args):
        value, choices = getattr(args, field.name), field.metadata["choices"]
        if choices and value is not None and not _offers(choices, value):
            raise UserError(f"there is no {field.name} {value!r}; there are {', '.join(choices)}")
    for name in POSITIVE:
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise UserError(f"--{name} must be greater than 0, not {value}")
    for name in ("max_bad_steps", "l2sp", "head_first"):
        if getattr(args, name) < 0:
            raise UserError(f"--{name} must be at least 0, not {getattr(args, name)}")
    for one, other in EXCLUSIVE:
        if getattr(args, one) and getattr(args, other):
            raise UserError(f"--{one} and --{other} exclude each other: leave one of them out")
    origins = [f for f in ("pretrained", "load_lxmert", "load_lxmert_qa", "from_scratch") if getattr(args, f)]
    one_origin = len(origins) < 2 or set(origins) == {"pretrained", "from_scratch"}
    start, dropout, weight, shown = args.policy_start, args.dropout, args.average, args.image_id or args.image
    held_out, share, tested = args.policy_holdout, args.interpolate, bool(args.test or args.asks)
    for holds, sentence in (
        (0 <= args.warmup <= 1, f"--warmup is a share of all steps, between 0 and 1, not {args.warmup}"),
        (start is None or 0 < start < 1, f"--policy_start is a share above 0 and below 1, not {start}"),
        (dropout is None or 0 <= dropout < 1, f"--dropout must be at least 0 and below 1, not {dropout}"),
        (one_origin, f"--{' and --'.join(origins)} exclude each other: the weights come from one place"),
        (
            weight is None or (args.evaluate_gates == AVERAGE and 0 <= weight <= 1),
            f"--average is a weight between 0 and 1, and needs --evaluate-gates {AVERAGE}; it is {weight}",
        ),
        (
            args.target_share is None or 0 < args.target_share < 1,
            f"--target_share is a share above 0 and below 1, not {args.target_share}",
        ),
        (args.test or not args.controls, "--controls needs --test, the split to evaluate on"),
        (0 <= held_out < 1, f"--policy_holdout is a share, at least 0 and below 1, not {held_out}"),
        (share is None or 0 <= share <= 1, f"--interpolate is between 0 and 1, not {share}"),
        (share is None or tested, "--interpolate is for evaluation: add --test or --question"),
        (not args.test or args.load, "--test needs --load, the BEST folder to evaluate"),
        (not args.asks or shown, "--question needs --image-id or --image: it is about one image"),
        (not shown or args.asks, "--image-id needs --question, a question about it; so does --image"),
        (not args.weights or args.image, "--weights are those that find the regions of an --image: name one"),
        (not args.asks or args.load, "--question needs --load, the BEST folder that is to answer it"),
        (all(map(str.strip, args.question or ())), "--question is empty: give a question in quotes"),
        (not args.asks or not args.test, "--question and --test exclude each other: some questions, or all"),
        (
            args.load or args.tuned == LORA or (args.rank, args.alpha) == (None, None),
            f"--rank and --alpha are those of low-rank copies: add --tuned {LORA}",
        ),
        (
            args.tuned != LORA or args.routing is None,
            f"--routing is for copies of all weights; with --tuned {LORA} there is nothing to route",
        ),
    ):
        if not holds:
            raise UserError(sentence)


def _add_flag(group: Any, field: dataclasses.Field, hint: Any) -> None:
    """`batch_size` becomes --batch-size, --batch_size and its old spelling."""
    spellings = dict.fromkeys([field.name.replace("_", "-"), field.name, field.metadata["old"] or field.name])
    help, choices = field.metadata["help"], field.metadata["choices"]
    kind, *_ = typing.get_args(hint) or [hint]  # of `int | None`, int
    if field.default is not None and kind is not bool:
        help += f" Default: {field.default}."
    elif (usual := getattr(ModelSpec, field.name, None)) is not None:
        help += f" Default: that of the checkpoint given with --load, or {usual}."
    elif field.name in _BY_DATA_SET:
        help += f" Default: {_by_data_set(field.name)}."
    if isinstance(choices, Mapping):
        help += f" {'; '.join(f'{name}: {row.about}' for name, row in choices.items())}."
    if kind is bool:
        options = {"action": argparse.BooleanOptionalAction}
    elif typing.get_origin(kind) is tuple:
        options = {"action": "append", "metavar": "TEXT"}
    elif any(":" in choice for choice in choices):  # which argparse cannot tell apart
        options = {"metavar": f"{{{','.join(choices)}}}"}
    elif choices:
        options = {"choices": tuple(choices)}
    else:
        options = {"type": kind, "metavar": METAVARS.get(kind, "TEXT")}
    if field.name in PATHS:
        options = {"type": partial(user_path, named=field.name in NAMES_TOO), "metavar": "PATH"}
    if field.metadata["bare"]:
        options |= {"nargs": "?", "const": field.metadata["bare"]}
    group.add_argument(*(f"--{spelling}" for spelling in spellings), dest=field.name, help=help, **options)


def _by_data_set(name: str) -> str:
    """The defaults of an argument that a `Recipe` settles, with the data sets that they are those of."""
    of: dict[Any, list[str]] = {}
    for dataset, recipe in RECIPES.items():
        of.setdefault(getattr(recipe, name), []).append(dataset)
    text = "; ".join(f"{value:g} for {', '.join(names)}" for value, names in of.items())
    lora = {recipe.lora_lr for recipe in RECIPES.values()} - {recipe.lr for recipe in RECIPES.values()}
    more = f", with --tuned {LORA} {', '.join(f'{rate:g}' for rate in sorted(lora))}" if name == "lr" else ""
    return f"{text}{more}; for your own data, as its features are those of the one or the other"


def _offers(choices: Collection[str], value: str) -> bool:
    """Whether a value is one of the choices; `name:WORD` stands for the name with anything after it."""
    name, colon, word = value.partition(":")
    offered = any(choice.partition(":")[:2] == (name, colon) for choice in choices)
    return offered and bool(colon) == bool(word)


def _unknown_flag(text: str, parser: argparse.ArgumentParser) -> str:
    if not text.startswith("-"):
        return f"unexpected argument {text!r}; flags look like --name value"
    known = [name for name in parser._option_string_actions if name.startswith("--")]
    name = text.split("=")[0]
    near = get_close_matches(name, known, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    main = sorted(action.option_strings[0] for action in parser._actions)
    return f"unknown flag {name}{hint}. The flags are: {' '.join(main)}"
