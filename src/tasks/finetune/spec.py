"""What decides which model is built; saved with every checkpoint, so that it can be built again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.errors import UserError
from lxmert.loading import Origin
from tasks.finetune.strategies import STRATEGIES

LORA = "lora"  # a value of `tuned`
RANK = 8  # of low-rank copies, if none is given
AVERAGE, WEIGHT = "average", 0.5  # a value of `evaluate_gates`, and the tuned copy's weight if none is given
EXAMPLE = "example"  # a value of `decisions`
RANDOM, ORACLE = "random", "oracle"  # values of `policy`; the second is followed by a colon and a field
UNNAMED = ("lxmert", "light")  # policies that titles do not name: all that look at the input and learn


@dataclass(frozen=True)
class ModelSpec(Origin):
    """The origin of the weights, the strategy and its policy; defaults are those of the command line."""

    strategy: str = "SpotTune"
    policy: str = "lxmert"
    policy_llayers: int = 1
    policy_xlayers: int = 1
    policy_rlayers: int = 1
    policy_start: float = 0.3
    temperature: float = 5.0
    frozen_dtype: str = "auto"
    tuned: str = "full"
    rank: int | None = None  # of low-rank copies, else None; as alpha
    alpha: float | None = None
    embeddings: str = "train"
    target_share: float | None = None  # at which a bias holds the share tuned
    estimator: str = "gumbel"
    decisions: str = "gate"  # what one is for: a gate, or an example, whose gates are tied then
    evaluate_gates: str = "argmax"
    average: float | None = None  # the weight of the tuned copies where both are averaged
    tune: str | None = None  # names of the layers that are tuned, see lxmert.units; None: all
    refit: str | None = None  # the run whose choice it is: a policy of it learns no more

    def __post_init__(self) -> None:
        strategy = STRATEGIES[self.strategy]
        if self.frozen_dtype == "bf16" and not (strategy.adaptive or self.tuned == LORA):
            raise UserError(
                f"--frozen-dtype {self.frozen_dtype} is for the frozen copies of adaptive strategies and of "
                f"--tuned {LORA}; --strategy {self.strategy} makes no copies, leave it out"
            )
        if self.tuned == LORA and strategy.keeps:
            raise UserError(
                f"--tuned {LORA} is for strategies that tune layers; --strategy {self.strategy} tunes none"
            )
        if self.tuned == LORA and self.rank is None:
            raise UserError(f"--tuned {LORA} needs a rank")
        if self.tune and strategy.keeps:
            raise UserError(f"--tune names layers to tune, and --strategy {self.strategy} tunes none")

    @classmethod
    def of(cls, choices: object) -> ModelSpec:
        """The spec with the fields of `choices`, the arguments of a run say; None stands for the default."""
        chosen = {field.name: getattr(choices, field.name) for field in dataclasses.fields(cls)}
        if chosen["tuned"] == LORA:
            chosen = _completed(chosen, {"rank": RANK})
            chosen = _completed(chosen, {"alpha": float(chosen["rank"])})
        if chosen["policy"] == RANDOM:  # the likelier copy would be the same everywhere
            chosen = _completed(chosen, {"evaluate_gates": "sample"})
        averages = chosen["evaluate_gates"] == AVERAGE
        chosen = _completed(chosen, {"average": WEIGHT}) if averages else {**chosen, "average": None}
        chosen = _completed(chosen, {field.name: field.default for field in dataclasses.fields(cls)})
        return cls(**chosen | {"from_scratch": bool(chosen["from_scratch"])})

    @property
    def title(self) -> str:
        """What a reader knows the way of fine-tuning by."""
        parts = [self.strategy]
        if self.tuned == LORA:
            parts.append(f"LoRA (rank {self.rank})")
        if STRATEGIES[self.strategy].adaptive and self.policy not in UNNAMED:
            parts.append(f"{self.policy} gates")
        if STRATEGIES[self.strategy].adaptive and self.tied:
            parts.append("tied gates")
        if STRATEGIES[self.strategy].adaptive and self.evaluate_gates == AVERAGE:
            parts.append("averaged")
        layers = f" of {self.tune}" if self.tune else ""
        return " + ".join(parts) + layers + (", refit" if self.refit else "")

    @property
    def tied(self) -> bool:
        """Whether all gates of an example are one decision."""
        return self.decisions == EXAMPLE

    @property
    def policy_learns(self) -> bool:
        """Whether there is a policy, and training changes what it decides."""
        fixed = self.refit or self.policy.partition(":")[0] in (RANDOM, ORACLE)
        return STRATEGIES[self.strategy].adaptive and not fixed


def _completed(chosen: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`chosen` with the defaults for what is None, where there are any."""
    open_ones = {name for name, value in chosen.items() if value is None}
    known = {name: value for name, value in defaults.items() if value is not dataclasses.MISSING}
    return {**chosen, **{name: known[name] for name in open_ones & known.keys()}}


# What a checkpoint fixes once and for all. Other fields may be chosen anew: where its pre-trained file lies
# now, and how it is trained further and evaluated.
FIXED = (
    *("strategy", "policy", "policy_llayers", "policy_xlayers", "policy_rlayers", "policy_start"),
    *("frozen_dtype", "from_scratch", "llayers", "xlayers", "rlayers"),
    *("tuned", "rank", "alpha", "embeddings", "target_share", "tune", "refit", "decisions"),
)
FURTHER = ("temperature", "dropout", "estimator", "evaluate_gates", "average", "vocab")
# Fields that older BEST and run folders do not have, and what held there.
YOUNGER = {
    **{"frozen_dtype": "auto", "tuned": "full", "rank": None, "alpha": None, "embeddings": "train"},
    **{"target_share": None, "estimator": "gumbel", "evaluate_gates": "argmax", "average": None},
    **{"tune": None, "refit": None, "decisions": "gate", "vocab": None},
}
LOCATIONS = ("pretrained", "load_lxmert", "load_lxmert_qa")
FILES = (*LOCATIONS, "vocab")  # all that a model is begun from
