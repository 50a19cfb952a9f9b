"""Train a small CNN on pictures of complex networks."""

from dataclasses import dataclass
from typing import Annotated, Any

import torch

from stepwell.data.image_flags import TrainingImages
from stepwell.data.pictures.flags import Pictures
from stepwell.flags import Flags, checked, flag
from stepwell.methods import Supervised
from stepwell.recipes import flags
from stepwell.tasks import classification
from stepwell.tasks.networks import check_networks
from stepwell.training import Loop, check_resumes, fit
from stepwell.training.optim import OptimizerName
from stepwell.training.optimisation import Smoothed


@dataclass(frozen=True, kw_only=True)
class OnPictures(Smoothed):
    """A training on pictures of complex networks."""

    epochs: int | None = 40
    batch_size: int | None = 64
    optimizer: Annotated[OptimizerName | None, flag("NAME")] = "adam"
    lr: Annotated[float | None, flag("X", "sgd: 0.1; adam: 0.001")] = None


def cnc(
    *,
    data: flags.Data,
    out: flags.Out,
    net: flags.Net = "cnc_pooled",
    stem: flags.Stem = "auto",
    init: flags.Init = None,
    images: Flags[TrainingImages] = TrainingImages(),
    pictures: Flags[Pictures] = Pictures(),
    training: Flags[OnPictures] = OnPictures(),
    loop: Flags[Loop] = Loop(),
) -> dict[str, Any]:
    """Classify whole complex networks by their pictures (Xin, Zhang, Shao 2020).

    Each file is a network: an edge list (.edges, .tsv, .csv) or GraphML. Its nodes are embedded,
    projected to a plane and counted in cells. The results say what node and edge counts, and degrees,
    reach without a picture, and which nodes decide.

    Examples:
        stepwell train cnc --data networks/ --out runs/fields
        stepwell train cnc --data networks/ --out runs/paper --net cnc --embedding cbow
    """
    init = flags.file_of(init)
    arguments = checked(locals())
    check_resumes("cnc", arguments)
    torch.manual_seed(training.seed)
    splits = classification.read_splits(data, out, images, net, pictures=pictures, drawn=True)
    check_networks(splits, data)
    nested, start = classification.start_network(splits, net, stem=stem, init=init)
    inputs = classification.prepare(splits, images, training, start=start, init=init)
    with classification.open_task("cnc", out, loop, arguments, inputs, nested) as task:
        objective = Supervised(nested.module, label_smoothing=training.label_smoothing)
        fit(
            objective, task.train, training.optim(), task.run, phase="train", loop=loop,
            epochs=training.epochs, validate=classification.validator(nested, task),
            patience=training.patience,
        )  # fmt: skip
        return classification.finish(task, nested)
