"""The directory of a run: its configuration, its one writer, and what may be resumed."""

import contextlib
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from stepwell.files import damaged, locked, read_json, remove_partial, write_whole
from stepwell.training.optim import RATES

#: Arguments that do not change the result: a resumed run may differ in them.
HOW = {"out", "cache", "store", "device", "devices", "checkpoint_minutes", "log"}
#: Flags that older runs do not record, by the value with which they change nothing; or it is None.
LATER = {
    "augment": "standard", "mix": "none", "optimizer": "sgd", "text": [], "label": "label",
    "embedding": "ppmi", "walks": 10, "walk_length": 10, "window": 5, "dimensions": 8,
    "channels": ["counts", "degree", "span"], "loops": "drop", "multi_edges": "merge",
    "max_edges": 1_000_000,
}  # fmt: skip
#: Entries about data that older runs do not record.
LATER_DATA = ("valid", "content", "tokenizer")
#: What to do about a config.json that cannot be used.
DAMAGED = "put it right, or use another --out"
LIBRARIES = ("stepwell", "torch", "torchvision", "pytorch-lightning")


class Run:
    """A run directory under a lock: one process writes to it at a time.

    Use as a context manager. `config.json` is written at the start. A run with the same arguments and
    data is resumed. A run that fails before it has written anything else removes its files, so that the
    corrected command can use the directory.
    """

    def __init__(
        self, path: Path, config: dict[str, Any], lock: FileLock | None, made: bool = False
    ) -> None:
        self.path, self.config = path, config
        self._lock, self._made = lock, made

    @property
    def writes(self) -> bool:
        """True in the one process that writes the results, of several that train together."""
        return self._lock is not None

    @classmethod
    def start(
        cls, out: Path, recipe: str, arguments: Mapping[str, Any], *, data: Mapping[str, Any],
        teacher: str | None = None,
    ) -> "Run":  # fmt: skip
        """Open `out` for a run of `recipe` with these arguments, new or to be resumed.

        Args:
            data: a record of the training data; its "fingerprint" must match on resume.
            teacher: fingerprint of the teacher's weights, if there is one.

        Raises:
            ValueError: `out` holds other files, or a run of another configuration, data or teacher.
            OSError: another process is writing to it.
        """
        if out.exists() and not out.is_dir():
            raise ValueError(f"--out {out} is a file: name a directory")
        file = out / "config.json"
        if _rank():
            _wait_for(file)
        elif not file.exists() and out.is_dir() and not all(_is_ours(p) for p in out.iterdir()):
            raise ValueError(f"--out {out} holds other files and no run: name a new directory")
        made = not out.exists()
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = f"cannot be made ({error.strerror})"
            raise ValueError(f"--out {out} {reason}: name another directory") from error
        lock = locked(out / "lock", out) if _rank() == 0 else None
        if lock is not None:
            remove_partial(out)
        config = {
            "recipe": recipe, "arguments": plain(arguments), "data": dict(data), "teacher": teacher,
            "versions": {"python": sys.version.split()[0]} | {n: version(n) for n in LIBRARIES},
            "commit": commit(),
            "device": arguments["loop"].device if "loop" in arguments else "cpu",
            "devices": arguments["loop"].devices if "loop" in arguments else 1,
            "threads": torch.get_num_threads(),
        }  # fmt: skip
        try:
            if file.exists() and _has_begun(out):
                _check_same(_read_config(out), config, out)
            elif lock is not None:
                write_whole(file, json.dumps(config, indent=1).encode())
        except BaseException:
            if lock is not None:
                lock.release()
            raise
        return cls(out, config, lock, made)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._lock is None:
            return
        if kind is not None and not _has_begun(self.path):
            self._withdraw()
        self._lock.release()

    def _withdraw(self) -> None:
        """Remove the files and folders of `start` and `phase`."""
        (self.path / "config.json").unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # a folder that holds something after all
            for folder in (*self.path.glob("phases/*"), *self.path.glob("phases")):
                folder.rmdir()
            if self._made:
                (self.path / "lock").unlink()
                self.path.rmdir()

    def phase(self, name: str) -> Path:
        """The folder of a phase's checkpoints."""
        folder = self.path / "phases" / name
        if self.writes:
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; none if there is no such file. ValueError if it is damaged."""
        file = self.path / "metrics.jsonl"
        try:
            lines = file.read_text().splitlines() if file.exists() else []
            return [json.loads(line) for line in lines]
        except ValueError as error:
            raise damaged(file, error, "put it right, or remove it") from error

    def write_metrics(self, lines: list[dict[str, Any]]) -> None:
        """Replace metrics.jsonl."""
        text = "".join(json.dumps(line) + "\n" for line in lines)
        write_whole(self.path / "metrics.jsonl", text.encode())

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a JSON file of the run, whole or not at all."""
        write_whole(self.path / name, json.dumps(value, indent=1).encode())


