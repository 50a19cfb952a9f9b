"""torchvision's detectors by name, on maps of any width and strides.

torchvision's own classes stay whole: their losses, anchors and decoding are used as they are. Only the
backbone and the transform of the images are ours: a nested backbone gives the maps of any depth.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from torch import nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

#: Least score of a predicted box, before any threshold of the user; most boxes of an image.
SCORE, MOST = 0.05, 100
#: A norm of groups that is a function of one image alone; it takes a multiple of 32 channels.
_group_norm = partial(nn.GroupNorm, 32)


class Maps(NamedTuple):
    """The maps of a pyramid.

    strides: of each level, in pixels. own_levels: number of levels that the backbone gives; others
    follow. width: channels of every level.
    """

    strides: tuple[int, ...]
    own_levels: int
    width: int


class NoBackbone(nn.Module):
    """A place for the backbone of a torchvision detector, which ours runs before it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_channels = width


def fcos(maps: Maps, classes: int, convs: int) -> FCOS:
    """FCOS (Tian et al. 2019): one point a place, no anchors."""
    anchors = AnchorGenerator(tuple((s,) for s in maps.strides), ((1.0,),) * len(maps.strides))
    return FCOS(
        NoBackbone(maps.width), classes, anchor_generator=anchors, score_thresh=SCORE,
        head=FCOSHead(maps.width, 1, classes, convs), detections_per_img=MOST,
    )  # fmt: skip


def retinanet(maps: Maps, classes: int, convs: int) -> RetinaNet:
    """RetinaNet (Lin et al. 2017): nine anchors a place."""
    if convs != RETINANET_CONVS:
        raise ValueError(f"--convs {convs}: the head of retinanet has {RETINANET_CONVS} convolutions")
    sizes = tuple(tuple(int(4 * s * 2 ** (i / 3)) for i in range(3)) for s in maps.strides)
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    head = RetinaNetHead(maps.width, 9, classes, norm_layer=_group_norm)
    return RetinaNet(
        NoBackbone(maps.width), classes, anchor_generator=anchors, head=head, score_thresh=SCORE,
        detections_per_img=MOST,
    )  # fmt: skip


def ssdlite(maps: Maps, classes: int, convs: int) -> SSD:
    """SSDLite's head (Sandler et al. 2018), here on the levels of a pyramid."""
    boxes = DefaultBoxGenerator([[2, 3]] * len(maps.strides), min_ratio=0.1, max_ratio=0.95)
    numbers = boxes.num_anchors_per_location()
    head = SSDLiteHead([maps.width] * len(numbers), numbers, classes + 1, nn.BatchNorm2d)
    backbone, size = NoBackbone(maps.width), (0, 0)  # read by the transform alone
    return SSD(
        backbone, boxes, size, classes + 1, head=head, score_thresh=SCORE, detections_per_img=MOST
    )


def faster_rcnn(maps: Maps, classes: int, convs: int) -> FasterRCNN:
    """Faster R-CNN (Ren et al. 2015) with a feature pyramid."""
    anchors = AnchorGenerator(
        tuple((8 * s,) for s in maps.strides), ((0.5, 1.0, 2.0),) * len(maps.strides)
    )
    names = [str(i) for i in range(maps.own_levels)]
    hidden = min(1024, 4 * maps.width)
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

    return FasterRCNN(
        NoBackbone(maps.width), rpn_anchor_generator=anchors, box_score_thresh=SCORE,
        box_roi_pool=MultiScaleRoIAlign(names, 7, 2), box_head=TwoMLPHead(49 * maps.width, hidden),
        box_predictor=FastRCNNPredictor(hidden, classes + 1), box_detections_per_img=MOST,
    )  # fmt: skip


class Architecture(NamedTuple):
    """A kind of detector.

    make: maps the pyramid's maps, a number of classes and of convolutions to torchvision's detector.
    background: 1 if its class 0 is the background, else 0.
    sigmoid: it scores each class by itself, so that a class may count neither as right nor as wrong.
    more: makes further levels behind the pyramid's own, of a backbone of stride 32; and their number.
    """

    make: Callable[[Maps, int, int], nn.Module]
    background: int
    sigmoid: bool
    more: tuple[Callable[[int], nn.Module], int]


RETINANET_CONVS = 4
_P6P7: tuple[Callable[[int], nn.Module], int] = (lambda width: LastLevelP6P7(width, width), 2)
_POOL: tuple[Callable[[int], nn.Module], int] = (lambda width: LastLevelMaxPool(), 1)
DETECTORS: dict[str, Architecture] = {
    "fcos": Architecture(fcos, 0, True, _P6P7),
    "retinanet": Architecture(retinanet, 0, True, _P6P7),
    "ssdlite": Architecture(ssdlite, 1, False, _P6P7),
    "faster_rcnn": Architecture(faster_rcnn, 1, False, _POOL),
}


def usual_convs(name: str, width: int) -> int:
    """The number of convolutions of a head: a narrow one is half as deep."""
    return 2 if width < 128 and name != "retinanet" else RETINANET_CONVS


def check_name(name: str) -> tuple[str, str]:
    """The head and the backbone of "fcos/resnet18"; ValueError for another form."""
    head, slash, backbone = name.partition("/")
    if head not in DETECTORS or not slash or not backbone:
        raise ValueError(
            f"no detector {name!r}: write HEAD/BACKBONE, such as fcos/resnet14_s4 or "
            f"retinanet/resnet18; heads are {', '.join(DETECTORS)}"
        )
    return head, backbone


def levels_of(strides: Sequence[int]) -> list[int]:
    """The stages whose maps make a pyramid: of each stride from a quarter of the last, the last stage.

    ValueError if there are less than two.
    """
    last = {stride: i for i, stride in enumerate(strides)}
    chosen = [i for stride, i in last.items() if stride >= max(4, strides[-1] // 4)]
    if len(chosen) < 2:
        raise ValueError(
            f"its stages have strides {', '.join(map(str, strides))}, and a pyramid needs two or more "
            "of at least 4 pixels: name another backbone, such as resnet14_s4 or resnet18"
        )
    return chosen
