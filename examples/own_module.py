"""Nest a network of your own: sub-nets of its first blocks, trained together.

    python examples/own_module.py --steps 300

`stepwell.nest` reads the module as a path around its stages and checks itself on a random input.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import stepwell


class Residual(nn.Module):
    """x + f(x) at constant width: a block that a sub-net can leave out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(4, width), nn.GELU(), nn.Conv2d(width, width, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        return x + self.body(x)


class Mine(nn.Module):
    """Two stages of residual blocks, the way one would write it."""

    def __init__(self, blocks: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.early = nn.Sequential(*(Residual(16) for _ in range(blocks)))
        self.down = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.late = nn.Sequential(*(Residual(32) for _ in range(blocks)))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, 10)."""
        x = self.late(self.down(self.early(self.stem(x))))
        return self.head(x.mean((2, 3)))


def main() -> None:
    """Train all depths for some steps, and read them back from one file."""
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
    again = stepwell.load(arguments.out, module=Mine)  # the file cannot make your module: you do
    assert torch.equal(again(images[:4], "half"), net(images[:4], "half"))
    print(f"{arguments.out} holds depths {', '.join(again.depths)}")


if __name__ == "__main__":
    main()
