import contextlib
import json
import math
import shutil
import signal
import sys
import warnings
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from stepwell.data import Augment, Batches, ImageSet
from stepwell.files import write_whole
from stepwell.methods import EmbeddedKD, Objective, Supervised
from stepwell.nets import build
from stepwell.nets.adders.layers import AdderConv2d
from stepwell.training import Loop, Run, fit, optimizer_of, sgd
from stepwell.training.checkpoint import read_checkpoint
from stepwell.training.fit import Stopped
from stepwell.training.job import Diverged
from stepwell.training.optim import RATES, Optim, cosine
from stepwell.types import Batch, Step

CPU = {"device": "cpu"}


@pytest.fixture
def batches():
    pixels = torch.randint(0, 256, (24, 3, 8, 8), dtype=torch.uint8)
    labels = torch.arange(24) % 3
    return Batches(
        ImageSet(pixels, labels, ("a", "b", "c")),
        6,
        mean=(0.5, 0.5, 0.5),
        std=(0.3, 0.3, 0.3),
        augment=Augment(pad=1),
        shuffle=True,
        seed=5,
    )


@pytest.fixture
def run(tmp_path):
    with Run.start(tmp_path / "run", "test", {}, data={}) as run:
        yield run


def tiny():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(),
        nn.Linear(144, 3),
    )  # fmt: skip


def states_equal(a, b, atol=0.0):
    for name, value in a.state_dict().items():
        assert_close(value, b.state_dict()[name], rtol=0, atol=atol, msg=name)


class StopAt(Supervised):
    """Raises at one step, as a killed process would stop there."""

    def __init__(self, net, at):
        super().__init__(net, ema_teacher=0.5, distill_from=0.3)
        self.at, self.count = at, 0

    def training_step(self, batch):
        if self.count == self.at:
            raise RuntimeError("stopped here")
        self.count += 1
        return super().training_step(batch)


def test_filters_of_adder_layers_have_a_rate_of_their_own_and_are_not_clipped(batches, run):
    adder = AdderConv2d(nn.Conv2d(4, 4, 3))
    net = nn.Sequential(nn.Conv2d(3, 4, 3), adder, nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3))
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    optim = Optim(lambda module: torch.optim.SGD(module.parameters(), lr=1.0), lambda progress: 1.0)
    fit(Supervised(net), batches, optim, run, phase="train", steps=1, loop=Loop(clip=0.01, **CPU))
    steps = {name: value.detach() - before[name] for name, value in net.named_parameters()}
    assert steps.pop("1.weight").square().mean().sqrt() == pytest.approx(2.0, rel=1e-3)
    norm = torch.cat([step.flatten() for step in steps.values()]).norm()
    assert norm == pytest.approx(0.01, rel=1e-2)


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_fit_is_a_plain_loop(batches, run, precision):
    """The same steps written by hand: order, augmentation, rate, clipping, random numbers."""
    from stepwell.data import seed_of

    objective, twin = Supervised(tiny()), Supervised(tiny())
    loop = Loop(clip=0.5, accumulate=2, precision=precision, **CPU)
    fit(objective, batches, sgd(0.1), run, phase="train", epochs=3, loop=loop)
    optimizer = sgd(0.1).make(twin)
    twin.to(memory_format=torch.channels_last).train()
    for position in range(12):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * cosine(position / 12, 0.05)
        torch.manual_seed(seed_of(5, "train", position, 0))
        batch = batches.at(position)
        # Lightning keeps no cache of cast weights.
        autocast = torch.autocast("cpu", torch.bfloat16, precision == "bf16", cache_enabled=False)
        with autocast:
            loss = twin.training_step(batch).loss
        (loss / 2).backward()
        if position % 2:
            nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
    states_equal(objective, twin, atol=0.0 if precision == "32" else 1e-7)


class Until(Supervised):
    """Is done after a number of steps, which its state dict counts; stops at one, as if killed."""

    def __init__(self, steps, kill=-1):
        super().__init__(tiny())
        self.steps, self.kill = steps, kill
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    @property
    def done(self):
        return int(self.count) >= self.steps

    def training_step(self, batch):
        if self.count == self.kill:
            raise RuntimeError("stopped here")
        self.count += 1
        return super().training_step(batch)


