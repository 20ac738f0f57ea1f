"""Architectures of transformers at tiny random size, and what the engine makes of each.

PYTHONPATH=src:. python tests/helpers/architectures.py          measure all and print the table
PYTHONPATH=src:. python tests/helpers/architectures.py --write  put it into src/adaptive/README.md
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers.utils import logging

from adaptive import AdaptiveConfig, get_adaptive_model
from common.markdown import write_block

BATCH, TOKENS, SIZE = 5, 7, 32
README = Path(__file__).resolve().parents[2] / "src" / "adaptive" / "README.md"
WORKS = "works"

TEXT = {
    "vocab_size": 40,
    "hidden_size": SIZE,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
DECODER = TEXT | {"num_key_value_heads": 2, "head_dim": 8}
SEQ2SEQ = {
    "vocab_size": 40,
    "d_model": SIZE,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "init_std": 0.2,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
IMAGE = {
    "image_size": 16,
    "patch_size": 4,
    "num_channels": 3,
    "hidden_size": SIZE,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "initializer_range": 0.2,
}
T5 = {
    "vocab_size": 40,
    "d_model": SIZE,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 2,
    "pad_token_id": 1,
}
GPT = {
    "vocab_size": 40,
    "n_positions": 64,
    "n_embd": SIZE,
    "n_layer": 2,
    "n_head": 4,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
SPEECH = {
    "vocab_size": 40,
    "hidden_size": SIZE,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": (16, 16),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "layerdrop": 0.0,
    "mask_time_prob": 0.0,
    "initializer_range": 0.2,
}


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def text() -> dict[str, Tensor]:
    """Words, with another number of them in each example, padded at the right."""
    lengths = torch.tensor([7, 4, 2, 6, 7])
    mask = (torch.arange(TOKENS) < lengths[:, None]).long()
    ids = torch.randint(4, 40, (BATCH, TOKENS), generator=generator())
    return {"input_ids": torch.where(mask == 1, ids, 1), "attention_mask": mask}


def full_text() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(4, 40, (BATCH, TOKENS), generator=generator())}


def two_texts() -> dict[str, Tensor]:
    return text() | {"decoder_input_ids": torch.randint(4, 40, (BATCH, 4), generator=generator())}


def images() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(BATCH, 3, 16, 16, generator=generator())}


def large_images() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(BATCH, 3, 32, 32, generator=generator())}


def sound() -> dict[str, Tensor]:
    return {"input_values": torch.randn(BATCH, 400, generator=generator())}


def spectrum() -> dict[str, Tensor]:
    features = torch.randn(BATCH, 8, 20, generator=generator())
    return {"input_features": features, "decoder_input_ids": two_texts()["decoder_input_ids"]}


def sound_image() -> dict[str, Tensor]:
    return {"input_values": torch.randn(BATCH, 16, 16, generator=generator())}


def both() -> dict[str, Tensor]:
    return text() | images()


@dataclass(frozen=True)
class Architecture:
    """One of them: what AutoConfig takes, the inputs, and the modules to gate."""

    kind: str
    target: str | tuple[str, ...]
    config: dict[str, Any] = field(default_factory=dict)
    inputs: Callable[[], dict[str, Tensor]] = text


def subconfigs(**parts: dict[str, Any]) -> dict[str, Any]:
    return {f"{name}_config": config for name, config in parts.items()}


CLIP_TEXT = {**TEXT, "projection_dim": 16, "eos_token_id": 39}
ARCHITECTURES: dict[str, Architecture] = {
    "bert": Architecture("encoder", "encoder.layer.*", TEXT),
    "roberta": Architecture("encoder", "encoder.layer.*", TEXT),
    "electra": Architecture("encoder", "encoder.layer.*", TEXT | {"embedding_size": SIZE}),
    "distilbert": Architecture(
        "encoder",
        "transformer.layer.*",
        {"vocab_size": 40, "dim": SIZE, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    ),
    "mpnet": Architecture("encoder", "encoder.layer.*", TEXT),
    "deberta-v2": Architecture(
        "encoder",
        "encoder.layer.*",
        TEXT | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False},
    ),
    "modernbert": Architecture(
        "encoder",
        "layers.*",
        TEXT | {"global_attn_every_n_layers": 2, "local_attention": 4, "cls_token_id": 2, "sep_token_id": 3},
    ),
    "roformer": Architecture("encoder", "encoder.layer.*", TEXT | {"embedding_size": SIZE}),
    "albert": Architecture("encoder", "albert_layers.*", TEXT | {"embedding_size": 16}),
    "megatron-bert": Architecture("encoder", "encoder.layer.*", TEXT),
    "xlnet": Architecture(
        "encoder", "layer.*", {"vocab_size": 40, "d_model": SIZE, "n_layer": 2, "n_head": 4, "d_inner": 48}
    ),
    "gpt2": Architecture("decoder with cache", "h.*", GPT),
    "gpt_neo": Architecture(
        "decoder with cache",
        "h.*",
        {
            "vocab_size": 40,
            "hidden_size": SIZE,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "max_position_embeddings": 64,
            "window_size": 4,
            "bos_token_id": 2,
            "eos_token_id": 3,
        },
    ),
    "gptj": Architecture("decoder with cache", "h.*", GPT | {"rotary_dim": 4}),
    "gpt_neox": Architecture("decoder with cache", "layers.*", TEXT),
    "opt": Architecture(
        "decoder with cache", "layers.*", TEXT | {"ffn_dim": 48, "word_embed_proj_dim": SIZE}
    ),
    "bloom": Architecture(
        "decoder with cache", "h.*", {"vocab_size": 40, "hidden_size": SIZE, "n_layer": 2, "n_head": 4}
    ),
    "falcon": Architecture("decoder with cache", "h.*", TEXT | {"ffn_hidden_size": 48}),
    "llama": Architecture("decoder with cache", "layers.*", DECODER),
    "mistral": Architecture("decoder with cache", "layers.*", DECODER | {"sliding_window": 4}),
    "qwen2": Architecture("decoder with cache", "layers.*", TEXT | {"num_key_value_heads": 2}),
    "qwen3": Architecture("decoder with cache", "layers.*", DECODER),
    "gemma2": Architecture("decoder with cache", "layers.*", DECODER | {"sliding_window": 4}),
    "phi": Architecture("decoder with cache", "layers.*", TEXT | {"num_key_value_heads": 2}),
    "mixtral": Architecture(
        "mixture of experts", "layers.*", DECODER | {"num_local_experts": 4, "num_experts_per_tok": 2}
    ),
    "olmoe": Architecture(
        "mixture of experts",
        "layers.*",
        TEXT | {"num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2},
    ),
    "qwen2_moe": Architecture(
        "mixture of experts",
        "layers.*",
        TEXT
        | {
            "num_key_value_heads": 2,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
        },
    ),
    "mamba": Architecture(
        "state space",
        "layers.*",
        {"vocab_size": 40, "hidden_size": SIZE, "state_size": 4, "num_hidden_layers": 2, "pad_token_id": 1},
        full_text,
    ),
    "t5": Architecture("encoder-decoder", "block.*", T5, two_texts),
    "mt5": Architecture("encoder-decoder", "block.*", T5, two_texts),
    "bart": Architecture("encoder-decoder", "layers.*", SEQ2SEQ, two_texts),
    "marian": Architecture("encoder-decoder", "layers.*", SEQ2SEQ | {"decoder_vocab_size": 40}, two_texts),
    "pegasus": Architecture("encoder-decoder", "layers.*", SEQ2SEQ, two_texts),
    "m2m_100": Architecture(
        "encoder-decoder",
        "layers.*",
        SEQ2SEQ | {"encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0},
        two_texts,
    ),
    "whisper": Architecture(
        "audio, encoder-decoder",
        "layers.*",
        SEQ2SEQ | {"num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 16},
        spectrum,
    ),
    "wav2vec2": Architecture("audio", "encoder.layers.*", SPEECH, sound),
    "hubert": Architecture("audio", "encoder.layers.*", SPEECH, sound),
    "audio-spectrogram-transformer": Architecture(
        "audio",
        "layers.*",
        IMAGE | {"max_length": 16, "num_mel_bins": 16, "frequency_stride": 4, "time_stride": 4},
        sound_image,
    ),
    "vit": Architecture("image", "layers.*", IMAGE, images),
    "deit": Architecture("image", "layers.*", IMAGE, images),
    "beit": Architecture("image", "layers.*", IMAGE, images),
    "dinov2": Architecture("image", "layer.*", IMAGE, images),
    "swin": Architecture(
        "image",
        "encoder.layers.*",
        {
            "image_size": 32,
            "patch_size": 4,
            "embed_dim": 16,
            "depths": [1, 1],
            "num_heads": [2, 4],
            "window_size": 4,
        },
        large_images,
    ),
    "convnext": Architecture(
        "image",
        "stages.*",
        {
            "hidden_sizes": [16, 32],
            "depths": [1, 1],
            "num_stages": 2,
            "patch_size": 4,
            "layer_scale_init_value": 1.0,
        },
        large_images,
    ),
    "resnet": Architecture(
        "image",
        "stages.*",
        {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"},
        large_images,
    ),
    "clip": Architecture(
        "image and text",
        "encoder.layers.*",
        subconfigs(text=CLIP_TEXT, vision=IMAGE | {"projection_dim": 16}) | {"projection_dim": 16},
        both,
    ),
    "siglip": Architecture("image and text", "encoder.layers.*", subconfigs(text=TEXT, vision=IMAGE), both),
    "lxmert": Architecture(
        "image and text",
        "encoder.layer.*",
        {
            "vocab_size": 40,
            "hidden_size": SIZE,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "l_layers": 2,
            "r_layers": 1,
            "x_layers": 1,
            "visual_feat_dim": 8,
        },
        lambda: (
            text()
            | {
                "visual_feats": torch.randn(BATCH, 3, 8, generator=generator()),
                "visual_pos": torch.rand(BATCH, 3, 4, generator=generator()),
            }
        ),
    ),
}


def build(name: str) -> nn.Module:
    """The model with random weights, in evaluation."""
    torch.manual_seed(0)
    logging.set_verbosity_error()
    config = AutoConfig.for_model(name, **ARCHITECTURES[name].config)
    return AutoModel.from_config(config).eval()


def adapted(model: nn.Module, name: str, **settings: Any) -> nn.Module:
    return get_adaptive_model(model, AdaptiveConfig(target=ARCHITECTURES[name].target, **settings))


def move(model: nn.Module, amount: float = 0.1) -> None:
    """Let training have gone on for a while."""
    draws = generator()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if ".tuned." in key or key.endswith((".up", ".down")):
                parameter.add_(amount * torch.randn(parameter.shape, generator=draws))


def tensors(output: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """All floating-point tensors of an output, by name; not those of caches."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield path, output
    elif isinstance(output, dict):
        for key, value in output.items():
            yield from tensors(value, f"{path}.{key}")
    elif isinstance(output, tuple | list):
        for index, value in enumerate(output):
            yield from tensors(value, f"{path}.{index}")


