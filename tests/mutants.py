"""Breaks the package at random places, one at a time, and counts how often the tests notice.

A mutant is the package with one change: an operator, a comparison, a constant, a condition or a returned
value is another, or a statement is gone. Places are drawn line by line from all code of the package but
messages, docstrings and annotations. A mutant is killed by a test that fails or takes too long. Those that no
test kills show what the tests do not see, or are equal to the package.

    python tests/mutants.py map --out map.json
    python tests/mutants.py run --map map.json --out mutants.jsonl [--mutants 150] [--seed 0]
    python tests/mutants.py show mutants.jsonl

`map` notes which functions of the package each test calls, and the seconds it takes. `run` gives every mutant
the tests that call its function, those that call the least first, in a fork of a process that has imported
torch; it goes on where it was stopped. Another suite, for example an earlier one, is given the survivors:

    python tests/mutants.py map --tests OTHER/tests --out old.json
    python tests/mutants.py run --tests OTHER/tests --map old.json --out old.jsonl \\
        --survivors-of mutants.jsonl

Linux and macOS only: it forks.
"""

import argparse
import ast
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COPIED = ("zorn", "tests", "benchmarks", "examples", "docs", "README.md", "Makefile", "pyproject.toml")
PATIENCE = 5
"""A mutant's tests take too long at this many times their seconds in the map, and half a minute more."""

PRELOADED = ("-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning")
"""What pytest says of modules that were imported before it."""

OTHERS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


@dataclass(frozen=True)
class Mutant:
    """One change of one file.

    Args:
        file: path from the root.
        function: where it is, as the map names it.
        start, end: the characters of the file that are replaced.
        new: what stands there instead.
    """

    file: str
    function: str
    line: int
    kind: str
    start: int
    end: int
    old: str
    new: str


# ------------------------------------------------------------------------------------------- places of change


def mutants_of(file: Path) -> Iterator[Mutant]:
    """Every change that could be made to a file."""
    text = file.read_text(encoding="utf-8")
    starts = [0]
    for line in text.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    raw = text.encode()

    def visit(node: ast.AST, function: str, inside: bool) -> Iterator[Mutant]:
        if isinstance(node, ast.JoinedStr | ast.AnnAssign) and not getattr(node, "value", None):
            return
        if isinstance(node, ast.JoinedStr | ast.Import | ast.ImportFrom | ast.Assert):
            return
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            function, inside = f"{name}:{first}", True
            for child in node.body:
                yield from visit(child, function, inside)
            return
        for kind, old, new in changes(node, inside):
            begin = starts[old.lineno - 1] + old.col_offset
            end = starts[old.end_lineno - 1] + old.end_col_offset
            yield Mutant(name, function, old.lineno, kind, begin, end, raw[begin:end].decode(), new)
        if isinstance(node, ast.Raise):
            return  # its message
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "decorator_list", "returns", "ctx", "op", "ops"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from visit(child, function, inside)

    name = str(file.relative_to(ROOT))
    yield from visit(ast.parse(text), f"{name}:0", False)


