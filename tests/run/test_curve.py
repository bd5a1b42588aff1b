"""The picture: drawn for every kind of task, with a legend of each panel."""

import matplotlib.figure
import pytest

from zorn.run.curve import draw_curve


def records(bits):
    """Three steps and four evaluations on two splits."""
    made = []
    for step in range(4):
        place = {"step": step, "seconds": step * 1.5, "forward_passes": 100 * step}
        made.append({"kind": "train", "loss": 3.0 - step / 2} | place)
        figures = {
            "loss": 2.5 - step / 2,
            "bits_per_byte": (5.0 - step) if bits else None,
            "token_accuracy": step / 4,
            "sequence_accuracy": None if bits else step / 8,
            "objective": 0.75 - step / 8,
        }
        made.append({"kind": "evaluation", "split": "validation"} | figures | place)
        other = figures | {"loss": 9.0, "token_accuracy": 0.125, "sequence_accuracy": 0.0}
        if not bits:
            made.append({"kind": "evaluation", "split": "validation-longer"} | other | place)
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


def texts(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_text_has_bits_and_yardsticks(tmp_path, drawn):
    draw_curve(tmp_path / "curve.png", records(True), {"unigram": 2.02, "bigram": 1.98}, "a title")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    left, right = drawn[0].axes
    assert left.get_ylabel() == "bits per byte"
    assert [left.get_xlabel(), right.get_xlabel()] == ["seconds", "forward passes"]
    assert texts(right) == [
        *("training batches", "validation 2.00", "unigram 2.02", "bigram 1.98"),
    ]
    assert [list(line.get_ydata()) for line in right.lines[3:]] == [[2.02, 2.02], [1.98, 1.98]]
    validation = right.lines[1]
    assert list(validation.get_xdata()) == [0, 100, 200, 300]
    assert list(validation.get_ydata()) == [5, 4, 3, 2]


def test_other_tasks_have_nats_and_accuracies_of_the_first_split(tmp_path, drawn):
    draw_curve(tmp_path / "curve.png", records(False), {}, "a title")
    loss, loss_by_passes, accuracy, accuracy_by_passes = drawn[0].axes
    assert [loss.get_ylabel(), accuracy.get_ylabel()] == ["loss, nats per token", "accuracy"]
    assert [accuracy.get_xlabel(), accuracy_by_passes.get_xlabel()] == ["seconds", "forward passes"]
    assert texts(loss_by_passes) == ["training batches", "validation 1.00"]
    assert texts(accuracy_by_passes) == ["tokens 75.0%", "sequences 37.5%"]
    validation = loss_by_passes.lines[1]
    assert list(validation.get_xdata()) == [0, 100, 200, 300]
    assert list(validation.get_ydata()) == [2.5, 2.0, 1.5, 1.0]
    assert list(accuracy.lines[0].get_ydata()) == [0, 0.25, 0.5, 0.75]


def test_another_objective_has_a_panel_of_its_own(tmp_path, drawn):
    draw_curve(tmp_path / "curve.png", records(False), {}, "a title", "edit-distance")
    rows = drawn[0].axes[1::2]
    assert [axes.get_ylabel() for axes in drawn[0].axes[::2]] == [
        *("loss, nats per token", "edit-distance", "accuracy"),
    ]
    assert [texts(axes)[-1] for axes in rows] == ["validation 1.00", "validation 0.38", "sequences 37.5%"]
    training, validation = (list(line.get_ydata()) for line in rows[1].lines[:2])
    assert training == [3.0, 2.5, 2.0, 1.5]
    assert validation == [0.75, 0.625, 0.5, 0.375]
    low, high = rows[1].get_ylim()
    assert low < 0.375
    assert 1.5 < high < 3.0, "all of validation, and where training ends"


def test_a_run_of_one_evaluation_can_be_drawn(tmp_path):
    only = {"kind": "evaluation", "split": "validation", "loss": 2.0, "bits_per_byte": None}
    only |= {"token_accuracy": 0.0, "sequence_accuracy": None, "seconds": 0.0, "forward_passes": 0}
    draw_curve(tmp_path / "curve.png", [only], {}, "a title")
    assert (tmp_path / "curve.png").exists()
