"""What commands that work on a run have in common: its network, its data, its file."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro

Json = Annotated[bool, tyro.conf.arg(help="print one JSON document instead of a table")]


def network_of(path: Path) -> tuple[Any, Mapping[str, Any]]:
    """The network of a run directory or of a file, and the run's configuration, if there is one.

    The file of a run's network may be named in place of the run.
    """
    import json

    from stepwell.nets.file import load

    if not path.exists():
        raise ValueError(f"no run or file {path}")
    if path.is_dir() and not (path / "net.safetensors").exists():
        raise ValueError(
            f"{path} holds no net.safetensors: it is no finished run. "
            "Start its `stepwell train` command again to finish it"
        )
    file = path / "net.safetensors" if path.is_dir() else path
    net = load(file)
    if not net.card.classes or not net.card.size:
        raise ValueError(
            f"{path} does not say its classes and input size: set net.card = "
            "stepwell.Card(classes, size, mean, std) and save it again"
        )
    config = file.parent / "config.json"
    of_a_run = file.name == "net.safetensors" and config.exists()
    return net, json.loads(config.read_text()) if of_a_run else {}


def parts_of(net: Any, run: Path, config: Mapping[str, Any], data: str | None) -> Any:
    """The parts of `data`, or of the run's own, as the network expects them."""
    from stepwell.recipes.classification import parts_for

    if not config:
        if data is None:
            raise ValueError(
                f"{run} is not in a run directory, so say what to measure on with --data"
            )
        return parts_for(net, data)
    own = str(config["arguments"]["data"])
    return parts_for(
        net,
        own if data is None else data,
        config["data"]["fingerprint"],
        config["arguments"].get("val_fraction", 0.0),
        same=data is None or Path(data).resolve() == Path(own).resolve(),
    )


@contextlib.contextmanager
def rewriting(run: Path) -> Iterator[Path]:
    """The file of a network, to be replaced while nobody else writes to its run."""
    from stepwell.training.run import writing

    file = run / "net.safetensors" if run.is_dir() else run
    if graphs := sorted(file.parent.glob("*.onnx")):
        raise ValueError(
            f"{graphs[0]} may read its weights from {file}, so that must stay as it is: change the "
            "run's own file, and export again"
        )
    with writing(file.parent):
        yield file
