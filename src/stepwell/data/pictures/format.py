"""Complex networks as a format of images: checked, drawn once, and kept by content."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from stepwell.data.formats import Format, Graph
from stepwell.data.pictures import network, picture, reading, store, word2vec
from stepwell.data.pictures.flags import Pictures
from stepwell.data.pictures.graphs import network_of
from stepwell.data.pictures.network import SUFFIXES, Network, read_network
from stepwell.measures import some, with_article

#: Height and width of the paper's pictures.
SIZE = 48
#: Area under the ROC curve above which the number of nodes alone tells two classes apart.
APART = 0.95
#: Margins below which an axis may change its place or sign with small changes of the network.
NEAR = 0.02
#: What makes pictures doubtful, in words about several files and about one.
DOUBTS = {
    "parts": (
        "{n} of {count} networks have several parts, which one picture shows",
        "it has several parts, which one picture shows",
    ),
    "axes": (
        "the axes of {n} of {count} pictures are uncertain (two nearly equal, or nearly symmetric)",
        "the axes of its picture are uncertain (two nearly equal, or nearly symmetric)",
    ),
    "names": (
        "{n} of {count} pictures depend on the names of nodes, because some have the same structure",
        "its picture depends on the names of nodes, because some have the same structure",
    ),
    "header": (
        "the first line of {n} of {count} files is taken for a header, such as that of {first}",
        "its first line is taken for a header",
    ),
}
#: Settings with few values.
WORDS: dict[str, tuple[Any, ...]] = {
    "format": ("network",),
    "directed": (None, False, True),
    **{n: get_args(h) for n, h in get_type_hints(Pictures).items() if get_origin(h) is Literal},
}


class NetworkPictures(Format):
    """Complex networks in edge lists or GraphML, drawn as a `Pictures.record` says.

    ValueError for a record that is none.
    """

    suffixes = SUFFIXES
    NOUN: ClassVar = "network"

    def __init__(self, record: Mapping[str, Any]) -> None:
        usual = Pictures().record
        wrong = [name for name, value in record.items() if not _like(usual, name, value)]
        if wrong:
            raise ValueError(f"pictures of networks cannot have {wrong[0]} {record[wrong[0]]!r:.40}")
        own: dict[str, Any] = {
            n: tuple(v) if n == "channels" else v for n, v in record.items() if n != "format"
        }
        pictures = Pictures(**own)
        pictures.check()
        self.record = pictures.record

    def check(self, paths: Sequence[Path]) -> None:
        """Refuse classes of files in several formats; `load` reads every file."""
        folders: dict[Path, set[str]] = {}
        for path in paths:
            folders.setdefault(path.parent, set()).add(path.suffix.lower())
        for folder, suffixes in folders.items():
            if len(suffixes) > 1:
                raise ValueError(
                    f"{folder} mixes {' and '.join(sorted(suffixes))} files: a class needs one format"
                )

    def own_size(self, paths: Sequence[Path], usual: int) -> int:
        """The size of the paper's pictures: that of a network has no meaning of its own."""
        return SIZE

    def load(
        self, paths: Sequence[Path], size: int
    ) -> tuple[UInt8[Tensor, "n 3 size size"], dict[str, NDArray[Any]]]:
        """The pictures, drawn or from the cache; "content", "path" and the facts of `store.FACTS`."""
        drawn, bad = store.pictures(paths, self.record, size)
        if bad:
            error = next(iter(bad.values()))
            if len(bad) == 1:
                raise error
            raise ValueError(f"cannot read {len(bad)} networks, {some(bad)} (the first: {error})")
        pixels = np.stack([one.pixels for one in drawn]).transpose(0, 3, 1, 2)
        facts = np.array([one.facts for one in drawn])
        about = {name: facts[:, i] for i, name in enumerate(store.FACTS)}
        about |= {"content": np.array([one.key for one in drawn]), "path": np.array([*map(str, paths)])}
        return torch.from_numpy(np.ascontiguousarray(pixels)), about

    def quick(self, content: bytes, size: int) -> bool:
        """Say that a picture takes longer than a millisecond: it is drawn."""
        return False

    def squared(self, source: Any, size: int) -> NDArray[np.uint8]:
        """The picture (size, size, 3) of one network: a file, a `Network`, or a graph."""
        return self._drawn(source, size)[1].pixels

    def noted(self, source: Any, size: int) -> tuple[NDArray[np.uint8], str]:
        """The picture of one network, and what makes it doubtful."""
        drawn = self._drawn(source, size)
        facts = dict(zip(store.FACTS, store.facts_of(*drawn)[:, None], strict=True))
        doubts = self._doubts(facts)
        words = [DOUBTS[name][1] for name, true in doubts.items() if true.any()]
        return drawn[1].pixels, "; ".join(words)

    def _drawn(self, source: Any, size: int) -> tuple[Network, picture.Picture]:
        if isinstance(source, Graph) and not isinstance(source, type):
            source = network_of(source, self.record)
        elif isinstance(source, str | Path):
            source = read_network(source, self.record)
        elif not isinstance(source, Network):
            what = with_article(type(source).__name__)
            raise ValueError(
                f"{what} is no network: give the path of an edge list or GraphML, or a graph of "
                "networkx or igraph"
            )
        with store.one_thread():
            return source, picture.draw(source, self.record, size)

    def decoded(self, content: bytes, size: int, name: str = "") -> NDArray[np.uint8]:
        """The picture of the content of a file, which is read as the suffix of its name says.

        Without a suffix of networks it is GraphML if it begins with "<", else an edge list.
        """
        network.check_bytes(len(content), self.record)
        suffix = Path(name).suffix.lower()
        suffix = suffix if suffix in SUFFIXES else ""
        return self.squared(network.parse_network(content, suffix, self.record), size)

    def _doubts(self, about: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.bool_]]:
        """The networks of which each of `DOUBTS` is true.

        Exact co-occurrences do not depend on names; random walks do, where nodes are not told apart.
        """
        walked = (about["nodes"] > picture.EXACT) | (self.record["embedding"] != "ppmi")
        return {
            "parts": about["parts"] > 1,
            "axes": np.minimum(about["axis_gap"], about["skewness"]) < NEAR,
            "names": walked & (about["tied"] > 0),
            "header": about["guessed"] > 0,
        }

    def notes(self, images: Any, folder: Path, *, training: bool = True) -> tuple[str, ...]:
        """Say what makes a result doubtful, and of a training part what alone tells classes apart."""
        about, count = images.about, len(images)
        if not about:
            return ()
        if training and count > 1 and bool((images.pixels == images.pixels[:1]).all()):
            raise ValueError(
                f"the pictures of all {count} networks of {folder} are alike, so nothing can be "
                "learned from them: give networks that differ"
            )
        notes = []
        for name, true in self._doubts(about).items():
            if n := int(true.sum()):
                first = about["path"][true][0]
                notes.append(f"{folder}: {DOUBTS[name][0].format(n=n, count=count, first=first)}")
        if training:
            notes += _mixed(about["directed"], folder)
            notes += _apart(about["nodes"], images.labels.numpy(), images.classes)
        return tuple(notes)

    def programs(self) -> dict[str, bytes]:
        """The functions of this package that draw a network, as files that need numpy and scipy."""
        files = {f"{m.__name__.rpartition('.')[2]}.py": inspect.getsource(m) for m in (
            network, picture, reading, word2vec
        )}  # fmt: skip
        files["preprocess.py"] = PREPROCESS
        return {
            name: text.replace("from stepwell.data.pictures.", "from ").encode()
            for name, text in files.items()
        }


