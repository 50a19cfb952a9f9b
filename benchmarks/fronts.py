"""Draw accuracy against MACs of the published study of resolutions: `python -m benchmarks.fronts`.

Of networks that choose the resolution, the depth, or both, each held to several mean costs, and of
what never chooses; from the units of `results/claims/units/drnet-cifar10`.
"""

import io
from statistics import mean
from typing import Any

from benchmarks.judge import PUBLISHED, units
from stepwell.claims.drnet.arms import COSTS
from stepwell.claims.drnet.plan import EVERY, FRONTS, FULL, STATIC
from stepwell.claims.drnet.study import STUDY
from stepwell.files import write_whole
from stepwell.recipes.drnet import SHARES
from stepwell.report.figures import OKABE_ITO

FOLDER = PUBLISHED / "units" / "drnet-cifar10"
OUT = PUBLISHED / "drnet-fronts.svg"


def points() -> dict[str, list[tuple[float, float]]]:
    """Cost, as a share of the MACs at full depth and size, and accuracy in %, means over seeds."""
    results = units(FOLDER, STUDY)

    def over_seeds(arm: str, key: str) -> float:
        return mean(result["test"][key] for result in results[arm].values())

    found = {
        f"chooses the {name}": [
            (over_seeds(FRONTS, f"cost of {name} at {cost:g}"), 100 * over_seeds(FRONTS, at))
            for cost in COSTS
            if all((at := f"{name} at {cost:g}") in r["test"] for r in results[FRONTS].values())
        ]
        for name in ("depth", "resolution", "both")
    }
    found["trained at all resolutions, one for all images"] = [
        (share**2, 100 * over_seeds(EVERY, f"at {share:g}")) for share in reversed(SHARES)
    ]
    found["trained at one size"] = [
        (over_seeds(arm, "cost"), 100 * over_seeds(arm, "accuracy")) for arm in (STATIC, FULL)
    ]
    return found


def main() -> None:
    """Draw it."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {"font.size": 9, "svg.hashsalt": "stepwell", "svg.fonttype": "none"}
    with mpl.rc_context(style):
        figure = Figure(figsize=(5.4, 4.2), layout="constrained")
        axes = figure.subplots()
        for (name, line), colour in zip(points().items(), OKABE_ITO, strict=False):
            label = name.replace("chooses the both", "chooses both")
            axes.plot(*zip(*sorted(set(line)), strict=True), "o-", color=colour, label=label, ms=4)
        axes.set(xlabel="share of the MACs at full depth and size", ylabel="test accuracy, %")
        axes.grid(color="#e4e4e4", linewidth=0.7)
        figure.legend(loc="outside lower center", ncols=2)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    write_whole(OUT, buffer.getvalue())
    print(OUT)


if __name__ == "__main__":
    main()