def test_an_objective_that_is_done_ends_its_phase_at_the_same_step_when_resumed(
    batches, run, capsys, monkeypatch
):
    monkeypatch.delenv("STEPWELL_QUIET", raising=False)
    options = {"epochs": 3, "loop": Loop(checkpoint_minutes=0, accumulate=2, **CPU)}
    whole, first, again = Until(5), Until(5, kill=3), Until(5)
    assert fit(whole, batches, sgd(0.1), run, phase="whole", **options) == 6  # the next full step
    assert "stopped after 6 of 12 steps, because its loss is below" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="stopped here"):
        fit(first, batches, sgd(0.1), run, phase="cut", **options)
    assert fit(again, batches, sgd(0.1), run, phase="cut", **options) == 6
    assert again.count == 6
    assert fit(Until(5), batches, sgd(0.1), run, phase="cut", **options) == 6  # a finished phase
    assert [line["step"] for line in run.metrics() if line["phase"] == "whole"] == [4, 6]


def test_prepare_changes_the_gradients_once_a_step_before_they_are_clipped(batches, run):
    objective, seen = Supervised(tiny()), []

    def norm():
        return float(torch.stack([p.grad.norm() for p in objective.parameters()]).norm())

    def prepare(given):
        assert given is objective
        for p in given.parameters():
            p.grad.mul_(1000)
        seen.append(("prepared", norm()))

    class Recording(torch.optim.SGD):
        def step(self, closure=None):
            loss = closure()  # backward, prepare, clip
            seen.append(("step", norm()))
            return super().step(lambda: loss)

    optim = Optim(lambda net: Recording(net.parameters(), lr=1e-3), lambda progress: 1.0, prepare)
    loop = Loop(clip=0.5, accumulate=2, **CPU)
    fit(objective, batches, optim, run, phase="train", epochs=1, loop=loop)
    assert [what for what, _ in seen] == ["prepared", "step"] * 2  # four batches, two a step
    assert all(value > 5 if what == "prepared" else value < 0.51 for what, value in seen)
    assert Optim(optim.make, optim.factor).prepare is None


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_every_optimizer_trains_in_bf16_with_clipping(batches, run, name):
    objective = Supervised(tiny())
    before = [p.detach().clone() for p in objective.parameters()]
    loop = Loop(clip=0.5, precision="bf16", **CPU)
    fit(objective, batches, optimizer_of(name, 0.01), run, phase="train", epochs=1, loop=loop)
    for p, old in zip(objective.parameters(), before, strict=True):
        assert p.isfinite().all()
        assert (p != old).any()


@pytest.mark.parametrize("stop", [1, 4, 7, 11])
@pytest.mark.parametrize(
    "options", [{}, {"average": 0.9}, {"average": 0.9, "accumulate": 2}, {"accumulate": 3}]
)
def test_training_cut_off_anywhere_goes_on_to_the_same_bits(batches, tmp_path, stop, options):
    loop = Loop(checkpoint_minutes=0.0, **options, **CPU)
    nets, lines = [], []
    for name, stops in (("whole", [-1]), ("cut", [stop, stop, -1])):
        for at in stops:
            net = tiny()
            scores = iter(range(100))
            with Run.start(tmp_path / name, "test", {}, data={}) as run:
                try:
                    fit(
                        StopAt(net, at), batches, sgd(0.1), run, phase="train", epochs=4, loop=loop,
                        validate=lambda n=net, s=scores: {
                            "accuracy": float(n[0].weight.detach().sum()), "calls": next(s) * 0.0
                        },
                    )  # fmt: skip
                except RuntimeError as error:
                    assert str(error) == "stopped here"  # noqa: PT017
                lines.append(
                    [{k: v for k, v in m.items() if "seconds" not in k} for m in run.metrics()]
                )
        nets.append(net)
    states_equal(*nets)
    assert lines[0] == lines[-1]
    assert [line["epoch"] for line in lines[-1]] == [1, 2, 3, 4]


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_a_phase_may_end_amid_an_epoch(batches, tmp_path, steps):
    """Its rate falls over all of its steps, and each epoch, the last one too, leaves a line."""
    nets = []
    for name, stops in (("whole", [-1]), ("cut", [steps - 1, -1])):
        for at in stops:
            objective = StopAt(tiny(), at)
            with Run.start(tmp_path / name, "test", {}, data={}) as run:
                with contextlib.suppress(RuntimeError):
                    fit(
                        objective, batches, sgd(0.1), run, phase="train", steps=steps,
                        loop=Loop(checkpoint_minutes=0.0, **CPU),
                    )  # fmt: skip
                lines = run.metrics()
        nets.append(objective.net)
        assert [line["step"] for line in lines] == [*range(4, steps, 4), steps]
        assert [line["epoch"] for line in lines] == [n + 1 for n in range(len(lines))]
        assert lines[-1]["lr"] == 0.1 * cosine((steps - 1) / steps, 0.05)
    states_equal(*nets)


