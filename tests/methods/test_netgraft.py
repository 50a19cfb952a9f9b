"""Grafting: cuts and pairs, what trains, what is cached, and the merging of adaptions."""

from contextlib import nullcontext
from functools import partial
from inspect import unwrap

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import stepwell
from stepwell.data import Batches, ImageSet
from stepwell.losses import logit_direction
from stepwell.methods import Graft
from stepwell.nets import build
from stepwell.nets.grafting.split_points import (
    Adaption,
    SplitPoint,
    pair_split_points,
    split_points,
)
from stepwell.nets.grafting.surgery import Grafting
from stepwell.nets.nested.nest import nest
from stepwell.training import Loop, Run, fit, sgd
from stepwell.types import Batch

SHAPE = (3, 16, 16)


class Small(nn.Module):
    """Stages of two convolutions with an activation each, of somebody's own."""

    def __init__(self, *widths, norm=False, pool=False, stride=2):
        super().__init__()
        self.stages = nn.ModuleList()
        before = 3
        for width in widths:
            block = [nn.Conv2d(before, width, 3, 1 if pool else stride, 1), nn.ReLU()]
            self.stages.append(nn.Sequential(nn.Sequential(*block, *[nn.BatchNorm2d(width)] * norm)))
            before = width
        self.pools = nn.ModuleList(nn.MaxPool2d(2) if pool else nn.Identity() for _ in widths)
        self.fc = nn.Linear(before, 5)

    def forward(self, x):
        for stage, pool in zip(self.stages, self.pools, strict=True):
            x = pool(stage(x))
        return self.fc(x.mean((2, 3)))


def small(*widths, **options):
    net = Small(*widths, **options)
    return nest(net, [f"stages.{i}" for i in range(len(widths))], {}, input_size=SHAPE).eval()


def net(name, **options):
    made = build(name, num_classes=5, **options)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return made.eval()


@pytest.fixture
def batch():
    return Batch(torch.randn(6, *SHAPE), torch.full((6,), -1))


def steps(objective, batch, count, lr=3e-3):
    objective.train()
    optimizer = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], lr)
    losses = []
    for i in range(count):
        objective.progress = i / count
        step = objective.training_step(batch)
        optimizer.zero_grad()
        step.loss.backward()
        optimizer.step()
        losses.append(float(step.loss.detach()))
    return losses


def test_direction_of_logits_worked_by_hand():
    student = torch.tensor([[3.0, 4.0], [0.0, 2.0]], requires_grad=True)
    teacher = torch.tensor([[40.0, 30.0], [0.0, 1.0]])
    loss = logit_direction(student, teacher)  # cosines 24/25 and 1
    assert_close(loss, torch.tensor((2 * (1 - 24 / 25) + 0) / 2))
    assert_close(logit_direction(7 * student, teacher / 9), loss)
    loss.backward()
    assert_close((student * student.grad).sum(1), torch.zeros(2))  # the length stays free
    with pytest.raises(ValueError, match=r"\(2, 2\) and teacher logits \(2, 3\) differ"):
        logit_direction(student, torch.zeros(2, 3))


def test_blocks_pair_where_resolutions_agree_and_by_hand():
    grafting = Grafting(small(4, 6, 8), small(5, 7), input_shape=SHAPE)
    assert [(a.stage, b.stage) for a, b in grafting.pairs] == [
        ("stages.0", "stages.0"), ("stages.1", "stages.1"),
    ]  # fmt: skip
    by_hand = Grafting(small(4, 6), small(5, 7), input_shape=SHAPE, pairs=["stages.1"])
    assert by_hand.names == ("stages.1", "head")
    alone = Grafting(small(4, 6), small(5, 7), input_shape=SHAPE, pairs="stages.1")
    assert alone.pairs == by_hand.pairs
    pooled = split_points(small(4, 6, pool=True), SHAPE)
    assert [cut.resolution for cut in pooled] == [(8, 8), (4, 4)]  # behind their poolings


@pytest.mark.parametrize(
    ("student", "pairs", "message"),
    [
        (
            (4, 6),
            ["stages.0=stages.1"],
            "stages.0 8×8 of the student and stages.1 4×4 of the teacher",
        ),
        ((4, 6), ["stages.1", "stages.0"], "does not come after"),
        (
            (4, 6),
            ["nothing"],
            "the student has no stage 'nothing'; it has stages.0 8×8, stages.1 4×4",
        ),
    ],
)
def test_pairs_that_do_not_fit_are_refused(student, pairs, message):
    with pytest.raises(ValueError, match=message):
        Grafting(small(*student), small(5, 7), input_shape=SHAPE, pairs=pairs)


