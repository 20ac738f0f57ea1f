"""A run that is set up: what its epochs work with, and how it is saved. Nothing that is no number ever is."""

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Subset

from adaptive.adapt import Adaptive, AdaptiveOutput
from adaptive.gates import TUNED
from adaptive.terms import TERMS, add_terms
from common.errors import RunError, UserError
from tasks.finetune.args import VqaArgs
from tasks.finetune.best import best_fault, pretrained_names, save_best
from tasks.finetune.evaluate import Evaluation, evaluate
from tasks.finetune.model import LENGTH_STEP, compile_model, layer_parameters, standing_still, vqa_loss
from tasks.finetune.routing import settle_routing
from tasks.finetune.setup import Setup
from tasks.finetune.spec import EXAMPLE, LORA
from tasks.finetune.state import TrainState
from tasks.finetune.strategies import STRATEGIES
from training.finite import BadSteps, require_finite, shown
from training.machine import Machine, Stream
from training.optim import (
    JointOptimizer,
    clip_gradients,
    in_two_acts,
    make_optimizer,
    make_schedule,
    pull_to_start,
    set_rate,
)
from training.run_folder import RunFolder, Stateful
from training.tracker import wrapped
from vqadata.dataset import VqaDataset

EVALUATION_BATCH = 4  # times the training batch: no gradients, so there is room


class Run(NamedTuple):
    """The parts of a run; those that `Machine` prepared are as it gave them."""

    args: VqaArgs
    machine: Machine
    model: nn.Module
    optimizer: AcceleratedOptimizer
    schedule: LambdaLR
    total_updates: int
    loader: DataLoader
    valid_loader: DataLoader
    own_loader: DataLoader  # over a sample of the training questions, as they are evaluated
    state: TrainState
    bad_steps: BadSteps
    held_out: Stream | None  # of questions that only the policy learns from, with --policy-holdout

    @property
    def goes_on(self) -> bool:
        """Whether there is an epoch to train, or to end."""
        args, state = self.args, self.state
        if state.step:  # the one under way, if only its evaluation is missing
            return True
        patient = args.patience is None or state.epochs_without_best < args.patience
        return state.epoch < args.epochs and state.updates < self.total_updates and patient

    @property
    def seconds_left(self) -> float:
        """How long the rest of the run takes, with its evaluations, at the pace of this call."""
        return self.state.seconds_an_update * (self.total_updates - self.state.updates)

    def objective(self, loss: Tensor, logits: Tensor | None) -> Tensor:
        """What training minimises: the loss, and the terms that the policy's logits are to meet besides."""
        return add_terms(loss, logits, {name: getattr(self.args, name) for name in TERMS})

    def head_only(self) -> AbstractContextManager[None]:
        """A block in which only the answer head trains, if the epoch is one of --head-first.

        Probing before fine-tuning distorts the features less (Kumar et al. 2022, arXiv:2202.10054).
        """
        if self.state.epoch >= self.args.head_first:
            return nullcontext()
        return standing_still(self.machine.accelerator.unwrap_model(self.model).model.lxmert)

    @property
    def parts(self) -> dict[str, Stateful]:
        """All that a resumed run must find again."""
        accelerator = self.machine.accelerator
        parts = {"model": accelerator.unwrap_model(self.model), "optimizer": self.optimizer}
        parts |= {"schedule": self.schedule, "counters": self.state, "bad_steps": self.bad_steps}
        return parts | ({"scaler": accelerator.scaler} if accelerator.scaler else {})

    def learned(self) -> Iterator[Tensor]:
        """The weights that are trained, and what the optimizers keep of them."""
        yield from (parameter for parameter in self.model.parameters() if parameter.requires_grad)
        for kept in self.optimizer.state.values():
            yield from (value for value in kept.values() if isinstance(value, Tensor))


