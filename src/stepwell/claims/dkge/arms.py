"""The arms of the study of changing graphs: ways to have vectors of every snapshot."""

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from stepwell.claims.dkge.snapshots import Examined, Snapshot, mean_measures, read_snapshots
from stepwell.data.triples import Fact, Names, numbered, write_triples
from stepwell.flags import call
from stepwell.kg.embedding import KINDS
from stepwell.kg.graph_file import read_state
from stepwell.kg.objective import DKGE, joint_vectors
from stepwell.kg.online import Online
from stepwell.kg.online_objective import initial_vectors
from stepwell.kg.ranking import Far, Side, distances_to_all
from stepwell.kg.snapshot import Rule
from stepwell.kg.state import Change, Encoder, State
from stepwell.kg.triple_index import HEAD, RELATION, TAIL, Rows
from stepwell.recipes.dkge import dkge
from stepwell.training import Loop

#: Passes with the encoder over the passes of translation before.
SHARE = 1 / 3
#: How an arm follows a snapshot: by nothing (a closed form places new entities), by an update under one
#: of its rules, or by more training of all vectors, on the added triples or on all.
Way = Literal["nothing", "touched", "context", "neighbour", "added triples", "all triples"]


def first(
    *, out: Path, data: str, steps: int, epochs: int, encoder: Encoder = "full", seed: int = 0
) -> dict[str, Any]:
    """Learn the first snapshot from scratch."""
    return _scratch(read_snapshots(data, steps)[0], out, epochs, encoder, seed)


def follow(
    *, out: Path, data: str, steps: int, base: Path, way: Way, part: str = "test",
    online_epochs: int = 20, unlearn: float = Online.unlearn, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Follow the snapshots from the graph `base`, which was learned at the first.

    Returns:
        Under "test" the means over steps of `Examined.measures`; "step_seconds", of the processor;
        "affected" and "trained", shares of the entities and of the triples; "stale", the share of
        entities whose joint vector differs from the one that their context gives.
    """
    state = read_state(base)
    measured, clock = [], time.perf_counter()
    for step, (start, before, now) in enumerate(_steps(data, steps, part)):
        old, new = dict.fromkeys(before.train), dict.fromkeys(now.train)
        added, removed = [f for f in new if f not in old], [f for f in old if f not in new]
        since = time.process_time()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + step)
            how = Online(epochs=online_epochs, unlearn=unlearn)
            extra = _step(state, added, removed, way, how)
        spent = {"step_seconds": time.process_time() - since} | extra
        if "trained" in spent:
            spent["stale"] = _stale(state)
        measured.append(_measures(state, start, before, now) | spent)
    return _result(measured, time.perf_counter() - clock)


def retrain(
    *, out: Path, data: str, steps: int, epochs: int, encoder: Encoder = "full", part: str = "test",
    seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Learn every later snapshot from scratch; return the same as `follow`."""
    measured, clock = [], time.perf_counter()
    for start, before, now in _steps(data, steps, part):
        results = _scratch(now, out / now.name, epochs, encoder, seed)
        state = read_state(out / now.name / "net.safetensors")
        spent = {"step_seconds": results["cpu_seconds"]}
        measured.append(_measures(state, start, before, now) | spent)
    return _result(measured, time.perf_counter() - clock)


def pykeen_retrain(
    *, out: Path, data: str, steps: int, epochs: int, model: str, part: str = "test", seed: int = 0
) -> dict[str, Any]:
    """Learn every later snapshot by pykeen's model; return the same as `follow`.

    Raises:
        ImportError: pykeen is not installed.
    """
    try:  # before the clock starts: the import takes seconds
        import pykeen.models
        import pykeen.training  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "these arms train by pykeen: pip install 'stepwell[kg]', or leave them out with --arms"
        ) from error
    measured, clock = [], time.perf_counter()
    for start, before, now in _steps(data, steps, part):
        entities, relations = Names("entity"), Names("relation")
        rows = numbered(now.train, entities, relations)
        since = time.process_time()
        far = _pykeen(rows, len(entities), len(relations), model, epochs, seed)
        spent = time.process_time() - since
        examined = Examined(entities, relations, start, before, now)
        measured.append(examined.measures(far) | {"step_seconds": spent})
    return _result(measured, time.perf_counter() - clock)


def _steps(data: str, steps: int, part: str) -> Iterator[tuple[Snapshot, Snapshot, Snapshot]]:
    """The first snapshot, and each snapshot with the one that follows it."""
    snapshots = read_snapshots(data, steps, part)
    for before, now in pairwise(snapshots):
        yield snapshots[0], before, now


def _measures(state: State, start: Snapshot, before: Snapshot, now: Snapshot) -> dict[str, float]:
    examined = Examined(state.names["entity"], state.names["relation"], start, before, now)
    return examined.measures(partial(distances_to_all, state.vectors()))


def _result(steps: list[dict[str, float]], seconds: float) -> dict[str, Any]:
    return {
        "test": mean_measures(steps),
        "steps": steps,
        "seconds": seconds,
        "cpu_seconds": sum(step["step_seconds"] for step in steps),
    }


