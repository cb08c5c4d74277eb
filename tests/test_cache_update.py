"""Updating a cache: what is done again, what is not, and what the user is told."""

from __future__ import annotations

import errno
import sys
import threading
from contextlib import suppress
from dataclasses import replace

import h5py
import numpy as np
import pytest
from cache_tools import (
    PROVENANCE,
    RECIPE,
    contents_of,
    fake_engine,
    manifest_of,
    update_cache,
)

from data_cache.cache import FeatureCache
from data_cache.errors import (
    CacheError,
    CacheFormatError,
    CacheLockedError,
    DataError,
    OutputError,
    RecipeMismatchError,
)
from data_cache.layout import Storage, parts_folder
from data_cache.rows import BadImage, Rows
from data_cache.update import CacheUpdate, UpdateOptions

TRAIN = {f"{label}/{k}.jpg": (f"{label}{k}", label) for label in ("ant", "bee") for k in range(6)}
TEST = {f"test/{k}.jpg": (f"test{k}", "bee") for k in range(4)}


@pytest.fixture
def cache(tmp_path):
    path = tmp_path / "c.h5"
    update_cache(path, manifest_of({"train": TRAIN, "test": TEST}))
    return path


def read(path):
    """Return {split: {id: (class, features)}}, in order."""
    with FeatureCache.open(path) as cache:
        return {
            split: {
                name.decode(): (cache.classes[label], tuple(features))
                for name, label, features in zip(
                    cache.rows(split).ids,
                    cache.rows(split).labels,
                    cache.features(split),
                    strict=True,
                )
            }
            for split in cache.split_names
        }


def expected(splits):
    """Return what :func:`read` gives for a cache of these rows."""
    return {
        split: {
            name: (label, tuple(fake_engine(contents_of([content]))[0]))
            for name, (content, label) in rows.items()
        }
        for split, rows in splits.items()
    }


def without(rows, *names):
    return {name: row for name, row in rows.items() if name not in names}


def test_a_first_run_extracts_every_image_once(tmp_path):
    copies = TRAIN | {"ant/copy.jpg": TRAIN["ant/1.jpg"]}
    plan = update_cache(tmp_path / "c.h5", manifest_of({"train": copies, "test": TEST}))
    assert (plan.n_rows, plan.n_missing, plan.n_new) == (17, 16, 17)
    assert plan.summary() == "17 new images: 16 to extract"
    assert read(tmp_path / "c.h5") == expected({"train": copies, "test": TEST})


def test_a_second_run_is_up_to_date_and_does_not_touch_the_file(cache):
    before = cache.stat()
    plan = update_cache(cache, manifest_of({"train": TRAIN, "test": TEST}))
    assert plan.is_up_to_date
    assert plan.summary() == "up to date"
    assert cache.stat().st_ino == before.st_ino


def test_only_new_and_changed_images_are_extracted_and_gone_ones_are_kept(cache):
    rows = without(TRAIN, "ant/0.jpg", "ant/1.jpg", "bee/5.jpg")
    rows |= {f"ant/new{k}.jpg": (f"new{k}", "ant") for k in range(17)}
    rows |= {"ant/2.jpg": ("another", "ant"), "ant/3.jpg": ("yet another", "ant")}
    plan = update_cache(cache, manifest_of({"train": rows, "test": TEST}))
    assert plan.outcome() == (
        "17 new images, 2 changed: 19 extracted; "
        "3 are no longer in the source: kept, `--prune` removes them"
    )
    kept = {name: TRAIN[name] for name in ("ant/0.jpg", "ant/1.jpg", "bee/5.jpg")}
    assert read(cache) == expected({"train": rows | kept, "test": TEST})


def test_prune_removes_what_is_gone(cache):
    rows = without(TRAIN, "ant/0.jpg")
    plan = update_cache(cache, manifest_of({"train": rows, "test": TEST}), prune=True)
    assert plan.outcome().endswith("1 is no longer in the source: removed")
    assert plan.n_missing == 0
    assert read(cache) == expected({"train": rows, "test": TEST})


