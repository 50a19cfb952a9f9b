"""The published pages are the verdicts of the present claims on the published units."""

import fnmatch
import json
from pkgutil import resolve_name

import pytest
from benchmarks.judge import ABOUT, PUBLISHED, about, judged

from stepwell.claims import CLAIMS
from stepwell.claims.kit.page import render
from stepwell.claims.kit.study import slug

#: Entries of a claim, without sums whose last digits depend on the processor.
SAID = ("id", "text", "paper", "primary", "unit", "margin", "below", "verdict", "note")
FOLDERS = sorted(file.parent for file in (PUBLISHED / "units").glob(f"*/{ABOUT}"))
UNITS = sorted(path for path in (PUBLISHED / "units").iterdir() if path.is_dir())


def verdict(claim):
    """A claim's entries, and the judged number to six digits."""
    return [claim[key] for key in SAID] + [f"{claim['difference']['mean']:.6g}"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_published_page_has_the_verdicts_of_its_units(folder):
    study, record = judged(folder)
    name = about(folder)["page"]
    published = json.loads((PUBLISHED / f"{name}.json").read_text())
    assert [verdict(claim) for claim in published["claims"]] == [
        verdict(claim) for claim in record["claims"]
    ], "python -m benchmarks.judge writes the pages anew"
    assert (PUBLISHED / f"{name}.md").read_text() == render(published, study, f"{name}.svg")


@pytest.mark.parametrize("folder", UNITS, ids=lambda folder: folder.name)
def test_published_units_are_of_arms_that_their_study_has(folder):
    """Units are found by slug and seed: a renamed arm would lose its units unnoticed."""
    arms = resolve_name(CLAIMS[folder.name.partition("-")[0]][0]).arms
    slugs = [slug(arm) for arm in arms]
    assert len(set(slugs)) == len(slugs)
    units = {file.stem.rsplit("-", 2)[0] for file in folder.glob("*.json") if file.name != ABOUT}
    assert units <= set(slugs)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_published_units_say_where_they_were_trained_and_on_which_data(folder):
    content = about(folder)
    assert content["trained_on"].keys() == {"machine", "torch", "code", "data"}
    assert content["origin"]["data"].keys() == {"layout", "fingerprint"}
    arms = resolve_name(CLAIMS[content["system"]][0]).arms
    for other in content.get("elsewhere", []):
        assert all(fnmatch.filter(arms, pattern) for pattern in other["arms"])


def test_arms_of_another_machine_are_marked_and_decide_nothing():
    _, record = judged(PUBLISHED / "units" / "ablation-cifar10-16")
    born_again = "32, born again"
    assert "on another machine (Intel Xeon" in record["elsewhere"][born_again]
    claims = {claim["id"]: claim for claim in record["claims"]}
    against_this_one = claims["beyond-born-again"]
    assert against_this_one["verdict"] == "not decided"
    assert "Not a pair: trained on another machine" in against_this_one["note"]
    # both arms are of the other machine
    assert claims["all-depths-a-step/8"]["verdict"] == "holds"
