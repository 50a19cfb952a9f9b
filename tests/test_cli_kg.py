"""Knowledge graphs by the command line."""

import inspect
import json
import re
import shlex
from pathlib import Path

import pytest

from stepwell import cli
from stepwell.commands.kg import KG
from stepwell.kg import Online
from stepwell.kg import open as open_graph

FACTS = [(f"e{i}", f"r{i % 2}", f"e{(i * 7 + 3) % 20}") for i in range(40)]


@pytest.fixture
def stepwell(capsys, monkeypatch):
    monkeypatch.setenv("STEPWELL_QUIET", "1")

    def run(*arguments):
        code = 0
        try:
            cli.main([str(a) for a in arguments])
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return run


def write(path, facts):
    path.write_text("".join("\t".join(fact) + "\n" for fact in facts))
    return path


@pytest.fixture
def run(tmp_path, stepwell):
    base = write(tmp_path / "base.tsv", FACTS)
    test = write(tmp_path / "test.tsv", [("e1", "r0", "e2"), ("e2", "r1", "e3")])
    code, out, err = stepwell(
        "train", "dkge", "--triples", base, "--test", test, "--out", tmp_path / "run",
        "--warm-epochs", 1, "--epochs", 1, "--dim", 8, "--device", "cpu",
    )  # fmt: skip
    assert (code, "MRR" in out, "embedded 40 triples of 40 entities" in err) == (0, True, True), err
    return tmp_path / "run"


def test_an_update_whose_test_triples_are_all_unknown_measures_nothing(stepwell, run, tmp_path):
    new = write(tmp_path / "new.tsv", [("e1", "r0", "e4")])
    strange = write(tmp_path / "strange.tsv", [("nobody", "r0", "no one")])
    code, out, _ = stepwell(
        "kg", "update", run, "--add", new, "--epochs", 1, "--test", strange, "--json"
    )
    assert code == 0
    assert json.loads(out)["measures"] == {"triples": 0, "left_out": 1}
    again = write(tmp_path / "again.tsv", [("e1", "r0", "e5")])
    code, _, err = stepwell("kg", "update", run, "--add", again, "--epochs", 1, "--test", strange)
    assert (code, "the graph has none of these names, so nothing is ranked" in err) == (0, True)


def test_change_ask_and_evaluate(stepwell, run, tmp_path):
    new = write(
        tmp_path / "new.tsv", [("Paris", "capital_of", "France"), ("e1", "r0", "Paris"), FACTS[0]]
    )
    gone = write(tmp_path / "gone.tsv", FACTS[5:8])
    code, out, err = stepwell(
        "kg",
        "update",
        run,
        "--add",
        new,
        "--remove",
        gone,
        "--epochs",
        2,
        "--test",
        tmp_path / "test.tsv",
    )
    assert code == 0, err
    assert "note: 1 triples to add are there already" in err
    assert "+2 -3 triples: 39 now" in out
    code, out, _ = stepwell(
        "kg", "query", run, "--head", "Paris", "--relation", "capital_of", "--k", 3, "--json"
    )
    answers = json.loads(out)
    assert (code, len(answers), {*answers[0]}) == (0, 3, {"name", "distance", "known"})
    code, out, _ = stepwell("kg", "query", run, "--relation", "capital_of", "--tail", "France")
    assert (code, "? | capital_of | France" in out) == (0, True)
    code, out, _ = stepwell("kg", "query", run, "--near", "Paris", "--k", 2)
    assert (code, "nearest to Paris" in out) == (0, True)
    code, out, _ = stepwell(
        "kg", "eval", run, "--test", tmp_path / "test.tsv", "--gone", gone, "--json"
    )
    assert (code, json.loads(out)["triples"], 0 <= json.loads(out)["auc"] <= 1) == (0, 2, True)
    code, out, _ = stepwell("kg", "eval", run, "--test", new, "--ask", "tail", "--gone", gone)
    assert (code, "a gone triple is more distant than a true one in" in out) == (0, True)
    code, out, err = stepwell("kg", "update", run)
    assert (code, out, "nothing to learn" in err) == (0, "", True)
    code, out, _ = stepwell(
        "kg", "update", run, "--remove", gone, "--ignore-absent", "--json", "--max-seconds", 5
    )
    assert (code, json.loads(out)["removed"]) == (0, 0)


