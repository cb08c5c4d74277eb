"""The command learning-curve: nested subsets, honest scores, and what it dares to extrapolate."""

from __future__ import annotations

import csv
import html
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import cache_tools
import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from probe_data import blobs
from scipy.optimize import curve_fit

from classify.learning_curve.cli import learning_curve as command
from classify.learning_curve.curves import Curve, draws_of_folds
from classify.learning_curve.job import learning_curve
from classify.learning_curve.options import CurveOptions
from classify.learning_curve.power_law import MOST_TIMES, fit_power_law, images_needed
from classify.learning_curve.result import FILES
from classify.learning_curve.subsets import divide_subset, nested_order, subset_sizes
from classify.probes import PROBES, TriedPoint, TunedProbe
from classify.probes.ridge import RidgeProbe
from classify.selection.division import Part
from data_cache.errors import DataError, ParameterError

N_TRAIN, N_TEST = 150, 60
OPTIONS = CurveOptions(probes=("ridge", "nearest_mean"), targets=(0.7, 0.99))


def write_blobs(path: Path, **changes: Any) -> Path:
    splits = {"train": blobs(N_TRAIN, 0), "test": blobs(N_TEST, 1)}
    return cache_tools.write_cache(path, splits | changes)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def run_command(*words: Path | str) -> Result:
    return CliRunner().invoke(command, [str(word) for word in words])


def as_part(features: NDArray, labels: NDArray, groups: NDArray | None = None) -> Part:
    ids = np.array([f"{row:06d}".encode() for row in range(len(labels))])
    return Part(ids, features, labels, groups)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("learning_curve")


@pytest.fixture(scope="module")
def cache(folder: Path) -> Path:
    return write_blobs(folder / "blobs.h5")


@pytest.fixture(scope="module")
def output(cache: Path, folder: Path) -> Path:
    learning_curve(cache, folder / "curve", OPTIONS)
    return folder / "curve"


