"""The task of predicting links of a knowledge graph: how a run reads triples and writes its results."""

import time
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stepwell.data.triples import Fact, Names, facts_digest, numbered, read_triples
from stepwell.evaluation.link_prediction import link_measures
from stepwell.kg.embedding import Kind
from stepwell.kg.graph_file import write_state
from stepwell.kg.ranking import distances_to_all, rank_triples
from stepwell.kg.state import State
from stepwell.kg.triple_index import Rows, TripleIndex
from stepwell.tasks.finishing import seconds_of
from stepwell.training import Loop, Run


class Links(NamedTuple):
    """The triples of a run, by number.

    names: of entities, and of relations.
    train, valid, test: (n, 3), head, relation and tail.
    about: the record of the data in config.json.
    """

    names: tuple[Names, Names]
    train: Rows
    valid: Rows
    test: Rows
    about: Mapping[str, Any]


def read_links(triples: Path, valid: Path | None, test: Path | None) -> Links:
    """Read the files of a run's triples; ValueError if a triple is in more than one part."""
    files = {"triples": triples, "valid": valid, "test": test}
    parts = {name: read_triples(file) if file else [] for name, file in files.items()}
    about = _about(parts)
    names = Names("entity"), Names("relation")
    rows = numbered(parts["triples"], *names)
    held_out = {part: _known(parts[part], part, *names) for part in ("valid", "test")}
    return Links(names, rows, **held_out, about=about)


def check_loop(loop: Loop) -> None:
    """Refuse devices and precisions that graphs are not trained on."""
    if loop.device not in ("auto", "cpu"):
        raise ValueError(f"--device {loop.device}: graphs are embedded on the CPU; use auto or cpu")
    if loop.devices > 1:
        raise ValueError(
            f"--devices {loop.devices}: graphs are embedded by one process; leave the flag out"
        )
    if loop.precision != "32":
        raise ValueError(f"--precision {loop.precision}: graphs are embedded in 32 bits; leave it out")


def measured(joint: Mapping[Kind, Tensor], rows: Rows, known: TripleIndex) -> Mapping[str, float]:
    """MRR, Hits@k and the mean rank of triples (n, 3); `known` triples are no candidates."""
    every = torch.ones(len(joint["entity"]), dtype=torch.bool)
    return link_measures(rank_triples(partial(distances_to_all, joint), rows, known, every))


def finish_links(run: Run, state: State, test: Rows, known: TripleIndex) -> dict[str, Any]:
    """Write the graph, rank the test triples, and write the results."""
    write_state(state, run.path / "net.safetensors")
    started = time.perf_counter()
    distances = partial(distances_to_all, state.vectors())
    ranked = link_measures(rank_triples(distances, test, known, state.present()))
    own = {
        "entities": len(state.names["entity"]), "relations": len(state.names["relation"]),
        "triples": len(state.snapshot.index), "loss": run.metrics()[-1]["loss"],
        "test_seconds": time.perf_counter() - started,
    }  # fmt: skip
    results = {
        "kind": "graph", "rows": None, "test": dict(ranked) if len(test) else {},
        "examples": len(test), "costs": {}, **seconds_of(run), "dkge": own,
    }  # fmt: skip
    run.write_json("results.json", results)
    return results


def _known(facts: Sequence[Fact], part: str, entities: Names, relations: Names) -> Rows:
    """Triples by number, without triples whose names do not occur in training."""
    known = [f for f in facts if f[0] in entities and f[1] in relations and f[2] in entities]
    if len(known) < len(facts):
        warnings.warn(
            f"--{part}: {len(facts) - len(known):,} of {len(facts):,} triples have an entity or a "
            "relation that --triples lacks, so they cannot be ranked: they are left out",
            stacklevel=4,
        )
    return numbered(known, entities, relations)


def _about(parts: Mapping[str, Sequence[Fact]]) -> dict[str, Any]:
    """The record of the data in config.json."""
    train = set(parts["triples"])
    for part in ("valid", "test"):
        if both := train.intersection(parts[part]):
            raise ValueError(
                f"--{part}: {len(both):,} triples are in --triples, too, such as "
                f"{' | '.join(min(both))}: take them out of one of the two"
            )
    return {
        "name": "triples",
        "fingerprint": "/".join(facts_digest(facts) for facts in parts.values()),
        **{part: len(facts) for part, facts in parts.items()},
    }
