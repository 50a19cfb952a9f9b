"""Train a detector on images with boxes, at one depth or several."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch

from stepwell.data.box_files import BoxFiles, keep_test
from stepwell.flags import Flags, checked, flag
from stepwell.methods import Detection
from stepwell.recipes import flags
from stepwell.tasks import detection as kind
from stepwell.tasks.task import open_task
from stepwell.training import Loop, check_resumes, fit
from stepwell.training.optim import OptimizerName
from stepwell.training.optimisation import Optimisation

BoxData = Annotated[str, flag("DATA", help="folder with COCO json and images, or the training json.")]


@dataclass(frozen=True, kw_only=True)
class DetectorNetwork:
    """The detector, its depths and its initial weights.

    Attributes:
        net: HEAD/BACKBONE; heads: fcos, retinanet, ssdlite, faster_rcnn; backbones: `stepwell list`.
        width: channels of the pyramid, a multiple of 32.
        convs: convolutions of the head.
    """

    TITLE: ClassVar = "detector"
    net: Annotated[str, flag("DETECTOR")] = "fcos/resnet14_s4"
    depths: flags.SubNets = ()
    width: Annotated[int | None, flag("N", "by the backbone")] = None
    convs: Annotated[int | None, flag("N", "2 of a narrow head, else 4")] = None
    init: flags.Init = None


@dataclass(frozen=True, kw_only=True)
class DetectorTraining(Optimisation):
    """Length, batches and regularisation of a training of detectors.

    Attributes:
        teach: weight of the full depth's scores and boxes in the other depths' losses.
    """

    epochs: Annotated[int, flag("N")] = 40
    batch_size: Annotated[int, flag("N")] = 16
    optimizer: Annotated[OptimizerName, flag("NAME")] = "adamw"
    lr: Annotated[float | None, flag("X", "sgd: 0.1; adam, adamw: 0.001")] = None
    teach: Annotated[float, flag("X")] = 1.0


def detect(
    *,
    data: BoxData,
    out: flags.Out,
    network: Flags[DetectorNetwork] = DetectorNetwork(),
    boxes: Flags[BoxFiles] = BoxFiles(),
    training: Flags[DetectorTraining] = DetectorTraining(),
    loop: Flags[Loop] = Loop(),
) -> dict[str, Any]:
    """Train a detector on images with boxes; several depths share one file, pyramid and head.

    Examples:
        stepwell train detect --data cells/ --out runs/cells
        stepwell train detect --data cells/ --out runs/nested --net fcos/resnet20_s4 --depths 8 14
        stepwell train detect --data street/ --out runs/street --net retinanet/resnet18 --size 512
    """
    init = flags.file_of(network.init)
    arguments = checked(locals())
    check_resumes("detect", arguments)
    torch.manual_seed(training.seed)
    parts = kind.read_boxes_of(data, out, boxes)
    detector = kind.start_detector(
        network.net, parts.train.classes, network.depths, width=network.width, convs=network.convs,
        init=init,
    )  # fmt: skip
    inputs = kind.prepare(parts, boxes, training, data, init)
    with open_task("detect", out, loop, arguments, inputs) as task:
        if parts.drawn and task.run.writes:
            keep_test(task.run.path, parts.test)
        objective = Detection(detector, teach=training.teach)
        fit(
            objective, task.train, training.optim(), task.run, phase="train", loop=loop,
            epochs=training.epochs, validate=kind.validator(detector, task),
            patience=training.patience,
        )  # fmt: skip
        return kind.finish(task, detector)