def mixed_gates(gates: int, rows: int = BATCH) -> Tensor:
    """Every gate is mixed, and no two next to each other are alike."""
    return ((torch.arange(rows)[:, None] * 3 + torch.arange(gates) * 2) % 5 < 2).float()


def run(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    with torch.no_grad():
        return dict(tensors(model(**inputs, output_hidden_states=True)))


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest number."""
    if found.shape != expected.shape:
        return float("inf")
    if not found.numel():
        return 0.0
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1))


@dataclass(frozen=True)
class Measured:
    """Differences that must be rounding: of equal copies to the plain model, of a batch to its rows."""

    plain: float
    rows: float
    gradients: int  # parameters of copies and policy with a gradient that is not zero
    outputs: int  # tensors compared


def measure(name: str, **settings: Any) -> Measured:
    """ValueError or TypeError, in a sentence, for what is refused."""
    architecture = ARCHITECTURES[name]
    model, inputs = build(name), architecture.inputs()
    expected = run(model, inputs)
    model = adapted(model, name, **settings)
    gates = mixed_gates(model.adaptive.gates.total)
    with model.adaptive.holding(gates):
        found = run(model, inputs)
    assert found.keys() == expected.keys(), (found.keys(), expected.keys())
    plain = max(difference(found[key], expected[key]) for key in expected)
    move(model)
    with model.adaptive.holding(gates):
        whole = run(model, inputs)
    rows = 0.0
    for row in range(BATCH):
        with model.adaptive.holding(gates[row : row + 1]):
            alone = run(model, {key: value[row : row + 1] for key, value in inputs.items()})
        for key, value in whole.items():
            if value.shape[:1] == (BATCH,) and "logits_per" not in key:
                rows = max(rows, difference(value[row], alone[key][0]))
    assert any(difference(whole[key], found[key]) > 1e-3 for key in found)
    return Measured(plain, rows, gradients(model, inputs), len(expected))


def gradients(model: nn.Module, inputs: dict[str, Tensor]) -> int:
    """How many parameters of tuned copies get a gradient with mixed gates; all have to be finite.

    In a step in which the policy decides, it has to get one too.
    """
    model.train()
    with model.adaptive.holding(mixed_gates(model.adaptive.gates.total)):
        of_copies = gradients_of(model, inputs)
    of_policy = [key for key in gradients_of(model, inputs) if key.startswith("adaptive.policy.")]
    assert of_policy
    assert not any(".frozen." in key for key in of_copies)
    return sum(".tuned." in key or key.endswith(".up") for key in of_copies)


def gradients_of(model: nn.Module, inputs: dict[str, Tensor]) -> list[str]:
    """The parameters that get a gradient that is not zero."""
    model.zero_grad()
    torch.manual_seed(1)
    sum(value.square().mean() for _, value in tensors(model(**inputs)) if value.requires_grad).backward()
    found = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    assert all(grad.isfinite().all() for grad in found.values())
    return [key for key, grad in found.items() if grad.any()]


def verdict(name: str, **settings: Any) -> str:
    """`works`, or the sentence with which a model is refused."""
    try:
        measured = measure(name, **settings)
    except (ValueError, TypeError, RuntimeError) as error:
        return str(error)
    assert measured.plain < 1e-4 and measured.rows < 1e-3 and measured.gradients, measured
    return WORKS


def table() -> str:
    """Markdown: a row for each architecture."""
    lines = [
        "| architecture | kind | target | full copies | low-rank copies |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, architecture in ARCHITECTURES.items():
        found = [verdict(name), verdict(name, tuned="lora", rank=2)]
        lines.append(" | ".join([f"| {name}", architecture.kind, f"`{architecture.target}`", *found]) + " |")
        print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    made = table()
    if "--write" in sys.argv:
        write_block(README, "architectures", made)
    else:
        print(made)