def test_kept_rows_stay_kept_and_the_next_run_is_up_to_date(cache):
    rows = without(TRAIN, "ant/0.jpg")
    update_cache(cache, manifest_of({"train": rows, "test": TEST}))
    plan = update_cache(cache, manifest_of({"train": rows, "test": TEST}))
    assert plan.is_up_to_date
    assert plan.summary().startswith("up to date; 1 is no longer in the source")


def test_a_renamed_image_costs_no_pass_and_is_not_also_kept_under_its_old_name(cache):
    rows = without(TRAIN, "ant/0.jpg") | {"ant/renamed.jpg": TRAIN["ant/0.jpg"]}
    plan = update_cache(cache, manifest_of({"train": rows, "test": TEST}))
    assert plan.outcome() == "1 renamed, moved or copied: 0 extracted"
    assert read(cache) == expected({"train": rows, "test": TEST})


def test_an_image_that_moved_to_another_split_leaves_the_one_it_was_in(cache):
    train = without(TRAIN, "ant/0.jpg")
    test = TEST | {"ant/0.jpg": TRAIN["ant/0.jpg"]}
    plan = update_cache(cache, manifest_of({"train": train, "test": test}))
    assert plan.n_missing == 0
    assert read(cache) == expected({"train": train, "test": test})


def test_changed_labels_cost_no_pass(cache):
    rows = TRAIN | {"ant/0.jpg": ("ant0", "bee")}
    plan = update_cache(cache, manifest_of({"train": rows, "test": TEST}))
    assert plan.outcome() == "1 other label: 0 extracted"
    assert read(cache) == expected({"train": rows, "test": TEST})


def test_new_classes_are_appended_so_that_labels_keep_their_meaning(cache):
    rows = TRAIN | {"aardvark/0.jpg": ("aardvark", "aardvark")}
    manifest = manifest_of({"train": rows, "test": TEST}, ("aardvark", "ant", "bee"))
    update_cache(cache, manifest)
    with FeatureCache.open(cache) as opened:
        assert opened.classes == ("ant", "bee", "aardvark")
    assert read(cache) == expected({"train": rows, "test": TEST})


def test_append_adds_a_source_without_treating_the_rest_as_gone(cache):
    other = {"cat/0.jpg": ("cat0", "cat"), "cat/1.jpg": ("ant0", "cat")}
    for _ in range(2):
        plan = update_cache(cache, manifest_of({"train": other}, ("cat",)), append=True)
    assert plan.is_up_to_date
    assert plan.n_gone == 0
    assert read(cache) == expected({"train": TRAIN | other, "test": TEST})


def test_append_refuses_an_id_that_stands_for_another_image(cache):
    with pytest.raises(CacheError, match=r"ant/0\.jpg.*merge --prefix"):
        update_cache(cache, manifest_of({"train": {"ant/0.jpg": ("else", "ant")}}), append=True)


def test_append_refuses_an_id_that_has_another_label(cache):
    before = cache.read_bytes()
    with pytest.raises(CacheError, match=r"1 of the images.*another label \(first: ant/0\.jpg\)"):
        update_cache(cache, manifest_of({"train": {"ant/0.jpg": ("ant0", "bee")}}), append=True)
    assert cache.read_bytes() == before


def test_append_together_with_overwrite_is_refused(cache):
    before = cache.read_bytes()
    options = UpdateOptions(append=True)
    with pytest.raises(CacheError, match="choose one of them"):
        CacheUpdate.begin(cache, RECIPE, PROVENANCE, overwrite=True, options=options)
    assert cache.read_bytes() == before


@pytest.mark.parametrize("prune", [False, True])
def test_an_image_that_became_bad_in_place_is_dropped_and_not_counted_as_gone(cache, prune):
    manifest = manifest_of({"train": TRAIN | {"ant/0.jpg": ("torn", "ant")}, "test": TEST})
    bad = BadImage("train", "ant/0.jpg", "truncated")
    plan = update_cache(cache, manifest, (bad,), prune=prune)
    assert (plan.n_changed, plan.n_gone) == (1, 0)
    assert read(cache) == expected({"train": without(TRAIN, "ant/0.jpg"), "test": TEST})
    plan = update_cache(cache, manifest, prune=prune)
    assert plan.summary() == "up to date; 1 unreadable image left out as before"


