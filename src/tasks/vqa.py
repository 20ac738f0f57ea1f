"""Fine-tune LXMERT for visual question answering, or evaluate what was fine-tuned.

    python src/tasks/vqa.py --version demo --strategy SpotTune
    python src/tasks/vqa.py --version demo --test minival --load snap/vqa/demo/BEST
    python src/tasks/vqa.py --load snap/vqa/demo/BEST --question "how many red objects are there?" \
        --image-id scene_000400

- strategies: standard, Frozen, SpotTune (a decision per component),
  SpotTune_Res (per sub-layer), SpotTune_Block (per layer)
- one device or many, fp32 / bf16 / fp16, through accelerate
- the best epoch by validation accuracy in BEST/, the full state in LAST/
- the same command again goes on where it stopped, to the same numbers, also in the middle of an epoch
- pictures of what the policy chose after each epoch; curves in W&B

Where weights come from, the first that applies: own LAST/ > --load > pre-trained > random (--fromScratch).
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import set_seed
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from adaptive.usage import Usage, variation
from common.errors import Interrupted, UserError
from common.files import write_json
from lxmert.checkpoint import fit_features, load_weights, weights_behind
from lxmert.tokens import load_tokenizer
from lxmert.units import gate_labels
from tasks.finetune import messages as report
from tasks.finetune.args import FREE_FIELDS, VqaArgs, parse_args
from tasks.finetune.ask import ask
from tasks.finetune.best import Best, load_best, save_best
from tasks.finetune.data import complete, load_answers, load_split, prepare_data, required_files
from tasks.finetune.machine import loader_over, make_accelerator, progress_bar, stop_agreed
from tasks.finetune.model import INPUTS, ModelSpec, build, count_parameters, score, vqa_loss
from tasks.finetune.scores import load_key, official
from tasks.finetune.state import Progress
from training.checkpoint import StopSignal, save_state, stop_on_signal, whole_folder
from training.loader import EpochSampler
from training.optim import JointOptimizer, clip_gradients, make_optimizer, make_schedule, warm_up_then_decay
from training.run_folder import describe_environment, open_run_folder
from training.tracker import Tracker
from vqadata.dataset import VqaDataset

EVALUATION_BATCH = 4  # times the training batch: no gradients, so there is room


class Run(NamedTuple):
    """A run that is set up: what its epochs work with."""

    args: VqaArgs
    accelerator: Accelerator
    model: nn.Module
    optimizer: AcceleratedOptimizer
    schedule: LambdaLR
    total_updates: int
    train_loader: DataLoader
    progress: Progress
    tracker: Tracker
    stop: StopSignal


class Evaluation(NamedTuple):
    """N examples in the order of their data set."""

    question_ids: np.ndarray  # (N,)
    chosen: np.ndarray  # (N,) answer numbers
    accuracy: float  # soft-target accuracy in per cent
    usage: Usage


def main(args: VqaArgs) -> dict[str, Any]:
    """Train and return what result.json holds; with `--test` evaluate and return the score."""
    asked = args
    args, start = complete(asked)
    accelerator = make_accelerator(args)
    with accelerator.main_process_first():
        prepare_data(args, banner=asked.dataset == "auto" and accelerator.is_main_process)
    if args.question is not None:
        return ask(args, accelerator, start)
    with stop_on_signal() as stop:
        if args.test:
            return test(args, accelerator, start, stop)
        return train(args, accelerator, start, stop)


def train(args: VqaArgs, accelerator: Accelerator, start: Best | None, stop: StopSignal) -> dict[str, Any]:
    """Set up, run the epochs, leave a run folder."""
    # 1. What to start from; then the run folder, which refuses to mix two runs. It is made last, so that a
    #    mistake in the flags of the model leaves none behind.
    spec = ModelSpec.of(args)
    weights = load_weights(spec)
    main_process = accelerator.is_main_process
    if main_process:
        open_run_folder(args.folder, vars(args), free=FREE_FIELDS)
    accelerator.wait_for_everyone()
    tracker = Tracker(args.folder, vars(args), wandb=args.wandb, speaks=main_process)
    set_seed(args.seed)

    # 2. Data.
    answers = load_answers(args)
    tokenizer = load_tokenizer(weights.tokenizer)
    train_set = load_split(args, args.train, tokenizer, answers)
    valid_set = load_split(args, args.valid, tokenizer, answers)
    fit_features(weights, train_set.stores.feature_size)
    lengths = train_set.token_lengths if args.group_by_length else None
    key = load_key(args, args.valid)
    order = EpochSampler(len(train_set), args.seed, args.batch_size, lengths)
    train_loader = loader_over(train_set, args, args.batch_size, order)
    valid_loader = loader_over(valid_set, args, EVALUATION_BATCH * args.batch_size)

    # 3. The model: built, filled, adapted.
    model, units, loaded = build(spec, weights, answers, accelerator.mixed_precision)
    if start:
        load_best(start, model, weights)
        loaded.append(f"fine-tuned weights of {start.folder}")
    model.model.lxmert.encoder.gradient_checkpointing = args.gradient_checkpointing
    if model.gates:
        model.gates.dense = args.routing == "dense"
    labels = gate_labels(units)
    sizes = {"parameters": count_parameters(model), "gates": report.count_gates(labels)}
    tracker.say(report.opening(args, len(train_set), len(valid_set), loaded, **sizes))

    # 4. Optimizers and their rates: the model's rises and falls, the policy's stays.
    optimizers = [make_optimizer(args.optim, model.model, args.lr, args.weight_decay)]
    if model.policy is not None:
        optimizers.append(make_optimizer(args.policy_optim, model.policy, args.policy_lr, args.weight_decay))
    joint = JointOptimizer(optimizers)
    model, optimizer, train_loader, valid_loader = accelerator.prepare(
        model, joint, train_loader, valid_loader
    )
    total_updates = args.epochs * math.ceil(len(train_loader) / args.accumulate)
    rise_and_fall = warm_up_then_decay(total_updates, args.warmup)
    schedule = make_schedule(joint, rise_and_fall)

    # 5. Resume, if this run was begun before.
    progress = Progress(
        accelerator.device,
        len(labels["live"]),
        len(train_set.question_types),
        main_process=main_process,
    )
    accelerator.register_for_checkpointing(schedule, progress)
    last = whole_folder(args.folder / "LAST")
    if last:
        accelerator.load_state(str(last))
        tracker.say(report.going_on(progress, args))
    elif main_process:
        environment = describe_environment(str(accelerator.device), required_files(args))
        write_json(args.folder / "env.json", {**environment, "pretrained_sha256": weights.sha256})
    tracker.rewind(progress.updates)

    # 6. Epochs.
    run = Run(
        args, accelerator, model, optimizer, schedule, total_updates, train_loader, progress, tracker, stop
    )
    try:
        while progress.epoch < args.epochs:
            train_epoch(run)
            evaluation = evaluate(run.args, accelerator, model, valid_loader, valid_set, stop)
            graded = official(key, evaluation.question_ids, evaluation.chosen, answers) if key else None
            metrics = finish_epoch(run, evaluation, graded, labels["live"])
            if main_process:
                if progress.best is metrics:
                    plain = accelerator.unwrap_model(model)
                    save_best(args.folder / "BEST", plain, spec, weights, answers, args.dataset, metrics)
                report.show_policy(args, tracker, labels, progress, valid_set.question_types)
            save_state(accelerator, args.folder / "LAST")
    except Interrupted:
        progress.pool(accelerator)
        save_state(accelerator, args.folder / "LAST")
        tracker.close()
        raise

    # 7. The result.
    outcome = report.result(args, progress, **sizes)
    if main_process:
        write_json(args.folder / "result.json", outcome)
    tracker.say(report.closing(args, outcome))
    tracker.close()
    return outcome


def train_epoch(run: Run) -> None:
    """The steps of one epoch, or what is left of it."""
    args, accelerator, progress, optimizer = run.args, run.accelerator, run.progress, run.optimizer
    adaptive = accelerator.unwrap_model(run.model)
    run.model.train()
    run.train_loader.set_epoch(progress.epoch)
    # Skipping belongs to the epoch that is taken up in the middle, not to the ones after it.
    loader = skip_first_batches(run.train_loader, progress.step) if progress.step else run.train_loader
    title = f"epoch {progress.epoch + 1}/{args.epochs}"
    with progress_bar(args, accelerator, title, len(run.train_loader), progress.step) as bar:
        clock = time.perf_counter()
        for batch in loader:
            adaptive.train_policy = progress.updates % args.policy_every == 0
            adaptive.temperature = args.temperature_at(progress.updates / run.total_updates)
            with accelerator.accumulate(run.model):
                logits, gates, _ = run.model(**{name: batch[name] for name in INPUTS})
                loss = vqa_loss(logits, batch["target"])
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    clip_gradients(accelerator, adaptive.children(), args.clip)
                optimizer.step()
                optimizer.zero_grad()

            progress.count(loss, score(logits, batch["target"]), gates, batch["question_type"])
            progress.seconds += time.perf_counter() - clock
            clock = time.perf_counter()
            bar.update()
            if not accelerator.sync_gradients:
                continue  # in the middle of an accumulated step there is nothing to log and no place to stop
            run.schedule.step()
            progress.updates += 1
            if progress.updates % args.log_every == 0:
                means = progress.means()
                bar.set_postfix_str(report.brief(means, gates is not None, bar, args.batch_size))
                run.tracker.record({f"train/{name}": mean for name, mean in means.items()}, progress.updates)
            if stop_agreed(args, accelerator, run.stop, progress.updates):
                raise Interrupted
            if progress.updates % args.save_every == 0:
                progress.pool(accelerator)
                save_state(accelerator, args.folder / "LAST")


@torch.no_grad()
def evaluate(
    args: VqaArgs,
    accelerator: Accelerator,
    model: nn.Module,
    loader: DataLoader,
    dataset: VqaDataset,
    stop: StopSignal,
) -> Evaluation:
    """Answer every question once, with the likelier copy at every gate."""
    model.eval()
    ids, chosen, scores, usage = [], [], [], None
    # Autocast around the whole loop: weights are rounded once for all batches and not once a batch.
    with accelerator.autocast(), progress_bar(args, accelerator, "evaluation", len(loader)) as bar:
        for batch in loader:
            logits, gates, _ = model(**{name: batch[name] for name in INPUTS})
            answered = (batch["question_id"], logits.argmax(1), score(logits, batch["target"]))
            if gates is None:
                gates = logits.new_zeros(len(logits), 0)
            *answered, gates, group = accelerator.gather_for_metrics(
                (*answered, gates, batch["question_type"])
            )
            usage = usage or Usage(gates.shape[1], len(dataset.question_types), accelerator.device)
            usage.update(gates, group)
            for column, values in zip((ids, chosen, scores), answered, strict=True):
                column.append(values)
            bar.update()
            if stop and accelerator.num_processes == 1:
                raise Interrupted
    ids, chosen, scores = (torch.cat(column).cpu().numpy() for column in (ids, chosen, scores))
    return Evaluation(ids, chosen, 100 * float(scores.astype(np.float64).mean()), usage)


def finish_epoch(
    run: Run, evaluation: Evaluation, graded: dict[str, Any] | None, live: np.ndarray
) -> dict[str, Any]:
    """Enter the epoch into the history, the log and the curves; returns its metrics."""
    progress, tracker = run.progress, run.tracker
    seconds_before = sum(metrics["seconds"] for metrics in progress.history)
    progress.pool(run.accelerator)
    means = progress.means()
    seconds = progress.seconds - seconds_before
    metrics = {
        "epoch": progress.epoch + 1,
        "train_loss": means["loss"],
        "train_accuracy": means["accuracy"],
        "val_accuracy": evaluation.accuracy,
        "gap": means["accuracy"] - evaluation.accuracy,
        "seconds": seconds,
        "examples_per_second": len(run.train_loader.dataset) / seconds,
    }
    if graded:
        metrics["val_official"] = graded
    if len(live):
        share = evaluation.usage.share().cpu()[torch.from_numpy(live)]
        metrics["share_tuned"] = share.mean().item()
        metrics["gate_variation"] = variation(share).mean().item()
    progress.finish_epoch(metrics, evaluation.usage)
    tracker.say(report.epoch_line(metrics, run.args.epochs))
    tracker.record(metrics, progress.updates)
    return metrics


def test(args: VqaArgs, accelerator: Accelerator, best: Best, stop: StopSignal) -> dict[str, Any]:
    """Evaluate a BEST folder on a split and write its predictions."""
    weights = weights_behind(best, best.spec)
    dataset = load_split(args, args.test, load_tokenizer(weights.tokenizer), best.answers)
    fit_features(weights, dataset.stores.feature_size)
    model, _, _ = build(best.spec, weights, best.answers, accelerator.mixed_precision)
    load_best(best, model, weights)
    loader = loader_over(dataset, args, EVALUATION_BATCH * args.batch_size)
    model, loader = accelerator.prepare(model, loader)
    evaluation = evaluate(args, accelerator, model, loader, dataset, stop)
    file = args.folder / "predictions" / f"{args.test}.json"
    if accelerator.is_main_process:
        report.save_predictions(file, evaluation.question_ids, evaluation.chosen, best.answers)
        print(report.tested(args, dataset, evaluation.accuracy, file))
    accuracy = evaluation.accuracy if dataset.labelled else None
    outcome: dict[str, Any] = {"split": args.test, "accuracy": accuracy}
    if key := load_key(args, args.test):
        outcome["official"] = official(key, evaluation.question_ids, evaluation.chosen, best.answers)
        if accelerator.is_main_process:
            print(report.official_table(outcome["official"]))
    return outcome


def cli(argv: Sequence[str] | None = None) -> int:
    """Run from a command line: a user's mistake is one sentence and exit code 2, an interruption is 130."""
    args = parse_args(argv)
    try:
        main(args)
    except Interrupted:
        print(f"\nInterrupted; all is saved in {args.folder / 'LAST'}. Run the same command again to go on.")
        return 130
    except KeyboardInterrupt:
        print("\nInterrupted before the first step; nothing was lost.")
        return 130
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename or 'input/output'}: {error.strerror or error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(cli())
