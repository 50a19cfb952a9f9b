"""Train a vision transformer whose MLPs are mixtures of experts."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar

from stepwell.data.image_flags import TrainingImages
from stepwell.flags import Flags, checked, flag
from stepwell.methods.experts import MixtureOfExperts
from stepwell.nets.decisions.experts import Router
from stepwell.recipes import flags
from stepwell.recipes.mixtures import train_mixture
from stepwell.tasks import classification
from stepwell.training import Loop, check_resumes
from stepwell.training.optimisation import Smoothed


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Experts in each block.

    Attributes:
        experts: number of experts in place of each MLP.
        top_k: experts that a token runs.
        router: noisy: scores with noise in training (Shazeer et al.); switch: without (Fedus et al.).
        balance_weight: weight of the loss that keeps all experts in use.
    """

    TITLE: ClassVar = "expert"
    experts: int = 4
    top_k: int = 1
    router: Annotated[Router, flag("NAME")] = "noisy"
    balance_weight: float = 0.01

    def check(self) -> None:
        """Refuse more experts of a token than there are."""
        if self.top_k > self.experts:
            raise ValueError(
                f"--top-k {self.top_k}: there are {self.experts} experts: name at most {self.experts}"
            )


def experts(
    *,
    data: flags.Data,
    out: flags.Out,
    net: flags.Net = "vit6",
    stem: flags.Stem = "auto",
    init: flags.Init = None,
    mixture: Flags[Mixture] = Mixture(),
    images: Flags[TrainingImages] = TrainingImages(),
    training: Flags[Smoothed] = Smoothed(),
    loop: Flags[Loop] = Loop(),
) -> dict[str, Any]:
    """Train a vision transformer with experts in place of its MLPs (Shazeer et al. 2017).

    A router picks the experts of each token. With --init RUN of a plain transformer, its MLPs are the
    experts at first.

    Examples:
        stepwell train experts --data digits --out runs/experts
        stepwell train experts --data photos/ --out runs/two --experts 8 --top-k 2 --init runs/plain
    """
    init = flags.file_of(init)
    training = classification.settled(training)
    arguments = checked(locals())
    check_resumes("experts", arguments)
    if not net.startswith(("vit", "timm/")):
        raise ValueError(
            f"--net {net}: experts take the place of a transformer's MLPs: name a ViT (vit6)"
        )
    parts = {name: getattr(mixture, name) for name in ("experts", "top_k", "router")}
    objective_of = partial(
        MixtureOfExperts,
        balance_weight=mixture.balance_weight,
        label_smoothing=training.label_smoothing,
    )
    return train_mixture(
        "experts", arguments, data=data, out=out, net=net, stem=stem, init=init, images=images,
        training=training, loop=loop, parts=parts, objective_of=objective_of,
    )  # fmt: skip
