"""The policy networks: what decides, for each example, which copy runs at each gate.

`POLICIES` is the one table of them; a row more is a choice of --policy more. A policy network is built from a
spec, the model and its number of gates, and says what it is in `about`.
"""

import copy

import torch
from torch import Tensor, nn

from adaptive.policy import GateHead
from common.errors import UserError
from lxmert.modeling import LxmertModel
from lxmert.units import LAYER_LISTS, unused_modules
from tasks.finetune.spec import LORA, ModelSpec


class Borrowed(nn.Module):
    """The embeddings of another module, as they are now: without gradients, dropout or ownership of them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = (module,)  # in a tuple, so that its parameters do not become this one's

    def forward(self, *inputs: Tensor) -> Tensor:
        device = inputs[0].device.type
        active, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        # Autocast keeps its casts of weights. Up to torch 2.10 at least, the model would get those made here,
        # without gradients, and its own weights none.
        with torch.no_grad(), torch.autocast(device, dtype, enabled=active, cache_enabled=False):
            return self._module[0].embed(*inputs)


class LxmertPolicy(nn.Module):
    """A small LXMERT that reads the same input as the model and decides over its G gates.

    It has as many layers as `spec` says and starts from the first ones of `lxmert`, without dropout:
    exploration is the gate noise's job. Its layers stand on the model's own embeddings. UserError if it is to
    have more layers than the model.
    """

    about = "a small LXMERT that starts from the model's first layers"

    def __init__(self, spec: ModelSpec, lxmert: LxmertModel, gates: int) -> None:
        super().__init__()
        config = copy.deepcopy(lxmert.config)
        for field, _ in LAYER_LISTS.values():
            name = f"policy_{field.replace('_', '')}"
            requested, available = getattr(spec, name), getattr(config, field)
            if not 0 <= requested <= available:
                raise UserError(
                    f"--{name} {requested}: it starts from the model's first layers, and there are "
                    f"{available}"
                )
            setattr(config, field, requested)
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
        with torch.device("meta"):
            self.lxmert = LxmertModel(config)
        self.lxmert.embeddings = Borrowed(lxmert.embeddings)
        self.lxmert.encoder.visn_fc = Borrowed(lxmert.encoder.visn_fc)
        weights = lxmert.state_dict()
        own = {name: weights[name].clone() for name in self.lxmert.state_dict()}
        self.lxmert.load_state_dict(own, assign=True)
        for name in unused_modules(config):
            self.lxmert.get_submodule(name).requires_grad_(False)
        self.head = GateHead(config.hidden_size, gates, share=spec.policy_start)

    def forward(self, **inputs: Tensor) -> Tensor:
        """The inputs of `VqaModel` -> logits (B, G, 2)."""
        return self.head(self.lxmert(**inputs, pooled_only=True).pooled)


class LightPolicy(nn.Module):
    """Decides from the model's own embeddings of the mean word and of the mean region, through a small head.

    It reads them without gradients and without dropout, and owns nothing but the head. Beside low-rank
    copies the head is narrower: as it is otherwise, it would be as large as all of theirs.
    """

    about = "a small head on the model's embeddings of the mean word and the mean region, at next to no cost"

    def __init__(self, spec: ModelSpec, lxmert: LxmertModel, gates: int) -> None:
        super().__init__()
        self.words = Borrowed(lxmert.embeddings)
        self.regions = Borrowed(lxmert.encoder.visn_fc)
        size = lxmert.config.hidden_size
        width = size if spec.tuned == LORA else None
        self.head = GateHead(2 * size, gates, share=spec.policy_start, width=width)

    def forward(self, **inputs: Tensor) -> Tensor:
        """The inputs of `VqaModel` -> logits (B, G, 2)."""
        question = _masked_mean(self.words(inputs["input_ids"]), inputs["attention_mask"])
        # The mean before the projection and not after it: one region to project instead of all.
        mask = inputs["visual_attention_mask"]
        features, boxes = (_masked_mean(inputs[name], mask) for name in ("visual_feats", "visual_pos"))
        return self.head(torch.cat([question, self.regions(features, boxes)], dim=-1))


def _masked_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """(B, S, H) and (B, S) -> (B, H)."""
    weights = mask.to(hidden.dtype).unsqueeze(-1)
    return (hidden * weights).sum(1) / weights.sum(1)


POLICIES = {"lxmert": LxmertPolicy, "light": LightPolicy}
