"""One list of classes for teachers and labels that name their categories differently."""

from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from stepwell.data.coco import class_key
from stepwell.measures import some

#: Names at least this similar may mean one class.
SIMILAR = 0.8


class Categories(NamedTuple):
    """The classes of a student, and how each teacher's classes map to them.

    names: of the classes; those of the labels first, in their order.
    maps: for each teacher, the class of each of its own classes; -1 for one that is left out.
    labelled: True for the classes that the labels tell of.
    notes: lines about what merged and what did not.
    """

    names: tuple[str, ...]
    maps: tuple[Int64[Tensor, " own"], ...]
    labelled: Bool[Tensor, " classes"]
    notes: tuple[str, ...]

    @property
    def covers(self) -> Bool[Tensor, "teachers classes"]:
        """True for the classes that a teacher tells of."""
        covers = torch.zeros(len(self.maps), len(self.names), dtype=torch.bool)
        for row, class_map in zip(covers, self.maps, strict=True):
            row[class_map[class_map >= 0]] = True
        return covers


def merged(
    teachers: Mapping[str, Sequence[str]], labels: Sequence[str] = (), *,
    renames: Sequence[str] = (), chosen: Sequence[str] = (),
) -> Categories:  # fmt: skip
    """Merge the classes of teachers and labels by name; upper case, spaces, - and _ do not matter.

    Args:
        teachers: classes of each teacher by its name.
        labels: classes of the labels; empty without labels.
        renames: "OLD=NEW" gives a teacher's class another name, "OLD=" leaves it out, and "2:OLD=NEW"
            is for the second teacher alone.
        chosen: the student's classes; all by default.

    Raises:
        ValueError: a rename fits no class; two classes of one teacher that no rename joins, or of the
            labels, have one name;
            a chosen class is nobody's, or chosen twice; no teacher has a class of the student's.
    """
    teacher_classes = [[*classes] for classes in teachers.values()]
    renamed = {place for rename in renames for place in _rename(rename, teacher_classes, [*teachers])}
    names: dict[str, str] = {}
    sources = {"the labels": [*labels]} | dict(zip(teachers, teacher_classes, strict=True))
    for i, (source, classes) in enumerate(sources.items(), -1):  # the labels are no teacher
        # several classes that were renamed to one are meant to be one
        own = [name for j, name in enumerate(classes) if name and (i, j) not in renamed]
        keys = [class_key(name) for name in own]
        if twice := [name for name in own if keys.count(class_key(name)) > 1]:
            name = twice[0]
            fix = "rename one"
            if i >= 0:
                fix = f"join them with --rename {name}={name}, or leave both out with --rename {name}="
            raise ValueError(f"two classes of {source} have the name {name!r}: {fix}")
        for name in classes:
            if name:
                names.setdefault(class_key(name), name)
    if not names:
        raise ValueError("--rename leaves out every class: keep one or more")
    if chosen:
        if unknown := [name for name in chosen if class_key(name) not in names]:
            raise ValueError(
                f"--classes {unknown[0]}: no teacher has it, and no label; there are "
                f"{some([*names.values()])}"
            )
        keys = [class_key(name) for name in chosen]
        if twice := [key for key in keys if keys.count(key) > 1]:
            same = " and ".join(n for n, key in zip(chosen, keys, strict=True) if key == twice[0])
            raise ValueError(f"--classes names one class twice: {same}; drop one of them")
        names = {key: names[key] for key in keys}
    at = {key: i for i, key in enumerate(names)}
    maps = tuple(
        torch.tensor([at.get(class_key(c), -1) if c else -1 for c in cs]) for cs in teacher_classes
    )
    for teacher, own_map in zip(teachers, maps, strict=True):
        if not (own_map >= 0).any():
            raise ValueError(
                f"{teacher} has no class that is trained here ({some([*names.values()])}): name its "
                "classes with --classes, or map them with --rename OLD=NEW"
            )
    of_labels = torch.zeros(len(names), dtype=torch.bool)
    of_labels[[at[class_key(name)] for name in labels if class_key(name) in at]] = True
    categories = Categories(tuple(names.values()), maps, of_labels, ())
    return categories._replace(notes=_notes(categories, sources))


def _rename(
    rename: str, teacher_classes: list[list[str]], teachers: Sequence[str]
) -> list[tuple[int, int]]:
    """Give classes of teachers another name; gives the teacher and place of each."""
    which, colon, rest = rename.partition(":")
    number = int(which) if colon and which.isdecimal() else None
    old, equals, new = (rest if number is not None else rename).partition("=")
    if not equals or not old or (number is not None and not 1 <= number <= len(teacher_classes)):
        raise ValueError(
            f"--rename {rename}: write OLD=NEW, OLD= to leave a class out, or 2:OLD=NEW for the second "
            f"of {len(teacher_classes)} teachers"
        )
    hits = []
    for i, classes in enumerate(teacher_classes):
        for j, name in enumerate(classes):
            if name and class_key(name) == class_key(old) and number in (None, i + 1):
                classes[j] = new.strip()
                hits.append((i, j))
    if not hits:
        who = f"teacher {teachers[number - 1]}" if number else "a teacher"
        known = [
            name
            for i, classes in enumerate(teacher_classes)
            if number in (None, i + 1)
            for name in classes
        ]
        raise ValueError(f"--rename {rename}: {who} has no class {old!r}; there are {some(known)}")
    return hits


def _notes(categories: Categories, sources: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Lines about classes that one source alone has, and names that may mean one class."""
    notes = []
    known = {name: {class_key(c) for c in classes if c} for name, classes in sources.items()}
    seen = categories.covers
    if nobody := [n for i, n in enumerate(categories.names) if not seen[:, i].any()]:
        notes.append(
            f"no teacher knows {some(nobody)}: these classes are learned from labels alone, and are no "
            "background in images without labels"
        )
    if len(seen) > 1 and not (seen.sum(0) > 1).any():
        notes.append(
            "the teachers share no class, so no boxes are fused; if two names mean one class, map them "
            "with --rename OLD=NEW"
        )
    names = {name: [c for c in classes if c] for name, classes in sources.items()}
    pairs = [
        f"{a!r} of {source} and {b!r} of {other}"
        for i, (source, mine) in enumerate(names.items())
        for other, theirs in [*names.items()][i + 1 :]
        for a in mine
        for b in theirs
        if class_key(a) not in known[other] and class_key(b) not in known[source] and _similar(a, b)
    ]
    if pairs:
        notes.append(
            f"these count as different classes: {some(pairs)}; map them with --rename OLD=NEW if they "
            "are one"
        )
    return tuple(notes)


def _similar(a: str, b: str) -> bool:
    return SequenceMatcher(None, class_key(a), class_key(b)).ratio() >= SIMILAR