@pytest.mark.parametrize("length", [{}, {"epochs": 1, "steps": 1}])
def test_a_phase_has_one_length(batches, run, length):
    with pytest.raises(ValueError, match="in epochs or in steps, one of the two"):
        fit(Supervised(tiny()), batches, sgd(0.1), run, phase="train", **length)


def test_a_phase_that_is_done_is_loaded_not_run_again(batches, tmp_path):
    for _ in range(2):
        objective = StopAt(tiny(), 8)
        with Run.start(tmp_path / "run", "test", {}, data={}) as run:
            fit(objective, batches, sgd(0.1), run, phase="train", epochs=2, loop=Loop(**CPU))
            last = objective.net
        if _ == 0:
            first = last
    assert objective.count == 0
    states_equal(first, last)


def test_the_best_epoch_by_validation_is_kept(batches, run):
    scores, seen = iter([0.1, 0.9, 0.9, 0.2]), []
    objective = Supervised(tiny())

    def validate():
        assert not objective.net.training
        seen.append({k: v.clone() for k, v in objective.net.state_dict().items()})
        return {"20/accuracy": next(scores), "20/nll": 3.0}

    fit(
        objective, batches, sgd(0.1), run, phase="train", epochs=4, validate=validate,
        loop=Loop(**CPU),
    )  # fmt: skip
    for name, value in objective.net.state_dict().items():
        assert_close(value, seen[1][name], rtol=0, atol=0)
    assert [line["val/20/accuracy"] for line in run.metrics()] == [0.1, 0.9, 0.9, 0.2]


def test_the_moving_average_of_weights_is_what_is_kept(batches, run):
    objective = Supervised(tiny())
    # one step from the start at rate 0.1, none after: the average must lag behind the weights
    fit(objective, batches, sgd(0.1), run, phase="train", epochs=1, loop=Loop(average=0.9, **CPU))
    plain = Supervised(tiny())
    with Run.start(run.path.parent / "plain", "test", {}, data={}) as other:
        fit(plain, batches, sgd(0.1), other, phase="train", epochs=1, loop=Loop(**CPU))
    start = tiny()
    moved = (objective.net[0].weight - start[0].weight).norm()
    whole = (plain.net[0].weight - start[0].weight).norm()
    assert 0 < moved < 0.6 * whole


def test_averages_move_once_a_step_whatever_it_accumulates(batches, run):
    """The teacher's and the one that is kept, against the formula over the weights of each step."""
    objective = Supervised(tiny(), ema_teacher=0.5)
    weights = [objective.net[0].weight.detach().clone()]

    def make(net):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        optimizer.register_step_post_hook(
            lambda *_: weights.append(objective.net[0].weight.detach().clone())
        )
        return optimizer

    fit(
        objective, batches, Optim(make, lambda progress: 1.0), run, phase="train", epochs=3,
        loop=Loop(accumulate=3, average=0.9, **CPU),
    )  # fmt: skip
    assert len(weights) == 1 + 4

    def averaged(values, decay):
        total = values[0]
        for value in values[1:]:
            total = decay * total + (1 - decay) * value
        return total

    assert_close(objective.net[0].weight, averaged(weights[1:], 0.9))
    # the teacher is one step behind, and itself in the average that is kept
    taught = [averaged(weights[:n], 0.5) for n in range(1, 5)]
    got = objective.average.average.module[0].weight
    assert_close(got, averaged(taught, 0.9))


