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
    from stepwell.files import config_of
    from stepwell.nets.files.nested import load

    if not path.exists():
        raise ValueError(f"no run or file {path}")
    if path.is_dir() and not (path / "net.safetensors").exists():
        raise ValueError(
            f"{path} holds no net.safetensors: it is no finished run. "
            "Start its `stepwell train` command again to finish it"
        )
    file = file_of(path)
    net = load(file)
    if not net.card.classes or not net.card.size:
        raise ValueError(
            f"{path} does not say its classes and input size: set net.card = "
            "stepwell.Card(classes, size, mean, std) and save it again"
        )
    return net, config_of(file)


def file_of(run: Path) -> Path:
    """The file of the network of a run, which may be named by that file itself."""
    return run / "net.safetensors" if run.is_dir() else run


def parts_of(net: Any, run: Path, config: Mapping[str, Any], data: str | None) -> Any:
    """The parts of `data`, or of the run's own, as the network expects them."""
    from stepwell.measure.data_parts import parts_for

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
        config["arguments"].get("part"),
        same=data is None or Path(data).resolve() == Path(own).resolve(),
    )


def check_place(flag: str, path: Path) -> None:
    """Refuse a file to write that is a folder, or whose folder is not there.

    Raises:
        ValueError: the message begins with `flag`.
    """
    if path.is_dir():
        raise ValueError(f"{flag} {path} is a folder: name a file")
    if not path.parent.is_dir():
        raise ValueError(f"{flag} {path}: there is no folder {path.parent}; make it first")


def file_to_write(run: Path) -> Path:
    """The file of the network `run`, if it may be replaced now: asked before time is spent on it.

    Raises:
        ValueError: graphs beside it may read their weights from it.
        OSError: another process is writing to it.
    """
    from stepwell.training.run import writing

    file = file_of(run)
    if graphs := sorted(file.parent.glob("*.onnx")):
        raise ValueError(
            f"{graphs[0]} may read its weights from {file}, so that must stay as it is: change the "
            "run's own file, and export again"
        )
    with writing(file):
        return file


@contextlib.contextmanager
def rewriting(run: Path, measured: str) -> Iterator[tuple[Path, Any]]:
    """The file of a network and the card that is in it now, while nobody else writes to it.

    Others may have changed the card since the network was read, so a change is made to this one.

    Args:
        measured: `net_digest` of the network that the change is about.

    Raises:
        ValueError: the file holds another network by now; as for `file_to_write`.
        OSError: another process is writing to it.
    """
    from stepwell.nets.files.nested import load, net_digest
    from stepwell.training.run import writing

    file = file_to_write(run)
    with writing(file):
        present = load(file)
        if net_digest(present) != measured:
            raise ValueError(
                f"{file} was replaced by another network while this one was measured: nothing was "
                "written; start the command again"
            )
        yield file, present.card