def _scratch(snapshot: Snapshot, out: Path, epochs: int, encoder: Encoder, seed: int) -> dict[str, Any]:
    out.parent.mkdir(parents=True, exist_ok=True)
    file = out.parent / f"{out.name}.tsv"
    write_triples(file, snapshot.train)
    return call(
        dkge, triples=file, out=out, encoder=encoder, warm_epochs=epochs,
        epochs=max(1, round(SHARE * epochs)), seed=seed, loop=Loop(device="cpu"),
    )  # fmt: skip


def _step(
    state: State, added: list[Fact], removed: list[Fact], way: Way, how: Online
) -> dict[str, float]:
    if way == "nothing":
        _place(state, added, removed)
        return {}
    if way in ("added triples", "all triples"):
        removed_rows = state.rows_of(removed)
        _place(state, added, removed)
        _train_on(state, added if way == "added triples" else None, removed_rows, how)
        return {}
    rule: Rule = way  # type: ignore[assignment]  # the ways that are left
    change, learned = state.learn(added, removed, replace(how, rule=rule))
    state.apply(change, learned.tables(), 0)
    return {
        "affected": len(learned.affected["entity"]) / int(state.present().sum()),
        "trained": learned.trained / len(state.snapshot.index),
    }


def _stale(state: State) -> float:
    """The share of entities whose joint vector differs from the one that their context gives."""
    present = state.present()
    fresh = joint_vectors(state.net, state.snapshot)["entity"][: len(present)]
    apart = (fresh - state.vectors()["entity"]).norm(dim=1)[present]
    return float((apart > 1e-4).float().mean())


def _place(state: State, added: list[Fact], removed: list[Fact]) -> None:
    """Take a change without learning: old vectors stay, vectors of new elements are placed."""
    change = Change.of(state, added, removed)
    state.make_room()
    start = initial_vectors(state.joint, change.rows[: len(added)], change.new)
    tables: dict[str, Tensor] = {}
    for kind in KINDS:
        places = torch.from_numpy(change.new[kind])
        for name in ("knowledge", "joint", *(["contextual"] if state.net.has_context else [])):
            tables[f"{name}.{kind}.which"] = places
            tables[f"{name}.{kind}.rows"] = start[kind]
    state.apply(change, tables, 0)


def _train_on(state: State, added: list[Fact] | None, removed: Rows, how: Online) -> None:
    """Train all vectors further, on some triples or on all, at the rates of an update."""
    rows = state.snapshot.index.rows if added is None else state.rows_of(added)
    objective = DKGE(
        state.net.requires_grad_(True), state.snapshot, margin=state.settings.margin,
        negatives=state.settings.negatives, removed=torch.from_numpy(removed), unlearn=how.unlearn,
    )  # fmt: skip
    optimizer = torch.optim.Adam(objective.parameters(), lr=how.lr, fused=True)
    steps = how.epochs * math.ceil(len(rows) / how.batch_size)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(how.epochs):
        for batch in torch.from_numpy(rows)[torch.randperm(len(rows))].split(how.batch_size):
            optimizer.zero_grad()
            objective.training_step(batch).loss.backward()
            optimizer.step()
            falling.step()
    state.net.requires_grad_(False)
    state.joint = objective.all_joint()


def _pykeen(rows: Rows, entities: int, relations: int, model: str, epochs: int, seed: int) -> Far:
    """Train one of pykeen's models.

    Like ours: dimension, optimizer, highest rate, batch, number of false triples, margin, free norms,
    and unfiltered false triples. Unlike ours, the rate falls once along half a cosine, without warm-up
    or clipping.
    """
    from pykeen.losses import MarginRankingLoss
    from pykeen.models import RotatE, TransE
    from pykeen.training import SLCWATrainingLoop
    from pykeen.triples import CoreTriplesFactory

    factory = CoreTriplesFactory.create(
        torch.from_numpy(rows), num_entities=entities, num_relations=relations
    )
    # a complex number is two: both have 64 real ones an entity
    common: dict[str, Any] = {
        "triples_factory": factory,
        "random_seed": seed,
        "loss": MarginRankingLoss(margin=4.0),
    }
    net = (TransE(embedding_dim=64, scoring_fct_norm=2, entity_constrainer=None, **common)
           if model == "TransE"
           else RotatE(embedding_dim=32, **common))  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01, fused=True)
    loop = SLCWATrainingLoop(
        model=net, triples_factory=factory, optimizer=optimizer,
        lr_scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs),
        negative_sampler="bernoulli", negative_sampler_kwargs={"filtered": False},
    )  # fmt: skip
    loop.train(factory, num_epochs=epochs, batch_size=1024, use_tqdm=False, use_tqdm_batch=False)
    net.eval()

    @torch.no_grad()
    def far(triples: Rows, side: Side) -> Tensor:
        batch = torch.from_numpy(triples)
        if side == "tail":
            return -net.score_t(batch[:, [HEAD, RELATION]])
        return -net.score_h(batch[:, [RELATION, TAIL]])

    return far
