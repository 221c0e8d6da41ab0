"""Progress of long operations."""

from __future__ import annotations

import logging
import threading

from bya_core.progress import ProgressTracker

log = logging.getLogger("bya_core.sampling.acceleration")


def test_warnings_of_the_stages_are_collected_once() -> None:
    tracker = ProgressTracker()
    log.warning("before")
    with tracker.stage("Denoising"):
        log.warning("FP8 is not used: %s.", "no memory")
        log.warning("FP8 is not used: %s.", "no memory")
        log.info("an information")
        other = threading.Thread(target=log.warning, args=("of another thread",))
        other.start()
        other.join()
        logging.getLogger("diffusers").warning("of another package")
    log.warning("after")
    assert tracker.notices == ["FP8 is not used: no memory."]


def test_nothing_is_collected_after_an_error() -> None:
    tracker = ProgressTracker()
    try:
        with tracker.stage("Denoising"):
            raise RuntimeError
    except RuntimeError:
        log.warning("after")
    assert tracker.notices == []
