"""The file of a detector: the file of its backbone, with pyramid and head beside it."""

from pathlib import Path

from torch import nn

from stepwell.nets.detection.detector import Detector
from stepwell.nets.files.container import DETECTOR, structure_of
from stepwell.nets.files.nested import Beside, check_finite, load_both, save
from stepwell.types import not_finite


def save_detector(detector: Detector, path: str | Path) -> Path:
    """Write a detector to one safetensors file; errors as for `save`."""
    about = {
        "head": detector.name, "width": detector.width, "convs": detector.convs,
        "classes": detector.classes,
    }  # fmt: skip
    tensors = {
        f"{part}/{name}": value
        for part, module in _parts(detector).items()
        for name, value in module.state_dict().items()
    }
    return save(detector.net, path, beside=Beside(DETECTOR, about, tensors))


def load_detector(path: str | Path) -> Detector:
    """Read a detector, in eval mode, from a run directory or a file of `save_detector`.

    Errors as for `stepwell.load`; ValueError for a file of another kind.
    """
    net, beside = load_both(path)
    if beside is None or beside.kind != DETECTOR:
        raise ValueError(f"{path} holds no detector: `stepwell train detect` trains one")
    with structure_of(Path(path)):
        _, about, tensors = beside
        check_finite(Path(path), not_finite(tensors))
        detector = Detector(
            net, about["head"], about["classes"], width=about["width"], convs=about["convs"]
        )
        for part, module in _parts(detector).items():
            start = f"{part}/"
            module.load_state_dict(
                {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
            )
        return detector.eval()


def _parts(detector: Detector) -> dict[str, nn.Module]:
    return {"pyramid": detector.pyramid, "head": detector.head}
