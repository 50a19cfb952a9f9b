"""`stepwell eval`."""

import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from stepwell.commands.arguments import Json, Module, imported
from stepwell.console import print_json, say
from stepwell.kinds import kind_module, open_network


def eval_(
    run: Positional[Path],
    *,
    data: str | None = None,
    cascade: bool = False,
    target_accuracy: float | None = None,
    budget_macs: float | None = None,
    criterion: Literal["confidence", "entropy", "patience", "learned"] | None = None,
    search: Literal["best", "geometric"] | None = None,
    temper: bool = False,
    save: bool = False,
    bits: tuple[int, ...] | None = None,
    fidelity: tuple[str, ...] | None = None,
    teacher_mean: tuple[float, float, float] | None = None,
    teacher_std: tuple[float, float, float] | None = None,
    control: str | None = None,
    interpolate: int | None = None,
    module: Module = None,
    json: Json = False,
) -> None:
    """Measure accuracy, calibration, churn, MACs and latency.

    Every depth of a network is measured. A network that chooses resolutions or
    widths is measured as a whole, and at each choice for all images. With --fidelity, each depth is
    also compared with a teacher, on the training and test images. The run keeps the numbers for its
    report, by the data.

    Examples:
        stepwell eval runs/digits
        stepwell eval runs/photos --data other-photos/ --json
        stepwell eval runs/digits --cascade --target-accuracy 0.97 --save
        stepwell eval runs/digits --temper --save
        stepwell eval runs/student --fidelity runs/teacher --control runs/student-of-another
        stepwell eval runs/student --fidelity runs/one@20 two.onnx resnet18=three.pth
        stepwell eval runs/digits --fidelity runs/digits
        stepwell eval runs/adder --bits 8 6 5 4
        stepwell eval runs/small-encoder --fidelity runs/encoder

    Args:
        run: a run directory, or the file of its network.
        data: images to measure on: a folder or a name; their test part is used. Of texts, a
            tab-separated file. By default the data of the run.
        cascade: also find the best cascade (shallow first, deeper when unsure) on the validation part,
            and measure it on the test part.
        target_accuracy: accuracy of the cascade on the validation part (0.97 is 97 %); by default the
            full net's own.
        budget_macs: mean MACs of an input, at most: of the cascade, instead of a target accuracy; or of
            a network that chooses resolutions or widths.
        criterion: measure of how sure a depth is: the top probability (confidence, the default), the
            entropy, the number of depths in a row that agree (patience), or the probability to be
            right, fitted on the validation part (learned).
        search: how thresholds are found: the best for the goal (the default), or those that give each
            depth a geometric share of the images (MSDNet's baseline).
        temper: fit a temperature of each depth on the validation part. Logits are divided by it, so
            that probabilities are right on average instead of too sure; a cascade decides by these.
        save: save in the network's file what --cascade and --temper found, for `stepwell predict`.
        bits: of an adder network: also measure it with adder layers of this many bits, such as 8 6 5 4,
            without training. Training images set the ranges.
        fidelity: the teacher, as for `stepwell train distill --teacher`: a run directory or the file of
            a network (PATH@DEPTH for a depth), an ONNX file, NETWORK=FILE or timm/NAME; for texts, runs
            and files of the same tokenizer. Several are an ensemble. If it is the run itself, the full
            net is the teacher of the sub-nets.
        teacher_mean: mean of the teacher's images per channel, of pixels in [0, 1], if the teacher does
            not say it (most ONNX files).
        teacher_std: their standard deviation; needed in the same case.
        control: a student of another teacher (usually another seed), trained in the same way. Only
            agreement beyond the control's comes from this teacher.
        interpolate: number of points to measure on the straight line from the student's weights to the
            teacher's, for equal architectures; each point gets its own BatchNorm statistics.
    """
    flags = {name: value for name, value in locals().items() if name not in ("run", "json", "module")}
    if not cascade and {target_accuracy, criterion, search} != {None}:
        raise ValueError("--target-accuracy, --criterion and --search need --cascade")
    if save and not (cascade or temper):
        raise ValueError("--save needs --cascade or --temper: there is nothing else to save")
    if save and module:
        raise ValueError("--save is not for networks with --module: leave one of them out")
    if bits == ():
        raise ValueError("--bits: name the numbers of bits after it, such as 8 6 5 4")
    if fidelity == ():
        raise ValueError(
            "--fidelity: name the teacher after it, such as a run directory, or several for an ensemble"
        )
    if not fidelity and (teacher_mean or teacher_std or control is not None or interpolate):
        more = "--teacher-mean, --teacher-std, --control and --interpolate"
        raise ValueError(f"{more} need --fidelity")
    network = open_network(run, to="evaluate", module=imported(module))
    results = network.do("evaluate", **flags)
    if json:
        print_json(results)
    else:
        where = f" of {results['data']['name']}" if data is not None and "data" in results else ""
        title = f"{run} on {results['examples']} {network.noun}s{where}"
        kind_module(results["kind"]).show_results(results, title)
    if network.config and "data" in results:
        _keep(run if run.is_dir() else run.parent, results)


def _keep(run: Path, results: Mapping[str, Any]) -> None:
    """Keep an evaluation in its run for the report; say so if that cannot be."""
    from stepwell.device import device_name
    from stepwell.results import keep_evaluation

    try:
        keep_evaluation(run, results, date=time.strftime("%Y-%m-%d %H:%M:%S"), device=device_name())
    except FileNotFoundError:
        return  # a run that is not finished has no report
    except OSError as error:
        say(f"note: not kept for the report: {error}")
    else:
        say(f"kept in {run}; next: stepwell report {shlex.quote(str(run))}")