def changes(node: ast.AST, inside: bool) -> Iterator[tuple[str, ast.expr | ast.stmt, str]]:
    """Kind, what is replaced and by what, for the node itself."""
    match node:
        case ast.BinOp(left, op, right) if type(op) in OTHERS and not is_text(left):
            yield "arithmetic", node, f"({ast.unparse(ast.BinOp(left, OTHERS[type(op)](), right))})"
        case ast.AugAssign(target, op, value) if type(op) in OTHERS:
            yield "arithmetic", node, ast.unparse(ast.AugAssign(target, OTHERS[type(op)](), value))
        case ast.Compare(left, [op, *more], right) if type(op) in OTHERS:
            yield (
                "comparison",
                node,
                f"({ast.unparse(ast.Compare(left, [OTHERS[type(op)](), *more], right))})",
            )
        case ast.BoolOp(op, values):
            yield "and, or", node, f"({ast.unparse(ast.BoolOp(OTHERS[type(op)](), values))})"
        case ast.UnaryOp(ast.Not(), operand):
            yield "not", node, f"({ast.unparse(operand)})"
        case ast.If(test) | ast.While(test) | ast.IfExp(test) if not names_types_only(test):
            yield "condition", test, f"(not ({ast.unparse(test)}))"
        case ast.Constant(bool() as value):
            yield "constant", node, str(not value)
        case ast.Constant(int() | float() as value):
            yield "constant", node, f"({value!r} + 1)"
            yield "constant", node, f"({value!r} - 1)"
        case ast.Return(value) if value is not None and not is_none(value):
            yield "return", node, "return None"
    if inside and isinstance(node, ast.Assign | ast.AugAssign | ast.Raise | ast.Delete):
        yield "statement", node, "pass"
    if inside and isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield "statement", node, "pass"


def names_types_only(test: ast.expr) -> bool:
    """Whether a condition is `TYPE_CHECKING`."""
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"


def is_text(value: ast.expr) -> bool:
    """Whether an expression is a text, which is written into no other kind of product or sum."""
    text = isinstance(value, ast.Constant) and isinstance(value.value, str)
    return text or isinstance(value, ast.JoinedStr)


def is_none(value: ast.expr) -> bool:
    """Whether an expression is the constant None."""
    return isinstance(value, ast.Constant) and value.value is None


def draw(count: int, seed: int) -> list[Mutant]:
    """Different lines of the package, each as likely, and one change of each."""
    lines: dict[tuple[str, int], list[Mutant]] = {}
    for file in sorted((ROOT / "zorn").rglob("*.py")):
        for mutant in mutants_of(file):
            lines.setdefault((mutant.file, mutant.line), []).append(mutant)
    dice = random.Random(seed)
    return [dice.choice(lines[place]) for place in dice.sample(sorted(lines), count)]


# ------------------------------------------------------------------------------------- what each test calls


class Notes:
    """A plugin of pytest that notes the functions of the package that every test calls, and its seconds.

    Args:
        tree: what is tested.
        out: the file that the notes of this process are written to.
    """

    def __init__(self, tree: Path, out: Path) -> None:
        self.tree, self.out, self.codes = tree, out, set()
        self.tests: dict[str, dict] = {}
        self.failed: set[str] = set()

    def see(self, frame, event, argument) -> None:
        """As `sys.settrace` has it: each call, no lines."""
        self.codes.add(frame.f_code)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item):
        """Around setup, call and teardown of a test."""
        self.codes = set()
        started = time.monotonic()
        sys.settrace(self.see)
        threading.settrace(self.see)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            threading.settrace(None)
            package = f"{self.tree / 'zorn'}{os.sep}"
            called = {
                f"{Path(code.co_filename).relative_to(self.tree)}:{code.co_firstlineno}"
                for code in self.codes
                if code.co_filename.startswith(package)
            }
            seconds = time.monotonic() - started
            self.tests[item.nodeid] = {"seconds": round(seconds, 3), "calls": sorted(called)}

    def pytest_runtest_logreport(self, report) -> None:
        """A test that fails without a change says nothing about one; one that is skipped neither."""
        if report.outcome != "passed":
            self.failed.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        """Write the tests that passed."""
        passed = {name: test for name, test in self.tests.items() if name not in self.failed}
        self.out.write_text(json.dumps(passed))


def pytest_configure(config) -> None:
    """As a plugin: note the tests of this process, where it runs any."""
    worker = getattr(config, "workerinput", {}).get("workerid")
    if worker is not None:
        config.pluginmanager.register(Notes(Path.cwd(), Path(f"{os.environ['NOTES']}.{worker}")))


