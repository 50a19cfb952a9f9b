"""A trained graph, and a run of its own for each test."""

import pytest

from kg.graphs import FACTS, random_facts, write_facts
from stepwell.recipes import train
from stepwell.training import Loop


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("STEPWELL_QUIET", "1")


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kg")
    test = random_facts(7, 30)
    test = write_facts(folder / "test.tsv", [f for f in test if f not in FACTS])
    options = {
        "dim": 8,
        "context_size": 4,
        "warm_epochs": 2,
        "epochs": 2,
        "batch_size": 64,
        "test": test,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEPWELL_QUIET", "1")
        train("dkge", triples=write_facts(folder / "base.tsv", FACTS), out=folder / "run",
             loop=Loop(device="cpu"), **options)  # fmt: skip
    return folder / "run"


@pytest.fixture
def run(base, tmp_path):
    """A run of its own, which a test may change."""
    for name in ("net.safetensors", "results.json", "config.json"):
        (tmp_path / name).write_bytes((base / name).read_bytes())
    return tmp_path