def test_networks_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"student has stages.0 6×6, the teacher .* stages.1 4×4;"):
        Grafting(small(4, stride=3), small(5, 7), input_shape=SHAPE)
    with pytest.raises(ValueError, match=r"in train mode.*call teacher.eval\(\) first"):
        Grafting(small(4, 6), small(5, 7).train(), input_shape=SHAPE)
    with pytest.raises(ValueError, match="the student has 5 classes, the teacher 4"):
        Grafting(net("resnet8"), build("resnet14", num_classes=4).eval(), input_shape=SHAPE)
    with pytest.raises(ValueError, match=r"a nested net \(8, 14\).*build\(NAME, kept=BLOCKS\)"):
        Grafting(net("resnet14_slim", depths=["8"]), net("resnet14"), input_shape=SHAPE)
    with pytest.raises(ValueError, match=r"nothing to learn.*.1 in layer1, .* no stage can keep"):
        Grafting(net("resnet8"), net("resnet8"), input_shape=SHAPE)
    tokens = SplitPoint("encoder.layers", 1, (17, 8), True)
    with pytest.raises(ValueError, match=r"student has encoder.layers 17 tokens, the teacher .* 8×8"):
        pair_split_points([tokens], split_points(small(5), SHAPE))


def test_blocks_and_images_that_train_nothing_are_refused(batch):
    teacher = net("resnet14")
    grafting = Grafting(net("resnet14_slim"), teacher, input_shape=SHAPE)
    assert grafting.copied == (True, True, False, False)
    for span in ((2, 1), (9, 9), (-1, 2), (0, 4)):
        with pytest.raises(ValueError, match=r"it has 0 layer1, 1 layer2, 2 layer3, 3 head"):
            Graft(grafting, *span)
    with pytest.raises(ValueError, match="0 to 1 .* trainable blocks are 2 layer3, 3 head"):
        Graft(grafting, 0, 1)
    with pytest.raises(ValueError, match="no images to graft on"):
        Graft(grafting, 2, 3, images=[])
    with pytest.raises(ValueError, match="no images to bring the logits to the teacher's scale"):
        grafting.merged([])
    grafting.merged([batch])


@pytest.mark.parametrize("plain", [Small(4, 6), nn.Sequential(nn.Flatten(), nn.Linear(768, 5))])
def test_a_plain_module_is_told_how_to_become_a_network_with_stages(plain):
    """As those who run it without the tests' checks of types see it."""
    begin = partial(unwrap(Grafting.__init__), Grafting.__new__(Grafting), input_shape=SHAPE)
    told = rf"is a plain {type(plain).__name__}, .* stepwell\.nest\(module, stages=.*depths="
    with pytest.raises(ValueError, match=f"the student {told}"):
        begin(plain.eval(), small(5, 7))
    with pytest.raises(ValueError, match=f"the teacher {told}"):
        begin(small(4, 6), plain.eval())


def test_a_graft_is_the_teacher_with_one_block_of_the_student(batch):
    student, teacher = small(4, 6), small(5, 7)
    grafting = Grafting(student, teacher, input_shape=SHAPE)
    objective = Graft(grafting, 1, 1).train()
    a, b = (module for module in grafting.blocks[1] if isinstance(module, Adaption))
    x = teacher.module.stages[0](batch.images)
    x = torch.einsum("nchw,dc->ndhw", x, a.weight)  # the teacher's 5 channels to the student's 4
    x = student.module.stages[1](x)
    x = torch.einsum("nchw,dc->ndhw", x, b.weight)
    logits = teacher.module.fc(x.mean((2, 3)))
    expected = logit_direction(logits, teacher(batch.images))
    assert_close(objective.training_step(batch).loss, expected)
    assert_close(grafting.mixed(1, 1)(batch.images), logits)
    assert_close(grafting.mixed(0, -1)(batch.images), teacher(batch.images))


def test_hints_compare_the_output_of_every_block(batch):
    student, teacher = small(4, 6), small(5, 7)
    grafting = Grafting(student, teacher, input_shape=SHAPE)
    step = Graft(grafting, 0, 2, loss="features").eval().training_step(batch)
    x = y = batch.images
    expected = []
    for ours, theirs in zip(grafting.blocks[:2], teacher.module.stages, strict=True):
        x, y = ours(x), theirs(y)
        expected.append((x - y).square().mean() / y.square().mean())
    logits = grafting.mixed(0, 2)(batch.images)
    expected.append(logit_direction(logits, teacher(batch.images)))
    assert_close(step.loss, sum(expected))
    alone = Graft(grafting, 2, 2, loss="mse").eval().training_step(batch)
    assert_close(
        alone.loss, (grafting.mixed(2, 2)(batch.images) - teacher(batch.images)).square().mean()
    )


