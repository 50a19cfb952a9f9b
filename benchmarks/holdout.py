"""Hold out a share of what each snapshot of a graph adds.

`python -m benchmarks.holdout SNAPSHOTS OUT --share 0.15`: SNAPSHOTS is a folder of folders, as
`stepwell verify dkge` takes it. Where the test triples of all snapshots are the same, as in YAGO-3SP,
nothing that came since is ever asked for, and an update cannot show that it is good for anything. In
OUT a drawn share of the triples that a snapshot adds is moved from train.tsv to test.tsv, and stays
there for as long as it is true. With another --seed others are drawn, to choose settings by.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stepwell.claims.dkge.snapshots import snapshot_folders
from stepwell.data.triples import Fact, read_triples, write_triples


class Split(NamedTuple):
    """Triples of one snapshot."""

    train: list[Fact]
    valid: list[Fact]
    test: list[Fact]


def main() -> None:
    """Write the snapshots anew, and say what each one's test has."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("snapshots", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--share", type=float, default=0.15, help="of what is added, 0 to 1")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    folders = snapshot_folders(given.snapshots)
    if len(folders) < 2:
        parser.error(f"{given.snapshots} has no two folders with train.tsv, valid.tsv and test.tsv")
    if not 0 < given.share < 1:
        parser.error("--share is more than 0 and less than 1")
    read = [Split(*(read_triples(f / f"{part}.tsv") for part in Split._fields)) for f in folders]
    for folder, old, new in zip(
        folders, read, held_out(read, given.share, given.seed), strict=True
    ):
        into = given.out / folder.name
        into.mkdir(parents=True, exist_ok=True)
        for part, facts in new._asdict().items():
            write_triples(into / f"{part}.tsv", facts)
        print(f"{folder.name}: {len(new.train):,} to learn, {len(new.test):,} to test, "
              f"{len(new.test) - len(old.test)} of them added")  # fmt: skip


def held_out(snapshots: list[Split], share: float, seed: int) -> list[Split]:
    """The same snapshots, with a share of what each one adds moved from `train` to `test`."""
    rng = np.random.default_rng(seed)
    seen = {fact for part in snapshots[0] for fact in part}
    held: set[Fact] = set()
    found = [snapshots[0]]
    for now in snapshots[1:]:
        added = [fact for fact in now.train if fact not in seen]
        drawn = rng.permutation(len(added))[: round(share * len(added))]
        held |= {added[i] for i in drawn}
        seen |= set(added)
        moved = [fact for fact in now.train if fact in held]
        train = [fact for fact in now.train if fact not in held]
        found.append(now._replace(train=train, test=[*now.test, *moved]))
    return found


if __name__ == "__main__":
    main()
