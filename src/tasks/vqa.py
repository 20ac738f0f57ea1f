"""Fine-tune LXMERT for visual question answering, or evaluate what was fine-tuned.

    bash run/vqa_finetune.bash 0 demo --strategy SpotTune
    bash run/vqa_test.bash 0 demo --test minival
    bash run/vqa_test.bash 0 demo --question "how many red objects are there?" --image-id scene_000400
    bash run/vqa_test.bash 0 demo --question "how many red objects are there?" --image photo.jpg

- strategies: the table in tasks/finetune/strategies.py
- one device or many, fp32 / bf16 / fp16, through accelerate
- the best epoch by validation accuracy in BEST/, the full state in LAST/
- the same command again goes on where it stopped, to the same numbers, also in the middle of an epoch
- pictures of what the policy chose after each epoch, a report at the end; curves in W&B

Where weights come from, the first that applies: own LAST/ > --load > pre-trained > random (--fromScratch).
"""

import sys
import time
from collections.abc import Sequence
from typing import Any

from accelerate import skip_first_batches
from accelerate.utils import set_seed

from common.cli import run_command
from common.errors import Interrupted
from tasks.finetune import messages
from tasks.finetune.args import VqaArgs, parse_args
from tasks.finetune.ask import ask
from tasks.finetune.best import Best
from tasks.finetune.controls import Trial, try_controls, worth_of_choice
from tasks.finetune.evaluate import evaluate
from tasks.finetune.model import score, vqa_loss
from tasks.finetune.run import (
    EVALUATION_BATCH,
    Run,
    check_steps,
    evaluate_own,
    keep_best,
    learn_policy,
    prepare,
    restore_best,
    save,
)
from tasks.finetune.settle import settle
from tasks.finetune.setup import set_up
from training.machine import Machine
from training.optim import clip_gradients, geometric
from training.run_folder import RunFolder, describe_environment


def main(args: VqaArgs) -> dict[str, Any]:
    """Train and return what result.json holds; with `--test` evaluate and return the score."""
    machine = Machine(
        args.precision,
        accumulate=args.accumulate,
        workers=args.num_workers,
        bars=args.tqdm,
        agree_every=args.log_every,
    )
    args, best = settle(args, machine.say)
    if args.asks:
        return ask(args, machine, best)
    with machine.heeding_signals():
        if args.test:
            return test(args, machine, best)
        return train(args, machine, best)


def train(args: VqaArgs, machine: Machine, start: Best | None) -> dict[str, Any]:
    """Set up, run the epochs, leave a run folder."""
    # 1. Everything that can be refused is refused before anything is written.
    args.record({}).require_same_arguments(args.folder)
    set_seed(args.seed)
    setup = set_up(args, machine, start)

    # 2. Optimizers and loaders, on the machine.
    run = prepare(args, machine, setup)
    args, state = run.args, run.state

    # 3. The run folder: begun, or taken up where the run stopped.
    options = {"keep": args.keep, "accept_changes": args.accept_changes}
    with RunFolder.open(args.folder, args.record(setup.inputs), machine.accelerator, **options) as folder:
        resumed = folder.load_state(run.parts)
        tracker = folder.start_tracker(args.channels)
        tracker.say(messages.start_message(vars(args), setup, machine))
        if resumed:
            tracker.say(messages.resume_message(state, run.goes_on, args.folder))
            restore_best(run, folder, setup)
        if not (resumed and folder.has("env.json")):
            folder.write("env.json", describe_environment(machine))

        # 4. Epochs.
        try:
            while run.goes_on:
                train_epoch(run, folder)
                evaluation = evaluate(machine, run.model, run.valid_loader, setup.exam)
                state.pool(machine.accelerator)
                metrics = state.finish_epoch(evaluation, machine.peak_memory)
                line = messages.epoch_line(metrics, args.epochs, run.seconds_left)
                tracker.record(metrics.values(), state.updates, line)
                if state.best is metrics:
                    keep_best(run, folder, setup)
                messages.save_scores(folder, evaluation, setup.exam, state)
                save(run, folder)
                if machine.is_main:  # after the save: what only shows must not spoil what was learned
                    messages.show_policy(folder, f"{setup.spec.title} on {args.dataset}", setup, state)
            own = evaluate_own(run, folder, setup)
        except Interrupted:
            save(run, folder)
            advice = f"all is saved in {args.folder / 'LAST'}. Run the same command again to go on."
            raise Interrupted(f"Interrupted; {advice}") from None

        # 5. The result.
        final, worth = state.finish(own), worth_of_choice(run, folder, setup)
        outcome = messages.result_of(vars(args), state, setup, final, machine) | worth.values()
        folder.write("result.json", outcome)
        tracker.record(final.values(), state.updates)
        report = messages.show_report(folder) if machine.is_main and args.report else None
        tracker.say(messages.summary_table(state, final, args.folder, worth.rows(), report))
    return outcome


