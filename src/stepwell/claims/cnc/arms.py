"""The arms of the study of complex networks: pictures and statistics on the same networks."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from stepwell.claims.cnc.rivals import (
    Features,
    colour_kernel,
    isomorphism_network,
    numbers_of,
)
from stepwell.claims.kit.measuring import Clock
from stepwell.data import load_images
from stepwell.data.groups import set_aside
from stepwell.data.pictures import store
from stepwell.data.pictures.flags import Pictures
from stepwell.data.pictures.generate import (
    Generator,
    barabasi_albert,
    rewired,
    watts_strogatz,
    without_edges,
    write_networks,
)
from stepwell.data.pictures.network import Network, edge_list, parse_network, read_network
from stepwell.data.pictures.picture import draw
from stepwell.flags import call
from stepwell.measure.networks import channel_sums, explain, regression
from stepwell.nets import NestedNet
from stepwell.nets.files.nested import load
from stepwell.nets.predictions import normalised
from stepwell.recipes.cnc import cnc
from stepwell.tasks.networks import check_networks

#: The pilot's tasks: the paper's, two whose classes have equal degrees, and near rewiring rates.
TASKS: Mapping[str, Callable[[int], dict[str, Generator]]] = {
    "ba-ws": lambda n: {"ba": barabasi_albert(n, 4), "ws": watts_strogatz(n, 8, 0.1)},
    "ws-null": lambda n: {"ws": watts_strogatz(n, 8, 0.1), "null": rewired(watts_strogatz(n, 8, 0.1))},
    "ba-null": lambda n: {"ba": barabasi_albert(n, 4), "null": rewired(barabasi_albert(n, 4))},
    "ws-ws": lambda n: {"0.1": watts_strogatz(n, 8, 0.1), "0.2": watts_strogatz(n, 8, 0.2)},
}


def pictures(
    *, out: Path, data: str, nodes: int, train: int, test: int, epochs: int, field_epochs: int,
    repeats: int = 30, seed: int = 0, tasks: Sequence[str] = tuple(TASKS), fields: bool = True,
    changed: bool = False,
    **drawing: Any,
) -> dict[str, Any]:  # fmt: skip
    """A CNN on pictures, on every task and on the real fields of `data`, whose classes it draws alike.

    Args:
        train, test: networks of each class. epochs, field_epochs: passes on generated and real ones.
        changed: also test the CNN of ba-ws on other sizes, densities and relabelled
            copies, and delete salient nodes. repeats: networks of each such test.
        drawing: flags of `train cnc`.
    """
    clock, measures = Clock(), dict[str, float]()
    how: dict[str, Any] = {"seed": seed, "val_fraction": 0.0, "net": "cnc_wide"} | drawing
    for task in tasks:
        with _networks(out / task, TASKS[task](nodes), train, test, seed) as folder:
            run = out / f"{task} run"
            results = call(cnc, data=str(folder), out=run, epochs=epochs, **how)
            measures |= _rates(task, results["test"], results["rows"])
            if changed:
                with clock.paused():
                    net = load(run / "net.safetensors").eval()
                    measures |= _deleted(task, net, folder, seed)
                    if task == "ba-ws":
                        measures |= _changed(net, nodes, repeats, seed)
            shutil.rmtree(run)
    if fields:
        with clock.paused(), _fields(out / "fields", Path(data), seed) as folder:
            results = call(
                cnc, data=str(folder), out=out / "fields run", epochs=field_epochs, balance=True, **how
            )
            measures |= _rates("fields", results["test"], results["rows"])
            if changed:
                net = load(out / "fields run" / "net.safetensors").eval()
                measures |= _copied(net, folder, 2 * repeats, seed)
            shutil.rmtree(out / "fields run")
    return _result(measures, clock)


def statistics(
    *, out: Path, data: str, nodes: int, train: int, test: int, features: Features, seed: int = 0
) -> dict[str, Any]:  # fmt: skip
    """Logistic regression on statistics of the network, without a picture."""

    def rates(folder: Path) -> dict[str, float]:
        train_part, test_part, *labels = _read_parts(folder)
        tables = (
            np.array([numbers_of(network, features) for network in part])
            for part in (train_part, test_part)
        )
        return regression(*tables, *labels, balanced=True)

    return _everywhere(rates, out, data, nodes, train, test, seed)


def graph_kernel(
    *, out: Path, data: str, nodes: int, train: int, test: int, seed: int = 0
) -> dict[str, Any]:
    """A support vector machine on the Weisfeiler-Lehman subtree kernel, without a picture."""

    def rates(folder: Path) -> dict[str, float]:
        return colour_kernel(*_read_parts(folder))

    return _everywhere(rates, out, data, nodes, train, test, seed)


def graph_network(
    *, out: Path, data: str, nodes: int, train: int, test: int, epochs: int, seed: int = 0
) -> dict[str, Any]:
    """A graph isomorphism network, without a picture."""

    def rates(folder: Path) -> dict[str, float]:
        return isomorphism_network(*_read_parts(folder), epochs=epochs, seed=seed)

    return _everywhere(rates, out, data, nodes, train, test, seed)


def sums(*, out: Path, data: str, nodes: int, train: int, test: int, seed: int = 0) -> dict[str, Any]:
    """Logistic regression on the sums of the picture's channels."""

    def rates(folder: Path) -> dict[str, float]:
        splits = load_images(str(folder))
        tables = channel_sums(splits.train), channel_sums(splits.test)
        labels = splits.train.labels.numpy(), splits.test.labels.numpy()
        return regression(*tables, *labels, balanced=True)

    return _everywhere(rates, out, data, nodes, train, test, seed)


