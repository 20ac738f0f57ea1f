"""README.md of an export: what the hub reads at its head, and what it was trained on and how well it does."""

import re
import shlex
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from common.errors import RunError
from common.files import NAME
from common.markdown import table
from report.run import Run
from tasks.finetune.best import Best
from tasks.finetune.spec import LORA
from tasks.finetune.strategies import STRATEGIES
from vqadata.sample import parse_draw

TASK, PICTURE = "visual-question-answering", "policy.png"
LEAKAGE = """\
The released LXMERT was pre-trained on questions and answers of VQA v2 train and nominival, and VQA-CP v2 is a
new division of the same questions: a model that starts from it has seen VQA-CP v2's test questions with
answers. Its scores on VQA-CP v2 measure less than the name says."""
SCENES = """\
The embedded scenes are a small synthetic data set that illustrates the method. These are not VQA results."""
OTHER = f"If questions of VQA are among the data: {LEAKAGE[0].lower()}{LEAKAGE[1:]}"
WORTH = {"vqav2": LEAKAGE, "vqacpv2": LEAKAGE}  # what scores mean, by data set
SCORES = {  # of the metrics of an epoch: what the model card calls each, and how it writes it
    "epoch": ("epoch", "{:.0f}"),
    "train_accuracy": ("training accuracy (running)", "{:.2f} %"),
    "val_accuracy": ("validation accuracy", "{:.2f} %"),
    "gap": ("gap", "{:+.2f} points"),
    "overall": ("official VQA accuracy (validation)", "{:.2f} %"),
    "share_tuned": ("share tuned (validation)", "{:.3f}"),
}
BY_TYPE = {"val_by_answer_type": "answer type", "val_by_question_type": "question type"}
USE_PLAIN = """\
    from transformers import AutoTokenizer, LxmertForQuestionAnswering
    model = LxmertForQuestionAnswering.from_pretrained("{to}")
    tokenizer = AutoTokenizer.from_pretrained("{to}")

`model.config.id2label` names the answers. Questions are lower case, region boxes divided by the image's width
and height, visual_attention_mask 1 for regions and 0 for padding. In the repository of this project,
`bash run/vqa_test.bash 0 {version} --load {to}` evaluates it, and `--pretrained {to}` starts from it."""
USE_ADAPTIVE = """\
    bash run/vqa_test.bash 0 {version} --load {to}

in the repository of this project: transformers has no class for a model with two copies and a policy.
`pretrained/` is the frozen side, `model.safetensors` what training changed, policy included.
`bash run/vqa_finetune.bash 0 more --load {to}` trains on."""
FOLDED = "; its gates were the same for all validation questions, so what they chose is all there is here"
INTERPOLATED = "; weights are {share:g} times these and the rest pre-trained, which has other scores"
CARD = """\
---
{head}
---

# {name}: LXMERT fine-tuned for visual question answering

- data: {data}
- strategy: {strategy}
- start: {start}
- code: commit {commit}

| best epoch by validation accuracy | |
|---|---|
{scores}

The best epoch was chosen on the validation data, so its accuracy there is a little too high.

{worth}
{details}
## Use

{use}
"""


def model_card(run: Run, best: Best, to: Path, plain: bool, share: float | None, picture: bool) -> str:
    """The text of README.md in the export `to` of a run's BEST folder.

    plain: for transformers. share: of the tuned weights or None. picture: whether PICTURE lies beside it.
    """
    splits = f"trained on {run.arguments.get('train')}, validated on {run.arguments.get('valid')}"
    strategy, spec, source = STRATEGIES[best.spec.strategy], best.spec, best.pretrained_source
    random = "random weights with the sizes of " if spec.from_scratch else ""
    commit, changed = run.environment.get("commit") or "unknown", run.environment.get("dirty")
    official = best.metrics.get("val_official")
    figures = best.metrics | (official if isinstance(official, dict) else {})
    scores = [
        f"| {title} | {form.format(figures[name])} |"
        for name, (title, form) in SCORES.items()
        if isinstance(figures.get(name), int | float)
    ]
    details = [
        table([[title, "validation accuracy (%)"], *([as_text(n), f"{a:.2f}"] for n, a in parts.items())])
        for name, title in BY_TYPE.items()
        if (parts := best.metrics.get(name))
    ]
    details += [f"![Share of validation questions that ran the tuned copy]({PICTURE})"] * picture
    version = run.name if NAME.fullmatch(run.name) else "exported"
    return CARD.format(
        head=card_head(run, best, plain, measured=share is None),
        name=as_text(run.name),
        data=f"{best.dataset}, {splits}, {len(best.answers):,} answers",
        strategy=spec.title
        + (", frozen weights in bf16" if spec.frozen_dtype == "bf16" else "")
        + (FOLDED if strategy.adaptive and plain else "")
        + (INTERPOLATED.format(share=share) if share is not None else ""),
        start=f"{random}`{public_name(source)}` (sha256 `{best.pretrained_sha256}`)",
        commit=f"`{commit}`" + (" with uncommitted changes" if changed else ""),
        scores="\n".join(scores),
        worth=SCENES if parse_draw(best.dataset) else WORTH.get(best.dataset, OTHER),
        details="".join(f"\n{block}\n" for block in details),
        use=(USE_PLAIN if plain else USE_ADAPTIVE).format(to=shlex.quote(to.resolve().name), version=version),
    )


def card_head(run: Run, best: Best, plain: bool, measured: bool) -> str:
    """The YAML at the head of a card; measured: the scores are those of these very weights."""
    spec, source, accuracy = best.spec, best.pretrained_source, best.metrics.get("val_accuracy")
    result = EvalResult(
        *(TASK, best.dataset, best.dataset, "accuracy", accuracy and round(accuracy, 2)),
        dataset_split=run.arguments.get("valid"),
        metric_name="validation accuracy (soft target)",
    )
    return ModelCardData(
        library_name="transformers" if plain else "lxmert-spottune",
        pipeline_tag=TASK,
        tags=["lxmert", spec.strategy, *(["lora"] if spec.tuned == LORA else [])],
        base_model=None if spec.from_scratch or Path(source).exists() else source,
        metrics=["accuracy"],
        **({"model_name": run.name, "eval_results": [result]} if accuracy and measured else {}),
    ).to_yaml()


def draw_policy_of(run: Run, best: Best, file: Path) -> bool:
    """Draw what the policy of a run chose in its best epoch; whether that is known."""
    try:
        usage, share = run.usage, run.usage["val"][best.metrics["epoch"] - 1]
    except (RunError, LookupError):
        return False
    from report.policy_plot import draw_policy  # the drawing library takes a second to load

    title = f"{best.spec.title} on {best.dataset}, epoch {best.metrics['epoch']}: validation"
    draw_policy(usage, share, title, file)
    return True


def public_name(source: str) -> str:
    """What strangers may know a pre-trained model by: its hub id, or the name of its folder."""
    return Path(source).name if Path(source).exists() else source


def as_text(name: str) -> str:
    """A name from outside as text of one line of Markdown."""
    return re.sub(r"([\\`*\[\]<>#|])", r"\\\1", " ".join(name.split()))
