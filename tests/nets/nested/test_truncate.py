"""Networks of the first blocks of each stage of another."""

import pytest
import torch

from stepwell.nets import build


@pytest.mark.parametrize(
    ("name", "kept", "like"),
    [
        ("resnet20", (1, 1, 1), "resnet8"),
        ("vgg19_bn", (2, 2, 3, 3, 3), "vgg16_bn"),
        ("mobilenet_v2", (1, 1, 2, 2, 2, 2, 1), None),
        ("convnext_small", (3, 3, 9, 3), "convnext_tiny"),
        ("timm/resnet18", (1, 2, 1, 2), None),
    ],
)
def test_a_network_keeps_the_first_blocks_of_its_stages(name, kept, like):
    with torch.device("meta"):
        small = build(name, kept=kept, num_classes=5)
        assert tuple(small.depths.values()) == (kept,)
        sub = build(name, {"s": kept}, num_classes=5).subnet("s")
        assert {k: v.shape for k, v in small.module.state_dict().items()} == {
            k: v.shape for k, v in sub.state_dict().items()
        }
        if like is not None:
            other = build(like, num_classes=5)
            small.module.load_state_dict(other.module.state_dict())
            assert (small.stages, small.full) == (other.stages, other.full)


def test_more_blocks_than_there_are_cannot_be_kept():
    with pytest.raises(ValueError, match="layer2 can keep 1 to 3 blocks"):
        build("resnet20", kept=(1, 4, 1))
