"""Progressive kernel-based knowledge distillation of an adder network (PKKD, Xu et al. 2020).

A convolutional twin of the same shape is trained on the labels at the same time, from its own random
start, and teaches the adder network. The paper's text was not reachable, so every equation here is a
*reconstruction* from its abstract and its reviews; signs, weights and constants are unverified:

    adder network:  a · CE(z, y) + (1 - a) · T² · KL( softmax(z_twin/T) || softmax(z/T) )
                    + b · Σ_layers mean( (P_l(h_l) - h_twin,l)² )
    twin:           CE(z_twin, y)

h are kernels of a layer's inputs and filters (see `stepwell.losses.kernels`): a Laplace kernel of the
adder layer, a Gaussian one of the convolution. P_l is a linear map of the filters (a 1×1 convolution),
which trains with the network and is no part of it afterwards. The twin's side has no map: if both had
one, zero features would minimise the loss. No gradient of the adder network's loss reaches the twin.

Both networks take their step at once, so the adder network learns from the twin before its step; the
reviews let the twin step first.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from stepwell.losses import label_cross_entropy, soft_target_kl
from stepwell.losses.kernels import gaussian_exponent, kernel_features, standardised
from stepwell.methods.objective import Objective
from stepwell.nets.adders.layers import AdderConv2d, adder_layers, padding_of, pair_of, peculiarity
from stepwell.nets.adders.tracing import LayerValues
from stepwell.nets.nested.net import NestedNet
from stepwell.ranges import check_choice, check_numbers
from stepwell.types import Batch, Step

#: mapped: kernels and linear maps, as PKKD; kernel: without the maps; raw: the layers' outputs,
#: standardised, without kernels; none: soft labels alone.
Features = Literal["mapped", "kernel", "raw", "none"]


class ProgressiveKernelKD(Objective):
    """Train an adder network and its convolutional twin; the twin teaches (PKKD).

    Args:
        net: the adder network, of one depth.
        twin: a network of the same layers, with convolutions in place of the adder layers.
        alpha: a, the share of the labels; the rest is the twin's soft targets.
        beta: b, the weight of the features; by default 0.1 over the number of adder layers. With 1 over
            it, their gradients are several times those of the task, and the network learns less.
        temperature: T of the soft targets.
        features: what is compared.
        convolutional: `net` is a convolutional network, too: a control that tells whether a gain is
            that of adder layers. Both sides have the Gaussian kernel, in all convolutions but one, the
            first.

    Raises:
        ValueError: a value is out of range; no such features; `net` has no adder layer, or sub-nets;
            the twin has no convolution for a layer, or one of another shape, stride or padding; one
            has groups, dilation, or padding by other numbers than zeros.
    """

    def __init__(
        self, net: NestedNet, twin: NestedNet, *, alpha: float = 0.5, beta: float | None = None,
        temperature: float = 1.0, features: Features = "mapped", convolutional: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        check_numbers(locals(), flags=False)
        check_choice("features", features, Features)
        layers = _convolutions(net.module) if convolutional else adder_layers(net.module)
        if not layers and convolutional:
            raise ValueError("the network has no convolution behind the first: none would be taught")
        if not layers:
            raise ValueError("the network has no adder layer: build it with adder=True")
        if net.subnets:
            raise ValueError(f"PKKD trains one depth, and this network has {', '.join(net.depths)}")
        for name, layer in layers.items():
            _check_twin(name, layer, dict(twin.module.named_modules()).get(name))
        self.net, self.twin = net, twin
        self.alpha, self.temperature, self.features = alpha, temperature, features
        self.beta = 0.1 / len(layers) if beta is None else beta
        self.layers = tuple(layers) if features != "none" else ()
        self.maps = nn.ModuleList()
        for name in self.layers if features == "mapped" else ():
            self.maps.append(_identity(layers[name].out_channels))
        self._ours = LayerValues(net.module, self.layers)
        self._theirs = LayerValues(twin.module, self.layers)

    def training_step(self, batch: Batch) -> Step:
        """The losses of both networks on one batch."""
        images, labels = batch
        logits, ours = self._ours(self.net.module, images)
        target, theirs = self._theirs(self.twin.module, images)
        logs = {
            "ce": label_cross_entropy(logits, labels),
            "twin ce": label_cross_entropy(target, labels),
        }
        loss = self.alpha * logs["ce"] + logs["twin ce"]
        if self.alpha < 1:
            logs["kl"] = soft_target_kl(logits, target, self.temperature)
            loss = loss + (1 - self.alpha) * logs["kl"]
        if self.layers:
            distances = [
                self._feature_distance(i, ours[n], theirs[n]) for i, n in enumerate(self.layers)
            ]
            logs["features"] = torch.stack(distances).sum()
            loss = loss + self.beta * logs["features"]
        return Step(loss, logs)

    def _feature_distance(
        self, index: int, ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]
    ) -> Tensor:
        """The distance of the features of one layer."""
        conv = self.twin.module.get_submodule(self.layers[index])
        layer = self.net.module.get_submodule(self.layers[index])
        theirs = theirs[0].detach(), theirs[1].detach()
        if self.features == "raw":
            return mse_loss(standardised(ours[1]), standardised(theirs[1]))
        with torch.no_grad():
            target = kernel_features(_exponent(conv, theirs))
        features = kernel_features(_exponent(layer, ours))
        if self.features == "mapped":
            features = self.maps[index](features)
        return mse_loss(features.float(), target)


def _convolutions(module: nn.Module) -> dict[str, nn.Conv2d]:
    """All convolutions but the first, which stays one in adder networks."""
    convolutions = {n: m for n, m in module.named_modules() if isinstance(m, nn.Conv2d)}
    return dict([*convolutions.items()][1:])


def _exponent(layer: nn.Module, values: tuple[Tensor, Tensor]) -> Tensor:
    """The exponent of a layer's kernel, of its input and output."""
    if not isinstance(layer, nn.Conv2d):
        return values[1]
    inputs, outputs = values
    if layer.bias is not None:  # which is no part of the kernel, and lost in the norm
        outputs = outputs - layer.bias[:, None, None]
    return gaussian_exponent(inputs, outputs, layer.weight, pair_of(layer.stride), padding_of(layer))


def _check_twin(name: str, layer: AdderConv2d | nn.Conv2d, conv: nn.Module | None) -> None:
    if not isinstance(conv, nn.Conv2d) or conv.weight.shape != layer.weight.shape:
        raise ValueError(f"the twin has no convolution {name!r} like the layer of this name")
    for convolution in (conv, layer):
        if isinstance(convolution, nn.Conv2d) and (special := peculiarity(convolution)):
            raise ValueError(f"the convolution {name!r} has {special}: features are of plain ones")
    padding = padding_of(layer) if isinstance(layer, nn.Conv2d) else layer.padding
    if (conv.stride, padding_of(conv)) != (layer.stride, padding):
        raise ValueError(f"the twin's convolution {name!r} has another stride or padding")


def _identity(channels: int) -> nn.Conv2d:
    """A linear map of the filters that begins as the identity."""
    made = nn.Conv2d(channels, channels, 1)
    nn.init.dirac_(made.weight)
    assert made.bias is not None
    nn.init.zeros_(made.bias)
    return made
