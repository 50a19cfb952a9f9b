"""A detector that runs at any depth: a nested backbone, and one pyramid and head for all depths."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FeaturePyramidNetwork, box_iou

from stepwell.data.preprocess import Source
from stepwell.nets.build import build, refuse_adders
from stepwell.nets.detection.heads import DETECTORS, Maps, check_name, levels_of, usual_convs
from stepwell.nets.detection.predicting import Scaled, objects_in
from stepwell.nets.nested.net import NestedNet
from stepwell.nets.nested.plan import with_children
from stepwell.nets.predictions import Prediction, check_card, several
from stepwell.ranges import SURE
from stepwell.train_mode import in_eval_mode
from stepwell.types import BoxBatch, Boxes, Images

#: A logit that no loss notices: its sigmoid is 0.
_NEVER = -1e4
#: Side of the image on which strides are found.
_TRIAL = 128
Sizes = Sequence[tuple[int, int]]
#: What a one-stage head gives, by name: (batch, places, numbers).
Outputs = Mapping[str, Tensor]


class Detector(nn.Module):
    """A nested backbone with a pyramid and one of torchvision's detectors.

    Args:
        net: the backbone; its classifier is not used and does not train.
        head: a key of `DETECTORS`.
        classes: number of classes.
        width: channels of the pyramid, a multiple of 32; by default from 32 to 256, by the backbone's.
        convs: convolutions of the head; by default 2 of a narrow one, else 4.

    Raises:
        ValueError: the backbone has no maps of two strides; `width` or `convs` do not fit.
    """

    def __init__(
        self, net: NestedNet, head: str, classes: int, *, width: int | None = None,
        convs: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        architecture = DETECTORS[head]
        channels, strides = _maps_of(net)
        self.levels = levels_of(strides)
        if width is None:
            width = min(256, max(32, channels[-1] // 64 * 32))
        if width < 32 or width % 32:
            raise ValueError(f"--width {width}: the norms of a head need a multiple of 32 channels")
        convs = usual_convs(head, width) if convs is None else convs
        own_strides = [strides[i] for i in self.levels]
        make_more, count = architecture.more if own_strides[-1] >= 32 else (None, 0)
        more = [own_strides[-1] * 2**i for i in range(1, count + 1)]
        self.name, self.width, self.convs, self.classes = head, width, convs, classes
        self.strides, self.own_levels = (*own_strides, *more), len(own_strides)
        self.background, self.sigmoid = architecture.background, architecture.sigmoid
        self.net = net
        self.pyramid = FeaturePyramidNetwork(
            [channels[i] for i in self.levels], width, make_more(width) if make_more else None
        )
        self.head: Any = architecture.make(
            Maps((*own_strides, *more), len(own_strides), width), classes, convs
        )
        self.head.transform = nn.Identity()  # images are scaled and normalised before
        used = {f"{stage}." for stage in net.plan.head}
        for parameter_name, parameter in net.module.named_parameters():
            if parameter_name.startswith(tuple(used)) and used:
                parameter.requires_grad_(False)

    @property
    def shared(self) -> list[nn.Parameter]:
        """The parameters of pyramid and head, which all depths share."""
        return [*self.pyramid.parameters(), *self.head.parameters()]

    def maps(self, features: Sequence[Tensor]) -> "OrderedDict[str, Tensor]":
        """The pyramid's maps by level, of the outputs of the backbone's stages."""
        chosen = ((str(i), features[level]) for i, level in enumerate(self.levels))
        maps: OrderedDict[str, Tensor] = self.pyramid(OrderedDict(chosen))
        return maps

    def outputs(self, maps: Mapping[str, Tensor]) -> Outputs | None:
        """The outputs of the head at every place of the maps; None for a detector of two stages."""
        if not hasattr(self.head, "head"):
            return None
        given: Outputs = self.head.head([*maps.values()])
        return given

    def losses(
        self, maps: "OrderedDict[str, Tensor]", outputs: Outputs | None, batch: BoxBatch, *,
        known: Sequence[Tensor] | None = None,
    ) -> dict[str, Tensor]:  # fmt: skip
        """torchvision's losses of a batch by name, from what `maps` and `outputs` gave.

        Crowd regions count neither as objects nor as background, if the head scores classes by sigmoid;
        otherwise they are background.

        Args:
            known: for each image, True for each class that its boxes tell of (classes,). The other
                classes are no negatives there; a box of one is a positive all the same. ValueError if
                the head does not score by sigmoid.
        """
        if known is not None and not self.sigmoid:
            raise ValueError(
                f"{self.name} scores classes against each other, so none can be left open: use fcos or "
                "retinanet"
            )
        targets = [
            {"boxes": truth.boxes[~truth.crowd], "labels": truth.labels[~truth.crowd] + self.background}
            for truth in batch.truth
        ]
        crowds = [truth.boxes[truth.crowd] for truth in batch.truth]
        if outputs is not None and self.sigmoid and (known is not None or any(map(len, crowds))):
            silent = self._silent(maps, batch, outputs["cls_logits"], targets, crowds, known)
            outputs = {**outputs, "cls_logits": outputs["cls_logits"].masked_fill(silent, _NEVER)}
        losses: dict[str, Tensor] = self._whole(maps, batch.sizes, outputs)(batch.images, targets)
        return losses

    def boxes(
        self, maps: "OrderedDict[str, Tensor]", outputs: Outputs | None, images: Images, sizes: Sizes
    ) -> list[Boxes]:
        """The boxes of each image in its pixels, best first, after torchvision's NMS."""
        rows = self._whole(maps, sizes, outputs)(images)
        return [
            Boxes.of(row["boxes"], row["labels"] - self.background, row["scores"])
            if not row["boxes"].is_cuda
            else Boxes.of(*(row[k].cpu() for k in ("boxes", "labels", "scores")))
            for row in rows
        ]

    def forward(
        self, images: Images, sizes: Sizes | None = None, depth: str | None = None
    ) -> list[Boxes]:
        """The boxes of each image of a normalised batch, at one depth, the full one by default.

        Args:
            sizes: height and width of each image in the padded batch; by default all of it.

        Raises:
            ValueError: no such depth; images of another shape or type; the detector is in train mode.
        """
        name = self.net.full if depth is None else depth
        return self.by_depth(images, sizes, [name])[name]

    @overload
    def predict(  # type: ignore[overload-overlap]  # a path is a sequence, too
        self, images: Source, *, depth: str | None = None, min_score: float = SURE
    ) -> Prediction: ...

    @overload
    def predict(
        self, images: Sequence[Source], *, depth: str | None = None, min_score: float = SURE
    ) -> list[Prediction]: ...

    def predict(
        self, images: Source | Sequence[Source], *, depth: str | None = None, min_score: float = SURE
    ) -> Prediction | list[Prediction]:
        """Find objects in an image or several: paths, PIL images, or numpy arrays (height, width, 3).

        >>> detector.predict("cells.jpg").objects[0].box  # doctest: +SKIP
        (31.2, 40.5, 95.0, 101.7)

        Args:
            depth: the depth that answers, the full one by default.
            min_score: least score of a box.

        Returns:
            A prediction for each image; its `objects` are predictions with class, score and `box`.

        Raises:
            ValueError: an image cannot be read; there is no such depth, or it was never trained; the
                detector is in train mode.
        """
        name = self.net.full if depth is None else depth
        self.net.require_ready(name)
        check_card(self.net.card)
        sources, single = several(images)
        predicted = []
        for source in sources:  # one by one: photographs may be large
            scaled = Scaled.of(source, self.net.card.size)
            (prediction,) = objects_in(self, [scaled], name, min_score)
            predicted.append(
                prediction._replace(file=Path(source) if isinstance(source, str | Path) else None)
            )
        return predicted[0] if single else predicted

    def by_depth(
        self, images: Images, sizes: Sizes | None = None, depths: Sequence[str] | None = None
    ) -> dict[str, list[Boxes]]:
        """The boxes of each image at all depths (or those named); common prefixes run once."""
        if self.training:
            raise ValueError("the detector is in train mode: call detector.eval() first")
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(
                f"images of shape {tuple(images.shape)} and {images.dtype}: a detector takes a "
                "normalised batch (batch, 3, height, width) of floats; its `predict` takes files"
            )
        if sizes is None:
            sizes = [(images.shape[2], images.shape[3])] * len(images)
        boxes = {}
        for depth, exit in self.net.forward_all(images, depths).items():
            maps = self.maps(exit.features)
            boxes[depth] = self.boxes(maps, self.outputs(maps), images, sizes)
        return boxes

    def _whole(self, maps: Mapping[str, Tensor], sizes: Sizes, outputs: Outputs | None) -> nn.Module:
        """torchvision's detector with maps and outputs in place of the modules that compute them.

        It shares everything else with ours, so that threads may run depths side by side.
        """
        given: dict[str, nn.Module | None] = {"backbone": _Given(maps), "transform": _Ready(sizes)}
        if outputs is not None:
            given["head"] = _GivenHead(self.head.head, outputs)
        return with_children(self.head, dict(self.head._modules) | given)

    def _silent(
        self, maps: Mapping[str, Tensor], batch: BoxBatch, logits: Tensor,
        targets: Sequence[Mapping[str, Tensor]], crowds: Sequence[Tensor],
        known: Sequence[Tensor] | None,
    ) -> Tensor:  # fmt: skip
        """True for the scores that no loss may see (batch, places, classes); no positive is one."""
        anchors = self.head.anchor_generator(ImageList(batch.images, [*batch.sizes]), [*maps.values()])
        silent = torch.zeros_like(logits, dtype=torch.bool)
        for i, (image_anchors, true, crowd) in enumerate(zip(anchors, targets, crowds, strict=True)):
            centres = (image_anchors[:, :2] + image_anchors[:, 2:]) / 2
            near = self._near(image_anchors, centres, true["boxes"])
            silent[i] = (_within(centres, crowd).any(1) & ~near.any(1))[:, None]
            if known is not None:
                positive = near.to(logits.dtype) @ one_hot(true["labels"], self.classes).to(logits)
                silent[i] |= ~known[i] & (positive == 0)
        return silent

    def _near(self, anchors: Tensor, centres: Tensor, boxes: Tensor) -> Tensor:
        """True where a place lies in a box, or the head matches it with the box (places, boxes)."""
        near = _within(centres, boxes)
        if len(boxes) and hasattr(self.head, "proposal_matcher"):
            matched = self.head.proposal_matcher(box_iou(boxes, anchors))
            near |= matched[:, None] == torch.arange(len(boxes), device=boxes.device)
        return near


