"""`model`: a small LXMERT for data of one's own, to be trained from random weights."""

import argparse
from pathlib import Path

import torch
from transformers import LxmertConfig

from common.errors import DataError, UserError
from common.files import CHECKSUMS, replace_folder, visible
from lxmert.modeling import LxmertModel
from lxmert.sizes import MAX_TOKENS, SIZES, config_of
from lxmert.tokens import SPECIAL_PIECES, count_words, write_tokenizer
from tasks.finetune.data import MODELS, own_model
from tasks.prepare.command import Command, flag, path_flag, say, whole_number
from vqadata.dataset import split_names
from vqadata.folder import DataFolder

OURS = {"config.json", "vocab.txt", "tokenizer_config.json", CHECKSUMS}
MOST_WORDS = 30_000  # of a vocabulary, as BERT has
RATES = {"small": 1e-3, "medium": 5e-4, "base": 1e-4}  # peak learning rates from random weights
EPOCHS, BATCH = 20, 64


def run(args: argparse.Namespace) -> int:
    """Write the folder of a model without weights, and say how to train it."""
    data = DataFolder.at(args.source)
    folder = args.to or Path(own_model(data.name))
    if folder.exists() and not {path.name for path in visible(folder)} <= OURS:
        raise UserError(f"{folder} holds something else than a model of this command; name another --to.")
    words, rare = vocabulary(data, args.splits, args.occurrences)
    pieces = [*SPECIAL_PIECES, *words]
    config = config_of(SIZES[args.size], len(pieces), feature_size(data), len(data.read_answers()))
    with replace_folder(folder) as fresh:
        config.save_pretrained(fresh)
        write_tokenizer(fresh, pieces, MAX_TOKENS)
    print(describe(folder, config, rare))
    say(
        "It holds sizes and words, and no weights: training begins with random ones and changes all of them. "
        "There is nothing in them to keep frozen, so the strategy is standard:"
    )
    print(f"\n{training_command(data, folder, args.size)}")
    return 0


def vocabulary(data: DataFolder, splits: str | None, occurrences: int) -> tuple[list[str], int]:
    """The words of the questions to train on, the most frequent first, and how many are too rare to be in.

    A rare word becomes [UNK], which this way is trained too. DataError if there is nothing to train on.
    """
    names = split_names(splits) if splits else data.usual_splits()[0]
    if not names:
        raise DataError(f"Which splits of {data.path} are trained on? Name them with --train.")
    records = (record for split in data.read_splits(names).values() for record in split)
    counts = count_words(record["sent"] for record in records)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    known = [word for word in ranked[:MOST_WORDS] if counts[word] >= occurrences]
    return known, len(counts) - len(known)


def feature_size(data: DataFolder) -> int:
    """That of the data set's regions; DataError if it has none, or of several sizes."""
    sizes = {manifest["feature_size"] for manifest in data.manifests()}
    if len(sizes) != 1:
        found = f"features of the sizes {sorted(sizes)}" if sizes else "no features yet"
        raise DataError(f"{data.features} has {found}, and a model reads those of one size.")
    return sizes.pop()


def describe(folder: Path, config: LxmertConfig, rare: int) -> str:
    """What was written, in lines."""
    with torch.device("meta"):
        weights = sum(parameter.numel() for parameter in LxmertModel(config).parameters())
    left_out = f" ({rare:,} rarer words are [UNK])" if rare else ""
    return "\n".join(
        [
            f"{folder}:",
            f"  {config.l_layers} language, {config.r_layers} vision and {config.x_layers} cross layers "
            f"of width {config.hidden_size}, {weights / 1e6:.1f} million weights",
            f"  {config.vocab_size:,} word pieces{left_out}",
            f"  reads regions of size {config.visual_feat_dim:,}",
        ]
    )


def training_command(data: DataFolder, folder: Path, size: str) -> str:
    """The recipe, as a command."""
    return (
        f"    bash run/vqa_finetune.bash 0 {data.name} --dataset {data.name} \\\n"
        f"        --pretrained {folder} --fromScratch --strategy standard \\\n"
        f"        --lr {RATES[size]:g} --batch_size {BATCH} --epochs {EPOCHS}"
    )


COMMAND = Command(
    run,
    "a small LXMERT for your own data, without weights, to be trained from scratch",
    f"""\
A small LXMERT for your own data: how many layers of which width, the words of
the questions to train on, and the size of the data's region features. It has no
weights: training starts from random ones, with the command that is printed.

  bash run/vqa_prepare.bash model --size small --from data/mine

writes {MODELS}/mine/. Sizes: small, for data that fits into minutes on a
CPU; medium; base, that of the published LXMERT, which from random weights needs
far more questions than most people have.""",
    {
        "--from": path_flag("the data set, data/mine say", dest="source", required=True),
        "--size": flag("how large (small)", choices=tuple(SIZES), default="small"),
        "--to": path_flag(f"folder to write (default: {MODELS}/<name of the data set>)"),
        "--train": flag("splits whose words it knows, comma-separated (those for training)", dest="splits"),
        "--occurrences": flag(
            "times that a word must come in them to be known (2)",
            type=lambda text: whole_number(text, least=1),
            default=2,
        ),
    },
)
