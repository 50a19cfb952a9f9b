from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, kl_div
from torch.testing import assert_close

from stepwell.methods import Distill, EmbeddedKD, Graft, PrivateNorms, Supervised
from stepwell.methods.resolution import EveryResolution, ImitateBest, JointResolution
from stepwell.nets import build
from stepwell.nets.grafting.surgery import Grafting
from stepwell.nets.resolution.chooser import Choice, Chooser, ResolutionNet
from stepwell.nets.resolution.resolutions import Resolutions
from stepwell.teachers import Frozen, MovingAverage
from stepwell.types import Batch, Exit


def nested(depths=("8", "14"), name="resnet20"):
    net = build(name, depths, num_classes=5)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return net


@pytest.fixture
def batch():
    return Batch(torch.randn(6, 3, 8, 8), torch.randint(5, (6,)))


# Frozen


def test_a_frozen_teacher_stays_out_of_everything_its_owner_does(batch):
    net = nested(())
    teacher = Frozen(net)
    owner = nn.ModuleDict({"teacher": teacher, "student": nn.Linear(1, 1)})
    assert len(list(owner.parameters())) == 2
    assert all(name.startswith("student") for name in owner.state_dict())
    owner.train()
    before = deepcopy(teacher._net[0].state_dict())
    exit = teacher(batch.images.requires_grad_())
    assert isinstance(exit, Exit)
    assert not exit.logits.requires_grad
    for name, value in teacher._net[0].state_dict().items():
        assert_close(value, before[name], rtol=0, atol=0)
    with torch.no_grad():
        net.module.fc.bias.add_(1)  # a copy was taken
    assert_close(teacher(batch.images).logits, exit.logits, rtol=0, atol=0)
    owner.double()
    assert teacher(batch.images.double()).logits.dtype == torch.float64


def test_a_frozen_teacher_may_be_the_very_module():
    net = nested(())
    assert Frozen(net, copy=False)._net[0] is net
    assert not any(p.requires_grad for p in net.parameters())


# MovingAverage


def test_a_moving_average_follows_the_formula_statistics_included(batch):
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.LazyLinear(5))
    net(batch.images)
    average = MovingAverage(net, 0.9)
    average.update(net)
    expected = {k: v.clone().double() for k, v in net.state_dict().items()}
    for _ in range(3):
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn_like(p))
        net(batch.images)
        average.update(net)
        for k, v in net.state_dict().items():
            expected[k] = 0.9 * expected[k] + 0.1 * v
    for k, v in average.average.module.state_dict().items():
        if v.is_floating_point():  # the count of batches has no meaning in an average
            assert_close(v.double(), expected[k])
    assert not any(p.requires_grad for p in average.parameters())
    assert not any(m.training for m in average.train().modules())
    assert average.state_dict()  # a resumed run needs it


def test_a_teacher_that_would_be_trained_along_is_refused():
    net, teacher = build("resnet14", ["8"], num_classes=5), build("resnet14", num_classes=5)
    for make in (EmbeddedKD, Distill):
        with pytest.raises(ValueError, match=r"teacher \(NestedNet\) has parameters .* Frozen"):
            make(net, teacher=teacher)
        assert list(make(net, teacher=Frozen(teacher)).parameters()) == list(net.parameters())


def test_a_moving_average_refuses_a_decay_of_one():
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\), not 1"):
        MovingAverage(nn.Linear(1, 1), 1.0)


# EmbeddedKD


