import pickle
from copy import deepcopy
from functools import partial

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

import stepwell
from nets.example_nets import FAMILIES, Mixed, lively
from stepwell.methods import EmbeddedKD
from stepwell.nets import BUILDERS, NestedNet, build, named_depths
from stepwell.nets.build import usual_depths
from stepwell.nets.families.densenet import DenseNet
from stepwell.nets.files.initial_weights import initialise
from stepwell.nets.nested.nest import nest
from stepwell.nets.nested.plan import is_norm
from stepwell.nets.nested.reading import read
from stepwell.types import Batch

EXACT = {"rtol": 0, "atol": 0}


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


def nested(family):
    module = lively(family.make(family.blocks))
    net = nest(module, family.stages, family.subnets, input_size=family.input_size)
    return lively(net)


def run(call, *arguments):
    """With the same random numbers each time, for dropout and stochastic depth."""
    torch.manual_seed(1)
    return call(*arguments)


@pytest.mark.parametrize("training", [False, True])
def test_every_way_to_run_a_depth_gives_the_same_bits(family, training, tmp_path):
    net = nested(family).train(training)
    stepwell.save(net, tmp_path / "net")
    loaded = stepwell.load(tmp_path / "net", lambda: family.make(family.blocks)).train(training)
    x = torch.randn(3, *family.input_size)
    for depth in net.depths:
        expected = run(deepcopy(net), x, depth)
        assert expected.shape == (3, 5)
        assert expected.std() > 0
        assert_close(run(net.subnet(depth), x), expected, **EXACT)
        assert_close(run(deepcopy(loaded), x, depth), expected, **EXACT)
        assert_close(run(deepcopy(net).forward_all, x, [depth])[depth].logits, expected, **EXACT)
    if not training:
        for depth, exit in net.forward_all(x).items():
            assert_close(exit.logits, net(x, depth), **EXACT)
            assert len(exit.features) == len(family.stages)


def test_a_pickled_net_runs_trains_and_moves_as_the_one_it_was(family):
    net = nested(family)
    x = torch.randn(3, *family.input_size)
    net.forward_all(x)  # what it caches is in the pickle, too
    back = pickle.loads(pickle.dumps(net))
    assert (back.depths, back.status, back.card) == (net.depths, net.status, net.card)
    for training in (True, False):
        for depth in net.depths:
            expected = run(net.train(training), x, depth)
            assert_close(run(back.train(training), x, depth), expected, **EXACT)
    y = torch.tensor([0, 1, 2])
    grads = []
    for one in (net, back):
        loss, _ = one.joint_loss(x, lambda _d, exit, _: (cross_entropy(exit.logits, y), {}))
        loss.backward()
        grads.append([p.grad for p in one.parameters()])
    assert_close(grads[1], grads[0], **EXACT)
    x = x.double()  # weights that depths share are still shared, and the step between blocks', too
    for depth, exit in back.double().forward_all(x).items():
        assert_close(exit.logits, net.double()(x, depth), **EXACT)


def test_torch_saves_a_whole_net(tmp_path):
    net = nested(FAMILIES["mixed"]).eval()
    torch.save(net, tmp_path / "net.pt")
    x = torch.randn(2, 3, 8, 8)
    back = torch.load(tmp_path / "net.pt", weights_only=False)
    assert_close(back.logits_by_depth(x), net.logits_by_depth(x), **EXACT)


def test_all_depths_together_draw_what_each_alone_draws_where_nothing_is_dropped(family):
    """Else the deepest alone does: it runs first."""
    net = nested(family).train()
    x = torch.randn(3, *family.input_size)
    alone = {depth: run(deepcopy(net), x, depth) for depth in net.depths}
    together = run(deepcopy(net).logits_by_depth, x)
    assert_close(together[net.full], alone[net.full], **EXACT)
    for module in net.modules():
        for rate in ("p", "drop_prob"):  # torch's and timm's
            if hasattr(module, rate):
                setattr(module, rate, 0.0)
    if family.make is not Mixed:  # drops by a function, not a module
        together = run(deepcopy(net).logits_by_depth, x)
        for depth in net.depths:
            assert_close(together[depth], run(deepcopy(net), x, depth), **EXACT)


