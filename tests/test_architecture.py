"""The shape of the package: which module may import which, what it exports, what it loads."""

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain, pairwise
from pathlib import Path
from types import ModuleType

import pytest

import fastapi_bgx

# A module imports only from the lines above its own. Modules of one package, which share a line,
# may import each other. A new module is added here, at the lowest line that its imports allow.
LEVELS: list[set[str]] = [
    {
        "backends",
        "driving",
        "errors",
        "notices",
        "queues",
        "rates",
        "retry",
        "signals",
        "telemetry",
        "tokens",
    },
    {"calls", "options", "outcome", "threads", "timers"},
    {"asking", "progress", "records", "reports", "settings"},
    {"limits", "stores", "texts"},
    {"console", "loglines", "named"},
    {"dashboard", "plan"},
    {"task"},
    {"events", "processes"},
    {"attempt", "history", "listeners", "uniqueness"},
    {"backlog", "entrance", "executors", "pauses", "workers"},
    {"endings", "watchdog"},
    {"runner"},
    {"drain"},
    {"runners"},
    {"background", "held"},
    {"control", "injection", "middleware"},
    {"recording"},
    {"app"},
    {"__init__"},
    {"demo", "testing"},
    {"pytest_plugin"},
]

# What every user has installed (`dependencies` in pyproject.toml).
CORE = {
    "anyio",
    "fastapi",
    "pydantic",
    "pydantic_settings",
    "starlette",
    "structlog",
    "tenacity",
}

# Every other third-party package, and the modules (or packages) that may import it: one, but for
# OpenTelemetry, whose current span the core carries on, whoever has opened it.
ADAPTERS: dict[str, str | tuple[str, ...]] = {
    "alembic": "stores.sql",
    "httpx": "demo",
    "jinja2": "dashboard",
    "opentelemetry": ("telemetry", "listeners.opentelemetry"),
    "prometheus_client": ("listeners.prometheus", "demo"),
    "pyrate_limiter": "rates",
    "pytest": "pytest_plugin",
    "sentry_sdk": "listeners.sentry",
    "sqlalchemy": "stores.sql",
    "trio": "backends._trio",
    "uvicorn": "demo",
}

ROOT = Path(fastapi_bgx.__file__).parent
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}


def modules() -> dict[str, Path]:
    """Each module of the package by its name inside it: `task`, `backends.base`, `__init__`."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts
        found[".".join(parts)] = path
    return found


MODULES = modules()
each_module = pytest.mark.parametrize("name", MODULES)


def unit(name: str) -> str:
    """The entry of `LEVELS` that a module belongs to: itself, or its package."""
    return name.partition(".")[0]


def absolute(node: ast.ImportFrom, name: str) -> str:
    """The full name that `from … import` reads from, relative or not."""
    if not node.level:
        return node.module or ""
    here = [fastapi_bgx.__name__, *name.split(".")]
    package = here if MODULES[name].name == "__init__.py" else here[:-1]
    base = package[: len(package) - node.level + 1]
    return ".".join([*base, node.module] if node.module else base)


def imports(name: str) -> Iterator[str]:
    """The full name of everything that a module imports, at its top or inside of anything.

    Imports under `TYPE_CHECKING` count too: a type is knowledge of a module as much as a call is.
    """
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{absolute(node, name)}.{alias.name}" for alias in node.names)


def own_imports(name: str) -> Iterator[str]:
    """The modules of this package that a module imports, by their names inside it."""
    for full in imports(name):
        top, _, inner = full.partition(".")
        if top == fastapi_bgx.__name__:
            while inner and inner not in MODULES:
                inner = inner.rpartition(".")[0]
            yield inner or "__init__"


def test_every_module_has_a_level() -> None:
    assert {unit(name) for name in MODULES} == set(LEVEL)


@each_module
def test_imports_point_downwards(name: str) -> None:
    wrong = {
        target
        for target in own_imports(name)
        if unit(target) != unit(name) and LEVEL[unit(target)] >= LEVEL[unit(name)]
    }
    assert not wrong, f"{name} imports {sorted(wrong)}, which are not below it"


@each_module
def test_optional_packages_stay_in_their_adapter(name: str) -> None:
    for full in imports(name):
        top = full.partition(".")[0]
        if top in {fastapi_bgx.__name__, *CORE, *sys.stdlib_module_names}:
            continue
        adapters = ADAPTERS.get(top)
        assert adapters, f"{name} imports {top}, which is no dependency and has no adapter"
        allowed = (adapters,) if isinstance(adapters, str) else adapters
        assert any(name == each or name.startswith(f"{each}.") for each in allowed), (
            f"{name} imports {top}: only {allowed} may"
        )


def test_importing_the_package_loads_its_dependencies_only() -> None:
    script = f"""
import sys
import {", ".join(sorted(CORE))}
before = set(sys.modules)
import fastapi_bgx
tops = {{name.partition(".")[0] for name in set(sys.modules) - before}}
already = {{name.partition(".")[0] for name in before}}
print(*sorted(tops - already - sys.stdlib_module_names))
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["fastapi_bgx"]


def public_names() -> set[str]:
    names = vars(fastapi_bgx).items()
    return {n for n, v in names if not n.startswith("_") and not isinstance(v, ModuleType)}


def test_all_is_complete() -> None:
    exported = [name for name in fastapi_bgx.__all__ if name != "__version__"]
    assert len(exported) == len(set(exported))
    assert set(exported) == public_names()


def blocks(path: Path) -> Iterator[list[ast.stmt]]:
    """The statements of a module, and those of each `if` at its top."""
    tree = ast.parse(path.read_text())
    yield tree.body
    for node in tree.body:
        if isinstance(node, ast.If):
            yield from (node.body, node.orelse)


def assigned_docstrings() -> set[str]:
    """Names that are assigned in some module of the package and followed by a docstring."""
    found = set()
    for block in chain.from_iterable(map(blocks, MODULES.values())):
        for node, after in pairwise(block):
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                targets = [node.target] if isinstance(node, ast.AnnAssign) else []
                targets += getattr(node, "targets", [])
                found |= {ast.unparse(target) for target in targets}
    return found


@pytest.mark.parametrize("name", fastapi_bgx.__all__)
def test_everything_exported_has_a_docstring(name: str) -> None:
    value = getattr(fastapi_bgx, name)
    if name == "__version__" or name in assigned_docstrings():
        return
    assert inspect.isclass(value) or inspect.isroutine(value), f"{name} needs a docstring below it"
    assert value.__module__.partition(".")[0] == fastapi_bgx.__name__
    assert value.__doc__, f"{name} has no docstring"
