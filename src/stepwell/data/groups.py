"""Groups of examples that belong together, so that no split divides them: `groups.tsv`."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwell.measures import some

#: The file in a data folder: path from the folder, tab, name of the group.
FILE = "groups.tsv"


def read_groups(root: Path) -> dict[Path, str]:
    """The group of each file that groups.tsv in a data folder names; empty without such a file.

    ValueError for a line without two columns, a file that is named twice, or no line at all.
    """
    file = root / FILE
    if not file.is_file():
        return {}
    groups: dict[Path, str] = {}
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no UTF-8 text ({error.reason}): write it again") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, tab, group = line.partition("\t")
        if not tab or not group.strip() or "\t" in group:
            raise ValueError(
                f"{file}, line {number}: two columns with a tab between are needed, file and group"
            )
        if root / name in groups:
            raise ValueError(f"{file}, line {number}: {name} is there twice")
        groups[root / name] = group.strip()
    if not groups:
        raise ValueError(f"{file} is empty: name the group of every file, or remove it")
    return groups


def unused_lines(root: Path, groups: Mapping[Path, str]) -> list[str]:
    """A note about the lines of groups.tsv that name no file."""
    missing = [path for path in groups if not path.is_file()]
    if not missing:
        return []
    return [f"{root / FILE} names files that do not exist: {len(missing)}, {some(missing, 3)}"]


def groups_of(paths: Sequence[Path], groups: Mapping[Path, str]) -> NDArray[Any]:
    """The group of each file; ValueError names a file without one."""
    if missing := [path for path in paths if path not in groups]:
        raise ValueError(f"{FILE} names no group of {missing[0]}: add a line for every file")
    return np.array([groups[path] for path in paths])


def set_aside(
    groups: NDArray[Any], labels: NDArray[np.int64], classes: Sequence[str], fraction: float,
    seed: int = 0,
) -> NDArray[np.bool_]:  # fmt: skip
    """Choose whole groups with at most `fraction` of every class, the same ones at every call.

    They are drawn in an order of `seed`, and a group that is larger than what a class still lacks stays
    in training; where all groups of a class are, the smallest is chosen. Every class keeps a group on
    both sides.

    ValueError for a class where that is impossible, such as one whose examples are all in one group.
    """
    names, group = np.unique(groups, return_inverse=True)
    table = np.zeros((len(names), len(classes)))
    np.add.at(table, (group[labels >= 0], labels[labels >= 0]), 1)
    for index, count in enumerate((table > 0).sum(0).tolist()):
        if count == 1:
            raise ValueError(f"class {classes[index]!r} has one group only, so none can be set aside")
    sizes = table.sum(0)
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(names))
    chosen = np.zeros(len(names), bool)

    def spare(one: int) -> bool:
        """Check that every class of a group has another group that is not chosen."""
        return bool(((table[~chosen] > 0)[:, table[one] > 0].sum(0) > 1).all())

    for index in np.argsort(sizes, kind="stable").tolist():  # small classes have the least choice
        for one in order.tolist():
            inside = table[chosen, index].sum()
            wanted = fraction * sizes[index] - inside
            fits = 0 < table[one, index] <= wanted
            if fits and not chosen[one] and spare(one):
                chosen[one] = True
        if not table[chosen, index].sum():
            smallest = order[np.argsort(table[order, index], kind="stable")].tolist()
            able = [g for g in smallest if table[g, index] and spare(g)]
            if not able:
                raise ValueError(
                    f"class {classes[index]!r} cannot be split in two: each of its groups is the last "
                    "one of a class that stays; make smaller groups"
                )
            chosen[able[0]] = True
    return chosen[group]


def shared_with_train(train: Any, others: Mapping[str, Any]) -> Iterator[str]:
    """Notes about files of equal content, and groups, in the training part and in another one."""
    for name, part in others.items():
        if "content" in train.about:
            same = np.isin(part.about["content"], train.about["content"])
            if same.any():
                yield (
                    f"{int(same.sum())} files of {name}/ are in train/, too, such as "
                    f"{part.about['path'][same][0]}: results there look better than they are"
                )
        if "group" in train.about:
            both = np.intersect1d(train.about["group"], part.about["group"])
            if len(both):
                yield (
                    f"{len(both)} groups, such as {str(both[0])!r}, are in train/ and in {name}/: "
                    "results there look better than they are"
                )
