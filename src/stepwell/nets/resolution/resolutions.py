"""One set of weights at several input resolutions, each with norms of its own (DRNet, Zhu et al. 2021).

Activations at another resolution have other statistics, so each resolution has private norms
("resolution-aware BN") for every depth, while convolutions and classifier are shared. A network made
for one size, such as a ViT, is made for each size, with its own position embeddings.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from stepwell.nets import build, builder_of
from stepwell.nets.nested.net import NestedNet, NormSharing
from stepwell.nets.nested.plan import join, with_own_norms
from stepwell.nets.nested.reading import read
from stepwell.nets.resolution.position_embeddings import resized
from stepwell.ranges import check_choice
from stepwell.types import Images, Logits


def resize(x: Images, size: int) -> Float[Tensor, "batch channels {size} {size}"]:
    """Resize images to `size` pixels, bilinear and with antialias, in training and at run time."""
    if x.shape[-2:] == (size, size):
        return x
    return interpolate(x, (size, size), mode="bilinear", align_corners=False, antialias=True)


class Resize(nn.Module):
    """`resize` as a step of a network."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Images) -> Tensor:
        """Resize the images."""
        return resize(x, self.size)


class Resolutions(nn.Module):
    """A nested net that runs at several input sizes.

    Args:
        net: the nested net at the largest size, whose weights are shared. A network made for one size
            must be made for the largest.
        sizes: height and width of the input in pixels.
        norms: "private" to each resolution; "shared" is the ablation.
        made_for: makes the full net, a plain module, for a given size, if networks are made for one
            size. Networks of `build` need none.

    Raises:
        ValueError: a size is not positive, is named twice, or fits no network; `net` is made for
            another size than the largest, or has exits; norms are shared, but the networks are made for
            one size.
    """

    def __init__(
        self,
        net: NestedNet,
        sizes: Sequence[int],
        *,
        norms: NormSharing = "private",
        made_for: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        check_sizes(sizes)
        if net.exits:
            raise ValueError(
                f"a network with exits ({', '.join(net.exits)}) runs at one resolution: build one "
                "without exits"
            )
        check_choice("norms", norms, NormSharing)
        self.sizes = tuple(sorted(sizes, reverse=True))
        self.net = net
        self.norm_sharing = norms
        self.own_norms = nn.ModuleList()
        self.own_parts = nn.ModuleList()
        made_for = made_for or _maker(net, self.sizes[0])
        if made_for and norms == "shared" and len(sizes) > 1:
            raise ValueError(
                "shared norms need a network for images of any size, and this one is made for one "
                "size: use private norms"
            )
        # Plain containers, so that nothing is registered (or saved) twice.
        self._nets = {self.sizes[0]: net}
        self._names: dict[int, frozenset[str]] = {self.sizes[0]: frozenset()}
        for size in self.sizes[1:]:
            self._nets[size], self._names[size] = (
                (net, frozenset()) if norms == "shared" else self._twin(size, made_for)
            )

    def at(self, size: int) -> NestedNet:
        """Give the nested net of one resolution, of shared modules; ValueError if there is none."""
        if size not in self._nets:
            known = ", ".join(map(str, self.sizes))
            raise ValueError(f"no resolution of {size} pixels; this network has {known}")
        return self._nets[size]

    def forward(self, x: Images, size: int | None = None, depth: str | None = None) -> Logits:
        """Resize images to `size` (the largest by default), and give their logits at one depth."""
        size = self.sizes[0] if size is None else size
        return self.at(size)(resize(x, size), depth)

    def train(self, mode: bool = True) -> "Resolutions":
        """Set the mode of every module of all resolutions."""
        super().train(mode)
        for net in self._nets.values():
            net.train(mode)
        return self

    def hidden_modules(self) -> Iterator[nn.Module]:
        """Iterate over the modules of the smaller resolutions, which are not registered."""
        for net in self._nets.values():
            yield from net.modules()
            yield from net.hidden_modules()

    def own_tensors(self) -> dict[str, Tensor]:
        """Give the private tensors of the smaller resolutions, as `SIZE/<name in the nested net>`."""
        return {
            f"{size}/{name}": value
            for size, names in self._names.items()
            for name, value in self._nets[size].tensors().items()
            if name in names
        }

    def load_own(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the tensors that `own_tensors` gives; RuntimeError if names or shapes differ."""
        if differing := sorted(self.own_tensors().keys() ^ tensors.keys()):
            raise RuntimeError(f"names differ from this network's: {', '.join(differing[:5])}")
        for size, names in self._names.items():
            private = {name: tensors[f"{size}/{name}"] for name in names}
            self._nets[size].load_tensors(self._nets[size].tensors() | private)

    def stored_names(self, size: int, depth: str | None = None) -> dict[str, str]:
        """Map names as `NestedNet.stored_names`; private tensors are at `SIZE/<name>`."""
        private = self._names[size]
        stored = self.at(size).stored_names(depth)
        return {k: f"{size}/{name}" if name in private else name for k, name in stored.items()}

    def _twin(
        self, size: int, made_for: Callable[[int], nn.Module] | None
    ) -> tuple[NestedNet, frozenset[str]]:
        """Make a nested net with norms and parts of its size, and name its private tensors."""
        net, norms, parts = self.net, dict[str, nn.Module](), dict[str, nn.Module]()
        module = net.module
        if made_for is not None:
            made = made_for(size).to(next(module.parameters()))
            module = resized(module, made, parts)
        module = with_own_norms(module, norms, "")
        plan = read(module, net.plan.stages)
        twin = NestedNet(module, plan, net.subnets, net.full, norms=net.norm_sharing)
        for depth in net.subnets:
            there = twin.subnet(depth).state_dict()
            state = net.subnet(depth).state_dict().items()
            twin.load_depth(depth, {n: v for n, v in state if v.shape == there[n].shape})
        for depth, status in net.status.items():
            twin.mark(status, depth)
        twin.builder, twin.card = net.builder, net.card
        twin.train(net.training)
        self.own_norms.extend([*norms.values(), *twin.private_norms])
        self.own_parts.extend(parts.values())
        private = {join(name, k) for name, part in (norms | parts).items() for k in part.state_dict()}
        return twin, frozenset(private | {n for n in twin.tensors() if n.startswith("depths/")})


def _maker(net: NestedNet, largest: int) -> Callable[[int], nn.Module] | None:
    """Give a function that makes the full net for another size, if it is made for one size."""
    name, arguments = net.builder or ("", {})
    argument = builder_of(name).size_argument if name else None
    if argument is None:
        return None
    if arguments.get(argument, largest) != largest:
        raise ValueError(
            f"the network is made for images of {arguments[argument]} pixels, and the largest "
            f"resolution is {largest}: make it for {largest}"
        )
    return lambda size: build(name, **arguments | {argument: size}).module


def check_sizes(sizes: Sequence[int]) -> None:
    """Raise ValueError for no size, one that is no positive number, or one named twice."""
    if not sizes:
        raise ValueError("no resolution was named: give sizes in pixels, such as 32 24 16")
    for size in sizes:
        if size < 1:
            raise ValueError(f"a resolution of {size} pixels: it must be 1 or more")
        if list(sizes).count(size) > 1:
            raise ValueError(f"the resolution of {size} pixels is named twice: drop one of them")
