"""Embedded distillation in a training loop of your own: no recipe, no Lightning.

    python examples/own_loop.py --epochs 20

An objective gives the loss of a batch; the loop, the optimizer and the data are yours.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset, random_split

import stepwell


def train(objective: stepwell.Objective, loader: DataLoader, epochs: int, lr: float) -> None:
    """Train by momentum SGD with a cosine schedule on the objective's loss."""
    parameters = [p for p in objective.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = epochs * len(loader)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    objective.train()
    for epoch in range(epochs):
        for i, (images, labels) in enumerate(loader):
            objective.progress = (epoch * len(loader) + i) / steps  # the method reads it
            step = objective.training_step(stepwell.Batch(images, labels))
            optimizer.zero_grad()
            step.loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 5.0)
            optimizer.step()
            schedule.step()


def main() -> None:
    """Train the full ResNet-20 on handwritten digits, then let it teach depths 8 and 20."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    epochs = parser.parse_args().epochs
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1) / 16
    data = TensorDataset(images - 0.3, torch.tensor(digits.target))
    training, test = random_split(data, [1400, 397])
    loader = DataLoader(training, batch_size=64, shuffle=True, drop_last=True)

    net = stepwell.build("resnet20", ["8"], num_classes=10)
    # Phase 1: the full network learns from labels. `net.module` is an ordinary module.
    train(stepwell.Supervised(net.module), loader, epochs, lr=0.1)
    net.load_full(net.module.state_dict())  # the sub-network's norms start as the full network's
    # Phase 2: a frozen copy teaches both depths. A step computes the common prefix once.
    teacher = stepwell.Frozen(net.module)
    taught = stepwell.EmbeddedKD(net, teacher=teacher, teach_full=True, distill_from=0.0)
    train(taught, loader, max(1, epochs // 2), lr=0.05)

    net.eval()
    images, labels = test[:]
    with torch.inference_mode():
        for depth, logits in net.logits_by_depth(images).items():
            print(f"depth {depth}: {(logits.argmax(1) == labels).float().mean():.1%}")


if __name__ == "__main__":
    main()