BAD = {
    "malformed": (["update", "RUN", "--add", "BAD"], "bad.tsv, line 2: 2 fields, not 3"),
    "no file": (["update", "RUN", "--add", "absent.tsv"], "no file absent.tsv"),
    "absent": (
        ["update", "RUN", "--remove", "ABSENT"],
        "not in the graph: e1 | r0 | e1; nothing was",
    ),
    "both": (["update", "RUN", "--add", "ABSENT", "--remove", "ABSENT"], "both have e1 | r0 | e1"),
    "entity": (["query", "RUN", "--near", "e111"], "no entity 'e111'; did you mean 'e11'"),
    "relation": (["query", "RUN", "--head", "e1", "--relation", "r"], "no relation 'r'"),
    "no end": (["query", "RUN", "--relation", "r0"], "give either a head or a tail"),
    "nothing": (["query", "RUN"], "give --relation with --head or with --tail, or --near"),
    "both asked": (
        ["query", "RUN", "--near", "e1", "--head", "e1"],
        "--near asks about one entity",
    ),
    "strangers": (["eval", "RUN", "--test", "STRANGE"], "the graph has none of these names"),
    "no run": (["query", "nothing", "--near", "e1"], "no file or run directory nothing"),
    "no command": (["ask"], "no command kg 'ask'; there are update, query, eval"),
}


def test_bad_input_is_one_line_and_exit_code_2(stepwell, run, tmp_path):
    files = {
        "RUN": run,
        "BAD": tmp_path / "bad.tsv",
        "ABSENT": write(tmp_path / "absent_fact.tsv", [("e1", "r0", "e1")]),
        "STRANGE": write(tmp_path / "strange.tsv", [("x", "y", "z")]),
    }
    files["BAD"].write_text("a\tb\tc\na\tb\n")
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    for name, (arguments, message) in BAD.items():
        code, out, err = stepwell("kg", *(files.get(a, a) for a in arguments))
        assert (code, out, err.count("\n")) == (2, "", 1), (name, err)
        assert message in err, name
    assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}


def test_an_update_that_was_cut_off_goes_on_by_the_same_command(stepwell, run, tmp_path, monkeypatch):
    new = write(tmp_path / "new.tsv", [("Paris", "capital_of", "France")])
    gone = write(tmp_path / "gone.tsv", FACTS[5:8])
    command = ["kg", "update", run, "--add", new, "--remove", gone, "--epochs", 1]

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("stepwell.kg.state.learn_change", interrupted)
        code, _, err = stepwell(*command)
    assert code == 130
    assert "stopped (4 changes wait for the update): the same command goes on from there" in err
    for question in (
        ["query", run, "--near", "e1"],
        ["eval", run, "--test", tmp_path / "test.tsv"],
    ):
        code, _, err = stepwell("kg", *question)
        assert (code, "note: 4 changes wait for `stepwell kg update" in err) == (0, True)
    more = write(tmp_path / "more.tsv", [("Rome", "capital_of", "Italy")])
    code, out, err = stepwell(*command[:3], "--add", more, *command[5:])
    assert (code, "+2 -3 triples" in out, "removed triples: mean distance" in out) == (
        0,
        True,
        True,
    )
    assert "note: 3 triples to remove wait for the update already" in err
    assert "note: 1 earlier changes wait for the update, and are learnt, too" in err
    with monkeypatch.context() as patch:
        patch.setattr("stepwell.kg.graph.record_update", interrupted)
        code, _, err = stepwell("kg", "update", run, "--add", write(new, [("Bern", "r0", "e1")]))
    assert (code, "the update is done" in err) == (130, True)
    assert "wait" not in stepwell("kg", "query", run, "--near", "Bern")[2]


def test_an_update_that_was_done_may_be_asked_for_again(stepwell, run, tmp_path):
    new = write(tmp_path / "new.tsv", [("e1", "r0", "e9")])
    gone = write(tmp_path / "gone.tsv", FACTS[:2])
    command = ("kg", "update", run, "--add", new, "--remove", gone, "--epochs", 1)
    assert stepwell(*command)[0] == 0
    code, _, err = stepwell(*command)
    assert code == 0
    assert "nothing to learn" in err
    # removing alone what is not there is a mistake
    code, _, err = stepwell("kg", "update", run, "--remove", gone)
    assert (code, "not in the graph" in err) == (2, True)