@pytest.mark.parametrize("split", ["train", ""])
def test_an_image_that_could_not_be_read_again_has_no_row(cache, split):
    manifest = manifest_of({"train": without(TRAIN, "ant/0.jpg"), "test": TEST})
    unreadable = BadImage(split, "ant/0.jpg", "empty")
    with CacheUpdate.begin(cache, RECIPE, PROVENANCE) as update:
        assert update.plan(manifest, [unreadable]).n_gone == 0
        update.bind(manifest, [unreadable])
    assert read(cache) == expected({"train": without(TRAIN, "ant/0.jpg"), "test": TEST})


def test_a_copy_that_is_removed_is_gone_although_its_content_is_still_there(cache):
    copies = TRAIN | {"ant/copy.jpg": TRAIN["ant/0.jpg"]}
    update_cache(cache, manifest_of({"train": copies, "test": TEST}))
    manifest = manifest_of({"train": TRAIN, "test": TEST})
    for _ in range(2):
        plan = update_cache(cache, manifest)
        assert plan.n_gone == 1
        assert read(cache) == expected({"train": copies, "test": TEST})
    assert update_cache(cache, manifest, prune=True).summary().endswith("source: removed")
    assert read(cache) == expected({"train": TRAIN, "test": TEST})


def test_of_two_copies_one_new_name_stands_for_one(cache):
    copies = TRAIN | {"ant/copy.jpg": TRAIN["ant/0.jpg"]}
    update_cache(cache, manifest_of({"train": copies, "test": TEST}))
    rows = without(TRAIN, "ant/0.jpg") | {"ant/renamed.jpg": TRAIN["ant/0.jpg"]}
    plan = update_cache(cache, manifest_of({"train": rows, "test": TEST}))
    assert (plan.n_moved, plan.n_gone) == (1, 1)
    kept = {"ant/copy.jpg": TRAIN["ant/0.jpg"]}
    assert read(cache) == expected({"train": rows | kept, "test": TEST})


def test_of_two_copies_the_one_that_kept_its_id_is_the_one_that_moved(cache):
    copies = TRAIN | {"ant/copy.jpg": TRAIN["ant/0.jpg"]}
    update_cache(cache, manifest_of({"train": copies, "test": TEST}))
    test = TEST | {"ant/copy.jpg": TRAIN["ant/0.jpg"]}
    train = without(TRAIN, "ant/0.jpg")
    assert update_cache(cache, manifest_of({"train": train, "test": test})).n_gone == 1
    kept = {"ant/0.jpg": TRAIN["ant/0.jpg"]}
    assert read(cache) == expected({"train": train | kept, "test": test})


def test_files_that_were_numbered_anew_leave_none_under_an_old_name(tmp_path):
    path = tmp_path / "c.h5"
    update_cache(path, manifest_of({"train": {f"{k}.jpg": (str(k), "ant") for k in range(4)}}))
    rows = {f"{k}.jpg": (str(k + 1), "ant") for k in range(3)}
    assert update_cache(path, manifest_of({"train": rows})).n_gone == 0
    assert read(path) == expected({"train": rows})


def test_rows_without_groups_join_rows_with_groups_as_groups_of_one(cache):
    grouped = manifest_of({"train": {"g/0.jpg": ("g0", "ant"), "g/1.jpg": ("g1", "ant")}})
    rows = grouped.splits["train"]
    rows = Rows(rows.ids, rows.labels, rows.content, np.array([b"p", b"p"]))
    update_cache(cache, replace(grouped, splits={"train": rows}), append=True)
    with FeatureCache.open(cache) as opened:
        groups = opened.rows("train").groups
        assert groups is not None
        assert groups[-2:].tolist() == [b"p", b"p"]
        assert len(set(groups[:-2])) == len(TRAIN)


