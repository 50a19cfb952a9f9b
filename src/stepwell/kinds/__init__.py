"""Kinds of trained networks: one module a kind knows how to open, evaluate, use and show it.

A module offers those of these names that its kind can do; each takes a `Network` first.

    NAME                          the kind in messages, with its article
    open(path, module=FACTORY)    the network of a run directory or a file, read once
    evaluate(network, **flags)    results, as results.json has them
    predict(network, paths, **flags)    `Predicted`, for files and folders
    export(network, folder, **flags), delta(network, depth, beyond, out)
    cost(network, **flags)        `Costs`
    calibrate(network, depths, **flags)    `Calibrated`
    serve(network, **flags)       `stepwell.serve.served.Served`
    show_results(results, title, brief=False), show_export(title, result)
    NEXT                          commands to try after a training
    NOUN                          one input in a word: "image" if it is not there
    SIZE                          form of an input's size: pixels, if it is not there
    TAKES                         what `predict` reads: "files" if it is not there, else "texts"
    SECTIONS                      of its report, as "module:function": (record, colours) -> HTML
    ADVICE                        by a name that it lacks: what to do instead

A new kind adds its module and its entry in `KINDS`; commands and report look up nothing else.
"""

import contextlib
import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from stepwell.serve import Prediction

#: Modules by the kind that stands in a file's header and in results.json; imported when met.
KINDS = {
    "classifier": "stepwell.kinds.classifier",
    "resolution": "stepwell.kinds.resolution",
    "graph": "stepwell.kinds.graph",
    "features": "stepwell.kinds.features",
    "text": "stepwell.kinds.text",
    "skipping": "stepwell.kinds.skipping",
    "pixels": "stepwell.kinds.pixels",
    "widths": "stepwell.kinds.widths",
    "detector": "stepwell.kinds.detector",
    "text-numbers": "stepwell.kinds.text_numbers",
    "sequence": "stepwell.kinds.sequence",
}
#: Flags of budgets, as `for_budget` names them.
LIMITS = {"budget_ms": "ms", "budget_macs": "macs", "min_accuracy": "accuracy"}
#: Commands and participles of what a kind may lack.
_COMMANDS = {
    "evaluate": ("eval", "evaluated"),
    "predict": ("predict", "used for predictions"),
    "export": ("export", "exported"),
    "delta": ("export --beyond", "exported as a delta"),
    "cost": ("cost", "measured for its cost"),
    "calibrate": ("calibrate", "calibrated"),
    "serve": ("serve", "served"),
}


class Network(NamedTuple):
    """A trained network with its kind and its run.

    path: as the caller named it: a run directory or a file.
    net: what the kind's `open` gives, such as a `NestedNet`.
    config: of the run; empty for a file outside of a run.
    """

    path: Path
    kind: str
    net: Any
    config: Mapping[str, Any]

    @property
    def noun(self) -> str:
        """One input in a word: that of its format of images, or of its kind."""
        from stepwell.data.formats import format_of

        drawing = getattr(getattr(self.net, "card", None), "drawing", {})
        return format_of(drawing).NOUN if drawing else noun_of(self.kind)

    def do(self, name: str, *arguments: Any, **flags: Any) -> Any:
        """Call a function of the network's kind, with the flags that were given.

        Flags that are None, False or empty were not given. A function that takes `**limits` takes the
        flags of budgets, one that takes `**flags` all. ValueError if the kind does not know one.
        """
        function = ability(self.path, self.kind, name)
        given = {k: v for k, v in flags.items() if v is not None and v is not False and v != ()}
        known = inspect.signature(function).parameters
        others = [p.name for p in known.values() if p.kind is inspect.Parameter.VAR_KEYWORD]
        allowed = {*known, *(LIMITS if others == ["limits"] else given if others else ())}
        if unknown := [flag for flag in given if flag not in allowed]:
            flag = unknown[0].replace("_", "-")
            raise ValueError(
                f"--{flag} is not for {kind_module(self.kind).NAME}, which {self.path} holds: leave it "
                "out"
            )
        return function(self, *arguments, **given)


