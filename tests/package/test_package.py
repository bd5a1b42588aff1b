"""The package as a whole: its public surface, its layers, and what importing it loads."""

import ast
import doctest
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import zorn

PACKAGE = Path(zorn.__file__).parent
ORDER = [
    "errors",
    "checks",
    "random",
    "models",
    "native",
    "kernels",
    "noise",
    "estimators",
    "diagnostics",
    "distributed",
    "tasks",
    "run",
    "training",
    "plan",
    "cli",
]
INDEPENDENT = {("tasks", "noise"), ("tasks", "estimators")}
"""Layers that know nothing of each other, whatever their order."""

PUBLIC = [
    "ActivityCredit",
    "BPTT",
    "Batch",
    "Bridge",
    "CDRGE",
    "Dense",
    "EProp",
    "Estimator",
    "FDRGE",
    "LanguageModel",
    "NRES",
    "PES",
    "RankOne",
    "RowScore",
    "SPSA15",
    "TBPTT",
    "TokenCrossEntropy",
    "diagnose",
    "inspect_model",
    "register_rule",
]


def test_the_public_surface_changes_on_purpose_only():
    assert sorted(zorn.__all__) == sorted(PUBLIC)


def imports(path):
    """Names of the zorn modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_nothing_imports_what_stands_above_it():
    for path in PACKAGE.rglob("*.py"):
        layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for module in imports(path) if layer in ORDER else []:
            parts = module.split(".")
            if parts[0] == "zorn" and len(parts) > 1 and parts[1] in ORDER:
                below, above = parts[1], layer
                assert ORDER.index(below) <= ORDER.index(above), f"{path} imports {module}"
                assert (above, below) not in INDEPENDENT, f"{path} imports {module}"


def test_files_hold_one_idea():
    long = {path.name: n for path in PACKAGE.rglob("*.py") if (n := len(path.read_text().splitlines())) > 500}
    assert not long


def test_importing_zorn_loads_neither_plots_nor_trackers():
    heavy = ("matplotlib", "tensorboard", "rich", "tyro")
    code = f"import sys, zorn; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


MODULES = [
    module.name
    for module in pkgutil.walk_packages(zorn.__path__, "zorn.")
    if not module.name.endswith(("__main__", "native._recurrent"))  # a library, not a module
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_are_right(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