def test_a_checkpoint_without_the_average_that_is_asked_for_is_refused(batches, run):
    def train(net, average):
        fit(
            StopAt(net, 7), batches, sgd(0.1), run, phase="train", epochs=4,
            loop=Loop(average=average, **CPU),
        )  # fmt: skip

    with pytest.raises(RuntimeError, match="stopped here"):
        train(tiny(), 0.0)
    checkpoint = run.phase("train") / "last.ckpt"
    before = checkpoint.read_bytes()
    with pytest.raises(ValueError, match=r"last\.ckpt holds no moving average .* one is asked for"):
        train(tiny(), 0.9)
    assert checkpoint.read_bytes() == before
    checkpoint.unlink()
    with pytest.raises(RuntimeError, match="stopped here"):
        train(tiny(), 0.9)
    with pytest.raises(ValueError, match=r"holds a moving average .* and none is asked for"):
        train(tiny(), 0.0)
    with pytest.raises(ValueError, match=r"last\.ckpt is of another network .*net\.6\.weight"):
        train(nn.Sequential(*tiny(), nn.Linear(3, 3)), 0.9)


class Bad(Objective):
    """Gives a loss that is not finite at one step."""

    def __init__(self, at):
        super().__init__()
        self.weight, self.at, self.count = nn.Parameter(torch.ones(1)), at, 0

    def training_step(self, batch: Batch) -> Step:
        self.count += 1
        loss = self.weight.sum() * (math.nan if self.count == self.at else 1.0)
        return Step(loss, {"ce": loss})


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(batches, run):
    with pytest.raises(Diverged, match=r"loss is nan at step 2 of epoch 2 \(phase train\).*last.ckpt"):
        fit(Bad(7), batches, sgd(0.1), run, phase="train", epochs=3, loop=Loop(clip=0.0, **CPU))
    saved = read_checkpoint(run.phase("train") / "last.ckpt")
    assert saved["position"] == 4
    assert saved["objective"]["weight"].isfinite()


def test_weights_that_are_not_finite_are_never_saved(batches, run):
    huge = Optim(
        lambda net: torch.optim.SGD(net.parameters(), lr=1.0),
        lambda progress: math.inf if progress >= 3 / 8 else 0.0,
    )
    with pytest.raises(Diverged, match="weight is not finite at step 3 of epoch 1"):
        fit(Bad(99), batches, huge, run, phase="train", epochs=2, loop=Loop(clip=0.0, **CPU))
    assert not (run.phase("train") / "last.ckpt").exists()


def test_progress_runs_from_zero_up_and_delayed_starts_follow_it(batches, run):
    net = build("resnet20", ["8"], num_classes=3)
    objective = EmbeddedKD(net, distill_from=0.5)
    fit(objective, batches, sgd(0.05), run, phase="nest", epochs=4, loop=Loop(**CPU))
    assert ["8/ce" in line for line in run.metrics()] == [False, False, True, True]
    assert objective.progress == pytest.approx(15 / 16)


def test_a_damaged_checkpoint_is_named(batches, run):
    (run.phase("train") / "last.ckpt").write_bytes(b"PK\x03\x04 half a checkpoint")
    with pytest.raises(
        ValueError, match=r"last\.ckpt is damaged or no checkpoint .*: remove .*/train to"
    ):
        fit(Supervised(tiny()), batches, sgd(0.1), run, phase="train", epochs=1)


def test_a_changed_byte_of_a_checkpoint_is_noticed(batches, run):
    fit(Supervised(tiny()), batches, sgd(0.1), run, phase="train", epochs=1, loop=Loop(**CPU))
    file = run.phase("train") / "last.ckpt"
    whole, weight = file.read_bytes(), read_checkpoint(file)["objective"]["net.5.bias"]
    at = whole.index(weight.numpy().tobytes())
    file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(
        ValueError, match=r"last\.ckpt is damaged \(the checksum of .* does not match\)"
    ):
        fit(Supervised(tiny()), batches, sgd(0.1), run, phase="train", epochs=1, loop=Loop(**CPU))


@pytest.mark.parametrize("content", [[1], {"objective": {}}, torch.zeros(3)])
def test_a_pickle_of_something_else_is_no_checkpoint(batches, run, content):
    torch.save(content, run.phase("train") / "last.ckpt")
    with pytest.raises(
        ValueError, match=r"last\.ckpt is no checkpoint of a training: remove .*/train to"
    ):
        fit(Supervised(tiny()), batches, sgd(0.1), run, phase="train", epochs=1, loop=Loop(**CPU))


