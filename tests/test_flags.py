"""Groups of flags: typed in Python, flat everywhere else."""

import ast
import json
import re
from dataclasses import dataclass, fields
from pathlib import Path
from pkgutil import resolve_name
from typing import Literal

import pytest

from stepwell.flags import Flags, call, checked, flags_of, groups_of, recorded
from stepwell.recipes import RECIPES, train
from stepwell.training import Loop


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Rates of a test."""

    lr: float = 0.5
    epochs: int = 3

    def check(self) -> None:
        """Refuse a value."""
        if self.lr == 13:
            raise ValueError("--lr 13 is bad luck")


@dataclass(frozen=True, kw_only=True)
class Needed:
    """A group that has no default."""

    name: str


def recipe(
    *, out: str, needed: Flags[Needed], rates: Flags[Rates] = Rates(), loop: Flags[Loop] = Loop()
) -> dict[str, object]:
    return checked(locals())


def test_a_function_of_groups_is_called_with_flat_flags():
    arguments = call(recipe, out="o", name="n", epochs=7, loop=Loop(clip=1.0))
    assert arguments == {
        "out": "o", "name": "n", "lr": 0.5, "epochs": 7, "loop": Loop(clip=1.0)
    }  # fmt: skip
    assert call(recipe, out="o", needed=Needed(name="n"), device="cpu")["loop"].device == "cpu"
    assert flags_of(recipe) >= {"out", "name", "lr", "epochs", "device", "rates"}
    with pytest.raises(TypeError, match="nonsense"):
        call(recipe, out="o", name="n", nonsense=1)


def test_groups_check_themselves():
    for wrong, message in (({"lr": 13.0}, "bad luck"), ({"epochs": 0}, "--epochs 0: must be 1 or")):
        with pytest.raises(ValueError, match=message):
            call(recipe, out="o", name="n", **wrong)


def test_a_group_is_read_from_a_record_that_lacks_later_flags():
    assert recorded(Rates, {"lr": 0.1, "other": 3}) == Rates(lr=0.1)


def test_no_flag_of_a_recipe_belongs_to_two_groups():
    for path, _ in RECIPES.values():
        groups = groups_of(resolve_name(path)).values()
        names = [field.name for group in groups for field in fields(group)]
        assert len(names) == len(set(names)), path


def test_help_of_groups_is_not_wrapped_twice():
    """A line of a group's docstring that begins with no letter would stay a line in the help."""
    root = Path(__file__).parents[1] / "src" / "stepwell"
    files = [*(root / "recipes").glob("*.py"), *(root / "data").glob("*.py")]
    files += (root / "training").glob("*.py")
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.endswith("Ablation"):
                _, _, attributes = (ast.get_docstring(node) or "").partition("Attributes:\n")
                continued = re.findall(r"^        (\S.*)$", attributes, re.MULTILINE)
                assert all(line[0].isalpha() for line in continued), (file, node.name)


def test_help_of_ekd_fits_on_two_screens(monkeypatch, capsys):
    from stepwell import cli

    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        cli.main(["train", "ekd", "--help"])
    out = capsys.readouterr().out
    assert len(out.rstrip().splitlines()) <= 110
    assert "(default: as --epochs)" in out
    assert "ema" not in out
    with pytest.raises(SystemExit):
        cli.main(["train", "distill", "--help"])
    assert "(default: sgd: 0.1; adam: 0.001; texts: 3e-5)" in capsys.readouterr().out


@pytest.fixture
def old_run(tmp_path):
    """A run whose config.json is of a version in which every ablation was a flag."""
    out = tmp_path / "run"
    options = {"data": "digits", "out": out, "net": "resnet8", "epochs": 1, "batch_size": 512}
    options["loop"] = Loop(device="cpu")
    results = train("supervised", **options)

    def resumed(**removed):
        file = out / "config.json"
        config = json.loads(file.read_text())
        config["arguments"].pop("ablation", None)
        config["arguments"] |= removed
        file.write_text(json.dumps(config))
        return train("supervised", **options) == results

    return resumed


def test_an_old_run_resumes_where_removed_flags_had_their_defaults(old_run):
    assert old_run(ema_teacher=0.0)
    message = (
        r"--ema-teacher 0.9, which stepwell train supervised no longer takes: resume it in "
        r"Python, with stepwell.recipes.train\('supervised', ema_teacher=0.9, ...\)"
    )
    with pytest.raises(ValueError, match=message):
        old_run(ema_teacher=0.9)


def test_what_studies_set_is_an_argument_in_python(tmp_path):
    options = {"data": "digits", "net": "resnet8", "epochs": 1, "batch_size": 512}
    train("supervised", out=tmp_path / "r", ema_teacher=0.5, **options, device="cpu")
    config = json.loads((tmp_path / "r" / "config.json").read_text())
    assert config["arguments"]["ablation"] == {"ema_teacher": 0.5}
    assert config["arguments"]["epochs"] == 1
    with pytest.raises(ValueError, match="no recipe 'x'"):
        train("x")


def typed(
    *, out: Path, depths: tuple[str, ...] | None = None, schedule: Literal["plain", "taught"] = "plain",
    init: Literal["pretrained"] | Path | None = None, mean: tuple[float, float] | None = None,
    rates: Flags[Rates] = Rates(), flip: bool | None = None, net: str = "",
) -> dict[str, object]:  # fmt: skip
    return locals()


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ({"out": "runs/x"}, {"out": Path("runs/x")}),
        ({"net": Path("runs/x")}, {"net": "runs/x"}),
        ({"depths": ["8", "14"]}, {"depths": ("8", "14")}),
        ({"depths": "14"}, {"depths": ("14",)}),
        ({"init": "pretrained"}, {"init": "pretrained"}),
        ({"init": "net.safetensors"}, {"init": Path("net.safetensors")}),
        ({"mean": [0, 1]}, {"mean": (0, 1)}),
        ({"flip": False}, {"flip": False}),
        ({"lr": 1}, {"rates": Rates(lr=1)}),
    ],
)
def test_a_value_is_taken_as_its_flag_has_it(given, seen):
    assert call(typed, **{"out": "o"} | given).items() >= seen.items()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": "3"}, r"epochs='3': must be int$"),
        ({"epochs": True}, r"epochs=True: must be int$"),
        ({"schedule": "foo"}, r"schedule='foo': must be Literal\['plain', 'taught'\]$"),
        ({"out": 3}, r"out=3: must be Path$"),
        ({"mean": (1,)}, r"mean=\(1,\): must be tuple\[float, float\] \| None$"),
        ({"flip": 1}, r"flip=1: must be bool \| None$"),
    ],
)
def test_a_value_that_its_flag_cannot_have_is_named(given, message):
    with pytest.raises(ValueError, match=message):
        call(typed, **{"out": "o"} | given)
