"""A nested network: one set of weights that holds several complete networks of different depth.

Each depth is a *path*, a sequence of plain modules. The full net's path is the network that was
given; a shallower depth keeps the first blocks of every stage. Two paths share a step when they hold
the very same module object, so the paths form a trie and their common prefix is computed once. After
the point where two paths first differ their inputs differ in distribution, so from there on each has
norms of its own (one BatchNorm cannot serve both: in our study the full net lost 7 points by it),
while convolutions and the classifier stay shared.

Nothing is switched by a flag: `forward(x, "18")` walks path "18".
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any, Literal, NamedTuple, get_args

from jaxtyping import Float
from torch import Tensor, nn

from stepwell.device import device_name
from stepwell.nets.card import Card
from stepwell.nets.nested.budget import choose_depth
from stepwell.nets.nested.depth_names import blocks_of, check_depth
from stepwell.nets.nested.plan import Plan, channels_last, fork, is_norm, leaves, replant
from stepwell.nets.nested.trie import LossOf, Node, grow, joint_loss, walk
from stepwell.types import Exit, Logits

Status = Literal["trained", "calibrated", "fresh"]
NormSharing = Literal["private", "shared"]


class _Private(NamedTuple):
    """A norm that one depth does not share with the full net."""

    owner: str  # the depth that brought it; another depth may share it along their common prefix
    name: str  # of the full net's norm that it stands in for
    norm: nn.Module


class NestedNet(nn.Module):
    """Several networks of different depth in one set of weights.

    Args:
        module: the full net, a plain module; its own names stay its names in files.
        plan: how `module` reads as a path.
        depths: blocks per stage of each sub-net, by name; each stage keeps at least one block.
        full: the name of the full net's own depth.
        norms: "private" behind the fork; "shared" is the ablation that shows why they must be.

    Raises:
        ValueError: the blocks of a depth are no whole numbers, too few or too many, or those of
            another one; its name is taken, or cannot name a file.
    """

    def __init__(
        self,
        module: nn.Module,
        plan: Plan,
        depths: Mapping[str, Sequence[int]],
        full: str = "full",
        *,
        norms: NormSharing = "private",
    ) -> None:
        super().__init__()
        self.module, self.training = module, module.training
        self.private_norms = nn.ModuleList()
        self.full = full
        self.norm_sharing: NormSharing = norms
        self.builder: tuple[str, dict[str, Any]] | None = None
        self.card = Card()
        self.plan = plan
        # Plain containers, so that nothing is registered (or saved) twice.
        self._private: list[_Private] = []
        self._steps_by_prefix: dict[tuple[str, ...], nn.Module] = {}
        self._blocks: dict[str, tuple[int, ...]] = {}
        self._ends: dict[str, frozenset[int]] = {}
        self._status: dict[str, Status] = {}
        self._nets: dict[str, nn.Module] = {}
        self._paths: dict[str, tuple[nn.Module, ...]] = {}
        self._tries: dict[tuple[str, ...], Node] = {}
        sizes = tuple(len(blocks) for blocks in plan.blocks)
        self._insert(full, sizes)
        for name, blocks in depths.items():
            if name != full or blocks_of(name, blocks, sizes) != sizes:
                self.add_depth(name, blocks)

    # What there is

    @property
    def depths(self) -> dict[str, tuple[int, ...]]:
        """Blocks per stage of every depth, shallow to deep; the last is the full net."""
        order = sorted(self._blocks, key=lambda d: (d == self.full, sum(self._blocks[d])))
        return {depth: self._blocks[depth] for depth in order}

    @property
    def subnets(self) -> dict[str, tuple[int, ...]]:
        """Blocks per stage of the sub-nets in the order they were added.

        The order matters to whoever builds the net again: of two depths that share private norms,
        the first one owns them.
        """
        return {depth: blocks for depth, blocks in self._blocks.items() if depth != self.full}

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of the stages, in the order of an exit's features."""
        return self.plan.stages

    @property
    def status(self) -> dict[str, Status]:
        """Whether each depth is "trained", "calibrated" (norms from data) or "fresh" (neither)."""
        return {depth: self._status[depth] for depth in self.depths}

    def mark(self, status: Status, *depths: str) -> None:
        """Record how `depths` (all, when none is named) came to their weights.

        Raises:
            ValueError: no such depth or status.
        """
        if status not in get_args(Status):
            raise ValueError(f"no status {status!r}; there are {', '.join(get_args(Status))}")
        for depth in depths or tuple(self._blocks):
            self.path(depth)
            self._status[depth] = status

    def require_ready(self, *depths: str) -> None:
        """Refuse depths (all, when none is named) that nobody trained or calibrated.

        Raises:
            ValueError: a depth is fresh; the message says how to calibrate it.
        """
        for depth in depths or tuple(self.depths):
            self.path(depth)
            if self._status[depth] == "fresh":
                raise ValueError(
                    f"depth {depth!r} was never trained or calibrated, so its predictions would be "
                    "meaningless: train it, or calibrate it with stepwell.calibrate(net, batches) "
                    "or `stepwell calibrate RUN`"
                )

    def for_budget(
        self,
        *,
        ms: float | None = None,
        macs: float | None = None,
        accuracy: float | None = None,
    ) -> str:
        """The name of the depth that fits a budget, by the measured table in `card`.

        With `accuracy` it is the cheapest depth that has at least as much, else the most accurate
        one (of equals the cheapest; the deepest where the accuracy of one is not known). What was
        never trained or calibrated is never chosen.

        Args:
            ms: at most so many milliseconds an image, as measured on this device and threads.
            macs: at most so many multiply-accumulates an image.
            accuracy: at least this share right, on the validation images as a rule.

        Raises:
            ValueError: no times of this device, no depth that fits, none that is ready; the message
                says what there is, and how to measure.
        """
        device = next(self.parameters()).device
        return choose_depth(
            self.card, self.status, device_name(device), ms=ms, macs=macs, accuracy=accuracy
        )

    def path(self, depth: str | None = None) -> tuple[nn.Module, ...]:
        """The modules that `depth` (the full net by default) runs, in order."""
        depth = self.full if depth is None else depth
        if depth not in self._paths:
            raise ValueError(f"no depth {depth!r}; this net has {', '.join(self.depths)}")
        return self._paths[depth]

    def subnet(self, depth: str | None = None) -> nn.Module:
        """A deep copy of one depth as a plain module of the full net's own class; nothing shared."""
        self.path(depth)
        return deepcopy(self._nets[self.full if depth is None else depth])

    def norms(self, depth: str) -> Iterator[nn.Module]:
        """Every norm on the path of `depth`, shared and private."""
        for step in self.path(depth):
            yield from (m for m in step.modules() if is_norm(m))

    # Running it

    def forward(self, x: Float[Tensor, "batch ..."], depth: str | None = None) -> Logits:
        """Logits (batch, classes) of one depth, the full net by default."""
        for step in self.path(depth):
            x = step(x)
        return x

    def forward_all(
        self, x: Float[Tensor, "batch ..."], depths: Sequence[str] | None = None
    ) -> dict[str, Exit]:
        """Exits of all depths (or those named), shallow to deep; common prefixes run once.

        To the bit what each gives alone, but for layers that draw random numbers in train mode
        (dropout, stochastic depth): there only the deepest is, which runs first.
        """
        exits = dict(walk(self._trie(depths), x))
        return {depth: exits[depth] for depth in self.depths if depth in exits}

    def logits_by_depth(
        self, x: Float[Tensor, "batch ..."], depths: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Logits (batch, classes) of all depths (or those named), shallow to deep."""
        return {depth: exit.logits for depth, exit in self.forward_all(x, depths).items()}

    def joint_loss(
        self,
        x: Float[Tensor, "batch ..."],
        loss_of: LossOf,
        depths: Sequence[str] | None = None,
        *,
        scale: float | None = None,
        keep_features: bool = True,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of the losses of all depths (or those named), every common prefix computed once.

        `loss_of(depth, exit, done)` gives the scalar loss of one depth and its parts by name. The
        deepest path comes first; `done` holds the detached exits of the paths already run, so the
        full net can teach the others. The gradients equal those of the naive sum of the losses, and
        the activations of one path at a time are in memory (see `nets.trie.joint_loss`).

        Args:
            scale: needed in float16 alone: what the gradients are computed times, such as a
                `GradScaler`'s `get_scale()`. The sum is not; `scaler.scale(sum).backward()` as ever.
            keep_features: whether the exits in `done` have theirs, which stay in memory.

        Returns:
            The scalar sum, to be differentiated once, and the detached parts under "depth/part".

        Raises:
            ValueError: no such depth; a loss depends on parameters that its depth does not run behind
                the fork; `scale` is not positive and finite, or missing in float16.
        """
        return joint_loss(self._trie(depths), x, loss_of, scale, keep_features=keep_features)

    def train(self, mode: bool = True) -> "NestedNet":
        """Set the mode of every module, those that only a sub-net has included."""
        super().train(mode)
        for depth, net in self._nets.items():
            net.train(mode)
            for step in self._paths[depth]:
                step.train(mode)
        return self

    def hidden_modules(self) -> Iterator[nn.Module]:
        """The modules that only sub-nets have, and that are not registered; others among them."""
        for depth, net in self._nets.items():
            yield from net.modules()
            for step in self._paths[depth]:
                yield from step.modules()

    # Changing it

    def add_depth(self, name: str, blocks: Sequence[int]) -> None:
        """Add a depth; its private norms start as copies of the full net's. It is "fresh".

        Raises:
            ValueError: as for the constructor; the net is unchanged.
        """
        kept = blocks_of(name, blocks, self._blocks[self.full])
        check_depth(name, kept, self._blocks, self.plan.stages, self._blocks[self.full])
        self._insert(name, kept)

    def load_full(self, state: Mapping[str, Tensor]) -> None:
        """Load the full net's weights under its own (torchvision's) names; sub-nets follow.

        Shared weights reach every depth at once, and each private norm starts as the full net's. The
        sub-nets' norms then hold statistics of another input: they are "fresh" until trained or
        calibrated.

        Raises:
            RuntimeError: names or shapes differ (torch's own message).
        """
        self.module.load_state_dict(state)
        for private in self._private:
            private.norm.load_state_dict(self.module.get_submodule(private.name).state_dict())
        self.mark("fresh")
        self.mark("trained", self.full)

    def load_depth(self, depth: str, state: Mapping[str, Tensor]) -> None:
        """Load one depth's weights under its plain network's names; names may be missing.

        What the depth shares changes for all; its private norms are its own.

        Raises:
            ValueError: no such depth.
            RuntimeError: an unknown name, or shapes that differ (torch's own message).
        """
        self.path(depth)
        odd = self._nets[depth].load_state_dict(state, strict=False).unexpected_keys
        if odd:
            raise RuntimeError(f"depth {depth!r} has no {', '.join(odd[:5])}")

    def tensors(self) -> dict[str, Tensor]:
        """All tensors under the names of the file format, each once.

        The full net's own names, and `depths/NAME/<name>` for what depth NAME does not share.
        """
        return {name: value.detach() for name, value in self._stored().items()}

    def stored_names(self, depth: str | None = None) -> dict[str, str]:
        """The name in `tensors` of each tensor of the plain network of `depth`, by its name there.

        `{"layer2.0.bn1.weight": "depths/18/layer2.0.bn1.weight", "fc.weight": "fc.weight", ...}`

        Raises:
            ValueError: no such depth.
        """
        self.path(depth)
        stored = {id(value): name for name, value in self._stored().items()}
        plain = self._nets[self.full if depth is None else depth].state_dict(keep_vars=True)
        return {name: stored[id(value)] for name, value in plain.items() if id(value) in stored}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `tensors`.

        Raises:
            RuntimeError: a name is missing or unexpected, or a shape differs.
        """
        expected = self.tensors()
        if odd := sorted(expected.keys() ^ tensors.keys()):
            raise RuntimeError(f"names differ from this network's: {', '.join(odd[:5])}")
        self.module.load_state_dict({k: tensors[k] for k in self.module.state_dict()})
        for owner, name, norm in self._private:
            keys = norm.state_dict()
            norm.load_state_dict({k: tensors[f"depths/{owner}/{name}.{k}"] for k in keys})

    def _stored(self) -> dict[str, Tensor]:
        """The very tensors of `tensors`, by name."""
        stored = dict(self.module.state_dict(keep_vars=True))
        for owner, name, norm in self._private:
            for key, value in norm.state_dict(keep_vars=True).items():
                stored[f"depths/{owner}/{name}.{key}"] = value
        return stored

    # The trie

    def _trie(self, depths: Sequence[str] | None) -> Node:
        """The trie of all depths (or those named), deepest first."""
        names = tuple(self.depths) if depths is None else tuple(depths)
        if not names:
            raise ValueError(f"no depth asked for; this net has {', '.join(self.depths)}")
        for name in names:
            self.path(name)
        if names not in self._tries:
            paths = {d: self._paths[d] for d in reversed(self.depths) if d in names}
            self._tries[names] = grow(paths, self._ends, channels_last=channels_last(self.module))
        return self._tries[names]

    # Building it

    def _insert(self, depth: str, blocks: tuple[int, ...]) -> None:
        keys: list[str] = []
        ends: set[int] = set()
        for gap, steps in enumerate(self.plan.gaps):
            keys += [s if isinstance(s, str) else f"{gap}/{i}" for i, s in enumerate(steps)]
            if gap < len(blocks):
                for names in self.plan.blocks[gap][: blocks[gap]]:
                    keys += names
                ends.add(len(keys) - 1)
        path = tuple(self._step(depth, tuple(keys[: i + 1])) for i in range(len(keys)))
        self._paths[depth] = path
        self._blocks[depth] = blocks
        self._status[depth] = "fresh"
        self._ends[depth] = frozenset(ends)
        self._nets[depth] = self.module if depth == self.full else self._plain_net(depth, keys)
        self._tries.clear()

    def _step(self, depth: str, prefix: tuple[str, ...]) -> nn.Module:
        """The module at the end of `prefix`: what another depth has there, or one of its own."""
        if prefix in self._steps_by_prefix:
            return self._steps_by_prefix[prefix]
        key = prefix[-1]
        gap, between, at = key.partition("/")
        if between:
            step = self.plan.gaps[int(gap)][int(at)]
            assert isinstance(step, nn.Module)
        else:
            step = self.module.get_submodule(key)
        if depth != self.full and self.norm_sharing == "private":
            norms: dict[str, nn.Module] = {}
            step = fork(step, norms, "" if between else key)
            for name, norm in norms.items():
                self._private.append(_Private(depth, name, norm))
                self.private_norms.append(norm)
        self._steps_by_prefix[prefix] = step
        return step

    def _plain_net(self, depth: str, keys: Sequence[str]) -> nn.Module:
        """The full net's module without the blocks that `depth` drops; weights shared."""
        own: dict[str, nn.Module] = {}
        for key, step in zip(keys, self._paths[depth], strict=True):
            own |= leaves(step) if "/" in key else {key: step}
        counts = zip(self.plan.blocks, self._blocks[depth], strict=True)
        dropped = {name for blocks, kept in counts for names in blocks[kept:] for name in names}
        return replant(self.module, own, dropped)
