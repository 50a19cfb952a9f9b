"""Paths: the steps that each depth of a nested net runs, and the steps that depths share."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import nn

from stepwell.nets.nested.exits import ExitNet
from stepwell.nets.nested.plan import Plan, leaves, replant, with_own_norms
from stepwell.nets.nested.steps import keywords_of
from stepwell.nets.nested.widths import narrowed


class Path(NamedTuple):
    """One depth of a nested net.

    blocks: number of blocks of each stage; 0 for stages that an exit does not run.
    steps: the modules that it runs, in order.
    keywords: for each step, the names of the constants that its forward takes.
    ends: the positions of the steps that complete a stage.
    plain: the network of this depth as a plain module; weights shared.
    head: the head of an exit, which is the last step; None for other depths.
    share: of the channels that the layers keep.
    """

    blocks: tuple[int, ...]
    steps: tuple[nn.Module, ...]
    keywords: tuple[frozenset[str], ...]
    ends: frozenset[int]
    plain: nn.Module
    head: nn.Module | None = None
    share: float = 1.0


class PrivateNorm(NamedTuple):
    """A norm of the depth `owner` in place of the full net's norm `name`; other depths may share it."""

    owner: str
    name: str
    norm: nn.Module


class Paths:
    """Make the paths of one network, with `private` norms behind forks; common prefixes are shared."""

    def __init__(self, module: nn.Module, plan: Plan, private: bool) -> None:
        self.module, self.plan, self.private = module, plan, private
        self.norms: list[PrivateNorm] = []
        self._steps: dict[tuple[str, ...], nn.Module] = {}

    def of_depth(
        self, depth: str | None, blocks: tuple[int, ...], head: nn.Module | None = None
    ) -> Path:
        """Make the path of a depth (None: the full net); `norms` gains its private norms."""
        keys, ends = self._keys(blocks, whole=head is None)
        steps = [self._step(depth, tuple(keys[: i + 1])) for i in range(len(keys))]
        steps += [] if head is None else [head]
        keywords = tuple(keywords_of(step) for step in steps)
        plain = self.module
        if depth is not None:
            plain = self._plain(keys, steps, blocks, head)
            plain = plain if head is None else ExitNet(plain, steps, keywords)
        return Path(blocks, tuple(steps), keywords, ends, plain, head)

    def of_width(self, depth: str, blocks: tuple[int, ...], share: float) -> Path:
        """Make the path of all `blocks` at a share of the channels; `norms` gains its norms."""
        keys, ends = self._keys(blocks, whole=True)
        steps, norms = [], dict[str, nn.Module]()
        full = [self._step(None, tuple(keys[: i + 1])) for i in range(len(keys))]
        entry = next(m for step in full for m in step.modules() if isinstance(m, nn.Conv2d))
        for key, step in zip(keys, full, strict=True):
            steps.append(narrowed(step, share, norms, "" if "/" in key else key, entry))
        self.norms += [PrivateNorm(depth, name, norm) for name, norm in norms.items()]
        keywords = tuple(keywords_of(step) for step in steps)
        plain = self._plain(keys, steps, blocks, None)
        return Path(blocks, tuple(steps), keywords, ends, plain, share=share)

    def _keys(self, blocks: Sequence[int], *, whole: bool) -> tuple[list[str], frozenset[int]]:
        """A key for each step, its name or "GAP/INDEX" of code between blocks; the stages' ends."""
        keys: list[str] = []
        ends: set[int] = set()
        for gap, steps in enumerate(self.plan.gaps):
            if not whole and not (gap < len(blocks) and blocks[gap]):
                break  # an exit ends with its last block
            keys += [s if isinstance(s, str) else f"{gap}/{i}" for i, s in enumerate(steps)]
            if gap < len(blocks):
                for names in self.plan.blocks[gap][: blocks[gap]]:
                    keys += names
                ends.add(len(keys) - 1)
        return keys, frozenset(ends)

    def _step(self, depth: str | None, prefix: tuple[str, ...]) -> nn.Module:
        """The last module of `prefix`: another depth's, or a new one."""
        if prefix in self._steps:
            return self._steps[prefix]
        key = prefix[-1]
        gap, between, at = key.partition("/")
        if between:
            step = self.plan.gaps[int(gap)][int(at)]
            assert isinstance(step, nn.Module)
        else:
            step = self.module.get_submodule(key)
        if depth is not None and self.private:
            norms: dict[str, nn.Module] = {}
            step = with_own_norms(step, norms, "" if between else key)
            self.norms += [PrivateNorm(depth, name, norm) for name, norm in norms.items()]
        self._steps[prefix] = step
        return step

    def _plain(
        self,
        keys: Sequence[str],
        steps: Sequence[nn.Module],
        blocks: Sequence[int],
        head: nn.Module | None,
    ) -> nn.Module:
        """The full net's module without the modules that a depth does not run; weights shared."""
        used: dict[str, nn.Module] = {}
        for key, step in zip(keys, steps, strict=False):  # the head has no key
            used |= leaves(step) if "/" in key else {key: step}
        if head is None:
            counts = zip(self.plan.blocks, blocks, strict=True)
            dropped = {name for names, n in counts for block in names[n:] for name in block}
        else:
            dropped = set(_unrelated(self.module, used))
        return replant(self.module, used, dropped)


def _unrelated(module: nn.Module, used: Mapping[str, nn.Module]) -> Iterator[str]:
    """The names of modules that contain no module of `used` and are inside none."""
    holders = {".".join(name.split(".")[:i]) for name in used for i in range(name.count(".") + 1)}
    for name, _ in module.named_modules(remove_duplicate=False):
        inside = any(name == other or name.startswith(f"{other}.") for other in used)
        if name and not inside and name not in holders:
            yield name