def by_hand(net, batch, *, teacher=None, w=1.0, a=1.0, b=1.0, g=2.0, t=3.0, teach_full=False):
    """The equation of the docstring, every path run on its own."""

    def run(depth):
        x, features = batch.images, []
        ends = {len(net.plan.gaps[0]) - 1 + sum(net.depths[depth][: i + 1]) for i in range(3)}
        for i, step in enumerate(net.path(depth)):
            x = step(x)
            if i in ends:
                features.append(x)
        return x, features

    def kl(z, target):
        p, q = (target.detach() / t).softmax(1), (z / t).log_softmax(1)
        return t * t * kl_div(q, p, reduction="batchmean")

    def q(f):
        f = f.square().mean(1).flatten(1)
        return f / f.norm(dim=1, keepdim=True)

    z_full, f_full = run(net.full)
    target = z_full if teacher is None else teacher
    loss = w * (cross_entropy(z_full, batch.labels) + (b * kl(z_full, target) if teach_full else 0))
    for depth in list(net.depths)[:-1]:
        z, f = run(depth)
        loss = loss + a * cross_entropy(z, batch.labels) + b * kl(z, target)
        for x, y in zip(f, f_full, strict=True):
            loss = loss + g * (q(x) - q(y.detach())).square().sum(1).mean()
    return loss


@pytest.mark.parametrize("own_teacher", [True, False])
def test_ekd_is_the_equation_of_its_docstring(batch, own_teacher):
    net = nested().double().train()
    batch = Batch(batch.images.double(), batch.labels)
    twin = deepcopy(net)
    options, target = {"distill_from": 0.0}, None
    if not own_teacher:
        teacher = Frozen(nested(()).double())
        target = teacher(batch.images).logits
        options |= {"teacher": teacher, "teach_full": True, "full_weight": 1.5}
    step = EmbeddedKD(net, **options).training_step(batch)
    expected = by_hand(
        twin, batch, teacher=target, w=options.get("full_weight", 1.0), teach_full=not own_teacher
    )
    assert_close(step.loss, expected)
    step.loss.backward()
    expected.backward()
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        assert_close(a.grad, b.grad, rtol=1e-8, atol=1e-11)


def test_no_gradient_flows_from_a_subnets_loss_through_the_teacher(batch):
    """With a weight of 0 for its own loss, the full net's last private layers learn nothing."""
    net = nested(("14",)).train()
    objective = EmbeddedKD(net, distill_from=0.0, full_weight=0.0)
    objective.training_step(batch).loss.backward()
    assert not net.module.layer3[2].conv1.weight.grad.any()  # only the full net has this block
    assert net.module.layer3[1].conv1.weight.grad.any()


def test_before_distill_from_only_the_full_net_trains(batch):
    net = nested().train()
    objective = EmbeddedKD(net, distill_from=0.5, ema_teacher=0.9, teach_full=True)
    objective.progress = 0.49
    step = objective.training_step(batch)
    assert list(step.logs) == ["20/ce"]
    objective.progress = 0.5
    step = objective.training_step(batch)
    assert set(step.logs) == {"20/ce", "20/kl"} | {
        f"{d}/{t}" for d in ("8", "14") for t in ("ce", "kl", "attention")
    }


def test_sampling_trains_the_full_net_and_one_other(batch):
    objective = EmbeddedKD(nested(), distill_from=0.0, sample=True)
    drawn = {tuple(objective.active_depths()) for _ in range(40)}
    assert drawn == {("8", "20"), ("14", "20")}


