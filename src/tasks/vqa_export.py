"""Make a fine-tuned model portable: everything it needs in one folder.

    python src/tasks/vqa_export.py --run snap/vqa/<version> --to DIR

- standard and Frozen: DIR is a model of transformers, `LxmertForQuestionAnswering.from_pretrained(DIR)`, with
  the answers as its label map and a tokenizer;
- adaptive strategies, which transformers does not know: DIR is a BEST folder with the pre-trained model in
  it, `bash run/vqa_test.bash <gpu> <version> --load DIR`.

README.md in it says what it was trained on, how well it does and what its scores are worth.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

if __name__ == "__main__":  # as a script it is not in a package: make it one
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from lxmert.export import write_encoder, write_question_answering
from lxmert.files import CheckpointError, sha256_of
from lxmert.units import GRANULARITIES
from tasks.vqa_checkpoint import INSIDE, Best, BestError, load_best, read_best, weights_behind
from tasks.vqa_model import ModelError, VqaModel, build
from training.checkpoint import open_aside, swap_in, whole_folder

LEAKAGE = """\
The released LXMERT was pre-trained on questions and answers of VQA v2 train and nominival, and VQA-CP v2 is a
new division of the same questions: a model that starts from it has seen VQA-CP v2's test questions with
answers. Its scores on VQA-CP v2 measure less than the name says."""
SCENES = """\
The embedded scenes are a small synthetic data set that illustrates the method. These are not VQA results."""
USE_PLAIN = """\
    from transformers import AutoTokenizer, LxmertForQuestionAnswering
    model = LxmertForQuestionAnswering.from_pretrained("{to}")
    tokenizer = AutoTokenizer.from_pretrained("{to}")

`model.config.id2label` names the answers. Questions are lower case, region boxes divided by the image's width
and height, visual_attention_mask 1 for regions and 0 for padding."""
USE_ADAPTIVE = """\
    bash run/vqa_test.bash 0 {version} --load {to}

in the repository of this project: transformers has no class for a model with two copies and a policy.
`pretrained/` is the frozen side, `model.safetensors` what training changed, policy included."""


def export(run: Path, to: Path) -> None:
    """Write the best epoch of a run folder to the new folder `to`, whole or not at all.

    BestError or CheckpointError if the run, or the pre-trained file it started from, cannot be used.
    """
    if to.exists():
        raise BestError(f"{to} exists already; name a new folder, or delete it.")
    best = read_best(whole_folder(run / "BEST") or run / "BEST")
    weights = weights_behind(best)
    model, _, _ = build(best.spec, weights, best.answers)
    load_best(best, model, weights)
    fresh = open_aside(to)
    vqa = model.model
    if best.spec.strategy in GRANULARITIES:
        write_encoder(fresh / INSIDE, weights.config, frozen_side(vqa), weights.tokenizer)
        _copy_best(best, fresh)
    else:
        tensors = vqa.state_dict()
        write_question_answering(fresh, weights.config, tensors, best.answers, weights.tokenizer)
    (fresh / "README.md").write_text(model_card(run, best, to), encoding="utf-8")
    swap_in(to)


def frozen_side(model: VqaModel) -> dict[str, Tensor]:
    """The encoder with the frozen copy of every pair, under the names of LxmertModel."""
    tensors = model.lxmert.state_dict()
    return {name.replace(".frozen.", "."): t for name, t in tensors.items() if ".tuned." not in name}


def model_card(run: Path, best: Best, to: Path) -> str:
    """README.md of an exported model: data, strategy, scores, origin, and what the scores are worth."""
    environment = _read(run / "env.json")
    commit = environment.get("commit") or "unknown"
    changed = " with uncommitted changes" if environment.get("dirty") else ""
    spec = best.spec
    start = "random weights" if spec.from_scratch else f"`{best.pretrained_source}`"
    scores = [
        ("epoch", f"{best.metrics['epoch']:.0f}"),
        ("training accuracy (running)", f"{best.metrics['train_accuracy']:.2f} %"),
        ("validation accuracy", f"{best.metrics['val_accuracy']:.2f} %"),
        ("gap", f"{best.metrics['gap']:+.2f} points"),
    ]
    if "share_tuned" in best.metrics:
        scores.append(("share tuned (validation)", f"{best.metrics['share_tuned']:.3f}"))
    arguments = _read(run / "args.json")
    splits = f", trained on {arguments['train']}, validated on {arguments['valid']}" if arguments else ""
    use = USE_ADAPTIVE if spec.strategy in GRANULARITIES else USE_PLAIN
    notes = SCENES if best.dataset == "scenes" else LEAKAGE
    return "\n".join(
        [
            f"# {run.resolve().name}: LXMERT fine-tuned for visual question answering",
            "",
            f"- data: {best.dataset}{splits}, {len(best.answers):,} answers",
            f"- strategy: {spec.strategy}",
            f"- start: {start} (sha256 `{best.pretrained_sha256}`)",
            f"- code: commit `{commit}`{changed}",
            "",
            "| best epoch by validation accuracy | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in scores),
            "",
            "The best epoch was chosen on the validation data, so its accuracy there is a little too high.",
            "",
            notes,
            "",
            "## Use",
            "",
            use.format(to=to, version=run.resolve().name),
            "",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Write the best epoch of a run as one folder that needs nothing else.", allow_abbrev=False
    )
    parser.add_argument("--run", type=Path, required=True, help="a run folder, snap/vqa/<version>")
    parser.add_argument("--to", type=Path, required=True, help="the folder to write; must not exist")
    options = parser.parse_args(arguments)
    try:
        export(options.run, options.to)
    except (BestError, CheckpointError, ModelError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename or options.to}: {error.strerror or error}", file=sys.stderr)
        return 2
    print(f"wrote {options.to}; see {options.to / 'README.md'}")
    return 0


def _copy_best(best: Best, folder: Path) -> None:
    """The files of a BEST folder, told that the pre-trained model is now inside."""
    for name in ("model.safetensors", "answers.json"):
        shutil.copyfile(best.folder / name, folder / name)
    description = _read(best.folder / "model.json")
    no_origin = {"pretrained": INSIDE, "load_lxmert": None, "load_lxmert_qa": None}
    description["spec"] = dataclasses.asdict(dataclasses.replace(best.spec, **no_origin))
    sha256 = sha256_of(folder / INSIDE / "model.safetensors")
    description["pretrained"] = {"source": best.pretrained_source, "sha256": sha256}
    (folder / "model.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


def _read(file: Path) -> dict[str, Any]:
    """A JSON file; nothing if it is not there."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


if __name__ == "__main__":
    sys.exit(main())