def train_epoch(run: Run, folder: RunFolder) -> None:
    """The steps of one epoch, or what is left of it; RunError if too many of them were not finite."""
    args, machine, state = run.args, run.machine, run.state
    if state.updates == run.total_updates:
        return  # stopped between the last step and the end of its epoch
    accelerator = machine.accelerator
    adaptive = accelerator.unwrap_model(run.model)
    run.model.train()
    run.loader.set_epoch(state.epoch)
    # Skipping belongs to the epoch that is taken up in the middle, not to the ones after it.
    loader = skip_first_batches(run.loader, state.step) if state.step else run.loader
    title = f"epoch {state.epoch + 1}/{args.epochs}"
    with run.head_only(), machine.progress_bar(title, len(run.loader), state.step) as bar:
        clock = time.perf_counter()
        for batch in machine.batches(loader):
            policy_is_due = state.updates % args.policy_every == 0
            adaptive.train_policy = policy_is_due and not run.held_out
            share_done = state.updates / run.total_updates
            adaptive.temperature = geometric(args.temperature, args.temperature_end, share_done)
            part = run.loader.batch_sampler.part(state.step)
            if machine.gate_noise:
                adaptive.draw_noise(machine.gate_noise, part.batch, part.rows)
            with accelerator.accumulate(run.model):
                output = run.model(**batch["inputs"])
                loss = vqa_loss(output.outputs, batch["target"])
                accelerator.backward(run.objective(loss, output.policy_logits) * part.weight)
                run.bad_steps.watch(loss, output.outputs, batch["question_id"])
                if accelerator.sync_gradients:
                    norms = clip_gradients(accelerator, adaptive.children(), args.clip)
                    run.bad_steps.guard(run.optimizer.optimizer, norms, state.updates + 1)
                run.optimizer.step()
                run.optimizer.zero_grad()
            if run.held_out and policy_is_due and accelerator.sync_gradients:
                learn_policy(run)  # the model stands still, on images that only the policy gets to see

            scores = score(output.outputs, batch["target"])
            gates = output.gates_of(scores)
            state.count(loss, scores, gates, batch["question_type"], part.examples)
            state.seconds += time.perf_counter() - clock
            clock = time.perf_counter()
            bar.update()
            if not accelerator.sync_gradients:
                continue  # in the middle of an accumulated step there is nothing to log and no place to stop
            (rate, *_) = run.schedule.get_last_lr()  # of this step, for the model
            run.schedule.step()
            state.updates += 1
            if state.updates % args.log_every == 0:
                check_steps(run, folder)
                means = state.means(accelerator)
                words = messages.progress_text(means, bar, args.batch_size * machine.processes)
                bar.set_description_str(title + words + messages.left(run.seconds_left))
                curves = {f"train/{name}": value for name, value in (means | {"lr": rate}).items()}
                folder.tracker.record(curves, state.updates)
            if machine.should_stop(state.updates):
                raise Interrupted
            if state.updates % args.save_every == 0:
                save(run, folder)
            if state.updates == run.total_updates:
                break  # --max_steps may end an epoch early
    check_steps(run, folder)


def test(args: VqaArgs, machine: Machine, best: Best) -> dict[str, Any]:
    """Evaluate a BEST folder on a split and write its predictions."""
    setup = set_up(args, machine, best)
    (dataset,) = setup.datasets
    loader = machine.loader(dataset, EVALUATION_BATCH * args.batch_size)
    model, loader = machine.accelerator.prepare(setup.model, loader)
    exam = setup.exam._replace(keeps_choices=args.controls)
    evaluation = evaluate(machine, model, loader, exam)
    name = args.test if args.interpolate is None else f"{args.test}-interpolated-{args.interpolate:g}"
    partial = args.images is not None or bool(dataset.left_out)
    files = messages.prediction_files(args.folder, args.dataset, args.test, name, partial)
    if machine.is_main:
        messages.save_predictions(files, evaluation, setup.answers)
        if dataset.labelled and not partial:
            messages.save_tested(args.folder, name, evaluation, exam, best.metrics.get("epoch", 0))
    machine.say(messages.test_message(args.test, dataset, evaluation, files, partial))
    outcome = {"split": args.test, "accuracy": evaluation.accuracy if dataset.labelled else None}
    if args.controls:
        controls = try_controls(Trial(machine, model, loader, exam, evaluation))
        machine.say(controls.table())
        outcome |= controls.values()
        if machine.is_main:
            messages.save_controls(args.folder / "controls" / f"{args.test}.json", controls)
    return outcome | ({"official": evaluation.official} if evaluation.official else {})


def cli(argv: Sequence[str] | None = None) -> int:
    """Run from a command line; the exit code, see common.cli."""
    args = parse_args(argv)
    return run_command(lambda: main(args) and 0, "Interrupted; run the same command again to go on.")


if __name__ == "__main__":
    sys.exit(cli())
