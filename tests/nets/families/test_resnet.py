import pytest
import torch

from stepwell.catalog import NETWORKS
from stepwell.cost import count_macs
from stepwell.nets import BUILDERS, build


def test_the_catalog_lists_every_builder():
    assert list(NETWORKS) == [*BUILDERS, "FOLDER", "timm/NAME", "adder/NAME"]


@pytest.mark.parametrize(
    ("name", "millions"), [("resnet20", 0.27), ("resnet32", 0.46), ("resnet44", 0.66),
                           ("resnet56", 0.85), ("resnet110", 1.7)]
)  # fmt: skip
def test_cifar_sizes_are_those_of_the_paper(name, millions):
    """He et al. 2016, table 6 (which has no projections: up to 3 k parameters less)."""
    net = build(name, num_classes=10)
    count = sum(p.numel() for p in net.parameters()) / 1e6
    assert count == pytest.approx(millions, abs=0.035)


@pytest.mark.parametrize("n", [1, 3, 5])
def test_cifar_macs_have_a_closed_form(n):
    size = 32
    stem = 3 * 16 * 9 * size**2
    macs = stem + 2 * n * 16 * 16 * 9 * size**2
    for width in (32, 64):
        size //= 2
        half = width // 2
        first = half * width * 9 + width * width * 9 + half * width
        macs += (first + 2 * (n - 1) * width * width * 9) * size**2
    macs += 64 * 10
    net = build("resnet32", {"d": (n, n, n)} if n < 5 else (), num_classes=10)
    assert count_macs(net.subnet("d" if n < 5 else "32"), torch.zeros(2, 3, 32, 32)) == 2 * macs


def test_a_small_stem_keeps_the_resolution():
    net = build("resnet18", num_classes=10, stem="small").eval()
    features = net.forward_all(torch.zeros(1, 3, 32, 32))["18"].features
    assert [f.shape[-1] for f in features] == [32, 16, 8, 4]


def test_residual_blocks_start_as_the_identity():
    net = build("resnet20", ["14"], num_classes=10)
    for depth in net.depths:
        gammas = [v for k, v in net.subnet(depth).state_dict().items() if k.endswith("bn2.weight")]
        assert gammas
        assert not torch.stack([g.abs().max() for g in gammas]).any()
