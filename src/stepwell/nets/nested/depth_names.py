"""Rules for the names of depths and for their blocks."""

import re
from collections.abc import Collection, Mapping, Sequence
from operator import index
from typing import Any

#: The name of a depth is part of flags, and of the names of files.
_NAME = re.compile(r"\w[\w.+-]{0,63}")
_RESERVED = ("all", "net", "export")


def blocks_of(name: str, blocks: Any, most: tuple[int, ...]) -> tuple[int, ...]:
    """The blocks per stage of a depth; ValueError if they are no whole numbers, such as `most`."""
    try:
        return tuple(index(count) for count in blocks)
    except TypeError:
        raise ValueError(
            f"depth {name!r} = {blocks!r}: give the blocks of each stage, one whole number a stage, "
            f"such as {most} of the full net"
        ) from None


def check_text(name: object) -> None:
    """Raise ValueError for a depth's name that is no text."""
    if not isinstance(name, str):
        raise ValueError(f"the name of a depth is a text: write {str(name)!r}, not {name!r}")


def check_name(name: str, present: Mapping[str, tuple[int, ...]], subject: str | None = None) -> None:
    """Raise ValueError (it begins with `subject`) for a name that cannot name a file, or is taken."""
    check_text(name)
    if not _NAME.fullmatch(name) or name in _RESERVED or name.endswith(".int8"):
        raise ValueError(
            f"{name!r} cannot name a depth, which also names files: use letters, digits, '_', '-', "
            f"'+' and '.', 64 at most, and none of {', '.join(_RESERVED)}, *.int8"
        )
    if name in present:
        raise ValueError(f"{subject or name!r}: this net already has {name!r} = {present[name]}")


def check_depth(
    name: str,
    blocks: tuple[int, ...],
    present: Mapping[str, tuple[int, ...]],
    stages: Sequence[str],
    most: tuple[int, ...],
    *,
    exits: Collection[str] = (),
    ends_early: bool = False,
) -> None:
    """Refuse a new depth that a nested net cannot have.

    Args:
        blocks: per stage; an exit may have 0 for the last stages.
        present: the blocks of the other depths.
        most: the blocks of the full net, one number for each of `stages`.
        exits: the names in `present` that are exits.
        ends_early: the new depth is an exit.

    Raises:
        ValueError: its name cannot name a file, or is taken; a wrong number of stages or blocks; it is
            the same network as another depth; an exit ends with the full net, or where another does.
    """
    subject = f"{'exit' if ends_early else 'depth'} {name!r} = {blocks}"
    check_name(name, present, subject)
    if len(blocks) != len(most):
        raise ValueError(
            f"{subject} names {len(blocks)} stages; this net has {len(most)}: {', '.join(stages)}"
        )
    stop = len(blocks)
    if ends_early:
        stop = next((i for i, count in enumerate(blocks) if not count), stop)
        if not stop or any(blocks[stop:]):
            raise ValueError(
                f"{subject}: an exit runs a block of the first stage, and after a stage with 0 blocks "
                "all later stages have 0, too"
            )
    for stage, count, all_ in zip(stages[:stop], blocks, most, strict=False):
        if not 1 <= count <= all_:
            raise ValueError(
                f"{subject}: {stage} can keep 1 to {all_} blocks (the full net's), not {count}"
            )
    if ends_early and blocks == most:
        raise ValueError(
            f"{subject}: the full net ends behind its last block with its own head: keep fewer blocks"
        )
    for other, others in present.items():
        if others == blocks and (other in exits) == ends_early:
            same = "ends where exit" if ends_early else "is the same network as depth"
            raise ValueError(f"{subject} {same} {other!r}{' does' * ends_early}: drop one of them")