@pytest.mark.parametrize(("dropout", "equal"), [(0.0, True), (0.5, False)])
def test_dropout_is_drawn_for_each_depth_when_all_run_together(dropout, equal):
    net = lively(build("mobilenet_v2", ["7"], num_classes=5, stem="small", dropout=dropout)).train()
    x = torch.randn(4, 3, 16, 16)
    alone = {depth: run(deepcopy(net), x, depth) for depth in net.depths}
    together = run(deepcopy(net).logits_by_depth, x)
    assert torch.equal(together["17"], alone["17"])
    assert torch.equal(together["7"], alone["7"]) == equal


def test_a_plain_network_of_the_depth_takes_the_weights(family):
    net = nested(family).eval()
    x = torch.randn(2, *family.input_size)
    for depth, blocks in net.depths.items():
        plain = family.make(blocks).eval()
        plain.load_state_dict(net.subnet(depth).state_dict())
        assert_close(plain(x), net(x, depth), **EXACT)
    plain = family.make(family.blocks)
    assert net.module.state_dict().keys() == plain.state_dict().keys()


def test_every_norm_behind_the_fork_is_private_and_all_else_is_shared(family):
    net = nested(family)
    weights = {id(p) for p in net.module.parameters()}
    theirs = {id(m) for m in net.norms(net.full)}
    private = 0
    for depth in net.subnets:
        fork = next(
            i for i, (a, b) in enumerate(zip(net.path(), net.path(depth), strict=False)) if a is not b
        )
        norms = [m for step in net.path(depth)[fork:] for m in step.modules() if is_norm(m)]
        private += len(norms)
        assert not any(id(m) in theirs for m in norms)
        own = {id(p) for m in norms for p in m.parameters()}
        for step in net.path(depth):
            assert all(id(p) in weights or id(p) in own for p in step.parameters())
    assert private


def test_gradients_reach_what_a_depth_runs(family):
    net = nested(family).train()
    x, y = torch.randn(4, *family.input_size), torch.randint(5, (4,))

    def loss_of(depth, exit, done):
        loss = nn.functional.cross_entropy(exit.logits, y)
        return loss, {"ce": loss}

    loss, _ = net.joint_loss(x, loss_of)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def torchvision_swin():
    module = torchvision.models.SwinTransformer([4, 4], 8, [2, 2], [1, 2], [2, 2], num_classes=5)
    stages, depths = ("features.1", "features.3"), {"a": (1, 1), "b": (2, 1)}
    return nest(lively(module), stages, depths, input_size=(3, 32, 32))


@pytest.mark.parametrize("make", [lambda: nested(FAMILIES["timm swin"]), torchvision_swin])
def test_maps_with_channels_last_reach_attention_with_channels_first(make):
    net = make().eval()
    x = torch.randn(2, 3, 32, 32)
    exits = net.forward_all(x)
    for exit in exits.values():
        assert [f.shape[1:] for f in exit.features] == [(8, 8, 8), (16, 4, 4)]
    last = net.module.get_submodule(f"{net.plan.stages[0]}.1")
    maps = nn.Sequential(*net.path()[: net.path().index(last) + 1])(x)
    assert_close(exits["full"].features[0], maps.permute(0, 3, 1, 2), **EXACT)
    objective = EmbeddedKD(net.train(), distill_from=0.0, ce=0.0, kl=0.0)
    step = objective.training_step(Batch(x, torch.tensor([0, 1])))
    assert float(step.logs["b/attention"]) > 0
    step.loss.backward()


def test_a_moved_net_moves_its_steps():
    """Buffers and parameters read between blocks are replaced when a net moves."""
    family = FAMILIES["mixed"]
    net = nested(family).eval()
    x = torch.randn(2, *family.input_size)
    expected = net(x, "a")
    assert_close(deepcopy(net).double()(x.double(), "a").float(), expected)
    moved = deepcopy(net).to("meta")
    assert moved(torch.empty(2, *family.input_size, device="meta"), "a").device.type == "meta"
    net.module.shift.add_(1)
    assert not torch.equal(net(x, "a"), expected)


