"""Embed a knowledge graph from scratch; `stepwell kg` then follows its changes."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch

from stepwell.data.triples import TripleBatches
from stepwell.flags import Flags, checked, flag
from stepwell.kg.embedding import KINDS, GraphEmbedding
from stepwell.kg.objective import DKGE
from stepwell.kg.snapshot import Snapshot
from stepwell.kg.state import Encoder, Settings, State
from stepwell.recipes import flags
from stepwell.results import read_results
from stepwell.tasks.links import check_loop, finish_links, measured, read_links
from stepwell.training import Loop, Run, check_resumes, fit, optimizer_of
from stepwell.training.progress import tell


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """Vectors of the graph, and the loss that they are learned by.

    Attributes:
        encoder: full: a vector joins its own embedding and its context, weighted by attention
            and a gate; mean: no attention; ungated: no gate; none: no context (TransE).
        dim: dimension of all vectors.
        context_size: neighbours, or paths of a relation, in a context; more are sampled.
        margin: least distance between a true triple and a false one.
        negatives: false triples drawn for each true one.
    """

    encoder: Annotated[Encoder, flag("ENCODER")] = "full"
    dim: int = 64
    context_size: int = 15
    margin: float = 4.0
    negatives: int = 1


@dataclass(frozen=True, kw_only=True)
class Training:
    """Training of the vectors by Adam.

    Attributes:
        warm_epochs: passes as TransE, whose vectors the encoder starts from; with zero it
            starts from random vectors, as in the paper's text.
        epochs: passes with the encoder.
        batch_size: triples in a step.
        lr: highest learning rate; a third of it after --warm-epochs.
        seed: seed of vectors, samples, order and steps.
    """

    warm_epochs: int = 60
    epochs: int = 20
    batch_size: int = 1024
    lr: float = 0.01
    seed: int = 0


def dkge(
    *,
    triples: Annotated[Path, flag("FILE")],
    out: flags.Out,
    valid: Annotated[Path | None, flag("FILE")] = None,
    test: Annotated[Path | None, flag("FILE")] = None,
    embedding: Flags[Embedding] = Embedding(),
    training: Flags[Training] = Training(),
    loop: Flags[Loop] = Loop(device="cpu"),
) -> dict[str, Any]:
    """Embed a knowledge graph (DKGE), to be updated online as it changes.

    Examples:
        stepwell train dkge --triples base.tsv --out runs/graph
        stepwell train dkge --triples base.tsv --test test.tsv --out runs/graph

    Args:
        triples: file with one triple a line: head, relation and tail, separated by tabs.
        valid: triples to choose the best epoch by (MRR); default: the last epoch.
        test: triples to rank; triples with names that --triples lacks are left out.
    """
    check_loop(loop)
    arguments = checked(locals())
    check_resumes("dkge", arguments)
    loop = replace(loop, device="cpu")
    links = read_links(triples, valid, test)
    with Run.start(out, "dkge", arguments, data=links.about) as run:
        if (out / "results.json").exists():  # updates may have changed the graph since
            return read_results(out)
        torch.manual_seed(training.seed)
        shape = Settings(
            embedding.dim, embedding.encoder, embedding.context_size, embedding.margin,
            embedding.negatives, training.seed,
        )  # fmt: skip
        net = shape.net(*map(len, links.names))
        snapshot = Snapshot.of(links.train, size=embedding.context_size, seed=training.seed)
        known = snapshot.index.changed(links.valid, links.train[:0])

        def learn(phase: str, net: GraphEmbedding, epochs: int, lr: float) -> None:
            objective = DKGE(net, snapshot, margin=embedding.margin, negatives=embedding.negatives)
            batches = torch.from_numpy(links.train), training.batch_size
            adam = optimizer_of("adam", lr, weight_decay=0.0, fused=True)
            validate = (lambda: measured(objective.all_joint(), links.valid, known)) if valid else None
            fit(
                objective, TripleBatches(*batches, seed=training.seed), adam, run, phase=phase,
                epochs=epochs, validate=validate, select=lambda values: values["mrr"], loop=loop,
            )  # fmt: skip

        warm = training.warm_epochs
        if warm:
            tell(
                f"{warm} epochs as TransE first (--warm-epochs), then {training.epochs} with the "
                "encoder",
                quiet=not run.writes,
            )
            plain = replace(shape, encoder="none").net(*map(len, links.names))
            learn("warm", plain, warm, training.lr)
            net.start_from({kind: plain.knowledge[kind].detach() for kind in KINDS})
        learn("train", net, training.epochs, training.lr / 3 if warm else training.lr)
        known = known.changed(links.test, links.train[:0])
        state = State.learned(shape, net, snapshot, *links.names)
        return finish_links(run, state, links.test, known)
