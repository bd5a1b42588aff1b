"""Texts, prompts and terminals in other encodings than UTF-8: one line that says so, never a traceback."""

import os
import subprocess
import sys

import pytest

from zorn.cli import main
from zorn.errors import ConfigError
from zorn.tasks import TextTask, read_source

TEXT = "où est le café noir, là où il était hier ? "


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on a French text, in its alphabet."""
    folder = tmp_path_factory.mktemp("encodings")
    (folder / "text.txt").write_text(TEXT * 40, encoding="utf-8")
    words = f"train --source {folder}/text.txt --tokenizer alphabet --steps 2 --batch 4 --length 6"
    assert main(f"{words} --hidden-size 4 --draws 2 --out {folder}/run".split()) == 0
    return folder / "run"


def generate(run, *words: str | bytes, encoding: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "zorn", "generate", run, "--length", "40", *words],
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": encoding},
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("encoding", ["cp1252", "utf-8"])
def test_what_a_terminal_cannot_show_is_replaced_and_said(run, encoding):
    done = generate(run, "--prompt", "où ¿ est ☕", encoding=encoding)
    assert done.returncode == 0, done.stderr
    written = done.stdout.decode(encoding)
    assert written.startswith("où ¿ est ☕".encode(encoding, "replace").decode(encoding))
    said = done.stderr.decode(encoding)
    assert (f"some characters are not in {encoding}" in said) == (encoding != "utf-8")
    assert "Traceback" not in said


def test_letters_that_the_text_lacks_are_named(run, capsys):
    assert main(["generate", str(run), "--prompt", "Zoé!", "--length", "3"]) == 0
    assert "the text of the run has no 'Z!'" in capsys.readouterr().err.replace("\\", "")
    assert main(["generate", str(run), "--prompt", "noir", "--length", "3"]) == 0
    assert capsys.readouterr().err == ""


def test_a_prompt_of_another_encoding_is_refused(run):
    done = generate(run, "--prompt", "caf\u00e9".encode("latin-1"), encoding="utf-8")
    assert done.returncode == 2
    assert done.stdout == b""
    said = done.stderr.decode()
    assert "a text must be Unicode" in said
    assert "UTF-8" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("word", "hint"),
    [("-x", "--prompt=-x"), ("--length", None), ("--length=3", None)],
)
def test_a_value_that_looks_like_a_flag_is_told_how_to_be_given(word, hint, capsys):
    assert main(["generate", "nowhere", "--prompt", word]) == 2
    said = capsys.readouterr().err
    assert "--prompt needs a value" in said
    assert ("one that begins with - is written" in said) == (hint is not None)
    assert hint is None or hint in said


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32"])
def test_a_text_in_two_or_four_bytes_a_letter_is_refused(tmp_path, encoding):
    path = tmp_path / "text.txt"
    path.write_bytes(("" if encoding != "utf-16-be" else "\ufeff").encode(encoding) + TEXT.encode(encoding))
    if encoding == "utf-16-be":
        assert path.read_bytes().startswith(b"\xfe\xff")
    with pytest.raises(
        ConfigError, match=rf"is {encoding[:6].upper()} .*iconv -f {encoding[:6].upper()} -t UTF-8"
    ):
        TextTask(source=path, batch=1, length=2, seed=0)


@pytest.mark.parametrize("encoding", ["utf-16le", "utf-16be", "utf-32le", "utf-32be"])
def test_latin_letters_of_two_or_four_bytes_without_a_mark_are_refused(tmp_path, encoding):
    path = tmp_path / "text.txt"
    path.write_bytes("Letters, néw lines\r\n\tand 12 € – no mark.\n".encode(encoding))
    name = encoding.upper()
    with pytest.raises(ConfigError, match=rf"is {name} .*iconv -f {name} -t UTF-8"):
        read_source(path)


@pytest.mark.parametrize("content", [bytes(100), b"\1\0\2\0\3\0" * 9, b"a\0" * 9 + b"\0\xd8", b"\0abc\0" * 9])
def test_numbers_with_zeros_are_read(tmp_path, content):
    (tmp_path / "numbers.bin").write_bytes(content)
    assert read_source(tmp_path / "numbers.bin") == content


def test_other_bytes_that_begin_like_a_mark_are_read(tmp_path):
    path = tmp_path / "noise.bin"
    path.write_bytes(b"\xff\xfe" + b"\x00\xd8" * 8)  # half a pair of surrogates: no UTF-16
    assert len(read_source(path)) == 18
