"""Hold out a share of what each snapshot of a graph adds.

`python -m benchmarks.holdout SNAPSHOTS OUT --share 0.15`: SNAPSHOTS is a folder of folders, as
`stepwell verify dkge` takes it. In some sets, such as YAGO-3SP, all snapshots have the same test
triples. These ask for no new triple, so an update cannot show its worth. In OUT, a random share of the
triples that a snapshot adds moves from train.tsv to test.tsv, and stays there while it is true. Another
--seed draws other triples, to choose settings by.
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
    """Write the snapshots with their new test parts, and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("snapshots", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--share", type=float, default=0.15, help="share of the added triples")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folders = snapshot_folders(arguments.snapshots)
    if len(folders) < 2:
        parser.error(
            f"{arguments.snapshots} needs two folders or more with train.tsv, valid.tsv and test.tsv"
        )
    if not 0 < arguments.share < 1:
        parser.error(f"--share must lie above 0 and below 1, got {arguments.share}")
    read = [Split(*(read_triples(f / f"{part}.tsv") for part in Split._fields)) for f in folders]
    for folder, old, new in zip(
        folders, read, held_out(read, arguments.share, arguments.seed), strict=True
    ):
        into = arguments.out / folder.name
        into.mkdir(parents=True, exist_ok=True)
        for part, facts in new._asdict().items():
            write_triples(into / f"{part}.tsv", facts)
        print(f"{folder.name}: {len(new.train):,} to learn, {len(new.test):,} to test, "
              f"{len(new.test) - len(old.test)} of them added")  # fmt: skip


def held_out(snapshots: list[Split], share: float, seed: int) -> list[Split]:
    """Move a share of the triples that each snapshot adds from `train` to `test`."""
    rng = np.random.default_rng(seed)
    known = {fact for part in snapshots[0] for fact in part}
    reserved: set[Fact] = set()
    splits = [snapshots[0]]
    for now in snapshots[1:]:
        added = [fact for fact in now.train if fact not in known]
        drawn = rng.permutation(len(added))[: round(share * len(added))]
        reserved |= {added[i] for i in drawn}
        known |= set(added)
        moved = [fact for fact in now.train if fact in reserved]
        train = [fact for fact in now.train if fact not in reserved]
        splits.append(now._replace(train=train, test=[*now.test, *moved]))
    return splits


if __name__ == "__main__":
    main()
