"""Judge the published units again: `python -m benchmarks.judge [FOLDER ...]`.

A study's numbers stay what they are when its claims are reworded, corrected or added to; their verdicts
do not. Each folder of `results/claims/units` holds what every arm and seed gave, and `about.json`: the
study's system, the name of its page, how its units came about, and the arms whose seconds were measured
elsewhere: on another machine, so that no claim compares them.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.__main__ import RESULTS
from stepwell.claims import CLAIMS
from stepwell.claims.kit.study import Results, Study, slug
from stepwell.claims.kit.verify import describe_results, write_results
from stepwell.recipes import load_object

ABOUT = "about.json"
PUBLISHED = RESULTS / "claims"


def main() -> None:
    """Judge the units in the folders named, or in all, and write their pages."""
    named = [Path(folder) for folder in sys.argv[1:]]
    for folder in named or sorted(p.parent for p in (PUBLISHED / "units").glob(f"*/{ABOUT}")):
        study, record = judged(folder)
        page = PUBLISHED / f"{about(folder)['page']}.md"
        write_results(study, record, page.with_suffix(".json"), page)
        print(page)


def judged(folder: Path) -> tuple[Study, dict[str, Any]]:
    """The study whose units are in `folder`, and what its claims.json says of them now."""
    origin = about(folder)
    study: Study = load_object(CLAIMS[origin["system"]][0])
    return study, describe_results(study, units(folder, study), origin["origin"])


def about(folder: Path) -> dict[str, Any]:
    """What `about.json` says."""
    content: dict[str, Any] = json.loads((folder / ABOUT).read_text())
    return content


def units(folder: Path, study: Study) -> Results:
    """Results by arm and seed, of the arms that were run, in the study's order."""
    found: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    elsewhere = about(folder).get("elsewhere", {})
    for file in sorted(folder.glob("*.json")):
        if file.name != ABOUT:
            name, seed, _ = file.stem.rsplit("-", 2)
            found[name][int(seed)] = json.loads(file.read_text())
    for arm in elsewhere:
        for result in found[slug(arm)].values():
            del result["cpu_seconds"]
    return {arm: dict(sorted(found[slug(arm)].items())) for arm in study.arms if slug(arm) in found}


if __name__ == "__main__":
    main()
