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

    @classmethod
    def of(cls, choices: object) -> ModelSpec:
        """The spec with the fields of `choices`, the arguments of a run say; None stands for the default."""
        chosen = {field.name: getattr(choices, field.name) for field in dataclasses.fields(cls)}
        if chosen["tuned"] == LORA:
            chosen = _completed(chosen, {"rank": RANK})
            chosen = _completed(chosen, {"alpha": float(chosen["rank"])})
        chosen = _completed(chosen, {field.name: field.default for field in dataclasses.fields(cls)})
        return cls(**chosen | {"from_scratch": bool(chosen["from_scratch"])})

    @property
    def title(self) -> str:
        """What a reader knows the way of fine-tuning by."""
        return f"{self.strategy} + LoRA (rank {self.rank})" if self.tuned == LORA else self.strategy


def _completed(chosen: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`chosen` with the defaults for what is None, where there are any."""
    open_ones = {name for name, value in chosen.items() if value is None}
    known = {name: value for name, value in defaults.items() if value is not dataclasses.MISSING}
    return {**chosen, **{name: known[name] for name in open_ones & known.keys()}}


# What a checkpoint fixes once and for all. Other fields may be chosen anew: where its pre-trained file lies
# now, and how further training goes.
FIXED = (
    *("strategy", "policy", "policy_llayers", "policy_xlayers", "policy_rlayers", "policy_start"),
    *("frozen_dtype", "from_scratch", "llayers", "xlayers", "rlayers"),
    *("tuned", "rank", "alpha", "embeddings"),
)
# Fields that older BEST and run folders do not have, and what held there.
YOUNGER = {"frozen_dtype": "auto", "tuned": "full", "rank": None, "alpha": None, "embeddings": "train"}
LOCATIONS = ("pretrained", "load_lxmert", "load_lxmert_qa")
