"""The published pages are what the present claims say of the published units."""

import json

import pytest
from benchmarks.judge import ABOUT, PUBLISHED, about, judged

from stepwell.claims import CLAIMS
from stepwell.claims.kit.page import render
from stepwell.claims.kit.study import slug
from stepwell.recipes import load_object

#: What a claim says, without sums whose last digits depend on the processor.
SAID = ("id", "text", "paper", "primary", "unit", "margin", "holds", "note")
FOLDERS = sorted(file.parent for file in (PUBLISHED / "units").glob(f"*/{ABOUT}"))
UNITS = sorted(path for path in (PUBLISHED / "units").iterdir() if path.is_dir())


def verdict(claim):
    """What a claim says, and the judged number to six digits."""
    return [claim[key] for key in SAID] + [f"{claim['difference']['mean']:.6g}"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_published_page_has_the_verdicts_of_its_units(folder):
    study, record = judged(folder)
    name = about(folder)["page"]
    published = json.loads((PUBLISHED / f"{name}.json").read_text())
    assert [verdict(claim) for claim in published["claims"]] == [
        verdict(claim) for claim in record["claims"]
    ], "python -m benchmarks.judge writes the pages anew"
    assert (PUBLISHED / f"{name}.md").read_text() == render(published, f"{name}.svg", study.table)


@pytest.mark.parametrize("folder", UNITS, ids=lambda folder: folder.name)
def test_published_units_are_of_arms_that_their_study_has(folder):
    """They are found by slug and seed: an arm of another name would lose its units unnoticed."""
    arms = load_object(CLAIMS[folder.name.partition("-")[0]][0]).arms
    slugs = [slug(arm) for arm in arms]
    assert len(set(slugs)) == len(slugs)
    units = {file.stem.rsplit("-", 2)[0] for file in folder.glob("*.json") if file.name != ABOUT}
    assert units <= set(slugs)
