"""Wrong values of flags: one line, exit code 2, and nothing written; of every command and recipe."""

import re
import typing
from dataclasses import dataclass, fields, is_dataclass
from pkgutil import resolve_name

import pytest
import torch

from stepwell import cli
from stepwell.commands.kg import KG
from stepwell.ranges import RANGES, check_numbers
from stepwell.recipes import RECIPES
from stepwell.training import Loop

#: By parameter, what nothing can be done with, and the ends of what is accepted.
WRONG = {
    "top": ([0, -1], [1]),
    "epochs": ([0, -1, 10**20], [1, 10**9]),
    "patience": ([0, -1], [1]),
    "nest_epochs": ([0, -1], [1]),
    "max_tokens": ([0, -1], [1]),
    "student_layers": ([0, -1], [1]),
    "teacher_epochs": ([0, -1], [1]),
    "layers": ([-1], [0, 6]),
    "cls": ([-1, "nan"], [0]),
    "label_share": ([-0.1, 0, 1, "nan"], [0.1, 0.9]),
    "threshold": ([0, -1, "nan"], [1e-3]),
    "steps": ([0, -1], [1]),
    "batch_size": ([1, 0, -3], [2]),
    "lr": ([0, -1, "nan", "inf"], [1e-9]),
    "weight_decay": ([-1e-9, "nan", "inf", 1e300], [0]),
    "label_smoothing": ([-0.1, 1, "nan"], [0, 0.9]),
    "max_drop": ([-1, "nan"], [0]),
    "val_fraction": ([-0.1, 1, "nan"], [0, 0.9]),
    "seed": ([-1, 2**63], [0, 2**63 - 1]),
    "temperature": ([0, -1, "nan", "inf"], [1e-3]),
    "ce": ([-1, "nan"], [0]),
    "kl": ([-1, "inf"], [0]),
    "attention": ([-1, "nan"], [0]),
    "hint": ([-1, "nan"], [0]),
    "alpha": ([-0.1, 1.1, "nan"], [0, 1]),
    "beta": ([-1, "nan"], [0]),
    "full_weight": ([-1, "nan"], [0]),
    "rate_weight": ([-1, "nan"], [0]),
    "reward": ([-1, "nan"], [0]),
    "policy_weight": ([-1, "nan"], [0]),
    "distill_from": ([-0.1, 1, "nan"], [0, 0.9]),
    "ema_teacher": ([-0.1, 1, 2, "nan"], [0, 0.999]),
    "start_from_teacher": ([-0.1, 1.1, "nan"], [0, 1]),
    "teacher_mean": (["nan"], [-1, 1]),
    "teacher_std": ([0, -1, "nan"], [1e-3]),
    "unlabeled_share": ([0, 1, "nan"], [0.1]),
    "synthetic_share": ([0, 1, "nan"], [0.1]),
    "synthetic_count": ([0, -1], [1]),
    "generator_steps": ([0, -1], [1]),
    "keep": ([0, -1], [1]),
    "shots": ([0, -1], [1]),
    "views": ([0, -1], [1]),
    "graft_steps": ([0, -1], [1]),
    "join_steps": ([0, -1], [1]),
    "adaption_lr": ([0, -1, "nan", "inf"], [1e-9]),
    "sizes": ([0, -1], [1]),
    "experts": ([0, 1, -1, 1025], [2, 1024]),
    "kernels": ([0, 1, -1, 1025], [2, 1024]),
    "top_k": ([0, -1], [1]),
    "balance_weight": ([-1, "nan"], [0]),
    "sparsity_weight": ([-1, "nan"], [0]),
    "gate_epochs": ([0, -1], [1]),
    "gate_fraction": ([-0.1, 1, "nan"], [0, 0.9]),
    "target_cost": ([-0.1, 1.1, "nan"], [0, 1]),
    "anneal": ([0, 1.1, "nan"], [1e-3, 1]),
    "widths": ([0, 1.1, "nan"], [1e-3, 1]),
    "target": ([0, 0.009, 1.1, "nan"], [0.01, 1]),
    "choose_epochs": ([0, -1], [1]),
    "chooser_rate": ([0, -1, "nan"], [1e-3]),
    "cost_weight": ([-1, "nan"], [0]),
    "slack": ([-1, "nan"], [0]),
    "explore": ([0, 1.1, "nan"], [1e-3, 1]),
    "devices": ([0, -1], [1]),
    "clip": ([-1, "nan"], [0]),
    "accumulate": ([0, -1], [1]),
    "average": ([-0.1, 1, "nan"], [0, 0.9]),
    "checkpoint_minutes": ([-1, "nan"], [0]),
    "size": ([1, 0, -1], [2]),
    **dict.fromkeys(("walks", "window", "dimensions", "max_edges"), ([0, -1], [1])),
    "walk_length": ([1, 0, -1], [2]),
    "walk_seed": ([-1, 2**63], [0, 2**63 - 1]),
    "num_classes": ([0, -1], [1]),
    "batch": ([0, -1], [1]),
    "dim": ([0, -1], [1]),
    "warm_epochs": ([-1], [0]),
    "context_size": ([0, -1], [1]),
    "margin": ([0, -1, "nan"], [1e-3]),
    "negatives": ([0, -1], [1]),
    "k": ([0, -1], [1]),
    "max_seconds": ([-1, "nan"], [0]),
    "unlearn": ([-1, "nan"], [0]),
    "budget_ms": ([0, -1, "nan", "inf"], [1e-3]),
    "budget_macs": ([0, -1, "nan", "inf"], [1]),
    "min_accuracy": ([-0.1, 95, "nan"], [0, 1]),
    "target_accuracy": ([-0.1, 95, "nan"], [0, 1]),
    "interpolate": ([-1], [0]),
    "seeds": ([0, -1], [1]),
    "workers": ([0, -1], [1]),
    "width": ([0, -1], [32]),
    "convs": ([0, -1], [1]),
    "teach": ([-1, "nan"], [0]),
    "zoom": ([0, 1.1, "nan"], [1e-3, 1]),
    "min_score": ([-0.1, 1.1, "nan"], [0, 1]),
    "ignore_from": ([-0.1, 1.1, "nan"], [0, 1]),
    "teacher_size": ([1, 0, -1], [2]),
    "label_fraction": ([0, 1.1, "nan"], [1e-3, 1]),
    "label_rate": ([0, 1.1, "nan"], [1e-3, 1]),
    "slo_ms": ([0, -1, "nan", "inf"], [1e-3]),
    "bits": ([1, 9, 0], [2, 8]),
    "local_rate": ([-1, "nan"], [0]),
    "gradient_factor": ([-1, "nan"], [0]),
    "port": ([-1, 65536], [0, 65535]),
    "hysteresis": ([-0.1, 1, "nan"], [0, 0.9]),
    "max_batch": ([0, -1], [1]),
    "max_queue": ([0, -1], [1]),
    "max_bytes": ([0, -1], [1]),
    "max_pixels": ([0, -1], [1]),
    "threads": ([0, -1], [1]),
    "own_weight": ([-1, "nan"], [0]),
    "policy_epochs": ([0, -1], [1]),
    "tune_epochs": ([0, -1], [1]),
    "frames": ([5, 1, 0, -1, 81], [4, 64]),
    "glances": ([1, 0, -1, 17], [2, 16]),
    "glance_size": ([1, 0, -1], [2]),
    "discount": ([-0.1, 1.1, "nan"], [0, 1]),
    "spread": ([0, -1, "nan"], [1e-3]),
    "replicas": ([0, -1], [1]),
}
#: How often a number is asked for, in these.
TIMES = {"teacher_mean": 3, "teacher_std": 3, "replicas": 2}
NEEDED = {
    "train ekd": ["--data", "digits", "--out", "r"],
    "train supervised": ["--data", "digits", "--out", "r"],
    "train distill": ["--data", "digits", "--out", "r", "--teacher", "t"],
    "train cnc": ["--data", "digits", "--out", "r"],
    "train drnet": ["--data", "digits", "--out", "r"],
    "train exits": ["--data", "digits", "--out", "r"],
    "train skipping": ["--data", "digits", "--out", "r"],
    "train glance": ["--data", "digits", "--out", "r"],
    "train frames": ["--data", "digits", "--out", "r"],
    "train pixels": ["--data", "digits", "--out", "r"],
    "train detect": ["--data", "d", "--out", "r"],
    "train pseudo": ["--data", "d", "--teacher", "t", "--out", "r"],
    "train widths": ["--data", "digits", "--out", "r"],
    "train experts": ["--data", "digits", "--out", "r"],
    "train kernels": ["--data", "digits", "--out", "r"],
    "train pkkd": ["--data", "digits", "--out", "r"],
    "train bert": ["--data", "d", "--teacher", "t", "--out", "r"],
    "train sequences": ["--data", "d", "--net", "n", "--out", "r"],
    "train dkge": ["--triples", "t", "--out", "r"],
    "kg update": ["run"],
    "kg query": ["run"],
    "kg eval": ["run", "--test", "t"],
    "train netgraft": ["--shots", "5", "--out", "r", "--teacher", "t"],
    "list": [],
    "eval": ["run"],
    "cost": ["resnet20"],
    "calibrate": ["run"],
    "predict": ["run", "i.png"],
    "serve": ["run"],
    "export": ["run"],
    "patch": ["a", "b", "--out", "c"],
    "report": ["run"],
    "verify": ["ekd"],
}
FUNCTIONS = {
    **{f"train {name}": resolve_name(path) for name, (path, _) in RECIPES.items()},
    **{f"kg {name}": command for name, command in KG.items()},
    **{name: resolve_name(path) for name, (path, _) in cli.COMMANDS.items() if name not in cli.GROUPS},
}


