"""Adder networks: does teaching by a convolutional twin, through kernels of its features, help them?

ResNet-14 on CIFAR-10 at 16 pixels. An adder network alone (AdderNet, Chen et al. 2020)
and taught by a twin that trains at the same time (PKKD, Xu et al. 2020; its equations are a
reconstruction). No arm clips gradients. Every student of one seed begins with the same filters as all
other students of its kind; a twin begins with others.

The control that the paper lacks: the same teaching of a convolutional student, from another random
start than its twin. If it gains as much, the gain is not that of adder layers.
"""

from typing import Any

from stepwell.claims.kit.figure import Axis, Plot, Point
from stepwell.claims.kit.measures import ACCURACY, accuracy, correct, less, more
from stepwell.claims.kit.study import Arm, Claim, Measure, Question, Study, image_fingerprint

DEPTH = "14"
NET = f"resnet{DEPTH}"
CONVOLUTION, ADDER = "convolution alone", "adder alone"
PKKD, PROGRESSIVE, FIXED = "PKKD", "soft targets of the twin", "soft targets of a trained network"
CONTROL = "PKKD of a convolution"
RAW, KERNELS = "PKKD, features without kernels", "PKKD, kernels without maps"
ADDERNET = "adder, AdderNet's local rate"
PLAIN, LARGE, HUGE = (
    "adder, no local rate", "adder, filters' gradient × 100", "adder, filters' gradient × 10,000"
)  # fmt: skip
SIGN, UNCLIPPED = "adder, sign gradient", "adder, no HardTanh"
UNNORMED, EVERYWHERE = "adder, logits not normalised", "adder, first layer too"
#: Other lengths of training, as shares of the study's epochs.
SHARES = {"a third of the epochs": 1 / 3, "2 × the epochs": 2.0, "4 × the epochs": 4.0}
LONGEST = "4 × the epochs"


def taught(**arguments: Any) -> Arm:
    """An adder network and its twin."""
    return Arm("pkkd", {"net": NET} | arguments)


def ablated(**arguments: Any) -> Arm:
    """An adder network alone: its twin trains beside it and does not teach."""
    return taught(alpha=1.0, features="none", **arguments)


ARMS: dict[str, Arm] = {
    CONVOLUTION: Arm("supervised", {"net": NET}),
    ADDER: Arm("supervised", {"net": f"adder/{NET}"}),
    PKKD: taught(),
    PROGRESSIVE: taught(features="none"),
    FIXED: Arm("distill", {"student": f"adder/{NET}", "ce": 0.5, "kl": 0.5, "temperature": 1.0},
               {"teacher": (CONVOLUTION,)}),
    CONTROL: taught(convolutional=True),
    RAW: taught(features="raw"),
    KERNELS: taught(features="kernel"),
    ADDERNET: ablated(local_rate=0.2),
    PLAIN: ablated(local_rate=0.0),
    LARGE: ablated(local_rate=0.0, gradient_factor=100.0),
    HUGE: ablated(local_rate=0.0, gradient_factor=10_000.0),
    SIGN: ablated(gradient="sign"),
    UNCLIPPED: ablated(gradient="difference"),
    UNNORMED: ablated(normed_logits=False),
    EVERYWHERE: ablated(everywhere=True),
    **{f"{arm}, {length}": Arm("supervised", {"net": net}, scaled={"epochs": share})
       for length, share in SHARES.items()
       for arm, net in ((CONVOLUTION, NET), (ADDER, f"adder/{NET}"))},
}  # fmt: skip


def accuracy_of(arm: str) -> Measure:
    """An arm's accuracy in percent."""
    return accuracy(arm, DEPTH)


def above(
    id: str, text: str, paper: str, arm: str, rival: str, margin: float = 0.0, **options: Any
) -> Claim:
    """A claim that an arm is more accurate than another."""
    named = correct(arm, DEPTH), correct(rival, DEPTH)
    return more(id, text, paper, *named, margin, ACCURACY, **options)


GAINS = (
    less(accuracy_of(PKKD), accuracy_of(ADDER)),
    less(accuracy_of(CONTROL), accuracy_of(CONVOLUTION)),
)
#: Named before the runs: the teaching helps, its features matter beside soft targets, and the gain is
#: that of adder layers.
PRIMARY = ("better-than-alone", "features-matter", "gain-of-adders")


def lead(length: str = "") -> Measure:
    """What the convolutional network is ahead of the adder network, in points."""
    return less(accuracy_of(CONVOLUTION + length), accuracy_of(ADDER + length))


