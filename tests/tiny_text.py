"""A tiny encoder with a vocabulary of its own, and texts that it can learn."""

import json
from pathlib import Path

from stepwell.claims.bert.tiny import texts, write_encoder, write_tsv

__all__ = ["change_config", "texts", "write_encoder", "write_parts", "write_tsv"]


def write_parts(folder: Path, train: int, dev: int) -> Path:
    """Write train.tsv and dev.tsv with so many texts into a folder."""
    folder.mkdir(exist_ok=True)
    write_tsv(folder / "train.tsv", texts(train))
    write_tsv(folder / "dev.tsv", texts(dev, seed=1))
    return folder


def change_config(folder: Path, **entries: object) -> None:
    """Change entries of a folder's config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))
