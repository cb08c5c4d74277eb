"""The command ``feature-cache``: look at caches, check them, mend them, put them together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from data_cache.console import Command, progress

CACHE = click.Path(path_type=Path)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace OUTPUT if it exists.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def feature_cache() -> None:
    """Look at feature caches, check them, mend them, and put them together."""


def command(name: str) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a command of ``feature-cache``."""
    return feature_cache.command(name, cls=Command)


@command("inspect")
@click.argument("cache", type=CACHE)
@json_option
def inspect_command(cache: Path, *, as_json: bool) -> None:
    """Show what CACHE holds: classes, rows, what made the features, and what they look like.

    \b
    Example:
      feature-cache inspect fashion.h5
    """
    from data_cache.inspection import inspect
    from data_cache.reporting import inspection_lines

    found = inspect(cache)
    _print(found, inspection_lines(found), as_json=as_json)


@command("verify")
@click.argument("cache", type=CACHE)
@json_option
@click.pass_context
def verify_command(ctx: click.Context, cache: Path, *, as_json: bool) -> None:
    """Read all of CACHE and name the shards and rows that are not what was written.

    Ends with 1 where there are any.

    \b
    Example:
      feature-cache verify fashion.h5
    """
    from data_cache.reporting import verification_lines
    from data_cache.verify import size_of, verify

    with progress("reading", size_of(cache), unit="B") as advance:
        found = verify(cache, advance)
    _print(found, verification_lines(cache, found), as_json=as_json)
    ctx.exit(1 if found.faults else 0)


@command("repair")
@click.argument("cache", type=CACHE)
@json_option
def repair_command(cache: Path, *, as_json: bool) -> None:
    """Drop the damaged shards and rows of CACHE; the next extract-features makes them again.

    \b
    Example:
      feature-cache repair fashion.h5
    """
    from data_cache.repair import repair
    from data_cache.reporting import repair_lines

    done = repair(cache)
    _print(done, repair_lines(cache, done), as_json=as_json)


@command("list")
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@json_option
def list_command(folder: Path, *, as_json: bool) -> None:
    """List the caches in DIR.

    \b
    Example:
      feature-cache list .
    """
    from data_cache.inspection import find_caches
    from data_cache.reporting import listing_lines

    found = list(find_caches(folder))
    _print(found, listing_lines(found), as_json=as_json)


@command("diff")
@click.argument("first", type=CACHE, metavar="A")
@click.argument("second", type=CACHE, metavar="B")
@json_option
def diff_command(first: Path, second: Path, *, as_json: bool) -> None:
    """Show how the cache B differs from the cache A.

    \b
    Example:
      feature-cache diff monday.h5 tuesday.h5
    """
    from data_cache.diff import diff
    from data_cache.reporting import difference_lines

    found = diff(first, second)
    _print(found, difference_lines(found), as_json=as_json)


@command("merge")
@click.argument("caches", type=CACHE, nargs=-1, required=True)
@click.option(
    "--output",
    type=CACHE,
    help="The cache to write.  [default: CACHE itself, whose finished parts are bound]",
)
@click.option("--prefix", is_flag=True, help="Start each id with the name of its cache.")
@click.option("--sharded", is_flag=True, help="Write an index of shards in place of one file.")
@overwrite_option
@json_option
@click.pass_context
def merge_command(
    ctx: click.Context,
    caches: tuple[Path, ...],
    output: Path | None,
    *,
    as_json: bool,
    **choices: bool,
) -> None:
    """Put CACHES of one recipe together; nothing is extracted.

    Of one CACHE, without --output, the parts that `extract-features --part` made are bound; where
    they left out images, that ends with 3. A last `extract-features` without --part binds as well.

    \b
    Example:
      feature-cache merge birds.h5 mammals.h5 --output animals.h5
      feature-cache merge photos.h5
    """
    from data_cache.inspection import inspect
    from data_cache.merge import merge_or_bind
    from data_cache.reporting import listing_lines

    left_out = merge_or_bind(caches, output, **choices)
    found = inspect(output or caches[0])
    _print(found, listing_lines([found]), as_json=as_json)
    ctx.exit(3 if left_out else 0)


@command("leaks")
@click.argument("cache", type=CACHE)
@click.option("--test-split", default="test", show_default=True, help="The split kept whole.")
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    help="Cosine from which rows are near-duplicates.  [default: measured for each row]",
)
@click.option("--output", type=click.Path(path_type=Path), help="CSV for every pair.")
@click.option(
    "--exclusions",
    type=click.Path(path_type=Path),
    help="CSV for the rows to leave out, as --exclude takes it.",
)
@json_option
def leaks_command(
    cache: Path,
    *,
    test_split: str,
    threshold: float | None,
    output: Path | None,
    exclusions: Path | None,
    as_json: bool,
) -> None:
    """List images that are more than once in CACHE, or nearly so in two of its splits.

    \b
    Example:
      feature-cache leaks photos.h5 --output leaks.csv --exclusions leave_out.csv
    """
    from data_cache.leaks import leaks_in

    report = leaks_in(cache, test_split=test_split, threshold=threshold)
    report.write(leaks=output, exclusions=exclusions)
    _print(report, report.summary(), as_json=as_json)


@command("export")
@click.argument("cache", type=CACHE)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="The file to write; its ending says what: .npz, .csv or .parquet (needs pyarrow).",
)
@overwrite_option
@json_option
def export_command(cache: Path, output: Path, *, overwrite: bool, as_json: bool) -> None:
    """Write all of CACHE as a file for other programs.

    \b
    Example:
      feature-cache export fashion.h5 --output fashion.npz
    """
    from data_cache.exporting import export

    n_rows = export(cache, output, overwrite=overwrite)
    _print({"output": output, "n_rows": n_rows}, [f"{output}: {n_rows:,} rows"], as_json=as_json)


@command("import")
@click.argument("features", type=click.Path(path_type=Path), metavar="X.npy")
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    required=True,
    help="CSV with a line for each row: label, and if wanted id, split, group.",
)
@click.option("--output", type=CACHE, required=True, help="The cache to write.")
@click.option("--name", default="", help="What made the features.  [default: the file's name]")
@overwrite_option
@json_option
def import_command(
    features: Path, labels: Path, output: Path, *, as_json: bool, **choices: Any
) -> None:
    """Make a cache of features from elsewhere, the (rows, features) array X.npy.

    \b
    Example:
      feature-cache import X.npy --labels y.csv --output other.h5
    """
    from data_cache.importing import import_features
    from data_cache.inspection import inspect
    from data_cache.reporting import listing_lines

    import_features(features, labels, output, **choices)
    found = inspect(output)
    _print(found, listing_lines([found]), as_json=as_json)


def _print(facts: Any, lines: Iterable[str], *, as_json: bool) -> None:
    """Print the facts as JSON, or in lines."""
    from data_cache.reporting import as_json as to_json

    click.echo(to_json(facts) if as_json else "\n".join(lines))
