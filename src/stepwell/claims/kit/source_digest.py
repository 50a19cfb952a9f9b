"""The code that a result depends on: a hash of a module and of its imports within the library."""

import ast
import hashlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT.name


def source_digest(module: str) -> str:
    """Hash of the code of `module` and of every module of the library that it imports.

    In Python, comments, docstrings and layout do not count: a change in them changes no result. Files
    of C beside a module count as they are.

    Args:
        module: a dotted name, such as "stepwell.recipes.ekd".
    """
    digest = hashlib.sha256()
    modules = {name: _file(name) for name in sorted(imported_modules(module))}
    for name, file in modules.items():
        digest.update(f"{name}\n{_parsed(file.read_bytes()).code}\n".encode())
    for source in sorted({c for file in modules.values() for c in file.parent.glob("*.c")}):
        digest.update(source.read_bytes())  # a kernel that one of the modules compiles
    return digest.hexdigest()[:16]


def imported_modules(module: str) -> set[str]:
    """`module` and all modules of the library that it imports, directly or not, anywhere in a file."""
    modules: set[str] = set()
    ahead = [module]
    while ahead:
        name = ahead.pop()
        if name in modules:
            continue
        modules.add(name)
        for imported, is_module in _parsed(_file(name).read_bytes()).imports:
            if is_module or _file(imported).exists():
                ahead.append(imported)
    return modules


class _Parsed(NamedTuple):
    """A file of code.

    code: a hash of its syntax tree without docstrings. imports: names of the library that it imports,
    and whether each is known to be a module.
    """

    code: str
    imports: tuple[tuple[str, bool], ...]


@cache  # parsing the whole library takes seconds
def _parsed(source: bytes) -> _Parsed:
    tree = ast.parse(source)
    imports: list[tuple[str, bool]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [(alias.name, True) for alias in node.names if _is_ours(alias.name)]
        elif isinstance(node, ast.ImportFrom) and node.module and _is_ours(node.module):
            imports.append((node.module, True))
            imports += [(f"{node.module}.{alias.name}", False) for alias in node.names]
    for node in ast.walk(tree):
        _drop_docstring(node)
    return _Parsed(hashlib.sha256(ast.dump(tree).encode()).hexdigest(), tuple(imports))


def _is_ours(name: str) -> bool:
    return name == PACKAGE or name.startswith(f"{PACKAGE}.")


def _file(name: str) -> Path:
    path = ROOT.joinpath(*name.split(".")[1:])
    package = path / "__init__.py"
    return package if package.exists() else path.with_suffix(".py")


def _drop_docstring(node: ast.AST) -> None:
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return
    if ast.get_docstring(node, clean=False) is not None:
        node.body = node.body[1:] or [ast.Pass()]
