"""The engine on models it has never heard of: BERT, ViT and GPT-2 of Hugging Face, and torch's own layers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model, ViTConfig, ViTModel
from transformers.modeling_outputs import ModelOutput
from transformers.models.bert.modeling_bert import BertLayer, BertSelfAttention

from adaptive.adapt import Adaptive, adapt
from adaptive.copies import full_copy
from adaptive.gates import Gates
from adaptive.pair import GatedPair
from adaptive.policy import GateHead

BATCH, TOKENS, SIZE, HEADS, LAYERS = 6, 5, 32, 4, 2

Units = list[tuple[Sequence[str], int]]


@pytest.fixture(autouse=True)
def one_kernel() -> Iterator[None]:
    """torch's own layers use another kernel, with other rounding, when no weight needs a gradient."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(enabled)


class TorchStack(nn.Module):
    """torch's encoder layers one after the other, with a keyword for the mask."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(SIZE, HEADS, 48, dropout, batch_first=True) for _ in range(LAYERS)
        )

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor) -> Tensor:
        for layer in self.layers:
            inputs_embeds = layer(inputs_embeds, src_key_padding_mask=attention_mask == 0)
        return inputs_embeds


SHAPE = {
    "hidden_size": SIZE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 48,
    "initializer_range": 0.2,
}


def dropout_of(rate: float) -> dict[str, float]:
    return {"hidden_dropout_prob": rate, "attention_probs_dropout_prob": rate}


def bert_config(attention: str = "sdpa", dropout: float = 0.0) -> BertConfig:
    return BertConfig(vocab_size=20, attn_implementation=attention, **SHAPE, **dropout_of(dropout))


def bert(dropout: float) -> nn.Module:
    return BertModel(bert_config("sdpa", dropout))


def eager_bert(dropout: float) -> nn.Module:
    return BertModel(bert_config("eager", dropout))


def vit(dropout: float) -> nn.Module:
    return ViTModel(ViTConfig(image_size=8, patch_size=4, **SHAPE, **dropout_of(dropout)))


def gpt2(dropout: float) -> nn.Module:
    config = GPT2Config(
        vocab_size=20,
        n_positions=16,
        n_embd=SIZE,
        n_layer=LAYERS,
        n_head=HEADS,
        initializer_range=0.2,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,  # a cache that both copies write to would make a layer more than a function
    )
    return GPT2Model(config)


def text() -> dict[str, Tensor]:
    """Embedded words, with as many of them masked as is different for each example."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([5, 1, 2, 3, 4, 5])
    return {
        "inputs_embeds": torch.randn(BATCH, TOKENS, SIZE, generator=generator),
        "attention_mask": (torch.arange(TOKENS) < lengths[:, None]).long(),
    }


def images() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(BATCH, 3, 8, 8, generator=torch.Generator().manual_seed(0))}


def whole(pattern: str) -> Units:
    return [([pattern.format(layer)], 1) for layer in range(LAYERS)]


def parts(layers: str, components: Units) -> Units:
    """The components of every layer, named from the layer on."""
    names = [layers.format(layer) for layer in range(LAYERS)]
    return [([f"{layer}.{name}" for name in tied], width) for layer in names for tied, width in components]


class Case(NamedTuple):
    build: Callable[[float], nn.Module]
    inputs: Callable[[], dict[str, Tensor]]
    units: Units


