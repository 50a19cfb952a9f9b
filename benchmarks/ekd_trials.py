"""Trials of the core's settings, on validation images.

`python -m benchmarks.ekd_trials DATA OUT --seeds 100 101 --trials 'labels*' default`: DATA holds train/
and, as test/, the images to choose by, on which no arm of a study trains or tests. ResNet-32 > 20 > 14
> 8 at 16 pixels, bf16. Each seed trains the full network once, and every trial starts from it.
OUT/trials.jsonl gets one line for each trial, and the same command continues.
"""

import argparse
import json
import os
import time
from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.functional import cross_entropy

from stepwell.data import Augment, Batches, load_images
from stepwell.evaluation import Tally, gather_logits
from stepwell.evaluation.calibration import best_temperature
from stepwell.methods import Distill, EmbeddedKD, Supervised
from stepwell.methods.objective import Objective
from stepwell.nets import NestedNet, build
from stepwell.teachers import Frozen
from stepwell.training import Loop, Run, fit, sgd

BLOCKS = {"8": "1,1,1", "14": "2,2,2", "20": "3,3,3"}
SIZE, EPOCHS, BATCH = 16, 40, 128


class Trial(NamedTuple):
    """Settings of the second phase.

    options: of `EmbeddedKD`.
    frozen: a copy of the trained full net teaches.
    fresh: the nested network starts from random weights.
    lr: highest learning rate; the first phase has 0.1.
    """

    options: Mapping[str, Any]
    frozen: bool = False
    fresh: bool = False
    lr: float = 0.05
    epochs: int = 38


LABELS: dict[str, Any] = {"kl": 0.0, "attention": 0.0}
AVERAGE: dict[str, Any] = {"ema_teacher": 0.99, "teach_full": True, "attention": 0.0}
SLOW: dict[str, Any] = AVERAGE | {"ema_teacher": 0.999}
COPY: dict[str, Any] = {"teach_full": True, "attention": 0.0}

TRIALS = {
    "default": Trial(AVERAGE | {"attention": 2.0}),
    "labels, full 1": Trial(LABELS),
    "labels, full 3": Trial(LABELS | {"full_weight": 3.0}),
    "labels, full 4": Trial(LABELS | {"full_weight": 4.0}),
    "slow, full 4": Trial(SLOW | {"full_weight": 4.0}),
    "average, full 4": Trial(AVERAGE | {"full_weight": 4.0}),
    "average, full 3": Trial(AVERAGE | {"full_weight": 3.0}),
    "average, full 3, 8 twice": Trial(AVERAGE | {"full_weight": 3.0, "weights": {"8": 2.0}}),
    "average, full 3, subs only": Trial(AVERAGE | {"full_weight": 3.0, "teach_full": False}),
    "average, full 3, kl 2": Trial(AVERAGE | {"full_weight": 3.0, "kl": 2.0}),
    "average, full 3, smooth": Trial(AVERAGE | {"full_weight": 3.0, "label_smoothing": 0.1}),
    "average, full 3, fast": Trial(AVERAGE | {"full_weight": 3.0}, lr=0.1),
    "frozen, full 3": Trial(COPY | {"full_weight": 3.0}, frozen=True),
    "frozen, full 3, fast": Trial(COPY | {"full_weight": 3.0}, frozen=True, lr=0.1),
    "frozen, full 3, fresh": Trial(COPY | {"full_weight": 3.0}, frozen=True, fresh=True, lr=0.1),
}


