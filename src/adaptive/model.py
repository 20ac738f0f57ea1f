"""Any transformer made adaptive in one line; it stays the object, and of the class, that it was.

    model = AutoModelForSequenceClassification.from_pretrained("bert-base-uncased")
    model = get_adaptive_model(model, AdaptiveConfig(target="encoder.layer.*"))
    print(model.adaptive.report)

Before each forward pass hooks let the policy fill the gates, so that trainers, loops and loss functions need
not know. README.md in this folder says what is exact and what is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from adaptive.adapt import Chooser, adapt, is_adapted, layouts
from adaptive.compiling import uncompiled
from adaptive.copies import RATES, full_copy, is_tuned_side, low_rank
from adaptive.files import load_into, read_folder, save_adaptive, save_pretrained
from adaptive.gates import Gates
from adaptive.layout import Examples, Layout, leaves, rows_first
from adaptive.learning import as_a_function, learn, taken
from adaptive.policies import ConstantPolicy, HeldShare, PooledPolicy, RandomPolicy, batch_size, masked_mean
from adaptive.policy import choose_gates
from adaptive.state import is_state

FULL, LORA = "full", "lora"
MODULE = "module"
POLICIES = {"pooled": PooledPolicy, "constant": ConstantPolicy, "random": RandomPolicy}


@dataclass(frozen=True)
class AdaptiveConfig:
    """What is gated, how finely, by what, and what trains. Names are those of `model.named_modules()`.

    In a pattern `*` stands for one part of a name, and what precedes it may be left out: "encoder.layer.*"
    is every layer of BERT, also inside a model with a head.
    """

    target: str | Sequence[str]  # names or patterns of the modules that get two copies
    exclude: str | Sequence[str] = ()
    granularity: str | int = (
        MODULE  # one gate a module, or so many: for equal slices of its output, such as heads
    )
    policy: str | nn.Module = "pooled"  # "pooled", "constant", "random", or a module: (**inputs) -> (B, G, 2)
    tuned: str = FULL  # "full": a copy to train; "lora": the frozen weights and a low-rank update
    rank: int = 8
    alpha: float | None = None  # the update is scaled by alpha / rank
    freeze: str | Sequence[str] = ()  # what else is not to train; the rest of the model stays as it is
    share: float = 0.5  # how likely tuned is at the start
    target_share: float | None = None  # at which a bias holds the share tuned
    temperature: float = 5.0
    estimator: str = "gumbel"
    frozen_dtype: str | None = None  # "bfloat16" halves what frozen matrices take
    shared: Sequence[str] = (
        "cache_position",
    )  # inputs of the model whose first dimension is not that of the examples
    reads: str | None = None  # the module whose input the pooled policy reads; None: the first gated one
    policy_size: int | None = None  # the number of features there; None: as the model's configuration says

    def __post_init__(self) -> None:
        if self.tuned not in (FULL, LORA):
            raise ValueError(f"tuned is {FULL} or {LORA}, not {self.tuned}")
        if isinstance(self.policy, str) and self.policy not in POLICIES:
            raise ValueError(f"policy is one of {', '.join(POLICIES)}, or a module, not {self.policy}")
        if self.granularity != MODULE and not (isinstance(self.granularity, int) and self.granularity > 0):
            raise ValueError(f"granularity is {MODULE}, or a number of slices, not {self.granularity}")


@dataclass(frozen=True)
class Report:
    """What was made."""

    units: tuple[str, ...]
    gates: int
    of_copies: int  # parameters that train in tuned copies or low-rank updates
    of_policy: int
    of_rest: int  # parameters that train elsewhere
    frozen: int
    without_dropout: tuple[str, ...] = ()  # classes of parts whose own dropout is off, see `low_rank`

    def __str__(self) -> str:
        trainable = self.of_copies + self.of_policy + self.of_rest
        share = trainable / (trainable + self.frozen)
        shown = self.units if len(self.units) <= 3 else (self.units[0], "...", self.units[-1])
        return (
            f"{len(self.units)} gated modules ({', '.join(shown)}), {self.gates} gates\n"
            f"trainable {trainable:,} of {trainable + self.frozen:,} parameters ({share:.1%}): copies "
            f"{self.of_copies:,}, policy {self.of_policy:,}, rest of the model {self.of_rest:,}"
        ) + self._dropout()

    def _dropout(self) -> str:
        names = ", ".join(self.without_dropout)
        return f"\nno dropout, as it would reach frozen examples too, within {names}" if names else ""


def get_adaptive_model(model: nn.Module, config: AdaptiveConfig) -> nn.Module:
    """Make a model adaptive in place and return it, with `model.adaptive`, `model.save_adaptive(folder)`.

    Load the pre-trained weights before. ValueError, in a sentence that says what to do, where names match
    nothing, a unit lies within another, or a module cannot be gated; what depends on calls is found in the
    first one.
    """
    if is_adapted(model):
        raise ValueError("the model is adaptive already: call get_adaptive_model once, with all targets")
    if hasattr(model, "_orig_mod"):
        raise ValueError("the model is compiled: first get_adaptive_model, then torch.compile")
    if isinstance(model, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        raise ValueError(
            f"a {type(model).__name__} runs all modules in it, the policy too: put it into a module"
        )
    if hasattr(model, "adaptive"):
        raise ValueError("the model has an attribute `adaptive` of its own, which is needed for the policy")
    names = match(model, config.target, config.exclude)
    for name in match(model, config.freeze) if config.freeze else ():
        model.get_submodule(name).requires_grad_(False)
    width = 1 if config.granularity == MODULE else config.granularity
    size = config.policy_size or _features(model, config.reads or names[0])
    dtype = None if config.frozen_dtype is None else getattr(torch, config.frozen_dtype)
    if config.tuned == LORA:
        _require_untied(model, names)
    copies = full_copy(dtype) if config.tuned == FULL else low_rank(config.rank, config.alpha, dtype)
    gates = adapt(model, [([name], width) for name in names], copies)
    policy = config.policy
    if isinstance(policy, str):
        sizes = (size, gates.total) if policy == "pooled" else (gates.total,)
        policy = POLICIES[policy](*sizes, share=config.share)
    if config.target_share is not None:
        policy = HeldShare(policy, config.target_share)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    model.adaptive = InModel(policy.to(device), gates, config, tuple(names))
    model.adaptive.attach(model)
    return model


def load_adaptive(model: nn.Module, folder: str, policy: nn.Module | None = None) -> nn.Module:
    """Make a base model what `save_adaptive` wrote to a folder, and return it.

    policy: one like that of the saved model, if it was a module of your own. ValueError if the model is not
    the one that was adapted, or if anything in the folder is missing, unexpected or of another shape.
    """
    saved = read_folder(folder)
    fields = {
        name: tuple(value) if isinstance(value, list) else value for name, value in saved.config.items()
    }
    if fields["policy"] is None:
        if policy is None:
            raise ValueError(f"{folder} was saved with a policy of your own: load_adaptive(..., policy=...)")
        fields["policy"] = policy
    return load_into(get_adaptive_model(model, AdaptiveConfig(**fields)), saved)


def match(model: nn.Module, patterns: str | Sequence[str], exclude: str | Sequence[str] = ()) -> list[str]:
    """The names of modules that patterns stand for, in the order of the model; ValueError for none."""
    patterns, exclude = ([text] if isinstance(text, str) else [*text] for text in (patterns, exclude))
    names = [name for name, _ in model.named_modules() if name]
    for pattern in [*patterns, *exclude]:
        if not any(_matches(name, pattern) for name in names):
            ends = dict.fromkeys(
                ".".join("*" if part.isdigit() else part for part in name.split(".")) for name in names
            )
            raise ValueError(f"no module is called {pattern!r}; there are {', '.join([*ends][:40])}")
    found = [name for name in names if any(_matches(name, pattern) for pattern in patterns)]
    found = [name for name in found if not any(_matches(name, pattern) for pattern in exclude)]
    if not found:
        raise ValueError(f"everything that {', '.join(patterns)} stands for is excluded")
    return found


def _matches(name: str, pattern: str) -> bool:
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) >= len(wanted) and all(
        want in ("*", part) for part, want in zip(parts[-len(wanted) :], wanted, strict=True)
    )


def _require_untied(model: nn.Module, units: Sequence[str]) -> None:
    """ValueError for a parameter that is to train outside the units and that low-rank copies would freeze."""
    inside: dict[int, str] = {}
    outside: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            within = any(name.startswith(f"{unit}.") for unit in units)
            (inside if within else outside).setdefault(id(parameter), name)
    for key in inside.keys() & outside.keys():
        raise ValueError(
            f"{inside[key]} is {outside[key]} too, which is in no gated module and would be frozen with it: "
            'leave that module out, or tuned="full"'
        )


def _features(model: nn.Module, name: str) -> int:
    """How many features a module probably reads: by its first norm or Linear, else by the config."""
    for part in model.get_submodule(name).modules():
        weight = part._parameters.get("weight")
        if isinstance(part, nn.Linear):
            return part.in_features
        if weight is not None and "norm" in type(part).__name__.lower():
            return len(weight)
        if weight is not None and type(part).__name__ == "Conv1D":
            return len(weight)
    sizes = (
        getattr(getattr(model, "config", None), field, None) for field in ("hidden_size", "d_model", "dim")
    )
    return next((size for size in sizes if isinstance(size, int)), 1)


class _Reached(Exception):
    """A forward pass came to what was looked for."""


class InModel(Chooser):
    """The policy and the gates of a model, as its submodule `adaptive`."""

    def __init__(
        self, policy: nn.Module, gates: Gates, config: AdaptiveConfig, units: tuple[str, ...]
    ) -> None:
        super().__init__(policy, gates, config.temperature, config.estimator)
        self.config = config
        self.units = units
        self.folded: dict[str, int] = {}  # units that are plain modules again, and what their gates were
        self._entries = {name: Layout() for name in dict.fromkeys([*units, *filter(None, [config.reads])])}
        for name, layout in self._entries.items():
            layout.name = name
        self._known: set[Any] = set()
        self._held: Tensor | None = None
        self._handles: list[Any] = []

    def attach(self, model: nn.Module) -> None:
        """Let the policy decide before every forward pass of the model."""
        self.report = self._count(model)
        self._handles = [
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            model.register_forward_hook(self._after, always_call=True),
        ]
        model.save_adaptive = partial(save_adaptive, model)
        if hasattr(model, "save_pretrained"):
            model.save_pretrained = partial(save_pretrained, model)
        if hasattr(model, "generate"):
            model.generate = partial(generate, model)

    def detach_from(self, model: nn.Module) -> None:
        """Undo `attach`."""
        for handle in self._handles:
            handle.remove()
        for name in ("save_adaptive", "save_pretrained", "generate"):
            vars(model).pop(name, None)

    def last_gates(self) -> Tensor | None:
        """The gates (B, G) of the last forward pass."""
        return self.gates.values

    def gates_of(self, model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
        """The likelier copy at each gate (B, G) for the inputs of a batch, as in evaluation."""
        with torch.no_grad():
            gates = choose_gates(self.policy(**self._read(model, dict(inputs))))
        return gates.expand(-1, self.gates.total)

    @contextmanager
    def holding(self, gates: Tensor) -> Iterator[None]:
        """A block in which gates (B, G), or (1, G) for all examples alike, decide and no policy.

        A batch in it may have each example several times, one after the other, as a search with beams has.
        """
        self._held = gates.detach().float()
        self.gates.fill(self._held)
        try:
            yield
        finally:
            self._held = None

    def learn(self, model: nn.Module, inputs: Mapping[str, Any]) -> None:
        """Learn from a batch where examples are. It happens by itself when inputs are of a new kind."""
        batch = batch_size(inputs, getattr(model, "main_input_name", None))
        varying = {name: value for name, value in inputs.items() if name not in self.config.shared}
        fixed = {name: value for name, value in inputs.items() if name in self.config.shared}
        learn(model, self.gates, varying, batch, self._entries, fixed)
        for name in self.units:
            for part, layout in layouts(model.get_submodule(name)):
                if layout.learned is not None:
                    continue
                if layout.needs_examples or not part:
                    raise ValueError(
                        f"{layout.name} is not called with these inputs, or its weights are read without a "
                        "call, so that gates would decide nothing: exclude it"
                        + (f', or freeze="{layout.name}"' if part else "")
                    )
                layout.learned = {}  # or the first dimension would be taken for that of the examples

    def _learn_new(self, model: nn.Module, inputs: Mapping[str, Any]) -> int:
        """Learn from inputs of a kind that has not been seen; returns their number of examples."""
        batch, kind = batch_size(inputs, getattr(model, "main_input_name", None)), _kind(inputs)
        if batch and kind not in self._known:
            self.learn(model, inputs)
            self._known.add(kind)
        return batch

    @property
    def network(self) -> nn.Module:
        """The policy without the bias that holds its share."""
        return self.policy.policy if isinstance(self.policy, HeldShare) else self.policy

    def _read(self, model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
        """What the policy is called with: the inputs, and if it asks for it, `pooled`."""
        batch = self._learn_new(model, inputs)
        if "pooled" in inspect.signature(self.network.forward).parameters:
            inputs = inputs | {"pooled": self._pooled(model, inputs, batch)}
        return inputs

    def _pooled(self, model: nn.Module, inputs: dict[str, Any], batch: int) -> Tensor:
        """The mean of what reaches the first gated module, (B, H), without padding if a mask tells it."""
        reached: list[Any] = []

        def stop(layout: Layout, module: nn.Module, args: Any, kwargs: Any) -> None:
            reached.extend((layout, [*leaves(args, ("in",)), *leaves(kwargs, ("in",))]))
            raise _Reached

        modules = {name: model.get_submodule(name) for name in self._entries}
        handles = [
            modules[name].register_forward_pre_hook(partial(stop, layout), with_kwargs=True)
            for name, layout in self._entries.items()
        ]
        states = [name for name, value in inputs.items() if is_state(value)]
        if states:
            everything = torch.arange(batch, device=self.gates_device(model))
            inputs = inputs | {name: taken(inputs[name], everything, batch) for name in states}
        try:
            with as_a_function(model):
                model.forward(**inputs)
        except _Reached:
            pass
        finally:
            for handle in handles:
                handle.remove()
        if not reached:
            raise ValueError(
                "no gated module is called with these inputs, so that a pooled policy has nothing to read"
            )
        layout, values = reached
        if self.config.reads not in (None, layout.name):
            raise ValueError(f"reads={self.config.reads}: {layout.name}, which is gated, comes before it")
        for path, value in values:
            where = (layout.learned or {}).get(path)
            if isinstance(value, Tensor) and value.is_floating_point() and isinstance(where, Examples):
                where = Examples(where.dim, joined=value.shape[where.dim] != batch)
                return _mean(
                    rows_first(value, where, batch),
                    inputs.get("attention_mask"),
                    getattr(self.network, "size", None),
                )
        raise ValueError(f"{layout.name} gets no numbers for each example that a pooled policy could read")

    @staticmethod
    def gates_device(model: nn.Module) -> torch.device:
        return next(model.parameters()).device

    def _before(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        # What the policy reads it finds by hooks, and looks at: no compiler follows it.
        uncompiled(self._fill, model, args, kwargs) if is_compiling() else self._fill(model, args, kwargs)

    def _fill(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        inputs = dict(kwargs)
        if args:
            inputs |= dict(zip(inspect.signature(model.forward).parameters, args, strict=False))
        batch = batch_size(inputs, getattr(model, "main_input_name", None))
        if self._held is not None:
            self._learn_new(model, inputs)
            if batch % len(self._held):
                raise ValueError(f"gates of {len(self._held)} examples are held, and the batch has {batch}")
            held = self._held.repeat_interleave(batch // len(self._held), dim=0)
            self.choose(inputs, held)
        elif batch:
            learns = self.train_policy and self.explores
            with torch.set_grad_enabled(torch.is_grad_enabled() and learns):
                read = self._read(model, inputs)
            self.choose(read)
        else:
            self.gates.fill(torch.zeros(0, self.gates.total, device=self.gates_device(model)))

    def _after(self, model: nn.Module, args: Any, output: Any) -> None:
        uncompiled(self.gates.detach) if is_compiling() else self.gates.detach()

    def _count(self, model: nn.Module) -> Report:
        counts = dict.fromkeys(("copies", "policy", "rest", "frozen"), 0)
        for name, parameter in model.named_parameters():
            kind = "policy" if name.startswith("adaptive.") else "copies" if is_tuned_side(name) else "rest"
            counts[kind if parameter.requires_grad else "frozen"] += parameter.numel()
        classes = dict.fromkeys(type(part).__name__ for part in model.modules() if RATES in vars(part))
        return Report(self.units, self.gates.total, *counts.values(), tuple(classes))


def _mean(hidden: Tensor, mask: Any, size: int | None) -> Tensor:
    """(B, ..., H) -> (B, H); with a mask (B, S) of hidden states (B, S, H), of what it leaves.

    Where the last dimension is not of the size H, another one may be: channels come first in images.
    """
    if hidden.shape[-1] != size and size in hidden.shape[1:]:
        hidden = hidden.movedim([*hidden.shape].index(size, 1), -1)
    if hidden.dim() == 2:
        return hidden
    if isinstance(mask, Tensor) and mask.shape == hidden.shape[:2] and hidden.dim() == 3:
        return masked_mean(hidden, mask)
    return hidden.flatten(1, -2).mean(1)


def _kind(inputs: Mapping[str, Any]) -> Any:
    """What of inputs may decide how modules are called: names, ranks, sizes of 1, and settings."""

    def of(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.dim(), tuple(size == 1 for size in value.shape)
        return value if isinstance(value, bool | str | None) else type(value).__name__

    return tuple((*path, of(value)) for path, value in leaves(dict(inputs)))


@torch.no_grad()
def generate(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """`model.generate`, in which the policy decides once, on the prompt, and its gates hold for what follows.

    So with and without a cache the same words come out, and each copy finds what it wrote to its rows' cache.
    """
    chooser: InModel = model.adaptive
    prompt = dict(kwargs)
    name = getattr(model, "main_input_name", "input_ids")
    if args and isinstance(args[0], Tensor):
        prompt[name] = args[0]
    if isinstance(prompt.get("inputs"), Tensor):
        prompt[name] = prompt["inputs"]
    known = inspect.signature(model.forward).parameters
    inputs = {key: value for key, value in prompt.items() if key in known and isinstance(value, Tensor)}
    start = getattr(getattr(model, "config", None), "decoder_start_token_id", None)
    if getattr(model.config, "is_encoder_decoder", False) and "decoder_input_ids" not in inputs:
        batch = batch_size(inputs, name)
        inputs["decoder_input_ids"] = torch.full((batch, 1), start or 0, device=chooser.gates_device(model))
    gates = chooser.gates_of(model, inputs)
    with chooser.holding(gates):
        return type(model).generate(model, *args, **kwargs)