def build_detector(
    name: str, classes: int, depths: Mapping[str, Sequence[int]] | Sequence[str] = (), *,
    width: int | None = None, convs: int | None = None, **arguments: Any,
) -> Detector:  # fmt: skip
    """A detector with fresh weights, by the name of its head and backbone, such as "fcos/resnet14_s4".

    Further arguments are those of `build`. ValueError for an unknown name, depth or argument, and for
    classes that are no number of 1 or more.
    """
    head, backbone = check_name(name)
    if type(classes) is not int or classes < 1:
        raise ValueError(f"classes={classes!r}: a detector takes a number of classes, 1 or more")
    refuse_adders(backbone, "detectors")
    net = build(backbone, depths, num_classes=max(2, classes), **arguments)
    return Detector(net, head, classes, width=width, convs=convs)


@torch.no_grad()
def _maps_of(net: NestedNet) -> tuple[list[int], list[int]]:
    """Channels and strides of the outputs of the backbone's stages; ValueError if they are no maps."""
    like = next(p for p in net.parameters() if p.is_floating_point())
    with in_eval_mode(net):
        trial = torch.zeros(1, 3, _TRIAL, _TRIAL, device=like.device, dtype=like.dtype)
        (exit,) = net.forward_all(trial, [net.full]).values()
    if not exit.features or any(feature.ndim != 4 for feature in exit.features):
        raise ValueError("the stages of this backbone give no maps: name another, such as resnet18")
    return [f.shape[1] for f in exit.features], [_TRIAL // f.shape[2] for f in exit.features]


def _within(points: Tensor, boxes: Tensor) -> Tensor:
    """True for each of the boxes (m, 4) in which a point (n, 2) lies (n, m)."""
    x, y = points[:, None, 0], points[:, None, 1]
    x1, y1, x2, y2 = boxes.unbind(1)
    return (x >= x1) & (x <= x2) & (y >= y1) & (y <= y2)


class _Given(nn.Module):
    """A backbone that has run."""

    def __init__(self, maps: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, images: Tensor) -> Mapping[str, Tensor]:
        return self.maps


class _GivenHead(nn.Module):
    """A head that has run; its losses are its own."""

    def __init__(self, head: nn.Module, outputs: Outputs) -> None:
        super().__init__()
        self.compute_loss = head.compute_loss if hasattr(head, "compute_loss") else None
        self.given = outputs

    def forward(self, maps: Sequence[Tensor]) -> Outputs:
        return self.given


class _Ready(nn.Module):
    """A transform of images that are scaled and normalised already."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = [(int(high), int(wide)) for high, wide in sizes]

    def forward(self, images: Tensor, targets: Any) -> tuple[ImageList, Any]:
        return ImageList(images, self.sizes), targets

    def postprocess(self, detections: Any, sizes: Any, original: Any) -> Any:
        """The boxes as they are."""
        return detections