@pytest.mark.parametrize("training", [False, True])
def test_a_dense_block_cut_short_is_read_by_the_first_columns(training):
    make = partial(DenseNet, num_classes=5, stem="small", growth=4)
    stages, sub = ("features.denseblock1", "features.denseblock2"), (2, 1)
    module = lively(make((3, 2)))
    net = NestedNet(module, read(module, stages), {"a": sub})
    lively(net).train(training)
    x = torch.randn(3, 3, 8, 8)
    expected = deepcopy(net)(x, "a")
    assert_close(net.subnet("a")(x), expected, **EXACT)
    assert_close(deepcopy(net).forward_all(x)["a"].logits, expected, **EXACT)
    # a network made narrow, given the first columns
    plain = make(sub)
    width_in, width = 8 + 4 * 2, (8 + 4 * 3) // 2
    plain.features.transition1 = nn.Sequential(
        nn.BatchNorm2d(width_in),
        nn.ReLU(),
        nn.Conv2d(width_in, width, 1, bias=False),
        nn.AvgPool2d(2),
    )
    plain.features.denseblock2 = make((3, 1)).features.denseblock2
    plain.features.norm5, plain.classifier = nn.BatchNorm2d(width + 4), nn.Linear(width + 4, 5)
    given = net.subnet("a").state_dict().values()
    state = {
        name: v[tuple(slice(n) for n in own.shape)]
        for (name, own), v in zip(plain.state_dict().items(), given, strict=True)
    }
    plain.train(training).load_state_dict(state)
    assert_close(plain(x), expected)
    if training:
        net(x, "a")
        norm = net.subnet("a").features.norm5
        assert_close(norm.running_mean[: width + 4], plain.features.norm5.running_mean)


def test_the_full_densenet_is_torchvisions():
    with torch.device("meta"):
        net = build("densenet201", ["121", "169"])
        assert shapes(net.module) == shapes(torchvision.models.densenet201())
        for depth in ("121", "169"):  # which torchvision has no network for
            plain = net.subnet(depth).eval()
            assert plain(torch.empty(1, 3, 32, 32)).shape == (1, 1000)
    plain = torchvision.models.DenseNet(4, (2, 1), 8, num_classes=5).eval()
    ours = DenseNet((2, 1), num_classes=5, growth=4).eval()
    ours.load_state_dict(lively(plain).state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert_close(ours(x), plain(x))


@pytest.mark.parametrize(
    ("name", "depths"),
    [
        ("resnet34", {"18": "resnet18", "34": "resnet34"}),
        ("resnet152", {"26": None, "50": "resnet50", "101": "resnet101", "152": "resnet152"}),
        ("vgg19_bn", {"13": "vgg13_bn", "16": "vgg16_bn", "19": "vgg19_bn"}),
        ("convnext_small", {"tiny": "convnext_tiny", "small": "convnext_small"}),
        ("mobilenet_v2", {"11": None, "17": "mobilenet_v2"}),
        ("vit_b_16", {"6": None, "12": "vit_b_16"}),
    ],
)
def test_torchvision_has_networks_of_these_names_and_shapes(name, depths):
    with torch.device("meta"):
        net = build(name, [d for d in depths if d != BUILDERS[name].full])
        for depth, twin in depths.items():
            plain = getattr(torchvision.models, twin)() if twin else plain_torchvision(name, depth)
            ours = net.subnet(depth)
            assert shapes(ours) == shapes(plain)
            plain.load_state_dict(ours.state_dict())


def plain_torchvision(name, depth):
    (blocks,) = named_depths(name, [depth]).values()
    if name == "vit_b_16":
        return torchvision.models.VisionTransformer(224, 16, *blocks, 12, 768, 3072)
    if name == "resnet152":
        return torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, blocks)
    from stepwell.nets.families.mobilenet import STAGES

    setting = [[t, c, n, s] for (t, c, s), n in zip(STAGES, blocks, strict=True)]
    return torchvision.models.mobilenet_v2(inverted_residual_setting=setting)


def shapes(module):
    return {name: value.shape for name, value in module.state_dict().items()}


def test_timm_has_networks_of_these_names_and_shapes():
    name = "deit_tiny_patch16_224"
    with torch.device("meta"):
        net = build(f"timm/{name}", ["6", "9"], num_classes=7, img_size=64)
        for depth, blocks in net.depths.items():
            plain = timm.create_model(name, depth=blocks[0], num_classes=7, img_size=64)
            assert shapes(net.subnet(depth)) == shapes(plain)


