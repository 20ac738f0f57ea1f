"""What of a run is saved, and that nothing that is not a number ever is."""

from common.errors import RunError
from tasks.finetune.best import best_fault, save_best
from tasks.finetune.run import Run
from tasks.finetune.setup import Setup
from training.finite import require_finite, shown
from training.run_folder import RunFolder


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
