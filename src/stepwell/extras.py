"""Packages that come with an extra of the installation, such as `stepwell[text]`."""

from collections.abc import Iterator
from contextlib import contextmanager

#: By extra: who needs it, and its packages.
EXTRAS = {
    "detection": ("detection needs", ("faster_coco_eval",)),
    "text": ("text needs", ("transformers", "tokenizers")),
    "onnx": ("ONNX files need", ("onnx", "onnxruntime", "onnxscript")),
}


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Say what to install where an import of a package of the extra `name` fails."""
    who, packages = EXTRAS[name]
    try:
        yield
    except ImportError as error:
        if (error.name or "").split(".")[0] not in packages:
            raise
        raise ImportError(f"{who} {error.name}: pip install 'stepwell[{name}]'") from error