@pytest.mark.parametrize(
    ("entry", "value"),
    [("sums", 3), ("position", "two"), ("position", 10**6), ("best", "high"), ("optimizer", {"a": 1}),
     ("seconds", None)],
)  # fmt: skip
def test_an_altered_checkpoint_is_damaged(batches, run, entry, value, monkeypatch):
    stop_after(monkeypatch, 3)
    with pytest.raises(RuntimeError, match="stop"):
        fit(Supervised(tiny()), batches, sgd(0.1), run, phase="train", epochs=2,
            loop=Loop(**CPU, checkpoint_minutes=0))  # fmt: skip
    monkeypatch.undo()
    file = run.phase("train") / "last.ckpt"
    torch.save(read_checkpoint(file) | {entry: value}, file)
    with pytest.raises(ValueError, match=r"last\.ckpt is damaged .*: remove .*/train to train this"):
        fit(Supervised(tiny()), batches, sgd(0.1), run, phase="train", epochs=2, loop=Loop(**CPU))


def test_a_missing_best_epoch_is_noticed(batches, run, monkeypatch):
    call = {"phase": "train", "epochs": 3, "validate": lambda: {"accuracy": 0.5}, "loop": Loop(**CPU)}
    stop_after(monkeypatch, 6)
    with pytest.raises(RuntimeError, match="stop"):
        fit(Supervised(tiny()), batches, sgd(0.1), run, **call)
    monkeypatch.undo()
    (run.phase("train") / "best.ckpt").unlink()
    with pytest.raises(ValueError, match=r"best\.ckpt, the weights of the best epoch, is missing"):
        fit(Supervised(tiny()), batches, sgd(0.1), run, **call)


def stop_after(monkeypatch, steps):
    """End a training with an error after so many steps."""
    from stepwell.training.job import Job

    real = Job.end_step

    def stopping(job, progress):
        real(job, progress)
        if job.position == steps:
            raise RuntimeError("stop")

    monkeypatch.setattr(Job, "end_step", stopping)


@pytest.mark.parametrize(("epochs", "accumulate", "message"), [(0, 1, "epochs"), (1, 0, "accumulate")])
def test_numbers_below_one_are_refused(batches, run, epochs, accumulate, message):
    with pytest.raises(ValueError, match=f"--{message} 0: must be 1 or more"):
        fit(
            Supervised(tiny()), batches, sgd(0.1), run, phase="t", epochs=epochs,
            loop=Loop(accumulate=accumulate),
        )  # fmt: skip


def test_the_schedule_warms_up_and_falls_to_zero():
    values = [cosine(i / 100, 0.05) for i in range(101)]
    assert 0 < values[0] < 0.05
    assert max(values) == values[5] == 1.0
    assert values[100] == pytest.approx(0.0)
    assert all(a >= b for a, b in pairwise(values[5:]))


def test_only_matrices_decay():
    groups = sgd(0.1, weight_decay=0.5).make(tiny()).param_groups
    assert {p.ndim for p in groups[0]["params"]} == {2, 4}
    assert {p.ndim for p in groups[1]["params"]} == {1}
    assert [g["weight_decay"] for g in groups] == [0.5, 0.0]


def test_optimizers_by_name_take_their_own_rate_and_decay_matrices_alone():
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    for name, kind in kinds.items():
        optimizer = optimizer_of(name, weight_decay=0.5).make(tiny())
        assert type(optimizer) is kind
        assert {g["lr"] for g in optimizer.param_groups} == {RATES[name]}
        assert [g["weight_decay"] for g in optimizer.param_groups] == [0.5, 0.0]
        assert optimizer_of(name, 0.03).make(tiny()).param_groups[0]["lr"] == 0.03


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_training_by_another_optimizer_goes_on_to_the_same_bits(batches, tmp_path, name):
    nets = []
    for folder, stops in (("whole", [-1]), ("cut", [5, -1])):
        for at in stops:
            net = tiny()
            stopped = contextlib.suppress(RuntimeError)
            with Run.start(tmp_path / folder, "test", {}, data={}) as run, stopped:
                fit(
                    StopAt(net, at), batches, optimizer_of(name), run, phase="train", epochs=2,
                    loop=Loop(checkpoint_minutes=0.0, **CPU),
                )  # fmt: skip
        nets.append(net)
    states_equal(*nets)
    assert not torch.equal(nets[0][0].weight, tiny()[0].weight)


