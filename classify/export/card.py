"""The model card: what a person should know before using an exported model.

After M. Mitchell et al. (2019), "Model cards for model reporting", FAT* '19.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from classify import metrics
from classify.export.description import Description
from classify.export.parity import Parity
from classify.results import TITLES

_N_NAMED = 50


def model_card(description: Description, parities: Sequence[Parity]) -> str:
    """Return the card as Markdown."""
    sections = (
        ("Data", _data(description)),
        ("Classes", _classes(description)),
        ("How good it is", _quality(description)),
        ("What is inside", _inside(description)),
        ("Checked", [f"- {parity.sentence()}." for parity in parities]),
        ("Intended use", _intended(description)),
        ("What was not tested", _NOT_TESTED),
    )
    lines = [f"# Image classifier: {len(description.classes)} classes", ""]
    lines += ["Takes raw RGB images of any size; resizing and scaling are inside the model.", ""]
    for title, body in sections:
        lines += [f"## {title}", "", *body, ""]
    return "\n".join(lines)


_NOT_TESTED = [
    "- Images of another origin than the data above, or of classes that are not listed: the model "
    "always names one of its classes.",
    "- Accuracy for single groups of people, places, cameras or times.",
    "- Whether the probabilities are calibrated, and how the model bears noise or attacks.",
    "- Other runtimes and devices than the one named under Checked.",
]


def _data(description: Description) -> list[str]:
    run = description.run
    figures = run.metrics
    return [
        f"- Source: {run.provenance.source}",
        f"- Images: {figures['n_train']:,} to train on, {figures['n_validation']:,} to validate "
        f"on, {figures['n_test']:,} to test on",
        f"- Fitted to: {_figures(description)['fitted_to']}",
    ]


def _classes(description: Description) -> list[str]:
    named = [f"`{name}`" for name in description.classes[:_N_NAMED]]
    left = len(description.classes) - len(named)
    return [", ".join(named) + (f" and {left} more (all are in the metadata)" if left else "")]


def _quality(description: Description) -> list[str]:
    """Return a table of validation's and the test's accuracy, each with its interval."""
    figures, run = _figures(description), description.run.metrics
    table = [
        "| images | accuracy | 95% interval (Wilson) | n |",
        "|---|---|---|---|",
        _row("validation", figures["validation_accuracy"], run["n_validation"]),
    ]
    note = "Models were chosen on the validation images, so the figure for these flatters."
    if figures["test_accuracy"] is None:
        return [*table, "", f"{note} The model was not scored on a test."]
    return [*table, _row("test", figures["test_accuracy"], run["n_test"]), "", note]


def _row(name: str, accuracy: float, n: int) -> str:
    low, high = metrics.wilson_interval(round(accuracy * n), n)
    return f"| {name} | {accuracy:.4f} | {low:.4f} to {high:.4f} | {n:,} |"


def _inside(description: Description) -> list[str]:
    extractor = description.extractor
    preprocessing = extractor.preprocessing
    weights = extractor.weights
    size = preprocessing.image_size
    return [
        f"- Preprocessing: float32, {preprocessing.resize_mode} to {size} x {size} pixels "
        f"(bilinear, antialiased), scaled to [{preprocessing.scaling.lowest:g}, "
        f"{preprocessing.scaling.highest:g}]",
        f"- Backbone: {extractor.backbone.name}, frozen; weights: {weights.description}",
        f"- SHA-256 of the weights in canonical order: `{weights.digest}`",
        *([f"- SHA-256 of their file: `{weights.file_sha256}`"] if weights.file_sha256 else []),
        f"- Head: {TITLES[description.model]}",
        "- License of the weights: not recorded; see where they are from before passing this on",
    ]


def _intended(description: Description) -> list[str]:
    source = description.run.provenance.source
    return [
        f"To tell the classes above apart in images like those of {source}.",
        "",
        "Not for decisions about people without a human who checks them.",
    ]


def _figures(description: Description) -> Any:
    """Return the figures of the model that is exported."""
    return description.run.metrics[description.model]