def prepare(args: VqaArgs, machine: Machine, setup: Setup) -> Run:
    """The optimizers, their rates and the loaders: the model's rate rises and falls, the policy's stays.

    The run's arguments are those given, with --routing settled.
    """
    settings = (args.optim, args.lr), (args.policy_optim, args.policy_lr)
    joint = JointOptimizer(
        make_optimizer(name, part, lr, args.weight_decay)
        for part, (name, lr) in zip(setup.model.children(), settings, strict=False)
    )
    if args.layers_lr:
        set_rate(joint.optimizers[0], layer_parameters(setup.model.model.lxmert), args.layers_lr)
    if args.l2sp:
        names, model = pretrained_names(setup.model, setup.weights), setup.model
        pulled = [parameter for name, parameter in model.named_parameters() if name in names]
        pull_to_start(joint.optimizers[0], pulled, args.l2sp)
    train_set, valid_set = setup.datasets
    if args.compile:
        for dataset in filter(None, (train_set, setup.held_out)):
            dataset.length_step = LENGTH_STEP
        compile_model(setup.model.model)
    sample = Subset(train_set, fixed_sample(len(train_set), len(valid_set)))
    loaders = (machine.loader(part, EVALUATION_BATCH * args.batch_size) for part in (valid_set, sample))
    model, optimizer, *loaders = machine.accelerator.prepare(setup.model, joint, *loaders)

    def source(dataset: VqaDataset) -> tuple[VqaDataset, int, int, Any]:
        return dataset, args.batch_size, args.seed, dataset.token_lengths if args.group_by_length else None

    loader = machine.training_loader(*source(train_set))
    held_out = machine.stream(*source(setup.held_out)) if setup.held_out else None
    machine.seed_processes(args.seed)  # the model is built, and the same in all of them
    updates = math.ceil(len(loader) / args.accumulate)  # an epoch
    total_updates = min(args.epochs * updates, args.max_steps or args.epochs * updates)
    acts = in_two_acts(args.schedule, total_updates, args.warmup, args.head_first * updates)
    schedule = make_schedule(joint, acts)
    question_types = len(train_set.question_types)
    of_machine = {"rank": machine.rank, "noise": machine.gate_noise, "started": machine.started}
    state = TrainState(machine.device, setup.labels["live"], question_types, **of_machine)
    bad_steps = BadSteps(args.max_bad_steps, machine.accelerator)
    if STRATEGIES[args.strategy].adaptive and args.tuned != LORA:
        routing, words = settle_routing(args.routing, machine, model, optimizer, loader)
        args = replace(args, routing=routing)
        setup.loaded.extend(words)
    parts = (model, optimizer, schedule, total_updates, loader, *loaders, state, bad_steps, held_out)
    return Run(args, machine, *parts)


def fixed_sample(size: int, count: int) -> list[int]:
    """Up to `count` of `size` places, in order: the same in every run on the same data, whatever its seed."""
    return sorted(np.random.default_rng(0).permutation(size)[:count].tolist())


def learn_policy(run: Run) -> None:
    """A step of the policy on held-out questions; the model stands still, and gates are sampled.

    On the examples that they are fitted to, the tuned copies are better nearly always; what is worth tuning
    shows on others. So weights and policy learn in turn, each from data of its own, the policy at the weights
    as they are: first-order DARTS (Liu et al. 2019, arXiv:1806.09055), as AdaShare (Sun et al. 2020,
    arXiv:1911.12423) does it.
    """
    machine, state, accelerator = run.machine, run.state, run.machine.accelerator
    adaptive = accelerator.unwrap_model(run.model)
    adaptive.train_policy = True
    batch, part = run.held_out.take(state.policy_steps)
    if machine.gate_noise:
        adaptive.draw_noise(machine.gate_noise, part.batch, part.rows)
    with standing_still(adaptive.model):
        output = run.model(**batch["inputs"])
        loss = vqa_loss(output.outputs, batch["target"])
        expected = loss
        if run.args.decisions == EXAMPLE:
            expected = expected_loss(adaptive, output, batch["inputs"], batch["target"])
        # One batch a step: `backward` takes it for one of as many as are accumulated.
        objective = run.objective(expected, output.policy_logits)
        accelerator.backward(objective * part.weight * run.args.accumulate)
    run.bad_steps.watch(loss, output.outputs, batch["question_id"])
    norms = clip_gradients(accelerator, [adaptive.policy], run.args.clip)
    run.bad_steps.guard(run.optimizer.optimizer, norms, state.updates + 1)
    run.optimizer.step()
    run.optimizer.zero_grad()
    state.policy_steps += 1


