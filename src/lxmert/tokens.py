"""Questions to word pieces, once for a whole data set."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm
from transformers import BertTokenizer, PreTrainedTokenizerBase

from common.errors import CheckpointError
from common.files import read_text, write_json
from lxmert.sources import TOKENIZER_FILES, VOCABULARY_FILES, local_folder

SPECIAL_PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PROBE = "Isn't the café's 2nd TABLE left-of 12 unaffable übergroße dogs ?"
BATCH = 10_000
MANY = 50_000  # below it encoding takes less than a second or two: no progress bar


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The word piece tokenizer of a folder (vocab.txt or tokenizer.json), of a hub id, or of a vocab.txt.

    Raises CheckpointError if there is none, if it is damaged, or if it is not BERT's uncased kind.
    """
    if Path(source).is_file():
        tokenizer = tokenizer_of_vocabulary(Path(source))
        _check_vocabulary(tokenizer, source)
        return tokenizer
    try:
        folder = local_folder(source, TOKENIZER_FILES)
    except CheckpointError as error:
        raise CheckpointError(
            f"There are no word pieces: {error} Its {VOCABULARY_FILES[0]} is enough: put it beside the "
            "weights, or name it with --vocab FILE."
        ) from None
    # Without this check transformers makes a tokenizer of five special tokens and says nothing.
    if not any((folder / name).is_file() for name in VOCABULARY_FILES):
        raise CheckpointError(
            f"{source} has no tokenizer: it holds neither {' nor '.join(VOCABULARY_FILES)}."
        )
    try:
        tokenizer = BertTokenizer.from_pretrained(folder)
    except Exception as error:  # the tokenizers library raises bare Exception for a damaged file
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(f"The tokenizer in {source} cannot be read ({reason}).") from None
    _check_vocabulary(tokenizer, source)
    return tokenizer


def tokenizer_of_vocabulary(file: Path) -> PreTrainedTokenizerBase:
    """BERT's uncased tokenizer with the word pieces of a file, one per line, in the order of their ids."""
    pieces = read_text(file, CheckpointError).splitlines()
    return BertTokenizer(vocab={piece.strip(): number for number, piece in enumerate(pieces)})


def encode(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[str], max_length: int = 20
) -> tuple[np.ndarray, np.ndarray]:
    """All N questions as ids (N, longest) and lengths (N,), in word pieces.

    Each row is [CLS], the question and [SEP], cut to `max_length` with both kept, then [PAD] to the longest
    row. Ids are uint16 where the vocabulary fits, otherwise uint32.
    """
    dtype = np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32
    ids = np.full((len(questions), max_length), tokenizer.pad_token_id, dtype)
    lengths = np.zeros(len(questions), np.int64)
    with tqdm(
        total=len(questions), desc="word pieces", unit=" questions", disable=len(questions) <= MANY
    ) as bar:
        for start in range(0, len(questions), BATCH):
            batch = list(questions[start : start + BATCH])
            rows = tokenizer(
                batch,
                truncation=True,
                max_length=max_length,
                return_attention_mask=False,
                return_token_type_ids=False,
            )["input_ids"]
            counts = np.fromiter(map(len, rows), np.int64, len(rows))
            lengths[start : start + len(rows)] = counts
            # A boolean mask selects row by row, so the pieces of all rows fit end to end.
            places = np.arange(max_length) < counts[:, None]
            ids[start : start + len(rows)][places] = np.fromiter(
                (piece for row in rows for piece in row), dtype, counts.sum()
            )
            bar.update(len(rows))
    return ids[:, : lengths.max(initial=0)].copy(), lengths


def count_words(questions: Iterable[str]) -> Counter[str]:
    """How often each word comes, as BERT's tokenizer splits: lower case, no accents, marks by themselves."""
    splitter = BertTokenizer(vocab={piece: n for n, piece in enumerate(SPECIAL_PIECES)}).backend_tokenizer
    return Counter(
        word
        for question in questions
        for word, _ in splitter.pre_tokenizer.pre_tokenize_str(splitter.normalizer.normalize_str(question))
    )


def unknown_words(tokenizer: PreTrainedTokenizerBase, questions: Iterable[str]) -> Counter[str]:
    """How often each word comes that the vocabulary cannot spell: a model reads [UNK] in its place."""
    unknown = tokenizer.unk_token
    counts = count_words(questions)
    return Counter({word: n for word, n in counts.items() if unknown in tokenizer.tokenize(word)})


def write_tokenizer(folder: Path, vocabulary: Sequence[str], max_tokens: int) -> None:
    """Write what `load_tokenizer` reads: word pieces in the order of their ids, the special ones first."""
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": max_tokens}
    write_json(folder / "tokenizer_config.json", settings)


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of the vocabulary and of how a sentence is split: what a tokenizer does, wherever it lies."""
    pieces = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    function = [pieces, tokenizer.tokenize(PROBE), encode(tokenizer, [PROBE])[0].tolist()]
    return hashlib.sha256(json.dumps(function).encode()).hexdigest()


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    vocabulary = tokenizer.get_vocab()
    # transformers appends special pieces that a file lacks, with ids no embedding row stands for.
    known = {piece for piece, index in vocabulary.items() if index < tokenizer.vocab_size}
    missing = [piece for piece in ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if piece not in known]
    if missing:
        raise CheckpointError(f"The vocabulary of {source} lacks {', '.join(missing)}; LXMERT needs BERT's.")
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
        raise CheckpointError(f"The vocabulary of {source} is damaged: it names a piece twice or skips one.")
    if tokenizer.tokenize("A") != tokenizer.tokenize("a"):
        raise CheckpointError(
            f"The tokenizer of {source} keeps upper case; LXMERT was trained on lower case."
        )