def test_hints_under_autocast_are_shares_of_the_teachers_mean_square_in_32_bits(batch):
    grafting = Grafting(small(4, 6), small(5, 7), input_shape=SHAPE)
    x = batch.images
    with torch.autocast("cpu", torch.bfloat16):
        step = Graft(grafting, 0, 0, loss="features").eval().training_step(batch)
        ours, theirs = grafting.blocks[0](x), grafting._teacher[0](x)
        logits, target = grafting.mixed(0, 0)(x), grafting.mixed(0, -1)(x)
    assert theirs.dtype == torch.bfloat16
    ours, theirs = ours.float(), theirs.float()
    hint = (ours - theirs).square().mean() / theirs.square().mean()
    assert_close(step.loss, logit_direction(logits, target) + hint)


@pytest.mark.parametrize("cached", [True, False])
def test_only_the_graft_trains_and_gradients_flow_through_the_teacher(batch, cached):
    student, teacher = net("resnet8"), net("resnet14")
    grafting = Grafting(
        student,
        teacher,
        input_shape=SHAPE,
        start="fresh",
        statistics="frozen" if cached else "batch",
    )
    states = [{k: v.clone() for k, v in n.state_dict().items()} for n in (student, teacher)]
    objective = Graft(grafting, 1, 1, images=[batch] if cached else None, settle=[1])
    losses = steps(objective, batch, 30)
    assert losses[-1] < losses[0] / 3
    assert {name.split(".")[0] for name in objective.state_dict()} == {"blocks", "_settled"}
    for before, after in zip(states, (student.state_dict(), teacher.state_dict()), strict=True):
        changed = {k.split(".")[0] for k in before if not torch.equal(before[k], after[k])}
        assert changed <= {"module"}
    names = {
        k.split(".")[1] for k, v in student.state_dict().items() if not torch.equal(v, states[0][k])
    }
    assert names == {"layer2"}
    assert all(torch.equal(v, states[1][k]) for k, v in teacher.state_dict().items())


def test_the_teacher_computes_every_image_once(batch, monkeypatch):
    other = Batch(torch.randn(3, *SHAPE), torch.zeros(3).long())
    grafting = Grafting(net("resnet8"), net("resnet14"), input_shape=SHAPE, start="fresh")
    plain, cached = Graft(grafting, 1, 1), Graft(grafting, 1, 1, images=[batch, other])
    mixed = Batch(torch.cat([other.images[1:], batch.images[:2]]), torch.zeros(4).long())
    expected = plain.eval().training_step(mixed).loss
    seen = []
    grafting._teacher[0].register_forward_hook(lambda *args: seen.append(len(args[1][0])))
    for _ in range(3):
        assert_close(cached.eval().training_step(mixed).loss, expected)
    assert seen == [6, 3]
    unknown = Batch(mixed.images + 1, mixed.labels)
    assert_close(cached.training_step(unknown).loss, plain.training_step(unknown).loss)
    monkeypatch.setattr("stepwell.teachers.block_outputs.MEMORY", 0)  # too large to be kept
    large = Graft(grafting, 1, 1, images=[batch, other]).eval()
    assert_close(large.training_step(mixed).loss, expected)


def test_blocks_like_the_teachers_are_copied_and_stay(batch):
    student, teacher = small(5, 6), small(5, 7)
    grafting = Grafting(student, teacher, input_shape=SHAPE)
    assert grafting.copied == (True, False, False)
    assert grafting.grafted == (1, 2)
    copied = student.module.stages[0][0][0].weight
    assert torch.equal(copied, teacher.module.stages[0][0][0].weight)
    before = copied.clone()
    steps(Graft(grafting, 1, 2), batch, 3)
    assert torch.equal(copied, before)
    fresh = Grafting(small(5, 6), teacher, input_shape=SHAPE, start="fresh")
    assert fresh.grafted == (0, 1, 2)


def test_a_shallower_student_starts_with_the_teachers_first_blocks():
    student, teacher = net("resnet8"), net("resnet14")
    grafting = Grafting(student, teacher, input_shape=SHAPE)
    assert grafting.copied == (False, False, False, True)  # the head is like the teacher's
    mine, theirs = student.module.layer2, teacher.module.layer2
    assert len(mine) == 1
    assert torch.equal(mine[0].conv2.weight, theirs[0].conv2.weight)
    assert torch.equal(mine[0].bn2.running_var, theirs[0].bn2.running_var)