def test_a_timm_model_is_built_again_from_its_file(tmp_path):
    net = lively(build("timm/convnext_atto", ["a=1,1,2,1"], num_classes=3)).eval()
    assert net.depths == {"a": (1, 1, 2, 1), "full": (2, 2, 6, 2)}
    back = stepwell.load(stepwell.save(net, tmp_path / "net"))
    x = torch.randn(1, 3, 32, 32)
    assert_close(back(x, "a"), net(x, "a"), **EXACT)


@pytest.mark.parametrize(
    ("name", "depths", "message"),
    [
        ("timm/resnet17", [], "timm has no model 'resnet17'; did you mean resnet18"),
        ("timm/vgg13_bn", [], r"no stages could be found in timm's vgg13_bn .* stepwell.nest"),
        ("timm/hiera_tiny_224", ["9"], "keeps 9 of 12 blocks of blocks, but block 11 changes"),
        ("timm/deit_tiny_patch16_224", ["13"], "no depth '13' in the family"),
        ("vgg11_bn", [], "no network 'vgg11_bn': did you mean vgg19_bn or .*timm/NAME"),
    ],
)
def test_networks_that_cannot_be(name, depths, message):
    with pytest.raises(ValueError, match=message):
        build(name, depths)


@pytest.mark.parametrize(
    ("name", "sides"),
    [
        ("vgg13_bn", [32, 16, 8, 4, 2]),
        ("mobilenet_v2", [32, 32, 16, 8, 8, 4, 4]),
        ("convnext_tiny", [32, 16, 8, 4]),
        ("densenet201", [32, 16, 8, 4]),
    ],
)
def test_a_small_stem_keeps_the_resolution(name, sides):
    with torch.device("meta"):
        net = build(name, num_classes=5, stem="small")
        exit = net.forward_all(torch.empty(2, 3, 32, 32))[net.full]
    assert [f.shape[-1] for f in exit.features] == sides
    assert exit.logits.shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "stages", "depth", "last"),
    [
        ("timm/deit_tiny_patch16_224", ["blocks[0:8]", "blocks[8:12]"], (4, 4), "blocks.{}.norm1"),
        ("timm/deit_tiny_patch16_224", ["blocks[0:8]"], (4,), "blocks.{}.norm1"),
        ("resnet32", ["layer1[0:3]", "layer2"], (1, 5), "layer1.{}.bn1"),
    ],
)
def test_stages_of_ones_own_keep_the_last_blocks(name, stages, depth, last, tmp_path):
    typed = [f"late={','.join(map(str, depth))}"]
    size = {"img_size": 16} if name.startswith("timm/") else {}
    net = lively(build(name, typed, stages=stages, num_classes=3, **size)).eval()
    assert net.stages == tuple(stages)
    assert net.depths["late"] == depth
    assert named_depths(name, typed, stages) == {"late": depth}
    full, late = net.subnet().state_dict(), net.subnet("late")
    blocks, kept = (net_.get_submodule(last.split(".")[0]) for net_ in (net.module, late))
    assert len(blocks) - len(kept) == 4 - 2 * name.startswith("resnet")
    net.load_full(full)  # private norms begin as the full net's, so they tell the blocks apart
    for i in range(1, 3):
        mine = net.subnet("late").get_submodule(last.format(len(kept) - i)).weight
        assert_close(mine, full[last.format(len(blocks) - i) + ".weight"], **EXACT)
    x = torch.randn(2, 3, 16, 16)
    back = stepwell.load(stepwell.save(net, tmp_path / "net"))
    assert (back.stages, back.depths) == (net.stages, net.depths)
    assert_close(back(x, "late"), net(x, "late"), **EXACT)


def test_a_familys_names_do_not_apply_to_stages_of_ones_own():
    with pytest.raises(
        ValueError, match="resnet32 has no depth '20' by name with these stages.*as 20=1,1"
    ):
        build("resnet32", ["20"], stages=["layer1", "layer2"])
    with pytest.raises(ValueError, match="layer1 can keep 1 to 5 blocks"):
        build("resnet32", ["x=6"], stages=["layer1"])
    with pytest.raises(ValueError, match="no module 'layer9' to be a stage"):
        build("resnet32", ["x=1"], stages=["layer9"])
    with pytest.raises(ValueError, match="keeps 1 of 2 blocks of .*, but block 2 changes the shape"):
        build("timm/convnext_atto", ["x=1"], stages=["stages[1:3]"])


