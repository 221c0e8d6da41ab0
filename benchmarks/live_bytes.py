"""Counts what is alive at once while something computes, without computing it.

Run it inside torch's FakeTensorMode: tensors then have shapes and no memory, so a model of any size can be counted on
any machine in seconds. Kernels' own workspaces are not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """As a context: `peak` is the most bytes of tensors made inside it that were alive at one time.

    Args:
        known: tensors that were there before and do not count (weights, inputs), nor do views of them.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._before = [tensor.untyped_storage() for tensor in known]  # held, so that no other takes their place
        self._counted = {storage._cdata for storage in self._before}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._counted:
                    self._counted.add(storage._cdata)
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return made

    def _gone(self, key: int, size: int) -> None:
        self._counted.discard(key)
        self.now -= size