BERT_PARTS: Units = [
    (["attention.self"], HEADS),  # returns a tuple, is called with keywords only
    (["attention.output"], 1),
    (["intermediate", "output"], 1),
]
VIT_PARTS: Units = [
    (["attention.q_proj", "attention.k_proj", "attention.v_proj"], HEADS),
    (["attention.o_proj"], 1),
    (["mlp.fc1", "mlp.fc2"], 1),
]
WHOLE = {
    "BERT layers": Case(bert, text, whole("encoder.layer.{}")),
    "eager BERT layers": Case(eager_bert, text, whole("encoder.layer.{}")),
    "ViT layers": Case(vit, images, whole("layers.{}")),
    "GPT-2 blocks": Case(gpt2, text, whole("h.{}")),
    "torch layers": Case(TorchStack, text, whole("layers.{}")),
}
CASES = {
    **WHOLE,
    "BERT's encoder": Case(bert, text, [(["encoder"], 1)]),  # returns a ModelOutput
    "BERT parts": Case(bert, text, parts("encoder.layer.{}", BERT_PARTS)),
    "ViT parts": Case(vit, images, parts("layers.{}", VIT_PARTS)),
    "GPT-2 parts": Case(gpt2, text, parts("h.{}", [(["attn"], 1), (["mlp"], 1)])),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
every_whole_case = pytest.mark.parametrize("case", WHOLE.values(), ids=WHOLE.keys())


def plain(case: Case, dropout: float = 0.0) -> tuple[nn.Module, nn.Module]:
    """A pre-trained model, and the same with other weights in everything that is to be gated."""
    torch.manual_seed(0)
    pretrained = case.build(dropout).eval()
    tuned = copy.deepcopy(pretrained)
    with torch.no_grad():
        for name in (name for names, _ in case.units for name in names):
            for parameter in tuned.get_submodule(name).parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return pretrained, tuned


def adapted(case: Case, dropout: float = 0.0) -> tuple[nn.Module, Gates]:
    """Both of them in one: pairs of the pre-trained and the other weights."""
    model, tuned = plain(case, dropout)
    gates = adapt(model, case.units)
    for name in (name for names, _ in case.units for name in names):
        model.get_submodule(name).tuned.load_state_dict(tuned.get_submodule(name).state_dict())
    return model, gates


def run(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    output = model(**inputs)
    return output if isinstance(output, Tensor) else output.last_hidden_state


def random_gates(gates: Gates, seed: int = 1) -> Tensor:
    return (torch.rand(BATCH, gates.total, generator=torch.Generator().manual_seed(seed)) < 0.5).float()


class Naive(nn.Module):
    """The formula of a pair written out, with nothing of the engine: gate (B, w) fixed for one forward."""

    def __init__(self, tuned: nn.Module, frozen: nn.Module, gate: Tensor) -> None:
        super().__init__()
        self.tuned, self.frozen, self.gate = tuned, frozen, gate

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        tuned, frozen = self.tuned(*args, **kwargs), self.frozen(*args, **kwargs)
        if isinstance(tuned, tuple):
            return tuple(None if t is None else self.blend(t, f) for t, f in zip(tuned, frozen, strict=True))
        if isinstance(tuned, ModelOutput):
            return type(tuned)(**{name: self.blend(value, frozen[name]) for name, value in tuned.items()})
        return self.blend(tuned, frozen)

    def blend(self, tuned: Tensor, frozen: Tensor) -> Tensor:
        width = self.gate.shape[1]
        shape = (len(tuned), -1, width, tuned.shape[-1] // width)
        gate = self.gate[:, None, :, None]
        return (gate * tuned.reshape(shape) + (1 - gate) * frozen.reshape(shape)).reshape(tuned.shape)


def naive(case: Case, gates: Tensor) -> nn.Module:
    """A model with both copies of every unit and the formula; its tuned copies are the parts of `plain`."""
    model, tuned = plain(case)
    start = 0
    for names, width in case.units:
        for name in names:
            parent, _, child = name.rpartition(".")
            frozen = model.get_submodule(name)
            blend = Naive(tuned.get_submodule(name), frozen, gates[:, start : start + width])
            setattr(model.get_submodule(parent), child, blend)
        start += width
    return model


@every_case
@pytest.mark.parametrize("gate", [0, 1], ids=["frozen", "tuned"])
@pytest.mark.parametrize("with_gradient", [False, True])
def test_all_gates_equal_is_that_model_bit_for_bit(case: Case, gate: int, with_gradient: bool) -> None:
    expected = run(plain(case)[gate], case.inputs())
    model, gates = adapted(case)
    gates.fill(torch.full((BATCH, gates.total), float(gate), requires_grad=with_gradient))
    assert torch.equal(run(model, case.inputs()), expected)


@every_case
def test_a_mixed_batch_equals_its_rows_one_by_one(case: Case) -> None:
    model, gates = adapted(case)
    inputs, values = case.inputs(), random_gates(gates)
    gates.fill(values)
    together = run(model, inputs)
    for row in range(BATCH):
        gates.fill(values[row : row + 1])
        alone = run(model, {name: value[row : row + 1] for name, value in inputs.items()})
        assert torch.allclose(together[row], alone[0], atol=1e-5)


@every_case
def test_before_training_any_gates_give_the_pretrained_output(case: Case) -> None:
    model, _ = plain(case)
    inputs = case.inputs()
    before = run(model, inputs)
    gates = adapt(model, case.units)
    for seed in range(3):
        gates.fill(random_gates(gates, seed))
        assert torch.allclose(run(model, inputs), before, atol=1e-5)


def gradients(model: nn.Module, inputs: dict[str, Tensor], gates: Tensor) -> dict[str, Tensor]:
    """The output and the gradients of gates, first input and tuned copies."""
    source = next(iter(inputs.values())).requires_grad_()
    output = run(model, inputs)
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
    (output * weight).sum().backward()
    of_weights = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in model.named_parameters()
        if ".tuned." in name
    }
    return {"output": output.detach(), "gates": gates.grad, "input": source.grad, **of_weights}


@every_case
@pytest.mark.parametrize("dense", [False, True], ids=["routed", "dense"])
def test_values_and_all_gradients_equal_the_naive_formula(case: Case, dense: bool) -> None:
    model, gates = adapted(case)
    gates.dense = dense
    values = random_gates(gates).requires_grad_()
    gates.fill(values)
    actual = gradients(model, case.inputs(), values)
    same_values = values.detach().clone().requires_grad_()
    expected = gradients(naive(case, same_values), case.inputs(), same_values)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert value.any() or name.endswith(("key.bias", "k_proj.bias"))  # which a softmax cannot see
        scale = value.abs().max().clamp(min=1)
        assert torch.allclose(actual[name] / scale, value / scale, atol=1e-5), name


class Policy(nn.Module):
    """Gates from the first input, whatever it is called."""

    def __init__(self, inputs: dict[str, Tensor], gates: int) -> None:
        super().__init__()
        self.head = GateHead(next(iter(inputs.values()))[0].numel(), gates)

    def forward(self, **inputs: Tensor) -> Tensor:
        return self.head(next(iter(inputs.values())).flatten(1))


def adaptive(case: Case) -> Adaptive:
    model, gates = adapted(case)
    return Adaptive(model, Policy(case.inputs(), gates.total), gates).train()


def loss_and_gates(model: Adaptive, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    output, gates, _ = model(**inputs)
    output = output if isinstance(output, Tensor) else output.last_hidden_state
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
    return (output * weight).sum(), gates


@every_case
def test_training_moves_tuned_copies_and_policy_and_never_a_frozen_copy(case: Case) -> None:
    model = adaptive(case)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), 1e-3, weight_decay=0)
    torch.manual_seed(0)
    for _ in range(3):
        optimizer.zero_grad()
        loss_and_gates(model, case.inputs())[0].backward()
        optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    learns = {name for name in before if ".tuned." in name or name.startswith("policy.")}
    assert learns <= moved
    assert not any(".frozen." in name for name in moved)


@every_case
def test_every_gate_gets_a_gradient(case: Case) -> None:
    model = adaptive(case)
    torch.manual_seed(0)
    loss, gates = loss_and_gates(model, case.inputs())
    gates.retain_grad()
    loss.backward()
    assert gates.grad.abs().amax(0).gt(0).all()


@every_whole_case
def test_frozen_copies_have_no_dropout_in_training_and_tuned_ones_do(case: Case) -> None:
    model, gates = adapted(case, dropout=0.5)
    pairs = [module for module in model.modules() if isinstance(module, GatedPair)]
    inside = {module for pair in pairs for module in pair.modules()}
    model.train()
    for module in model.modules():
        if module not in inside and isinstance(module, nn.Dropout):
            module.eval()  # of the embeddings, which are not gated
    torch.manual_seed(0)
    for gate, equal in ((0.0, True), (1.0, False)):
        gates.fill(torch.full((BATCH, gates.total), gate))
        assert torch.equal(run(model, case.inputs()), run(model, case.inputs())) == equal


MASKS = {"a mask for each example": (BATCH, 1, 1, TOKENS), "a mask for each word": (BATCH, 1, TOKENS, TOKENS)}


@pytest.mark.parametrize("shape", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("by_name", [False, True], ids=["positional", "keyword"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("module", "width"), [(BertLayer, 1), (BertSelfAttention, 1), (BertSelfAttention, 4)]
)
def test_each_example_keeps_its_attention_mask(
    module: type[nn.Module], width: int, attention: str, by_name: bool, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    tokens = 2 * HEADS if width > 1 and attention == "eager" else TOKENS
    shape = tuple(tokens if length == TOKENS else length for length in shape)
    gates = Gates(width)
    pair = full_copy()(module(bert_config(attention)).eval(), gates, 0, width)
    with torch.no_grad():
        for parameter in pair.tuned.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x, values = torch.randn(BATCH, tokens, SIZE), random_gates(gates)
    mask = torch.where(torch.rand(shape) < 0.5, 0.0, -1e4)

    def call(rows: slice) -> Tensor:
        gates.fill(values[rows])
        named = {"attention_mask": mask[rows]} if by_name else {}
        output = pair(x[rows], *([] if by_name else [mask[rows]]), **named)
        return output[0] if isinstance(output, tuple) else output

    alone = torch.cat([call(slice(row, row + 1)) for row in range(BATCH)])
    assert torch.allclose(call(slice(None)), alone, atol=1e-5)