def test_the_moving_average_replaces_the_full_net_as_teacher(batch):
    net = nested(("8",)).train()
    objective = EmbeddedKD(net, distill_from=0.0, ema_teacher=0.5, attention=0.0)
    objective.train()
    objective.training_step(batch)  # the first update copies
    with torch.no_grad():
        net.module.fc.weight.mul_(-3)
    expected = MovingAverage(net.module, 0.5)
    expected.load_state_dict(objective.average.state_dict())
    expected.update(net.module)
    target = expected(batch.images).logits
    twin = deepcopy(net)
    logs = objective.training_step(batch).logs
    z = twin.forward_all(batch.images)["8"].logits
    p, q = (target / 3).softmax(1), (z / 3).log_softmax(1)
    assert_close(logs["8/kl"], (9 * kl_div(q, p, reduction="batchmean")).detach())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distill_from": 1.5}, "^distill_from 1.5: must be 0 or more and below 1"),
        ({"temperature": -1.0}, "^temperature -1.0: must be above 0"),
        ({"ce": -1.0}, "^ce -1.0: must be 0 or more"),
        ({"kl": -1.0}, "^kl -1.0: must be 0 or more"),
        ({"attention": float("nan")}, "^attention nan: must be 0 or more and finite"),
        ({"full_weight": -1.0}, "^full_weight -1.0: must be 0 or more"),
        ({"label_smoothing": 3.0}, "^label_smoothing 3.0: must be 0 or more and below 1"),
        ({"ema_teacher": 1.0}, "^ema_teacher 1.0: must be 0 or more and below 1"),
        ({"weights": {"8": -2.0}}, "^the weight of depth '8' -2.0: must be 0 or more"),
        ({"weights": {"20": 0.0}}, "weights names '20', the full net: set full_weight"),
        ({"teach_full": True, "ema_teacher": 0.9, "kl": 0.0}, "kl=0 turns off"),
        ({"attention_mode": "x"}, "attention_mode is one of at, sad, gram, not 'x'"),
        ({"weights": {"9": 1.0}}, "no depth '9'"),
        ({"teach_full": True}, "teach_full needs another teacher than the full net"),
        ({"ema_teacher": 0.9, "teacher": lambda x: Exit(x)}, "ema_teacher or teacher, not both"),
    ],
)
def test_options_that_make_no_sense(options, message):
    from jaxtyping import TypeCheckError

    with pytest.raises((ValueError, TypeCheckError), match=None if "mode" in str(options) else message):
        EmbeddedKD(nested(), **options)


def test_subnets_without_any_loss_are_refused():
    with pytest.raises(ValueError, match="sub-nets have no loss"):
        EmbeddedKD(nested(), ce=0.0, kl=0.0, attention=0.0)


# all of them


def teacher():
    return Frozen(nested(()))


#: By name: what makes one.
OBJECTIVES = {
    "supervised": lambda: Supervised(nested(()).module),
    "self-taught": lambda: Supervised(
        build("resnet20", num_classes=5).module, ema_teacher=0.5, distill_from=0.8
    ),
    "distill": lambda: Distill(nested(()).module, teacher()),
    "ekd": lambda: EmbeddedKD(nested(("8",)), distill_from=0.0),
    "ekd, sad": lambda: EmbeddedKD(nested(("8",)), distill_from=0.0, attention_mode="sad"),
    "ekd, gram": lambda: EmbeddedKD(nested(("8",)), distill_from=0.0, attention_mode="gram"),
    "ekd, average": lambda: EmbeddedKD(
        build("resnet20", ["8"], num_classes=5),
        distill_from=0.8,  # an average of the first steps teaches nothing yet
        ema_teacher=0.5,
        teach_full=True,
    ),
    "ekd, teacher": lambda: EmbeddedKD(
        nested(("8",)), distill_from=0.0, teacher=teacher(), teach_full=True
    ),
    "every resolution": lambda: EveryResolution(Resolutions(nested(("8",), "resnet14"), (8, 6))),
    "dynamic resolution": lambda: JointResolution(dynamic(), [1.0, 0.56], target=0.7),
    "all resolutions": lambda: JointResolution(dynamic(), [1.0, 0.56], target=0.7, mixing="all"),
    "imitate": lambda: ImitateBest(dynamic(), [1.0, 0.56]),
    "graft": lambda: graft(0, 0),
    "joined grafts": lambda: graft(0, 3, loss="features"),
}


def graft(first, last, **options):
    """Blocks of a student in a teacher."""
    student, teacher = (build(n, num_classes=5) for n in ("resnet8_slim", "resnet14"))
    grafting = Grafting(student, teacher.eval(), input_shape=(3, 8, 8), start="fresh")
    return Graft(grafting, first, last, **options)


