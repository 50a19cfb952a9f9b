"""What a path hands along beside images: constants, further outputs, several tensors, shared heads."""

from collections import OrderedDict
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

import stepwell
from nets.example_text import CLASSES, MASK, TEXT, Encoder
from stepwell import Cascade
from stepwell.nets.nested.criteria import top_probability
from stepwell.nets.nested.nest import nest

EXACT = {"rtol": 0, "atol": 0}


LABELS = torch.tensor([0, 1, 2])


def encoder(depths=(1, 2, 3), **arguments):
    torch.manual_seed(0)
    depths = {str(d): (d,) for d in depths}
    return nest(Encoder(**arguments), ["layers"], depths, input_size=(7,)).double()


def naive(net, x, loss_of, **how):
    """The sum of all losses in one graph."""
    done, total = {}, 0
    exits = net.forward_all(x, **how)
    for depth in reversed(net.depths):
        loss, _ = loss_of(depth, exits[depth], done)
        done[depth] = exits[depth].detach()
        total = total + loss
    return total


def check_gradients(net, x, loss_of, also=(), **how):
    """The joint loss has the value and the gradients of the naive sum."""
    other = deepcopy(net)
    for p in also:
        p.grad = None
    loss, _ = net.joint_loss(x, loss_of, also=also, **how)
    loss.backward()
    shared = [None if p.grad is None else p.grad.clone() for p in also]
    for p in also:
        p.grad = None
    expected = naive(other, x, loss_of, **how)
    expected.backward()
    assert_close(loss, expected)
    close = {"rtol": 1e-9, "atol": 1e-12}
    for (name, a), b in zip(net.named_parameters(), other.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            assert_close(a.grad, b.grad, **close, msg=lambda m, n=name: f"{n}: {m}")
    for mine, p in zip(shared, also, strict=True):
        assert_close(mine, p.grad, **close)


def labels_only(depth, exit, done):
    return cross_entropy(exit.logits, LABELS), {}


# Constants


def test_constants_reach_the_steps_that_name_them():
    net = encoder().eval()
    expected = net.module(TEXT, MASK)
    assert not torch.equal(expected, net(TEXT))
    assert_close(net(TEXT, given={"mask": MASK}), expected, **EXACT)
    together = net.forward_all(TEXT, given={"mask": MASK})
    logits = net.logits_by_depth(TEXT, ["2", "full"], given={"mask": MASK})
    for depth in net.depths:
        alone = net.subnet(depth)(TEXT, MASK)
        assert_close(net(TEXT, depth, given={"mask": MASK}), alone, **EXACT)
        assert_close(together[depth].logits, alone, **EXACT)
        if depth in logits:
            assert_close(logits[depth], alone, **EXACT)


def test_constants_of_the_joint_loss():
    check_gradients(encoder(), TEXT, labels_only, given={"mask": MASK})


def test_a_cascade_cuts_constants_to_the_texts_still_unanswered():
    net = encoder().eval()
    net.mark("trained")
    whole = net.logits_by_depth(TEXT, given={"mask": MASK})
    limit = float(top_probability(whole["1"]).median().detach())
    cascade = Cascade(net, {"1": limit, "2": limit})
    answer = cascade(TEXT, given={"mask": MASK})
    assert len(answer.depth.unique()) > 1
    for i, depth in enumerate(answer.depth.tolist()):
        assert_close(answer.logits[i], whole[cascade.depths[depth]][i].detach())
    with pytest.raises(ValueError, match="given 'msk': no step's forward names it"):
        cascade(TEXT, given={"msk": MASK})
    table = torch.ones(7, 7)  # no row per text
    kept = net.request({"mask": [MASK, table]}).of_rows(torch.tensor([2]), 3).given["mask"]
    assert_close(kept, [MASK[2:], table])


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x, scale=None):
        return self.norm(x if scale is None else x * scale).relu()


def test_calibration_takes_constants_with_the_inputs():
    torch.manual_seed(0)
    body = nn.Sequential(*(Scaled() for _ in range(3)))
    module = nn.Sequential(OrderedDict(body=body, head=Scaled()))
    net = nest(module, ["body"], {"2": (2,)}, input_size=(4,))
    net.mark("trained", "full")
    x, scale = torch.randn(8, 4), torch.rand(8, 1)
    stepwell.calibrate(net, [((x, {"scale": scale}), None)])
    assert net.status["2"] == "calibrated"
    (own,) = net.private_norms
    with torch.no_grad():
        y = x
        for step in net.eval().path("2")[:2]:
            y = step(y, scale)
    assert_close(own.running_mean, (y * scale).mean(0))
    net.mark("fresh", "2")
    with pytest.raises(ValueError, match="given 'scales': no step's forward names it"):
        stepwell.calibrate(net, [((x, {"scales": scale}), None)])