def make_map(tests: Path, out: Path) -> int:
    """Run the tests once, on every core, and write what they call."""
    tree, out = copy_tree(tests), out.resolve()
    enter(tree)
    os.environ["PYTHONPATH"] += f"{os.pathsep}{tree / 'tests'}"
    os.environ["NOTES"] = str(out)
    sys.path.append(str(tree / "tests"))
    words = ["-q", "-p", "no:cacheprovider", "-p", "mutants", "-n", "auto", "--dist", "loadfile", "tests"]
    code = pytest.main(words)
    shutil.rmtree(tree)
    found: dict[str, dict] = {}
    for part in sorted(out.parent.glob(f"{out.name}.*")):
        found |= json.loads(part.read_text())
        part.unlink()
    out.write_text(json.dumps(found))
    print(f"{len(found)} tests that pass")
    return int(code)


# ---------------------------------------------------------------------------------------------- the mutants


def tests_for(mutant: Mutant, tests: dict[str, dict]) -> list[str]:
    """The tests that call the mutant's function, the most particular first.

    Where none does in its own process, or the change is made at import, those that call anything of the file,
    or else those of the command line.
    """
    calling = [name for name, test in tests.items() if mutant.function in test["calls"]]
    if not calling:
        calling = [
            name
            for name, test in tests.items()
            if any(call.startswith(f"{mutant.file}:") for call in test["calls"])
        ]
    if not calling:
        calling = [name for name in tests if name.startswith(("tests/cli", "tests/distributed"))]
    return sorted(calling, key=lambda name: (len(tests[name]["calls"]) // 20, tests[name]["seconds"]))


def copy_tree(tests: Path) -> Path:
    """The package with its compiled steps, these tests, and what they read."""
    tree = Path(tempfile.mkdtemp(prefix="zorn-mutants-"))
    for name in COPIED:
        source = tests if name == "tests" else ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__", "out"))
        else:
            shutil.copy(source, tree / name)
    return tree


def enter(tree: Path) -> None:
    """Let this process, and those that it starts, find the package and its tests in a tree alone."""
    os.chdir(tree)
    os.environ["PYTHONPATH"] = str(tree)
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    own = (ROOT, ROOT / "tests")
    sys.path[:] = [str(tree), *(place for place in sys.path if Path(place or ".").resolve() not in own)]


def preload() -> None:
    """Import what is slow and no mutant changes, so that forks need not."""
    os.environ["TRITON_INTERPRET"] = "1"  # what triton compiles of its own is decided here
    for name in ("hypothesis", "numpy", "rich.console", "safetensors.torch", "torch", "tyro"):
        __import__(name)
    for name in ("torch._dynamo", "torch.distributed", "triton.language", "matplotlib.pyplot"):
        try:
            __import__(name)
        except ImportError:
            print(f"without {name}")
    del os.environ["TRITON_INTERPRET"]


def attempt(tree: Path, tests: list[str], seconds: float, options: list[str]) -> str:
    """What comes of tests in a fork: "killed", "survived", "timeout", or "error" where none runs."""
    child = os.fork()
    if child == 0:
        os.setsid()
        enter(tree)
        printed = os.open("printed.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        code = 99
        try:
            words = ["-x", "-q", "-p", "no:cacheprovider", "--tb=line", *PRELOADED, *options, *tests]
            code = int(pytest.main(words))
        finally:
            sys.stdout.flush()
            os._exit(code)
    deadline = time.monotonic() + seconds
    while True:
        ended, state = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(state)
            break
        if time.monotonic() > deadline:
            code = None
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            break
        time.sleep(0.05)
    if code is None:
        return "timeout"
    return {0: "survived", 1: "killed", 2: "killed", 4: "error", 5: "error"}.get(code, "killed")


def run(options: argparse.Namespace) -> int:
    """Give each mutant its tests, and note what comes of it."""
    tests = json.loads(options.map.read_text())
    if options.survivors_of:
        earlier = [json.loads(line) for line in options.survivors_of.read_text().splitlines()]
        wanted = [Mutant(**one["mutant"]) for one in earlier if one["result"] == "survived"]
    else:
        wanted = draw(options.mutants, options.seed)
    done = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    known = {(one["mutant"]["file"], one["mutant"]["start"], one["mutant"]["new"]) for one in done}
    preload()
    tree = copy_tree(options.tests)
    try:
        quick = sorted(tests, key=lambda name: tests[name]["seconds"])[:50]
        if (result := attempt(tree, quick, 120, [])) != "survived":
            sys.exit(f"the package as it is {result}: {(tree / 'printed.txt').read_text()[-2000:]}")
        for number, mutant in enumerate(wanted):
            if (mutant.file, mutant.start, mutant.new) in known:
                continue
            names = tests_for(mutant, tests)
            text = (ROOT / mutant.file).read_bytes()
            place = tree / mutant.file
            place.write_bytes(text[: mutant.start] + mutant.new.encode() + text[mutant.end :])
            compile(place.read_bytes(), mutant.file, "exec")
            result, started, by = "survived" if names else "no test", time.monotonic(), ""
            for first in range(0, len(names), options.at_once):
                part = names[first : first + options.at_once]
                limit = 30 + PATIENCE * sum(tests[name]["seconds"] for name in part) * options.slower
                result = attempt(tree, part, limit, options.pytest.split())
                if result != "survived":
                    lines = (tree / "printed.txt").read_text(errors="replace").splitlines()
                    by = next((line for line in lines[::-1] if line.startswith(("FAILED", "ERROR"))), "")
                    break
            place.write_bytes(text)
            seconds = time.monotonic() - started
            note = {
                "mutant": asdict(mutant),
                "result": result,
                "by": by,
                "tests": len(names),
                "seconds": seconds,
            }
            with options.out.open("a") as file:
                file.write(json.dumps(note) + "\n")
            print(
                f"{number + 1} {result} {mutant.file}:{mutant.line} {mutant.old!r} -> {mutant.new!r} {by}",
                flush=True,
            )
    finally:
        shutil.rmtree(tree)
    return 0


def show(files: list[Path]) -> int:
    """The table of results by kind of change, and every survivor."""
    for file in files:
        notes = [json.loads(line) for line in file.read_text().splitlines()]
        print(file, dict(Counter(note["result"] for note in notes)))
        for kind in sorted({note["mutant"]["kind"] for note in notes}):
            print(f"  {kind}: {dict(Counter(n['result'] for n in notes if n['mutant']['kind'] == kind))}")
        for note in notes:
            if note["result"] in ("survived", "no test"):
                mutant = Mutant(**note["mutant"])
                change = f"{mutant.old} -> {mutant.new}"
                print(f"{mutant.file}:{mutant.line}: {change} ({note['tests']} tests)")
    return 0


def main() -> int:
    """Do what the words of the command line ask."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parts = parser.add_subparsers(dest="part", required=True)
    mapped = parts.add_parser("map")
    mapped.add_argument("--out", type=Path, required=True)
    mapped.add_argument("--tests", type=Path, default=ROOT / "tests")
    ran = parts.add_parser("run")
    ran.add_argument("--map", type=Path, required=True)
    ran.add_argument("--out", type=Path, required=True)
    ran.add_argument("--mutants", type=int, default=150)
    ran.add_argument("--seed", type=int, default=0)
    ran.add_argument("--tests", type=Path, default=ROOT / "tests")
    ran.add_argument("--survivors-of", type=Path)
    ran.add_argument("--at-once", type=int, default=60, help="tests of one process")
    ran.add_argument("--slower", type=float, default=1.0, help="than when the map was made")
    ran.add_argument("--pytest", default="", help="more options of pytest, in one word")
    shown = parts.add_parser("show")
    shown.add_argument("files", type=Path, nargs="+")
    options = parser.parse_args()
    if options.part == "map":
        return make_map(options.tests, options.out)
    return run(options) if options.part == "run" else show(options.files)


if __name__ == "__main__":
    sys.exit(main())