def main() -> None:
    """Run the trials named for each seed, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[100])
    parser.add_argument("--trials", nargs="+", default=["*"], help="patterns of names")
    arguments = parser.parse_args()
    os.environ["STEPWELL_QUIET"] = "1"
    splits = load_images(arguments.data, SIZE)
    mean, std = splits.train.statistics()
    train = Batches(
        splits.train, BATCH, mean=mean, std=std, augment=Augment(pad=2, flip=True), shuffle=True
    )
    judge = Batches(splits.test, 500, mean=mean, std=std)
    names = [name for name in TRIALS if any(fnmatchcase(name, pattern) for pattern in arguments.trials)]
    for seed in arguments.seeds:
        bench = Bench(arguments.out, seed, train.reseeded(seed), judge)
        full = bench.full_net()
        for name in names:
            bench.nested(name, TRIALS[name], full)
        for depth in ("32", "20", "14", "8"):
            if any(fnmatchcase(f"offline {depth}", pattern) for pattern in arguments.trials):
                bench.offline(depth, full)


class Bench:
    """One seed: its folder, its batches, and what was measured already."""

    def __init__(self, out: Path, seed: int, train: Batches, judge: Batches) -> None:
        self.out, self.seed, self.train, self.judge = out, seed, train, judge
        self.record = out / "trials.jsonl"

    def full_net(self) -> NestedNet:
        """The full network, trained alone."""
        torch.manual_seed(self.seed)
        net = build("resnet32", num_classes=10)
        self._run("full alone", net, Supervised(net.module), 0.1, EPOCHS)
        return net

    def nested(self, name: str, trial: Trial, full: NestedNet) -> None:
        """One trial's second phase."""
        torch.manual_seed(self.seed + 1000)
        depths = [f"{name}={blocks}" for name, blocks in BLOCKS.items()]
        net = build("resnet32", depths, num_classes=10)
        if not trial.fresh:
            net.load_full(full.module.state_dict())
        teacher = Frozen(full.module) if trial.frozen else None
        objective = EmbeddedKD(net, distill_from=0.0, teacher=teacher, **trial.options)
        self._run(name, net, objective, trial.lr, trial.epochs)

    def offline(self, depth: str, full: NestedNet) -> None:
        """Distillation of the full network into a network of one depth, from random weights."""
        torch.manual_seed(self.seed + 2000)
        net = build(f"resnet{depth}", num_classes=10)
        self._run(f"offline {depth}", net, Distill(net.module, Frozen(full.module)), 0.1, EPOCHS)

    def _run(self, name: str, net: NestedNet, objective: Objective, lr: float, epochs: int) -> None:
        folder = self.out / f"{name.replace(' ', '-').replace(',', '')}-{self.seed}"
        start = time.process_time()
        with Run.start(folder, "trial", {"name": name, "seed": self.seed}, data={}) as run:
            fit(
                objective, self.train, sgd(lr), run, phase="t", epochs=epochs,
                loop=Loop(device="cpu", precision="bf16"),
            )  # fmt: skip
        seconds = time.process_time() - start
        if self._known(name):
            return
        net.eval()
        predict = net.logits_by_depth if len(net.depths) > 1 else partial(_alone, net)
        line = {"trial": name, "seed": self.seed, "seconds": round(seconds, 1)}
        with torch.no_grad():
            logits, labels = gather_logits(predict, self.judge)
        measures = Tally().add(logits, labels).measures() | tempered(logits, labels)
        line |= {k: round(v, 4) for k, v in measures.items()}
        with self.record.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _known(self, name: str) -> bool:
        if not self.record.exists():
            return False
        lines = map(json.loads, self.record.read_text().splitlines())
        return any((line["trial"], line["seed"]) == (name, self.seed) for line in lines)


def tempered(logits: Mapping[str, torch.Tensor], labels: torch.Tensor) -> dict[str, float]:
    """By depth the temperature that fits every second image, and the NLL of the others with it."""
    measures = {}
    for depth, y in logits.items():
        temperature = best_temperature(y[::2].float(), labels[::2])
        nll = cross_entropy(y[1::2].float() / temperature, labels[1::2])
        measures |= {f"{depth}/temperature": temperature, f"{depth}/tempered_nll": nll.item()}
    return measures


def _alone(net: NestedNet, images: torch.Tensor) -> dict[str, torch.Tensor]:
    return {net.full: net(images)}


if __name__ == "__main__":
    main()