# the run directory


def start(tmp_path, recipe="r", data=None, **arguments):
    return Run.start(tmp_path / "run", recipe, arguments, data=data or {"fingerprint": "1"})


def test_a_run_is_resumed_with_the_same_arguments_only(tmp_path):
    with start(tmp_path, lr=0.1, loop=Loop()) as run:
        run.write_metrics([])
    with start(tmp_path, lr=0.1, loop=Loop(checkpoint_minutes=9.0)):
        pass
    with pytest.raises(ValueError, match=r"run with --lr 0\.1, not 0\.2: resume it with its own"):
        start(tmp_path, lr=0.2, loop=Loop())
    with pytest.raises(ValueError, match=r"--clip 5\.0, not 1\.0"):
        start(tmp_path, lr=0.1, loop=Loop(clip=1.0))
    with pytest.raises(ValueError, match="holds a run of 'r', not 's'"):
        start(tmp_path, recipe="s", lr=0.1, loop=Loop())
    with pytest.raises(ValueError, match="run on other data"):
        start(tmp_path, data={"fingerprint": "2"}, lr=0.1, loop=Loop())


def test_another_version_warns_and_nothing_more(tmp_path):
    with start(tmp_path) as run:
        run.write_metrics([])
    file = tmp_path / "run" / "config.json"
    config = json.loads(file.read_text())
    config["versions"]["torch"] = "0.1"
    file.write_text(json.dumps(config))
    with pytest.warns(UserWarning, match="started with versions"), start(tmp_path):
        pass


def test_another_number_of_devices_warns_and_nothing_more(tmp_path):
    with start(tmp_path, loop=Loop()) as run:
        run.write_metrics([])
    warned = pytest.warns(UserWarning, match="started with devices 1, now 2: the result may differ")
    with warned, start(tmp_path, loop=Loop(devices=2)):
        pass