def test_names_are_printed_as_they_are(stepwell, run, tmp_path):
    odd = ["x[/]", "Paris [city]", "urn:x:heart:1"]
    new = write(tmp_path / "new.tsv", [("e1", "r0", name) for name in odd])
    code, out, err = stepwell("kg", "update", run, "--add", new, "--epochs", 1)
    assert code == 0, err
    code, out, err = stepwell("kg", "query", run, "--head", "e1", "--relation", "r0", "--k", 50)
    assert code == 0, err
    assert all(name in out for name in odd)
    code, out, err = stepwell("kg", "query", run, "--near", "x[/]")
    assert (code, "nearest to x[/]" in out) == (0, True), err


def test_a_file_without_additions_or_removals_is_no_error(stepwell, run, tmp_path):
    none = write(tmp_path / "none.tsv", [])
    new = write(tmp_path / "new.tsv", [("e1", "r0", "e9")])
    code, out, err = stepwell("kg", "update", run, "--add", new, "--remove", none, "--epochs", 1)
    assert (code, "+1 -0 triples" in out) == (0, True), err


def test_evaluation_says_what_is_odd_about_its_triples(stepwell, run, tmp_path):
    test = write(tmp_path / "odd.tsv", [FACTS[0], ("nobody", "r0", "e1")])
    gone = write(tmp_path / "gone.tsv", [FACTS[1], ("e1", "r0", "no one")])
    code, _, err = stepwell("kg", "eval", run, "--test", test, "--gone", gone)
    assert code == 0
    for note in (
        "--test: 1 triples have names that the graph lacks",
        "--gone: 1 triples have names that the graph lacks",
        "--test: 1 triples were in the training graph",
        "--gone: 1 triples are in the graph still",
    ):
        assert note in err


def test_without_files_an_update_learns_what_waits(stepwell, run):
    with open_graph(run) as graph:
        graph.add([("e1", "r0", "e4")])
    code, out, err = stepwell("kg", "update", run, "--lr", 1e20, "--epochs", 1)
    assert (code, out, "diverged; nothing was changed: lower --lr" in err) == (2, "", True)
    code, out, err = stepwell("kg", "update", run, "--epochs", 1)
    assert (code, "+1 -0 triples" in out, "1 earlier changes wait" in err) == (0, True, True)


OTHERS = {
    "eval": [], "calibrate": [], "cost": [], "export": ["--format", "onnx"], "predict": [__file__]
}  # fmt: skip


@pytest.mark.parametrize("command", OTHERS)
def test_commands_about_networks_say_that_a_graph_is_none(stepwell, run, command):
    code, out, err = stepwell(command, run, *OTHERS[command])
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert f"stepwell {command}: {run} holds a knowledge graph, which cannot be " in err
    assert "stepwell kg " in err


def test_what_the_page_shows_runs(stepwell, tmp_path, monkeypatch):
    page = (Path(__file__).parents[1] / "docs" / "dkge.md").read_text()
    monkeypatch.chdir(tmp_path)
    cities = [("Paris", "capital_of", "France"), ("Turin", "located_in", "Italy")]
    write(tmp_path / "base.tsv", [*FACTS, *cities])
    write(tmp_path / "new.tsv", [("Rome", "capital_of", "Italy")])
    write(tmp_path / "gone.tsv", FACTS[:2])
    for name in ("test", "questions"):
        write(tmp_path / f"{name}.tsv", [("Rome", "located_in", "Italy")])
    short = {"train": ["--warm-epochs", 1, "--epochs", 1, "--device", "cpu"]}
    lines = re.findall(r"^    stepwell (.*)$", page, re.MULTILINE)
    assert {line.split()[0] for line in lines} == {"train", "kg", "report", "verify"}
    for line in lines:
        if not line.startswith("verify"):
            code, _, err = stepwell(*shlex.split(line), *short.get(line.split()[0], []))
            assert code == 0, f"{line}: {err}"
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(code, "dkge.md", "exec"), {})


def test_updates_learn_as_they_do_in_python():
    flags = inspect.signature(KG["update"]).parameters
    for name in ("rule", "epochs", "lr", "unlearn"):
        assert flags[name].default == getattr(Online(), name)
    assert flags["max_seconds"].default == Online().seconds


@pytest.mark.parametrize("command", ["update", "query", "eval"])
def test_every_command_has_help_with_examples(stepwell, command):
    code, out, _ = stepwell("kg", command, "--help")
    assert (code, f"Examples:\n  stepwell kg {command}" in out) == (0, True)
