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


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-3],
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),  # a bit that safetensors does not check
        lambda content: b"",
        lambda content: os.urandom(300),
    ],
    ids=["truncated", "flipped", "empty", "random"],
)
def test_damaged_file_is_recomputed(tmp_path, damage):
    cache = FeatureCache(tmp_path)
    cache.get("text", (1,), make)
    (path,) = files(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    assert equal(cache.get("text", (1,), make), make())
    assert cache.counts["text damaged"] == 1 and cache.counts["text miss"] == 2
    assert equal(cache.get("text", (1,), lambda: 1 / 0), make()) and len(files(tmp_path)) == 1


def test_unwritable_folder_disables_the_cache(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    cache = FeatureCache(tmp_path / "file" / "cache")  # not writable for root either
    for _ in range(2):
        assert equal(cache.get("text", (1,), make), make())
    assert cache.counts == {"text miss": 2, "unwritten": 2}
    assert caplog.text.count("continuing without") == 1


@pytest.mark.parametrize("kind", [OSError, SafetensorError])
def test_full_disk_leaves_no_temporary_files(tmp_path, monkeypatch, kind):
    def full(tensors, path, metadata=None):
        Path(path).write_bytes(b"half")
        message = os.strerror(errno.ENOSPC)
        raise OSError(errno.ENOSPC, message) if kind is OSError else SafetensorError(message)

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
    """A wrapper with a network, a setting and a lazily loaded attribute."""

    def __init__(self, network, gain=1.0):
        self.network, self.gain, self.device, self._lazy = network, gain, torch.device("cpu"), None


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
    loaded = Encoder(network())
    loaded._lazy, loaded.device = object(), torch.device("meta")
    assert encoder_version(loaded) == base
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
            self.me = self  # recursion stops here

    assert encoder_version(Named()) == encoder_version(Named())
    assert encoder_version(Named()).endswith("Named base-960h")
    Named.version = None  # digest of the attributes
    assert encoder_version(Named()) == encoder_version(Named())