def test_two_writers_are_one_too_many(tmp_path):
    with start(tmp_path), pytest.raises(OSError, match="another process is writing to"):
        start(tmp_path)
    with warnings.catch_warnings(), start(tmp_path):
        pass


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="holds other files and no run"):
        start(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file: name a directory"):
        Run.start(tmp_path / "file", "r", {}, data={})


def test_a_finished_phase_keeps_its_weights_alone(batches, run):
    def train():
        net = tiny()
        fit(
            Supervised(net), batches, sgd(0.1), run, phase="train", epochs=2,
            loop=Loop(average=0.5, **CPU), validate=lambda: {"accuracy": 0.5},
        )  # fmt: skip
        return net

    first = train()
    folder = run.phase("train")
    assert {p.name for p in folder.iterdir()} == {"last.ckpt", "done"}
    saved = read_checkpoint(folder / "last.ckpt")
    assert (saved["optimizer"], saved["average"]) == (None, None)
    before = run.metrics()
    for mine, again in zip(first.parameters(), train().parameters(), strict=True):
        assert_close(mine, again, rtol=0, atol=0)
    assert run.metrics() == before


def test_weights_that_are_not_finite_never_become_the_best(batches, run):
    huge = Optim(
        lambda net: torch.optim.SGD(net.parameters(), lr=1.0),
        lambda progress: math.inf if progress >= 7 / 12 else 0.01,
    )
    scores = iter([0.5, 0.9, 0.9])
    with pytest.raises(Diverged, match="not finite at step 3 of epoch 2"):
        fit(
            Bad(99), batches, huge, run, phase="train", epochs=3, loop=Loop(clip=0.0, **CPU),
            validate=lambda: {"accuracy": next(scores)},
        )  # fmt: skip
    best = read_checkpoint(run.phase("train") / "best.ckpt")
    assert best["objective"]["weight"].isfinite()


class Impatient(Supervised):
    """Gets signals in its seventh step."""

    def __init__(self, signals):
        super().__init__(tiny())
        self.signals, self.steps = signals, 0

    def training_step(self, batch):
        self.steps += 1
        if self.steps == 7:
            for name in self.signals:
                signal.raise_signal(name)
        return super().training_step(batch)


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_says_what_happens_and_leaves_a_checkpoint(
    batches, run, capfd, monkeypatch, name
):
    monkeypatch.delenv("STEPWELL_QUIET", raising=False)
    with pytest.raises(Stopped, match="phase t, epoch 2 of 4, step 3"):
        fit(Impatient([name]), batches, sgd(0.1), run, phase="t", epochs=4, loop=Loop(**CPU))
    assert "\nstopping after this step; once more stops at once\n" in capfd.readouterr().err
    assert read_checkpoint(run.phase("t") / "last.ckpt")["position"] == 7


def test_a_run_directory_that_was_removed_is_named(batches, run):
    class Removed(Supervised):
        def training_step(self, batch):
            shutil.rmtree(run.path, ignore_errors=True)
            return super().training_step(batch)

    with pytest.raises(OSError, match=r"/run was removed while it trained: start again$"):
        fit(Removed(tiny()), batches, sgd(0.1), run, phase="t", epochs=1, loop=Loop(**CPU))


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_stops_at_once_and_the_checkpoint_is_whole(batches, run, name):
    before = signal.getsignal(name)
    with pytest.raises(
        Stopped, match=r"at once; the last checkpoint of phase t is .*last\.ckpt"
    ) as stop:
        fit(Impatient([name] * 2), batches, sgd(0.1), run, phase="t", epochs=3, loop=Loop(**CPU))
    assert stop.value.signum == name
    assert signal.getsignal(name) is before
    assert read_checkpoint(run.phase("t") / "last.ckpt")["position"] == len(batches)


def test_a_second_signal_before_any_checkpoint_says_so(batches, run):
    late = Impatient([signal.SIGINT, signal.SIGTERM])
    late.steps = 6
    with pytest.raises(Stopped, match="at once, before the first checkpoint of phase t") as stop:
        fit(late, batches, sgd(0.1), run, phase="t", epochs=3, loop=Loop(**CPU))
    assert stop.value.signum == signal.SIGINT
    assert not (run.phase("t") / "last.ckpt").exists()


def test_a_request_to_stop_reaches_another_process_whole():
    import pickle

    stop = pickle.loads(pickle.dumps(Stopped(15, "phase x")))
    assert (stop.signum, str(stop)) == (15, "phase x")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_named(batches, run):
    with pytest.raises(ValueError, match="--device cuda: torch finds no such device here"):
        fit(
            Supervised(tiny()), batches, sgd(0.1), run, phase="t", epochs=1,
            loop=Loop(device="cuda"),
        )  # fmt: skip


def test_of_several_processes_one_writes(tmp_path, monkeypatch):
    with start(tmp_path) as first:
        monkeypatch.setenv("LOCAL_RANK", "1")
        with start(tmp_path) as second:
            assert (first.writes, second.writes) == (True, False)


@pytest.mark.parametrize("validated", [True, False])
@pytest.mark.parametrize("options", [{"average": 0.9}, {"accumulate": 3}])
def test_training_cut_off_after_any_write_goes_on_to_the_same_bits(
    batches, tmp_path, monkeypatch, validated, options
):
    """The process ends right after its n-th file, for every n: best, metrics, last, done."""
    loop = Loop(**options, **CPU)
    left = [10**9]

    def counted(path, data):
        write_whole(path, data)
        left[0] -= 1
        if left[0] == 0:
            raise InterruptedError("cut here")

    for module in ("fit", "run"):
        monkeypatch.setattr(sys.modules[f"stepwell.training.{module}"], "write_whole", counted)

    def train(name):
        objective = Supervised(tiny())
        validate = (
            (lambda: {"accuracy": float(objective.net[0].weight.detach().sum())}) if validated else None
        )
        with Run.start(tmp_path / name, "test", {}, data={}) as run:
            fit(
                objective, batches, sgd(0.1), run, phase="train", epochs=2, validate=validate,
                loop=loop,
            )  # fmt: skip
        return objective

    whole = train("whole")
    files = 10**9 - left[0]
    assert files >= 4
    for n in range(1, files + 1):
        left[0] = n
        with pytest.raises(InterruptedError):
            train(f"cut{n}")
        left[0] = 10**9
        states_equal(train(f"cut{n}"), whole)
        states_equal(train(f"cut{n}"), whole)


def test_what_a_killed_process_left_is_no_obstacle(tmp_path):
    (tmp_path / "run").mkdir()
    part = tmp_path / "run" / ".config.json.abc.part"
    part.write_bytes(b"half")
    with start(tmp_path):
        assert not part.exists()
