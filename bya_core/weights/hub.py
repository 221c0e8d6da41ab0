"""The Hugging Face hub or a mirror of it: what a repository holds, and the bytes of its files."""

from __future__ import annotations

import os
from typing import Any

from bya_core.errors import InputError

_NETWORK = ("httpx", "httpx2", "httpcore", "requests", "urllib3", "huggingface_hub")


class DownloadStopped(OSError):
    """The network or the hub failed; what has arrived is kept and the next run goes on from it."""


class Hub:
    """The Hugging Face hub, or a mirror.

    Args:
        endpoint: its address; None = what HF_ENDPOINT says, else the hub's own.
    """

    def __init__(self, endpoint: str | None = None) -> None:
        self.endpoint = endpoint or os.environ.get("HF_ENDPOINT") or "https://huggingface.co"

    def look(self, repository: str, revision: str | None) -> tuple[str, dict[str, Any]]:
        """(commit, file name -> its entry with `size`, `blob_id` and, where large, `lfs`)."""
        from huggingface_hub import HfApi

        with _plain_errors(f"the repository {repository} at {self.endpoint}"):
            info = HfApi(endpoint=self.endpoint).model_info(repository, revision=revision, files_metadata=True)
        return str(info.sha), {entry.rfilename: entry for entry in info.siblings or []}

    def fetch(self, repository: str, commit: str, path: str, to: Any, have: int, size: int) -> None:
        """Append the bytes of a file from `have` on to the open file `to`."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers

        url = hf_hub_url(repository, path, revision=commit, endpoint=self.endpoint)
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
        with _plain_errors(f"{path} of {repository} at {self.endpoint}"):
            http_get(url, to, resume_size=have, headers=headers, expected_size=size, displayed_filename=path)


class _plain_errors:
    """Network trouble of any library, told in one sentence."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, InputError):
            return
        home = type(error).__module__.partition(".")[0]
        if home not in _NETWORK and not isinstance(error, ConnectionError | TimeoutError):
            return
        name = type(error).__name__
        if name in ("RepositoryNotFoundError", "GatedRepoError", "RevisionNotFoundError", "EntryNotFoundError"):
            came = f"{self.what} cannot be had ({name})"
            do = "look at its page; where it asks for consent, give it there and run `hf auth login`"
            raise InputError(came, "a repository that is open to you", do) from error
        first = (str(error).strip().splitlines() or [name])[0]
        raise DownloadStopped(
            f"{self.what} could not be read ({first}); run the same command again to go on"
        ) from error
