"""Whoever runs a network in eval mode for a while gives each module its own mode back."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn

from stepwell import calibrate
from stepwell.cost import costs_of
from stepwell.data import Batches, ImageSet
from stepwell.measure.cascade import calibrate_cascade, measure_cascade
from stepwell.methods import Distill, EmbeddedKD
from stepwell.nets import Card, build
from stepwell.nets.nested.cascade import Cascade
from stepwell.nets.nested.nest import nest
from stepwell.nets.resolution.resolutions import Resolutions
from stepwell.tasks.measuring import validator
from stepwell.tasks.task import Task
from stepwell.teachers import Frozen
from stepwell.train_mode import in_eval_mode, keeping_modes, train_unfrozen
from stepwell.training import Loop, Run, fit, sgd


@pytest.fixture
def images():
    pixels = torch.randint(0, 256, (12, 3, 16, 16), dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(12) % 3, ("a", "b", "c"))


@pytest.fixture
def batches(images):
    return Batches(images, 6, mean=(0.5,) * 3, std=(0.3,) * 3)


@pytest.fixture
def net():
    """In train mode, but for some norms that somebody froze, one of them a sub-net's own."""
    net = build("resnet14", ["8"], num_classes=3).train()
    net.mark("trained")
    net.card = Card(("a", "b", "c"), 16)
    net.module.get_submodule("layer2.0.bn1").eval()
    net.private_norms[0].eval()
    return net


def modes(net):
    every = [*net.modules(), *net.hidden_modules()]
    return {id(m): (type(m).__name__, m.training) for m in every}


def calibrated(net, batches):
    net.mark("fresh", "8")
    calibrate(net, batches)


def cascaded(net, batches):
    calibrate_cascade(net, batches)
    measure_cascade(Cascade(net, {"8": 0.5}, "14"), batches, seconds=0.01)


def attended(net, batches):
    Distill(net, Frozen(net), attention=1.0, input_shape=(3, 16, 16))


USERS = {
    "calibrate": calibrated,
    "cascade": cascaded,
    "attention": attended,
    "cost": lambda net, batches: costs_of({"": net}, batches.at(0).images, seconds=0.01),
    "validator": lambda net, batches: validator(net, task_of(batches))(),
}


def task_of(batches):
    return Task(Run(Path("none"), {}, None), batches, batches, batches)


@pytest.mark.parametrize("use", USERS.values(), ids=USERS)
def test_every_module_is_in_its_own_mode_afterwards(net, batches, use):
    before = modes(net)
    assert {mode for _, mode in before.values()} == {True, False}
    use(net, batches)
    assert modes(net) == before


def test_nesting_leaves_the_modes_of_the_module_and_gives_them_to_sub_nets():
    module = build("resnet14", num_classes=3).module.train()
    module.layer2[0].bn1.eval()
    net = nest(module, ["layer1", "layer2", "layer3"], {"8": (1, 1, 1)})
    for part in (module, net.subnet("8")):
        frozen = [name for name, m in part.named_modules() if not m.training]
        assert frozen == ["layer2.0.bn1"]


def test_validation_within_training_leaves_frozen_norms_frozen(net, batches, tmp_path):
    """Not by the modes of the start, which the loop sets, but by those of the moment."""
    objective, seen = EmbeddedKD(net, distill_from=0.0), []
    inner = objective.training_step

    def step(batch):
        if objective.progress == 0:
            net.private_norms[0].eval()
        seen.append(net.private_norms[0].training)
        return inner(batch)

    objective.training_step = step
    with Run.start(tmp_path / "run", "test", {}, data={}) as run:
        fit(
            objective, batches, sgd(0.1), run, phase="p", epochs=2, loop=Loop(device="cpu"),
            validate=lambda: {"accuracy": float(net.private_norms[1].training)},
        )  # fmt: skip
        assert [line["val/accuracy"] for line in run.metrics()] == [0.0, 0.0]
    assert seen == [False] * 4


def trained(objective, batches, folder):
    with Run.start(folder, "test", {}, data={}) as run:
        fit(objective, batches, sgd(0.1), run, phase="p", epochs=1, loop=Loop(device="cpu"))


def test_training_leaves_frozen_norms_frozen(net, batches, tmp_path):
    before = modes(net)
    frozen = net.module.get_submodule("layer2.0.bn1")
    states = [deepcopy(n.state_dict()) for n in (frozen, net.module.bn1)]
    trained(EmbeddedKD(net, distill_from=0.0), batches, tmp_path / "run")
    assert modes(net) == before
    assert torch.equal(frozen.running_mean, states[0]["running_mean"])
    assert not torch.equal(net.module.bn1.running_mean, states[1]["running_mean"])


@pytest.mark.parametrize("make", [lambda net: net.eval(), lambda net: nest(
    net.module.eval(), ["layer1", "layer2", "layer3"], {"8": (1, 1, 1)})])  # fmt: skip
def test_a_net_that_is_in_eval_mode_as_a_whole_trains_as_a_whole(make, net, batches, tmp_path):
    net = make(net)
    trained(EmbeddedKD(net, distill_from=0.0), batches, tmp_path / "run")
    assert {mode for _, mode in modes(net).values()} == {True}


def test_a_loaded_net_inside_a_wrapper_trains_as_a_whole(net):
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.head, self.norm = net, nn.Linear(3, 3), nn.BatchNorm1d(3).eval()

    wrapper = Wrapper()
    net.eval()
    train_unfrozen(nn.ModuleDict({"net": wrapper}))
    assert {mode for _, mode in modes(net).values()} == {True}
    assert [wrapper.training, wrapper.head.training, wrapper.norm.training] == [True, True, False]


def test_resolutions_of_a_loaded_net_train_as_a_whole(net):
    wrapped = Resolutions(net.eval(), [16, 8])
    train_unfrozen(nn.ModuleList([wrapped]))
    assert all(m.training for m in [*wrapped.modules(), *wrapped.hidden_modules()])


def test_what_a_method_keeps_in_eval_mode_stays_so_and_lists_are_no_networks():
    class Half(nn.Module):
        def __init__(self, *blocks):
            super().__init__()
            self.blocks = nn.ModuleList(blocks)

        def train(self, mode=True):
            super().train(mode)
            self.blocks[0].eval()
            return self

    half = Half(nn.ReLU(), nn.Sequential(nn.ReLU()).eval(), nn.Sequential(nn.ReLU().eval()))
    train_unfrozen(half)
    assert [b.training for b in half.blocks] == [False, True, True]
    assert [half.blocks[1][0].training, half.blocks[2][0].training] == [True, False]


def test_an_error_gives_the_modes_back_and_a_class_of_its_own_mind_is_asked():
    class Merging(nn.Module):
        """Does something when it changes its mode, as LoRA's layers do."""

        def train(self, mode=True):
            self.merged = not mode
            return super().train(mode)

    def fail():
        with in_eval_mode(net):
            assert not any(m.training for m in net.modules())
            assert net[0].merged
            raise RuntimeError("whatever")

    net = nn.Sequential(Merging(), nn.Dropout().eval())
    with pytest.raises(RuntimeError, match="whatever"):
        fail()
    assert [m.training for m in net.modules()] == [True, True, False]
    assert not net[0].merged
    with keeping_modes(net):
        net.train()
    assert [m.training for m in net.modules()] == [True, True, False]
