"""From sources of every kind to a cache: the same image gives the same row, whatever holds it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from image_files import write_images
from numpy.typing import NDArray
from PIL import Image

from data_cache.cache import FeatureCache
from extract import extractor
from extract.extraction import ExtractionOptions, ExtractionReport, extract_features
from extract.sources import SourceOptions, open_source

OPTIONS = ExtractionOptions(weights="random", image_size=32)


class PixelEngine:
    """Features are every 31st number of the scaled image."""

    name = "pixels"
    n_features = 100
    n_concurrent = 2

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.ascontiguousarray(batch.reshape(len(batch), -1)[:, ::31])


@pytest.fixture(autouse=True)
def pixel_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extractor, "choose_engine", lambda *_args, **_kwargs: PixelEngine())


def extract(source: Path, cache: Path) -> ExtractionReport:
    return extract_features(open_source(str(source), SourceOptions()), cache, OPTIONS)


def rows_by_name(cache: Path) -> dict[str, NDArray[np.float32]]:
    with FeatureCache.open(cache) as opened:
        return {
            Path(name.decode()).name: row
            for split in opened.split_names
            for name, row in zip(opened.rows(split).ids, opened.features(split), strict=True)
        }


def sides(cache: Path) -> dict[bytes, str]:
    with FeatureCache.open(cache) as opened:
        return {name: split for split in opened.split_names for name in opened.rows(split).ids}


def test_one_image_gives_one_row_as_file_through_a_table_and_as_array(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    paths = [*write_images(folder / "a", 12, seed=1), *write_images(folder / "b", 12, seed=99)]
    lines = [f"photos/{path.parent.name}/{path.name},{path.parent.name}" for path in paths]
    (tmp_path / "photos.csv").write_text("\n".join(["path,label", *lines]) + "\n", "utf-8")
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    labels = np.repeat([0, 1], 12)
    np.savez(tmp_path / "photos.npz", x_train=pixels, y_train=labels)

    extract(folder, tmp_path / "folder.h5")
    extract(tmp_path / "photos.csv", tmp_path / "table.h5")
    array_source = open_source(str(tmp_path / "photos.npz"), SourceOptions(test_fraction=0.0))
    extract_features(array_source, tmp_path / "array.h5", OPTIONS)

    from_folder = rows_by_name(tmp_path / "folder.h5")
    from_table = rows_by_name(tmp_path / "table.h5")
    assert set(from_folder) == set(from_table) == {path.name for path in paths}
    with FeatureCache.open(tmp_path / "array.h5") as cache:
        from_array = cache.features("train")
    for position, path in enumerate(paths):
        np.testing.assert_array_equal(from_folder[path.name], from_table[path.name])
        np.testing.assert_allclose(from_array[position], from_folder[path.name], atol=1e-5)


def test_ten_images_added_to_a_thousand_cost_ten_and_no_image_changes_sides(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "photos"
    write_images(folder / "a", 500, seed=0)
    write_images(folder / "b", 500, seed=5000)
    assert extract(folder, tmp_path / "c.h5").n_extracted == 1000
    before = sides(tmp_path / "c.h5")
    write_images(folder / "a", 10, seed=9000)
    assert extract(folder, tmp_path / "c.h5").n_extracted == 10
    after = sides(tmp_path / "c.h5")
    assert len(after) == 1010
    assert {name: after[name] for name in before} == before
    assert 150 < list(before.values()).count("test") < 250
