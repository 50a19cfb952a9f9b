"""The page about a knowledge graph."""

import base64
import json
import re

import pytest

import stepwell
from stepwell.kg import Online
from stepwell.kg import update_report as history
from stepwell.recipes import train
from stepwell.report import write_report
from stepwell.training import Loop

FACTS = [(f"e{i}", f"r{i % 2}", f"e{(i * 7 + 3) % 20}") for i in range(40)]


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("STEPWELL_QUIET", "1")
    file = tmp_path / "base.tsv"
    file.write_text("".join("\t".join(fact) + "\n" for fact in FACTS))
    train(
        "dkge",
        triples=file,
        out=tmp_path / "run",
        warm_epochs=1,
        epochs=1,
        dim=8,
        loop=Loop(device="cpu"),
    )
    return tmp_path / "run"


def test_a_graph_without_updates(run, tmp_path):
    page = write_report([run], tmp_path / "page.html").read_text()
    assert "40 triples of 40 entities and 2 relations" in page
    assert "0 updates since" in page
    assert "<img" not in page


def test_updates_are_shown_and_names_are_escaped(run, tmp_path, monkeypatch):
    monkeypatch.setattr(history, "MAX_UPDATES", 3)
    with stepwell.kg.open(run) as graph:
        for i in range(4):
            graph.add([(f"<b>{i}", "r0", "e1"), ("e1", "r0", f"x{i}")])
            if i == 3:
                graph.remove([FACTS[0]])
            report = graph.update(Online(epochs=2), test=[("e1", "r1", "e2")])
    updates = json.loads((run / "updates.json").read_text())["updates"]
    assert len(updates) == 3
    assert ["picture" in update for update in updates] == [False, False, True]
    picture = updates[-1]["picture"]
    where = dict(zip(picture["names"], picture["before"], strict=True))
    assert [name for name, place in where.items() if place is None] in (
        [], ["<b>3"], ["x3"], ["<b>3", "x3"], ["x3", "<b>3"]
    )  # fmt: skip
    assert all(0 < update["measures"]["mrr"] <= 1 for update in updates)
    page = write_report([run], tmp_path / "page.html").read_text()
    assert "4 updates since, the last 3 of which are shown" in page
    assert re.findall(r"update \d+", page.split("<img")[0]) == ["update 2", "update 3", "update 4"]
    before, after = (f"{far:.3f}" for far in report.unlearnt)
    assert f"{before} → {after}" in page
    assert "Removed by the last update" in page
    assert " | ".join(FACTS[0]) in page
    assert page.count("<img") == 2
    svgs = re.findall(r"data:image/svg\+xml;base64,([^\"]*)", page)
    drawn = "".join(base64.b64decode(svg).decode() for svg in svgs)
    assert {"MRR", "seconds", picture["names"][0]} <= set(re.findall(r">([^<>]+)</text>", drawn))
    assert "mathdefault" not in drawn
    assert "<b>" not in page
    (run / "updates.json").write_text("[]")
    with pytest.raises(ValueError, match="delete it to report without updates"):
        write_report([run], tmp_path / "page.html")


def test_an_update_that_cannot_be_noted_is_an_update(run):
    (run / "updates.json").write_text("{")
    with stepwell.kg.open(run) as graph:
        graph.add([("new", "r0", "e1")])
        with pytest.warns(UserWarning, match="the update was not recorded for the report"):
            assert graph.update(Online(epochs=1)).added == 1
    with stepwell.kg.open(run, write=False) as graph:
        assert "new" in graph.entities
