"""BERT as a start for LXMERT: its embeddings and first layers are LXMERT's language side.

Names agree once the prefix `bert.` is gone; files older than 2019's end call a layer norm's weight and bias
`gamma` and `beta`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import LxmertConfig

from common.errors import CheckpointError
from lxmert.files import rename
from lxmert.modeling import LAYER_NORM_EPS

# Parts of LxmertModel that a BERT does not give. Its pooler reads its last layer's [CLS], not LXMERT's.
NOT_IN_BERT = {
    "encoder.visn_fc.": "region embedding",
    "encoder.r_layers.": "vision layers",
    "encoder.x_layers.": "cross layers",
    "pooler.": "pooler",
}
DROPPED = {
    "pooler.": "it reads BERT's last layer",
    "cls.": "heads for masked words and for the next sentence",
    "embeddings.position_ids": "a constant",
}
MOST_LAYERS, VISION_LAYERS, CROSS_LAYERS = 9, 5, 5  # of the published LXMERT
SIZES = (
    "vocab_size",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "type_vocab_size",
    "initializer_range",
)
LAYER = re.compile(r"encoder\.layer\.(\d+)\.")


def bert_config(
    entries: Mapping[str, Any], layers: tuple[int | None, int | None, int | None], file: Path
) -> LxmertConfig:
    """An LXMERT around the BERT that a config.json describes.

    layers: how many language (the first ones of BERT), vision and cross layers. None stands for as many as
    the published LXMERT has, 9, 5 and 5, or as BERT has if those are fewer. Raises CheckpointError.
    """
    language, vision, cross = layers
    lacking = [name for name in (*SIZES, "num_hidden_layers") if name not in entries]
    if lacking:
        raise CheckpointError(f"{file} is no BERT configuration: it lacks {', '.join(lacking)}.")
    there = entries["num_hidden_layers"]
    language = min(MOST_LAYERS, there) if language is None else language
    vision = VISION_LAYERS if vision is None else vision
    cross = CROSS_LAYERS if cross is None else cross
    if language > there:
        raise CheckpointError(
            f"--llayers {language} contradicts the BERT of {file}, which has {there} layers."
        )
    if min(language, vision, cross) < 1:
        raise CheckpointError(f"--llayers, --rlayers and --xlayers must be at least 1, not {layers}.")
    if entries.get("layer_norm_eps", LAYER_NORM_EPS) != LAYER_NORM_EPS:
        raise CheckpointError(
            f"{file} says layer_norm_eps {entries['layer_norm_eps']}; LXMERT's is {LAYER_NORM_EPS}."
        )
    return LxmertConfig(
        **{name: entries[name] for name in SIZES},
        l_layers=language,
        r_layers=vision,
        x_layers=cross,
    )


def sort_bert(tensors: Mapping[str, Tensor], language_layers: int) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors that LXMERT takes, under its names, and a line for each kind that it does not.

    What is neither is handed on too: the comparison with the model will name it.
    """
    kept: dict[str, Tensor] = {}
    dropped = dict.fromkeys(DROPPED, 0)
    deeper = 0
    for name, tensor in rename(tensors, _todays_name).items():
        part = next((part for part in DROPPED if name.startswith(part)), None)
        layer = LAYER.match(name)
        if part is not None:
            dropped[part] += 1
        elif layer and int(layer[1]) >= language_layers:
            deeper += 1
        else:
            kept[name] = tensor
    lines = [f"dropped {part}* ({n} tensors): {DROPPED[part]}" for part, n in dropped.items() if n]
    if deeper:
        lines.append(f"dropped BERT's layers from number {language_layers + 1} on ({deeper} tensors)")
    return kept, lines


def _todays_name(name: str) -> str:
    name = name.removeprefix("bert.")
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