def _like(usual: Mapping[str, Any], name: str, value: object) -> bool:
    """Check that a setting exists and its value has the type of the usual one, or is a known word."""
    if name == "channels":
        return isinstance(value, list | tuple) and all(v in picture.CHANNELS for v in value)
    if name in WORDS:
        return value in WORDS[name]
    return name in usual and type(value) is type(usual[name])


def _mixed(directed: NDArray[Any], folder: Path) -> list[str]:
    """A note if some networks are directed and some are not."""
    arrows = int(directed.sum())
    if arrows in (0, len(directed)):
        return []
    return [
        f"{folder}: {arrows} of {len(directed)} networks are directed, so their direction alone may "
        "tell classes apart: --directed True or False reads all of them alike"
    ]


def _apart(nodes: NDArray[Any], labels: NDArray[Any], classes: Sequence[str]) -> list[str]:
    """A note if the number of nodes alone tells two classes apart."""
    from scipy.stats import rankdata

    for a in range(len(classes)):
        for b in range(a):
            one, other = nodes[labels == a], nodes[labels == b]
            if len(one) and len(other):
                ranks = rankdata(np.append(one, other))[: len(one)]
                area = (ranks.mean() - (len(one) + 1) / 2) / len(other)
                if max(area, 1 - area) > APART:
                    return [
                        f"the number of nodes alone tells {classes[b]!r} and {classes[a]!r} apart "
                        f"(area under the curve {max(area, 1 - area):.2f}): compare with it"
                    ]
    return []


PREPROCESS = '''"""Pictures of networks as a network of Stepwell takes them. Needs numpy and scipy.

    about = json.loads(Path("export.json").read_text())
    images = preprocess(["trade.graphml", "friends.edges"], about)  # (2, 3, size, size), float32

`stepwell export` writes this file beside the graphs. network.py, picture.py, reading.py and
word2vec.py are Stepwell's own.
"""

import numpy as np

from network import read_network
from picture import draw


def preprocess(sources, about):
    """Draw the networks in files for the network whose export.json is `about`."""
    how, size = about["drawing"], about["size"]
    pixels = np.stack([draw(read_network(s, how), how, size).pixels for s in sources])
    mean, std = (np.array(about[name], np.float32) * np.float32(255) for name in ("mean", "std"))
    return np.ascontiguousarray(((pixels.astype(np.float32) - mean) / std).transpose(0, 3, 1, 2))
'''