def test_bad_images_are_remembered_and_left_out_until_they_change(cache):
    rows = TRAIN | {"ant/bad.jpg": ("bad", "ant")}
    bad = BadImage("train", "ant/bad.jpg", "truncated")
    update_cache(cache, manifest_of({"train": rows, "test": TEST}), (bad,))
    plan = update_cache(cache, manifest_of({"train": rows, "test": TEST}))
    assert plan.is_up_to_date
    assert plan.known_bad == (bad,)
    assert plan.summary() == "up to date; 1 unreadable image left out as before"
    assert read(cache) == expected({"train": TRAIN, "test": TEST})
    mended = rows | {"ant/bad.jpg": ("mended", "ant")}
    assert update_cache(cache, manifest_of({"train": mended, "test": TEST})).n_missing == 1
    assert read(cache) == expected({"train": mended, "test": TEST})


def test_bad_images_are_tried_again_when_asked_for(cache):
    rows = TRAIN | {"ant/bad.jpg": ("bad", "ant")}
    bad = BadImage("train", "ant/bad.jpg", "truncated")
    update_cache(cache, manifest_of({"train": rows, "test": TEST}), (bad,))
    plan = update_cache(cache, manifest_of({"train": rows, "test": TEST}), retry_bad=True)
    assert plan.n_missing == 1
    assert read(cache) == expected({"train": rows, "test": TEST})


def test_images_that_could_not_even_be_read_leave_the_cache_up_to_date(cache):
    manifest = manifest_of({"train": TRAIN, "test": TEST})
    unreadable = BadImage("train", "ant/locked.jpg", "permission denied")
    for expect in (False, True):
        with CacheUpdate.begin(cache, RECIPE, PROVENANCE) as update:
            assert update.plan(manifest, [unreadable]).is_up_to_date is expect
            update.bind(manifest, [unreadable])


def test_another_recipe_is_refused_and_both_are_named(cache):
    other = replace(RECIPE, weights_digest="cd" * 32, image_size=160)
    before = cache.read_bytes()
    with pytest.raises(RecipeMismatchError) as caught:
        CacheUpdate.begin(cache, other, PROVENANCE)
    assert "other weights digest cdcdcdcdcdcd…, was abababababab…" in str(caught.value)
    assert "other image size 160, was 96" in str(caught.value)
    assert cache.read_bytes() == before


def test_overwrite_replaces_a_cache_of_another_recipe_only_when_the_new_one_is_bound(cache):
    other = replace(RECIPE, image_size=160)
    before = cache.read_bytes()
    manifest = manifest_of({"train": TEST})
    with CacheUpdate.begin(cache, other, PROVENANCE, overwrite=True) as update:
        assert update.plan(manifest).n_missing == len(TEST)
        content = manifest.splits["train"].content
        update.append(content, fake_engine(content))
        assert cache.read_bytes() == before
        update.bind(manifest)
    assert read(cache) == expected({"train": TEST})


