"""What a run reads and builds before anything is written: all that can be refused is refused here."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from adaptive.adapt import Adaptive
from common.errors import UserError
from common.files import sha256_of
from common.words import counted
from lxmert.loading import (
    FUNCTION_FIELDS,
    TRAINING_FIELDS,
    Pretrained,
    load_pretrained,
    set_feature_size,
)
from lxmert.tokens import fingerprint, load_tokenizer
from lxmert.units import gate_labels
from tasks.finetune.args import VqaArgs
from tasks.finetune.best import (
    WEIGHTS,
    Best,
    function_of,
    load_base_weights,
    load_best,
    load_same_tokenizer,
    refuse_two_copies,
)
from tasks.finetune.choice import cost_message, found_policy, read_choice
from tasks.finetune.data import load_splits, open_data, require_data, require_small_model
from tasks.finetune.evaluate import Exam
from tasks.finetune.gating import Decide, chooses, decided_by, require_choice
from tasks.finetune.model import build, count_parameters
from tasks.finetune.notes import training_notes
from tasks.finetune.policies import find_clusters, let_field_decide
from tasks.finetune.spec import LORA, ModelSpec
from tasks.finetune.strategies import STRATEGIES
from training.machine import Machine
from training.run_folder import PROCESSES
from vqadata.dataset import VqaDataset, split_names
from vqadata.folder import DataFolder
from vqadata.scoring import restrict


class Setup(NamedTuple):
    """A model and the data that it trains or is tested on."""

    spec: ModelSpec
    weights: Pretrained  # those that the model started from, by name and checksum; moved into it
    model: Adaptive
    answers: list[str]  # in label order
    datasets: list[VqaDataset]  # training and validation, or test
    labels: dict[str, np.ndarray]  # what each gate stands for, see lxmert.units.gate_labels
    exam: Exam  # the last of the data sets, as questions to be answered
    loaded: list[str]  # messages
    tokenizer: str  # its fingerprint
    inputs: dict[str, Any]  # of a run that trains: the identity of what decides its numbers
    held_out: VqaDataset | None = None  # the training questions that only the policy learns from

    @property
    def sizes(self) -> dict[str, dict[str, int]]:
        """Counts of parameters (trainable, frozen, total) and of gates (total, and live: it matters)."""
        live = self.labels["live"]
        gates = {"total": len(live), "live": int(live.sum())}
        return {"parameters": count_parameters(self.model), "gates": gates}

    @property
    def own_exam(self) -> Exam:
        """The training questions, as questions to be answered."""
        return self.exam._replace(splits="the training data", dataset=self.datasets[0], truth=None)

    def as_best(self, folder: Path, dataset: str, metrics: dict[str, Any]) -> Best:
        """What a BEST folder says of the model, after an epoch on `dataset` with these metrics."""
        weights = self.weights
        size, origin = weights.config.visual_feat_dim, (weights.source, weights.sha256)
        function = (function_of(weights), self.tokenizer)
        return Best(folder, self.spec, dataset, size, self.answers, *origin, metrics, *function)


def set_up(args: VqaArgs, machine: Machine, best: Best | None) -> Setup:
    """Read and build everything for settled arguments; `best` is the checkpoint of --load.

    UserError for data or weights that are missing or cannot be used together.
    """
    folder = open_data(Path(args.data), args.dataset)
    require_data(folder, args.splits)
    answers = best.answers if best else folder.read_answers()
    if best and not args.test and answers != folder.read_answers():
        raise UserError(
            f"{args.load} was trained on other answers than those of {folder.answers_file}: its rows mean "
            "something else; train from the pre-trained model instead"
        )
    spec = ModelSpec.of(args)
    if best is None:
        refuse_two_copies(spec.pretrained)
        require_small_model(args.dataset, spec)
    require_fitting(vars(args), spec)
    gated = STRATEGIES[spec.strategy].adaptive
    chosen = read_choice(args.refit).best if args.refit and not best and gated else None
    weights = load_base_weights(best) if best else load_pretrained(spec)
    tokenizer = load_same_tokenizer(best, weights) if best else load_tokenizer(weights.tokenizer)
    whole = load_splits(folder, args.splits, tokenizer, answers, args.images, args.skip_missing)
    datasets, held_out = whole, None
    if args.policy_holdout and not args.test:
        learned, held_out = whole[0].split(args.policy_holdout, args.seed)
        datasets = [learned, *whole[1:]]
    if gated:
        spec = let_field_decide(spec, [*datasets, *([held_out] if held_out else [])])
    if args.controls:
        require_choice(spec, datasets[-1])
    set_feature_size(weights, datasets[0].stores.feature_size)
    model, units, loaded = build(spec, weights, answers, machine.precision, args.routing == "dense")
    if best:
        load_best(best, model, weights, args.interpolate)
        loaded.append(f"fine-tuned weights of {best.folder}")
    elif gated:
        loaded += prepare_policy(model.policy, chosen, whole[0])
    if held_out:
        share = f"{args.policy_holdout:.0%} of the training images"
        loaded.append(f"for the policy alone: {counted(len(held_out), 'question')} about {share}")
    loaded += [omission for dataset in whole for omission in dataset.omissions()]
    loaded += [] if args.test else training_notes(spec, weights, tokenizer, datasets[0], folder, args.train)
    if spec.tune and not gated and not args.test:
        batch = datasets[0].__getitems__(range(min(args.batch_size, len(datasets[0]))))
        loaded.append(cost_message(spec, weights.config, len(answers), batch["inputs"]))
    model.model.lxmert.encoder.gradient_checkpointing = args.gradient_checkpointing
    labels = gate_labels(units)
    last, live = list(args.splits.values())[-1], labels["live"]
    exam = make_exam(folder, last, datasets[-1], live, answers, decided_by(spec))
    exam = exam._replace(keeps_choices=chooses(spec))
    mark = fingerprint(tokenizer)
    inputs = {} if args.test else read_by(folder, args.splits, whole)
    inputs |= described_by(weights, mark) | {
        "checkpoint of --load": sha256_of(best.folder / WEIGHTS) if best else None,
        "policy of --refit": sha256_of(chosen.folder / WEIGHTS) if chosen else None,
        "precision": machine.precision,
        PROCESSES: machine.processes,
    }
    return Setup(spec, weights, model, answers, datasets, labels, exam, loaded, mark, inputs, held_out)


def prepare_policy(policy: nn.Module, chosen: Best | None, dataset: VqaDataset) -> list[str]:
    """Give the policy of a new model what it starts from, and say what: a run's policy, groups of images."""
    if chosen is None:
        return find_clusters(policy, dataset)
    policy.load_state_dict(found_policy(chosen))
    return [f"the policy is that of {chosen.folder}, and learns no more"]


