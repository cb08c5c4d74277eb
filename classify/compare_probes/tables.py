"""A comparison as text and as Markdown, from what ``metrics.json`` says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from classify.results.runs import RunFolder
from classify.results.summary import align, words_on_test

_SHARES = ("accuracy", "balanced_accuracy", "macro_f1")
_SCALED = ("log_loss", "brier", "ece")
_OPTIMISTIC = "*"


def summarize_comparison(run: RunFolder) -> str:
    """Return what ``compare-probes`` prints of a run: lines without a last line end."""
    facts = run.metrics
    lines = [*align(_text_rows(facts)), "", *notes(facts)]
    if facts["conclusions"]:
        lines += ["", *facts["conclusions"]]
    return "\n".join([*lines, "", words_on_test(facts), f"Wrote {run.path}"])


def as_markdown(facts: Mapping[str, Any]) -> str:
    """Return everything, with intervals, as Markdown."""
    header, *rows = _markdown_rows(facts)
    table = [header, ["---"] * len(header), *rows]
    lines = [f"| {' | '.join(map(_escaped, row))} |" for row in table]
    listed = [f"- {sentence}" for sentence in facts["conclusions"][1:]]
    how = facts["conclusions"][:1]
    return "\n".join([*lines, "", *notes(facts), *(["", *how, "", *listed] if how else []), ""])


def notes(facts: Mapping[str, Any]) -> list[str]:
    """Return what a reader of the table must know."""
    said = [
        f"{_OPTIMISTIC} The winner, on {facts['n_train']:,} training rows out of fold and "
        f"{facts['n_validation']:,} validation rows: optimistic, for the model was chosen by it. "
        "Hyperparameters were chosen on validation rows.",
    ]
    if facts["test_split"] is None:
        return said
    drawn = "whole groups" if facts["test_groups"] else "test rows"
    said.append(
        "Intervals are of 95% and cover the sampling of test rows alone"
        + (f", drawn as {drawn}." if facts["test_groups"] else ".")
    )
    said.append(
        "Log loss, Brier score and calibration error (ECE): as they are > with the temperature, "
        "which was fitted to training rows out of fold."
    )
    said += _rows_of_the_log_loss(facts)
    if missing := facts["classes_missing_from_test"]:
        said.append(
            f"The test has no rows of {', '.join(missing)}: balanced accuracy says nothing of "
            "these classes."
        )
    return said


def _rows_of_the_log_loss(facts: Mapping[str, Any]) -> list[str]:
    """Say for which models the log loss leaves rows out, a sentence for each number of rows."""
    lacking: dict[int, list[str]] = {}
    for name in facts["models"]:
        if n_unknown := facts[name]["test_rows_of_unknown_classes"]:
            lacking.setdefault(n_unknown, []).append(name)
    n_test = facts["n_test"]
    return [
        f"Log loss is over {n_test - n_unknown:,} of {n_test:,} rows"
        + (f" for {', '.join(names)}" if len(names) < len(facts["models"]) else "")
        + ": the others are of classes without training rows, which have no probability. All other "
        "figures are over all rows."
        for n_unknown, names in lacking.items()
    ]


def _text_rows(facts: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the cells of the table that is printed."""
    is_tested, has_seeds = facts["test_split"] is not None, facts["n_seeds"] > 1
    header: tuple[str, ...] = ("model", "held out")
    if is_tested:
        header += ("test", "95% interval", *(("SD of seeds",) if has_seeds else ()))
        header += ("balanced", "macro F1", "log loss", "ECE")
    rows = [header]
    for name in facts["models"]:
        one = facts[name]
        cells: tuple[str, ...] = (name, _held_out(facts, name))
        if is_tested:
            cells += (_share(one["test_accuracy"]), _interval(one["test_accuracy_ci95"]))
            cells += (_share(one["test_accuracy_sd_of_seeds"]),) if has_seeds else ()
            cells += tuple(_share(one[f"test_{figure}"]) for figure in _SHARES[1:])
            cells += tuple(_scaled(one, figure) for figure in ("log_loss", "ece"))
        rows.append(cells)
    return rows


def _markdown_rows(facts: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the cells of the table in Markdown, the first row its header."""
    header: tuple[str, ...] = ("model", "hyperparameters", "validation", "held out")
    if facts["test_split"] is not None:
        header += ("test accuracy", "SD of seeds", "balanced accuracy", "macro F1")
        header += tuple(
            f"{name}{how}"
            for how in ("", ", calibrated")
            for name in ("log loss", "Brier score", "ECE")
        )
        header += ("temperature", "difference", "p (Holm)", "verdict")
    of = {one["model"]: one for one in facts["differences"]}
    return [header, *(_markdown_row(facts, name, of.get(name)) for name in facts["models"])]


def _markdown_row(
    facts: Mapping[str, Any], name: str, difference: Mapping[str, Any] | None
) -> tuple[str, ...]:
    """Return the cells of one model."""
    one = facts[name]
    chosen = ", ".join(f"{key} {value}" for key, value in one["hyperparameters"].items())
    cells: tuple[str, ...] = (
        *(name, chosen, f"{one['validation_accuracy']:.4f}"),
        _held_out(facts, name),
    )
    if facts["test_split"] is None:
        return cells
    cells += (_with_interval(one, "accuracy"), _share(one["test_accuracy_sd_of_seeds"]))
    cells += tuple(_with_interval(one, figure) for figure in _SHARES[1:])
    cells += tuple(
        _with_interval(one, f"{how}{figure}") for how in ("", "calibrated_") for figure in _SCALED
    )
    cells += (_share(one["temperature"]),)
    if difference is None:
        return (*cells, "", "", "baseline")
    low, high = difference["ci95"]
    seen = f"{difference['difference']:+.4f} ({low:+.4f} to {high:+.4f})"
    return (*cells, seen, f"{difference['p_value_holm']:.2g}", difference["verdict"])


def _held_out(facts: Mapping[str, Any], name: str) -> str:
    """Return a model's accuracy on rows held out; the winner's is marked."""
    mark = _OPTIMISTIC if name == facts["selected"] else ""
    return f"{facts[name]['held_out_accuracy']:.4f}{mark}"


def _share(value: float | None) -> str:
    """Return a figure as text."""
    return "-" if value is None else f"{value:.4f}"


def _interval(bounds: Sequence[float] | None) -> str:
    """Return an interval as text."""
    return "-" if bounds is None else f"{bounds[0]:.4f} to {bounds[1]:.4f}"


def _with_interval(one: Mapping[str, Any], figure: str) -> str:
    """Return a figure with its interval."""
    value = one[f"test_{figure}"]
    return "-" if value is None else f"{value:.4f} ({_interval(one[f'test_{figure}_ci95'])})"


def _scaled(one: Mapping[str, Any], figure: str) -> str:
    """Return a figure as it is, and with the temperature."""
    return " > ".join(_share(one[f"test_{how}{figure}"]) for how in ("", "calibrated_"))


def _escaped(cell: str) -> str:
    """Return a cell without what Markdown would take for the table's own lines."""
    return " ".join(cell.replace("|", "\\|").split())