class Shifted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x, shift=None):
        return self.fc(x) if shift is None else self.fc(x) + shift


def test_no_gradient_flows_to_a_constant():
    torch.manual_seed(0)
    module = nn.Sequential(OrderedDict(body=nn.Sequential(*(Shifted() for _ in range(3)))))
    net = nest(module, ["body"], {"1": (1,)})
    shift = torch.ones(4, requires_grad=True)
    x = torch.randn(3, 4)
    net(x, given={"shift": shift}).sum().backward()
    net.joint_loss(x, labels_only_of(3), given={"shift": shift})[0].backward()
    assert shift.grad is None


def labels_only_of(count):
    return lambda depth, exit, done: (cross_entropy(exit.logits, torch.arange(count)), {})


def test_a_constant_that_no_step_names_is_refused():
    net = encoder()
    for run in (net, net.forward_all, net.logits_by_depth):
        with pytest.raises(ValueError, match="given 'maks': no step's forward names it; .* take mask$"):
            run(TEXT, given={"maks": MASK})
    with pytest.raises(ValueError, match="given 'extras': no step's forward names it"):
        net.joint_loss(TEXT, labels_only, given={"extras": ("attention",)})
    plain = stepwell.build("resnet8", num_classes=2)
    with pytest.raises(ValueError, match="the steps of this network take no constant"):
        plain(torch.zeros(1, 3, 8, 8), given={"mask": MASK})


def test_a_teacher_takes_constants_and_gives_extras():
    net = encoder().eval()
    teacher = stepwell.Frozen(net, depth="2")
    exit = teacher(TEXT, given={"mask": MASK}, extras=["attention"])
    assert_close(exit.logits, net(TEXT, "2", given={"mask": MASK}), **EXACT)
    assert len(exit.extras["attention"]) == 2
    assert not exit.extras["attention"][0].requires_grad


# Further outputs


def test_extras_are_given_by_each_step_in_order_and_cost_nothing_unasked():
    net = encoder().eval()
    exits = net.forward_all(TEXT, extras=("attention", "hidden"), given={"mask": MASK})
    plain = net.forward_all(TEXT, given={"mask": MASK})
    for depth, exit in exits.items():
        assert_close(exit.logits, plain[depth].logits, **EXACT)
        assert [t.shape for t in exit.extras["attention"]] == [(3, 7, 7)] * net.depths[depth][0]
        assert exit.extras["hidden"][-1] is exit.features[-1]
        assert plain[depth].extras == {}
        detached = exit.detach()
        assert not detached.extras["hidden"][0].requires_grad
        assert_close(detached.extras["hidden"], exit.extras["hidden"], **EXACT)
    assert exits["2"].extras["attention"][0] is exits["full"].extras["attention"][0]


def test_gradients_of_losses_on_extras_before_at_and_behind_forks():
    def loss_of(depth, exit, done):
        loss = cross_entropy(exit.logits, LABELS)
        for i, (attention, hidden) in enumerate(
            zip(exit.extras["attention"], exit.extras["hidden"], strict=True)
        ):
            loss = loss + (i + 1) * attention.square().sum() + hidden.abs().sum()
        if done:  # a student's attention beside its teacher's
            full = done["full"].extras["attention"]
            pairs = zip(exit.extras["attention"], full, strict=False)
            loss = loss + sum((a.log() - b.log()).square().sum() for a, b in pairs)
        return loss, {}

    extras = ("attention", "hidden")
    check_gradients(encoder(), TEXT, loss_of, extras=extras)
    check_gradients(encoder((2,)), TEXT, loss_of, extras=extras)
    check_gradients(encoder(()), TEXT, loss_of, extras=extras)


def test_extras_of_done_exits_are_kept_as_features_are():
    seen = []

    def loss_of(depth, exit, done):
        seen.append({d: (len(e.features), len(e.extras)) for d, e in done.items()})
        return exit.logits.sum(), {}

    for keep in (True, False):
        encoder((1,)).joint_loss(TEXT, loss_of, extras=("hidden",), keep_features=keep)
    assert seen == [{}, {"full": (1, 1)}, {}, {"full": (0, 0)}]


