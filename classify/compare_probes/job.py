"""The library call behind ``compare-probes``: caches in, a run out.

Every choice is made, and every candidate's test logits are there, before the test's labels open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from classify.compare_probes.candidates import Candidate, Field, fit_candidates
from classify.compare_probes.differences import differences_from, find_baseline
from classify.compare_probes.figures import TestRows
from classify.compare_probes.options import CompareOptions
from classify.compare_probes.outcome import ProbeComparison, Tested
from classify.compare_probes.result import write_comparison
from classify.compare_probes.shared_rows import SharedRows, share_rows
from classify.report.run_page import write_report
from classify.results import runs
from classify.results.runs import Run, load_run
from classify.results.training import Clock
from classify.selection.sealed_test import SealedTest


def compare_probes(
    caches: Sequence[Path],
    output: Path,
    options: CompareOptions | None = None,
    *,
    overwrite: bool = False,
) -> Run:
    """Compare probes on caches of the same images; write the run ``output``, and return it.

    Raises
    ------
    HeadstartError
        See :func:`classify.compare_probes.shared_rows.share_rows`,
        :func:`classify.compare_probes.candidates.fit_candidates`,
        :func:`classify.compare_probes.differences.find_baseline` and
        :func:`classify.results.runs.check_output`. Whatever is raised, ``output`` stays as it was.
    """
    options, clock = options or CompareOptions(), Clock()
    runs.check_output(output, overwrite=overwrite)
    with clock.time("read"):
        shared = share_rows(caches, options)
    find_baseline(options.baseline, _names(shared, options), "")
    with ExitStack() as streams:
        found = fit_candidates(shared, options, streams)
        with clock.time("test"):
            comparison = _look_at_the_test(shared, found, options, output)
        with runs.new_run(output, overwrite=overwrite) as folder:
            write_comparison(folder, comparison, clock)
            write_report(folder, output.name)
    return load_run(output)


def _look_at_the_test(
    shared: SharedRows, found: Field, options: CompareOptions, output: Path
) -> ProbeComparison:
    """Fit the temperatures, and score every candidate once unless the test is left alone."""
    temperatures = {one.name: one.out_of_fold.temperature() for one in found.candidates}
    tested = None
    if shared.test is not None:
        tested = _test(shared.test, shared, found, temperatures, (options, output))
    return ProbeComparison(options, shared, found, temperatures, tested)


def _names(shared: SharedRows, options: CompareOptions) -> dict[str, str]:
    """Return the names that the candidates will have, and their probes."""
    return {
        shared.model_name(entrant, probe): probe
        for entrant in shared.entrants
        for probe in options.probes
    }


def _test(
    test: SealedTest,
    shared: SharedRows,
    found: Field,
    temperatures: Mapping[str, float | None],
    told: tuple[CompareOptions, Path],
) -> Tested:
    """Open the seal, score every candidate, and test it against the baseline."""
    options, output = told
    logits = {one.name: one.test_logits for one in found.candidates if one.test_logits is not None}
    opened = test.open(_scored(found.candidates), output)
    rows = TestRows(opened.labels, shared.test_groups, len(shared.classes))
    baseline = find_baseline(options.baseline, _names(shared, options), found.winner.name)
    predictions = {name: one.argmax(axis=1) for name, one in logits.items()}
    return Tested(
        split=test.split,
        ids=test.ids,
        rows=rows,
        figures={name: rows.measure(one, temperatures[name]) for name, one in logits.items()},
        differences=differences_from(rows.labels, rows.groups, predictions, baseline),
        scorings=opened.scorings,
    )


def _scored(candidates: Sequence[Candidate]) -> list[str]:
    """Return a name for every model that is scored on the test, those of further seeds too."""
    return [
        f"{one.name} seed +{further}" if further else one.name
        for one in candidates
        for further in range(len(one.seed_predictions) + 1)
    ]
