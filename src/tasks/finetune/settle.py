"""What the command line leaves open, settled: by the checkpoint, by the run folder, by the data set.

The order, for each argument: the command line, the checkpoint given with --load, the run folder of an earlier
call of the same command, the recipe of the data set, the default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from common.errors import UserError
from tasks.finetune.args import VqaArgs
from tasks.finetune.best import Best, read_best
from tasks.finetune.data import SCENES, choose_dataset, choose_recipe
from tasks.finetune.spec import FIXED, LOCATIONS, ModelSpec
from training.run_folder import recorded_arguments
from vqadata.folder import DataFolder

BANNER = """\
------------------------------------------------------------------------------
No VQA data below {data}/: this run uses the EMBEDDED SCENES, a small synthetic
data set that the repository draws itself. Its numbers illustrate the method;
they are not VQA results. For VQA v2 and VQA-CP v2 see data/README.md.
------------------------------------------------------------------------------"""


def settle(args: VqaArgs, say: Callable[[str], None]) -> tuple[VqaArgs, Best | None]:
    """The arguments with nothing left open, and the checkpoint of --load as they have it.

    `say` is told if the embedded scenes are taken because there is no VQA data. UserError if a flag
    contradicts the checkpoint, or if there is no such data set.
    """
    best = read_best(Path(args.load)) if args.load else None
    if best:
        args = with_checkpoint(args, best)
    if args.dataset == "auto":
        # The same command goes on with the data set of its run, whatever else came to be meanwhile.
        recorded = recorded_arguments(args.folder) or {}
        args = replace(args, dataset=recorded.get("dataset") or choose_dataset(Path(args.data)))
        if args.dataset == SCENES and not recorded:
            say(BANNER.format(data=args.data))
    recipe = choose_recipe(DataFolder(Path(args.data), args.dataset))
    args = args.completed(dataclasses.asdict(recipe))
    spec = ModelSpec.of(args)
    return args.completed(dataclasses.asdict(spec)), best._replace(spec=spec) if best else None


def with_checkpoint(args: VqaArgs, best: Best) -> VqaArgs:
    """The arguments with what a checkpoint fixes; it may be evaluated on other data, but not trained on."""
    fixed = {name: getattr(best.spec, name) for name in FIXED}
    if args.dataset == "auto":
        args = replace(args, dataset=best.dataset)
    if args.test is None and args.question is None:
        fixed["dataset"] = best.dataset
    for name, saved in fixed.items():
        given = getattr(args, name)
        if given not in (None, saved):
            raise UserError(
                f"--{name} {given} contradicts {args.load}, which was trained with {saved}: leave it out"
            )
    kept = [*FIXED, "temperature", "dropout"]
    if not any(getattr(args, name) for name in LOCATIONS):
        kept += LOCATIONS
    return args.completed({name: getattr(best.spec, name) for name in kept})
