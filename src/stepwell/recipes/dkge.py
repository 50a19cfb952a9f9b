"""Embed a knowledge graph from scratch; `stepwell kg` then follows its changes."""

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from stepwell.data.triples import (
    Fact,
    Names,
    TripleBatches,
    facts_digest,
    numbered,
    read_triples,
)
from stepwell.evaluation.link_prediction import link_measures
from stepwell.kg.embedding import KINDS, GraphEmbedding, Kind
from stepwell.kg.graph_file import write_state
from stepwell.kg.objective import DKGE
from stepwell.kg.ranking import distances_to_all, rank_triples
from stepwell.kg.snapshot import Snapshot
from stepwell.kg.state import Encoder, Settings, State
from stepwell.kg.triple_index import Rows, TripleIndex
from stepwell.ranges import check_numbers
from stepwell.results import read_results
from stepwell.training import Loop, Run, fit, optimizer_of


def dkge(
    *,
    triples: Path,
    out: Path,
    valid: Path | None = None,
    test: Path | None = None,
    encoder: Encoder = "full",
    dim: int = 64,
    context_size: int = 15,
    margin: float = 4.0,
    negatives: int = 1,
    warm_epochs: int = 60,
    epochs: int = 20,
    batch_size: int = 1024,
    lr: float = 0.01,
    seed: int = 0,
    loop: Annotated[Loop, tyro.conf.OmitArgPrefixes] = Loop(device="cpu"),
) -> dict[str, Any]:
    """Embed a knowledge graph (DKGE), to be updated online as it changes.

    Examples:
        stepwell train dkge --triples base.tsv --out runs/graph
        stepwell train dkge --triples base.tsv --test test.tsv --out runs/graph

    Args:
        triples: a file with one triple a line: head, relation and tail, separated by tabs.
        out: the run directory; if it holds this run already, training goes on where it stopped.
        valid: triples by which the best epoch is chosen (MRR); by default the last one is kept.
        test: triples to rank; those with an entity or relation that `triples` lacks are left out.
        encoder: `full`: what a vector is made of is itself and its context, weighted by attention and
            a gate; `mean`: no attention; `ungated`: no gate; `none`: no context, which is TransE.
        dim: of all vectors.
        context_size: neighbours, or paths of a relation, in a context; more are sampled.
        margin: how much farther than a true triple a false one has to be.
        negatives: false triples drawn for each true one.
        warm_epochs: passes over the triples as TransE, whose vectors the encoder starts from (0: it
            starts from random ones, as in the paper's text).
        epochs: passes over the triples with the encoder.
        lr: the highest learning rate, of Adam; a third of it after `warm_epochs`.
        seed: of vectors, samples, order and steps.
    """
    arguments = dict(locals())
    check_numbers(arguments)
    _check_loop(loop)
    files = {"triples": triples, "valid": valid, "test": test}
    parts = {name: read_triples(file) if file else [] for name, file in files.items()}
    data = _about(parts)
    names = Names("entity"), Names("relation")
    rows = numbered(parts["triples"], *names)
    held_out = {part: _known(parts[part], part, *names) for part in ("valid", "test")}
    with Run.start(out, "dkge", arguments, data=data) as run:
        if (out / "results.json").exists():  # updates may have changed the graph since
            return read_results(out)
        torch.manual_seed(seed)
        shape = Settings(dim, encoder, context_size, margin, negatives, seed)
        net = shape.net(*map(len, names))
        facts = Snapshot.of(rows, size=context_size, seed=seed)
        known = facts.index.changed(held_out["valid"], rows[:0])

        def train(phase: str, net: GraphEmbedding, epochs: int, lr: float) -> None:
            objective = DKGE(net, facts, margin=margin, negatives=negatives)
            fit(
                objective,
                TripleBatches(torch.from_numpy(rows), batch_size, seed=seed),
                optimizer_of("adam", lr, weight_decay=0.0, fused=True),
                run,
                phase=phase,
                epochs=epochs,
                validate=(lambda: measured(objective.all_joint(), held_out["valid"], known))
                if valid
                else None,
                select=lambda values: values["mrr"],
                loop=replace(loop, device="cpu"),
            )

        if warm_epochs:
            plain = replace(shape, encoder="none").net(*map(len, names))
            train("warm", plain, warm_epochs, lr)
            net.start_from({kind: plain.knowledge[kind].detach() for kind in KINDS})
        train("train", net, epochs, lr / 3 if warm_epochs else lr)
        known = known.changed(held_out["test"], rows[:0])
        return _finish(run, State.learnt(shape, net, facts, *names), held_out["test"], known)


def _check_loop(loop: Loop) -> None:
    """Refuse what graphs are not trained by."""
    if loop.device not in ("auto", "cpu"):
        raise ValueError(f"--device {loop.device}: graphs are embedded on the CPU; use auto or cpu")
    if loop.devices > 1:
        raise ValueError(
            f"--devices {loop.devices}: graphs are embedded by one process; leave the flag out"
        )
    if loop.precision != "32":
        raise ValueError(
            f"--precision {loop.precision}: graphs are embedded in 32 bits; leave it out"
        )


def measured(joint: Mapping[Kind, Tensor], rows: Rows, known: TripleIndex) -> Mapping[str, float]:
    """MRR, Hits@k and the mean rank of triples (n, 3), known ones left out of their candidates."""
    every = torch.ones(len(joint["entity"]), dtype=torch.bool)
    return link_measures(rank_triples(partial(distances_to_all, joint), rows, known, every))


def _finish(run: Run, state: State, test: Rows, known: TripleIndex) -> dict[str, Any]:
    """Write the graph and the results."""
    write_state(state, run.path / "net.safetensors")
    started = time.perf_counter()
    far = partial(distances_to_all, state.vectors())
    found = link_measures(rank_triples(far, test, known, state.present()))
    last = list({line["phase"]: line for line in run.metrics()}.values())
    results: dict[str, Any] = {
        "kind": "graph",
        "rows": None,
        "test": dict(found) if len(test) else {},
        "examples": len(test),
        "costs": {},
        **{name: sum(line[name] for line in last) for name in ("seconds", "cpu_seconds")},
        "dkge": {
            "entities": len(state.names["entity"]),
            "relations": len(state.names["relation"]),
            "triples": len(state.snapshot.index),
            "loss": last[-1]["loss"],
            "test_seconds": time.perf_counter() - started,
        },
    }
    run.write_json("results.json", results)
    return results


def _known(facts: Sequence[Fact], part: str, entities: Names, relations: Names) -> Rows:
    """Triples by number, without those that have a name which training does not see."""
    seen = [f for f in facts if f[0] in entities and f[1] in relations and f[2] in entities]
    if len(seen) < len(facts):
        warnings.warn(
            f"--{part}: {len(facts) - len(seen):,} of {len(facts):,} triples have an entity or a "
            "relation that --triples lacks, so they cannot be ranked: they are left out",
            stacklevel=3,
        )
    return numbered(seen, entities, relations)


def _about(parts: Mapping[str, Sequence[Fact]]) -> dict[str, Any]:
    """What a run is trained on, for its config.json.

    Raises:
        ValueError: a triple is in more than one part.
    """
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
