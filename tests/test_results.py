"""Results of runs of older versions are read with the names of today."""

import json

import pytest

from stepwell.results import (
    keep_evaluation,
    never_in_words,
    never_right,
    read_evaluations,
    upgrade,
)


def test_results_of_a_nested_net_say_their_kind_and_rows():
    old = {"test": {"8/accuracy": 0.5}, "costs": {"8": {}}, "full_net": {"before": 0.6}}
    assert upgrade(old) == {
        "kind": "classifier",
        "rows": "depth",
        "test": {"8/accuracy": 0.5},
        "costs": {"8": {}},
        "ekd": {"full_net": {"before": 0.6}},
    }


def test_results_of_a_network_that_chooses_call_the_row_chosen():
    old = {
        "test": {"dynamic/accuracy": 0.5, "8/accuracy": 0.4},
        "costs": {"dynamic": {"macs": 5}, "8": {"macs": 9}},
        "drnet": {"cost": 0.5, "speed": [{"batch": 64, "dynamic": 2.0, "fixed": 1.0}]},
    }
    assert upgrade(old) == {
        "kind": "resolution",
        "rows": "choice",
        "test": {"chosen/accuracy": 0.5, "8/accuracy": 0.4},
        "costs": {"chosen": {"macs": 5}, "8": {"macs": 9}},
        "drnet": {"cost": 0.5, "speed": [{"batch": 64, "chosen": 2.0, "fixed": 1.0}]},
    }


def test_results_of_a_graph_keep_its_own_measures_together():
    old = {"test": {"mrr": 0.2}, "examples": 3, "triples": 9, "entities": 4, "seconds": 1.0}
    assert upgrade(old) == {
        "kind": "graph",
        "rows": None,
        "test": {"mrr": 0.2},
        "examples": 3,
        "costs": {},
        "seconds": 1.0,
        "dkge": {"triples": 9, "entities": 4},
    }


def test_results_of_today_stay_as_they_are():
    new = {"kind": "classifier", "rows": "depth", "test": {}, "costs": {}}
    assert upgrade(new) == new


@pytest.fixture
def run(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "results.json").write_text(json.dumps({"finished": "today"}))
    return tmp_path


def keep(run, data, date, *, costs=("8",), **more):
    results = {"rows": "depth", "data": {"fingerprint": data}, "costs": {name: {} for name in costs}}
    keep_evaluation(run, results | more, date=date, device="here")


def test_evaluations_are_kept_apart_by_data_rows_and_budget(run):
    assert read_evaluations(run) == []
    keep(run, "own", "1", fidelity={"large": True})
    keep(run, "other", "2")
    keep(run, "own", "3", at="at most 5 MACs an image")
    keep(run, "own", "4", rows="choice")
    keep(run, "own", "5")
    found = read_evaluations(run)
    assert [one["date"] for one in found] == ["2", "3", "4", "5"]
    assert not any("fidelity" in one for one in found)
    assert found[-1]["device"] == "here"


def test_a_cascade_stays_until_the_network_has_other_depths(run):
    keep(run, "own", "1", cascade={"test": 1})
    keep(run, "own", "2")
    assert [(one["date"], one["cascade"]) for one in read_evaluations(run)] == [("2", {"test": 1})]
    keep(run, "own", "3", costs=("8", "14"))
    assert "cascade" not in read_evaluations(run)[0]


def test_evaluations_of_an_earlier_training_are_dropped(run):
    keep(run, "own", "1")
    (run / "results.json").write_text(json.dumps({"finished": "tomorrow"}))
    assert read_evaluations(run) == []


@pytest.mark.parametrize("text", ["{", "[]", '{"evaluations": [1]}'])
def test_damaged_evaluations_say_what_to_do(run, text):
    (run / "evaluations.json").write_text(text)
    with pytest.raises(ValueError, match=r"evaluations.json is damaged .*delete it, and measure again"):
        keep(run, "own", "1")


def test_rows_are_grouped_by_the_classes_that_they_never_get_right():
    good, bad = {"a": {"a": 1}, "b": {"b": 1}}, {"a": {"b": 3}, "b": {"b": 1}}
    found = never_right({"8": bad, "14": bad, "20": good})
    assert found == {("8", "14"): ["a"]}
    (rows,) = found
    assert never_in_words(rows, found[rows]) == "depths 8, 14 get no test example of class a right"
    many = never_in_words(["20"], list("abcdef"), most=4)
    assert many == "depth 20 gets no test example of classes a, b, c, d and 2 more right"