CLAIMS = [
    above(PRIMARY[0], "PKKD makes the adder network more accurate",
          "92.02 to 92.96 % (README of AdderNet: ResNet-20, 32 pixels, 400 epochs)", PKKD, ADDER,
          expected=0.9),
    above(PRIMARY[1], "The features of the twin help beside its soft targets",
          "kernels, maps and soft targets together (abstract of PKKD)", PKKD, PROGRESSIVE),
    more(PRIMARY[2], "An adder network gains more by PKKD than a convolutional one", "not asked",
         ("gain of the adder network", GAINS[0]), ("gain of the convolution", GAINS[1]), 0.0,
         ACCURACY, pool="gains"),
    above("convolution", "PKKD's adder network is as accurate as the convolutional network alone, "
          "within 1 point", "ResNet-50 on ImageNet: 0.6 above (abstract of PKKD)", PKKD, CONVOLUTION,
          -1.0),
    above("gap", "The convolutional network is more accurate than the adder network",
          "92.25 and 91.84 % (table of AdderNet: ResNet-20)", CONVOLUTION, ADDER),
    above("gap-longest", "It still is after 4 × the epochs", "as above, after 400 epochs",
          f"{CONVOLUTION}, {LONGEST}", f"{ADDER}, {LONGEST}"),
    Claim("gap-closes", "Adder networks need more epochs: after 4 × the epochs, the convolutional "
          "network is less far ahead", "400 epochs (AdderNet)", ACCURACY,
          {"lead": lead(), "lead after 4 × the epochs": lead(f", {LONGEST}")},
          less(lead(f", {LONGEST}"), lead()), below=True, pool="leads"),
    above("progressive", "A twin that trains along teaches better, by soft targets alone, than a "
          "trained network", "progressive teaching (abstract of PKKD)", PROGRESSIVE, FIXED),
    above("kernels", "Kernels are better than raw features", "two kernels (abstract of PKKD)", KERNELS,
          RAW),
    above("maps", "Linear maps behind the kernels help", "as above", PKKD, KERNELS),
    above("rate", "A local rate of 2 is better than AdderNet's, 0.2", "0.2, for 400 epochs (AdderNet)",
          ADDER, ADDERNET),
    *[above(f"parts/{i}", text, paper, ADDER, arm)
      for i, (arm, text, paper) in enumerate((
          (PLAIN, "Adder networks need the local rate: better than the filters' own gradient",
           "a part of the method (AdderNet)"),
          (LARGE, "Better than 100 times that gradient, in all layers", "as above"),
          (HUGE, "Better than 10,000 times that gradient, in all layers", "as above"),
          (SIGN, "The surrogate gradient of filters and inputs is better than signs", "as above"),
          (UNCLIPPED, "HardTanh in the input's gradient helps", "as above"),
          (UNNORMED, "Normalised logits help", "in AdderNet's code"),
          (EVERYWHERE, "A first layer that adds costs accuracy", "usual practice (AdderNet's authors)"),
      ), start=1)],
]  # fmt: skip

STUDY = Study(
    key="pkkd", arms=ARMS, claims=CLAIMS, primary=PRIMARY,
    note=("The text of PKKD was not reachable, and no code was published: a claim that fails here may "
          "be one about the reconstruction. The gaps between adder and convolutional networks are "
          "those of a short training (the authors train 400 epochs). Units of commit c6edd25: the "
          "local rate is AdderNet's 0.2 in all arms, and adder networks have the norms' statistics of "
          "images without augmentation. Units of later commits: the local rate is 2, but for the arm "
          "with AdderNet's, and the statistics are of augmented images. Settings of the features were "
          "chosen before the runs, on 4,000 training images of CIFAR-10 that the published runs leave "
          "out, with 13 trainings of the adder student, of 10 epochs at a local rate of 0.2: how "
          "exponents are standardised, and the weight. A third of that weight was as good, ten times "
          "as much was worse than no features (one seed). For the convolutional student, a tenth of "
          "it was as good. The rate is 0.1 in all arms, as in AdderNet; in 20 epochs of one seed at a "
          "local rate of 0.2, 0.3 was 2 points better for both kinds of networks. In trials of one "
          "seed on 5,000 images and 40 epochs, with statistics of augmented images, an adder network "
          "had 52.7 % at 0.2, 56.7 % at 0.6, 59.5 % at 2 and 55.3 % at a local rate of 6. At 2, PKKD "
          "had 57.3 %, with a tenth of the features' weight 57.0 %, with raw features 59.0 %, without "
          "features 58.7 %. Adder networks get their norms' statistics from training images at the "
          "end, because their moving averages lag behind. Convolutional networks that are judged keep "
          "the moving averages; twins do not. The seconds of training hold those of a twin, but not "
          "those of the trained network that teaches by soft targets."),
    common={"data": "cifar10", "size": 16, "epochs": 30, "batch_size": 128, "val_fraction": 0.0,
            "clip": 0.0},
    quick={"data": "digits", "part": "1/8", "size": None, "epochs": 1, "batch_size": 64},
    fingerprint=image_fingerprint,
    questions=[
        Question("Does the twin help, and whom?",
                 (CONVOLUTION, ADDER, PKKD, PROGRESSIVE, FIXED, CONTROL),
                 ("convolution", "gap", "progressive")),
        Question("Does an adder network need more epochs?",
                 (CONVOLUTION, ADDER, *(f"{arm}, {length}" for length in SHARES
                                        for arm in (CONVOLUTION, ADDER))),
                 ("gap-*",)),
        Question("Which features?", (PROGRESSIVE, RAW, KERNELS, PKKD), ("kernels", "maps")),
        Question("Which parts does an adder network need?", (ADDER, "adder, *"),
                 ("rate", "parts/*")),
    ],
    plot=Plot(Axis("processor seconds of training, with the twin"), Axis("test accuracy, %", 100), {
        title: [Point(arm, "cpu_seconds", f"{DEPTH}/accuracy") for arm in arms]
        for title, arms in {
            **{f"{arm}, a third to 4 × the epochs": (arm, *(f"{arm}, {length}" for length in SHARES))
               for arm in (CONVOLUTION, ADDER)},
            "adder networks, soft targets": (FIXED, PROGRESSIVE),
            "adder networks, features too": (RAW, KERNELS, PKKD),
            "convolutional student": (CONTROL,),
        }.items()
    }),
)  # fmt: skip
