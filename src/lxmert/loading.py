"""Pre-trained weights into models, strictly: every tensor has its place, and no place is left out.

What a file may hold beside, and what a BERT does not have, stands in the tables of `lxmert.formats`. All else
is an error that names it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from common.errors import CheckpointError
from common.words import counted
from lxmert.formats import LAST_LINEAR, Pretrained, read_folder, read_original
from lxmert.modeling import AnswerHead, LxmertModel
from lxmert.units import LAYER_LISTS

# The fields of a configuration that decide which function the weights make, and those for training only.
FUNCTION_FIELDS = (
    *("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size", "hidden_act"),
    *("max_position_embeddings", "type_vocab_size", "visual_feat_dim", "visual_pos_dim"),
    *("l_layers", "r_layers", "x_layers"),
)
TRAINING_FIELDS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range")


@dataclass(frozen=True)
class Origin:
    """Where a model's weights come from: one format of four, and the sizes that it may leave open."""

    pretrained: str | None  # folder or hub id
    load_lxmert: str | None  # path of an original file; without its answer head
    load_lxmert_qa: str | None  # with its answer head
    from_scratch: bool  # random weights, with the sizes and the tokenizer of the above
    llayers: int | None
    xlayers: int | None
    rlayers: int | None
    dropout: float | None
    vocab: str | None = None  # a vocab.txt, in place of the tokenizer that comes with the weights


def load_pretrained(origin: Origin) -> Pretrained:
    """The pre-trained weights; from scratch only sizes and tokenizer, with all of LXMERT `initialised`.

    Raises CheckpointError if they cannot be used, or if `origin` asks for other numbers of layers: only from
    scratch may it do so.
    """
    if original := origin.load_lxmert_qa or origin.load_lxmert:
        pretrained = read_original(original, with_head=bool(origin.load_lxmert_qa))
    else:
        layers = origin.llayers, origin.rlayers, origin.xlayers
        pretrained = read_folder(origin.pretrained, layers, weightless=bool(origin.from_scratch))
    check_complete(pretrained)
    if origin.from_scratch:
        messages = [f"initialised everything: random weights with the sizes of {pretrained.source}"]
        pretrained = pretrained._replace(
            encoder={}, answer_head=None, answers=None, initialised=("",), messages=messages
        )
    for field, _ in LAYER_LISTS.values():
        flag = field.replace("_", "")
        requested, available = getattr(origin, flag), getattr(pretrained.config, field)
        if requested is None or requested == available:
            continue
        if not origin.from_scratch:
            raise CheckpointError(
                f"--{flag} {requested} contradicts the pre-trained model, which has {available}; leave it out"
            )
        if requested < 1:
            raise CheckpointError(f"--{flag} must be at least 1, not {requested}")
        setattr(pretrained.config, field, requested)
    if origin.vocab:
        if not Path(origin.vocab).is_file():
            raise CheckpointError(f"There is no file {origin.vocab}, the vocab.txt of --vocab.")
        pretrained = pretrained._replace(tokenizer=origin.vocab)
    if origin.dropout is not None:
        pretrained.config.hidden_dropout_prob = origin.dropout
        pretrained.config.attention_probs_dropout_prob = origin.dropout
    return pretrained


def set_feature_size(pretrained: Pretrained, size: int) -> None:
    """Make the size of a region's features, `size` in the data, that of the model.

    Only where what reads them is random; else CheckpointError unless the two agree.
    """
    config = pretrained.config
    if size != config.visual_feat_dim and not "encoder.visn_fc.".startswith(pretrained.initialised):
        raise CheckpointError(
            f"{pretrained.source} reads region features of size {config.visual_feat_dim}, and those of the "
            f"data have {size}; choose the features or the pre-trained model that go together"
        )
    config.visual_feat_dim = size


def fill(module: nn.Module, tensors: dict[str, Tensor], what: str, optional: tuple[str, ...] = ()) -> None:
    """Make `tensors` the parameters of `module`, every one and nothing else.

    They are moved, not copied, so that a model is never in memory twice: `tensors` is empty afterwards, and
    `module` may be on the meta device before. CheckpointError, before anything is changed, if they do not
    match, see `check_match`; parameters that are `optional` and not among the tensors stay as they are.
    """
    check_match(module.state_dict(), tensors, what, optional)
    module.load_state_dict(tensors, strict=False, assign=True)
    tensors.clear()


def check_match(
    expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], what: str, optional: tuple[str, ...] = ()
) -> None:
    """CheckpointError unless `tensors` have the names and shapes of `expected`.

    Names that begin as `optional` says may be missing. `what` names the tensors in errors.
    """
    missing = [name for name in expected.keys() - tensors.keys() if not name.startswith(optional)]
    unexpected = tensors.keys() - expected.keys()
    if missing or unexpected:
        raise CheckpointError(
            f"{what} does not fit: missing {_shorten(missing)}; unexpected {_shorten(unexpected)}."
        )
    for name, tensor in tensors.items():
        found, needed = tuple(tensor.shape), tuple(expected[name].shape)
        if found != needed:
            raise CheckpointError(f"{what} does not fit: {name} is {found} there and {needed} in the model.")


def answer_rows(
    head: Mapping[str, Tensor],
    old_answers: Sequence[str],
    new_answers: Sequence[str],
    normalise: Callable[[str], str],
) -> tuple[dict[str, Tensor], list[str]]:
    """Make an answer head for other answers: rows are moved by answer, never by index.

    The last linear layer (rows x 2H) gets one row for each of `new_answers`: that of the same answer among
    `old_answers`, else that of the answer with the same `normalise`d spelling, else zeros. Returns the
    tensors and the answers that have zeros. The other tensors are handed on as they are.
    """
    last = {name: tensor for name, tensor in head.items() if name.startswith(LAST_LINEAR)}
    count = len(last[f"{LAST_LINEAR}.weight"])
    if len(old_answers) != count:
        raise CheckpointError(
            f"The answer head has {counted(count, 'row')} and {counted(len(old_answers), 'answer')}."
        )
    row_of = {normalise(answer): row for row, answer in reversed(list(enumerate(old_answers)))}
    row_of |= {answer: row for row, answer in enumerate(old_answers)}
    # What is not found gets the row after the last, one of zeros.
    rows = [row_of.get(answer, row_of.get(normalise(answer), count)) for answer in new_answers]
    moved = {name: torch.cat([old, torch.zeros_like(old[:1])])[rows] for name, old in last.items()}
    return {**head, **moved}, [answer for answer, row in zip(new_answers, rows, strict=True) if row == count]


def check_complete(pretrained: Pretrained) -> None:
    """CheckpointError unless its tensors are those of the models that its configuration describes."""
    config, source = pretrained.config, pretrained.source
    try:
        with torch.device("meta"):
            check_match(LxmertModel(config).state_dict(), pretrained.encoder, source, pretrained.initialised)
            if pretrained.answer_head is not None:
                head = AnswerHead(config, len(pretrained.answers))
                check_match(head.state_dict(), pretrained.answer_head, source)
    except ValueError as error:  # of a configuration that no LXMERT can have
        raise CheckpointError(f"{source}: {error}.") from None


def _shorten(names: Iterable[str], most: int = 6) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return (", ".join(ordered[:most]) + more) or "none"
