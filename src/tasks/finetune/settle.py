"""What the command line leaves open, settled: by the checkpoint, by the run folder, by the data set.

The order, for each argument: the command line, the checkpoint of --load or the run of --refit, the run folder
of an earlier call of the same command, the recipe of the data set, the default.
"""

import dataclasses
import textwrap
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import visible
from tasks.finetune.args import OWN_SPLIT, RECIPES, VqaArgs
from tasks.finetune.best import Best, find_best
from tasks.finetune.choice import adopted
from tasks.finetune.data import SCENES, VQA, choose_dataset, choose_recipe
from tasks.finetune.spec import FIXED, FURTHER, LOCATIONS, LORA, ModelSpec
from training.record import recorded_arguments
from vqadata.folder import DataFolder
from vqadata.sample import parse_draw

RULE = "-" * 78
BANNER = """\
No VQA v2 below {data}: this run uses the EMBEDDED SCENES, a small synthetic data set that the repository \
draws itself. Its numbers illustrate the method; they are not VQA results. For VQA v2 and VQA-CP v2 see \
data/README.md."""


def settle(args: VqaArgs, say: Callable[[str], None]) -> tuple[VqaArgs, Best | None]:
    """The arguments with nothing left open, and the checkpoint of --load as they have it.

    `say` is told if the embedded scenes are taken because there is no VQA data. UserError if a flag
    contradicts the checkpoint or the run of --refit, or if there is no such data set.
    """
    best = find_best(Path(args.load)) if args.load else None
    trains = args.test is None and not args.asks
    recorded = (recorded_arguments(args.folder) or {}) if trains else {}
    moved = any(getattr(args, name) for name in LOCATIONS)
    kept = (*FIXED, *FURTHER, *(() if moved else LOCATIONS))
    if best:
        saved = {name: getattr(best.spec, name) for name in FIXED}
        if trains and args.dataset != "auto":
            saved["dataset"] = best.dataset  # evaluation may be on other data, training may not
        refuse_contradictions(vars(args), saved, args.load)
        args = args.completed({name: getattr(best.spec, name) for name in kept})
        args = replace(args, dataset=best.dataset) if args.dataset == "auto" else args
    elif trains and (args.tune_from or args.refit):
        values = adopted(vars(args), recorded)
        args = args.completed({name: values[name] for name in kept if name in values})
        args = replace(args, dataset=values.get("dataset", "auto")) if args.dataset == "auto" else args
    if args.tune:
        args = args.completed({"strategy": "standard"})
    # The same command goes on with the data set and the routing of its run, whatever they would be now.
    if trains and args.routing in (None, "auto"):
        args = replace(args, routing=recorded.get("routing", args.routing))
    if args.dataset == "auto":
        args = replace(args, dataset=recorded.get("dataset") or choose_dataset(Path(args.data)))
        if args.dataset == SCENES and not recorded:
            say(banner(Path(args.data)))
    recipe = choose_recipe(DataFolder(Path(args.data), args.dataset))
    args = args.completed(recipe.values(args.tuned == LORA))
    if args.test == OWN_SPLIT:
        args = replace(args, test=validated_on(Path(args.load).parent, args.dataset) or recipe.valid)
    spec = ModelSpec.of(args)
    return args.completed(dataclasses.asdict(spec)), best._replace(spec=spec) if best else None


def banner(data: Path) -> str:
    """That a run takes the embedded scenes, and which data sets it could have been told to take."""
    others = sorted(path.name for path in visible(data) if path.is_dir() and not parse_draw(path.name))
    others = [name for name in others if name in RECIPES or DataFolder(data, name).splits()]
    more = f" Prepared as well: {', '.join(others)}, for --dataset." if others else ""
    text = textwrap.fill(BANNER.format(data=data / VQA) + more, len(RULE), break_long_words=False)
    return f"{RULE}\n{text}\n{RULE}"


def validated_on(run: Path, dataset: str) -> str | None:
    """The splits on which a run on this data set validated; None if nobody knows."""
    with suppress(UserError):  # damaged, or of a folder that is no run
        recorded = recorded_arguments(run) or {}
        return recorded.get("valid") if recorded.get("dataset") == dataset else None
    return None


def refuse_contradictions(given: Mapping[str, Any], saved: Mapping[str, Any], checkpoint: str) -> None:
    """UserError for a flag that asks for something else than what a checkpoint was trained with."""
    for name, value in saved.items():
        if given[name] not in (None, value):
            contradiction = f"--{name} {given[name]} contradicts {checkpoint}"
            how = "without it" if value is None else f"with {value}"
            raise UserError(f"{contradiction}, which was trained {how}: leave it out.")
