"""Published units of a study go back to where a study runs, and are published from there."""

import json
from dataclasses import replace

import pytest
from benchmarks import judge, publish
from benchmarks.judge import ABOUT, PUBLISHED
from benchmarks.publish import put_back

from stepwell.claims.bert import study
from stepwell.claims.kit.study import RESULT, TRAINED_ON

UNITS = PUBLISHED / "units" / "bert"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A study that ran, and where it is published; its data are not read."""
    monkeypatch.setattr(study, "STUDY", replace(study.STUDY, fingerprint=lambda arguments: "data"))
    for module in (judge, publish):
        monkeypatch.setattr(module, "PUBLISHED", tmp_path / "claims")
    out = tmp_path / "out"
    put_back(UNITS, out)
    (out / "claims.json").write_text((PUBLISHED / "bert.json").read_text())
    return out, tmp_path / "claims"


def content(folder):
    return {file.name: json.loads(file.read_text()) for file in folder.glob("*.json")}


def test_what_is_put_back_is_published_as_it_was(place):
    out, claims = place
    publish.publish(out, "again", layout="sentences")
    found, expected = content(claims / "units" / "again"), content(UNITS)
    about, before = found.pop(ABOUT), expected.pop(ABOUT)
    assert found == expected
    assert about["trained_on"] == before["trained_on"]
    assert about["origin"]["data"] == {"layout": "sentences", "fingerprint": "data"}
    new, old = (
        json.loads((p / f).read_text()) for p, f in ((claims, "again.json"), (PUBLISHED, "bert.json"))
    )
    assert new["claims"] == old["claims"]


def test_a_seed_of_another_machine_says_so_and_a_new_unit_takes_the_place_of_an_old_one(place):
    out, claims = place
    publish.publish(out, "again", layout="sentences")
    (unit,) = out.glob("units/teacher-7-*")
    changed = json.loads((unit / RESULT).read_text())
    changed[TRAINED_ON] |= {"machine": "another"}
    (unit / RESULT).write_text(json.dumps(changed))
    unit.rename(unit.with_name("teacher-7-0123456789"))
    publish.publish(out, "again")  # the sentence about the data stays
    found = content(claims / "units" / "again")
    assert unit.name + ".json" not in found
    assert found["teacher-7-0123456789.json"][TRAINED_ON]["machine"] == "another"
    assert sum(TRAINED_ON in one for name, one in found.items() if name != ABOUT) == 1


def test_only_whole_seeds_are_put_back(place, tmp_path):
    out, claims = place
    publish.publish(out, "again", layout="sentences")
    (file,) = (claims / "units" / "again").glob("stacked-3-*")
    file.unlink()
    put_back(claims / "units" / "again", tmp_path / "next")
    seeds = {unit.name.rsplit("-", 2)[1] for unit in (tmp_path / "next" / "units").iterdir()}
    assert seeds == {*"0124567"}


def test_what_cannot_be_published_is_said_in_a_line(place, tmp_path):
    out, _ = place
    for how, words in (
        ((tmp_path / "none", "x"), "no finished unit"), ((out, "new"), "with --layout"),
    ):  # fmt: skip
        with pytest.raises(SystemExit, match=words):
            publish.publish(*how)
    with pytest.raises(SystemExit, match="has no units"):
        publish.publish(out, "none", back=True)
    (unit,) = out.glob("units/teacher-7-*")
    twin = unit.with_name("teacher-7-0123456789")
    twin.mkdir()
    (twin / RESULT).write_text("{}")
    with pytest.raises(SystemExit, match="has 2 folders teacher-7-"):
        publish.publish(out, "x", layout="y")
    assert not (tmp_path / "claims").exists()