def _everywhere(
    rates: Callable[[Path], Mapping[str, float]], out: Path, data: str, nodes: int, train: int,
    test: int, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """The rates on every task's networks, and on the real fields, whose time does not count."""
    clock, measures = Clock(), dict[str, float]()
    for task, classes in TASKS.items():
        with _networks(out / task, classes(nodes), train, test, seed) as folder:
            measures |= _named(task, rates(folder))
    with clock.paused(), _fields(out / "fields", Path(data), seed) as folder:
        measures |= _named("fields", rates(folder))
    return _result(measures, clock)


def published_split(
    *, out: Path, nodes: int, train: int, test: int, epochs: int, seed: int = 0, leak: bool = True
) -> dict[str, Any]:
    """Grey pictures of a task near chance, where test pictures are sums of two training pictures.

    `leak` False: sums of two test pictures, of networks that were not trained on.
    """
    from stepwell.recipes.supervised import supervised

    clock = Clock()
    grey = Pictures(channels=("linear",)).record
    with _networks(out / "networks", TASKS["ba-null"](nodes), train, test, seed) as folder:
        splits = load_images(str(folder), drawing=grey)
        rng = np.random.default_rng(seed)
        place = out / "sums"
        shutil.rmtree(place, ignore_errors=True)  # of a run that was stopped
        for part, source, images in (
            ("train", splits.train, splits.train),
            ("test", splits.train if leak else splits.test, None),
        ):
            for index, name in enumerate(splits.train.classes):
                (place / part / name).mkdir(parents=True)
                members = source.pixels[source.labels == index].numpy()
                pairs = rng.integers(0, len(members), (test if images is None else train, 2))
                summed = [members[a].astype(int) + members[b] for a, b in pairs.tolist()]
                every = summed if images is None else [*members, *summed]
                for number, pixels in enumerate(every):
                    picture = Image.fromarray(np.clip(16 * pixels, 0, 255).astype(np.uint8)[0])
                    picture.save(place / part / name / f"{number}.png")
        results = call(
            supervised, data=str(place), out=out / "sums run", epochs=epochs, seed=seed, net="cnc_wide",
            optimizer="adam", batch_size=64, val_fraction=0.0,
        )  # fmt: skip
        shutil.rmtree(place)
    return _result(_rates("ba-null", results["test"], results["rows"]), clock)


def _result(measures: dict[str, float], clock: Clock) -> dict[str, Any]:
    """The results of an arm, with the mean over the tasks if all are there."""
    every = [measures[f"{task}/accuracy"] for task in TASKS if f"{task}/accuracy" in measures]
    mean = {"mean/accuracy": float(np.mean(every))} if len(every) == len(TASKS) else {}
    return clock.result(mean | measures)


@contextmanager
def _networks(
    folder: Path, classes: Mapping[str, Generator], train: int, test: int, seed: int
) -> Iterator[Path]:
    """Write a task's networks, the same for every arm of a seed, and remove them in the end."""
    shutil.rmtree(folder, ignore_errors=True)
    write_networks(folder, classes, train, test, seed)
    with _alone():
        yield folder
    shutil.rmtree(folder)


@contextmanager
def _alone() -> Iterator[None]:
    """Draw in this process: arms run side by side already."""
    before = os.environ.get(store.ALONE)
    os.environ[store.ALONE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[store.ALONE]


@contextmanager
def _fields(folder: Path, data: Path, seed: int) -> Iterator[Path]:
    """Lay out real networks by links, with another choice of whole groups to test on for every seed."""
    shutil.rmtree(folder, ignore_errors=True)
    paths, labels, groups = _listed(data)
    classes = sorted({path.parent.name for path in paths})
    aside = set_aside(groups, labels, classes, 0.25, seed)
    for path, away in zip(paths, aside.tolist(), strict=True):
        place = folder / ("test" if away else "train") / path.parent.name
        place.mkdir(parents=True, exist_ok=True)
        (place / path.name).symlink_to(path.resolve())
    with _alone():
        yield folder
    shutil.rmtree(folder)


@cache
def _listed(data: Path) -> tuple[tuple[Path, ...], NDArray[np.int64], NDArray[np.int64]]:
    """The files of a folder of networks with their classes and groups, as numbers."""
    splits = load_images(str(data))
    parts = [splits.train, splits.test]
    paths = [Path(path) for part in parts for path in part.about["path"]]
    labels = torch.cat([part.labels for part in parts]).numpy()
    about = [part.about["group"] if "group" in part.about else part.about["path"] for part in parts]
    _, groups = np.unique(np.concatenate(about), return_inverse=True)
    return tuple(paths), labels, groups


def _rates(task: str, test: Mapping[str, float], rows: str) -> dict[str, float]:
    accuracy = next(value for name, value in test.items() if name.endswith("/accuracy"))
    balanced = next((v for name, v in test.items() if name.endswith("/balanced_accuracy")), accuracy)
    return _named(task, {"accuracy": accuracy, "balanced_accuracy": balanced})


def _named(task: str, rates: Mapping[str, float]) -> dict[str, float]:
    return {f"{task}/{name}": value for name, value in rates.items()}


def _read_parts(
    folder: Path,
) -> tuple[list[Network], list[Network], NDArray[np.int64], NDArray[np.int64]]:
    """The networks of the training and of the test part, then their labels."""
    files = [sorted((folder / part).glob("*/*")) for part in ("train", "test")]
    classes = sorted({file.parent.name for file in files[0]})
    train, test = ([read_network(file, Pictures().record) for file in part] for part in files)
    labels = [np.array([classes.index(file.parent.name) for file in part]) for part in files]
    return train, test, labels[0], labels[1]


def _changed(net: NestedNet, nodes: int, repeats: int, seed: int) -> dict[str, float]:
    """Recall of each class on networks unlike the training ones."""
    classes, recalls = net.card.classes, dict[str, float]()
    kinds: dict[str, dict[str, Generator]] = {}
    for times in (0.5, 1.5):
        size = int(times * nodes)
        kinds[f"{times:g} × nodes"] = {
            "ba": barabasi_albert(size, 4),
            "ws": watts_strogatz(size, 8, 0.1),
        }
    for links in (2, 3, 6, 8):
        kinds[f"m {links}"] = {
            "ba": barabasi_albert(nodes, links), "ws": watts_strogatz(nodes, 2 * links, 0.1),
        }  # fmt: skip
    for rate in (0.3, 0.6, 1.0):
        kinds[f"p {rate:g}"] = {"ws": watts_strogatz(nodes, 8, rate)}
    for share in (0.05, 0.1, 0.2):
        usual = {"ba": barabasi_albert(nodes, 4), "ws": watts_strogatz(nodes, 8, 0.1)}
        kinds[f"-{share:.0%} edges"] = {
            c: without_edges(generator, share) for c, generator in usual.items()
        }
    for number, (kind, generators) in enumerate(kinds.items()):
        for name, generator in generators.items():
            # four numbers: others than those of `write_networks`
            rng = np.random.default_rng([seed, 1, number, 1 + classes.index(name)])
            answers = _answers(net, [_read(generator(rng)) for _ in range(repeats)])
            recalls[f"{kind}: {name}/recall"] = float((answers == classes.index(name)).mean())
    return recalls


def _copied(net: NestedNet, folder: Path, count: int, seed: int) -> dict[str, float]:
    """Answers to two copies, under other names, of some real networks, and cells that differ."""
    files = sorted((folder / "test").glob("*/*"))
    files = files[:: max(1, len(files) // count)]
    same, cells = [], []
    rng = np.random.default_rng([seed, 2, 0, 1])
    for file in files:
        network = read_network(file, net.card.drawing)
        copies = [network, *(_renamed(network, rng) for _ in range(2))]
        with store.one_thread():
            pixels = [draw(copy, net.card.drawing, net.card.size).pixels for copy in copies]
        with torch.no_grad():
            answers = net(normalised(pixels, net.card)).argmax(1)
        same += (answers[1:] == answers[0]).tolist()
        cells += [float((other != pixels[0]).any(2).mean()) for other in pixels[1:]]
    return {"copies/same": float(np.mean(same)), "copies/cells": float(np.mean(cells))}


def _deleted(task: str, net: NestedNet, folder: Path, seed: int) -> dict[str, float]:
    test = load_images(str(folder), net.card.size, drawing=net.card.drawing).test
    deletion = explain(net, test, test.classes, seed)["deletion"]
    return {
        f"{task}/{key}": float(deletion[key]) for key in ("salient", "equal degree") if key in deletion
    }


def _read(edges: NDArray[np.int64]) -> Network:
    return parse_network(
        "".join(f"{a} {b}\n" for a, b in edges.tolist()).encode(), "", Pictures().record
    )


def _renamed(network: Network, rng: np.random.Generator) -> Network:
    """A copy under other names, with its lines in another order."""
    names = rng.permutation(len(network.names))
    listed = replace(network, names=tuple(f"x{i}" for i in names.tolist()))
    lines = [*edge_list(listed)]
    body = rng.permutation(np.array(lines[1:], dtype=object)).tolist()
    return parse_network("".join([lines[0], *body]).encode(), ".tsv", Pictures().record)


def _answers(net: NestedNet, networks: Sequence[Network]) -> NDArray[np.int64]:
    with store.one_thread():
        pixels = [draw(network, net.card.drawing, net.card.size).pixels for network in networks]
    with torch.no_grad():
        answers: NDArray[np.int64] = net(normalised(pixels, net.card)).argmax(1).numpy()
    return answers


def networks_digest(arguments: Mapping[str, Any]) -> str:
    """Hash of the real networks; ValueError if none are named, or they are images."""
    if not arguments["data"]:
        raise ValueError(
            "verify cnc needs real networks: name a folder of class folders with a groups.tsv, --data"
        )
    splits = load_images(arguments["data"], drawn=True)
    check_networks(splits, arguments["data"], "verify cnc")
    return f"{splits.train.fingerprint}/{splits.test.fingerprint}"


def write_quick(folder: Path) -> dict[str, Any]:
    """Small networks in two fields, with groups, for a quick run of the study."""
    place = folder / "fields"
    lines = []
    kinds = {"one": barabasi_albert(20, 2), "other": watts_strogatz(20, 4, 0.2)}
    for index, (name, generator) in enumerate(kinds.items()):
        (place / name).mkdir(parents=True, exist_ok=True)
        for number in range(8):
            edges = generator(np.random.default_rng([index, number]))
            text = "".join(f"{a} {b}\n" for a, b in edges.tolist())
            (place / name / f"{number}.edges").write_text(text, encoding="utf-8")
            lines.append(f"{name}/{number}.edges\t{name}{number // 2}\n")
    (place / "groups.tsv").write_text("".join(lines), encoding="utf-8")
    return {
        "data": str(place), "nodes": 30, "train": 4, "test": 3, "epochs": 1, "field_epochs": 1,
        "repeats": 1, "tasks": ("ba-ws",),
    }  # fmt: skip
