"""The page's sections about experts and mixed kernels: their use by layer, and the speed."""

from collections.abc import Callable, Mapping

from stepwell.measures import MIXTURES
from stepwell.report.markup import as_decimal, as_percent, table
from stepwell.report.run_record import RunRecord, as_mapping, number
from stepwell.report.sections import speed_table


def mixture_section(key: str) -> Callable[[RunRecord, Mapping[str, str]], str]:
    """The section of results under a key of `MIXTURES`."""
    words = MIXTURES[key]

    def section(run: RunRecord, colours: Mapping[str, str]) -> str:
        results = run.system_results(key)
        layers = {name: as_mapping(layer) for name, layer in as_mapping(results.get("layers")).items()}
        if not layers:
            return ""
        shares = {name: [*map(number, layer.get("shares") or ())] for name, layer in layers.items()}
        most = max(map(len, shares.values()))
        rows = [
            [name, *map(as_percent, shares[name]), *[""] * (most - len(shares[name])),
             as_decimal(number(layer.get("cv"))), as_percent(number(layer.get("by_class")))]
            for name, layer in layers.items()
        ]  # fmt: skip
        head = ("layer", *(str(i) for i in range(1, most + 1)), "CV", "by class")
        title = f"<h3>{words.parts.capitalize()}</h3>"
        use = table(head, rows, f"{words.legend[0].upper()}{words.legend[1:]}.")
        return "\n".join(filter(None, (title, use, speed_table(results, words.speed))))

    return section
