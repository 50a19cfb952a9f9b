"""Networks and data sets by name, with one line each; a list of them imports none."""

NETWORKS = {
    "resnet18": "torchvision's ResNet, basic blocks (2, 2, 2, 2)",
    "resnet34": "torchvision's ResNet, basic blocks (3, 4, 6, 3); holds 18",
    "resnet26": "ResNet of bottlenecks (2, 2, 2, 2), the shallow member of the deep family",
    "resnet50": "torchvision's ResNet, bottlenecks (3, 4, 6, 3); holds 26",
    "resnet101": "torchvision's ResNet, bottlenecks (3, 4, 23, 3); holds 26, 50",
    "resnet152": "torchvision's ResNet, bottlenecks (3, 8, 36, 3); holds 26, 50, 101",
    "resnet8": "CIFAR ResNet of 1 block a stage, 16 to 64 channels",
    "resnet14": "CIFAR ResNet of 2 blocks a stage; holds 8",
    "resnet20": "CIFAR ResNet of 3 blocks a stage; holds 8, 14",
    "resnet32": "CIFAR ResNet of 5 blocks a stage; holds 8, 14, 20, 26",
    "resnet44": "CIFAR ResNet of 7 blocks a stage; holds 8, 14, ..., 38",
    "resnet56": "CIFAR ResNet of 9 blocks a stage; holds 8, 14, ..., 50",
    "resnet110": "CIFAR ResNet of 18 blocks a stage; holds 8, 14, ..., 104",
    "resnet8_ln": "resnet8 with LayerNorm, no statistics of batches",
    "resnet14_ln": "resnet14 with LayerNorm, no statistics of batches; holds 8",
    "resnet20_ln": "resnet20 with LayerNorm, no statistics of batches; holds 8, 14",
    "resnet56_ln": "resnet56 with LayerNorm, no statistics of batches; holds 8, 14, ..., 50",
    "resnet8_slim": "resnet8 with half the channels in its last stage",
    "resnet14_slim": "resnet14 with half the channels in its last stage; holds 8",
    "resnet20_slim": "resnet20 with half the channels in its last stage; holds 8, 14",
    "resnet14_slimmer": "resnet14 with half the channels in its last two stages; holds 8",
    "resnet20_slimmer": "resnet20 with half the channels in its last two stages; holds 8, 14",
    "resnet8_s4": "resnet8 behind a first convolution of stride 4, for detectors",
    "resnet14_s4": "resnet14 behind a first convolution of stride 4, for detectors; holds 8",
    "resnet20_s4": "resnet20 behind a first convolution of stride 4, for detectors; holds 8, 14",
    "resnet32_s4": "resnet32 behind a first convolution of stride 4; holds 8, 14, 20, 26",
    "vgg13_bn": "torchvision's VGG with BatchNorm, (2, 2, 2, 2, 2)",
    "vgg16_bn": "torchvision's VGG with BatchNorm, (2, 2, 3, 3, 3); holds 13",
    "vgg19_bn": "torchvision's VGG with BatchNorm, (2, 2, 4, 4, 4); holds 13, 16",
    "densenet201": "torchvision's DenseNet (6, 12, 48, 32); holds sub-nets as deep as 121 and 169",
    "mobilenet_v2": "torchvision's MobileNetV2 of 17 inverted residuals; holds 7, 11",
    "convnext_tiny": "torchvision's ConvNeXt (3, 3, 9, 3)",
    "convnext_small": "torchvision's ConvNeXt (3, 3, 27, 3); holds tiny",
    "msdnet10": "MSDNet of 10 layers in 4 blocks, for exits behind each",
    "msdnet15": "MSDNet of 15 layers in 5 blocks, for exits behind each",
    "msdnet21": "MSDNet of 21 layers in 6 blocks, for exits behind each",
    "msdnet24": "MSDNet of 24 layers in 11 blocks, for exits behind each (anytime prediction)",
    "cnc": "the CNN of 2 convolutions for pictures of complex networks (Xin et al. 2020)",
    "cnc_wide": "cnc with 16 and 32 channels and BatchNorm",
    "cnc_pooled": "cnc_wide with pooled maps and statistics of the lit cells before the head",
    "vit_b_16": "torchvision's vision transformer of 12 blocks; holds 1, 2, ..., 11",
    "vit6": "a vision transformer of 6 blocks and 96 channels for about 32 pixels; holds 1, 2, ..., 5",
    "FOLDER": "for texts: a BERT, RoBERTa or DistilBERT of Hugging Face's; 6 layers hold 1, 2, ..., 5",
    "timm/NAME": "a timm model with stages; a ViT or DeiT of 12 blocks holds 1, 2, ..., 11",
    "adder/NAME": "one of these networks, with convolutions that only add (AdderNet)",
}

#: Dynamic inference, after the survey of Han et al. 2021: by section, then by leaf, the recipe, the
#: paper and the system whose claims `stepwell verify` tests.
DYNAMIC: dict[str, dict[str, tuple[str, str, str]]] = {
    "per example: depth": {
        "early exits": ("exits", "MSDNet (Huang et al. 2018)", "exits"),
        "cascade of depths": ("ekd", "DDNN + EKD", "ekd"),
        "early exits of texts": ("exits", "PABEE (Zhou et al. 2020), DeeBERT", "textexits"),
        "layer skipping": (
            "skipping",
            "ConvNet-AIG (Veit and Belongie 2018), SkipNet",
            "skipping",
        ),
    },
    "per example: width": {
        "slimmable layers": ("widths", "Slimmable networks (Yu et al. 2019)", "widths"),
        "mixture of experts": (
            "experts",
            "Sparsely-gated MoE (Shazeer et al. 2017), Switch",
            "experts",
        ),
    },
    "per example: parameters": {
        "conditional kernels": (
            "kernels",
            "CondConv (Yang et al. 2019), DY-CNN (Chen et al. 2020)",
            "kernels",
        ),
    },
    "per place": {
        "pixels": ("pixels", "DynConv (Verelst and Tuytelaars 2020)", "pixels"),
        "regions": ("glance", "Glance and Focus (Wang et al. 2020)", "glance"),
        "resolution": ("drnet", "DRNet (Zhu et al. 2021)", "drnet"),
    },
    "per time": {
        "text": ("sequences", "Skip RNN (Campos et al. 2018)", "sequences"),
        "video frames": ("frames", "AdaFrame (Wu et al. 2019)", "frames"),
    },
}

#: Studies of dynamic inference whose results are published, in benchmarks/results/claims.
PUBLISHED = (
    "drnet", "ekd", "exits", "experts", "frames", "glance", "kernels", "pixels", "sequences",
    "skipping", "textexits", "widths",
)  # fmt: skip

DATA = {
    "digits": "1,797 handwritten digits of 8×8 pixels, 10 classes (scikit-learn; no download)",
    "cifar10": "60,000 photographs of 32×32 pixels, 10 classes (downloaded by torchvision)",
    "cifar100": "60,000 photographs of 32×32 pixels, 100 classes (downloaded by torchvision)",
    "FOLDER": "class folders of images, or train/ and test/ (or val/) with class folders in them",
    "FOLDER of networks": "the same with a complex network in each file (.edges, .tsv, .csv, .graphml)",
}
