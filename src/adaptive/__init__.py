"""Per-example adaptive fine-tuning for any transformer; README.md in this folder is where to start."""

from adaptive.folding import fold
from adaptive.model import AdaptiveConfig, get_adaptive_model, load_adaptive

__all__ = ["AdaptiveConfig", "fold", "get_adaptive_model", "load_adaptive"]
