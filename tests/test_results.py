"""Results of runs of older versions are read with the names of today."""

from stepwell.results import upgrade


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
