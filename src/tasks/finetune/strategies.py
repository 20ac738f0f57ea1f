"""The strategies: one table that arguments, build, comparison, benchmark, results and tests read.

A row more is a strategy more, everywhere.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Strategy:
    """One way to fine-tune LXMERT."""

    name: str
    about: str  # what is tuned, for --help and the README
    granularity: str | None = None  # what a gate decides over, of lxmert.units; None: there are no gates
    keeps: tuple[str, ...] = ()  # submodules of LxmertModel that stay as pre-trained

    @property
    def adaptive(self) -> bool:
        """Whether gates decide for each example which copy runs."""
        return self.granularity is not None


STRATEGIES = {
    strategy.name: strategy
    for strategy in (
        Strategy("standard", "everything is tuned"),
        Strategy(
            "Frozen",
            "encoder layers stay as pre-trained; embeddings, pooler and answer head are tuned",
            keeps=("encoder.layer", "encoder.r_layers", "encoder.x_layers"),
        ),
        Strategy(
            "SpotTune",
            "decided per example: each attention head, attention output, first and second half of the FFN",
            granularity="component",
        ),
        Strategy("SpotTune_Res", "decided per example: each residual sub-layer", granularity="sublayer"),
        Strategy("SpotTune_Block", "decided per example: each layer", granularity="layer"),
    )
}
