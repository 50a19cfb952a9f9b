"""Arms, seeds and claims: how an experiment is run and resumed.

One arm with one seed is a unit of work, cached in a folder whose name is a hash of its arguments, data
and imported code. So claims share arms, an interrupted study resumes, and a change elsewhere
invalidates nothing.
"""

import contextlib
import hashlib
import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple

import torch

from stepwell.claims.kit.figure import Plot
from stepwell.claims.kit.source_digest import source_digest
from stepwell.console import say
from stepwell.data import load_images
from stepwell.device import processor
from stepwell.files import write_whole
from stepwell.flags import call, flags_of
from stepwell.measure.data_parts import data_fingerprint
from stepwell.recipes import RECIPES
from stepwell.training.run import plain


@dataclass(frozen=True)
class Arm:
    """One way of training that a study compares, or a comparison of networks that other arms trained.

    recipe: a recipe's name, or a function "module:name" that returns numbers under "test", "seconds"
        and "cpu_seconds". It gets the study's common arguments that its signature names.
    needs: arguments that are files of other arms of the same seed: argument to one or several arms.
    scaled: arguments that are a share of the study's epochs, such as {"epochs": 0.5}. A member of a
        group is named like "distill_data.generator_steps".
    seed_shift: added to the study's seed. Networks of one architecture and one seed begin with the
        same weights; where they must not, their shifts differ.
    title: the name on pages; by default the arm's own name, which names its units.
    """

    recipe: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    needs: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    scaled: Mapping[str, float] = field(default_factory=dict)
    seed_shift: int = 0
    title: str = ""

    @property
    def function(self) -> str:
        """The function that runs, as "module:name"."""
        return RECIPES[self.recipe][0] if self.recipe in RECIPES else self.recipe

    @property
    def needed(self) -> tuple[str, ...]:
        """The arms that must have run before."""
        return tuple(name for need in self.needs.values() for name in _names(need))

    @property
    def taken(self) -> Collection[str]:
        """Names of the arguments that its function takes."""
        return flags_of(resolve_name(self.function))

    def all_arguments(self, common: Mapping[str, Any]) -> dict[str, Any]:
        """The study's `common` arguments that the arm takes, with the arm's own."""
        epochs = common.get("epochs", 0)
        arguments = {name: value for name, value in common.items() if name in self.taken}
        arguments |= self.arguments
        for name, share in self.scaled.items():
            group, _, member = name.partition(".")
            count = max(1, round(share * epochs))
            arguments[group] = replace(arguments[group], **{member: count}) if member else count
        return arguments


#: File of a unit's result, in its folder.
RESULT = "result.json"
#: The entry of a result that names the machine and the code of its training.
TRAINED_ON = "trained_on"
#: Results of a study: by arm, by seed, the numbers that the recipe returned.
Results = Mapping[str, Mapping[int, Mapping[str, Any]]]
#: A number for one seed, given the results of each arm at that seed.
Measure = Callable[[Mapping[str, Mapping[str, Any]]], float]
#: Primary claims that a study may have.
MOST_PRIMARY = 3


class Absent(LookupError):
    """The study's data has nothing that this measure could be taken of."""


class Claim(NamedTuple):
    """A sentence of a paper, and the rule that tests it.

    text: the sentence; pages add the rule.
    measured: numbers to show, by name.
    difference: the judged number of a seed: a paired difference, or a ratio.
    margin, below: the claim is that `difference` lies above the margin, or below it.
    unit, judged_in: of the numbers to show, and of the judged number.
    pool: claims with one pool share their spread over seeds. By default differences in points and
        ratios pool by their unit, and every other claim has its own spread.
    expected: the true value that a study is planned for, such as the paper's number.
    """

    id: str
    text: str
    paper: str
    unit: str
    measured: Mapping[str, Measure]
    difference: Measure
    margin: float = 0.0
    below: bool = False
    note: str = ""
    judged_in: str = "points"
    pool: str = ""
    expected: float | None = None

    @property
    def rule(self) -> str:
        """The condition under which the claim holds."""
        unit = f" {self.judged_in}" * (self.judged_in not in ("", "×"))
        return f"the interval lies {'below' if self.below else 'above'} {self.margin:g}{unit}"

    @property
    def pooled_with(self) -> str:
        """Name of the claims with which it pools its spread; its own id for no other claim."""
        shared = self.judged_in in ("points", "×")
        return self.pool or (f"{self.unit}, {self.judged_in}" if shared else self.id)