@pytest.mark.parametrize(
    "name", ["vit6@3", "resnet34@1,2,3,1", "mobilenet_v2@11", "timm/deit_tiny_patch16_224@2"]
)
def test_a_depth_is_a_network_of_its_own_by_name(name, tmp_path):
    whole, _, depth = name.partition("@")
    net, full = build(name, num_classes=10), build(whole, num_classes=10)
    kept = net.depths[net.full]
    lively(full.module)
    assert list(net.depths) == [depth.replace(",", "-")]
    assert net.builder == (whole, {"num_classes": 10, "kept": list(kept)})
    torch.save(full.module.state_dict(), tmp_path / "full.pt")
    assert initialise(net, tmp_path / "full.pt").fresh == ()  # of the whole network's weights
    nested = build(whole, {"kept": kept}, norms="shared", num_classes=10)
    nested.load_full(full.module.state_dict())
    x = torch.randn(2, *(net.input_size or (3, 64, 64)))
    expected = nested.eval().forward_all(x, ["kept"])["kept"].logits
    assert not torch.allclose(expected, full.eval().module(x), rtol=0.01)
    assert_close(net.eval().module(x), expected, **EXACT)
    stepwell.save(net, tmp_path / "net.safetensors")
    again = stepwell.load(tmp_path / "net.safetensors")
    assert_close(again.module(x), expected, **EXACT)


@pytest.mark.parametrize("status", ["trained", "fresh"])
def test_a_depth_starts_with_its_own_norms_where_the_file_has_trained_them(status, tmp_path):
    nested = build("resnet20", ["14", "8"], num_classes=10)
    lively(nested.module)
    nested.load_depth(
        "14", {k: v + 1 for k, v in nested.subnet("14").state_dict().items() if "bn" in k}
    )
    nested.mark("trained")
    nested.mark(status, "14")
    stepwell.save(nested, tmp_path / "nested.safetensors")
    net = build("resnet20@14", ["8"], num_classes=4)
    head = net.module.fc.weight.detach().clone()
    start = initialise(net, tmp_path / "nested.safetensors")
    assert start.fresh == ("fc.weight", "fc.bias")
    assert torch.equal(net.module.fc.weight, head)
    norm = "layer2.0.bn1.bias"  # behind the fork
    own, full = nested.subnet("14").state_dict(), nested.module.state_dict()
    assert not torch.equal(own[norm], full[norm])
    expected = own if status == "trained" else full
    assert torch.equal(net.module.layer2[0].bn1.bias, expected[norm])
    assert torch.equal(net.subnet("8").layer2[0].bn1.bias, nested.subnet("8").layer2[0].bn1.bias)


def test_names_of_depths_that_there_are_not():
    assert usual_depths("resnet32@20") == ("14",)
    for name, message in {
        "vit6@7": "no network 'vit6@7'; there are vit6@1, vit6@2, vit6@3, vit6@4, vit6@5$",
        "resnet34@": r"there are resnet34@18, resnet34@BLOCKS \(of each stage, at most 3,4,6,3\)$",
        "resnet34@3,4": "no network 'resnet34@3,4'; ",
        "resnet34@3,4,6,4": "no network 'resnet34@3,4,6,4'; ",
        "resnet34@0,4,6,3": "no network 'resnet34@0,4,6,3'; ",
        "resnet34@18@18": "no network 'resnet34@18@18'; there are resnet34@18, ",
        "glance-resnet20@14/2": "glances need a whole ResNet, such as resnet20",
        "resnet20@110": r"there are resnet20@8, resnet20@14, resnet20@BLOCKS \(of",
        "cnc@1": "no network 'cnc@1'; there is cnc, which has no shallower depth$",
        "vgg@3": r"no network 'vgg@3': did you mean vgg13_bn\? ",
    }.items():
        with pytest.raises(ValueError, match=message):
            build(name)
    with pytest.raises(ValueError, match="says which blocks it keeps: leave kept="):
        build("vit6@3", kept=[2])
    with pytest.raises(ValueError, match="depth '26' = .* can keep 1 to 3 blocks"):
        build("resnet32@20", ["26"])
