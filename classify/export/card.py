"""The model card: what a person should know before using an exported model.

After M. Mitchell et al. (2019), "Model cards for model reporting", FAT* '19.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from classify.export.description import Description
from classify.export.parity import AnyParity
from classify.predict.run import temperature_of
from classify.results.training import title_of
from classify.statistics.intervals import wilson_interval

_N_NAMED = 50


def model_card(description: Description, parities: Sequence[AnyParity]) -> str:
    """Return the card as Markdown."""
    sections = (
        ("Data", _data(description)),
        ("Classes", _classes(description)),
        ("How good it is", _quality(description)),
        ("What is inside", _inside(description)),
        ("Checked", _checked(description, parities)),
        ("Intended use", _intended(description)),
        ("What was not tested", _NOT_TESTED),
    )
    lines = [f"# Image classifier: {len(description.classes)} classes", ""]
    lines += [_takes(description), ""]
    for title, body in sections:
        lines += [f"## {title}", "", *body, ""]
    return "\n".join(lines)


_NOT_TESTED = [
    "- Images of another origin than the data above, or of classes that are not listed: the model "
    "always names one of its classes.",
    "- Accuracy for single groups of people, places, cameras or times.",
    "- How the model bears noise or attacks.",
    "- Other runtimes and devices than the one named under Checked.",
]


def _checked(description: Description, parities: Sequence[AnyParity]) -> list[str]:
    """Say how the file was compared with the run."""
    lines = [f"- {parity.sentence()}." for parity in parities]
    if description.takes_one_size:
        lines += [
            "- These are images of training and validation: what the accuracies differ by is what "
            "conversion and resizing cost, and their level flatters.",
        ]
    return lines


def _takes(description: Description) -> str:
    """Say what goes in."""
    if not description.takes_one_size:
        return "Takes raw RGB images of any size; resizing and scaling are inside the model."
    size, mode = description.run.recipe.image_size, description.run.recipe.resize_mode
    return (
        f"Takes one RGB image of {size} x {size} pixels, uint8, which the caller resizes ({mode}); "
        "scaling is inside the model."
    )


def _probabilities(description: Description) -> str:
    """Say whether they are calibrated."""
    if description.temperature is None:
        return f"the softmax of the logits as they are; {_spared_temperature(description)}"
    return f"calibrated: the logits are divided by the temperature {description.temperature:.4g}"


def _spared_temperature(description: Description) -> str:
    """Say what temperature there is for logits that were left raw."""
    if _figures(description).get("temperature") is None:
        return "whether they are calibrated was not measured"
    temperature = temperature_of(description.run, description.model)
    return (
        f"not divided by the temperature {temperature:.4g} that training fitted to calibrate them, "
        "as --probabilities calibrated does"
    )


def _data(description: Description) -> list[str]:
    figures = description.run.metrics
    tested = f"{figures['n_test']:,} to test on"
    if _is_fitted_to_all(description):
        tested = f"{_n_refitted(description):,} of the test to refit to"
    return [
        f"- Source: {description.source}",
        f"- Images: {figures['n_train']:,} to train on, {figures['n_validation']:,} to validate "
        f"on, {tested}",
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
    if _is_fitted_to_all(description):
        return [*table, "", f"{note} {_refitted(description)}"]
    if figures["test_accuracy"] is None:
        return [*table, "", f"{note} The model was not scored on a test."]
    return [*table, _row("test", figures["test_accuracy"], run["n_test"]), "", note]


def _is_fitted_to_all(description: Description) -> bool:
    return bool(description.run.metrics.get("refit") == "all")


def _refitted(description: Description) -> str:
    """Say what a model that learned from the test too was not measured on."""
    figures = description.run.metrics
    n_rows = figures["n_train"] + figures["n_validation"] + _n_refitted(description)
    return (
        f"The model was then refitted to all {n_rows:,} rows, the test's too: the figure is from "
        "before the refit, and there is no test score."
    )


def _n_refitted(description: Description) -> int:
    """Return how many rows of the test were learned from."""
    return len(description.run.part_ids("refit"))


def _row(name: str, accuracy: float, n: int) -> str:
    low, high = wilson_interval(round(accuracy * n), n)
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
        f"- Backbone: {extractor.backbone.name}; weights: {weights.description}",
        f"- SHA-256 of the weights in canonical order: `{weights.digest}`",
        *([f"- SHA-256 of their file: `{weights.file_sha256}`"] if weights.file_sha256 else []),
        f"- Head: {title_of(description.model)}",
        f"- Probabilities: {_probabilities(description)}",
        f"- License of the weights: {description.license.sentence()}",
    ]


def _intended(description: Description) -> list[str]:
    return [
        f"To tell the classes above apart in images like those of {description.source}.",
        "",
        "Not for decisions about people without a human who checks them.",
    ]


def _figures(description: Description) -> Any:
    """Return the figures of the model that is exported."""
    return description.run.metrics[description.model]