def plain(value: Any) -> Any:
    """`value` as it looks after a round trip through JSON."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def _in_words(value: Any) -> str:
    """A value as the command line has it."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def check_resumes(recipe: str, arguments: Mapping[str, Any]) -> None:
    """Check, before any data is read, that a run in the `out` of `arguments` can be resumed with them.

    ValueError if it is of another recipe or has other arguments. `Run.start` checks the data as well.
    """
    out = Path(arguments["out"])
    if (out / "config.json").exists() and _has_begun(out):
        _check_arguments(_read_config(out), {"recipe": recipe, "arguments": plain(arguments)}, out)


def _read_config(out: Path) -> Any:
    return read_json(out / "config.json", DAMAGED)


def _check_same(old: Mapping[str, Any], new: Mapping[str, Any], out: Path) -> None:
    _check_arguments(old, new, out)
    for key in ("data", "teacher"):
        both = (old[key], new[key])
        then, now_ = (x if isinstance(x, dict) else {key: x} for x in both)
        if differing := [k for k in {**then, **now_} if not _alike(then, now_, k)]:
            changes = ", ".join(f"{k} was {then.get(k)} and is {now_.get(k)}" for k in differing)
            raise ValueError(f"{out} holds a run on other {key} ({changes}): use another --out")
    earlier = {"devices": 1} | dict(old)  # older runs do not record it
    for key in ("versions", "commit", "device", "devices", "threads"):
        unknown = key == "commit" and None in (earlier.get(key), new[key])  # outside of git
        if earlier.get(key) != new[key] and not unknown:
            warnings.warn(
                f"{out} was started with {key} {earlier.get(key)}, now {new[key]}: the result may "
                "differ from an uninterrupted run's in the last bits",
                stacklevel=3,
            )


def _check_arguments(old: Mapping[str, Any], new: Mapping[str, Any], out: Path) -> None:
    if missing := [key for key in ("recipe", "arguments", "data", "teacher") if key not in old]:
        raise damaged(out / "config.json", f"it does not say its {missing[0]}", DAMAGED)
    if old["recipe"] != new["recipe"]:
        recipes = f"a run of {old['recipe']!r}, not {new['recipe']!r}"
        raise ValueError(f"{out} holds {recipes}: use another --out")
    before, now = _flat(old["arguments"]), _flat(new["arguments"])
    for name in sorted((before.keys() | now.keys()) - HOW):
        later = name not in before and now[name] in (LATER.get(name), None, False, 0, "", [])
        if before.get(name) != now.get(name) and not later:
            _refuse_ablation(name, before.get(name), new, out)
            remedy = "resume it with its own arguments, or use another --out"
            if name.endswith("epochs"):
                remedy = "its learning rate was planned for those, so " + remedy
                if "init" in now and (result := out / "net.safetensors").exists():
                    remedy += f", where --init {result} begins with its weights"
            flag = name.replace("_", "-")
            raise ValueError(
                f"{out} holds a run with --{flag} {_in_words(before.get(name))}, not "
                f"{_in_words(now.get(name))}: {remedy}"
            )


def _alike(then: Mapping[str, Any], now: Mapping[str, Any], name: str) -> bool:
    """Check an entry about data or teacher; older runs record fewer fingerprints."""
    if name == "teacher" and then[name]:
        return f"{now[name]}/".startswith(f"{then[name]}/")
    return then.get(name) == now.get(name) or (name in LATER_DATA and name not in then)


def _refuse_ablation(name: str, value: object, new: Mapping[str, Any], out: Path) -> None:
    """Say where a flag went that only studies need."""
    if name in new["arguments"].get("ablation", {}):
        raise ValueError(
            f"{out} holds a run with --{name.replace('_', '-')} {value}, which stepwell train "
            f"{new['recipe']} no longer takes: resume it in Python, with "
            f"stepwell.recipes.train({new['recipe']!r}, {name}={value!r}, ...), or use another --out"
        )


def _is_ours(path: Path) -> bool:
    """Check for a leftover of a process that was killed before it wrote config.json."""
    return path.name == "lock" or (path.name.startswith(".") and path.name.endswith(".part"))


def _has_begun(out: Path) -> bool:
    """Check whether a run has written more than its config.json."""
    return any(p.is_file() and p.name != "config.json" and not _is_ours(p) for p in out.rglob("*"))


def _wait_for(file: Path, seconds: float = 120.0) -> None:
    """Wait until the writing process has opened the run."""
    end = time.monotonic() + seconds
    while not file.exists():
        if time.monotonic() > end:
            raise OSError(f"the first of several processes wrote no {file}: see what it says")
        time.sleep(0.05)


def _rank() -> int:
    """The number of this process among the processes of one training."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0)))


def _flat(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments with their groups (such as `loop`) spread out."""
    flat: dict[str, Any] = {}
    for name, value in arguments.items():
        flat |= value if isinstance(value, dict) else {name: value}
    if flat.get("lr", 0.0) is None:  # older runs record the rate
        flat["lr"] = RATES[flat.get("optimizer", "sgd")]
    return flat


def commit() -> str | None:
    """The git commit of this code, if it runs from a checkout."""
    here, file = Path(__file__).parent, Path(__file__).name
    try:
        tracked = subprocess.run(
            ["git", "ls-files", "--error-unmatch", file], cwd=here, capture_output=True, timeout=10
        )
        if tracked.returncode != 0:  # installed inside somebody else's repository
            return None
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"], cwd=here,
            capture_output=True, text=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
