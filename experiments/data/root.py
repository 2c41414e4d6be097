"""Where data sets lie, and what to say when a file is not there."""

import os
from collections.abc import Iterable
from pathlib import Path

from compress.errors import DataError


def data_root(root: str | Path | None = None) -> Path:
    """The folder of all data sets: `root` if given, else `$AUTOLABEL_DATA`, else `autolabel` in the user's cache."""
    chosen = root or os.environ.get("AUTOLABEL_DATA")
    if chosen:
        return Path(chosen).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "autolabel"


def require_files(folder: Path, names: Iterable[str], dataset: str) -> list[Path]:
    """The paths of `names` in `folder`, if all are there.

    Args:
        dataset: the name that `experiments.fetching --only` knows it by.

    Raises:
        DataError: naming each missing file, where it goes, and the command that fetches it.
    """
    paths = [folder / name for name in names]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f"Data set '{dataset}' is not complete. Put these files there: {', '.join(missing)}; or run "
            f"'python -m experiments.fetching --only {dataset}'. The data root is {folder.parent} "
            f"(environment variable AUTOLABEL_DATA)."
        )
    return paths
