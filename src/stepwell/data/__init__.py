"""Images: what users have on disk, read, split, augmented, mixed and batched."""

from stepwell.data.augment import Augment
from stepwell.data.folders import load_images, load_unlabeled
from stepwell.data.images import ImageSet, Splits
from stepwell.data.loader import Batches, Extra, normalise, seed_of
from stepwell.data.mixing import Mix, Replace

__all__ = [
    "Augment", "Batches", "Extra", "ImageSet", "Mix", "Replace", "Splits", "load_images",
    "load_unlabeled", "normalise", "seed_of",
]  # fmt: skip
