"""What a user should know before a run trains: what stays random, and what its vocabulary does not know."""

from collections.abc import Iterator, Sequence

from transformers import PreTrainedTokenizerBase

from common.errors import UserError
from lxmert.loading import Pretrained
from lxmert.tokens import unknown_words
from lxmert.units import LAYER_LISTS
from tasks.finetune.spec import LORA, ModelSpec
from tasks.finetune.strategies import STRATEGIES
from vqadata.dataset import VqaDataset, split_names
from vqadata.folder import DataFolder

LEAST_SHARE = 0.001  # of unknown word pieces, from which it is worth a look at the questions
COMMONEST = 5
LAYERS = {f"{stream} layers": f"encoder.{part}." for stream, (_, part) in LAYER_LISTS.items()}
EMBEDDINGS = {"word embeddings": "embeddings.", "region embeddings": "encoder.visn_fc."}


def training_notes(
    spec: ModelSpec,
    weights: Pretrained,
    tokenizer: PreTrainedTokenizerBase,
    dataset: VqaDataset,
    folder: DataFolder,
    splits: str,
) -> list[str]:
    """The notes below, on a model and on the questions of these splits that it trains on."""
    return [*random_notes(spec, weights), *vocabulary_notes(tokenizer, dataset, folder, splits)]


def random_notes(spec: ModelSpec, weights: Pretrained) -> Iterator[str]:
    """A warning if weights stay, in part or in one of two copies, what they were drawn as."""
    strategy = STRATEGIES[spec.strategy]
    kept = LAYERS if strategy.keeps or strategy.adaptive or spec.tuned == LORA or spec.tune else {}
    kept = kept | (EMBEDDINGS if spec.embeddings == "frozen" else {})
    random = weights.initialised  # how names of tensors begin that no file gave
    if drawn := [name for name, start in kept.items() if start.startswith(random)]:
        yield (
            f"warning: what is frozen here was never trained: {', '.join(drawn)} start from random weights, "
            f"and {spec.title} keeps such weights frozen; --strategy standard trains them all"
        )


def vocabulary_notes(
    tokenizer: PreTrainedTokenizerBase, dataset: VqaDataset, folder: DataFolder, splits: str
) -> Iterator[str]:
    """The share of word pieces of training questions that the vocabulary does not know, if there are any.

    Where they are not quite rare, the words that they stand for most often are named; for that the questions
    are read once more.
    """
    unknown = int((dataset.token_ids == tokenizer.unk_token_id).sum())
    pieces = int(dataset.token_lengths.sum()) - 2 * len(dataset)  # without [CLS] and [SEP]
    if not unknown:
        return
    share = unknown / pieces
    text = f"unknown word pieces in the training questions: {unknown:,} of {pieces:,} ({share:.2%})"
    if share >= LEAST_SHARE:
        words = unknown_words(tokenizer, _texts(dataset, folder, split_names(splits)))
        text += ", most often " + ", ".join(f"{word} ({n:,})" for word, n in words.most_common(COMMONEST))
    yield text


def _texts(dataset: VqaDataset, folder: DataFolder, splits: Sequence[str]) -> Iterator[str]:
    asked = set(dataset.question_ids.tolist())
    try:
        for records in folder.read_splits(splits).values():
            yield from (record["sent"] for record in records if record["question_id"] in asked)
    except UserError:  # replaced meanwhile: whoever needs the file says so
        return