class Column(NamedTuple):
    """One measure as a column.

    key: its name among an arm's measures.
    scale: factor of its values, such as 100 for percent.
    form: format of a number.
    """

    key: str
    title: str
    scale: float = 100.0
    form: str = ".2f"


class Question(NamedTuple):
    """A question that a study asks: a table of arms, and the exploratory claims about them.

    arms, claims: patterns of names and ids ("20*"); the first question with a claim has it.
    columns: of the table; by default the measures of every depth.
    """

    title: str
    arms: Sequence[str]
    claims: Sequence[str] = ()
    columns: Sequence[Column] = ()


@dataclass(frozen=True)
class Study:
    """The experiment of one system.

    common: arguments of every arm.
    quick: what replaces some; or a function that makes small data in a folder and gives them.
    fingerprint: arguments, including "data" and "size", to a hash of the data.
    primary: ids of at most three claims, named from the paper's abstract; all others are exploratory.
    note: facts about the study for a reader of the page.
    noun: examples of the data, in a word.
    questions: the page's sections. plot: its picture, beside the intervals of the primary claims.

    Raises:
        ValueError: more than three primary claims.
    """

    key: str
    arms: Mapping[str, Arm]
    claims: Sequence[Claim]
    common: Mapping[str, Any]
    quick: Mapping[str, Any] | Callable[[Path], Mapping[str, Any]]
    fingerprint: Callable[[Mapping[str, Any]], str]
    primary: Sequence[str] = ()
    note: str = ""
    noun: str = "images"
    questions: Sequence[Question] = ()
    plot: Plot | None = None

    def __post_init__(self) -> None:
        if len(self.primary) > MOST_PRIMARY:
            raise ValueError(
                f"{self.key} names {len(self.primary)} primary claims; at most {MOST_PRIMARY} can "
                "decide"
            )

    def title(self, arm: str) -> str:
        """The name of an arm on pages."""
        return self.arms[arm].title or arm if arm in self.arms else arm


def image_fingerprint(arguments: Mapping[str, Any]) -> str:
    """Hash of the images that an arm with these arguments trains and tests on."""
    return data_fingerprint(load_images(arguments["data"], arguments["size"]))


def run_study(
    study: Study, common: Mapping[str, Any], seeds: Sequence[int], out: Path, *, workers: int,
    done: Callable[[str, int, Mapping[str, Any], int, int], None],
) -> dict[str, dict[int, dict[str, Any]]]:  # fmt: skip
    """Run every arm with every seed; arms that do not wait for each other run side by side.

    Args:
        out: folder of the cached units.
        workers: processes of one thread each; 0 runs the units in this process, one by one.
        done: called for each unit with its arm, seed and result, and the numbers of units that this
            call has trained and has yet to train. Other units are read from `out`.
    """
    marks = _marks(study, common)
    units = [(name, seed) for seed in seeds for name in study.arms]
    folders = {unit: out / _unit_name(study, *unit, common, marks) for unit in units}
    results: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in study.arms}
    ahead = {unit for unit in units if not (folders[unit] / RESULT).exists()}
    new = len(ahead)

    def ready(unit: tuple[str, int]) -> bool:
        return all(unit[1] in results[need] for need in study.arms[unit[0]].needed)

    with _pool(workers) as submit:
        running: dict[Future[dict[str, Any]], tuple[str, int]] = {}
        while units or running:
            for unit in [u for u in units if ready(u)][: max(1, workers) - len(running)]:
                units.remove(unit)
                code = marks[unit[0]][1]
                running[submit(_run_unit, *_job(study, *unit, common, folders), code)] = unit
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name, seed = running.pop(future)
                try:
                    results[name][seed] = future.result()
                except BrokenProcessPool as error:
                    raise OSError(
                        f"the process that ran {name!r}, seed {seed}, was killed (out of memory?): "
                        "the same command goes on where it stopped"
                    ) from error
                except Exception:
                    if running:
                        say(
                            f"{name}, seed {seed}, failed, and {len(running)} other trainings end "
                            "before this command does; Ctrl-C stops them"
                        )
                    raise
                ahead.discard((name, seed))
                done(name, seed, results[name][seed], new - len(ahead), len(ahead))
    return results


