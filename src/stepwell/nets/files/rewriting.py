"""Change a network's file in place while other processes may do the same."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from stepwell.files import writing
from stepwell.nets.card import Card
from stepwell.nets.files.kind import network_file
from stepwell.nets.files.nested import load, net_digest


def check_writable(file: Path) -> None:
    """Check that a network's file may be replaced now: before time is spent on measuring for it.

    Raises:
        ValueError: ONNX graphs beside it may read their weights from it.
        OSError: another process is writing to it.
    """
    if graphs := sorted(file.parent.glob("*.onnx")):
        raise ValueError(
            f"{graphs[0]} may read its weights from {file}, so {file.name} must stay as it is: change "
            "the run's own file, and export again"
        )
    with writing(file):
        pass


@contextlib.contextmanager
def rewriting(path: Path, measured: str) -> Iterator[tuple[Path, Card]]:
    """Lock the file of a network, and give it with its card, which may have changed since it was read.

    Args:
        path: a run directory, or the file itself.
        measured: `net_digest` of the network that was measured.

    Raises:
        ValueError: the file holds another network by now; as for `check_writable`.
        OSError: another process is writing to it.
    """
    file = network_file(path)
    check_writable(file)
    with writing(file):
        present = load(file)
        if net_digest(present) != measured:
            raise ValueError(
                f"{file} was replaced by another network while this one was measured: nothing was "
                "written; start the command again"
            )
        yield file, present.card
