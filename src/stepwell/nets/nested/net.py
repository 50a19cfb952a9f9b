"""A nested network: one set of weights that holds several complete networks of different depth.

Each depth is a *path*, a sequence of plain modules. The full net's path is the given network; a
shallower depth keeps the first blocks of every stage. Two paths share a step when they hold the very
same module object, so the paths form a trie, and a common prefix is computed once. Behind the *fork*,
the point where two paths first differ, their inputs have different distributions, so each has norms of
its own (with shared BatchNorms the full net lost 7 points in our study), while convolutions and the
classifier stay shared.

Nothing is switched by a flag: `forward(x, "18")` walks path "18".
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from stepwell.device import device_name
from stepwell.nets.card import Card
from stepwell.nets.nested.budget import choose_depth
from stepwell.nets.nested.depth_names import blocks_of, check_depth, check_name
from stepwell.nets.nested.example import UnknownShapeError, example_input, outputs_by_block
from stepwell.nets.nested.exits import PooledHead, check_classes, check_head
from stepwell.nets.nested.joint import LossOf, check_extras, joint_loss
from stepwell.nets.nested.paths import Path
from stepwell.nets.nested.plan import Plan, channels_last
from stepwell.nets.nested.steps import Request, Value, each, feature_of, keywords_of, request
from stepwell.nets.nested.trie import Fork, Node, trie_of
from stepwell.nets.nested.weights import Weights
from stepwell.nets.predictions import Answers, Predicts
from stepwell.ranges import check_choice
from stepwell.train_mode import in_eval_mode
from stepwell.types import Exit

Status = Literal["trained", "calibrated", "fresh"]
NormSharing = Literal["private", "shared"]
Inputs = Shaped[Tensor, "batch ..."]


class NestedNet(Predicts, Weights):
    """Several networks of different depth in one set of weights.

    Args:
        module: the full net, a plain module; its own names stay its names in files.
        plan: how `module` reads as a path.
        depths: blocks per stage of each sub-net, by name; at least one per stage.
        full: the name of the full net's own depth.
        norms: "private" behind the fork; "shared" is an ablation.

    Raises:
        ValueError: as for `check_depth`, blocks are no whole numbers, or no such norms.
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
        check_choice("norms", norms, NormSharing)
        super().__init__(module, plan, full, private=norms == "private")
        self.norm_sharing: NormSharing = norms
        self.builder: tuple[str, dict[str, Any]] | None = None
        self.card = Card()
        self.input_size: Sequence[int] | None = None  # of one example, if `nest` was told
        self._status: dict[str, Status] = {}
        self._tries: dict[tuple[str, ...], Node] = {}
        self._tried: dict[tuple[int, ...], tuple[Tensor, list[list[Value]]]] = {}  # by input size
        self._keywords: set[str] = set()  # that some step takes
        sizes = tuple(len(blocks) for blocks in plan.blocks)
        self._insert(full, self._maker.of_depth(None, sizes))
        for name, blocks in depths.items():
            if name != full or blocks_of(name, blocks, sizes) != sizes:
                self.add_depth(name, blocks)

    # What there is

    @property
    def subnets(self) -> dict[str, tuple[int, ...]]:
        """Blocks per stage of the sub-nets and exits in the order they were added.

        Build the net again in this order: of two depths that share private norms, the first owns them.
        """
        return {d: path.blocks for d, path in self._paths.items() if d != self.full}

    @property
    def widths(self) -> tuple[str, ...]:
        """The depths that run all blocks at a share of the channels, in the order they were added."""
        return tuple(d for d, path in self._paths.items() if path.share < 1)

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of the stages, in the order of an exit's features."""
        return self.plan.stages

    @property
    def status(self) -> dict[str, Status]:
        """Status of each depth: "trained", "calibrated" (norms from data) or "fresh" (neither)."""
        return {depth: self._status[depth] for depth in self.depths}

    def mark(self, status: Status, *depths: str) -> None:
        """Set the status of `depths` (all, when none is named); ValueError for an unknown one."""
        check_choice("status", status, Status)
        for depth in depths or tuple(self._paths):
            self.path(depth)
            self._status[depth] = status

    def require_ready(self, *depths: str) -> None:
        """Raise ValueError for depths (all, when none is named) neither trained nor calibrated."""
        for depth in depths or tuple(self.depths):
            self.path(depth)
            if self._status[depth] == "fresh" and depth in self.exits:
                raise ValueError(
                    f"exit {depth!r} was never trained, so its predictions would be meaningless: train "
                    "it (calibration gives norms their statistics, but a head no weights)"
                )
            if self._status[depth] == "fresh":
                raise ValueError(
                    f"depth {depth!r} was never trained or calibrated, so its predictions would be "
                    "meaningless: train it, or calibrate it with stepwell.calibrate(net, batches) "
                    "or `stepwell calibrate RUN`"
                )

    def for_budget(
        self, *, ms: float | None = None, macs: float | None = None, accuracy: float | None = None
    ) -> str:
        """The depth that fits a budget, by the measured table in `card`; fresh depths are never chosen.

        With `accuracy`, it is the cheapest depth that is at least that accurate. Otherwise it is the
        deepest, unless a shallower one is more accurate beyond the deeper one's 95 % interval, by the
        number of images in the table.

        Args:
            ms: most milliseconds per image on this device and number of threads.
            macs: most multiply-accumulates per image.
            accuracy: least share of right answers, usually on the validation images.

        Raises:
            ValueError: no depth is ready or fits, or no times of this device are known.
        """
        device = device_name(next(self.parameters()).device)
        return choose_depth(self.card, self.status, device, ms=ms, macs=macs, accuracy=accuracy)

    # Running

    def forward(
        self, x: Inputs, depth: str | None = None, *, given: Mapping[str, Any] | None = None
    ) -> Float[Tensor, "batch ..."]:
        """Logits (batch, classes) of one depth, the full net by default; ValueError if there is none.

        Args:
            given: constants of the batch, such as a text's mask, for the steps whose forward names
                them (else ValueError). No gradient flows to them.
        """
        path = self._path(depth)
        if not given:
            for step in path.steps:
                x = step(x)
            return x
        asked = self.request(given)
        assert asked is not None
        value: Value = x
        for step, keywords in zip(path.steps, path.keywords, strict=True):
            value, _ = asked.call(step, value, keywords)
        assert isinstance(value, Tensor)
        return value

    def forward_all(
        self,
        x: Inputs,
        depths: Sequence[str] | None = None,
        *,
        given: Mapping[str, Any] | None = None,
        extras: Sequence[str] = (),
    ) -> dict[str, Exit]:
        """Exits of all depths (or those named), shallow to deep; common prefixes run once.

        Each exit equals that of the depth run alone, bit by bit. With random layers in train mode
        (dropout, stochastic depth) this holds only for the deepest depth, which runs first.

        Args:
            given: constants of the batch, as for `forward`.
            extras: names of further outputs, such as "attention", for `Exit.extras`. A step that names
                `extras` in its forward gets these names and returns its output and a dict of tensors.

        Raises:
            ValueError: no such depth; no step names a constant; the deepest path has no such extra.
        """
        asked = self.request(given, extras)
        exits = dict(Fork.at_root(self._trie(depths), x, asked).exits(asked))
        check_extras(next(iter(exits.values())), asked)
        return {depth: exits[depth] for depth in self.depths if depth in exits}

    def logits_by_depth(
        self, x: Inputs, depths: Sequence[str] | None = None, *, given: Mapping[str, Any] | None = None
    ) -> dict[str, Tensor]:
        """Logits (batch, classes) of all depths (or those named), shallow to deep."""
        exits = self.forward_all(x, depths, given=given)
        return {depth: exit.logits for depth, exit in exits.items()}

    def answers(self, x: Inputs, depth: str | None = None) -> Answers:
        """Give the logits of one depth, the full net by default, and its name for each row.

        ValueError if the depth was never trained or calibrated.
        """
        depth = self.full if depth is None else depth
        self.require_ready(depth)
        return self(x.to(next(self.parameters()).device), depth), [depth] * len(x)

    def joint_loss(
        self,
        x: Inputs,
        loss_of: LossOf,
        depths: Sequence[str] | None = None,
        *,
        keep_features: bool = True,
        given: Mapping[str, Any] | None = None,
        extras: Sequence[str] = (),
        also: Iterable[nn.Parameter] = (),
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of the losses of all depths (or those named), every common prefix computed once.

        `loss_of(depth, exit, done)` gives the scalar loss of one depth and its parts by name. The
        deepest path comes first; `done` holds the detached exits of the paths already run, so the
        full net can teach the others. The gradients equal those of the naive sum of the losses; only
        the activations of one path are in memory (see `nets.nested.joint.joint_loss`).

        Args:
            keep_features: keep features and extras of the exits in `done`, which takes memory.
            given: constants of the batch, as for `forward`.
            extras: names of further outputs, as for `forward_all`.
            also: parameters outside the network that the losses share, such as a detector's head.

        Returns:
            The scalar sum, to be differentiated once, and the detached parts under "depth/part".

        Raises:
            ValueError: as for `forward_all`; a loss depends on parameters that its depth does not run
                behind the fork and that are not in `also`; the network computes in float16.
        """
        return joint_loss(
            self._trie(depths),
            x,
            loss_of,
            keep_features=keep_features,
            also=also,
            request=self.request(given, extras),
        )

    def request(self, given: Mapping[str, Any] | None, extras: Sequence[str] = ()) -> Request | None:
        """The checked constants and extras for the steps of a path; None if there are none."""
        return request(given, extras, self._keywords)

    # Changes

    def add_depth(self, name: str, blocks: Sequence[int]) -> None:
        """Add a "fresh" depth; its private norms copy the full net's. Errors as for the class."""
        most = self._paths[self.full].blocks
        counts = blocks_of(name, blocks, most)
        check_depth(name, counts, self.depths, self.plan.stages, most, exits=self.exits)
        self._insert(name, self._maker.of_depth(name, counts))

    def add_width(self, name: str, share: float) -> None:
        """Add a "fresh" depth of all blocks at a share of the channels (see `nets.nested.widths`).

        Its private norms start as the full net's. ValueError if the name is taken or cannot name a
        file, or the network has layers that cannot be narrowed.
        """
        check_name(name, self.depths)
        blocks = self._paths[self.full].blocks
        self._insert(name, self._maker.of_width(name, blocks, share))

    def add_exit(
        self,
        name: str,
        after: Sequence[int],
        head: nn.Module | None = None,
        *,
        input_size: Sequence[int] | None = None,
    ) -> None:
        """Add a depth that ends early with a head of its own. It is "fresh".

        Args:
            after: blocks of each stage; 0 for the last stages, which it does not run.
            head: takes the output of the exit's last block; by default a `PooledHead`, or what the
                network's own `exit_head(channels, classes)` makes.
            input_size: shape of one input, such as (3, 224, 224), to size the default head and to try
                another one; found by trial if not given. A head is not tried if no shape is found, or
                if its forward names constants of the batch.

        Raises:
            ValueError: the name is taken, or cannot name a file; `after` does not fit the stages, or
                another exit ends there; the head shares weights with the network, does not take the
                block's output or gives another number of classes; the network does not run on
                `input_size`.
        """
        most = self._paths[self.full].blocks
        counts = blocks_of(name, after, most)
        check_depth(
            name, counts, self.depths, self.plan.stages, most, exits=self.exits, ends_early=True
        )
        if head is None:
            logits, feature = self._shapes(counts, input_size)
            if logits.ndim != 2:
                raise ValueError(
                    f"the network's output of one input has the shape {tuple(logits.shape[1:])}, and "
                    "an exit's usual head gives one number a class: give a head"
                )
            feature, exit_head = feature_of(feature), getattr(self.module, "exit_head", None)
            if exit_head is None:
                head = PooledHead.like(feature, logits, channels_last(self.module))
            else:
                head = exit_head(feature.shape[1], logits.shape[1])
            like = next(p for p in self.parameters() if p.is_floating_point())
            head = head.to(like.device, like.dtype)
        else:
            check_head(name, head, self)
            if not keywords_of(head):
                with contextlib.suppress(UnknownShapeError):
                    check_classes(name, head, *self._shapes(counts, input_size))
        self._insert(name, self._maker.of_depth(name, counts, head.train(self.training)))

    @torch.no_grad()
    def _shapes(self, after: Sequence[int], input_size: Sequence[int] | None) -> tuple[Tensor, Value]:
        """The logits and the output of the last of the blocks `after`, as tensors without memory."""
        size = tuple(input_size or self.input_size or ())
        if size not in self._tried:
            with in_eval_mode(self):
                x = example_input(self.module, size or None)
                outputs = [*outputs_by_block(self.path(), self.plan, x)]
                self._tried[size] = each(lambda t: t.to("meta"), (self(x), outputs))
        logits, outputs = self._tried[size]
        stage = max(i for i, count in enumerate(after) if count)
        return logits, outputs[stage][after[stage] - 1]

    def load_full(self, state: Mapping[str, Tensor]) -> None:
        """Load the full net's weights under its own (torchvision's) names; sub-nets follow.

        Shared weights change for every depth, and each private norm becomes a copy of the full net's.
        Its statistics do not fit the sub-nets, so these are "fresh". Heads of exits do not change.
        RuntimeError if names or shapes differ.
        """
        self.module.load_state_dict(state)
        for private in self._maker.norms:
            full = self.module.get_submodule(private.name).state_dict()
            shapes = {k: v.shape for k, v in private.norm.state_dict().items()}
            # a width has the first channels
            first = {k: v[: shapes[k][0]] if shapes[k] else v for k, v in full.items()}
            private.norm.load_state_dict(first)
        self.mark("fresh")
        self.mark("trained", self.full)

    # The trie

    def _trie(self, depths: Sequence[str] | None) -> Node:
        """The trie of all depths (or those named), deepest first."""
        names = tuple(self.depths) if depths is None else tuple(depths)
        if not names:
            raise ValueError(f"no depth was named; this net has {', '.join(self.depths)}")
        for name in names:
            self.path(name)
        if names not in self._tries:
            paths = {d: self._paths[d] for d in reversed(self.depths) if d in names}
            self._tries[names] = trie_of(paths, channels_last=channels_last(self.module))
        return self._tries[names]

    def _insert(self, depth: str, path: Path) -> None:
        super()._insert(depth, path)
        self._status[depth] = "fresh"
        self._keywords.update(*path.keywords)
        self._tries.clear()
