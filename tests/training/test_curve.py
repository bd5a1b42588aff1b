"""The picture: drawn for text and for copy, with labels that do not cover each other."""

from itertools import pairwise

import matplotlib.figure
import pytest

from zorn.training.curve import SMALLEST_GAP, draw_curve, spread


def records(bits):
    made = []
    for step in range(4):
        place = {"step": step, "seconds": step * 1.5, "forward_passes": 100 * step}
        made.append({"kind": "train", "loss": 3.0 - step / 2} | place)
        made.append(
            {"kind": "evaluation", "loss": 2.5 - step / 2, "bits_per_byte": (5 - step) if bits else None}
            | place
        )
    return made


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, so that their texts can be read."""
    figures = []
    save = matplotlib.figure.Figure.savefig

    def keep(figure, path):
        figures.append(figure)
        save(figure, path)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep)
    return figures


def test_text_has_bits_and_yardsticks(tmp_path, drawn):
    draw_curve(tmp_path / "curve.png", records(True), {"unigram": 2.02, "bigram": 1.98}, "a title")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    left, right = drawn[0].axes
    assert left.get_ylabel() == "bits per byte"
    assert [left.get_xlabel(), right.get_xlabel()] == ["seconds", "forward passes"]
    texts = list(right.texts)
    assert [text.get_text() for text in texts] == [
        *("bigram 1.98", "validation 2.00", "unigram 2.02", "training batches"),
    ]
    heights = [text.xy[1] for text in texts]
    assert all(above - below >= SMALLEST_GAP - 1e-9 for below, above in pairwise(heights))
    validation = right.lines[3]
    assert list(validation.get_xdata()) == [0, 100, 200, 300]
    assert list(validation.get_ydata()) == [5, 4, 3, 2]


def test_copy_has_nats_and_no_yardsticks(tmp_path, drawn):
    draw_curve(tmp_path / "curve.png", records(False), {}, "a title")
    left, right = drawn[0].axes
    assert left.get_ylabel() == "loss, nats per token"
    assert [text.get_text() for text in right.texts] == ["validation 1.00", "training batches"]


def test_a_run_of_one_evaluation_can_be_drawn(tmp_path):
    only = {"kind": "evaluation", "loss": 2.0, "bits_per_byte": None, "seconds": 0.0, "forward_passes": 0}
    draw_curve(tmp_path / "curve.png", [only], {}, "a title")
    assert (tmp_path / "curve.png").exists()


def test_spread_moves_only_what_stands_too_close():
    assert spread([0.1, 0.3, 0.9], 0.2) == pytest.approx([0.1, 0.3, 0.9])
    assert spread([0.5, 0.5, 0.5], 0.1) == pytest.approx([0.4, 0.5, 0.6])
    assert spread([0.1, 0.5, 0.52, 0.61], 0.1) == pytest.approx([0.1, 0.4433, 0.5433, 0.6433], abs=1e-3)
