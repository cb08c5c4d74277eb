"""The library call behind ``predict-images``: files in, a line about each out."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TextIO

from classify.predict.classifiers import UNSURE, PredictOptions, load_classifier
from classify.predict.files import Answer, Format, Wording, lines
from data_cache.console import Advance, progress, say
from data_cache.errors import EXIT_SOME_LEFT_OUT, ParameterError, SourceError
from data_cache.files import refuse_existing, whole_file
from extract.sources.unlabeled import find_images

_FORMATS: dict[str, Format] = {".csv": "csv", ".jsonl": "jsonl"}
_N_BAD_SHOWN = 10


@dataclass(frozen=True)
class OutputOptions:
    """What the user may choose about what is told.

    Attributes
    ----------
    output : the file to write; None is standard output
    format : ``auto`` goes by the suffix of the output, and is a table on standard output
    top_k, threshold : see :class:`classify.predict.files.Wording`
    overwrite : replace an output that exists
    cache : a feature cache whose features are used for the images that it holds
    """

    output: Path | None = None
    format: Literal["auto", "csv", "jsonl", "table"] = "auto"
    top_k: int = 1
    threshold: float = 0.0
    overwrite: bool = False
    cache: Path | None = None


@dataclass
class PredictReport:
    """What a prediction did, counted while it runs.

    Attributes
    ----------
    n_images : all images, bad ones included
    n_bad : those that cannot be read
    n_unsure : those below the threshold
    first_bad : the first few of the bad ones
    seconds : from the first image to the last; start-up is left out
    """

    n_images: int = 0
    n_bad: int = 0
    n_unsure: int = 0
    first_bad: list[Answer] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """0, or 3 where images could not be read."""
        return EXIT_SOME_LEFT_OUT if self.n_bad else 0

    def add(self, answer: Answer) -> None:
        """Count one image."""
        self.n_images += 1
        self.n_unsure += answer.label == UNSURE
        if answer.error:
            self.n_bad += 1
            if self.n_bad <= _N_BAD_SHOWN:
                self.first_bad.append(answer)


def predict_images(
    model: Path,
    paths: Sequence[str],
    predicting: PredictOptions | None = None,
    telling: OutputOptions | None = None,
) -> PredictReport:
    """Classify every image that ``paths`` name, and write a line for each.

    ``model`` is a run folder, or what ``export-model`` wrote.

    Raises
    ------
    OutputExistsError
        The output is there, and ``overwrite`` is false.
    ParameterError
        The format, ``top_k`` or the threshold does not fit.
    SourceError
        A path means nothing, or there are no images.
    HeadstartError
        See :func:`classify.predict.classifiers.load_classifier` and
        :meth:`classify.predict.classifiers.Classifier.known`. Whatever is raised, no output is
        written.
    """
    telling = telling or OutputOptions()
    form = _format(telling)
    if telling.output:
        refuse_existing(telling.output, overwrite=telling.overwrite)
    images = find_images(paths)
    classifier = load_classifier(model, predicting)
    wording = Wording(classifier.classes, telling.top_k, telling.threshold)
    wording.check()
    report = PredictReport()
    features = classifier.known(telling.cache) if telling.cache else nullcontext()
    with features as known, _open(telling.output) as stream:
        classifier.start()
        with closing(classifier.stream(images, known=known)) as predictions:
            answers = (wording.answer(prediction) for prediction in predictions)
            counted = _count(answers, report, shows_progress=telling.output is not None)
            stream.writelines(lines(counted, form, wording))
        if not report.n_images:
            raise SourceError(f"no images in {', '.join(paths)}")
    return report


def tell(report: PredictReport) -> None:
    """Say how it went, and which images could not be read."""
    for answer in report.first_bad:
        say(f"left out: {answer.path}: {answer.error}")
    if report.n_bad > len(report.first_bad):
        say(f"left out: {report.n_bad - len(report.first_bad):,} more")
    words = [f"{report.n_images - report.n_bad:,} images classified"]
    words += [f"{report.n_unsure:,} of them {UNSURE}"] if report.n_unsure else []
    words += [f"{report.n_bad:,} left out"] if report.n_bad else []
    say(f"{', '.join(words)} ({report.n_images / report.seconds:,.0f} images/s)")


def _format(telling: OutputOptions) -> Format:
    """Return the format that is asked for, or that the suffix of the output says."""
    if telling.format != "auto":
        return telling.format
    if telling.output is None:
        return "table"
    try:
        return _FORMATS[telling.output.suffix.lower()]
    except KeyError:
        raise ParameterError(
            f"{telling.output}: which format? a name that ends in {' or '.join(_FORMATS)} is "
            "expected, or --format"
        ) from None


@contextmanager
def _open(output: Path | None) -> Iterator[TextIO]:
    """Open what is written to: a file that appears when it is whole, or standard output."""
    if output is None:
        yield sys.stdout
        return
    with ExitStack() as stack:
        temporary = stack.enter_context(whole_file(output))
        yield stack.enter_context(temporary.open("w", encoding="utf-8", newline=""))


def _count(
    answers: Iterable[Answer], report: PredictReport, *, shows_progress: bool
) -> Iterator[Answer]:
    """Pass answers on, counted and timed; a bar shows the rate unless the answers are shown."""
    started = time.perf_counter()
    bar: AbstractContextManager[Advance] = nullcontext(_pass_over)
    if shows_progress:
        bar = progress("classifying", None)
    with bar as advance:
        for answer in answers:
            report.add(answer)
            yield answer
            advance(1)
    report.seconds = time.perf_counter() - started


def _pass_over(n_images: int) -> None:
    """Take no note of progress."""
