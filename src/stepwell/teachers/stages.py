"""Pairs of a student's and a teacher's stages, for attention transfer and hints."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from stepwell.losses import feature_mse
from stepwell.teachers.teacher import Teacher, exit_of, stages_of
from stepwell.train_mode import in_eval_mode


class Pair(NamedTuple):
    """A stage of the student and a stage of the teacher: indices, names and shapes of features."""

    student: int
    teacher: int
    names: str
    student_shape: tuple[int, ...]
    teacher_shape: tuple[int, ...]


def pair_stages(
    student: nn.Module, teacher: Teacher, names: str | Sequence[str], input_shape: Sequence[int]
) -> list[Pair]:
    """The stages to compare; both networks run on one black image for the shapes of their features.

    Args:
        names: "layer2" if both have a stage of that name, or "layer2=stages.1.blocks", the student's
            and the teacher's; one name or several. Empty: all stages, paired by their order.
        input_shape: of one image, such as (3, 32, 32).

    Raises:
        ValueError: one of the two has no features, no stage of that name, or another number of names
            than of features; without names, the numbers of stages differ.
    """
    names = [names] if isinstance(names, str) and names else names
    ours, theirs = stages_of(student), stages_of(teacher)
    for who, stages in (("student", ours), ("teacher", theirs)):
        if not stages:
            raise ValueError(
                f"attention and hints need features of stages, but the {who} gives none: ONNX models, "
                "ensembles and cached logits have logits only; your own module must return an Exit "
                "with features, and name them in its attribute `stages`"
            )
    if not names:
        if len(ours) != len(theirs):
            raise ValueError(
                f"the student has {len(ours)} stages ({', '.join(ours)}), the teacher {len(theirs)} "
                f"({', '.join(theirs)}): name pairs to compare: --hint-stages {ours[-1]}={theirs[-1]}"
            )
        names = [f"{a}={b}" for a, b in zip(ours, theirs, strict=True)]
    image = next(student.parameters()).new_zeros(1, *input_shape)
    with in_eval_mode(student), torch.no_grad():
        our_features = exit_of(student, image).features
        their_features = teacher(image).features
    for who, stages, features in (("student", ours, our_features), ("teacher", theirs, their_features)):
        if len(stages) != len(features):
            raise ValueError(
                f"the {who} names {len(stages)} stages ({', '.join(stages)}) but gives features of "
                f"{len(features)}: its attribute `stages` needs one name for each"
            )
    pairs = []
    for name in names:
        a, _, b = name.partition("=")
        i, j = _index("student", ours, a), _index("teacher", theirs, b or a)
        shapes = tuple(our_features[i].shape[1:]), tuple(their_features[j].shape[1:])
        pairs.append(Pair(i, j, f"{a} of the student and {b or a} of the teacher", *shapes))
    return pairs


def common_stages(student: object, teacher: object) -> list[str]:
    """The default stages to compare, in the form of `pair_stages`.

    The stages whose name both networks have. Without any, all stages by their order if the networks
    have equally many; otherwise none.
    """
    ours, theirs = stages_of(student), stages_of(teacher)
    if shared := [name for name in ours if name in theirs]:
        return shared
    if len(ours) != len(theirs):
        return []
    return [f"{a}={b}" for a, b in zip(ours, theirs, strict=True)]


def check_resolution(pairs: Sequence[Pair]) -> None:
    """Raise ValueError for stages that differ in resolution, or are maps and tokens."""
    for pair in pairs:
        a, b = pair.student_shape, pair.teacher_shape
        if len(a) != len(b) or (a[1:] != b[1:] if len(a) == 3 else a[0] != b[0]):
            raise ValueError(
                f"{pair.names} are {_size(a)} and {_size(b)}: attention needs stages of the same "
                "resolution; name others"
            )


class Hints(nn.Module):
    """Sum over pairs of the squared distance between teacher's and student's features (FitNets).

    A regressor maps the student's features to the teacher's channels: a 1×1 convolution, or a linear
    map of tokens. The larger of two resolutions is averaged down to the smaller. Where the student has
    maps and the teacher tokens, the last tokens that fill a square are the teacher's map; those before
    them (class and register tokens) are left out. The regressors train with the student and belong to
    no network.

    Raises:
        ValueError: the student has tokens and the teacher maps; their numbers of tokens differ; fewer
            than four tokens make no map.
    """

    def __init__(self, pairs: Sequence[Pair]) -> None:
        super().__init__()
        self.pairs = list(pairs)
        self.regressors = nn.ModuleList(_regressor(pair) for pair in pairs)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Float[Tensor, ""]:
        """The scalar sum for one batch; no gradient reaches the teacher's features."""
        terms = []
        for pair, regressor in zip(self.pairs, self.regressors, strict=True):
            ours, theirs = student[pair.student], teacher[pair.teacher]
            if ours.dim() == 4:
                theirs = _as_map(theirs)
                height, width = map(min, zip(ours.shape[2:], theirs.shape[2:], strict=True))
                ours = adaptive_avg_pool2d(ours, (height, width))
                theirs = adaptive_avg_pool2d(theirs, (height, width))
            terms.append(feature_mse(regressor(ours), theirs))
        return torch.stack(terms).sum()


def _regressor(pair: Pair) -> nn.Module:
    a, b = pair.student_shape, pair.teacher_shape
    too_few = len(a) > len(b) and b[0] < 4  # tokens for a map
    if len(a) < len(b) or too_few or (len(a) == 2 and a[0] != b[0]):
        raise ValueError(
            f"{pair.names} are {_size(a)} and {_size(b)}: hints cannot compare them; name others"
        )
    return nn.Linear(a[1], b[1]) if len(a) == 2 else nn.Conv2d(a[0], b[0 if len(b) == 3 else 1], 1)


def _as_map(features: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch channels height width"]:
    """Features as a map: of tokens (batch, tokens, channels), the last ones that fill a square."""
    if features.dim() == 4:
        return features
    side = math.isqrt(features.shape[1])
    return features[:, -side * side :].transpose(1, 2).unflatten(2, (side, side))


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}×{shape[2]} maps" if len(shape) == 3 else f"{shape[0]} tokens"


def _index(who: str, stages: tuple[str, ...], name: str) -> int:
    if name not in stages:
        raise ValueError(f"the {who} has no stage {name!r}; it has {', '.join(stages)}")
    return stages.index(name)
