"""The files of a comparison's run."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from classify.compare_probes.candidates import Candidate
from classify.compare_probes.differences import Difference, summarize_differences
from classify.compare_probes.figures import Estimate
from classify.compare_probes.outcome import ProbeComparison, Tested
from classify.compare_probes.tables import as_markdown
from classify.results import runs
from classify.results.training import (
    CacheFacts,
    Clock,
    ScoredPart,
    TestScores,
    package_versions,
    title_of,
)
from classify.statistics import metrics
from classify.statistics.calibration import apply_temperature
from classify.statistics.scoring import Score

_TESTED = {
    "difference": "difference",
    "difference_ci95": "ci95",
    **{name: name for name in ("p_value", "p_value_holm", "detectable", "verdict")},
}
"""What ``comparison.csv`` says of a model's difference from the baseline, and where it is told."""


def write_comparison(folder: Path, comparison: ProbeComparison, clock: Clock) -> None:
    """Write every file of the run into ``folder``, the metrics last."""
    winner = comparison.field.winner
    with clock.time("write"):
        comparison.field.model.save(folder / runs.PROBE_FILES[winner.probe])
        _write_split(folder, comparison)
        _write_tuning(folder, comparison)
        if comparison.tested is not None:
            scores = _test_scores(comparison, comparison.tested)
            columns = scores.columns(comparison.shared.classes)
            runs.write_test_predictions(folder, columns)
            part = ScoredPart("test", scores.labels, scores.scores[winner.name])
            part.draw_confusion(title_of(winner.name), comparison.shared.classes, folder)
    facts = _metrics(comparison, clock)
    _write_table(folder / runs.COMPARISON_FILE, facts)
    markdown = as_markdown(facts)
    (folder / runs.COMPARISON_TEXT_FILE).write_text(markdown, encoding="utf-8")
    runs.write_metrics(folder, facts)


def _metrics(comparison: ProbeComparison, clock: Clock) -> dict[str, Any]:
    """Return what ``metrics.json`` says; a model that is called ``NAME`` has an entry ``NAME``."""
    tested, winner = comparison.tested, comparison.field.winner
    candidates = comparison.field.candidates
    seconds = {one.name: one.seconds for one in candidates}
    return {
        "kind": runs.COMPARISON_KIND,
        "selected": winner.name,
        "selected_by": f"held_out_{comparison.options.select_by}",
        "models": [one.name for one in candidates],
        **{one.name: _model_facts(comparison, one) for one in candidates},
        "baseline": tested and (tested.differences or None) and tested.differences[0].baseline,
        "differences": [_difference_facts(one) for one in tested.differences] if tested else [],
        "conclusions": _conclusions(tested),
        **_counts(comparison),
        **_without(asdict(comparison.options), "baseline"),
        **_origin(comparison),
        "seconds": clock.total,
        "seconds_by_part": {**clock.parts, **seconds},
    }


def _without(facts: dict[str, Any], name: str) -> dict[str, Any]:
    """Return facts less one of them."""
    return {key: value for key, value in facts.items() if key != name}


def _conclusions(tested: Tested | None) -> list[str]:
    """Return in sentences what the tests allow to be said."""
    if tested is None:
        return []
    return summarize_differences(tested.differences, groups=tested.rows.groups is not None)


def _model_facts(comparison: ProbeComparison, candidate: Candidate) -> dict[str, Any]:
    """Return the figures of a model."""
    recipe = candidate.entrant.facts.recipe
    validation, held_out = candidate.validation, candidate.held_out
    return {
        "cache": str(candidate.entrant.facts.path),
        "backbone": recipe.backbone,
        "image_size": recipe.image_size,
        "feature_layer": recipe.feature_layer,
        "probe": candidate.probe,
        "hyperparameters": dict(candidate.hyperparameters),
        "validation_accuracy": validation.accuracy,
        "validation_log_loss": _number(validation.log_loss),
        "held_out_accuracy": held_out.accuracy,
        "held_out_log_loss": _number(held_out.log_loss),
        "fitted_to": "train+validation",
        "temperature": comparison.temperatures[candidate.name],
        "temperature_from": "out-of-fold",
        "trainable_parameters": candidate.n_parameters,
        "seconds": candidate.seconds,
        **_test_facts(comparison, candidate),
    }


def _test_facts(comparison: ProbeComparison, candidate: Candidate) -> dict[str, Any]:
    """Return the figures on the test, each with its interval; None where it was left alone."""
    tested, logits = comparison.tested, candidate.test_logits
    if tested is None or logits is None:
        return {"test_accuracy": None, "test_accuracy_ci95": None}
    facts: dict[str, Any] = {}
    for name, found in tested.figures[candidate.name].items():
        facts |= _estimate_facts(f"test_{name}", found)
    over_seeds = comparison.seed_accuracies(candidate)
    return {
        **facts,
        "test_rows_of_unknown_classes": tested.rows.n_unknown(logits),
        "test_accuracy_of_seeds": over_seeds or None,
        "test_accuracy_sd_of_seeds": statistics.stdev(over_seeds) if over_seeds else None,
    }


def _estimate_facts(name: str, found: Estimate) -> dict[str, Any]:
    """Return a figure and its interval under their keys."""
    low, high = map(_number, found.ci95)
    interval = None if low is None or high is None else (low, high)
    return {name: _number(found.value), f"{name}_ci95": interval}


