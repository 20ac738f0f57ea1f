"""What decides which model is built; saved with every checkpoint, so that it can be built again."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from common.errors import UserError
from lxmert.loading import Origin
from tasks.finetune.strategies import STRATEGIES


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
    frozen_dtype: str = "auto"  # BEST folders older than this field do not have it

    def __post_init__(self) -> None:
        if self.frozen_dtype == "bf16" and not STRATEGIES[self.strategy].adaptive:
            raise UserError(
                f"--frozen-dtype {self.frozen_dtype} is for the frozen copies of adaptive strategies; "
                f"--strategy {self.strategy} makes no copies, leave it out"
            )

    @classmethod
    def of(cls, choices: object) -> ModelSpec:
        """The spec with the fields of `choices`, the arguments of a run say; None stands for the default."""
        chosen = {field.name: getattr(choices, field.name) for field in dataclasses.fields(cls)}
        defaults = {field.name: field.default for field in dataclasses.fields(cls)}
        open_ones = {name for name, value in chosen.items() if value is None}
        chosen |= {name: defaults[name] for name in open_ones if defaults[name] is not dataclasses.MISSING}
        return cls(**chosen | {"from_scratch": bool(chosen["from_scratch"])})


# What a checkpoint fixes once and for all. Other fields may be chosen anew: where its pre-trained file lies
# now, and how further training goes.
FIXED = (
    *("strategy", "policy", "policy_llayers", "policy_xlayers", "policy_rlayers", "policy_start"),
    *("frozen_dtype", "from_scratch", "llayers", "xlayers", "rlayers"),
)
LOCATIONS = ("pretrained", "load_lxmert", "load_lxmert_qa")
