"""The paths of a nested net: which steps each depth runs, and which of them it shares."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from stepwell.nets.nested.exits import HEAD, ExitNet
from stepwell.nets.nested.plan import Plan, fork, leaves, replant
from stepwell.nets.nested.steps import keywords_of


class Path(NamedTuple):
    """One depth of a nested net.

    blocks: that it keeps of each stage.
    steps: the modules that it runs, in order.
    keywords: for each step, the names that its forward takes beside its input.
    ends: the positions of the steps that complete a stage.
    plain: the network of this depth as a plain module; weights shared.
    head: of an exit, its own head; the last step.
    """

    blocks: tuple[int, ...]
    steps: tuple[nn.Module, ...]
    keywords: tuple[frozenset[str], ...]
    ends: frozenset[int]
    plain: nn.Module
    head: nn.Module | None = None


class PrivateNorm(NamedTuple):
    """A norm that one depth does not share with the full net.

    owner: the depth that brought it; another depth may share it along their common prefix.
    name: of the full net's norm that it replaces.
    """

    owner: str
    name: str
    norm: nn.Module


class Paths:
    """Makes the paths of one network; a prefix that two paths have in common is the same modules.

    Args:
        module: the full net.
        plan: how it reads as a path.
        private: give every path norms of its own behind the fork.
    """

    def __init__(self, module: nn.Module, plan: Plan, private: bool) -> None:
        self.module, self.plan, self.private = module, plan, private
        self.norms: list[PrivateNorm] = []
        self._steps: dict[tuple[str, ...], nn.Module] = {}

    def full(self) -> Path:
        """The path of the full net."""
        return self.of_depth(None, tuple(len(blocks) for blocks in self.plan.blocks))

    def of_depth(
        self, depth: str | None, blocks: tuple[int, ...], head: nn.Module | None = None
    ) -> Path:
        """The path of a new depth (None: the full net's); its private norms are added to `norms`.

        Args:
            blocks: that it keeps of each stage; of an exit, 0 for the stages that it does not run.
            head: of an exit.
        """
        keys, ends = self._keys(blocks, whole=head is None)
        steps = [self._step(depth, tuple(keys[: i + 1])) for i in range(len(keys))]
        steps += [] if head is None else [head]
        keywords = tuple(keywords_of(step) for step in steps)
        plain = self.module
        if depth is not None:
            plain = self._plain(keys, steps, blocks, head)
            plain = plain if head is None else ExitNet(plain, steps, keywords)
        return Path(blocks, tuple(steps), keywords, ends, plain, head)

    def _keys(self, blocks: Sequence[int], *, whole: bool) -> tuple[list[str], frozenset[int]]:
        """A key for each step, its name or "GAP/INDEX" of code between blocks; the stages' ends."""
        keys: list[str] = []
        ends: set[int] = set()
        for gap, steps in enumerate(self.plan.gaps):
            if not whole and not (gap < len(blocks) and blocks[gap]):
                break  # an exit ends with the last block that it keeps
            keys += [s if isinstance(s, str) else f"{gap}/{i}" for i, s in enumerate(steps)]
            if gap < len(blocks):
                for names in self.plan.blocks[gap][: blocks[gap]]:
                    keys += names
                ends.add(len(keys) - 1)
        return keys, frozenset(ends)

    def _step(self, depth: str | None, prefix: tuple[str, ...]) -> nn.Module:
        """The module at the end of `prefix`: that of another depth, or one of its own."""
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
            step = fork(step, norms, "" if between else key)
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
        own: dict[str, nn.Module] = {}
        for key, step in zip(keys, steps, strict=False):  # the head has no key
            own |= leaves(step) if "/" in key else {key: step}
        if head is None:
            counts = zip(self.plan.blocks, blocks, strict=True)
            dropped = {name for names, n in counts for block in names[n:] for name in block}
        else:
            dropped = set(_unrelated(self.module, own))
        return replant(self.module, own, dropped)


def _unrelated(module: nn.Module, own: Mapping[str, nn.Module]) -> Iterator[str]:
    """The names of modules that hold none of `own` and lie in none."""
    holders = {".".join(name.split(".")[:i]) for name in own for i in range(name.count(".") + 1)}
    for name, _ in module.named_modules(remove_duplicate=False):
        inside = any(name == other or name.startswith(f"{other}.") for other in own)
        if name and not inside and name not in holders:
            yield name


def stored_tensors(
    module: nn.Module, norms: Sequence[PrivateNorm], heads: Mapping[str, nn.Module]
) -> dict[str, Tensor]:
    """The very tensors of a nested net by their names in files; a tied one has one name."""
    named = dict(module.state_dict(keep_vars=True))
    for owner, name, part in (*norms, *((exit, HEAD, head) for exit, head in heads.items())):
        for key, value in part.state_dict(keep_vars=True).items():
            named[f"depths/{owner}/{name}.{key}"] = value
    first: dict[int, str] = {}
    for name, value in named.items():
        first.setdefault(id(value), name)
    return {name: named[name] for name in first.values()}