def test_extras_that_nobody_gives_are_refused():
    net = encoder()
    for run in (lambda **how: net.forward_all(TEXT, **how),
                lambda **how: net.joint_loss(TEXT, labels_only, **how)):  # fmt: skip
        with pytest.raises(ValueError, match="extras 'atention': no step of the deepest path"):
            run(extras=["atention"])
    plain = stepwell.build("resnet8", num_classes=2)
    with pytest.raises(ValueError, match="extras attention: no step gives any; a step that does"):
        plain.forward_all(torch.zeros(1, 3, 8, 8), extras=["attention"])


class Tells(nn.Module):
    """Gives its very output as a further output, too."""

    def forward(self, x, extras=()):
        y = x - 1
        return (y, {"output": y}) if extras else y


def test_an_extra_that_the_next_step_would_overwrite_stays():
    body = nn.Sequential(Tells(), nn.ReLU(inplace=True), Tells(), nn.ReLU(inplace=True))
    net = nest(
        nn.Sequential(OrderedDict(stem=nn.Linear(4, 4), body=body)), ["body[0:4:2]"], {"1": (1,)}
    )
    x = torch.randn(3, 4)
    first = net.forward_all(x, extras=["output"])["full"].extras["output"][0]
    assert_close(first, net.module.stem(x) - 1, **EXACT)
    assert first.min() < 0


# Parameters that losses share


def test_a_head_that_the_losses_share_gets_its_whole_gradient():
    torch.manual_seed(0)
    net = stepwell.build("resnet20", ["8", "14"], num_classes=5, zero_init_residual=False).double()
    head = nn.Sequential(nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)

    def loss_of(depth, exit, done):
        boxes = head(exit.features[-1].mean((2, 3)))
        loss = boxes.square().sum() + exit.logits.square().mean()
        if depth == "20":  # weights before the fork, too
            loss = loss + net_of().module.conv1.weight.square().sum()
        return loss, {"boxes": loss}

    with pytest.raises(ValueError, match=r"\(3, 4\) .* name it in joint_loss\(..., also=\[...\]\)"):
        net.joint_loss(x, lambda d, e, done: (head(e.features[-1].mean((2, 3))).sum(), {}))
    current = []
    net_of = lambda: current[-1]  # noqa: E731
    twin, own = deepcopy(net), deepcopy(head)
    current.append(net)
    frozen = nn.Parameter(torch.zeros(2), requires_grad=False)
    unused = nn.Parameter(torch.zeros(2))
    also = [*head.parameters(), net.module.conv1.weight]
    for _ in range(2):
        some = iter([*also, frozen, unused])
        net.joint_loss(x, loss_of, also=some)[0].backward()
    current.append(twin)
    head, before = own, head
    for _ in range(2):
        naive(twin, x, loss_of).backward()
    close = {"rtol": 1e-9, "atol": 1e-12}
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        assert_close(a.grad, b.grad, **close)
    for a, b in zip(before.parameters(), head.parameters(), strict=True):
        assert_close(a.grad, b.grad, **close)
    assert unused.grad is None


def test_a_shared_parameter_with_a_hook_and_without_a_fork():
    head = nn.Linear(CLASSES, 2).double()
    seen = []
    head.weight.register_hook(seen.append)

    def loss_of(depth, exit, done):
        return head(exit.logits).square().sum(), {}

    check_gradients(encoder((1, 2)), TEXT, loss_of, also=[*head.parameters()])
    assert len(seen) == 2  # the joint loss's and the naive one's
    check_gradients(encoder(()), TEXT, loss_of, also=[*head.parameters()])


# Gradients that a step does not give


class Stops(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return None


class Stop(nn.Module):
    def __init__(self, stops) -> None:
        super().__init__()
        self.stops = stops
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(Stops.apply(x) if self.stops else x)


@pytest.mark.parametrize("stops", [(0, 0, 1), (0, 1, 0), (1, 1, 1), (0, 0, 0)])
def test_a_backward_that_gives_no_gradient(stops):
    torch.manual_seed(0)
    body = nn.Sequential(*(Stop(bool(s)) for s in stops))
    last = nn.Sequential(OrderedDict(norm=nn.LayerNorm(4), act=Stop(True)))
    parts = OrderedDict(stem=nn.Linear(4, 4), body=body, last=last)
    net = nest(nn.Sequential(parts), ["body"], {"1": (1,), "2": (2,)}).double()
    check_gradients(net, torch.randn(3, 4).double(), labels_only_of(3))


# Several tensors


class Scales(nn.Module):
    """Two scales, each of its own and of the finer one; the coarse one may pass as it is."""

    def __init__(self, passes=False) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, 2, 1)
        self.norm, self.passes = nn.BatchNorm2d(4), passes

    def forward(self, x):
        fine, coarse = x
        y = self.norm(self.fine(fine)).relu()
        return y + 0, coarse if self.passes else coarse + self.coarse(y)


