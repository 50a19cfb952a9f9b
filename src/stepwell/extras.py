"""Packages that come with an extra of the installation, such as `stepwell[text]`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

#: By extra: who needs it, and its packages; without names, all that is missing comes with it.
EXTRAS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "detection": ("detection needs", ("faster_coco_eval",)),
    "text": ("text needs", ("transformers", "tokenizers")),
    "onnx": ("ONNX files need", ()),
}


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Say what to install where an import of a package of the extra `name` fails."""
    who, packages = EXTRAS[name]
    try:
        yield
    except ImportError as error:
        if packages and (error.name or "").split(".")[0] not in packages:
            raise
        raise ImportError(f"{who} {error.name}: pip install 'stepwell[{name}]'") from error
