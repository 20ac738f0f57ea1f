"""Small models and data for all tests: a 2/1/2-layer LXMERT and a data set of random questions about it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import LxmertConfig

from lxmert.modeling import AnswerHead, LxmertModel
from vqadata.feature_layout import Layout
from vqadata.features import write_store

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "is", "it", "red", "blue", "what", "the", "?"]
ANSWERS = ["yes", "no", "red", "blue"]
REGIONS, FEATURES = 5, 12


def small_config() -> LxmertConfig:
    return LxmertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=24,
        l_layers=2,
        r_layers=1,
        x_layers=2,
        visual_feat_dim=FEATURES,
        max_position_embeddings=24,
        initializer_range=0.2,
        num_qa_labels=len(ANSWERS),
        id2label=dict(enumerate(ANSWERS)),
        label2id={answer: index for index, answer in enumerate(ANSWERS)},
    )


def random_inputs(
    batch: int, tokens: int = 6, regions: int = REGIONS, seed: int = 0
) -> dict[str, torch.Tensor]:
    """A batch with questions and images of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, tokens + 1, (batch,), generator=generator)
    counts = torch.randint(1, regions + 1, (batch,), generator=generator)
    lengths[0], counts[0] = tokens, regions
    return {
        "input_ids": torch.randint(1, len(WORDS), (batch, tokens), generator=generator),
        "attention_mask": torch.arange(tokens) < lengths[:, None],
        "visual_feats": torch.randn(batch, regions, FEATURES, generator=generator),
        "visual_pos": torch.rand(batch, regions, 4, generator=generator),
        "visual_attention_mask": torch.arange(regions) < counts[:, None],
    }


def write_pretrained(folder: Path) -> Path:
    """A pre-trained model in Hugging Face format."""
    torch.manual_seed(0)
    config = small_config()
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    tensors = {f"lxmert.{name}": t for name, t in LxmertModel(config).state_dict().items()}
    head = AnswerHead(config, len(ANSWERS)).state_dict()
    tensors |= {f"answer_head.{name}": t for name, t in head.items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "BertTokenizer", "do_lower_case": true}'
    )
    return folder


def annotate(records: list[dict]) -> dict:
    """Ten human answers a question in the official format; three of them say something else."""
    annotations = []
    for record in records:
        (answer,) = record["label"]
        said = [answer] * 7 + ["a thing"] * 3
        annotations.append(
            {
                "question_id": record["question_id"],
                "image_id": 1,
                "question_type": record["question_type"],
                "answer_type": record["answer_type"],
                "multiple_choice_answer": answer,
                "answers": [{"answer": a, "answer_id": i + 1} for i, a in enumerate(said)],
            }
        )
    return {"annotations": annotations}


def write_dataset(folder: Path) -> Path:
    """Splits train (20 images), nominival (5) and minival (15), four questions an image.

    The answer is a function of the question's first word and the image, so that there is something to learn.
    """
    rng = np.random.default_rng(0)
    images: dict[str, np.ndarray] = {}
    folder.mkdir(parents=True)
    for split, count in (("train", 20), ("nominival", 5), ("minival", 15)):
        records = []
        for number in range(count):
            image = f"{split}_{number}"
            images[image] = rng.normal(size=(rng.integers(1, REGIONS + 1), FEATURES)).astype(np.float32)
            for question in range(4):
                words = ["red" if question % 2 else "is", *rng.choice(WORDS[5:], rng.integers(2, 7))]
                answer = ANSWERS[2 * (question % 2) + int(images[image][0, 0] > 0)]
                records.append(
                    {
                        "question_id": len(images) * 10 + question,
                        "img_id": image,
                        "sent": " ".join(words),
                        "label": {answer: 1.0},
                        "answer_type": "other",
                        "question_type": "colour" if question % 2 else "yes or no",
                    }
                )
        (folder / f"{split}.json").write_text(json.dumps(records))
        if split == "minival":
            (folder / "annotations").mkdir()
            (folder / "annotations" / "minival.json").write_text(json.dumps(annotate(records)))
    (folder / "answers.json").write_text(json.dumps(ANSWERS))
    rows = ((features, rng.random((len(features), 4)).astype(np.float32)) for features in images.values())
    write_store(
        folder / "features" / "all",
        list(images),
        rows,
        Layout(REGIONS, FEATURES, "float32"),
    )
    return folder
