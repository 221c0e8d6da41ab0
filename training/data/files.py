"""Files of a folder and its subfolders, through linked folders as well."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from bya_core.errors import InputError

log = logging.getLogger(__name__)
SAMPLED = 4096  # bytes at each end of a file
MAX_NAMED = 5  # skipped entries in a message


def list_files(
    folder: Path | str,
    extension: str = "",
    skipped: list[str] | None = None,
    ignored: Sequence[str] = ("cache",),
    broken_links: bool = False,
) -> list[Path]:
    """Sorted files with an extension in a folder and its subfolders.

    Linked folders are followed. A folder or file that several links reach is listed once. Hidden entries are skipped.

    Args:
        folder: the folder; without it the list is empty.
        extension: end of the file names, such as ".tar"; "" = all.
        skipped: receives each skipped entry with the reason. None = warn about them.
        ignored: names of subfolders to leave out. Only files directly inside are counted: a feature cache can have
            millions below.
        broken_links: list links without a target too, instead of skipping them.

    Raises:
        InputError: a linked folder contains the link.
    """
    reasons: list[str] = [] if skipped is None else skipped
    found: list[tuple[Path, bool]] = []  # with whether it is a link
    visited: dict[tuple[int, int], Path] = {}

    def scan(path: Path, parents: dict[tuple[int, int], Path]) -> None:
        try:
            state = path.stat()
            with os.scandir(path) as entries:
                content = sorted(entries, key=lambda entry: (entry.is_symlink(), entry.name))
        except OSError as error:
            if path != Path(folder):
                reasons.append(f"{path} ({error.strerror or error})")
            return
        key = (state.st_dev, state.st_ino)
        if key in parents:
            problem = f"the link {path} leads back to {parents[key]}, which contains it"
            raise InputError(problem, "linked folders without cycles", "remove the link")
        if key in visited:
            reasons.append(f"{path} (the same folder as {visited[key]})")
            return
        visited[key] = path
        for entry in content:
            inside, hidden = path / entry.name, entry.name.startswith(".")
            if entry.is_dir():
                if entry.name not in ignored and not hidden:
                    scan(inside, {**parents, key: path})
                elif count := _count(inside, extension):
                    reasons.append(f"{inside} ({'hidden' if hidden else 'a cache'}, {count} files)")
            elif entry.name.endswith(extension):
                if hidden:
                    reasons.append(f"{inside} (hidden)")
                elif not broken_links and not inside.exists():
                    reasons.append(f"{inside} (a broken link)")
                else:
                    found.append((inside, entry.is_symlink()))

    scan(Path(folder), {})
    files = _without_duplicates(found, reasons)
    if skipped is None:
        warn_skipped(folder, reasons)
    return sorted(files)


def files_fingerprint(folder: Path, paths: Sequence[Path]) -> str:
    """Hash of the names, the sizes, and the first and last bytes of files; independent of where the folder is."""
    total = hashlib.sha256()
    for path in paths:
        name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(SAMPLED)
            file.seek(max(0, size - SAMPLED))
            total.update(f"{name} {size} ".encode() + start + file.read(SAMPLED))
    return total.hexdigest()[:16]


def warn_skipped(folder: Path | str, skipped: Sequence[str]) -> None:
    """Log the number and the first names of the entries that were skipped."""
    if skipped:
        rest = f" and {len(skipped) - MAX_NAMED} more" if len(skipped) > MAX_NAMED else ""
        log.warning("%d skipped in %s: %s%s", len(skipped), folder, ", ".join(skipped[:MAX_NAMED]), rest)


def _count(folder: Path, extension: str) -> int:
    """Number of files with the extension directly in a folder."""
    try:
        return sum(name.endswith(extension) for name in os.listdir(folder)) if extension else 0
    except OSError:
        return 0


def _without_duplicates(found: list[tuple[Path, bool]], reasons: list[str]) -> list[Path]:
    """The files, each once although links may name it again."""
    if not any(linked for _, linked in found):
        return [path for path, _ in found]
    unique: dict[Path, Path] = {}
    for path, linked in sorted(found, key=lambda item: item[1]):
        real = path.resolve()
        if linked and real in unique:
            reasons.append(f"{path} (the same file as {unique[real]})")
        else:
            unique[real] = path
    return list(unique.values())
