"""Embedding a graph from scratch, as a run."""

import json

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

import stepwell
from stepwell import recipes
from stepwell.kg import Online
from stepwell.kg.objective import DKGE
from stepwell.training import Loop

#: A small family: who is whose parent, and the two relations that follow from it.
PEOPLE = range(24)
FACTS = sorted(
    {(f"p{i}", "parent_of", f"p{j}") for i in PEOPLE for j in (2 * i + 1, 2 * i + 2) if j < 24}
    | {(f"p{j}", "child_of", f"p{i}") for i in PEOPLE for j in (2 * i + 1, 2 * i + 2) if j < 24}
    | {(f"p{i}", "sibling_of", f"p{i + 1}") for i in PEOPLE if i % 2 and i < 23}
)
CPU = Loop(device="cpu")


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setenv("STEPWELL_QUIET", "1")
    monkeypatch.chdir(tmp_path)
    parts = {"base": FACTS[4:], "valid": FACTS[:2], "test": FACTS[2:4]}
    for name, facts in parts.items():
        (tmp_path / f"{name}.tsv").write_text("".join("\t".join(f) + "\n" for f in facts))
    return tmp_path


def train(folder, out, **how):
    options = {
        "warm_epochs": 1,
        "epochs": 2,
        "dim": 8,
        "context_size": 4,
        "batch_size": 16,
        "loop": CPU,
    } | how
    return recipes.train("dkge", triples=folder / "base.tsv", out=folder / out, **options)


def test_a_graph_is_learnt(files):
    results = train(
        files, "run", warm_epochs=40, epochs=1, batch_size=64, negatives=8, lr=0.05, encoder="none"
    )
    assert results["dkge"]["triples"] == len(FACTS) - 4
    with stepwell.kg.open(files / "run") as graph:
        found = graph.evaluate(FACTS[4:])
    assert found["hits@3"] > 0.8  # chance: about 0.13


@pytest.mark.parametrize("warm", [0, 1])
def test_translation_comes_first_if_asked_for(files, warm):
    train(files, "run", warm_epochs=warm, epochs=1)
    phases = {p.name for p in (files / "run" / "phases").iterdir()}
    assert phases == ({"warm", "train"} if warm else {"train"})
    start = load_file(files / "run" / "net.safetensors")["contextual.entity"].std().item()
    assert start == pytest.approx(0.1 if warm else 1.0, rel=0.3)


@pytest.mark.parametrize("after", [2, 7])  # steps: in the first phase, and in the second
def test_a_resumed_run_is_the_uninterrupted_one(files, monkeypatch, after):
    train(files, "whole")
    steps, real = 0, DKGE.training_step

    def stops(self, batch):
        nonlocal steps
        steps += 1
        if steps == after:
            raise RuntimeError("killed")
        return real(self, batch)

    monkeypatch.setattr(DKGE, "training_step", stops)
    with pytest.raises(RuntimeError, match="killed"):
        train(files, "stopped")
    monkeypatch.setattr(DKGE, "training_step", real)
    train(files, "stopped")
    whole, stopped = (load_file(files / name / "net.safetensors") for name in ("whole", "stopped"))
    assert_close(stopped, whole, rtol=0, atol=0)


def test_training_again_leaves_an_updated_graph_alone(files):
    results = train(files, "run", test=files / "test.tsv")
    assert {"mrr", "hits@10", "mean_rank"} <= results["test"].keys()
    with stepwell.kg.open(files / "run") as graph:
        graph.add([("p0", "parent_of", "p99")])
        graph.update(Online(epochs=1))
        graph.compact()
    assert train(files, "run", test=files / "test.tsv") == results
    with stepwell.kg.open(files / "run", write=False) as graph:
        assert ("p0", "parent_of", "p99") in graph


@pytest.mark.parametrize("encoder", ["mean", "ungated", "none"])
def test_the_best_epoch_is_kept_and_ablations_train(files, encoder):
    train(files, "run", valid=files / "valid.tsv", encoder=encoder)
    lines = (files / "run" / "metrics.jsonl").read_text().splitlines()
    assert all(0 < json.loads(line)["val/mrr"] <= 1 for line in lines)
    with stepwell.kg.open(files / "run") as graph:
        graph.remove([FACTS[10]])
        assert graph.update(Online(epochs=1)).affected["entity"] >= 2


def test_what_cannot_be_ranked_is_left_out_and_overlap_is_refused(files):
    (files / "odd.tsv").write_text("p1\tparent_of\tnobody\np1\tsibling_of\tp7\n")
    with pytest.warns(UserWarning, match="--test: 1 of 2 triples have an entity or a relation that"):
        assert train(files, "run", test=files / "odd.tsv")["examples"] == 1
    with pytest.raises(ValueError, match="--valid: 53 triples are in --triples, too, such as p1"):
        train(files, "other", valid=files / "base.tsv")
    with pytest.raises(ValueError, match="graphs are embedded on the CPU"):
        train(files, "other", loop=Loop(device="cuda"))
    with pytest.raises(ValueError, match="--precision bf16: graphs are embedded in 32 bits"):
        train(files, "other", loop=Loop(device="cpu", precision="bf16"))
    assert not (files / "other").exists()
