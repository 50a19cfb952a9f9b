"""Losses as pure functions of tensors."""

from stepwell.losses.attention import (
    ATTENTION,
    attention_at,
    attention_gram,
    attention_loss,
    attention_sad,
)  # fmt: skip
from stepwell.losses.budget import cost_above_target
from stepwell.losses.decisions import (
    load_balance_loss,
    open_rate_loss,
    reinforce_loss,
    sparsity_loss,
    switch_balance_loss,
)
from stepwell.losses.detection import (
    box_distance,
    map_correlation_loss,
    map_imitation_loss,
    score_distance,
)
from stepwell.losses.hint import feature_mse, feature_nmse
from stepwell.losses.internal import attention_kl, cls_cosine
from stepwell.losses.labels import class_cross_entropy, label_cross_entropy
from stepwell.losses.soft_target import ensemble_logits, logit_direction, soft_target_kl
from stepwell.losses.targets import label_loss, squared_error, teacher_loss

__all__ = [
    "ATTENTION", "attention_at", "attention_gram", "attention_kl", "attention_loss",
    "attention_sad", "box_distance", "class_cross_entropy", "cls_cosine", "cost_above_target",
    "ensemble_logits", "feature_mse", "feature_nmse", "label_cross_entropy", "label_loss",
    "load_balance_loss", "logit_direction", "map_correlation_loss", "map_imitation_loss",
    "open_rate_loss", "reinforce_loss", "score_distance", "soft_target_kl", "sparsity_loss",
    "squared_error", "switch_balance_loss", "teacher_loss",
]  # fmt: skip