class Predicted(NamedTuple):
    """Predictions for files, and how to show them.

    title: of the table; row: names its last column, the row that answered. noun: one input in a word.
    speed: measures images per second, and gives lines about it.
    """

    predictions: "list[Prediction]"
    title: str
    row: str = "depth"
    speed: Callable[[], list[str]] | None = None
    noun: str = "file"


class Costs(NamedTuple):
    """Costs by row, the input in words, what the rows are, and a word for one input."""

    rows: dict[str, dict[str, Any]]
    input: str
    row: str = "depth"
    noun: str = "image"


class Calibrated(NamedTuple):
    """Depths that were calibrated, the file that holds them, and the costs of all depths.

    train, validation: numbers of images; 0 without a validation part.
    """

    new: list[str]
    file: Path
    costs: dict[str, dict[str, Any]]
    train: int
    validation: int


def kind_module(kind: str) -> ModuleType:
    """Import the module of a kind; ValueError if this version does not know it."""
    if kind not in KINDS:
        raise ValueError(f"no kind of network {kind!r} in this version of Stepwell: upgrade")
    return importlib.import_module(KINDS[kind])


def sections_of(kind: str) -> list[Callable[..., str]]:
    """Import the sections of a kind's report page, in order; errors as for `kind_module`."""
    return [resolve_name(path) for path in kind_module(kind).SECTIONS]


def noun_of(kind: str) -> str:
    """One input of a kind in a word."""
    return str(getattr(kind_module(kind), "NOUN", "image"))


def size_in_words(kind: str, size: int) -> str:
    """The size of an input of a kind."""
    return str(getattr(kind_module(kind), "SIZE", "{0}×{0}")).format(size)


def takes_texts(kind: str) -> bool:
    """Check whether `predict` of a kind reads texts; else it reads files."""
    return getattr(kind_module(kind), "TAKES", "files") == "texts"


def recorded_kind(path: Path) -> str:
    """The kind that a run's results.json names, without reading its network; empty if it names none."""
    from stepwell.results import read_results

    with contextlib.suppress(OSError, ValueError):
        kind = read_results(path if path.is_dir() else path.parent).get("kind")
        return str(kind) if kind in KINDS else ""
    return ""


def ability(path: Path, kind: str, name: str) -> Callable[..., Any]:
    """Give a function of a kind; ValueError, which says what to do, if the kind lacks it."""
    module = kind_module(kind)
    function: Callable[..., Any] | None = getattr(module, name, None)
    if function is None:
        if name not in _COMMANDS:
            raise ValueError(f"no ability {name!r} of networks; there are {', '.join(_COMMANDS)}")
        command, participle = _COMMANDS[name]
        advice = module.ADVICE.get(name, "see the documentation of its recipe")
        raise ValueError(
            f"stepwell {command}: {path} holds {module.NAME}, which cannot be {participle}; {advice}"
        )
    return function


def open_network(
    path: str | Path, *, to: str | None = None, module: Callable[[], Any] | None = None
) -> Network:
    """Open a trained network of any kind: a run directory, or the file of its network.

    The file is read and checked once.

    >>> network = stepwell.open_network("runs/digits")  # doctest: +SKIP
    >>> network.kind, network.net.depths  # doctest: +SKIP
    ('classifier', {'8': (1, 1, 1), '20': (3, 3, 3)})

    Args:
        to: a function that the kind must have, such as "export".
        module: makes the full net again, for a module of your own nested by `stepwell.nest`.

    Raises:
        FileNotFoundError, ValueError: as for `stepwell.load`; or the kind is unknown or lacks `to`.
    """
    from stepwell.files import config_of, result_of

    path = Path(path)
    if not path.is_file():
        result_of(path)  # a wrong path is told before torch is imported
    from stepwell.nets.files.container import kind_of, network_file

    kind = kind_of(path)
    if to is not None:
        ability(path, kind, to)
    options = {} if module is None else {"module": module}
    return Network(path, kind, kind_module(kind).open(path, **options), config_of(network_file(path)))