def make_exam(
    folder: DataFolder,
    splits: str,
    dataset: VqaDataset,
    live: np.ndarray,
    answers: Sequence[str],
    decide: Decide,
) -> Exam:
    """A data set, which holds questions of these splits, as questions to be answered; see `Exam`."""
    truth = folder.ground_truth(split_names(splits))
    truth = restrict(truth, dataset.question_ids.tolist()) if truth else None
    return Exam(splits, dataset, live, truth, answers, decide)


def require_fitting(what: Mapping[str, Any], spec: ModelSpec) -> None:
    """UserError for arguments of training, `what`, that mean nothing for the model of a spec."""
    gated, low = STRATEGIES[spec.strategy].adaptive, spec.tuned == LORA
    policy = f"--refit {spec.refit}" if spec.refit else f"--policy {spec.policy}"
    for holds, sentence in (
        (
            not what["compile"] or not gated or low,
            f"--compile needs shapes that do not depend on the gates, and {spec.strategy} runs each example "
            f"in the copies it chose: add --tuned {LORA}, or leave --compile out",
        ),
        (
            not what["policy_holdout"] or gated,
            f"--policy_holdout is for a policy that learns, and --strategy {spec.strategy} has none",
        ),
        (
            not what["policy_holdout"] or spec.policy_learns,
            f"--policy_holdout is for a policy that learns, and {policy} has nothing to learn: leave it out",
        ),
        (
            what["policy_every"] == 1 or not gated or spec.policy_learns,
            f"--policy_every is for a policy that learns, and {policy} has nothing to learn: leave it out",
        ),
        (
            not what["l2sp"] or not low,
            f"--l2sp pulls weights to where they start, and updates of --tuned {LORA} start from 0: that is "
            "--weight_decay",
        ),
        (
            not what["layers_lr"] or not STRATEGIES[spec.strategy].keeps or spec.refit,  # which finds none
            f"--layers_lr is the rate of layers that are tuned, and --strategy {spec.strategy} tunes none: "
            "leave it out",
        ),
        (
            not what["head_first"] or not gated,
            f"--head_first is for strategies without gates, and --strategy {spec.strategy} has some",
        ),
        (
            what["head_first"] < what["epochs"],
            f"--head_first {what['head_first']} leaves no epoch for the rest of the model",
        ),
    ):
        if not holds:
            raise UserError(sentence)


def read_by(folder: DataFolder, flags: dict[str, str], datasets: Sequence[VqaDataset]) -> dict[str, Any]:
    """A digest of each file of a data set that a run reads, and of the features of its images.

    Where they lie is no part of it. With --skip-missing, also how many questions of a split are left out.
    flags: the splits that --train and --valid name, whose data sets `datasets` are.
    """
    names = {flag: split_names(splits) for flag, splits in flags.items()}
    files = [folder.answers_file, *(folder.split_file(name) for splits in names.values() for name in splits)]
    files += [file for name in names["valid"] if (file := folder.ground_truth_file(name)).is_file()]
    digests = {file.relative_to(folder.path).as_posix(): sha256_of(file) for file in files}
    for use, dataset in zip(("training", "validation"), datasets, strict=True):
        digests[f"features of the {use} images"] = dataset.stores.digest(dataset.images)
    left_out = {name: count for dataset in datasets for name, count in dataset.left_out.items()}
    return digests | {f"questions left out of {name}": count for name, count in left_out.items()}


def described_by(weights: Pretrained, tokenizer: str) -> dict[str, Any]:
    """What identifies a pre-trained model; `tokenizer` is the fingerprint of its tokenizer."""
    fields = (*FUNCTION_FIELDS, *TRAINING_FIELDS)
    return {
        **{f"config.json: {name}": getattr(weights.config, name) for name in fields},
        "pre-trained weights (model.safetensors, pytorch_model.bin or _LXRT.pth)": weights.sha256,
        "tokenizer (vocab.txt, tokenizer.json, tokenizer_config.json)": tokenizer,
    }
