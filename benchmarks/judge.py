"""Judge the published units again: `python -m benchmarks.judge [FOLDER ...]`.

The numbers of a study stay when its claims are reworded, corrected or added to; the verdicts may
change. Each folder of `results/claims/units` has the result of every arm and seed, and `about.json`:

- system, page: the study, and the name of its page.
- origin: the command, data, versions and machine of the units.
- trained_on: the machine, torch, commit and data of most units.
- elsewhere: arms that were trained otherwise, as patterns, with the entries in which they differ.
"""

import json
import sys
from collections import defaultdict
from fnmatch import fnmatchcase
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from benchmarks.__main__ import RESULTS
from stepwell.claims import CLAIMS
from stepwell.claims.kit.study import TRAINED_ON, Results, Study, slug
from stepwell.claims.kit.verify import describe_results, write_results

ABOUT = "about.json"
PUBLISHED = RESULTS / "claims"


def main() -> None:
    """Judge the units in the folders named, or in all, and write their pages."""
    named = [Path(folder) for folder in sys.argv[1:]]
    for folder in named or sorted(p.parent for p in (PUBLISHED / "units").glob(f"*/{ABOUT}")):
        judge_folder(folder)


def judge_folder(folder: Path) -> None:
    """Judge the units in a folder, and write their page."""
    study, record = judged(folder)
    page = PUBLISHED / f"{about(folder)['page']}.md"
    write_results(study, record, page.with_suffix(".json"), page)
    print(page)


def judged(folder: Path) -> tuple[Study, dict[str, Any]]:
    """The study whose units are in `folder`, and its claims.json by the present claims."""
    origin = about(folder)
    study: Study = resolve_name(CLAIMS[origin["system"]][0])
    return study, describe_results(study, units(folder, study), origin["origin"])


def about(folder: Path) -> dict[str, Any]:
    """The content of `about.json`."""
    content: dict[str, Any] = json.loads((folder / ABOUT).read_text())
    return content


def units(folder: Path, study: Study) -> Results:
    """Results by arm and seed, of the arms that were run, in the study's order."""
    by_slug: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for file in sorted(folder.glob("*.json")):
        if file.name != ABOUT:
            name, seed, _ = file.stem.rsplit("-", 2)
            by_slug[name][int(seed)] = json.loads(file.read_text())
    content = about(folder)
    return {
        arm: {
            seed: {TRAINED_ON: trained_on(content, arm)} | result
            for seed, result in sorted(by_slug[slug(arm)].items())
        }
        for arm in study.arms
        if slug(arm) in by_slug
    }


def trained_on(content: dict[str, Any], arm: str) -> dict[str, Any]:
    """The machine, code and data of an arm's units."""
    where: dict[str, Any] = dict(content["trained_on"])
    for other in content.get("elsewhere", []):
        if any(fnmatchcase(arm, pattern) for pattern in other["arms"]):
            where |= other["trained_on"]
    return where


if __name__ == "__main__":
    main()
