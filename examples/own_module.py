"""Nest a network of your own: train it together with sub-networks of its first blocks.

    python examples/own_module.py --steps 300

`stepwell.nest` traces the module around its stages and checks the result on random input.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import stepwell


class Residual(nn.Module):
    """A residual block of constant width, which a sub-network can leave out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(4, width), nn.GELU(), nn.Conv2d(width, width, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return x + f(x), of the shape of x."""
        return x + self.body(x)


class Mine(nn.Module):
    """A plain network of two stages of residual blocks."""

    def __init__(self, blocks: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.early = nn.Sequential(*(Residual(16) for _ in range(blocks)))
        self.down = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.late = nn.Sequential(*(Residual(32) for _ in range(blocks)))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, 10)."""
        x = self.late(self.down(self.early(self.stem(x))))
        return self.head(x.mean((2, 3)))


def main() -> None:
    """Train all depths, save them to one file and load it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", default="mine.safetensors")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1) / 16
    labels = torch.tensor(digits.target)

    net = stepwell.nest(Mine(), stages=["early", "late"], depths={"half": (2, 2)})
    objective = stepwell.EmbeddedKD(net, distill_from=0.3).train()
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
    for i in range(arguments.steps):
        objective.progress = i / arguments.steps
        chosen = torch.randint(1400, (64,))
        step = objective.training_step(stepwell.Batch(images[chosen], labels[chosen]))
        optimizer.zero_grad()
        step.loss.backward()
        optimizer.step()
    net.mark("trained")
    net.eval()
    with torch.inference_mode():
        for depth, logits in net.logits_by_depth(images[1400:]).items():
            print(f"depth {depth}: {(logits.argmax(1) == labels[1400:]).float().mean():.1%}")

    stepwell.save(net, arguments.out)
    again = stepwell.load(arguments.out, module=Mine)  # the file cannot build your module
    assert torch.equal(again(images[:4], "half"), net(images[:4], "half"))
    print(f"{arguments.out} holds depths {', '.join(again.depths)}")


if __name__ == "__main__":
    main()