def test_frozen_norms_have_the_statistics_of_all_images_and_keep_them(batch):
    student, teacher = small(4, 6, norm=True), small(5, 7)
    grafting = Grafting(student, teacher, input_shape=SHAPE, statistics="frozen")
    norm = student.module.stages[1][0][2]
    objective = Graft(grafting, 1, 1, images=[batch], settle=[1]).train()
    objective.training_step(batch)
    into = run_until(grafting.blocks[1], norm, teacher.module.stages[0](batch.images))
    assert_close(norm.running_mean, into.mean((0, 2, 3)))
    assert_close(norm.running_var, into.var((0, 2, 3)))
    before = norm.running_mean.clone()
    steps(objective, batch, 2)
    objective.progress = 0.0  # as in a loop of one's own, which may never set it
    objective.training_step(batch)
    later = Graft(grafting, 1, 1, images=[batch], settle=[1]).train()
    saved = objective.state_dict()
    later.load_state_dict(saved)  # as in a resumed run
    later.training_step(Batch(batch.images[:2], batch.labels[:2]))
    older = Graft(grafting, 1, 1, images=[batch], settle=[1]).train()
    older.load_state_dict({k: v for k, v in saved.items() if k != "_settled"})
    older.training_step(Batch(batch.images[:2], batch.labels[:2]))
    assert not norm.training
    assert norm.num_batches_tracked == 1
    free = Grafting(small(4, 6, norm=True), teacher, input_shape=SHAPE)
    assert any(m.training for m in Graft(free, 1, 1).train().modules() if is_bn(m))
    assert torch.equal(norm.running_mean, before)


def test_a_resumed_phase_keeps_the_statistics_of_its_first_step(tmp_path):
    pixels = torch.randint(0, 256, (8, *SHAPE), dtype=torch.uint8)
    images = ImageSet(pixels, torch.zeros(8).long(), ("a", "b"))
    train = Batches(images, 4, mean=(0.5,) * 3, std=(0.3,) * 3, seed=1)
    loop, ends, estimates = Loop(device="cpu", checkpoint_minutes=0.0), [], []
    for name, stops in (("whole", [None]), ("cut", [2, None])):
        for stop in stops:
            torch.manual_seed(0)
            student = small(4, 6, norm=True)
            grafting = Grafting(student, small(5, 7), input_shape=SHAPE, statistics="frozen")
            objective = Stopping(grafting, 1, 1, images=train, settle=[1])
            objective.stop = stop
            halt = pytest.raises(RuntimeError, match="stopped") if stop else nullcontext()
            with Run.start(tmp_path / name, "test", {}, data={}) as run, halt:
                fit(objective, train, sgd(0.1), run, phase="graft", steps=4, loop=loop)
            estimates.append(objective.estimates)
        ends.append(student.state_dict())
    assert estimates == [1, 1, 0]
    for name, value in ends[0].items():
        assert_close(ends[1][name], value, rtol=0, atol=0, msg=name)


class Stopping(Graft):
    """Raises at a step, as a killed process would; counts how often it estimates statistics."""

    stop, steps, estimates = None, 0, 0

    def training_step(self, batch):
        if self.steps == self.stop:
            raise RuntimeError("stopped")
        self.steps += 1
        return super().training_step(batch)

    def _settle(self, known):
        self.estimates += 1
        super()._settle(known)


def is_bn(module):
    return isinstance(module, nn.BatchNorm2d)


def run_until(block, stop, x):
    for module in block.children():
        for part in module if isinstance(module, nn.Sequential) else [module]:
            if part is stop:
                return x
            x = part(x)
    raise AssertionError("not there")