@given(st.lists(st.integers(2, 40), min_size=2, max_size=5), st.integers(0, 10))
def test_every_beginning_of_the_order_is_stratified(sizes: list[int], seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    order = nested_order(labels, (seed,))
    assert sorted(order.tolist()) == list(range(len(labels)))
    first = 2 * len(sizes)
    assert np.bincount(labels[order[:first]], minlength=len(sizes)).tolist() == [2] * len(sizes)
    shares = np.array(sizes) / len(labels)
    for n in range(first, len(labels) + 1):
        counts = np.bincount(labels[order[:n]], minlength=len(sizes))
        is_over = counts > 2
        assert (np.abs(counts - n * shares)[is_over] <= 2 * len(sizes)).all()
    assert (counts == sizes).all()


def test_draws_differ_and_a_seed_draws_the_same_again() -> None:
    labels = np.repeat(np.arange(3), 20)
    assert (nested_order(labels, (0, 1)) == nested_order(labels, (0, 1))).all()
    assert (nested_order(labels, (0, 1)) != nested_order(labels, (0, 2))).any()


def test_sizes_double_from_two_of_each_class_up_to_all() -> None:
    assert subset_sizes(np.repeat(np.arange(10), 400), 3200) == (
        *(20, 40, 80, 160, 320, 640, 1280),
        3200,
    )
    assert subset_sizes(np.array([0, 0, 0, 1]), 4) == (4,)


@given(st.lists(st.integers(2, 30), min_size=2, max_size=4), st.floats(0.05, 0.5))
def test_every_class_of_two_rows_is_fitted_to_and_chosen_on(
    sizes: list[int], fraction: float
) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    training, choosing = divide_subset(as_part(labels[:, None], labels), fraction, 0)
    assert len(training) + len(choosing) == len(labels)
    assert set(training.labels) == set(choosing.labels) == set(range(len(sizes)))


def test_single_rows_leave_nothing_to_choose_on() -> None:
    with pytest.raises(DataError, match="no class has two"):
        divide_subset(as_part(np.zeros((3, 1)), np.arange(3)), 0.2, 0)


def test_folds_are_left_out_whole_and_in_turn() -> None:
    groups = np.arange(100) // 4
    rows = as_part(np.zeros((100, 1)), np.arange(100) // 4 % 2, groups)
    seen = []
    for draw in draws_of_folds(rows, 5, 0):
        assert not set(draw.pool.groups) & set(groups[_held_out(rows, draw)])
        seen += _held_out(rows, draw)
    assert sorted(seen) == list(range(100))


def _held_out(rows: Part, draw: Any) -> list[int]:
    learned = set(draw.pool.ids.tolist())
    return [at for at, name in enumerate(rows.ids.tolist()) if name not in learned]


def test_nothing_that_is_scored_was_learned_or_chosen_on(
    cache: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tuning is replaced by one that remembers its rows; features tell rows apart."""
    seen: list[tuple[set[bytes], int, int]] = []

    def remember(training: Any, validation: Any, tuning: Any) -> TunedProbe:
        both = np.concatenate([training[0], validation[0]])
        seen.append(({row.tobytes() for row in both}, len(training[1]), len(validation[1])))
        probe = RidgeProbe().fit(*training)
        return TunedProbe(probe, {"alpha": 0.1}, (TriedPoint({"alpha": 0.1}, 0, 0, 1),))

    monkeypatch.setattr("classify.learning_curve.curves.PROBES", {**PROBES, "ridge": remember})
    options = CurveOptions(probes=("ridge",))
    result = learning_curve(cache, folder / "remembered", options)
    everything = {row.tobytes() for row in blobs(N_TRAIN, 0)[0]}
    scored = result.measured.fitted
    assert [n_fit + n_chosen for _, n_fit, n_chosen in seen] == [one.n for one in scored]
    by_draw: dict[int, list[set[bytes]]] = {}
    for (rows, _, n_chosen), one in zip(seen, scored, strict=True):
        assert n_chosen >= 3
        assert rows <= everything
        assert len(rows) + len(one.predictions) <= N_TRAIN
        by_draw.setdefault(one.draw, []).append(rows)
    for subsets in by_draw.values():
        assert all(small < large for small, large in pairwise(subsets))
    assert len({frozenset(subsets[0]) for subsets in by_draw.values()}) == 5


def test_the_tables_agree_with_each_other(output: Path) -> None:
    assert {one.name for one in output.iterdir()} == FILES
    rows, draws = read_csv(output / "learning_curve.csv"), read_csv(output / "draws.csv")
    assert [int(row["images"]) for row in rows if row["probe"] == "ridge"] == [6, 12, 24, 48, 120]
    for row in rows:
        reached = [
            float(one["accuracy"])
            for one in draws
            if (one["probe"], one["images"]) == (row["probe"], row["images"])
        ]
        assert len(reached) == int(row["draws"]) == 5
        assert float(row["accuracy"]) == pytest.approx(np.mean(reached))
        assert float(row["sd"]) == pytest.approx(np.std(reached, ddof=1))
    facts = json.loads((output / "learning_curve.json").read_text(encoding="utf-8"))
    assert facts["curves"][0]["images"] == [6, 12, 24, 48, 120]
    with Image.open(output / "learning_curve.png") as image:
        image.load()
        assert image.format == "PNG"


def test_accuracy_grows_with_the_images(output: Path) -> None:
    means = [
        float(row["accuracy"])
        for row in read_csv(output / "learning_curve.csv")
        if row["probe"] == "ridge"
    ]
    assert means[-1] > means[0] + 0.15


def test_a_probe_that_cannot_learn_from_so_few_starts_later(output: Path) -> None:
    """One row of each class to fit to: no class varies about its mean."""
    sizes = [
        int(row["images"])
        for row in read_csv(output / "learning_curve.csv")
        if row["probe"] == "nearest_mean"
    ]
    assert sizes == [12, 24, 48, 120]


def test_the_band_is_students_prediction_interval() -> None:
    draws = np.array([[0.5], [0.6], [0.55], [0.7], [0.65]])
    low, high = Curve("ridge", np.array([10]), draws).band
    # t(0.975, 4 degrees of freedom) = 2.7764, from a table.
    half = 2.7764 * np.std(draws, ddof=1) * np.sqrt(1.2)
    assert (low[0], high[0]) == pytest.approx((0.6 - half, 0.6 + half), abs=1e-4)


def test_draws_that_are_all_equal_have_no_band() -> None:
    draws = np.array([[0.7, 0.5]] * 4 + [[0.7, 0.6]])
    low, high = Curve("ridge", np.array([10, 20]), draws).band
    assert np.isnan([low[0], high[0]]).all()
    assert low[1] < 0.52 < high[1]


def test_all_images_are_drawn_in_one_way_and_count_once(folder: Path) -> None:
    """A probe without choices predicts the same from all images, in whatever order."""
    cache = write_blobs(folder / "once.h5", val=blobs(30, 2))
    options = CurveOptions(probes=("ridge",), on_test=True)
    with pytest.MonkeyPatch.context() as patch:
        probes = {**PROBES, "ridge": _choose_nothing}
        patch.setattr("classify.learning_curve.curves.PROBES", probes)
        result = learning_curve(cache, folder / "once", options)
    (record,) = map(json.loads, cache.with_name("once.h5.scorings.jsonl").read_text().splitlines())
    n_fits = len(result.measured.fitted)
    assert len(record["models"]) == n_fits - 4
    (line,) = [line for line in result.text.splitlines() if line.split()[:1] == ["180"]]
    assert line.split()[-1] == "-"
    last = read_csv(folder / "once" / "learning_curve.csv")[-1]
    assert (last["images"], last["sd"], last["band95_low"]) == ("180", "0.0", "")


def _choose_nothing(training: Any, _validation: Any, _tuning: Any) -> TunedProbe:
    probe = RidgeProbe(alpha=0.1).fit(*training)
    return TunedProbe(probe, {"alpha": 0.1}, (TriedPoint({"alpha": 0.1}, 0, 0, 1),))


def test_images_a_class_are_of_classes_that_have_images(folder: Path) -> None:
    names = ("ant", "bee", "cat", "dog", "eel")
    cache = cache_tools.write_cache(folder / "five.h5", {"train": blobs(N_TRAIN, 0)}, classes=names)
    learning_curve(cache, folder / "five", CurveOptions(probes=("ridge",)))
    first = read_csv(folder / "five" / "learning_curve.csv")[0]
    assert (first["images"], first["images_a_class"]) == ("6", "2.0")


def test_the_test_is_left_alone_unless_asked(cache: Path, output: Path) -> None:
    log = cache.with_name(f"{cache.name}.scorings.jsonl")
    assert output.exists()
    assert not log.exists()


def test_every_fit_counts_as_a_model_scored_on_the_test(folder: Path) -> None:
    cache = write_blobs(folder / "tested.h5")
    words = ("--on-test", "--probe", "ridge")
    result = run_command(cache, "--output", folder / "tested", *words)
    assert result.exit_code == 0, result.output
    log = cache.with_name("tested.h5.scorings.jsonl")
    (record,) = [json.loads(line) for line in log.read_text().splitlines()]
    all_images = [one for one in record["models"] if "on 150 images" in one]
    assert 1 <= len(all_images) <= 5
    assert len(record["models"]) == 5 * 5 + len(all_images)
    assert f"These are the 1st to {len(record['models'])}th models scored" in result.output
    sizes = [int(row["images"]) for row in read_csv(folder / "tested" / "learning_curve.csv")]
    assert sizes == [6, 12, 24, 48, 96, 150]


def test_poisoned_test_labels_change_nothing_but_the_scores(folder: Path) -> None:
    X, y = blobs(N_TEST, 1)
    found = []
    for name, labels in {"honest": y, "poisoned": (y + 1) % 3}.items():
        cache = write_blobs(folder / f"{name}.h5", test=(X, labels))
        options = CurveOptions(probes=("ridge",), on_test=True)
        found.append(learning_curve(cache, folder / name, options))
    pairs = zip(found[0].measured.fitted, found[1].measured.fitted, strict=True)
    for honest, wrong in pairs:
        assert honest.hyperparameters == wrong.hyperparameters
        np.testing.assert_array_equal(honest.predictions, wrong.predictions)
    last = [one.measured.curves[0].mean[-1] for one in found]
    assert last[0] > 0.6
    assert last[1] < 0.4


def test_validation_rows_of_the_cache_are_labeled_images_too(folder: Path) -> None:
    cache = write_blobs(folder / "val.h5", val=blobs(30, 2))
    result = learning_curve(
        cache, folder / "val", CurveOptions(probes=("nearest_mean",), on_test=True)
    )
    assert result.measured.curves[0].sizes[-1] == N_TRAIN + 30


SIZES = np.array([20, 40, 80, 160, 320, 640, 1280, 3200])


@given(st.floats(0.7, 0.99), st.floats(0.5, 3), st.floats(0.2, 0.9))
def test_a_curve_that_follows_the_law_is_found(limit: float, scale: float, exponent: float) -> None:
    truth = limit - scale * SIZES**-exponent
    law = fit_power_law(SIZES, truth[None])
    np.testing.assert_allclose(law.accuracy(SIZES)[0], truth, atol=4e-3)
    target = limit - scale * 2000**-exponent
    assert law.images_for(target)[0] == pytest.approx(2000, rel=0.1)


def test_a_noisy_curve_is_fitted_as_scipy_fits_it() -> None:
    rng = np.random.default_rng(1)
    noisy = 0.9 - 1.5 * SIZES**-0.5 + rng.normal(0, 0.01, len(SIZES))
    weights = np.arange(1, len(SIZES) + 1)

    def law(n: NDArray, a: float, b: float, c: float) -> NDArray:
        return a - b * n**-c

    limit, scale, exponent = curve_fit(
        law, SIZES.astype(float), noisy, p0=(0.9, 1, 0.5), sigma=1 / np.sqrt(weights)
    )[0]
    found = fit_power_law(SIZES, noisy[None])
    assert found.limit[0] == pytest.approx(limit, abs=2e-3)
    np.testing.assert_allclose(
        found.accuracy(SIZES)[0], law(SIZES, limit, scale, exponent), atol=1e-3
    )


def test_the_law_never_promises_more_than_everything_or_falls() -> None:
    straight = np.log(SIZES) / np.log(SIZES[-1]) * 0.99
    falling = 0.9 - 0.0001 * SIZES
    law = fit_power_law(SIZES, np.stack([straight, falling]))
    assert law.limit.max() <= 1
    assert law.scale.min() >= 0
    assert law.scale[1] == 0


def noisy_draws(n_draws: int, noise: float) -> NDArray[np.float64]:
    rng = np.random.default_rng(0)
    truth = 0.9 - 1.5 * SIZES**-0.5
    return truth + rng.normal(0, noise, (n_draws, len(SIZES)))


def test_images_for_a_target_have_a_band_that_narrows_with_less_noise() -> None:
    needed = [images_needed(SIZES, noisy_draws(5, noise), 0.87) for noise in (0.01, 0.001)]
    true = (1.5 / 0.03) ** 2  # 2500
    for one in needed:
        assert one.low is not None
        assert one.high is not None
        assert one.n is not None
        assert one.low <= one.n <= one.high
        assert one.low <= true * 1.02
        assert one.high >= true * 0.98
    widths = [(one.high or 0) - (one.low or 0) for one in needed]
    assert widths[1] < widths[0]


def test_what_lies_far_beyond_is_not_told() -> None:
    accuracies = noisy_draws(5, 0.002)
    assert images_needed(SIZES, accuracies, 0.95).n is None
    assert images_needed(SIZES, accuracies, 0.897).n is None  # 250,000 images by the law
    most = MOST_TIMES * SIZES[-1]
    near = images_needed(SIZES, accuracies, 0.885)  # 10,000
    assert near.n is not None
    assert SIZES[-1] < near.n < most
    with pytest.raises(ValueError, match="3 sizes"):
        images_needed(SIZES[:3], accuracies[:, :3], 0.8)


def test_sentences_say_what_was_reached_and_what_cannot_be_told(output: Path, cache: Path) -> None:
    result = run_command(
        *(cache, "--output", output, "--overwrite", "--probe", "ridge", "--probe", "nearest_mean"),
        *("--target", "0.7", "--target", "0.99"),
    )
    assert result.exit_code == 0, result.output
    assert re.search(r"ridge: accuracy 0.7 takes about \d+ images \(95% band \d", result.output)
    assert "ridge: accuracy 0.99 is beyond what these can tell: more than 1,200" in result.output
    assert (
        result.output.splitlines()[0].split()
        == [*("images", "a", "class", "ridge", "95%", "band", "nearest_mean", "95%", "band")]
        or "Warning" in result.output
    )


def test_the_page_shows_every_point_and_says_what_is_printed(folder: Path, cache: Path) -> None:
    output = folder / "<i>page"
    options = CurveOptions(probes=("ridge",), targets=(0.7,))
    result = learning_curve(cache, output, options)
    text = (output / "report.html").read_text(encoding="utf-8")
    assert "<i>page" not in text
    assert "Learning curve: &lt;i&gt;page" in text
    said = html.unescape(text)
    for sentence in (result.how(), *result.sentences()):
        assert f">{sentence}<" in said
    (curve,) = result.measured.curves
    for n, mean in zip(curve.sizes, curve.mean, strict=True):
        assert f"<title>ridge: {n}, {mean:.4g}</title>" in said
        assert f"{mean:.4f} (" in said
    assert text.count("<polygon") == 1
    assert "target 0.7" in said
    (chosen,) = [one for one in result.measured.fitted if (one.n, one.draw) == (120, 4)]
    assert f'{{"alpha":<wbr> {chosen.hyperparameters["alpha"]}}}' in said


def test_bands_of_many_curves_are_left_to_the_table(folder: Path, cache: Path) -> None:
    probes = ("ridge", "nearest_mean", "neighbors", "discriminant")
    learning_curve(cache, folder / "many", CurveOptions(probes=probes))
    text = (folder / "many" / "report.html").read_text(encoding="utf-8")
    assert "<polygon" not in text
    assert "the bands are in the table" in text


def test_only_learning_curves_are_replaced_and_only_when_asked(
    cache: Path, output: Path, tmp_path: Path
) -> None:
    assert "exists already" in run_command(cache, "--output", output).output
    (tmp_path / "thesis.tex").touch()
    result = run_command(cache, "--output", tmp_path, "--overwrite")
    assert (result.exit_code, (tmp_path / "thesis.tex").exists()) == (2, True)
    assert "thesis.tex" in result.output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probes": ("forest",)}, "no probe 'forest'"),
        ({"n_draws": 4}, "expected 5 or more"),
        ({"targets": (1.5,)}, "not within"),
        ({"validation_split": 1.0}, "validation_split"),
    ],
)
def test_options_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        CurveOptions(**changes)


def test_a_cache_without_a_test_cannot_be_scored_on_it(folder: Path) -> None:
    cache = cache_tools.write_cache(folder / "untested.h5", {"train": blobs(N_TRAIN, 0)})
    result = run_command(cache, "--output", folder / "untested", "--on-test")
    assert result.exit_code == 2
    assert "no test split" in result.output
