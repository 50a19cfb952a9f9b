"""Images: what users have on disk, read, split, augmented and batched."""

from stepwell.data.images import ImageSet, Splits, load_images
from stepwell.data.loader import Augment, Batches, normalise, seed_of

__all__ = ["Augment", "Batches", "ImageSet", "Splits", "load_images", "normalise", "seed_of"]