def _numbers(function):
    """The names of the flags that take numbers, those of groups among them."""
    for name, hint in typing.get_type_hints(function).items():
        if is_dataclass(hint) and name != "ablation":
            types = typing.get_type_hints(hint)
            for field in fields(hint):
                if {int, float} & _leaves(types[field.name]):
                    yield field.name
        elif name != "return" and {int, float} & _leaves(hint):
            yield name


def _leaves(hint):
    inside = typing.get_args(hint)
    literal = typing.get_origin(hint) is typing.Literal
    return set() if literal else {hint} | {leaf for arg in inside for leaf in _leaves(arg)}


CASES = [(command, name) for command, function in FUNCTIONS.items() for name in _numbers(function)]


@pytest.mark.parametrize(("command", "name"), CASES)
def test_a_number_out_of_range_is_one_line(command, name, tmp_path, monkeypatch, capsys):
    """No flag of a number is without a range: a new one belongs into `ranges.py`, and above."""
    monkeypatch.chdir(tmp_path)
    flag = f"--{name.replace('_', '-')}"
    value, *_ = WRONG[name][0]
    given = [flag, *[str(value)] * TIMES.get(name, 1)]
    with pytest.raises(SystemExit) as stop:
        cli.main([*command.split(), *NEEDED[command], *given])
    out, err = capsys.readouterr()
    assert (stop.value.code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith(f"error: {flag} {value}"), err
    assert f"must be {RANGES[name].words}" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", RANGES)
def test_the_ends_of_every_range_are_these(name):
    wrong, right = WRONG[name]
    for value in wrong:
        with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} "):
            check_numbers({name: float(value) if isinstance(value, str) else value})
    for value in right:
        check_numbers({name: value, "other": -1})
    check_numbers({name: None})
    with pytest.raises(ValueError, match="must be"):
        check_numbers({name: (right[0], float("nan"))})