def expected_loss(
    adaptive: Adaptive, output: AdaptiveOutput, inputs: Mapping[str, Tensor], target: Tensor
) -> Tensor:
    """The mean over a batch of p L1 + (1 - p) L0, where all gates of an example are tied.

    L1 and L0 are an example's losses with all gates tuned and with all frozen, p is the probability of the
    first, which alone has a gradient: the exact one. One of the two losses is that of `output`, the other
    takes a forward pass.
    """
    drawn = output.gates[:, :1].detach()
    with torch.no_grad():
        other = adaptive(gates=1 - drawn, **inputs).outputs
        losses = [vqa_loss(logits, target, "none") for logits in (output.outputs, other)]  # (B,) each
        tuned, frozen = (torch.where(drawn[:, 0] > 0, *pair) for pair in (losses, losses[::-1]))
    p = output.policy_logits.float().softmax(-1)[:, 0, TUNED]
    return (p * tuned + (1 - p) * frozen).mean()


def check_steps(run: Run, folder: RunFolder) -> None:
    """Say which steps since the last look were not finite; RunError if they are too many in all."""
    if bad := run.bad_steps.settle():
        folder.write("bad_steps.json", run.bad_steps.state_dict())
        for step in bad:
            folder.tracker.say(f"step {step.step} was left out, it is not finite: {shown(step.ids)}")
        run.bad_steps.require_few(f"all questions of such steps are in {folder.path / 'bad_steps.json'}")


def save(run: Run, folder: RunFolder) -> None:
    """Save the state."""
    check_steps(run, folder)
    run.state.pool(run.machine.accelerator)
    require_finite(run.learned(), run.state.updates)
    folder.save_state(run.parts, run.state.updates)


def evaluate_own(run: Run, folder: RunFolder, setup: Setup) -> Evaluation | None:
    """The answers to a sample of the training questions; Interrupted if asked to stop.

    None, in a sentence, if they cannot be had: with --max_bad_steps a run may end well although features of
    training images are not finite.
    """
    try:
        return evaluate(run.machine, run.model, run.own_loader, setup.own_exam)
    except UserError as fault:
        folder.tracker.say(wrapped(f"There is no own train accuracy: {fault}"))
        return None


def keep_best(run: Run, folder: RunFolder, setup: Setup) -> None:
    """Save the epoch that has just ended, as the best one."""
    require_finite(run.learned(), run.state.updates)
    if run.machine.is_main:
        best = setup.as_best(folder.best, run.args.dataset, run.state.best.values())
        save_best(best, run.machine.accelerator.unwrap_model(run.model), setup.weights)


def restore_best(run: Run, folder: RunFolder, setup: Setup) -> None:
    """Save the best epoch again if its folder is damaged.

    RunError if that cannot be done, because the state that was loaded is a later one.
    """
    state = run.state
    if not state.history or not (fault := best_fault(folder.best, state.best.epoch)):
        return
    if state.epoch > state.best.epoch or state.step:
        raise RunError(
            f"{fault}. It is the best epoch, number {state.best.epoch}, and the state in LAST is a later "
            f"one: get {folder.best} from a copy, or choose another version name to train again."
        )
    keep_best(run, folder, setup)
    folder.tracker.say(f"{fault}. It was written again from the state in LAST.")