class Widen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.down = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, 2, 1)

    def forward(self, x):
        y = self.conv(x)
        return [y, self.down(y)]


class Coarse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.fc(x[-1].mean((2, 3)))


class InPlace(nn.ReLU):
    """Works in place on the fine scale, and says so."""

    def __init__(self) -> None:
        super().__init__(inplace=True)

    def forward(self, x):
        return x[0].relu_(), x[1]


def multiscale(depths=((1, 1), (2, 1), (2, 2)), passes=False):
    torch.manual_seed(0)
    one = nn.Sequential(*(Scales() for _ in range(3)))
    two = nn.Sequential(InPlace(), Scales(passes), InPlace(), Scales(), InPlace(), Scales(passes))
    parts = OrderedDict(stem=Widen(), one=one, two=two, head=Coarse())
    named = {"-".join(map(str, d)): d for d in depths}
    return nest(nn.Sequential(parts), ["one", "two[0:6:2]"], named, input_size=(3, 8, 8)).double()


IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("training", [False, True])
def test_steps_hand_on_several_tensors(training):
    net = multiscale().train(training)
    together = deepcopy(net).forward_all(IMAGES)
    for depth, exit in together.items():
        alone = deepcopy(net)(IMAGES, depth)
        assert_close(exit.logits, alone, **EXACT)
        assert_close(deepcopy(net).subnet(depth)(IMAGES), alone, **EXACT)
        assert [f.shape for f in exit.features] == [(4, 4, 4, 4)] * 2  # the last of the scales


@pytest.mark.parametrize("passes", [False, True])
def test_gradients_of_steps_that_hand_on_several_tensors(passes):
    def loss_of(depth, exit, done):
        loss = cross_entropy(exit.logits, torch.arange(4))
        return loss + sum((i + 1) * f.square().mean() for i, f in enumerate(exit.features)), {}

    check_gradients(multiscale(passes=passes).train(), IMAGES, loss_of)


def test_a_cascade_of_steps_that_hand_on_several_tensors():
    net = multiscale().eval()
    net.mark("trained")
    probability = float(net(IMAGES, "1-1").detach().softmax(1).amax(1).median())
    answer = Cascade(net, {"1-1": probability})(IMAGES)
    assert len(set(answer.depth.tolist())) == 2
    for i, depth in enumerate(answer.depth.tolist()):
        assert_close(answer.logits[i], net(IMAGES, ["1-1", "full"][depth])[i])


class Overwrites(nn.Module):
    def forward(self, x):
        return [x[0], x[1].mul_(2)]


def test_a_step_that_overwrites_one_of_several_without_saying_so_is_refused():
    body = nn.Sequential(*(nn.Sequential(Overwrites(), Scales()) for _ in range(3)))
    parts = OrderedDict(stem=Widen(), body=body, head=Coarse())
    with pytest.raises(ValueError, match="the Sequential behind the fork of .* overwrites its in"):
        nest(nn.Sequential(parts), ["body"], {"1": (1,), "2": (2,)}, input_size=(3, 8, 8))


# Tied weights


def test_tied_weights_are_stored_once_and_tied_again(tmp_path):
    net = encoder(tied=True)
    for p in net.parameters():
        nn.init.normal_(p)
    assert "fc.weight" not in net.tensors()
    assert net.stored_names("2")["fc.weight"] == "embed.weight"
    small = net.subnet("2")
    assert small.fc.weight is small.embed.weight
    file = stepwell.save(net, tmp_path / "net")
    back = stepwell.load(file, lambda: Encoder(tied=True).double())
    assert back.module.fc.weight is back.module.embed.weight
    for depth in net.depths:
        assert_close(back(TEXT, depth), net.eval()(TEXT, depth), **EXACT)
    with pytest.raises(ValueError, match="was made of another module than `module` makes: names"):
        stepwell.load(file, lambda: Encoder(tied=False).double())
    assert stepwell.save(back, tmp_path / "again").read_bytes() == file.read_bytes()


def test_a_depth_of_a_tied_net_is_exported_under_all_names(tmp_path):
    from stepwell.export.subnet import plain_tensors

    net = encoder(tied=True)
    tensors = plain_tensors(net, "2")
    assert tensors.keys() == net.subnet("2").state_dict().keys()
    assert tensors["fc.weight"].data_ptr() != tensors["embed.weight"].data_ptr()
    assert_close(tensors["fc.weight"], tensors["embed.weight"], **EXACT)