def only(study: Study, patterns: Sequence[str]) -> Study:
    """Restrict a study to the arms whose names match a pattern, and the arms that these need.

    Raises:
        ValueError: a pattern (such as "20*") matches no arm.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        matches = {name for name in study.arms if fnmatchcase(name, pattern)}
        if not matches:
            raise ValueError(f"no arm {pattern!r}; there are: {'; '.join(study.arms)}")
        chosen |= matches
    chosen = with_needed(study, chosen)
    return replace(study, arms={name: arm for name, arm in study.arms.items() if name in chosen})


def with_needed(study: Study, arms: set[str]) -> set[str]:
    """These arms and all arms that they need."""
    needed = set(arms).union(*(study.arms[name].needed for name in arms if name in study.arms))
    return needed if needed == arms else with_needed(study, needed)


def _marks(study: Study, common: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The fingerprints of every arm's data ("" for an arm that takes no data) and code."""
    data: dict[tuple[Any, Any], str] = {(None, None): ""}
    code = cache(source_digest)
    marks = {}
    for name, arm in study.arms.items():
        arguments = dict(common) | dict(arm.arguments)
        taken = "data" in arm.taken
        source = (arguments.get("data"), arguments.get("size")) if taken else (None, None)
        if source not in data:
            data[source] = study.fingerprint(arguments)
        marks[name] = data[source], code(_module(arm.function))
    return marks


def _module(function: str) -> str:
    return function.partition(":")[0]


def _unit_name(
    study: Study, name: str, seed: int, common: Mapping[str, Any],
    marks: Mapping[str, tuple[str, str]],
) -> str:  # fmt: skip
    arm = study.arms[name]
    data, code = marks[name]
    content = {
        "recipe": arm.recipe,
        "arguments": plain(arm.all_arguments(common)),
        "needs": {
            argument: [_unit_name(study, name, seed, common, marks) for name in _names(need)]
            for argument, need in arm.needs.items()
        },
        "seed": seed + arm.seed_shift,
        "data": data,
        "code": code,
    }
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]
    return f"{slug(name)}-{seed}-{key}"


def slug(arm: str) -> str:
    """An arm's name in the names of its units' folders."""
    return "".join(c if c.isalnum() else "-" for c in arm)


def _names(need: str | tuple[str, ...]) -> tuple[str, ...]:
    return (need,) if isinstance(need, str) else need


def _job(
    study: Study, name: str, seed: int, common: Mapping[str, Any],
    folders: Mapping[tuple[str, int], Path],
) -> tuple[str, dict[str, Any], Path]:  # fmt: skip
    arm = study.arms[name]
    arguments = arm.all_arguments(common) | {"seed": seed + arm.seed_shift}
    for argument, need in arm.needs.items():
        files = [folders[name, seed] / "run" / "net.safetensors" for name in _names(need)]
        # an argument that takes several takes names, of which a file is one kind
        arguments[argument] = files[0] if isinstance(need, str) else tuple(map(str, files))
    return arm.function, arguments, folders[name, seed]


def _run_unit(function: str, arguments: dict[str, Any], folder: Path, code: str) -> dict[str, Any]:
    """Run one unit, or read its result where it ran before; `code`: the hash of its modules."""
    file = folder / RESULT
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        result = call(resolve_name(function), out=folder / "run", **arguments)
        trained_on = {
            "machine": f"{processor()}, {torch.get_num_threads()} threads",
            "torch": torch.__version__,
            "code": {_module(function): code},
        }
        write_whole(file, json.dumps(result | {TRAINED_ON: trained_on}).encode())
    cached: dict[str, Any] = json.loads(file.read_text())
    return cached


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[Callable[..., Future[dict[str, Any]]]]:
    """Give a `submit` like an executor's; without workers it calls at once."""
    if not workers:
        yield _call_now
        return
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers, context, initializer=_begin_worker)
    try:
        yield executor.submit
    finally:
        executor.shutdown(cancel_futures=True)


def _call_now(call: Callable[..., dict[str, Any]], *args: Any) -> Future[dict[str, Any]]:
    future: Future[dict[str, Any]] = Future()
    future.set_result(call(*args))
    return future


def _begin_worker() -> None:
    """One thread for each arm; only the study prints; and a worker ends with the study.

    Without the last, the worker of a study that was killed would train its arm to the end.
    """
    torch.set_num_threads(1)
    os.environ["STEPWELL_QUIET"] = "1"
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(process: Any) -> None:
    process.join()
    os._exit(1)
