"""The figures: whole PNG files for any number of classes and any names, colored as counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from classify.results import plots
from classify.results.plots import draw_confusion_matrix, draw_learning_curves

NAMES = ["$x$", "two\nlines", "日本", "", "a name that is far too long to be written out"]


def figure_of(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Collect the figures that are saved."""
    seen: list[Figure] = []
    save = plots.save_figure
    monkeypatch.setattr(
        plots, "save_figure", lambda figure, path: (seen.append(figure), save(figure, path))
    )
    return seen


@pytest.mark.parametrize("n_classes", [2, 10, 26, 100])
def test_a_confusion_matrix_is_drawn_for_any_number_of_classes(
    tmp_path: Path, n_classes: int
) -> None:
    counts = np.random.default_rng(0).integers(0, 50, (n_classes, n_classes))
    names = [NAMES[code] if code < len(NAMES) else str(code) for code in range(n_classes)]
    draw_confusion_matrix(counts, names, "Title", tmp_path / "m.png")
    with Image.open(tmp_path / "m.png") as image:
        image.load()
        assert image.format == "PNG"
        assert 500 <= image.width <= 2500


def test_shades_are_shares_of_the_true_class_and_texts_are_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = figure_of(monkeypatch)
    counts = np.array([[30, 10], [0, 0]])
    draw_confusion_matrix(counts, ["a", "b"], "Title", tmp_path / "m.png")
    axes = seen[0].axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.75, 0.25], [0, 0]])
    assert [text.get_text() for text in axes.texts] == ["30", "10"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Predicted class", "True class")


def test_long_and_odd_names_are_written_plainly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = figure_of(monkeypatch)
    draw_confusion_matrix(np.eye(5, dtype=int), NAMES, "Title", tmp_path / "m.png")
    written = [label.get_text() for label in seen[0].axes[0].get_yticklabels()]
    assert written == ["$x$", "two·lines", "日本", "", "a name that is fa…"]


@pytest.mark.parametrize("n_epochs", [1, 5, 60])
def test_learning_curves_show_every_epoch_and_the_cross_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_epochs: int
) -> None:
    seen = figure_of(monkeypatch)
    names = ("loss", "accuracy", "val_loss", "val_accuracy")
    history = {name: list(np.linspace(0.9, 0.5, n_epochs)) for name in names}
    draw_learning_curves(history, 0.77, tmp_path / "c.png")
    loss, accuracy = seen[0].axes
    assert [len(line.get_xdata()) for line in loss.lines] == [n_epochs, n_epochs]
    np.testing.assert_array_equal(accuracy.lines[-1].get_ydata(), [0.77, 0.77])
    assert (tmp_path / "c.png").stat().st_size > 10_000