def dynamic():
    choices = [Choice("8", 8), Choice("8", 6)]
    return ResolutionNet(Resolutions(nested((), "resnet8"), (8, 6)), choices, Chooser(2, 8))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_keeps_the_contract(name, batch):
    torch.manual_seed(0)
    objective = OBJECTIVES[name]().train()
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], 0.05, 0.9)
    losses = []
    for i in range(30):
        objective.progress = i / 30
        step = objective.training_step(batch)
        assert step.loss.ndim == 0
        optimizer.zero_grad()
        step.loss.backward()
        optimizer.step()
        logs = {k: float(v.detach()) for k, v in step.logs.items()}
        losses.append(sum(v for k, v in logs.items() if k.endswith("ce") or k == "graft"))
        assert all(value.isfinite() for value in step.logs.values())
    assert losses[-1] < 0.7 * losses[0], losses
    # It can be put back to where it was.
    torch.manual_seed(0)
    twin = OBJECTIVES[name]().train()
    twin.load_state_dict(objective.state_dict())
    twin.progress = objective.progress = 0.9
    losses = []
    for method in (twin, objective):
        torch.manual_seed(1)  # as the loop seeds every step
        losses.append(method.training_step(batch).loss)
    assert_close(*losses)


def test_distillation_is_the_weighted_sum_of_its_terms(batch):
    student, teacher = nested(()).module, Frozen(nested(()))
    logs = (step := Distill(student, teacher, ce=0.3, kl=0.7).training_step(batch)).logs
    assert_close(step.loss, 0.3 * logs["ce"] + 0.7 * logs["kl"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "^temperature 0.0: must be above 0"),
        ({"temperature": float("nan")}, "^temperature nan: must be above 0 and finite"),
        ({"ce": -1.0}, "^ce -1.0: must be 0 or more"),
        ({"kl": -1.0}, "^kl -1.0: must be 0 or more"),
        ({"attention": -1.0}, "^attention -1.0: must be 0 or more"),
        ({"hint": -1.0}, "^hint -1.0: must be 0 or more"),
        ({"ce": 0.0, "kl": 0.0}, "^the student has no loss"),
    ],
)
def test_distillation_refuses_numbers_before_any_step(options, message):
    with pytest.raises(ValueError, match=message):
        Distill(nested(()).module, Frozen(nested(())), input_shape=(3, 16, 16), **options)


def test_images_without_labels_are_taught_by_the_teacher_alone(batch):
    student, teacher = build("resnet8_ln", num_classes=5).module, Frozen(nested(()))
    method = Distill(student, teacher, ce=0.3, kl=0.7)
    half = Batch(batch.images, batch.labels.masked_fill(torch.arange(6) > 2, -1))
    logs, labelled = method.training_step(half).logs, method.training_step(batch).logs
    assert_close(logs["kl"], labelled["kl"], rtol=0, atol=0)
    assert_close(logs["ce"], cross_entropy(student(batch.images[:3]), batch.labels[:3]))
    none = method.training_step(Batch(batch.images, torch.full((6,), -1)))
    assert float(none.logs["ce"].detach()) == 0
    assert_close(none.loss, 0.7 * none.logs["kl"])
    mixed = 0.3 * torch.eye(5)[batch.labels] + 0.7 * torch.eye(5)[batch.labels.flip(0)]
    found = method.training_step(Batch(batch.images, mixed)).logs["ce"]
    assert_close(found, cross_entropy(student(batch.images), mixed))


def test_a_student_that_starts_at_its_teacher_has_no_gradient(batch):
    """Without labels and without statistics of batches, equal weights are the optimum."""
    net = build("resnet8_ln", num_classes=5).module
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    method = Distill(net, Frozen(net), ce=0.0, temperature=4.0).train()
    step = method.training_step(batch)
    step.loss.backward()
    assert abs(float(step.loss.detach())) < 1e-6
    assert max(p.grad.abs().max() for p in net.parameters()) < 1e-5


# PrivateNorms


