"""The policies: what decides, for each example, which copy runs at each gate.

`POLICIES` is the one table of them; a row more is a choice of --policy more. A policy is built from a spec,
the model and its number of gates, and says what it is in `about`. Those without a network are what a learned
choice has to be better than.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from adaptive import policies
from adaptive.policies import HeldShare, masked_mean
from adaptive.policy import GateHead
from common.errors import UserError
from lxmert.modeling import LxmertModel
from lxmert.units import LAYER_LISTS, unused_modules
from tasks.finetune.clusters import distances, k_means, mean_regions
from tasks.finetune.spec import LORA, ORACLE, RANDOM, ModelSpec
from vqadata.dataset import FIELDS, VqaDataset


class Borrowed(nn.Module):
    """The embeddings of another module, as they are now: without gradients, dropout or ownership of them.

    Ownership comes with `own`.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = (module,)  # in a tuple, so that its parameters do not become this one's

    def own(self) -> None:
        """Keep a copy of it as it is now, which no step moves, and which is saved with this module."""
        self.kept = copy.deepcopy(self._module[0]).requires_grad_(False)
        self._module = (self.kept,)

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
        question = masked_mean(self.words(inputs["input_ids"]), inputs["attention_mask"])
        # The mean before the projection and not after it: one region to project instead of all.
        mask = inputs["visual_attention_mask"]
        features, boxes = (masked_mean(inputs[name], mask) for name in ("visual_feats", "visual_pos"))
        return self.head(torch.cat([question, self.regions(features, boxes)], dim=-1))


class ConstantPolicy(policies.ConstantPolicy):
    """One logit a gate, learned: the same for all inputs."""

    about = "one learned logit a gate, which sees no input: in evaluation a fixed mask"

    def __init__(self, spec: ModelSpec, lxmert: LxmertModel, gates: int) -> None:
        super().__init__(gates, spec.policy_start)


class ClusterPolicy(nn.Module):
    """One logit a gate for each of K groups of images, learned; the groups are found, see `find_clusters`.

    Between a policy that sees no input and one that sees all of it: few values to learn, so that they can be
    learned from few images. An image belongs to the centre that is nearest to its mean region.
    """

    about = (
        "the images in K groups, found by k-means on their features, and one learned logit a gate and group"
    )

    def __init__(self, spec: ModelSpec, lxmert: LxmertModel, gates: int) -> None:
        super().__init__()
        number = spec.policy.partition(":")[2]
        if not (number.isdecimal() and int(number) > 1):
            raise UserError(
                f"--policy {spec.policy}: the number of groups is 2 or more, as in --policy clusters:2"
            )
        count = int(number)
        self.register_buffer("centres", torch.zeros(count, lxmert.config.visual_feat_dim))
        self.logit = nn.Parameter(torch.full((count, gates), policies.logit_of(spec.policy_start)))

    def forward(self, **inputs: Tensor) -> Tensor:
        """The inputs of `VqaModel` -> logits (B, G, 2)."""
        image = masked_mean(inputs["visual_feats"], inputs["visual_attention_mask"])
        tuned = self.logit[distances(image.float(), self.centres).argmin(1)]
        return torch.stack([torch.zeros_like(tuned), tuned], dim=-1)


class RandomPolicy(policies.RandomPolicy):
    """Gates drawn with the share tuned of --policy-start."""

    about = "gates drawn with the share tuned of --policy-start, nothing learned: only the chosen copies run"

    def __init__(self, spec: ModelSpec, lxmert: LxmertModel, gates: int) -> None:
        super().__init__(gates, spec.policy_start)


class OraclePolicy(nn.Module):
    """What the examples say, which bring their gates along; see `let_field_decide`."""

    about = (
        "a field of the question decides all gates, an upper bound: of two values the second in the alphabet "
        "runs tuned; of more, those named, as in oracle:question_type=count,color"
    )

    def __init__(self, spec: ModelSpec, lxmert: LxmertModel, gates: int) -> None:
        super().__init__()
        self.name = spec.policy
        self.total = gates

    def forward(self, **inputs: Tensor) -> Tensor:
        """gates (B, 1), bool -> logits (B, G, 2) that leave no doubt; UserError without such a column."""
        try:
            tuned = inputs["gates"]
        except KeyError:
            words = f"--policy {self.name} needs the field of each question; a question alone has none"
            raise UserError(words) from None
        return 1000.0 * torch.stack([~tuned, tuned], dim=-1).float().expand(-1, self.total, -1)


def let_field_decide(spec: ModelSpec, datasets: Sequence[VqaDataset]) -> ModelSpec:
    """With --policy oracle:FIELD, give the examples of all data sets their gates; without it, do nothing.

    datasets: those for training and validation, or one to be tested on. Returns the spec, which then names
    the values that run tuned. UserError for a field that the questions do not have, or for values that do not
    occur in training.
    """
    kind, _, choice = spec.policy.partition(":")
    if kind != ORACLE:
        return spec
    field, _, named = choice.partition("=")
    columns = [dataset.column(field) for dataset in datasets]
    if any(len(names) < 1 or [*names] == [""] for names, _ in columns):
        known = ", ".join(FIELDS)
        raise UserError(f"--policy {spec.policy}: the questions have no {field}; it may be one of {known}")
    occurring = columns[0][0].tolist()
    tuned = named.split(",") if named else occurring[1:]
    training = len(datasets) > 1
    if training and ((len(tuned) != 1 and not named) or {*tuned} - {*occurring}):
        raise UserError(
            f"--policy {spec.policy}: the training questions have {len(occurring)} values of {field} "
            f"({', '.join(occurring)}); name those that run tuned, as in "
            f"--policy oracle:{field}={occurring[-1]}"
        )
    for dataset, (names, numbers) in zip(datasets, columns, strict=True):
        dataset.more_inputs["gates"] = np.isin(names, tuned)[numbers][:, None]
    return replace(spec, policy=f"{ORACLE}:{field}={','.join(tuned)}")


def find_clusters(policy: nn.Module, dataset: VqaDataset) -> list[str]:
    """Let a policy that decides for groups of images find them in a data set, and say so; others need none.

    UserError if it is to find more groups than there are images.
    """
    messages = []
    for part in policy.modules():
        if isinstance(part, ClusterPolicy):
            points, count = mean_regions(dataset), len(part.centres)
            if len(points) < count:
                raise UserError(
                    f"--policy clusters:{count}: there are {len(points):,} training images to group"
                )
            part.centres.copy_(k_means(points, count))
            sizes = distances(points, part.centres).argmin(1).bincount(minlength=count).tolist()
            messages.append(f"groups of training images: {', '.join(f'{size:,}' for size in sizes)}")
    return messages


NETWORKS = {"lxmert": LxmertPolicy, "light": LightPolicy}
POLICIES = NETWORKS | {
    "constant": ConstantPolicy,
    "clusters:K": ClusterPolicy,
    RANDOM: RandomPolicy,
    f"{ORACLE}:FIELD": OraclePolicy,
}


def make_policy(spec: ModelSpec, lxmert: LxmertModel, gates: int) -> nn.Module:
    """The policy of a spec, for so many gates; what stands behind a colon in its name is its own affair."""
    kind, colon, _ = spec.policy.partition(":")
    (row,) = (row for name, row in POLICIES.items() if name.partition(":")[:2] == (kind, colon))
    policy = row(spec, lxmert, 1 if spec.tied else gates)
    return policy if spec.target_share is None else HeldShare(policy, spec.target_share)
