"""The modules of a nested net, and their tensors by name."""

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from stepwell.nets.nested.exits import HEAD
from stepwell.nets.nested.paths import Path, Paths
from stepwell.nets.nested.plan import Plan, is_norm
from stepwell.nets.nested.widths import Narrow, alone
from stepwell.types import not_finite


class Weights(nn.Module):
    """The shared and private modules of all depths; the base of `NestedNet`.

    Arguments as for `NestedNet`; `private` gives every depth norms of its own behind the fork.
    """

    def __init__(self, module: nn.Module, plan: Plan, full: str, *, private: bool) -> None:
        super().__init__()
        self.module, self.training = module, module.training
        self.private_norms = nn.ModuleList()
        self.exit_heads = nn.ModuleList()
        self.full = full
        self.plan = plan
        # Plain containers, so that nothing is registered (or saved) twice.
        self._maker = Paths(module, plan, private)
        self._paths: dict[str, Path] = {}

    @property
    def depths(self) -> dict[str, tuple[int, ...]]:
        """Blocks per stage of every depth, shallow to deep; the last is the full net.

        An exit has 0 blocks of each stage that it does not run.
        """
        blocks = {depth: path.blocks for depth, path in self._paths.items()}
        order = sorted(blocks, key=lambda d: (d == self.full, sum(blocks[d])))
        return {depth: blocks[depth] for depth in order}

    @property
    def exits(self) -> dict[str, nn.Module]:
        """The head of every exit, in the order they were added."""
        return {d: path.head for d, path in self._paths.items() if path.head is not None}

    def path(self, depth: str | None = None) -> tuple[nn.Module, ...]:
        """The modules that `depth` (the full net by default) runs, in order."""
        return self._path(depth).steps

    def keywords(self, depth: str) -> tuple[frozenset[str], ...]:
        """For each step of `path`, the names of the constants that its forward takes."""
        return self._path(depth).keywords

    def _path(self, depth: str | None) -> Path:
        depth = self.full if depth is None else depth
        if depth not in self._paths:
            text = f" (depths are text: {str(depth)!r})" if str(depth) in self._paths else ""
            raise ValueError(f"no depth {depth!r}{text}; this net has {', '.join(self.depths)}")
        return self._paths[depth]

    def subnet(self, depth: str | None = None) -> nn.Module:
        """A deep copy of one depth as a plain module; nothing shared.

        Its class is the full net's; an exit is an `ExitNet`.
        """
        return alone(self._path(depth).plain)

    def norms(self, depth: str) -> Iterator[nn.Module]:
        """Every norm on the path of `depth`, shared and private."""
        for step in self.path(depth):
            yield from (m for m in step.modules() if is_norm(m))

    def train(self, mode: bool = True) -> "Weights":
        """Set the mode of every module, including modules that only a sub-net has."""
        super().train(mode)
        for part in self._parts():
            part.train(mode)
        return self

    def hidden_modules(self) -> Iterator[nn.Module]:
        """All modules of all depths, including unregistered ones that only a sub-net has."""
        for part in self._parts():
            yield from part.modules()

    def _parts(self) -> Iterator[nn.Module]:
        return (part for path in self._paths.values() for part in (path.plain, *path.steps))

    def load_depth(self, depth: str, state: Mapping[str, Tensor]) -> None:
        """Load one depth's weights under its plain network's names; names may be missing.

        Shared weights change for all depths. RuntimeError for an unknown name or another shape.
        """
        unknown = self._path(depth).plain.load_state_dict(state, strict=False).unexpected_keys
        if unknown:
            raise RuntimeError(f"depth {depth!r} has no {', '.join(unknown[:5])}")

    def tensors(self) -> dict[str, Tensor]:
        """All tensors under the names of the file format, each once; tied tensors have one name.

        The full net's tensors have their own names, the private tensors of depth NAME have
        `depths/NAME/<name>`.
        """
        return {name: value.detach() for name, value in self._stored().items()}

    def stored_names(self, depth: str | None = None) -> dict[str, str]:
        """The name in `tensors` of each tensor of the plain network of `depth`, by its name there.

        Weights of a width, which are a part of the full ones, are left out.

        `{"layer2.0.bn1.weight": "depths/18/layer2.0.bn1.weight", "fc.weight": "fc.weight", ...}`
        """
        stored = {id(value): name for name, value in self._stored().items()}
        plain = self._path(depth).plain
        parts = tuple(f"{n}.layer." for n, m in plain.named_modules() if isinstance(m, Narrow))
        whole = {k: v for k, v in plain.state_dict(keep_vars=True).items() if not k.startswith(parts)}
        return {name: stored[id(value)] for name, value in whole.items() if id(value) in stored}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `tensors`; RuntimeError if names or shapes differ."""
        stored = self._stored()
        if differing := sorted(stored.keys() ^ tensors.keys()):
            raise RuntimeError(f"names differ from this network's: {', '.join(differing[:5])}")
        names = {id(value): name for name, value in stored.items()}
        for part in (self.module, *(p.norm for p in self._maker.norms), *self.exits.values()):
            state = part.state_dict(keep_vars=True)
            part.load_state_dict({k: tensors[names[id(value)]] for k, value in state.items()})

    def not_finite(self) -> str | None:
        """The name of a parameter, or statistic of a norm, with a value that is NaN or infinite."""
        norms = ("running_mean", "running_var")
        stored = self._stored().items()
        return not_finite({n: v for n, v in stored if isinstance(v, nn.Parameter) or n.endswith(norms)})

    def _stored(self) -> dict[str, Tensor]:
        """The stored tensors themselves, by their names in files; a tied tensor has one name."""
        named = dict(self.module.state_dict(keep_vars=True))
        heads = ((exit, HEAD, head) for exit, head in self.exits.items())
        for owner, name, part in (*self._maker.norms, *heads):
            state = part.state_dict(keep_vars=True)
            named |= {f"depths/{owner}/{name}.{key}": value for key, value in state.items()}
        first: dict[int, str] = {}
        for name, value in named.items():
            first.setdefault(id(value), name)
        return {name: named[name] for name in first.values()}

    def _insert(self, depth: str, path: Path) -> None:
        self._paths[depth] = path
        known = {id(norm) for norm in self.private_norms}
        self.private_norms.extend(p.norm for p in self._maker.norms if id(p.norm) not in known)
        if path.head is not None:
            self.exit_heads.append(path.head)
