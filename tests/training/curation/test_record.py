"""Listing and hashing of source files."""

from __future__ import annotations

import pytest

from bya_core.errors import InputError
from training.curation.record import hash_source, list_sources
from training.curation.store import Store


def test_list_and_hash_sources(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("b/2.mp4", "a.mp4", ".hidden.mp4", "list.txt"):
        (tmp_path / name).write_bytes(name.encode())
    assert [s.name for s in list_sources(tmp_path)] == ["a.mp4", "b/2.mp4", "list.txt"]
    (tmp_path / "list.txt").write_text("# selected\nb/2.mp4\nb/2.mp4\nmissing.mp4\n")
    listed = list_sources(tmp_path / "list.txt")
    assert [s.name for s in listed] == ["b/2.mp4", "missing.mp4"]
    store = Store(tmp_path / "store")
    first = hash_source(listed[0], store)
    assert hash_source(listed[1], store).rejected.startswith("the file cannot be read")
    (tmp_path / "b" / "2.mp4").write_bytes(b"longer than before")
    assert hash_source(listed[0], store).lineage != first.lineage
    with pytest.raises(InputError, match="does not exist"):
        list_sources(tmp_path / "nothing")
