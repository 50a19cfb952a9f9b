"""Losses as pure functions of tensors."""

from stepwell.losses.attention import ATTENTION, attention_at, attention_gram, attention_sad
from stepwell.losses.labels import label_cross_entropy
from stepwell.losses.soft_target import soft_target_kl

__all__ = [
    "ATTENTION",
    "attention_at",
    "attention_gram",
    "attention_sad",
    "label_cross_entropy",
    "soft_target_kl",
]
