"""The feature cache and encoder versions."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from tests.fakes import FakeCodec, FakeText
from training.data.cache import FeatureCache, digest, encoder_version


def make(value=1.0):
    return {"a": torch.full((3, 2), value, dtype=torch.float16), "b": torch.arange(4)}


def equal(x, y):
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) and x[k].dtype == y[k].dtype for k in x)


def files(folder):
    return [p for p in Path(folder).rglob("*") if p.is_file()]


def test_features_are_computed_once(tmp_path):
    cache = FeatureCache(tmp_path / "with space ü")
    assert equal(cache.get("text", ("hello", 1), make), make())
    assert equal(cache.get("text", ("hello", 1), lambda: 1 / 0), make())
    cache.get("text", ("hello", 2), make)
    cache.get("face", ("hello", 1), make)
    assert cache.counts == {"text hit": 1, "text miss": 2, "face miss": 1}
    assert len(files(tmp_path)) == 3 and equal(FeatureCache(cache.folder).get("text", ("hello", 1), None), make())


def test_no_folder_disables_the_cache():
    cache = FeatureCache(None)
    assert equal(cache.get("text", (1,), make), cache.get("text", (1,), make))
    assert cache.counts == {"text miss": 2}


@pytest.mark.parametrize("harm", ["cut", "flip", "empty", "garbage"])
def test_damaged_file_is_recomputed(tmp_path, harm):
    cache = FeatureCache(tmp_path)
    cache.get("text", (1,), make)
    (path,) = files(tmp_path)
    content = bytearray(path.read_bytes())
    if harm == "flip":
        content[-1] ^= 1  # one bit of the numbers, which safetensors itself does not see
    harmed = {"cut": content[:-3], "flip": content, "empty": b"", "garbage": os.urandom(300)}[harm]
    path.write_bytes(harmed)
    assert equal(cache.get("text", (1,), make), make())
    assert cache.counts["text damaged"] == 1 and cache.counts["text miss"] == 2
    assert equal(cache.get("text", (1,), lambda: 1 / 0), make()) and len(files(tmp_path)) == 1


def test_unwritable_folder_disables_the_cache(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    cache = FeatureCache(tmp_path / "file" / "cache")  # also for root nothing can be written here
    for _ in range(2):
        assert equal(cache.get("text", (1,), make), make())
    assert cache.counts == {"text miss": 2, "unwritten": 2}
    assert caplog.text.count("continuing without") == 1


@pytest.mark.parametrize("kind", [OSError, SafetensorError])
def test_full_disk_leaves_no_temporary_files(tmp_path, monkeypatch, kind):
    def full(tensors, path, metadata=None):
        Path(path).write_bytes(b"half")
        words = os.strerror(errno.ENOSPC)
        raise OSError(errno.ENOSPC, words) if kind is OSError else SafetensorError(words)

    monkeypatch.setattr("training.data.cache.save_file", full)
    cache = FeatureCache(tmp_path)
    assert equal(cache.get("text", (1,), make), make())
    assert cache.counts["unwritten"] == 1 and files(tmp_path) == []


def test_exceptions_propagate_and_nothing_is_cached(tmp_path):
    with pytest.raises(ZeroDivisionError):
        FeatureCache(tmp_path).get("text", (1,), lambda: 1 / 0)
    assert files(tmp_path) == []


def test_digests_distinguish_contents():
    a = np.arange(4)
    different = [
        a, a.astype(float), a.reshape(2, 2), a[::-1], torch.arange(4), "a", b"a", 1, 1.0, None, True,
        [1, 2], [[1], 2], {"x": 1}, {"x": 2}, torch.zeros(2, dtype=torch.bfloat16), torch.zeros(0),
    ]  # fmt: skip
    assert len({digest(value) for value in different}) == len(different)
    assert digest(a[::-1]) == digest(np.array([3, 2, 1, 0]))
    assert digest({"x": 1, "y": 2}) == digest({"y": 2, "x": 1})


class Network(nn.Module):
    def __init__(self, size=4):
        super().__init__()
        self.size = size
        self.layer = nn.Linear(2, 2)
        self.register_buffer("table", torch.ones(2), persistent=False)


class Encoder:
    """As wrappers are: a network, a setting, and something made on first use."""

    def __init__(self, network, gain=1.0):
        self.network, self.gain, self.device, self._late = network, gain, torch.device("cpu"), None


def network(**changes):
    torch.manual_seed(0)
    return Network(**changes)


def test_encoder_version_changes_with_state():
    base = encoder_version(Encoder(network()))
    assert base.startswith("Encoder ") and base == encoder_version(Encoder(network()))
    weight, buffer = network(), network()
    weight.layer.weight.data[0, 0] += 1e-6
    buffer.table[0] = 2
    changed = [
        Encoder(weight), Encoder(buffer), Encoder(network(size=5)), Encoder(network(), gain=2.0),
        Encoder(network().to(torch.bfloat16)), Encoder(network().double()),
    ]  # fmt: skip
    versions = {encoder_version(encoder) for encoder in changed}
    assert len(versions) == len(changed) and base not in versions
    late = Encoder(network())
    late._late, late.device = object(), torch.device("meta")
    assert encoder_version(late) == base
    assert encoder_version(FakeText()) != encoder_version(FakeCodec())


def test_encoder_version_includes_lazily_loaded_files(tmp_path):
    @dataclass
    class Lazy:
        folder: Path

    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "weights.bin").write_bytes(b"1")
    before = encoder_version(Lazy(tmp_path))
    assert before == encoder_version(Lazy(tmp_path))
    (tmp_path / "sub" / "weights.bin").write_bytes(b"2")
    assert encoder_version(Lazy(tmp_path)) != before


def test_encoder_with_explicit_version():
    class Named:
        version = "base-960h"

        def __init__(self):
            self.me = self  # would go round in circles otherwise

    assert encoder_version(Named()) == encoder_version(Named())
    assert encoder_version(Named()).endswith("Named base-960h")
    Named.version = None  # now it is looked into
    assert encoder_version(Named()) == encoder_version(Named())