def _difference_facts(found: Difference) -> dict[str, Any]:
    """Return a difference; what could not be had is None."""
    return {
        **asdict(found),
        "detectable": _number(found.detectable),
        "verdict": found.verdict,
    }


def _number(value: float) -> float | None:
    """Return a number, None in place of NaN."""
    return value if isfinite(value) else None


def _counts(comparison: ProbeComparison) -> dict[str, Any]:
    """Return the numbers of rows and classes, and the names of classes without test rows."""
    shared, tested = comparison.shared, comparison.tested
    missing: list[str] = []
    if tested is not None:
        absent = metrics.missing_classes(tested.rows.labels, len(shared.classes))
        missing = [shared.classes[at] for at in absent]
    return {
        "n_models": len(comparison.field.candidates),
        "n_train": len(shared.division.training),
        "n_validation": len(shared.division.validation),
        "n_dropped": len(shared.division.dropped),
        "n_test": 0 if tested is None else len(tested.ids),
        "n_classes": len(shared.classes),
        "classes_missing_from_test": missing,
        "test_groups": None if shared.test_groups is None else len(np.unique(shared.test_groups)),
        "trainable_parameters": comparison.field.winner.n_parameters,
        "non_trainable_parameters": _winning_cache(comparison).provenance.backbone_parameters,
    }


def _origin(comparison: ProbeComparison) -> dict[str, Any]:
    """Return where everything came from; the recipe is that of the winner's cache."""
    tested, facts = comparison.tested, _winning_cache(comparison)
    scorings = tested and tested.scorings
    return {
        "validation_drawn": comparison.shared.division.drawn,
        "test_split": None if tested is None else tested.split,
        "test_scorings": scorings and asdict(scorings),
        "classes": facts.classes,
        "cache": str(facts.path),
        "caches": {one.name: str(one.facts.path) for one in comparison.shared.entrants},
        "streamed": {
            one.name: one.budget and one.budget.facts(one.n_features)
            for one in comparison.shared.entrants
        },
        "recipe": asdict(facts.recipe),
        "provenance": asdict(facts.provenance),
        "versions": package_versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _winning_cache(comparison: ProbeComparison) -> CacheFacts:
    """Return what is kept of the winner's cache."""
    return comparison.field.winner.entrant.facts


def _test_scores(comparison: ProbeComparison, tested: Tested) -> TestScores:
    """Return every candidate's predictions, with the confidences that its temperature gives."""
    scores = {}
    for one in comparison.field.candidates:
        if one.test_logits is None:
            continue
        scaled = apply_temperature(one.test_logits, comparison.temperatures[one.name] or 1.0)
        found = tested.figures[one.name]
        scores[one.name] = Score(
            predictions=one.test_logits.argmax(axis=1),
            confidences=metrics.softmax(scaled).max(axis=1),
            accuracy=found["accuracy"].value,
            log_loss=found["log_loss"].value,
        )
    return TestScores(tested.split, tested.ids, tested.rows.labels, scores, tested.scorings)


def _write_split(folder: Path, comparison: ProbeComparison) -> None:
    """Write who was where; the model that is kept learned from training and validation rows."""
    division, tested = comparison.shared.division, comparison.tested
    ids = {
        "train": division.training.ids.tolist(),
        "validation": division.validation.ids.tolist(),
        "test": [] if tested is None else tested.ids.tolist(),
        "dropped": division.dropped.ids.tolist(),
    }
    winner = comparison.field.winner.name
    learned = {
        part: [winner if part in ("train", "validation") else ""] * len(rows)
        for part, rows in ids.items()
    }
    runs.write_split(folder, ids, learned)


def _write_tuning(folder: Path, comparison: ProbeComparison) -> None:
    """Write all hyperparameters that were tried, and what they reached on validation rows."""
    header = ["model", "hyperparameters", "validation_accuracy", "validation_log_loss", "is_chosen"]
    rows = (
        (
            one.name,
            json.dumps(dict(point.hyperparameters)),
            point.accuracy,
            _number(point.log_loss),
            int(point == one.validation),
        )
        for one in comparison.field.candidates
        for point in one.points
    )
    runs.write_table(folder / runs.TUNING_FILE, header, rows)


def _write_table(path: Path, facts: Mapping[str, Any]) -> None:
    """Write a row for each model, everything that ``metrics.json`` says of it."""
    of = {one["model"]: one for one in facts["differences"]}
    rows = [
        {
            "model": name,
            "selected": int(name == facts["selected"]),
            **_flat(facts[name]),
            **_flat({key: of[name][told] if name in of else None for key, told in _TESTED.items()}),
        }
        for name in facts["models"]
    ]
    runs.write_table(path, [*rows[0]], (row.values() for row in rows))


def _flat(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return facts as cells of a table: intervals in two, anything nested as JSON."""
    cells: dict[str, Any] = {}
    for key, value in facts.items():
        if key.endswith("_ci95"):
            low, high = value or (None, None)
            cells |= {key.replace("_ci95", "_low"): low, key.replace("_ci95", "_high"): high}
        else:
            cells[key] = json.dumps(value) if isinstance(value, (dict, list)) else value
    return cells
