"""Our LXMERT is Hugging Face's: same names, same outputs, same gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LxmertConfig, LxmertForQuestionAnswering
from transformers import LxmertModel as PublishedModel

from lxmert.modeling import AnswerHead, LxmertModel

ANSWERS = 11
LAYERS = [(2, 1, 2), (1, 2, 1), (3, 2, 2), (1, 0, 1)]  # language, vision, cross


def small_config(language: int, vision: int, cross: int) -> LxmertConfig:
    return LxmertConfig(
        vocab_size=50,
        hidden_size=32,
        num_attention_heads=4,
        intermediate_size=48,
        visual_feat_dim=10,
        max_position_embeddings=24,
        num_qa_labels=ANSWERS,
        l_layers=language,
        r_layers=vision,
        x_layers=cross,
        # Ten times the usual spread, so that attention is far from uniform and a wrong mask shows.
        initializer_range=0.2,
    )


def make_batch(config: LxmertConfig) -> dict[str, Tensor]:
    """Five questions of 3 to 7 word pieces and 2 to 6 regions; padding is not zero but noise."""
    generator = torch.Generator().manual_seed(1)
    words, regions = torch.tensor([7, 3, 5, 4, 6]), torch.tensor([6, 2, 5, 6, 3])
    return {
        "input_ids": torch.randint(1, config.vocab_size, (5, 7), generator=generator),
        "attention_mask": torch.arange(7) < words[:, None],
        "visual_feats": torch.randn(5, 6, config.visual_feat_dim, generator=generator),
        "visual_pos": torch.rand(5, 6, config.visual_pos_dim, generator=generator),
        "visual_attention_mask": torch.arange(6) < regions[:, None],
    }


def make_pair(layers: tuple[int, int, int]) -> tuple[LxmertModel, AnswerHead, LxmertForQuestionAnswering]:
    """Our model and head, and the published class with the same random weights, norms and biases included."""
    torch.manual_seed(0)
    config = small_config(*layers)
    published = LxmertForQuestionAnswering(config).eval()
    with torch.no_grad():
        for parameter in published.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    ours, head = LxmertModel(config).eval(), AnswerHead(config, ANSWERS).eval()
    ours.load_state_dict(published.lxmert.state_dict())
    head.load_state_dict(published.answer_head.state_dict())
    return ours, head, published


def assert_close(ours: Tensor, published: Tensor) -> None:
    torch.testing.assert_close(ours, published, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layers", LAYERS)
def test_state_dict_has_the_published_names(layers: tuple[int, int, int]) -> None:
    config = small_config(*layers)
    with torch.device("meta"):
        published = LxmertForQuestionAnswering(config).state_dict()
        ours = {f"lxmert.{name}": t for name, t in LxmertModel(config).state_dict().items()}
        ours |= {f"answer_head.{name}": t for name, t in AnswerHead(config, ANSWERS).state_dict().items()}
    assert {name: t.shape for name, t in ours.items()} == {name: t.shape for name, t in published.items()}


def test_base_size_has_the_published_names_and_shapes() -> None:
    with torch.device("meta"):
        published = PublishedModel(LxmertConfig()).state_dict()
        ours = LxmertModel(LxmertConfig()).state_dict()
    assert {name: t.shape for name, t in ours.items()} == {name: t.shape for name, t in published.items()}


@pytest.mark.parametrize("layers", LAYERS)
def test_outputs_equal_the_published_model(layers: tuple[int, int, int]) -> None:
    ours, head, published = make_pair(layers)
    batch = make_batch(ours.config)
    output, expected = ours(**batch), published.lxmert(**batch)
    assert_close(output.language, expected.language_output)
    assert_close(output.vision, expected.vision_output)
    assert_close(output.pooled, expected.pooled_output)
    assert_close(head(output.pooled), published(**batch).question_answering_score)


@pytest.mark.parametrize("layers", LAYERS)
def test_gradients_equal_the_published_model(layers: tuple[int, int, int]) -> None:
    ours, head, published = make_pair(layers)
    batch = make_batch(ours.config)
    features, their_features = (batch["visual_feats"].clone().requires_grad_() for _ in range(2))
    torch.manual_seed(2)

    # A random direction of every output, so that no parameter's gradient vanishes by symmetry.
    output = ours(**{**batch, "visual_feats": features})
    outputs = (output.language, output.vision, head(output.pooled))
    directions = [torch.randn_like(tensor) / tensor.numel() ** 0.5 for tensor in outputs]
    sum((tensor * way).sum() for tensor, way in zip(outputs, directions, strict=True)).backward()

    expected = published.lxmert(**{**batch, "visual_feats": their_features})
    theirs = (
        expected.language_output,
        expected.vision_output,
        published.answer_head(expected.pooled_output),
    )
    sum((tensor * way).sum() for tensor, way in zip(theirs, directions, strict=True)).backward()

    gradients = {f"lxmert.{name}": p.grad for name, p in ours.named_parameters()}
    gradients |= {f"answer_head.{name}": p.grad for name, p in head.named_parameters()}
    assert gradients.keys() == dict(published.named_parameters()).keys()
    for name, parameter in published.named_parameters():
        torch.testing.assert_close(
            gradients[name], parameter.grad, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert_close(features.grad, their_features.grad)
    assert features.grad.abs().max() > 1e-3


def test_what_is_masked_does_not_matter() -> None:
    ours, _, _ = make_pair((2, 1, 2))
    batch = make_batch(ours.config)
    other = dict(batch)
    other["input_ids"] = torch.where(batch["attention_mask"], batch["input_ids"], 0)
    other["visual_feats"] = batch["visual_feats"] * batch["visual_attention_mask"][..., None]
    torch.testing.assert_close(ours(**batch).pooled, ours(**other).pooled, rtol=0, atol=1e-6)
    unmasked = {**batch, "visual_attention_mask": torch.ones_like(batch["visual_attention_mask"])}
    assert (ours(**batch).pooled - ours(**unmasked).pooled).abs().max() > 1e-3


@pytest.mark.parametrize("layers", LAYERS)
def test_pooled_only_changes_neither_the_pooled_output_nor_a_gradient(layers: tuple[int, int, int]) -> None:
    # In float64, because products of other sizes round differently.
    ours = make_pair(layers)[0].double()
    batch = {n: t.double() if t.is_floating_point() else t for n, t in make_batch(ours.config).items()}
    results = []
    for pooled_only in (False, True):
        ours.zero_grad()
        output = ours(**batch, pooled_only=pooled_only)
        output.pooled.square().sum().backward()
        results.append([output.pooled, *(p.grad for p in ours.parameters() if p.grad is not None)])
    assert output.vision is None
    assert output.language.shape[1] == 1
    torch.testing.assert_close(*results, rtol=0, atol=1e-11)


def padding_effect(model: LxmertModel) -> float:
    """Largest change of the pooled output when nine word pieces and four regions of padding are added."""
    dtype = model.pooler.dense.weight.dtype
    batch = {n: t.to(dtype) if t.is_floating_point() else t for n, t in make_batch(model.config).items()}
    room = {"input_ids": (0, 9), "attention_mask": (0, 9), "visual_attention_mask": (0, 4)}
    padded = {name: F.pad(tensor, room.get(name, (0, 0, 0, 4))) for name, tensor in batch.items()}
    return (model(**padded).pooled - model(**batch).pooled).abs().max().item()


@pytest.mark.parametrize("seed", range(3))
def test_padding_a_batch_further_changes_nothing(seed: int) -> None:
    torch.manual_seed(seed)
    config = small_config(2, 1, 2)
    config.initializer_range = 0.02
    assert padding_effect(LxmertModel(config).eval()) <= 1e-6


def test_padding_changes_strongly_peaked_attention_by_rounding_only() -> None:
    # These weights amplify float32's rounding to a few 1e-6; in float64 a leak would still be in plain sight.
    ours, _, _ = make_pair((2, 1, 2))
    assert padding_effect(ours.double()) <= 1e-12


def test_a_hidden_size_that_heads_do_not_divide_is_refused() -> None:
    config = small_config(1, 1, 1)
    config.num_attention_heads = 5
    with pytest.raises(ValueError, match="32 is no multiple of 5"):
        LxmertModel(config)
