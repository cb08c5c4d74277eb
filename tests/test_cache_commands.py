"""``feature-cache``: every command's words, its JSON, and its exit codes."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from cache_tools import fake_engine, manifest_of, update_cache
from click.testing import CliRunner

from data_cache.cache import FeatureCache
from data_cache.cli import feature_cache
from data_cache.layout import Storage, parts_folder
from data_cache.rows import BadImage

TRAIN = {f"ant/{k}.jpg": (f"ant{k}", "ant") for k in range(5)} | {"bee/0.jpg": ("bee0", "bee")}
TEST = {"t/0.jpg": ("t0", "bee"), "t/1.jpg": ("t1", "ant")}
MANIFEST = manifest_of({"train": TRAIN, "test": TEST})
BAD = BadImage("train", "ant/torn.jpg", "truncated")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to work in that holds the cache ``a.h5``."""
    monkeypatch.chdir(tmp_path)
    update_cache(tmp_path / "a.h5", MANIFEST, (BAD,))
    return tmp_path


def run(*words, code=0):
    result = CliRunner().invoke(feature_cache, [str(word) for word in words])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def run_json(*words, code=0):
    return json.loads(run(*words, "--json", code=code).stdout)


def damage(path):
    with path.open("r+b") as stream:
        stream.seek(path.stat().st_size // 2)
        byte = stream.read(1)
        stream.seek(path.stat().st_size // 2)
        stream.write(bytes([byte[0] ^ 1]))


def test_inspect_shows_what_a_cache_holds(folder):
    shown = run("inspect", "a.h5").stdout
    for words in [
        "a.h5: 8 rows of 8 features",
        "mobilenet_v2, layer avg_pool",
        "digest abababababab",
        "headstart 0.1.0",
        "2: ant, bee",
        "train: 6 rows; features",
        "ant 5, bee 1",
        "train/ant/torn.jpg: truncated",
    ]:
        assert words in shown


def test_inspect_gives_the_same_as_json(folder):
    found = run_json("inspect", "a.h5")
    assert found["recipe"]["backbone"] == "mobilenet_v2"
    assert found["classes"] == ["ant", "bee"]
    assert found["splits"]["train"]["class_counts"] == {"ant": 5, "bee": 1}
    (bad,) = found["bad_images"]
    assert (bad["split"], bad["id"], bad["reason"]) == ("train", BAD.id, BAD.reason)
    features = fake_engine(MANIFEST.splits["train"].content).astype(np.float64)
    summary = found["splits"]["train"]["features"]
    assert summary["mean"] == pytest.approx(features.mean())
    assert summary["std"] == pytest.approx(features.std(axis=0).mean())
    assert (summary["min"], summary["max"]) == (features.min(), features.max())
    assert summary["n_constant"] == 0


def test_inspect_reads_no_features(folder, monkeypatch):
    monkeypatch.setattr(FeatureCache, "blocks", None)
    monkeypatch.setattr(FeatureCache, "take", None)
    monkeypatch.setattr("data_cache.checking.check_seal", None)
    run("inspect", "a.h5")


def test_inspect_counts_finished_shards_of_a_run_that_was_interrupted(folder):
    update_cache(folder / "b.h5", MANIFEST, storage=Storage(sharded=True))
    parts_folder(folder / "b.h5").rename(parts_folder(folder / "a.h5"))
    assert run_json("inspect", "a.h5")["n_unbound_shards"] == 1
    assert "1 finished shards of a run that was interrupted" in run("inspect", "a.h5").stdout


def test_verify_of_a_sound_cache_ends_with_0(folder):
    assert "everything is as it was written" in run("verify", "a.h5").stdout
    assert run_json("verify", "a.h5")["faults"] == []


def test_verify_of_a_damaged_cache_ends_with_1_and_says_how_to_mend_it(folder):
    damage(folder / "a.h5")
    shown = run("verify", "a.h5", code=1).stdout
    assert "a.h5 is not what was written" in shown
    assert "feature-cache repair a.h5" in shown
    assert run_json("verify", "a.h5", code=1)["faults"]


def test_repair_says_what_it_did_and_what_to_do_next(folder):
    assert "nothing is damaged" in run("repair", "a.h5").stdout
    damage(folder / "a.h5")
    assert "run the same `extract-features` again" in run("repair", "a.h5").stdout
    run("verify", "a.h5")


def test_list_shows_caches_damaged_ones_too_and_nothing_else(folder):
    update_cache(folder / "b.h5", MANIFEST)
    (folder / "b.h5").write_bytes((folder / "b.h5").read_bytes()[:700])
    (folder / "notes.txt").write_text("hello")
    lines = run("list", ".").stdout.splitlines()
    assert lines[0].startswith("a.h5: mobilenet_v2 at 96, 2 classes, train 6, test 2")
    assert lines[1].startswith("damaged: b.h5 was cut short")
    assert len(lines) == 2
    found = run_json("list", ".")
    assert found[0]["path"] == "a.h5"
    assert "cut short" in found[1]["error"]


def test_diff_of_a_copy_is_empty(folder):
    (folder / "b.h5").write_bytes((folder / "a.h5").read_bytes())
    assert run("diff", "a.h5", "b.h5").stdout == "the same rows and features\n"


def test_diff_names_every_kind_of_difference(folder):
    train = TRAIN | {
        "ant/0.jpg": ("another", "ant"),
        "ant/1.jpg": ("ant1", "cat"),
        "cat/0.jpg": ("cat0", "cat"),
    }
    del train["ant/2.jpg"]
    update_cache(folder / "b.h5", manifest_of({"train": train}, ("ant", "bee", "cat")))
    found = run_json("diff", "a.h5", "b.h5")
    assert found["recipe"] == []
    assert found["only_second_classes"] == ["cat"]
    split = found["splits"]["train"]
    assert (split["n_only_first"], split["n_only_second"]) == (1, 1)
    assert (split["n_changed"], split["n_relabeled"], split["n_compared"]) == (1, 1, 4)
    assert split["largest"] == 0
    assert found["splits"]["test"]["n_only_first"] == 2
    assert "classes only in the second: cat" in run("diff", "a.h5", "b.h5").stdout


def test_diff_measures_how_far_features_are_apart(folder):
    update_cache(folder / "b.h5", MANIFEST, storage=Storage("float16"))
    split = run_json("diff", "a.h5", "b.h5")["splits"]["train"]
    features = fake_engine(MANIFEST.splits["train"].content)
    largest = np.abs(features - features.astype(np.float16)).max()
    assert split["largest"] == pytest.approx(largest)
    assert split["largest_relative"] == pytest.approx(largest / features.max())


def test_export_npz_loads_with_numpy_alone(folder):
    run("export", "a.h5", "--output", "a.npz")
    with np.load("a.npz", allow_pickle=False) as arrays:
        assert arrays["classes"].tolist() == [b"ant", b"bee"]
        rows = MANIFEST.splits["train"]
        np.testing.assert_array_equal(arrays["train_features"], fake_engine(rows.content))
        np.testing.assert_array_equal(arrays["train_labels"], rows.labels)
        np.testing.assert_array_equal(arrays["train_ids"], rows.ids)
        assert "train_groups" not in arrays


def test_export_csv_gives_back_the_same_float32(folder):
    run("export", "a.h5", "--output", "a.csv")
    with (folder / "a.csv").open(newline="", encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    assert [line["split"] for line in lines] == ["train"] * 6 + ["test"] * 2
    assert lines[5]["label"] == "bee"
    features = np.array([[line[f"f{k:04}"] for k in range(8)] for line in lines], np.float32)
    np.testing.assert_array_equal(features[:6], fake_engine(MANIFEST.splits["train"].content))


def test_export_parquet_gives_back_the_same_rows_or_says_what_it_needs(folder):
    try:
        from pyarrow import parquet
    except ImportError:
        shown = run("export", "a.h5", "--output", "a.parquet", code=2).stderr
        assert "pip install pyarrow" in shown
        return
    run("export", "a.h5", "--output", "a.parquet")
    table = parquet.read_table(folder / "a.parquet").to_pydict()
    assert table["label"][5] == "bee"
    features = np.array(table["features"][:6], np.float32)
    np.testing.assert_array_equal(features, fake_engine(MANIFEST.splits["train"].content))


def test_export_refuses_an_ending_that_it_does_not_know_and_a_file_that_is_there(folder):
    assert (
        "a.txt ends in none of .npz, .csv, .parquet"
        in run("export", "a.h5", "--output", "a.txt", code=2).stderr
    )
    (folder / "a.csv").write_text("mine")
    assert "--overwrite" in run("export", "a.h5", "--output", "a.csv", code=2).stderr
    assert (folder / "a.csv").read_text() == "mine"
    run("export", "a.h5", "--output", "a.csv", "--overwrite")


def write_features(folder, lines="label,split\nant,train\nbee,train\nant,test\n"):
    features = np.arange(6, dtype=np.float64).reshape(3, 2)
    np.save(folder / "X.npy", features)
    (folder / "y.csv").write_text(lines)
    return features


def test_import_makes_a_cache_that_says_where_it_came_from(folder):
    features = write_features(folder)
    run("import", "X.npy", "--labels", "y.csv", "--output", "x.h5", "--name", "dino")
    with FeatureCache.open("x.h5") as cache:
        assert cache.recipe.backbone == "imported:dino"
        assert cache.provenance.engine == "imported"
        assert cache.provenance.source == "X.npy"
        assert cache.classes == ("ant", "bee")
        assert cache.rows("train").ids.tolist() == [b"000000000", b"000000001"]
        np.testing.assert_array_equal(cache.features("train"), features[:2])
        np.testing.assert_array_equal(cache.features("test"), features[2:])


def test_import_takes_ids_and_groups(folder):
    write_features(folder, "id,label,group\na,ant,p\nb,bee,p\nc,ant,q\n")
    run("import", "X.npy", "--labels", "y.csv", "--output", "x.h5")
    with FeatureCache.open("x.h5") as cache:
        rows = cache.rows("train")
    assert rows.ids.tolist() == [b"a", b"b", b"c"]
    assert rows.groups.tolist() == [b"p", b"p", b"q"]


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("name\nant\nbee\nant\n", "no column `label`"),
        ("label\nant\nbee\n", "2 lines for 3 rows"),
        ("label,split\nant,\n,\nant,\n", "line 3 of the labels has none"),
        ("label,id\nant,a\nbee,a\nant,c\n", "two rows have the id a"),
        ("label,split\nant,a/b\nbee,a/b\nant,a/b\n", "cannot be named 'a/b'"),
    ],
)
def test_import_refuses_labels_that_do_not_fit(folder, lines, problem):
    write_features(folder, lines)
    shown = run("import", "X.npy", "--labels", "y.csv", "--output", "x.h5", code=2).stderr
    assert problem in shown
    assert not (folder / "x.h5").exists()


@pytest.mark.parametrize(
    ("array", "problem"),
    [
        (np.zeros(3), "one array of (rows, features)"),
        (np.array([["a"], ["b"], ["c"]]), "numbers were expected"),
        (np.array([[1.0], [np.nan], [2.0]]), "row 1 of the features holds NaN"),
        (np.array([[{}], [{}], [{}]]), "cannot be read as a .npy file"),
    ],
)
def test_import_refuses_features_that_do_not_fit(folder, array, problem):
    write_features(folder)
    np.save(folder / "X.npy", array, allow_pickle=True)
    shown = run("import", "X.npy", "--labels", "y.csv", "--output", "x.h5", code=2).stderr
    assert problem in shown
    assert not (folder / "x.h5").exists()


def test_merge_puts_rows_and_classes_together(folder):
    more = {"cat/0.jpg": ("cat0", "cat"), "ant/0.jpg": TRAIN["ant/0.jpg"]}
    other = BadImage("val", "v/torn.jpg", "empty")
    update_cache(folder / "b.h5", manifest_of({"train": more}, ("cat", "ant")), (other,))
    shown = run("merge", "a.h5", "b.h5", "--output", "c.h5").stdout
    assert "3 classes, train 7, test 2" in shown
    with FeatureCache.open("c.h5") as cache:
        assert cache.classes == ("ant", "bee", "cat")
        rows = cache.rows("train")
        names = [cache.classes[label] for label in rows.labels]
        assert dict(zip(rows.ids.tolist(), names, strict=True))[b"cat/0.jpg"] == "cat"
        np.testing.assert_array_equal(cache.features("train"), fake_engine(rows.content))
        assert [row.image for row in cache.bad_rows()] == [BAD, other]


def test_merge_with_itself_changes_nothing_however_often(folder):
    run("merge", "a.h5", "a.h5", "--output", "c.h5")
    assert run("diff", "a.h5", "c.h5").stdout == "the same rows and features\n"


@pytest.mark.parametrize("row", [("else", "ant"), (TRAIN["ant/0.jpg"][0], "bee")])
def test_merge_refuses_ids_that_stand_for_two_things_until_they_are_told_apart(folder, row):
    update_cache(folder / "b.h5", manifest_of({"train": {"ant/0.jpg": row}}))
    shown = run("merge", "a.h5", "b.h5", "--output", "c.h5", code=2).stderr
    assert "first: ant/0.jpg" in shown
    assert "--prefix" in shown
    assert not (folder / "c.h5").exists()
    run("merge", "a.h5", "b.h5", "--output", "c.h5", "--prefix")
    with FeatureCache.open("c.h5") as cache:
        assert {b"a/ant/0.jpg", b"b/ant/0.jpg"} <= set(cache.rows("train").ids.tolist())


def test_merge_refuses_other_recipes_and_other_precisions(folder):
    write_features(folder)
    run("import", "X.npy", "--labels", "y.csv", "--output", "x.h5")
    shown = run("merge", "a.h5", "x.h5", "--output", "c.h5", code=2).stderr
    assert "backbone imported:X, was mobilenet_v2" in shown
    update_cache(folder / "b.h5", MANIFEST, storage=Storage("float16"))
    shown = run("merge", "a.h5", "b.h5", "--output", "c.h5", code=2).stderr
    assert "b.h5 stores float16 and a.h5 float32" in shown
    assert not (folder / "c.h5").exists()


def test_merge_warns_of_images_that_came_to_be_in_two_splits(folder):
    rows = {"x.jpg": TRAIN["ant/0.jpg"], "y.jpg": TRAIN["ant/1.jpg"], "z.jpg": ("z", "bee")}
    update_cache(folder / "b.h5", manifest_of({"test": rows}))
    shown = run("merge", "a.h5", "b.h5", "--output", "c.h5")
    assert shown.stderr == (
        "Warning: 2 images are in more than one split of c.h5: "
        "`feature-cache leaks c.h5` lists them\n"
    )
    assert run("merge", "a.h5", "--output", "d.h5").stderr == ""


@pytest.mark.parametrize("options", [[], ["--overwrite"]], ids=["plain", "overwrite"])
@pytest.mark.parametrize("command", ["merge a.h5", "import X.npy --labels y.csv"])
def test_foreign_file_in_the_way_is_refused_without_a_word_of_overwriting(folder, command, options):
    write_features(folder)
    (folder / "mine.py").write_text("mine")
    told = run(*command.split(), "--output", "mine.py", *options, code=2).stderr
    assert "mine.py is not a feature cache: choose another --output" in told
    assert "--overwrite" not in told
    assert (folder / "mine.py").read_text() == "mine"


@pytest.mark.parametrize("command", ["merge a.h5", "import X.npy --labels y.csv"])
def test_cache_in_the_way_is_replaced_as_the_refusal_says(folder, command):
    write_features(folder)
    update_cache(folder / "b.h5", manifest_of({"train": TEST}))
    words = [*command.split(), "--output", "b.h5"]
    assert "or replace it with --overwrite" in run(*words, code=2).stderr
    run(*words, "--overwrite")


def test_import_of_an_archive_that_was_cut_short_is_one_line(folder):
    write_features(folder)
    np.savez(folder / "X.npz", x=np.zeros((3, 2)))
    (folder / "X.npz").write_bytes((folder / "X.npz").read_bytes()[:100])
    words = ["import", "X.npz", "--labels", "y.csv", "--output", "x.h5"]
    assert "cannot be read as a .npy file" in run(*words, code=2).stderr


def test_export_makes_the_folder_that_it_writes_to(folder):
    run("export", "a.h5", "--output", "new/folder/a.csv")
    assert (folder / "new" / "folder" / "a.csv").exists()


@pytest.mark.parametrize("place", ["/proc/a.csv", "a.h5/a.csv", "folder.csv"])
def test_a_place_that_takes_no_export_is_one_line(folder, place):
    (folder / "folder.csv").mkdir()
    shown = run("export", "a.h5", "--output", place, "--overwrite", code=2)
    assert shown.stderr.startswith(f"Error: {place} ")
    assert shown.stderr.count("\n") == 1


def test_merge_can_leave_the_features_in_shards(folder):
    run("merge", "a.h5", "--output", "c.h5", "--sharded")
    assert run_json("inspect", "c.h5")["storage"]["sharded"] is True
    assert run("diff", "a.h5", "c.h5").stdout == "the same rows and features\n"


def test_merge_does_not_overwrite_unless_asked_to(folder):
    before = (folder / "a.h5").read_bytes()
    assert "--overwrite" in run("merge", "a.h5", "--output", "a.h5", code=2).stderr
    assert (folder / "a.h5").read_bytes() == before
    run("merge", "a.h5", "--output", "a.h5", "--overwrite")
    run("verify", "a.h5")


@pytest.mark.parametrize(
    "words",
    [
        ["inspect", "no.h5"],
        ["verify", "no.h5"],
        ["repair", "no.h5"],
        ["list", "no"],
        ["diff", "a.h5", "no.h5"],
        ["merge", "a.h5", "no.h5", "--output", "c.h5"],
        ["export", "no.h5", "--output", "a.csv"],
        ["import", "no.npy", "--labels", "no.csv", "--output", "c.h5"],
    ],
    ids=lambda words: words[0],
)
def test_what_is_not_there_is_one_line_and_exit_code_2(folder, words):
    before = sorted(folder.iterdir())
    shown = run(*words, code=2)
    assert shown.stdout == ""
    assert shown.stderr.startswith("Error: ")
    assert shown.stderr.count("\n") == 1
    assert sorted(folder.iterdir()) == before
