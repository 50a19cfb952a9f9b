"""Accuracy of network pictures whose nodes PPMI embeds, and of the same whose nodes gensim embeds.

`python -m benchmarks.network_embeddings --seeds 10`: gensim's word2vec, on walks of the same numbers,
takes the place of ours. All else is equal: the networks of the study's four tasks, 20 dimensions, one
channel of counts, the CNN and its training. `results/network_embeddings.jsonl` gets a line for each
task, seed and rival, and the same command goes on. It needs gensim (extra `studies`). Since version 4
its first vectors are twice as long as in 2017; the rival `cbow-2017` begins with vectors as short.
"""

import argparse
import json
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from benchmarks.__main__ import RESULTS, hardware
from benchmarks.network_pictures import gensim_vectors
from stepwell.claims.cnc.arms import TASKS, pictures
from stepwell.claims.kit.inference import Spread, interval, summary, verdict_of
from stepwell.data.pictures import picture
from stepwell.training.run import commit

NODES, TRAIN, TEST, EPOCHS = 300, 100, 250, 20
RIVALS = ("cbow", "cbow-2017", "skipgram")
LINES = RESULTS / "network_embeddings.jsonl"


def gensim_word2vec(
    walks: NDArray[np.int64], nodes: int, window: int, dimensions: int, rng: np.random.Generator,
    cbow: bool, *, first: float,
) -> NDArray[np.float64]:  # fmt: skip
    """gensim's vectors of the nodes (nodes, dimensions), in place of those of ours."""
    known = gensim_vectors(walks, window, dimensions, int(rng.integers(2**31)), cbow, first)
    vectors = np.zeros((nodes, dimensions))
    for node in range(nodes):
        if str(node) in known:
            vectors[node] = known[str(node)]
    return vectors


def accuracy(task: str, seed: int, embedding: str) -> float:
    """Test accuracy of a CNN on pictures by "ppmi" or by one of gensim's `RIVALS`, in percent."""
    name, _, year = embedding.partition("-")
    word2vec = partial(gensim_word2vec, first=0.5 if year else 1.0)
    with (
        tempfile.TemporaryDirectory() as out,
        tempfile.TemporaryDirectory() as cache,  # of its own: gensim's pictures have the flags of ours
        mock.patch.dict(os.environ, STEPWELL_DATA=cache, STEPWELL_QUIET="1"),
        mock.patch.object(picture, "word2vec", word2vec),
    ):
        result = pictures(
            out=Path(out), data="", nodes=NODES, train=TRAIN, test=TEST, epochs=EPOCHS, field_epochs=1,
            seed=seed, tasks=(task,), fields=False, embedding=name, dimensions=20,
            channels=("counts",),
        )  # fmt: skip
    return 100 * float(result["test"][f"{task}/accuracy"])


def kept() -> list[dict[str, Any]]:
    """The lines that are there."""
    return [json.loads(line) for line in LINES.read_text().splitlines()] if LINES.exists() else []


def compared(rival: str, margin: float = -2.0) -> str:
    """A line for each task: the mean difference of PPMI and gensim, its 90 % interval, a verdict."""
    lines, text = kept(), []
    for task in TASKS:
        pairs = [line for line in lines if (line["task"], line["gensim"]) == (task, rival)]
        differences = [line["ppmi"] - line["accuracy"] for line in pairs]
        if len(differences) < 2:
            continue
        found = summary(differences)
        spread = Spread(found["std"], found["n"] - 1)
        low, high = interval(found["mean"], found["n"], spread, 0.9)
        verdict = verdict_of(low, high, margin, below=False)
        ours, theirs = (np.mean([line[key] for line in pairs]) for key in ("ppmi", "accuracy"))
        text.append(
            f"{task}: PPMI {ours:.1f} %, gensim's {rival} {theirs:.1f} %, {len(pairs)} seeds: "
            f"{found['mean']:+.2f} points ({low:.2f} to {high:.2f}), margin {margin:g}: {verdict}"
        )
    return "\n".join(text)


def main() -> None:
    """Run what is missing, and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--gensim", choices=RIVALS, default="cbow", help="its embedding")
    arguments = parser.parse_args()
    done = {(line["task"], line["seed"], line["gensim"]) for line in kept()}
    for seed in range(arguments.seeds):
        for task in TASKS:
            if (task, seed, arguments.gensim) in done:
                continue
            line = {
                "task": task, "seed": seed, "gensim": arguments.gensim,
                "ppmi": accuracy(task, seed, "ppmi"),
                "accuracy": accuracy(task, seed, arguments.gensim),
                "nodes": NODES, "test networks": 2 * TEST, "date": time.strftime("%Y-%m-%d"),
                "commit": commit(), "hardware": hardware(),
            }  # fmt: skip
            with LINES.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(line)
    print(compared(arguments.gensim))


if __name__ == "__main__":
    main()