def test_a_tied_net_starts_from_files(tmp_path):
    from stepwell.nets.files.initial_weights import initialise

    net, other = encoder(tied=True), encoder(tied=True)
    for p in net.parameters():
        nn.init.normal_(p)
    torch.save(net.module.state_dict(), tmp_path / "plain.pth")
    for file in (stepwell.save(net, tmp_path / "net"), tmp_path / "plain.pth"):
        nn.init.zeros_(other.module.embed.weight)
        assert initialise(other, file).fresh == ()
        assert_close(other.eval()(TEXT), net.eval()(TEXT), **EXACT)
    assert_close(other.module.fc.weight, other.module.embed.weight, **EXACT)


def test_gradients_of_tied_weights():
    for depths in ((1, 2, 3), (2,), ()):
        check_gradients(encoder(depths, tied=True), TEXT, labels_only, given={"mask": MASK})


def test_weights_tied_between_blocks():
    torch.manual_seed(0)
    module = nn.Sequential(OrderedDict(body=nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))))
    module.body[3].weight = module.body[0].weight
    module.body[2].weight = module.body[1].weight
    net = nest(module, ["body"], {"1": (1,), "2": (2,), "3": (3,)}).double()
    check_gradients(net, torch.randn(3, 4).double(), labels_only_of(3))


class MaskedMean(nn.Module):
    """Uses its mask in the blocks and, if told to, behind them."""

    def __init__(self, outside):
        super().__init__()
        self.layers = nn.ModuleList(Masked() for _ in range(3))
        self.head = nn.Linear(5, 2)
        self.outside = outside

    def forward(self, x, mask=None):
        for layer in self.layers:
            x = layer(x, mask)
        if self.outside and mask is not None:
            x = x * mask[..., None]
        return self.head(x.mean(1))


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(5, 5)

    def forward(self, x, mask=None):
        y = self.fc(x).relu()
        return y if mask is None else y * mask[..., None]


def test_constants_that_are_used_outside_of_the_blocks_are_refused():
    mask = torch.tensor([[1.0, 0.5, 0], [1, 0, 0]])
    how = {"stages": ["layers"], "depths": {"2": (2,)}, "input_size": (3, 5)}
    nest(MaskedMean(outside=False), **how, given={"mask": mask})
    with pytest.raises(ValueError, match="uses mask outside of the steps that name them"):
        nest(MaskedMean(outside=True), **how, given={"mask": mask})


def test_an_exit_taken_out_follows_train_and_eval_between_its_blocks():
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = (nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)) for _ in range(2))

        def forward(self, x):
            x = self.one(x)
            x = nn.functional.dropout(x, 0.5, self.training)
            return self.two(x)

    net = nest(Dropping(), ["one", "two"], {})
    net.add_exit("early", after=(2, 1))
    x = torch.randn(4, 8)
    plain = net.train().subnet("early").eval()
    assert torch.equal(plain(x), plain(x))
    plain.train()
    assert not torch.equal(plain(x), plain(x))
    with pytest.raises(ValueError, match="given 'mask': no step's forward names it"):
        plain(x, mask=x)


def test_extras_are_a_list_of_names():
    net = stepwell.build("resnet8", num_classes=5)
    with pytest.raises(ValueError, match=r"extras 'attention': give a list of names"):
        net.forward_all(torch.randn(2, 3, 8, 8), extras="attention")


def test_a_cascade_refuses_steps_that_hand_on_tensors_without_images():
    class First(nn.Module):
        def forward(self, x):
            return x.flatten(1), torch.ones(12)

    class Add(nn.Module):
        def forward(self, pair):
            return pair[0] + pair[1], pair[1]

    class Last(nn.Module):
        def forward(self, pair):
            return pair[0]

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = First(), Last()
            self.blocks = nn.Sequential(Add(), Add(), Add())
            self.fc = nn.Linear(12, 4)

        def forward(self, x):
            return self.fc(self.last(self.blocks(self.first(x))))

    net = nest(Net(), ["blocks"], {"1": (1,)}, input_size=(3, 2, 2)).eval()
    net.mark("trained")
    # sure of all but the first
    cascade = stepwell.Cascade(net, {"1": 1.0}, criterion=lambda z: torch.arange(len(z)).float())
    with pytest.raises(ValueError, match=r"hands on a tensor of shape \(12,\) for 4 images"):
        cascade(torch.randn(4, 3, 2, 2))
