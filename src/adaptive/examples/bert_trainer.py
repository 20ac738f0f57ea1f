"""A small BERT on sentences that this script makes, with transformers' Trainer, offline in under a minute.

    PYTHONPATH=src python src/adaptive/examples/bert_trainer.py

A sentence is true if a certain word is in it; with a "not" in second place, if it is not. BERT is pre-trained
without "not", then tuned on both, so that examples may want different copies.
"""

import tempfile
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from adaptive import AdaptiveConfig, get_adaptive_model, load_adaptive

WORDS, LENGTH, NOT, WORD, FIRST_WORD = 24, 10, 2, 3, 4


class Sentences(Dataset):
    """n sentences; a share of them has a "not" and the other rule."""

    def __init__(self, n: int, share: float, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(FIRST_WORD, WORDS, (n, LENGTH), generator=draw)
        self.ids[self.ids == WORD] += 1
        has = torch.rand(n, generator=draw) < 0.5
        place = torch.randint(2, LENGTH, (n,), generator=draw)
        self.ids[has, place[has]] = WORD
        self.inverted = torch.rand(n, generator=draw) < share
        self.ids[self.inverted, 1] = NOT
        self.labels = (has ^ self.inverted).long()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = self.ids[index]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": self.labels[index]}


def small_bert() -> BertForSequenceClassification:
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForSequenceClassification(config)


def arguments(folder: str, epochs: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        num_train_epochs=epochs,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=256,
        learning_rate=1e-3,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
    )


def accuracy(trainer: Trainer, data: Sentences) -> float:
    predicted = trainer.predict(data).predictions.argmax(-1)
    return float((predicted == data.labels.numpy()).mean())


def main(epochs: int = 4, examples: int = 3072) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        model = small_bert()
        before = Trainer(model, arguments(folder, epochs), train_dataset=Sentences(examples, 0.0, 1))
        before.train()
        base = {name: value.clone() for name, value in model.state_dict().items()}

        # What makes it adaptive: a line. The rest is the Trainer as ever.
        model = get_adaptive_model(model, AdaptiveConfig(target="encoder.layer.*", target_share=0.5))
        print(model.adaptive.report)
        trainer = Trainer(model, arguments(folder, epochs), train_dataset=Sentences(examples, 0.5, 2))
        trainer.train()

        test = Sentences(1024, 0.5, 3)
        result = {"accuracy": accuracy(trainer, test)}
        gates = model.adaptive.gates_of(
            model, {"input_ids": test.ids, "attention_mask": torch.ones_like(test.ids)}
        )
        result["share tuned with not"] = float(gates[test.inverted].mean())
        result["share tuned without"] = float(gates[~test.inverted].mean())
        print(", ".join(f"{name} {value:.3f}" for name, value in result.items()))

        model.save_adaptive(Path(folder) / "saved")
        fresh = small_bert()
        fresh.load_state_dict(base)
        again = load_adaptive(fresh, Path(folder) / "saved").eval()
        inputs = {"input_ids": test.ids, "attention_mask": torch.ones_like(test.ids)}
        with torch.no_grad():
            same = torch.equal(again(**inputs).logits, model.eval()(**inputs).logits)
        print(f"saved and loaded: {'the same to the bit' if same else 'different'}")
        result["same"] = float(same)
    return result


if __name__ == "__main__":
    main()
