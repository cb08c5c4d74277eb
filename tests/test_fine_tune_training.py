"""The parts of fine-tuning: the loop, batch normalization, pixels, checkpoints, the decision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_backbone import TINY

from classify.fine_tune.assembly import assemble, normalizations, unfreeze
from classify.fine_tune.checkpoints import Checkpoints, Progress
from classify.fine_tune.decision import CROSS_FITTED_BELOW, Decision, DecisionPlan
from classify.fine_tune.network import LabeledRows, Network
from classify.fine_tune.pixels import Imaging, PixelInputs, Room
from classify.fine_tune.rows import SourceRows
from classify.fine_tune.training import Listener, TrainingSpec, train
from classify.heads.dense import epoch_order
from classify.statistics.intervals import paired_difference_interval
from data_cache.console import import_keras
from data_cache.errors import ParameterError, RunError, TrainingError
from extract.augment import View
from extract.backbones import BACKBONES
from extract.decode import DecodeOptions, decode
from extract.preprocess import SCALINGS, Preprocessing, preprocess
from extract.sources import ArraySource
from extract.weights import random_weights

N, WIDTH, N_CLASSES = 50, 6, 3


@dataclass(frozen=True)
class ArrayInputs:
    """Inputs that are in memory, the same in every epoch."""

    array: NDArray[np.float32]

    def batch(self, rows: NDArray[np.int64], epoch: int) -> tuple[NDArray[np.float32]]:
        del epoch
        return (self.array[rows],)


def small_network(dropout: float = 0.0) -> Network:
    """Return a trunk with batch normalization in it, and a head, from weights that never vary."""
    keras = import_keras()
    keras.utils.set_random_seed(0)
    layers = keras.layers
    inputs = layers.Input((WIDTH,))
    x = layers.BatchNormalization(name="norm")(layers.Dense(8, activation="relu")(inputs))
    trunk = keras.Model(inputs, layers.Dense(5)(x))
    trunk.get_layer("norm").trainable = False
    head = keras.Sequential([layers.Input((5,)), layers.Dropout(dropout), layers.Dense(N_CLASSES)])
    return Network(trunk, head)


@pytest.fixture(scope="module")
def rows() -> LabeledRows:
    rng = np.random.default_rng(0)
    labels = np.arange(N) % N_CLASSES
    features = rng.normal(0, 1, (N, WIDTH)) + labels[:, None] / 2
    return LabeledRows(ArrayInputs(features.astype(np.float32)), labels)


def weights_of(network: Network) -> list[NDArray]:
    return [one.numpy().copy() for one in network.trained_variables]


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_training_takes_the_steps_that_keras_takes(rows: LabeledRows, schedule: str) -> None:
    spec = TrainingSpec(1e-2, 2, 16, schedule, seed=3)  # type: ignore[arg-type]
    network, other = small_network(), small_network()
    train(network, rows, rows, spec, choose=lambda _logits: (0.0,))  # the first epoch is kept
    keras = import_keras()
    model = keras.Sequential([other.trunk, other.head])
    model.compile(
        keras.optimizers.Adam(1e-2),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    n_steps, order = 4, epoch_order(3, 0, N)
    (features,) = rows.inputs.batch(order, 0)
    for step in range(n_steps):
        if schedule == "cosine":
            model.optimizer.learning_rate = 1e-2 * (1 + np.cos(np.pi * step / (2 * n_steps))) / 2
        part = slice(16 * step, 16 * step + 16)
        model.train_on_batch(features[part], rows.labels[order][part])
    for ours, theirs in zip(weights_of(network), weights_of(other), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_the_loss_weighs_rows_and_smooths_labels_as_keras_does(rows: LabeledRows) -> None:
    weights = np.linspace(0.5, 2, N).astype(np.float32)
    spec = TrainingSpec(1e-3, 1, N, label_smoothing=0.2)
    network = small_network()
    keras = import_keras()
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2)
    (features,) = rows.inputs.batch(np.arange(N), 0)
    logits = network.head(network.trunk(features, training=False), training=False)
    expected = float(loss(np.eye(N_CLASSES)[rows.labels], logits, sample_weight=weights))
    trained = train(network, replace(rows, weights=weights), rows, spec)
    assert trained.history["loss"][0] == pytest.approx(expected, rel=1e-5)


def test_the_best_epoch_by_the_judge_is_what_the_network_has_in_the_end(rows: LabeledRows) -> None:
    network = small_network(dropout=0.3)
    figures = iter([(3.0,), (1.0,), (2.0,)])
    trained = train(
        network, rows, rows, TrainingSpec(1e-2, 3, 16), choose=lambda _logits: next(figures)
    )
    (features,) = rows.inputs.batch(np.arange(N), 0)
    logits = network.head(network.trunk(features, training=False), training=False)
    assert trained.best_epoch == 2
    np.testing.assert_allclose(np.asarray(logits), trained.logits[1], atol=1e-6)


def test_from_a_checkpoint_training_ends_with_the_same_weights_bit_for_bit(
    rows: LabeledRows, tmp_path: Path
) -> None:
    spec = TrainingSpec(1e-2, 4, 16, "cosine", seed=1)
    whole, halved = small_network(dropout=0.5), small_network(dropout=0.5)
    expected = train(whole, rows, rows, spec)
    checkpoints = Checkpoints(tmp_path / "state", {"seed": 1})

    def stop(epoch: int, _row: Any) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(halved, rows, rows, spec, checkpoints=checkpoints, listener=Listener(on_epoch=stop))
    fresh = small_network(dropout=0.5)
    resumed = train(fresh, rows, rows, spec, checkpoints=checkpoints)
    assert resumed.history == expected.history
    np.testing.assert_array_equal(resumed.logits, expected.logits)
    for ours, theirs in zip(weights_of(fresh), weights_of(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_loss_that_is_no_number_stops_and_leaves_the_checkpoint_before(
    rows: LabeledRows, tmp_path: Path
) -> None:
    class Spoiled:
        def batch(self, chosen: NDArray[np.int64], epoch: int) -> Any:
            (features,) = rows.inputs.batch(chosen, epoch)
            return (features * np.float32(np.inf if epoch == 1 else 1),)

    checkpoints = Checkpoints(tmp_path, {})
    network = small_network()
    with pytest.raises(TrainingError, match=r"epoch 2 .* of epoch 1 is kept"):
        train(
            network,
            replace(rows, inputs=Spoiled()),
            rows,
            TrainingSpec(1e-2, 3, 16),
            checkpoints=checkpoints,
        )
    assert Checkpoints(tmp_path, {}).load([]).n_epochs == 1


def test_a_checkpoint_that_points_to_another_file_is_refused(tmp_path: Path) -> None:
    for name in ("first", "second"):
        Checkpoints(tmp_path / name, {}).save(
            Progress(logits=[np.zeros((2, 2), np.float32)], best_epoch=1), []
        )
    with h5py.File(tmp_path / "first" / "checkpoint.h5", "r+") as file:
        del file["logits"]
        file["logits"] = h5py.ExternalLink(str(tmp_path / "second" / "checkpoint.h5"), "logits")
    with pytest.raises(RunError, match="/logits in it lies outside the file"):
        Checkpoints(tmp_path / "first", {}).load([])


def test_a_checkpoint_of_another_training_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, {"seed": 1, "epochs": 3})
    progress = Progress()
    progress.add({"loss": 1.0}, np.zeros((2, 3), np.float32), (1.0,), [])
    checkpoints.save(progress, [])
    with pytest.raises(RunError, match="epochs 3, not 4"):
        Checkpoints(tmp_path, {"seed": 1, "epochs": 4}).load([])
    with h5py.File(checkpoints.path) as file:
        at = file["logits"].id.get_chunk_info(0).byte_offset
    damaged = bytearray(checkpoints.path.read_bytes())
    damaged[at] ^= 1
    checkpoints.path.write_bytes(damaged)
    with pytest.raises(RunError, match="cannot be read"):
        checkpoints.load([])


@pytest.mark.parametrize("n_layers", [20, 154])
def test_no_moving_statistics_of_52_change_and_nothing_frozen(n_layers: int) -> None:
    backbone = BACKBONES["mobilenet_v2"]
    keras = import_keras()
    head = keras.Sequential([keras.layers.Input((1280,)), keras.layers.Dense(2)])
    weights = random_weights(backbone)
    network = assemble(backbone, weights, 32, head, mixed_precision=False)
    unfreeze(network.trunk, n_layers)
    before = {one.path: one.numpy() for one in network.trunk.weights}
    rng = np.random.default_rng(0)
    rows = LabeledRows(
        ArrayInputs(rng.normal(0, 1, (8, 32, 32, 3)).astype(np.float32)), np.arange(8) % 2
    )
    train(network, rows, rows, TrainingSpec(1e-2, 1, 4))
    changed = {
        one.path for one in network.trunk.weights if not np.array_equal(before[one.path], one)
    }
    norms = list(normalizations(network.trunk))
    assert len(norms) == 52
    assert not changed & {one.path for norm in norms for one in norm.weights}
    trained = network.trunk.layers[154 - n_layers : 154]
    expected = {one.path for layer in trained if layer not in norms for one in layer.weights}
    assert changed == expected


def test_more_layers_than_there_are_cannot_be_unfrozen() -> None:
    trunk = TINY.build(16)
    n_layers = len(trunk.layers) - 1  # the pooling at the end
    unfreeze(trunk, n_layers)
    with pytest.raises(ParameterError, match=f"{n_layers + 1} layers .* has {n_layers}"):
        unfreeze(trunk, n_layers + 1)


def photos(n: int) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (20, 24, 3), np.uint8) for _ in range(n)]


@pytest.fixture
def pixel_inputs() -> Callable[..., PixelInputs]:
    images = np.stack(photos(10))
    source = ArraySource("photos", {"train": (images, np.arange(10) % 2)}, ("a", "b"))
    found = SourceRows("train", source.manifest.splits["train"], np.arange(10))

    def make(room: Room, size: int, view_seed: int | None = None) -> PixelInputs:
        preprocessing = Preprocessing(SCALINGS["tf"], size)
        return PixelInputs(source, found, Imaging(DecodeOptions(), preprocessing, room, view_seed))

    return make


@pytest.mark.parametrize("size", [8, 48])  # the scaled image is the smaller one, or the larger
@pytest.mark.parametrize("n_bytes", [0, 1000, 4000, 1 << 30])
def test_pixels_are_what_extraction_sees_bit_for_bit_however_they_are_kept(
    pixel_inputs: Callable[..., PixelInputs], size: int, n_bytes: int
) -> None:
    inputs = pixel_inputs(Room(n_bytes), size)
    rows = np.array([7, 0, 3])
    pixels = [decode(photos(10)[row], DecodeOptions()) for row in rows]
    expected = preprocess(np.stack(pixels), Preprocessing(SCALINGS["tf"], size))
    for epoch in range(2):
        (found,) = inputs.batch(rows, epoch)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("size", "n_bytes"), [(8, 12 * 8**2), (48, 20 * 24 * 3)])
def test_of_decoded_and_scaled_pixels_the_smaller_are_kept(
    pixel_inputs: Callable[..., PixelInputs], size: int, n_bytes: int
) -> None:
    room = Room(10 * n_bytes)
    pixel_inputs(room, size).batch(np.arange(10), 0)
    assert not room.take(1)
    room = Room(10 * n_bytes + 1)
    pixel_inputs(room, size).batch(np.arange(10), 0)
    assert room.take(1)


def test_a_room_never_holds_more_than_it_has() -> None:
    room = Room(100)
    assert [room.take(60), room.take(60), room.take(40), room.take(1)] == [True, False, True, False]


def test_a_view_follows_from_image_epoch_and_seed_alone(
    pixel_inputs: Callable[..., PixelInputs],
) -> None:
    inputs = pixel_inputs(Room(), 16, view_seed=5)
    (first,) = inputs.batch(np.array([2, 4]), 0)
    (alone,) = pixel_inputs(Room(0), 16, view_seed=5).batch(np.array([4]), 0)
    (later,) = inputs.batch(np.array([4]), 1)
    (plain,) = inputs.batch(np.array([4]), -1)
    np.testing.assert_array_equal(first[1], alone[0])
    assert not np.array_equal(first[1], later[0])
    raw = photos(10)[4]
    (unchanged,) = pixel_inputs(Room(), 16).batch(np.array([4]), 0)
    np.testing.assert_array_equal(plain, unchanged)
    content = inputs._rows.rows.content[4].tobytes()
    view = View(5, 1).of(raw, content)
    np.testing.assert_array_equal(
        later[0], preprocess(view[None], Preprocessing(SCALINGS["tf"], 16))[0]
    )


def logits_of(predictions: NDArray[np.int64]) -> NDArray[np.float32]:
    return np.eye(N_CLASSES, dtype=np.float32)[predictions]


def test_halves_decide_on_rows_that_did_not_choose_the_epoch() -> None:
    labels = np.arange(CROSS_FITTED_BELOW) % N_CLASSES
    plan = DecisionPlan.draw(labels, None, seed=0)
    choosing = plan.fold_of == 0
    wrong = (labels + 1) % N_CLASSES
    flatters = logits_of(np.where(choosing, labels, wrong))  # right where the epoch is chosen
    fair = logits_of(np.where(choosing, wrong, labels))
    decision = plan.decide(np.stack([fair, flatters]), probe=wrong)
    assert plan.judge(flatters) < plan.judge(fair)
    assert (decision.n_folds, decision.n_rows) == (0, int((~choosing).sum()))
    assert (decision.tuned_accuracy, decision.keeps_tuned) == (0.0, False)


def test_folds_decide_with_the_epoch_that_the_other_folds_choose() -> None:
    labels = np.arange(100) % N_CLASSES
    plan = DecisionPlan.draw(labels, None, seed=0)
    wrong = (labels + 1) % N_CLASSES
    flatters = np.stack(
        [logits_of(np.where(plan.fold_of == fold, labels, wrong)) for fold in range(5)]
    )
    decision = plan.decide(flatters, probe=wrong)
    best = max(float((one.argmax(axis=1) == labels).mean()) for one in flatters)
    assert best >= 0.2
    assert (decision.n_folds, decision.n_rows) == (5, 100)
    assert decision.tuned_accuracy == 0.0


def test_fine_tuning_is_kept_only_where_the_lower_bound_is_above_zero() -> None:
    labels = np.arange(400) % N_CLASSES
    plan = DecisionPlan.draw(labels, None, seed=0)
    for n_gained, n_lost in ((8, 6), (20, 6)):
        probe, tuned = labels.copy(), labels.copy()
        probe[:n_gained] += 1
        tuned[n_gained : n_gained + n_lost] += 1
        decision = plan.decide(logits_of(tuned % N_CLASSES)[None], probe % N_CLASSES)
        low, _ = paired_difference_interval(400, n_gained, n_lost, 0.90)
        assert decision.lower_bound == pytest.approx(low)
        assert decision.difference == pytest.approx((n_gained - n_lost) / 400)
        assert decision.keeps_tuned == (low > 0)
        assert Decision.from_facts(decision.facts) == decision


def test_rows_of_a_group_never_choose_and_decide_at_once() -> None:
    labels = np.repeat(np.arange(30) % N_CLASSES, 4)
    groups = np.repeat([f"g{one}".encode() for one in range(30)], 4)
    plan = DecisionPlan.draw(labels, groups, seed=0)
    for group in np.unique(groups):
        assert len(set(plan.fold_of[groups == group].tolist())) == 1
    decision = plan.decide(logits_of(labels)[None], probe=labels)
    assert not decision.keeps_tuned
