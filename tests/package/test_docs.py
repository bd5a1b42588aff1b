"""What the documentation shows works: its Python runs, its commands parse, and the pages that are made from
the code hold what the code has."""

import contextlib
import dataclasses
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import torch

import zorn
from zorn.cli import flags as command_flags
from zorn.cli.entry import COMMANDS
from zorn.cli.parsing import _flags, parse
from zorn.cli.train import settings
from zorn.config import GROUPS, PRESETS, component_settings
from zorn.noise.rules import rule as rules
from zorn.settings import flag

ROOT = Path(__file__).parents[2]
PAGES = sorted(str(path.relative_to(ROOT)) for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
HISTORY = ("docs/log/", "docs/results/", "docs/architecture.md")
"""Pages that tell what was, or sketch what is: their code is not for running."""

FINDINGS = [page for page in PAGES if page.startswith("docs/log/") and not page.endswith("/index.md")]
GUIDES = [page for page in PAGES if not page.startswith(HISTORY)]
FOREIGN_FLAGS = {
    *("--extra-index-url", "--quick", "--setting", "--help", "--help-all", "--version"),
    *("--nproc-per-node", "--nnodes", "--master-port", "--max-restarts", "--rdzv-endpoint", "--standalone"),
    *("--rdzv-backend", "--rdzv-conf", "--rdzv-id", "--shutdown-timeout"),
}
"""Flags of pip, benchmarks, torchrun and every command."""


def hook(name):
    """A module of the site's hooks."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "hooks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(page, language):
    """Line number and text of each fenced block of a language."""
    text = (ROOT / page).read_text()
    for found in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield text.count("\n", 0, found.start()) + 1, found[1]


def commands(page):
    """The commands of a page's sh blocks, each as words."""
    for _, block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words:
                end = words.index("&&") if "&&" in words else len(words)
                yield words[:end]
                words = words[end + 1 :]


def command_module(name):
    return importlib.import_module(f"zorn.cli.{name}")


def command_class(name):
    return getattr(command_module(name), name.capitalize())


def read(words):
    """Let the real parser read the words of a `zorn` command, and do nothing."""
    name, *rest = words
    assert name in COMMANDS, f"there is no zorn {name}"
    if rest in (["--help"], ["--help-all"]):
        return
    if name == "diagnose" and "--run" in rest:  # the flags are those of the run, which is not there
        del rest[rest.index("--run") : rest.index("--run") + 2]
    module, kind, prog = command_module(name), command_class(name), f"zorn {name}"
    if hasattr(module, "settings"):
        module.settings(rest)
    elif hasattr(module, "PARTS"):
        command_flags.read(kind, rest, prog=prog, parts=module.PARTS)
    elif issubclass(kind, command_flags.Start):
        command_flags.read(kind, rest, prog=prog)
    else:
        parse(kind, rest, prog=prog)


def flags():
    """Every flag of every command."""
    found = {each for name in COMMANDS for each in _flags(command_class(name))}
    found |= {flag(name) for name in command_flags.SELECTORS.values()} | {"--objective"}
    for kind, registry in command_flags.REGISTRIES.items():
        found |= {flag(key) for name in registry for key in component_settings(kind, name)}
    return found | {flag(field.name) for group in GROUPS.values() for field in dataclasses.fields(group)}


@contextlib.contextmanager
def one_thread():
    """The models are tiny: more threads would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("page", [page for page in GUIDES if any(blocks(page, "python"))])
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))  # a page registers rules for itself
    names = {"__name__": "__main__"}
    with torch.random.fork_rng(), one_thread():
        torch.manual_seed(0)
        for line, block in blocks(page, "python"):
            exec(compile("\n" * line + block, page, "exec"), names)  # errors name the line of the page


def test_most_pages_have_python_to_run():
    assert sum(any(blocks(page, "python")) for page in GUIDES) >= 12


@pytest.mark.parametrize("page", [page for page in GUIDES if any(commands(page))])
def test_the_commands_of_a_page_are_understood(page):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for words in commands(page):
        if words[0] == "zorn":
            read(words[1:])
        elif words[0] == "make":
            assert words[1] in targets
        elif words[0].startswith("python") and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file()


@pytest.mark.parametrize("page", GUIDES)
def test_the_flags_that_a_page_names_exist(page):
    code = re.findall(r"`([^`\n]+)`", (ROOT / page).read_text())
    named = {flag for piece in code for flag in re.findall(r"(?<!\S)--[a-z][a-z-]*", piece)}
    known = flags() | FOREIGN_FLAGS
    assert {flag for flag in named if flag.replace("--no-", "--", 1) not in known} - known == set()


def test_a_command_with_a_mistake_is_refused():
    with pytest.raises(zorn.errors.ZornError, match="did you mean --hidden-size"):
        read(["train", "--hiden-size", "3"])


def test_the_command_line_page_holds_every_flag():
    page = hook("generated_pages").command_line_page()
    named = {"--objective", *map(flag, command_flags.SELECTORS.values())}
    assert [each for each in flags() - named if f"| `{each}` |" not in page] == []
    assert all(f"\n### {name}\n" in page for name in PRESETS if name != "quickstart")


@pytest.mark.parametrize("name", PRESETS)
def test_the_words_of_a_preset_make_it(name):
    words = " ".join(hook("generated_pages").preset_words(name)).split()
    config, _ = settings(words)
    run = dataclasses.replace(config.run, out=PRESETS[name].run.out)  # quickstart by words has no folder
    assert dataclasses.replace(config, run=run) == PRESETS[name]


def test_the_page_of_names_links_to_where_they_are():
    page = hook("generated_pages").names_page()
    places = re.findall(r"\[`(\w+)`\]\[([\w.]+)\.\w+\]", page)
    assert sorted(name for name, _ in places) == sorted(zorn.__all__)
    for name, room in places:
        assert getattr(importlib.import_module(room), name) is getattr(zorn, name)


@pytest.mark.parametrize("page", FINDINGS)
def test_a_finding_has_its_date_question_command_and_decision(page):
    title, _, *head = (ROOT / page).read_text().splitlines()[:8]
    assert title.startswith("# ")
    names = re.findall(r"^\| \*\*(\w+)\*\* \| .+ \|$", "\n".join(head), re.MULTILINE)
    assert names == ["Date", "Question", "Command", "Decision"]
    assert re.search(r"\| \*\*Date\*\* \| \d{4}-\d\d-\d\d \|", head[2])
    index = (ROOT / "docs/log/index.md").read_text()
    assert index.count(f"[{title[2:]}]({page.removeprefix('docs/log/')})") == 1


def test_the_readme_fits_on_a_page():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 90


def test_doctests_stand_in_fences():
    text = "Adds.\n\n>>> 1 + 1\n2\n\nExample:\n    >>> 3\n    3"
    fenced = hook("doctest_fences").fenced(text)
    assert fenced == (
        "Adds.\n\n```pycon\n>>> 1 + 1\n2\n```\n\nExample:\n    ```pycon\n    >>> 3\n    3\n    ```"
    )
