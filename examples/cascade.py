"""Shallow first, deeper when unsure: what a cascade of depths costs and answers.

    python examples/cascade.py --run runs/places

Needs the run of `phone_laptop_server.py` or of `stepwell train ekd --data digits`.
"""

import argparse
from pathlib import Path

import torch

import stepwell
from stepwell.data import load_images


def main() -> None:
    """Print accuracy and the share of early answers for several confidence thresholds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/places"))
    parser.add_argument("--data", default="digits")
    arguments = parser.parse_args()

    if not arguments.run.exists():
        parser.error(f"no run {arguments.run}: train one with phone_laptop_server.py")
    net = stepwell.load(arguments.run / "net.safetensors").eval()
    test = load_images(arguments.data, net.card.size).test
    mean, std = (torch.tensor(v)[:, None, None] for v in (net.card.mean, net.card.std))
    x = (test.pixels / 255 - mean) / std
    shallow = next(iter(net.depths))
    for threshold in (0.0, 0.5, 0.8, 0.95, 0.99, 1.0):
        # An image below the threshold continues at the fork of the two paths.
        cascade = stepwell.Cascade(net, {shallow: threshold})
        with torch.inference_mode():
            logits, answered = cascade(x)
        right = (logits.argmax(1) == test.labels).float().mean()
        early = (answered == 0).float().mean()
        print(f"threshold {threshold:.2f}: {right:.1%} right, {early:.0%} answered by {shallow}")


if __name__ == "__main__":
    main()
