"""The flags of a run that say how complex networks are drawn."""

from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, ClassVar, Literal

from tyro.conf import FlagConversionOff

from stepwell.flags import flag
from stepwell.ranges import check_numbers

#: Nodes on the walks from one node, and numbers of a node's vector, at most.
MOST_STEPS, MOST_DIMENSIONS = 100_000, 128
Channel = Literal["counts", "linear", "degree", "span", "counts13", "counts23"]


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Pictures of complex networks, if the data are networks.

    Attributes:
        embedding: ppmi: factorised co-occurrences; cbow or skipgram: word2vec on walks.
        walks: random walks from each node.
        walk_length: nodes of a walk.
        window: most steps on a walk between two nodes that occur together.
        dimensions: of a node's vector.
        channels: one or three of counts (of nodes in a cell, in logarithms), linear (counts as
            they are), degree (mean in a cell), span (mean distance to neighbours), counts13 and
            counts23 (other axes).
        walk_seed: of walks; the same file and seed give the same picture.
        directed: read edges as directed; by default as the file says.
        loops: self-loops: keep, drop or refuse.
        multi_edges: edges that are named twice: merge (the larger weight), keep (the sum) or refuse.
        max_edges: most edges of a network.
    """

    TITLE: ClassVar = "network picture"
    embedding: Annotated[Literal["ppmi", "cbow", "skipgram"], flag("NAME")] = "ppmi"
    walks: int = 10
    walk_length: int = 10
    window: int = 5
    dimensions: int = 8
    channels: Annotated[tuple[Channel, ...], flag("NAME ...")] = ("counts", "degree", "span")
    walk_seed: int = 0
    directed: Annotated[FlagConversionOff[bool | None], flag("{True,False}", "as the file says")] = None
    loops: Annotated[Literal["keep", "drop", "refuse"], flag("RULE")] = "drop"
    multi_edges: Annotated[Literal["merge", "keep", "refuse"], flag("RULE")] = "merge"
    max_edges: int = 1_000_000

    def check(self) -> None:
        """Refuse numbers that fill the memory, and two channels; ValueError."""
        check_numbers(vars(self))
        if self.walks * self.walk_length > MOST_STEPS:
            raise ValueError(
                f"--walks {self.walks} of --walk-length {self.walk_length}: at most {MOST_STEPS:,} "
                "nodes on the walks from one node"
            )
        pairs = self.walk_length * min(self.window, self.walk_length)
        if pairs > MOST_STEPS:
            raise ValueError(
                f"--window {self.window} on walks of --walk-length {self.walk_length}: at most "
                f"{MOST_STEPS:,} pairs of nodes on a walk"
            )
        if self.dimensions > MOST_DIMENSIONS:
            raise ValueError(f"--dimensions {self.dimensions}: at most {MOST_DIMENSIONS}")
        axes = 3 if {"counts13", "counts23"} & {*self.channels} else 2
        if self.dimensions < axes:
            raise ValueError(
                f"--dimensions {self.dimensions}: these channels show {axes} axes, so {axes} or more"
            )
        if len(self.channels) not in (1, 3):
            raise ValueError(
                f"--channels {' '.join(self.channels)}: name one for a grey picture, or three"
            )

    @property
    def changed(self) -> str:
        """The first flag with another value than the default, as it is written; empty if none has."""
        usual = Pictures()
        changed = (f.name for f in fields(self) if getattr(self, f.name) != getattr(usual, f.name))
        return next(changed, "").replace("_", "-")

    @property
    def record(self) -> dict[str, Any]:
        """The settings as a card records them."""
        return {"format": "network"} | asdict(self) | {"channels": list(self.channels)}
