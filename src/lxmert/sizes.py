"""Sizes of LXMERTs that are trained from random weights."""

from dataclasses import asdict, dataclass

from transformers import LxmertConfig

MAX_TOKENS = 24  # positions; questions are cut to 20 word pieces


@dataclass(frozen=True)
class Size:
    """Fields of `LxmertConfig` that are chosen; the others are the data's."""

    l_layers: int
    r_layers: int
    x_layers: int
    hidden_size: int
    num_attention_heads: int
    intermediate_size: int
    # Of random weights. Narrow layers need larger ones: with 0.02, that of the published size, the small
    # model starts too small to learn within minutes.
    initializer_range: float


SIZES = {
    "small": Size(3, 2, 2, 64, 4, 128, 0.08),
    "medium": Size(4, 3, 3, 256, 8, 1024, 0.04),
    "base": Size(9, 5, 5, 768, 12, 3072, 0.02),  # the published one
}


def config_of(size: Size, words: int, feature_size: int, answers: int) -> LxmertConfig:
    """A configuration for so many word pieces, numbers of a region, and answers."""
    return LxmertConfig(
        **asdict(size),
        vocab_size=words,
        max_position_embeddings=MAX_TOKENS,
        visual_feat_dim=feature_size,
        num_qa_labels=answers,
        architectures=["LxmertForQuestionAnswering"],
        dtype="float32",
    )
