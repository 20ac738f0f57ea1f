"""A small ViT on images that this script draws, in a loop with accelerate, offline in under a minute.

    PYTHONPATH=src python src/adaptive/examples/vit_accelerate.py

Which of four quarters is brightest; the images to tune on are in part negatives, in which it is the darkest.
The tuned copies are low-rank updates.
"""

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset
from transformers import ViTConfig, ViTForImageClassification

from adaptive import AdaptiveConfig, get_adaptive_model


def images(n: int, share: float, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images (n, 1, 16, 16), the quarter (n,) that stands out, and which are negatives (n,)."""
    draw = torch.Generator().manual_seed(seed)
    label = torch.randint(4, (n,), generator=draw)
    pixels = 0.3 * torch.randn(n, 1, 2, 8, 2, 8, generator=draw)
    pixels[torch.arange(n), 0, label // 2, :, label % 2] += 0.5
    pixels = pixels.reshape(n, 1, 16, 16) + 0.5
    negative = torch.rand(n, generator=draw) < share
    pixels[negative] = -pixels[negative]
    return pixels, label, negative


def train(model: torch.nn.Module, share: float, epochs: int, examples: int) -> torch.nn.Module:
    accelerator = Accelerator(cpu=True)
    pixels, labels, _ = images(examples, share, seed=1)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=2e-3)
    loader = DataLoader(TensorDataset(pixels, labels), batch_size=64, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    model.train()
    for _ in range(epochs):
        for batch, target in loader:
            loss = model(pixel_values=batch, labels=target).loss
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
    return accelerator.unwrap_model(model)


@torch.no_grad()
def accuracy(model: torch.nn.Module, share: float) -> float:
    pixels, labels, _ = images(1024, share, seed=2)
    return float((model.eval()(pixel_values=pixels).logits.argmax(-1) == labels).float().mean())


def main(epochs: int = 4, examples: int = 2048) -> dict[str, float]:
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=16,
        patch_size=4,
        num_channels=1,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        num_labels=4,
    )
    model = train(ViTForImageClassification(config), 0.0, epochs, examples)
    result = {"before tuning": accuracy(model, 0.5)}
    model = get_adaptive_model(model, AdaptiveConfig(target="layers.*", tuned="lora", rank=8))
    print(model.adaptive.report)
    model = train(model, 0.5, epochs, examples)
    result["after"] = accuracy(model, 0.5)
    pixels, _, negative = images(1024, 0.5, seed=2)
    gates = model.adaptive.gates_of(model, {"pixel_values": pixels})
    result["share tuned of negatives"] = float(gates[negative].mean())
    result["share tuned of the others"] = float(gates[~negative].mean())
    print(", ".join(f"{name} {value:.3f}" for name, value in result.items()))
    return result


if __name__ == "__main__":
    main()
