"""What a finished adaptive run chose, for a run that trains under that choice: --tune-from and --refit."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import LxmertConfig

from common.errors import RunError, UserError
from lxmert.modeling import AnswerHead, LxmertModel
from lxmert.units import list_names
from report.run import find_run
from tasks.finetune.best import Best, load_base_weights, load_best, read_best
from tasks.finetune.model import VqaModel, add_low_rank, build, count_parameters, fix_policy, freeze_parts
from tasks.finetune.spec import FILES, FIXED, LORA, ModelSpec

# Gates are the same for nearly all questions if at least this share of the live ones depart from their usual
# choice for at most this share of validation questions.
ALIKE, DEPARTURES = 0.95, 0.05


NOTHING = {"strategy": "Frozen", "tune": None, "tuned": ModelSpec.tuned, "rank": None, "alpha": None}


class Choice(NamedTuple):
    """What the gates of a run's best epoch came to."""

    best: Best
    layers: str  # names of what ran tuned for most validation questions, see lxmert.units; "" for nothing
    fixed: bool  # whether a mask says it all: gates that depart from it are rare, or of no measurable worth


def read_choice(text: str) -> Choice:
    """The choice of the run of a version name or folder; RunError if it is not finished or has no gates."""
    run = find_run(text)
    if not run.finished:
        raise RunError(f"{run.folder} is not the folder of a finished run: there is no choice to take over.")
    usage, best = run.usage, read_best(run.folder / "BEST")
    share = usage["val"][best.metrics["epoch"] - 1]
    alike = np.minimum(share, 1 - share)[usage["live"]] <= DEPARTURES
    low = run.result.get("worth_low")  # of the interval of what choosing for each question is worth
    worthless = low is not None and low <= 0
    return Choice(best, usual_layers(usage, share), bool(worthless or alike.mean() >= ALIKE))


def usual_layers(usage: Mapping[str, np.ndarray], share: np.ndarray) -> str:
    """The names of the units that are tuned in more than half of all decisions of their live gates.

    usage: what each of the G gates stands for; share (G,): how often it was for tuned.
    """
    decisions: dict[tuple[str, int, str], list[float]] = {}
    for gate in np.flatnonzero(usage["live"]):
        component = str(usage["component"][gate]).rstrip(" 0123456789")  # "head 3" is one of the unit "head"
        unit = str(usage["stream"][gate]), int(usage["layer"][gate]), component
        decisions.setdefault(unit, []).append(share[gate])
    return list_names(decisions, [unit for unit, shares in decisions.items() if np.mean(shares) > 0.5])


def adopted(given: Mapping[str, Any], recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that follow from --tune-from or --refit among those `given`, by name.

    recorded: those of an earlier call of the same command, which goes on although the other run is gone.
    A run that found no layer worth tuning is refitted as Frozen. RunError for a run that made no choice, and
    with --tune-from for one that chose no layer; UserError for flags that contradict it.
    """
    settled = recorded.get("tune") or recorded.get("strategy") == NOTHING["strategy"]
    if settled and all(recorded[name] == given[name] for name in ("refit", "tune_from")):
        return dict(recorded)
    refit = given["refit"]
    choice = read_choice(refit or given["tune_from"])
    best = choice.best
    values: dict[str, Any] = {}
    if refit:
        names = (*FIXED, *FILES, "dropout")
        values = {name: getattr(best.spec, name) for name in names if name != "refit"}
        values["dataset"] = best.dataset
    if choice.fixed or not refit:
        if not choice.layers and not refit:
            raise RunError(f"{best.folder}: all layers mostly ran frozen, which --strategy Frozen does.")
        tuning = {"strategy": "standard", "tune": choice.layers} if choice.layers else NOTHING
        values |= tuning | {"frozen_dtype": ModelSpec.frozen_dtype}
    for name in ("strategy", "tune") if choice.fixed else FIXED:
        if refit and given[name] not in (None, values.get(name), refit):
            why = f"--refit {refit} goes with --{name} {values[name]}"
            raise UserError(f"{why}: leave --{name} {given[name]} out")
    return values


def found_policy(best: Best) -> dict[str, Tensor]:
    """The state of the policy of a BEST folder, as `fix_policy` leaves it."""
    weights = load_base_weights(best)
    model, _, _ = build(best.spec, weights, best.answers)
    load_best(best, model, weights)
    fix_policy(model)
    return model.policy.state_dict()


def cost_message(
    spec: ModelSpec, config: LxmertConfig, answers: int, inputs: Mapping[str, np.ndarray]
) -> str:
    """What it costs to tune only the layers that a spec without gates names, beside all of them.

    inputs: those of the model, of a batch whose shapes count.
    """
    whole = {"tuned": ModelSpec.tuned, "rank": None, "alpha": None, "frozen_dtype": "auto", "tune": None}
    standard = replace(spec, **whole, embeddings="train")
    ours, products = backward_cost(spec, config, answers, inputs)
    most, most_products = backward_cost(standard, config, answers, inputs)
    return (
        f"tuned: {spec.tune}. {ours:,} parameters train, of {most:,} with standard, and a backward pass has "
        f"{products / most_products:.0%} of its arithmetic"
    )


def backward_cost(
    spec: ModelSpec, config: LxmertConfig, answers: int, inputs: Mapping[str, np.ndarray]
) -> tuple[int, int]:
    """Parameters that train, and operations in the matrix products of a backward pass.

    Counted on the meta device, where tensors have shapes only.
    """
    with torch.device("meta"):
        model = VqaModel(LxmertModel(config), AnswerHead(config, answers)).eval()
        freeze_parts(model.lxmert, spec)
        if spec.tuned == LORA:
            add_low_rank(model.lxmert, spec)
    logits = model(**{name: torch.from_numpy(array).to("meta") for name, array in inputs.items()})
    with FlopCounterMode(display=False) as counter:
        logits.sum().backward()
    return count_parameters(model)["trainable"], counter.get_total_flops()
