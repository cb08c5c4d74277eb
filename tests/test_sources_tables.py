"""A table of image files is read as it is written, or refused by the line that is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import write_images

from data_cache.errors import SourceError
from extract.sources import Source, SourceOptions, open_source
from extract.sources.tables import _is_several

ALL_TRAIN = SourceOptions(test_fraction=0.0)

Table = Callable[..., Path]


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """Write a table beside eight images, ``img/0000.png`` to ``img/0007.png``."""
    write_images(tmp_path / "img", 8)

    def write(*lines: str, name: str = "photos.csv", encoding: str = "utf-8") -> Path:
        path = tmp_path / name
        path.write_bytes("\n".join(lines).encode(encoding))
        return path

    return write


def rows_of(source: Source, split: str = "train") -> list[tuple[str, str]]:
    rows = source.manifest.splits[split]
    names = [source.manifest.classes[label] for label in rows.labels]
    return list(zip([one.decode() for one in rows.ids.tolist()], names, strict=True))


FOUR = [("img/0000.png", "b"), ("img/0001.png", "a"), ("img/0002.png", "b"), ("img/0003.png", "a")]


@pytest.mark.parametrize(
    ("name", "separator", "encoding"),
    [
        ("photos.csv", ",", "utf-8"),
        ("photos.csv", ",", "utf-8-sig"),
        ("photos.csv", ";", "utf-8"),
        ("photos.tsv", "\t", "utf-8"),
        ("photos.csv", "\t", "utf-8"),
    ],
)
def test_lines_are_images_in_their_order(
    name: str, separator: str, encoding: str, table: Table
) -> None:
    lines = [separator.join(cells) for cells in [("path", "label"), *FOUR]]
    source = open_source(str(table(*lines, "", name=name, encoding=encoding)), ALL_TRAIN)
    assert rows_of(source) == FOUR
    assert source.manifest.classes == ("a", "b")


def test_columns_are_found_by_name_and_others_ignored(table: Table) -> None:
    path = table("Width, Label ,PATH", "9,b,img/0000.png", '9," a ",img/0001.png')
    assert rows_of(open_source(str(path), ALL_TRAIN)) == FOUR[:2]


def test_a_column_that_is_there_twice_is_refused(table: Table) -> None:
    path = table("path,label,Label", "img/0000.png,a,b")
    with pytest.raises(SourceError, match="has the column 'label' twice"):
        open_source(str(path), ALL_TRAIN)


def test_quoted_cells_may_hold_the_separator(table: Table, tmp_path: Path) -> None:
    (tmp_path / "img/0000.png").rename(tmp_path / "img/a, b.png")
    path = table("path,label", '"img/a, b.png","cats, small"', "img/0001.png,dogs")
    source = open_source(str(path), ALL_TRAIN)
    assert rows_of(source) == [("img/a, b.png", "cats, small"), ("img/0001.png", "dogs")]


def test_splits_and_groups_are_taken_from_their_columns(table: Table) -> None:
    path = table(
        "path,label,split,group",
        "img/0000.png,a,train,p1",
        "img/0001.png,b,Validation,p2",
        "img/0002.png,a,testing,p3",
        "img/0003.png,b,train,p4",
    )
    splits = open_source(str(path)).manifest.splits
    assert {split: rows.groups.tolist() for split, rows in splits.items()} == {
        "train": [b"p1", b"p4"],
        "val": [b"p2"],
        "test": [b"p3"],
    }


def test_a_group_is_never_divided(table: Table, tmp_path: Path) -> None:
    write_images(tmp_path / "img", 200)
    lines = [f"img/{i:04d}.png,{'ab'[i % 2]},patient {i // 5}" for i in range(200)]
    options = SourceOptions(validation_fraction=0.2, test_fraction=0.3)
    source = open_source(str(table("path,label,group", *lines)), options)
    groups = [set(rows.groups.tolist()) for rows in source.manifest.splits.values()]
    assert len(groups) == 3
    assert sum(map(len, groups)) == len(set.union(*groups)) == 40


def test_groups_that_the_table_divides_are_pointed_out(table: Table) -> None:
    path = table(
        "path,label,split,group",
        "img/0000.png,a,train,p1",
        "img/0001.png,b,train,p2",
        "img/0002.png,a,test,p1",
    )
    assert (
        "1 groups are in more than one split, as the source has them"
        in open_source(str(path)).notes
    )


def test_absolute_paths_work(table: Table, tmp_path: Path) -> None:
    lines = [f"{tmp_path / one},{label}" for one, label in FOUR]
    source = open_source(str(table("path,label", *lines)), ALL_TRAIN)
    assert source.fetch("train", 0) == (tmp_path / FOUR[0][0]).read_bytes()


def test_files_that_are_not_there_are_listed_with_the_reason(table: Table) -> None:
    path = table("path,label", "img/0000.png,a", "img/gone.png,b", "img/0001.png,b")
    source = open_source(str(path), ALL_TRAIN)
    assert [(bad.id, bad.reason) for bad in source.unreadable] == [
        ("img/gone.png", "there is no such file")
    ]
    assert len(source.manifest) == 2


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["file,class", "img/0000.png,a"], r"columns file, class: a header with path,label\["),
        ([""], r"columns \(none\)"),
        (["path,label"], "no lines below the header"),
        (["path,label", "img/0000.png"], "line 2: 1 cells where the header has 2"),
        (["path,label", "img/0000.png,a", "img/0001.png,"], "line 3: no label; images without"),
        (["path,label", ",a"], "line 2: no path"),
        (["path,label,split", "img/0000.png,a,holdout"], "split 'holdout', where train, val or"),
        (["path,label,group", "img/0000.png,a,"], "no group"),
        (["path,label", "img/0000.png,a|b"], r"several labels, 'a\|b'"),
        (
            ["path,label", "img/0000.png,a", "img/0001.png,b", 'img/0002.png,"a, b"'],
            "several labels, 'a, b'",
        ),
        (
            ["path,label", "img/0000.png,a", "img/0001.png,b", "img/0000.png,b"],
            "line 4: img/0000.png again, after line 2, with label 'b' after 'a'",
        ),
        (["path,label", "x.png,a", "y.png,b"], "none of 2 files can be read; the first, .*x.png"),
        (["path,label", "img/0000.png,a", "img/0001.png,a"], "one class only"),
        (["path,label", '"img/0000.png,a'], "cannot be read as a table"),
    ],
)
def test_what_is_wrong_is_refused_by_its_line(lines: list[str], message: str, table: Table) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(str(table(*lines)))


def test_a_table_that_is_not_utf_8_is_refused(table: Table) -> None:
    path = table("path,label", "img/0000.png,größe", encoding="latin-1")
    with pytest.raises(SourceError, match="not UTF-8 text: save it as 'CSV UTF-8'"):
        open_source(str(path))


labels = st.text("ab ,;", min_size=1, max_size=5)


@settings(deadline=None)
@given(known=st.sets(labels, min_size=1, max_size=4))
def test_a_label_without_separators_is_never_taken_for_several(known: set[str]) -> None:
    for label in known:
        if not set(label) & set("|;,"):
            assert not _is_several(label, known)
        assert _is_several(f"{label}|{label}", known)


def test_a_table_and_a_folder_of_the_same_files_agree(tmp_path: Path) -> None:
    for i, name in enumerate(("train/cat", "train/dog", "test/cat", "test/dog")):
        write_images(tmp_path / "photos" / name, 3, seed=100 * i)
    folder = open_source(str(tmp_path / "photos"))
    lines = ["path,label,split"]
    for path in sorted((tmp_path / "photos").glob("*/*/*")):
        split, label, name = path.parts[-3:]
        lines.append(f"{split}/{label}/{name},{label},{split}")
    (tmp_path / "photos/all.csv").write_text("\n".join(lines))
    table = open_source(str(tmp_path / "photos/all.csv"))
    assert table.manifest.classes == folder.manifest.classes
    for split, rows in folder.manifest.splits.items():
        for column in ("ids", "labels", "content"):
            np.testing.assert_array_equal(
                getattr(table.manifest.splits[split], column), getattr(rows, column)
            )
