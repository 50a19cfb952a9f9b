"""Labelled images by name or by folder (`data.decoding` reads the files)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf

from stepwell.data.decoding import DIFFERENT
from stepwell.data.formats import PHOTOGRAPHS, Format, format_of
from stepwell.data.groups import groups_of, read_groups, shared_with_train, unused_lines
from stepwell.data.images import ImageSet, Splits
from stepwell.files import cache_folder
from stepwell.measures import some

#: Data sets by name.
NAMED = ("digits", "cifar10", "cifar100")
#: The usual settings of pictures of complex networks.
DRAWING = {"format": "network"}
#: The parts of a data set, and their other names.
PARTS = ("train", "test", "val")
LIKE_PARTS = {*PARTS, "training", "testing", "valid", "validation"}


def load_images(
    data: str, size: int | None = None, usual: int = DIFFERENT,
    drawing: Mapping[str, Any] | None = None, *, drawn: bool = False,
) -> Splits:  # fmt: skip
    """A data set by name (`digits`, `cifar10`, `cifar100`) or by folder.

    A folder holds `train/CLASS/*.jpg` and `test/CLASS/*.jpg`, or only `CLASS/*.jpg`; then a fifth of
    every class becomes the test part. `val/` is the validation part, or the test part if there is no
    `test/`, as in ImageNet.

    Args:
        data: name or folder; an existing folder comes before a name.
        size: height and width of the images; by default their own, or `usual` if they differ. The
            shorter side is scaled to it, and the middle is cropped.
        usual: size that the network is made for. If below 64, larger images are brought to it, too.
        drawing: how files of complex networks are drawn, as a card records it; see
            `data.pictures.flags`.
        drawn: the caller takes only what is drawn so, and no photographs; messages then name it.

    Raises:
        ValueError: no such data; one class only; an image cannot be read; parts differ in classes.
    """
    if Path(data).is_dir():
        return _folder(Path(data), size, usual, drawing or DRAWING, drawn)
    if data == "digits":
        return _digits(size)
    if data in NAMED:
        return _cifar(data, size)
    names = ", ".join(NAMED)
    if Path(data).is_file():
        noun = format_of(drawing or DRAWING).NOUN if drawn else PHOTOGRAPHS.NOUN
        texts = "" if drawn else ", and texts in a .tsv file"
        raise ValueError(f"{data} is a file: {noun}s stand in a folder of class folders{texts}")
    raise ValueError(f"no data {data!r}: give a folder of class folders, or one of {names}")


def load_unlabeled(
    folder: Path, size: int | None, classes: tuple[str, ...], usual: int = DIFFERENT,
    form: Format = PHOTOGRAPHS,
) -> ImageSet:  # fmt: skip
    """Every image below `folder`, nested or not, without a label; or a named data set's training part.

    `size` and `usual` as for `load_images`; `classes` and `form` are those of the set that the images
    join.
    ValueError if there is no such folder, no image in it, or one cannot be read.
    """
    if not folder.is_dir() and str(folder) in NAMED:
        named = load_images(str(folder), size).train
        return ImageSet(named.pixels, torch.full((len(named),), -1), classes)
    if not folder.is_dir():
        raise ValueError(f"no folder of {form.NOUN}s {folder}, nor one of {', '.join(NAMED)}")
    paths = form.files(folder)
    if not paths:
        raise ValueError(
            f"{folder} holds no {form.NOUN} ({', '.join(sorted(form.suffixes))}): fill it, or leave it "
            "out"
        )
    form.check(paths)
    pixels, about = form.load(paths, size or form.own_size(paths, usual))
    return ImageSet(pixels, torch.full((len(paths),), -1), classes, form, about)


def _folder(
    root: Path, size: int | None, usual: int, drawing: Mapping[str, Any], drawn: bool
) -> Splits:
    parts = {name: root / name for name in PARTS if (root / name).is_dir()}
    if "train" in parts:
        unused = [f for f in _folders(root) if f.name.lower() in LIKE_PARTS - parts.keys()]
        notes = tuple(f"{f} is not used: parts are train/, val/ and test/" for f in unused)
        form, (first, *further) = _class_files(list(parts.values()), drawing, drawn)
        groups = read_groups(root)
        notes = (*notes, *_unread(root, [*parts.values()], form), *unused_lines(root, groups))
        train = _image_set(first, size, usual, form, groups)
        sets = (_image_set(files, train.size, usual, form, groups) for files in further)
        others = dict(zip([name for name in parts if name != "train"], sets, strict=True))
        for name, part in others.items():
            if part.classes != train.classes:
                unshared = sorted(set(part.classes) ^ set(train.classes))
                raise ValueError(
                    f"{root / name} and {root / 'train'} differ in classes, such as {unshared[0]!r}: "
                    "both need the same class folders"
                )
        doubts = [note for n, p in others.items() for note in form.notes(p, root / n, training=False)]
        doubts = [*form.notes(train, root / "train"), *doubts]
        notes = (*notes, *doubts, *shared_with_train(train, others))
        if "test" in others:
            val = others.get("val")
            return Splits(str(root), train, others["test"], notes=notes, validation=val)
        if not others:
            return _set_aside(root, train, *notes)
        note = f"{root} has no test part: its val/ is used to test on, and for nothing else"
        return Splits(str(root), train, others["val"], notes=(*notes, note))
    folders = _folders(root)
    if folders and all(f.name.lower() in LIKE_PARTS and _folders(f) for f in folders):
        raise ValueError(
            f"{folders[0]} looks like a part of the data, not like a class: call the parts train/, "
            "val/ and test/"
        )
    form, (files,) = _class_files([root], drawing, drawn)
    groups = read_groups(root)
    images = _image_set(files, size, usual, form, groups)
    notes = (*_unread(root, [root], form), *unused_lines(root, groups), *form.notes(images, root))
    return _set_aside(root, images, *notes)


def check_outside(data: str, out: Path) -> None:
    """Raise ValueError for results among the class folders of `data`: they would count as a class."""
    root = Path(data)
    if not root.is_dir():
        return
    of_classes = [root / name for name in PARTS] if (root / "train").is_dir() else [root]
    if any(out.resolve().is_relative_to(folder.resolve()) for folder in of_classes):
        raise ValueError(
            f"--out {out} lies among the class folders of {data}, and would be taken for one: name "
            "another place"
        )


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _set_aside(root: Path, images: ImageSet, *notes: str) -> Splits:
    try:
        train, test = images.split(0.2)
    except ValueError as error:
        raise ValueError(
            f"{root} has no test part: {error}; add {images.NOUN}, or a test/ folder"
        ) from error
    what = f"{images.form.NOUN}s" + ", whole groups," * ("group" in images.about)
    note = f"{root} has no test part: {len(test)} of its {len(images)} {what} are set aside for it"
    return Splits(str(root), train, test, notes=(*notes, note))


def _class_files(
    roots: Sequence[Path], drawing: Mapping[str, Any], drawn: bool
) -> tuple[Format, list[dict[Path, list[Path]]]]:
    """The format, and the images of each class folder, by part; one error names the bad ones of all."""
    form = _form_in([folder for root in roots for folder in _folders(root)], drawing, drawn)
    parts = []
    for root in roots:
        folders = _folders(root)
        if len(folders) < 2:
            number = f"only {folders[0].name!r}" if folders else "none"
            raise ValueError(
                f"{root} needs at least two class folders with {form.NOUN}s in them; found {number}"
            )
        parts.append({folder: form.files(folder) for folder in folders})
    empty = [folder for part in parts for folder, files in part.items() if not files]
    what = f"{form.NOUN} ({', '.join(sorted(form.suffixes))})"
    wrong = [f"class folder {empty[0]} holds no {what}: fill or remove it"] if empty else []
    if len(empty) > 1:
        wrong = [f"{len(empty)} class folders hold no {what}, {some(empty)}: fill or remove them"]
    if others := [file for folder in empty for file in form.others(folder)]:
        wrong.append(f"files in them that are no {form.NOUN}s: {len(others)}, such as {others[0].name}")
    try:
        form.check([path for part in parts for files in part.values() for path in files])
    except ValueError as error:
        wrong.append(str(error))
    if wrong:
        raise ValueError("; ".join(wrong))
    return form, parts


def _unread(root: Path, parts: Sequence[Path], form: Format) -> list[str]:
    """A note about files in class folders that are not in the format of the data."""
    others = [file for part in parts for folder in _folders(part) for file in form.others(folder)]
    if not others:
        return []
    suffixes = ", ".join(sorted(form.suffixes))
    return [
        f"{root}: files in class folders that are not read: {len(others)}, such as "
        f"{some(others, 3)}; names of {form.NOUN}s end in {suffixes}"
    ]


def _form_in(folders: Sequence[Path], drawing: Mapping[str, Any], only_drawn: bool) -> Format:
    """The format of the files in class folders; ValueError if images and networks are mixed.

    Beside photographs, tables are not read as networks. A format that reads files of photographs reads
    all of them.
    """
    other = format_of(drawing)
    if {*other.suffixes} & {*PHOTOGRAPHS.suffixes}:
        return other
    photographs = {folder for folder in folders if PHOTOGRAPHS.files(folder)}
    drawn = {folder for folder in folders if other.files(folder)} - photographs
    if photographs and drawn:
        image, file = PHOTOGRAPHS.files(min(photographs))[0], other.files(min(drawn))[0]
        raise ValueError(f"{image} is an image and {file} is a {other.NOUN}: a data set needs one kind")
    return other if drawn or (only_drawn and not photographs) else PHOTOGRAPHS


def _image_set(
    files: Mapping[Path, Sequence[Path]], size: int | None, usual: int, form: Format,
    groups: Mapping[Path, str],
) -> ImageSet:  # fmt: skip
    paths = [path for of_class in files.values() for path in of_class]
    labels = torch.tensor([i for i, of_class in enumerate(files.values()) for _ in of_class])
    pixels, about = form.load(paths, size or form.own_size(paths, usual))
    if groups:
        about["group"] = groups_of(paths, groups)
    return ImageSet(pixels, labels, tuple(folder.name for folder in files), form, about)


def _digits(size: int | None) -> Splits:
    from sklearn.datasets import load_digits

    digits = load_digits()
    gray = torch.from_numpy(digits.images).mul(255 / 16).round().to(torch.uint8)
    pixels = gray[:, None].expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(digits.target).long()
    images = ImageSet(_resized(pixels, size), labels, tuple("0123456789"))
    train, test = images.split(0.2)
    return Splits("digits", train, test, flip=False)


def _cifar(name: str, size: int | None) -> Splits:
    from torchvision.datasets import CIFAR10, CIFAR100

    kind = CIFAR10 if name == "cifar10" else CIFAR100
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    parts = []
    for train in (True, False):
        try:
            part = kind(cache, train=train, download=True)
        except (OSError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"cannot download {name} ({reason}): put it under {cache}, or set STEPWELL_DATA"
            ) from error
        pixels = _resized(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), size)
        parts.append(ImageSet(pixels, torch.tensor(part.targets), tuple(part.classes)))
    return Splits(name, train=parts[0], test=parts[1])


def _resized(pixels: Tensor, size: int | None) -> Tensor:
    return pixels if size in (None, pixels.shape[-1]) else tvf.resize(pixels, [size, size])