def test_the_numbers_of_groups_are_looked_at():
    with pytest.raises(ValueError, match="--clip -1: must be 0 or more"):
        check_numbers({"loop": Loop(clip=-1)})


def test_numbers_of_groups_and_tuples_are_named_as_flags_or_parameters():
    @dataclass
    class Group:
        unlabeled_share: float | None = None

    with pytest.raises(ValueError, match="--sizes 0: must be 1 or more"):
        check_numbers({"sizes": (1, 0)})
    check_numbers({"group": Group()})
    with pytest.raises(ValueError, match="^unlabeled_share 1: must be above 0 and below 1"):
        check_numbers({"group": Group(1)}, flags=False)


def test_devices_that_are_not_here_are_refused_before_there_is_a_run(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "supervised", *NEEDED["train supervised"], "--device", "cuda"])
    assert stop.value.code == 2
    assert "error: --device cuda: torch finds no such device here" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    Loop(device="cuda", devices=2).check()
    for device in ("cuda", "auto"):
        with pytest.raises(ValueError, match="--devices 3: torch finds 2 of cuda here"):
            Loop(device=device, devices=3).check()
    Loop(device="cpu", devices=3).check()


PARSED = {
    "choice": (["train", "bert", "--teacher", "t", "--data", "d", "--out", "r", "--schedule", "fast"],
             "--schedule 'fast': take one of all, progressive, stacked"),
    "format": (["export", "r", "--format", "int8"],
               "--format 'int8': take one of onnx, pt2, safetensors"),
    "choice or none": (["train", "cnc", "--data", "d", "--out", "r", "--directed", "maybe"],
                       "--directed 'maybe': take one of False, True"),
    "no flag": (["predict", "r", "--size", "3"], "no flag --size"),
    "near": (["train", "ekd", "--data", "digits", "--out", "r", "--mixx", "cutmix"],
             "no flag --mixx; did you mean --mix?"),
    "words": (["eval", "r", "s", "t"], "too many words: s t"),
    "no value": (["eval", "r", "--interpolate"], "--interpolate: the value is missing"),
    "missing": (["train", "ekd", "--epochs", "3"], "missing: --data DATA, --out FOLDER"),
    "word": (["verify", "bert", "--seeds", "x"], "--seeds: 'x' is not a whole number"),
    "word or none": (["train", "ekd", "--data", "digits", "--out", "r", "--epochs", "x"],
                     "--epochs: 'x' is not a whole number"),
    "share": (["train", "ekd", "--data", "digits", "--out", "r", "--lr", "x"],
              "--lr: 'x' is not a number"),
    "missing and wrong": (["train", "ekd", "--dta", "x", "--out", "r"],
                          "no flag --dta; missing: --data DATA"),
    "of a group": (["train", "--foo"], "no recipe '--foo'"),
    "of all": (["--foo"], "no flag --foo"),
}  # fmt: skip


@pytest.mark.parametrize("boxes", [True, False])
@pytest.mark.parametrize("case", PARSED)
def test_what_cannot_be_parsed_is_said_in_one_line(case, boxes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tyro._fmtlib._FORCE_UTF8_BOXES", boxes)  # as in a terminal, and in a pipe
    line, message = PARSED[case]
    with pytest.raises(SystemExit) as stop:
        cli.main(line)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", FUNCTIONS)
def test_help_names_no_type_of_python_and_no_empty_default(command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "250")
    with pytest.raises(SystemExit):
        cli.main([*command.split(), "--help"])
    out = capsys.readouterr().out
    wrong = r"\b(None|STR|INT|FLOAT|PATH)\b(?!@)|default: \)|default: False|\S[-_]\S+ options"
    assert not re.search(wrong, out), re.search(wrong, out)
    shown = re.findall(r"^. (-.*?)\s{2,}(.*?)\s*.?$", out, re.MULTILINE)
    assert shown
    assert all(words for _, words in shown), shown