def test_private_norms_train_and_nothing_else_changes(batch):
    net = nested()
    before = {name: value.clone() for name, value in net.tensors().items()}
    method = PrivateNorms(net).train()
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.1)
    for _ in range(2):
        method.training_step(batch).loss.backward()
        optimizer.step()
    for name, value in net.tensors().items():
        if not name.startswith("depths/"):
            assert_close(value, before[name], rtol=0, atol=0)
        elif not name.endswith("num_batches_tracked"):
            assert (value != before[name]).any(), name


def test_private_norms_need_some():
    with pytest.raises(ValueError, match="no private norms"):
        PrivateNorms(build("resnet20", ["8"], norms="shared"))


def test_probabilities_of_a_teacher_are_found_out_and_said(batch):
    student, z = nested(()), 3 * torch.randn(6, 5)
    features = (torch.randn(6, 8, 4, 4),)
    expected = Distill(student, lambda x: Exit(z.log_softmax(1), features), ce=0.0)
    taught = Distill(student, lambda x: Exit(z.softmax(1).half(), features), ce=0.0)
    for _ in range(2):  # whenever it gives them, not in the first step alone
        with pytest.warns(UserWarning, match="the teacher gives probabilities, .* logarithm is taken"):
            loss = taught.training_step(batch).loss
        assert_close(loss, expected.training_step(batch).loss, rtol=1e-2, atol=1e-3)


def test_logits_that_look_like_probabilities_later_are_left_alone(batch):
    student, p = nested(()), (3 * torch.randn(6, 5)).softmax(1)
    given = iter([torch.randn(6, 5), p])
    taught = Distill(student, lambda x: Exit(next(given)), ce=0.0)
    losses = [taught.training_step(batch).loss for _ in range(2)]
    same = Distill(student, lambda x: Exit(p - 5), ce=0.0)  # softmax does not see a shift
    assert_close(losses[1], same.training_step(batch).loss)


def test_the_teacher_of_a_nested_net_may_give_probabilities_as_well(batch):
    z, net = 3 * torch.randn(6, 5), nested()
    only = {"ce": 0.0, "attention": 0.0, "full_weight": 0.0, "distill_from": 0.0}
    expected = EmbeddedKD(net, teacher=lambda x: Exit(z), **only).training_step(batch).loss
    with pytest.warns(UserWarning, match="the teacher gives probabilities, .* logarithm is taken"):
        found = EmbeddedKD(net, teacher=lambda x: Exit(z.softmax(1)), **only).training_step(batch)
    assert_close(found.loss, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("objective", [Distill, EmbeddedKD])
def test_what_gives_no_exit_is_no_teacher(objective, batch):
    early = {"distill_from": 0.0} if objective is EmbeddedKD else {}
    with pytest.raises(ValueError, match=r"gives a Tensor, not an Exit: wrap a module in Frozen"):
        objective(nested(), teacher=lambda x: torch.zeros(6, 5), **early).training_step(batch)


def test_a_record_of_the_depths_that_ran_goes_with_the_weights(batch):
    late = EmbeddedKD(nested(), distill_from=0.5)
    assert late.trained_depths == ()
    late.training_step(batch)
    assert late.trained_depths == ("20",)
    before = deepcopy(late.state_dict())
    averaged = MovingAverage(late, 0.99)
    averaged.update(late)
    late.progress = 0.5
    late.training_step(batch)
    averaged.update(late)
    assert late.trained_depths == averaged.average.module.trained_depths == ("8", "14", "20")
    late.load_state_dict(before)
    assert late.trained_depths == ("20",)
    del before["ran"]  # a checkpoint of before there was a record
    late.load_state_dict(before)
    assert late.trained_depths == ("8", "14", "20")


def test_a_depth_that_was_never_drawn_is_not_trained(batch, monkeypatch):
    drawn = EmbeddedKD(nested(), distill_from=0.0, sample=True)
    monkeypatch.setattr(torch, "randint", lambda *a: torch.tensor(1))
    drawn.training_step(batch)
    assert drawn.trained_depths == ("14", "20")