def test_overwrite_refuses_a_file_that_is_no_cache(tmp_path):
    for name, content in {"a.py": b"print('mine')", "empty": b""}.items():
        (tmp_path / name).write_bytes(content)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = [1, 2]
    start(tmp_path / "c.h5", RECIPE)
    shard = next(parts_folder(tmp_path / "c.h5").iterdir())
    shard.rename(tmp_path / "shard.h5")
    for name in ("a.py", "empty", "other.h5", "shard.h5"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(CacheFormatError, match=f"{name} is not a feature cache: choose ano"):
            CacheUpdate.begin(tmp_path / name, RECIPE, PROVENANCE, overwrite=True)
        assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize("keep", [slice(600), slice(512, None), slice(None, -9)])
def test_overwrite_replaces_a_cache_that_is_damaged(cache, keep):
    whole = cache.read_bytes()
    cache.write_bytes(whole[keep] if keep.start is None else bytes(512) + whole[keep])
    with CacheUpdate.begin(cache, RECIPE, PROVENANCE, overwrite=True) as update:
        content = SMALL.splits["train"].content
        update.append(content, fake_engine(content))
        update.bind(SMALL)
    assert read(cache) == expected({"train": TEST})


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_is_refused_in_one_line(tmp_path, overwrite):
    (tmp_path / "c.h5").mkdir()
    with pytest.raises(OutputError, match=r"c\.h5 is a folder: [^\n]*$"):
        CacheUpdate.begin(tmp_path / "c.h5", RECIPE, PROVENANCE, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["c.h5"]


def test_a_place_that_takes_no_file_is_not_said_to_be_locked():
    with pytest.raises(CacheError, match=r"cannot be written \(.+\): choose another") as caught:
        CacheUpdate.begin("/proc/c.h5", RECIPE, PROVENANCE)
    assert not isinstance(caught.value, CacheLockedError)


def test_rows_of_an_interrupted_run_are_not_extracted_again(tmp_path):
    path, manifest = tmp_path / "c.h5", manifest_of({"train": TRAIN, "test": TEST})
    content = manifest.splits["train"].content
    with suppress(ZeroDivisionError), CacheUpdate.begin(path, RECIPE, PROVENANCE) as update:
        update.append(content[:7], fake_engine(content[:7]))
        raise ZeroDivisionError
    plan = update_cache(path, manifest)
    assert plan.summary() == "16 new images: 7 finished before, 9 to extract"
    assert read(path) == expected({"train": TRAIN, "test": TEST})
    assert not parts_folder(path).exists()


def test_shards_are_finished_at_so_many_rows(tmp_path):
    content = contents_of([str(k) for k in range(25)])
    options = UpdateOptions(shard_rows=10)
    with CacheUpdate.begin(tmp_path / "c.h5", RECIPE, PROVENANCE, options=options) as update:
        update.append(content[:9], fake_engine(content[:9]))
        assert not parts_folder(tmp_path / "c.h5").exists()
        update.append(content[9:], fake_engine(content[9:]))
        assert [len(shard.stored.content) for shard in update.parts.shards] == [10, 10]
    assert [len(shard.stored.content) for shard in update.parts.shards] == [10, 10, 5]


def test_shards_are_finished_after_so_long(tmp_path):
    content = contents_of(["a", "b"])
    options = UpdateOptions(shard_seconds=0.0)
    with CacheUpdate.begin(tmp_path / "c.h5", RECIPE, PROVENANCE, options=options) as update:
        update.append(content, fake_engine(content))
        assert len(update.parts.shards) == 1


def test_rows_that_no_manifest_named_are_not_thrown_away(tmp_path):
    path = tmp_path / "c.h5"
    content = contents_of(["else", "elsewhere"])
    with CacheUpdate.begin(path, RECIPE, PROVENANCE) as update:
        update.append(content, fake_engine(content))
    update_cache(path, manifest_of({"train": TRAIN}))
    assert len(list(parts_folder(path).iterdir())) == 1
    more = TRAIN | {"x/0.jpg": ("else", "ant"), "x/1.jpg": ("elsewhere", "ant")}
    assert update_cache(path, manifest_of({"train": more})).n_missing == 0
    assert not parts_folder(path).exists()


def test_a_second_writer_is_refused_while_the_first_is_alive(cache):
    with (
        CacheUpdate.begin(cache, RECIPE, PROVENANCE),
        pytest.raises(CacheLockedError, match="being written"),
    ):
        CacheUpdate.begin(cache, RECIPE, PROVENANCE)
    CacheUpdate.begin(cache, RECIPE, PROVENANCE).close()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_no_numbers_are_refused(tmp_path, value):
    features = np.ones((2, 3), np.float32)
    features[1, 2] = value
    with (
        CacheUpdate.begin(tmp_path / "c.h5", RECIPE, PROVENANCE) as update,
        pytest.raises(DataError, match=str(value)),
    ):
        update.append(contents_of(["a", "b"]), features)


def test_features_too_large_for_float16_are_refused(tmp_path):
    options = UpdateOptions(dtype="float16")
    with (
        CacheUpdate.begin(tmp_path / "c.h5", RECIPE, PROVENANCE, options=options) as update,
        pytest.raises(DataError, match="store float32"),
    ):
        update.append(contents_of(["a"]), np.full((1, 3), 1e5, np.float32))


def test_precision_that_is_there_cannot_be_changed(cache):
    options = UpdateOptions(dtype="float16")
    with pytest.raises(CacheError, match="stores float32, and float16"):
        CacheUpdate.begin(cache, RECIPE, PROVENANCE, options=options)


def test_binding_a_row_without_features_is_refused_and_leaves_the_cache(cache):
    before = cache.read_bytes()
    rows = TRAIN | {"ant/new.jpg": ("new", "ant")}
    with (
        CacheUpdate.begin(cache, RECIPE, PROVENANCE) as update,
        pytest.raises(CacheError, match="1 rows have no features"),
    ):
        update.bind(manifest_of({"train": rows, "test": TEST}))
    assert cache.read_bytes() == before


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (Rows(np.array([b"a", b"a"]), np.array([0, 0]), contents_of(["a", "b"])), "the id a"),
        (Rows(np.array([b"a"]), np.array([2]), contents_of(["a"])), "2 classes"),
        (Rows(np.array([b"a"]), np.array([-1]), contents_of(["a"])), "from -1"),
        (Rows(np.array([b"a"]), np.array([0, 1]), contents_of(["a"])), "do not match"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(tmp_path, rows, problem):
    manifest = replace(manifest_of({}), splits={"train": rows})
    with (
        CacheUpdate.begin(tmp_path / "c.h5", RECIPE, PROVENANCE) as update,
        pytest.raises(CacheError, match=problem),
    ):
        update.plan(manifest)


@pytest.mark.parametrize("name", ["classes", "bad_images", "shards", "a/b", ".", ""])
def test_names_that_no_split_can_have_are_refused(tmp_path, name):
    with (
        CacheUpdate.begin(tmp_path / "c.h5", RECIPE, PROVENANCE) as update,
        pytest.raises(CacheError, match="cannot be named"),
    ):
        update.plan(manifest_of({name: TRAIN}))


def test_a_cache_of_no_rows_is_refused_and_the_old_one_stays(cache):
    before = cache.read_bytes()
    with (
        CacheUpdate.begin(cache, RECIPE, PROVENANCE, options=UpdateOptions(prune=True)) as update,
        pytest.raises(CacheError, match="would hold no row"),
    ):
        update.bind(manifest_of({"train": {}}))
    assert cache.read_bytes() == before


OTHER = replace(RECIPE, image_size=160)
SMALL = manifest_of({"train": TEST})


def start(path, recipe, n_rows=2, **options):
    """Begin a run that is interrupted after so many rows."""
    content = SMALL.splits["train"].content[:n_rows]
    with CacheUpdate.begin(path, recipe, PROVENANCE, **options) as update:
        update.append(content, fake_engine(content))


def test_shards_of_another_recipe_are_refused_where_nothing_is_bound(tmp_path):
    start(tmp_path / "c.h5", OTHER)
    with pytest.raises(RecipeMismatchError, match=r"shard-.*other image size 96, was 160"):
        CacheUpdate.begin(tmp_path / "c.h5", RECIPE, PROVENANCE)
    start(tmp_path / "c.h5", RECIPE, overwrite=True)


def test_shards_of_an_abandoned_run_of_another_recipe_are_in_nobodys_way(cache):
    start(cache, OTHER, overwrite=True)
    more = TRAIN | {"ant/new.jpg": ("new", "ant")}
    assert update_cache(cache, manifest_of({"train": more, "test": TEST})).n_missing == 1
    assert len(list(parts_folder(cache).iterdir())) == 1, "not ours to remove"
    update_cache(cache, manifest_of({"train": more, "test": TEST}), prune=True)
    assert not parts_folder(cache).exists()


def test_overwriting_leaves_a_sharded_cache_whole_until_the_new_one_is_bound(tmp_path):
    path = tmp_path / "c.h5"
    update_cache(path, SMALL, storage=Storage(sharded=True))
    start(path, OTHER, overwrite=True)
    assert read(path) == expected({"train": TEST})
    with CacheUpdate.begin(path, OTHER, PROVENANCE, overwrite=True) as update:
        assert update.plan(SMALL).n_missing == 2
        content = SMALL.splits["train"].content[2:]
        update.append(content, fake_engine(content))
        update.bind(SMALL)
    assert read(path) == expected({"train": TEST})
    assert not parts_folder(path).exists()


def test_overwriting_with_another_precision_uses_no_shard_of_the_old_one(cache):
    start(cache, RECIPE, options=UpdateOptions(), overwrite=True)
    options = UpdateOptions(dtype="float16")
    with CacheUpdate.begin(cache, RECIPE, PROVENANCE, overwrite=True, options=options) as update:
        assert update.plan(SMALL).n_missing == 4


def test_rows_bound_in_shards_do_not_count_as_finished_by_an_interrupted_run(tmp_path):
    path = tmp_path / "c.h5"
    update_cache(path, SMALL, storage=Storage(sharded=True))
    plan = update_cache(path, manifest_of({"train": TEST | {"new.jpg": ("new", "ant")}}))
    assert plan.summary() == "1 new image: 1 to extract"


@pytest.mark.parametrize("name", ["[ab].h5", "*.h5", "c d.h5", "ca\u0301che.h5"])
def test_a_cache_can_have_any_name_and_clears_up_only_after_itself(tmp_path, name):
    strays = [tmp_path / f".{other}.tmp-0123" for other in (name, "a.h5", "b.h5")]
    for stray in strays:
        stray.touch()
    update_cache(tmp_path / name, SMALL)
    assert read(tmp_path / name) == expected({"train": TEST})
    assert [stray.exists() for stray in strays] == [False, True, True]


def test_what_a_run_gathers_in_memory_is_bounded(tmp_path):
    options = UpdateOptions(shard_rows=10)
    with CacheUpdate.begin(tmp_path / "c.h5", RECIPE, PROVENANCE, options=options) as update:
        for start_row in range(0, 100, 7):
            content = contents_of([str(start_row + k) for k in range(7)])
            update.append(content, fake_engine(content))
            assert update._pending.n_rows < 10


def test_an_image_that_changed_in_content_and_label_counts_once(cache):
    rows = TRAIN | {"ant/0.jpg": ("another", "bee")}
    plan = update_cache(cache, manifest_of({"train": rows, "test": TEST}))
    assert plan.outcome() == "1 changed: 1 extracted"


@pytest.mark.skipif(sys.platform == "win32", reason="an open file is not replaced there")
def test_an_open_reader_sees_the_cache_as_it_was_while_a_writer_replaces_it(cache):
    with FeatureCache.open(cache) as opened:
        update_cache(cache, manifest_of({"train": TEST}), prune=True)
        assert opened.n_rows("train") == len(TRAIN)
        content = manifest_of({"train": TRAIN}).splits["train"].content
        np.testing.assert_array_equal(opened.features("train"), fake_engine(content))
    assert read(cache) == expected({"train": TEST})


def test_a_second_writer_can_wait_for_the_first(cache):
    first = CacheUpdate.begin(cache, RECIPE, PROVENANCE)
    threading.Timer(0.3, first.close).start()
    options = UpdateOptions(wait_seconds=10)
    CacheUpdate.begin(cache, RECIPE, PROVENANCE, options=options).close()


def test_where_nothing_can_be_written_it_says_so(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match="cannot be written"):
        CacheUpdate.begin(tmp_path / "file" / "c.h5", RECIPE, PROVENANCE)


def test_another_trouble_of_the_disk_is_one_line_too(tmp_path, monkeypatch):
    def fail(*_args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("data_cache.shards.write_all", fail)
    with pytest.raises(CacheError, match="could not be written: Input/output error"):
        update_cache(tmp_path / "c.h5", SMALL)