@pytest.mark.parametrize(
    ("student", "teacher", "stay"),
    [
        (lambda: small(4, 6), lambda: small(5, 7), 0),
        (lambda: small(4, 6, pool=True), lambda: small(5, 7, pool=True), 0),  # behind the poolings
        (lambda: net("resnet8"), lambda: net("resnet18", stem="small"), 0),  # shortcuts of 1×1
        (lambda: net("mobilenet_v2", stem="small"), lambda: net("resnet18", stem="small"), 0),
        (lambda: net("timm/resnet10t"), lambda: net("resnet18", stem="small"), 0),
        (lambda: net("timm/convnext_atto"), lambda: net("timm/resnet10t"), 4),  # norms come first
    ],
    ids=["small", "pool", "resnet", "mobilenet", "timm", "convnext"],
)
def test_merged_adaptions_give_the_same_logits(student, teacher, stay, batch, tmp_path):
    student, teacher = student(), teacher()
    for norm in student.modules():
        if isinstance(norm, nn.LayerNorm):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
    shape = (3, 32, 32)
    images = torch.randn(3, *shape)
    grafting = Grafting(student, teacher, input_shape=shape)
    adaptions = sum(isinstance(m, Adaption) for m in grafting.blocks.modules())
    assert adaptions == 2 * len(grafting.pairs)
    with torch.no_grad():
        expected = grafting.mixed(0, len(grafting.blocks) - 1)(images)
        target = teacher(images)
    count = sum(p.numel() for p in student.parameters())
    merged, left = grafting.merged([Batch(images, torch.zeros(3).long())])
    assert len(left) == stay
    assert sum(p.numel() for p in merged.parameters()) == count + sum(
        c["channels"] ** 2 for c in left.values()
    )
    factor = (expected * target).sum() / expected.square().sum()
    expected = expected * (factor if factor > 0 else 1)  # at the teacher's scale
    tolerance = 1e-5 * float(expected.abs().max())
    with torch.no_grad():
        assert_close(merged(images), expected, rtol=1e-4, atol=tolerance)
        assert_close(merged.subnet()(images), expected, rtol=1e-4, atol=tolerance)
    if merged.builder is not None:
        merged.mark("trained")
        stepwell.save(merged, tmp_path / "net.safetensors")
        again = stepwell.load(tmp_path / "net.safetensors").eval()
        with torch.no_grad():
            assert torch.equal(again(images), merged(images))


def test_what_reads_an_identity_shortcut_stays_as_a_convolution(batch):
    """A block that adds its input to its output cannot take the 1×1 convolution in."""

    class Residual(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.conv = nn.Conv2d(width, width, 3, padding=1)

        def forward(self, x):
            return x + self.conv(x)

    class Net(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.a = nn.Sequential(nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU()))
            self.b = nn.Sequential(Residual(width))
            self.fc = nn.Linear(width, 5)

        def forward(self, x):
            return self.fc(self.b(self.a(x)).mean((2, 3)))

    student, teacher = (nest(Net(w), ["a", "b"], {}, input_size=SHAPE).eval() for w in (4, 6))
    grafting = Grafting(student, teacher, input_shape=SHAPE, pairs=["a"])
    with torch.no_grad():
        expected = grafting.mixed(0, 1)(batch.images)
    merged, left = grafting.merged([batch])
    assert left == {"a.0": {"channels": 4, "macs": 4 * 4 * 16 * 16}}
    with torch.no_grad():
        found = merged(batch.images)
    assert_close(found / found.norm(), expected / expected.norm(), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="merged before"):
        grafting.merged([batch])


def test_grafting_comes_nearer_to_the_teacher_than_it_began(batch):
    """Both stages, on a handful of images that are seen again and again."""
    torch.manual_seed(1)
    student, teacher = small(5, 6), small(5, 8)
    grafting = Grafting(student, teacher, input_shape=SHAPE)

    def apart():
        with torch.no_grad():
            found = grafting.mixed(0, len(grafting.blocks) - 1)(batch.images)
            return float(logit_direction(found, teacher(batch.images)))

    fresh = apart()
    for i in grafting.grafted:
        losses = steps(Graft(grafting, i, i, images=[batch]), batch, 80, lr=1e-2)
        assert losses[-1] < losses[0] / 3
    alone = apart()
    for last in grafting.grafted[1:]:
        steps(Graft(grafting, grafting.grafted[0], last, images=[batch]), batch, 80, lr=1e-2)
    assert apart() < alone < fresh
    assert apart() < 0.02


def test_a_student_kept_of_its_teacher_begins_as_its_sub_net(tmp_path):
    teacher = net("resnet20")
    student = build("resnet20", kept=(1, 3, 2), num_classes=5)
    grafting = Grafting(student, teacher, input_shape=SHAPE)
    assert grafting.copied == (False, True, False, True)
    teacher.add_depth("sub", (1, 3, 2))
    expected = teacher.subnet("sub").state_dict()
    for key, value in student.module.state_dict().items():
        assert torch.equal(value, expected[key]), key
    student.mark("trained")
    stepwell.save(student, tmp_path / "s.safetensors")
    again = stepwell.load(tmp_path / "s.safetensors")
    assert again.depths == {"1-3-2": (1, 3, 2)}
