"""Stage 1: look into a file and drop what cannot become training footage (sec. 4.1: resolution, duration, fps)."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from training.curation.facts import Facts, look
from training.curation.record import FPS, Record
from training.curation.stage import Resources

_SQUARE = 0.02  # from this on a circle is an egg


@dataclass(frozen=True)
class ProbeSettings:
    """What footage must be. The paper names resolution, duration and frame rate, and no numbers.

    Args:
        shorter_side: least pixels of the shorter side; enlarging smaller footage teaches blur.
        longer_side: most pixels of the longer side.
        least_seconds, most_seconds: length of a file.
        least_fps, most_fps: mean frames a second.
        gap: longest time without a new picture, in seconds.
        whole: least share of the length claimed by the header that is really there.
        sound: least share of the pictures' time that has sound.
    """

    shorter_side: int = 480
    longer_side: int = 8192
    least_seconds: float = 2.0
    most_seconds: float = 6 * 3600.0
    least_fps: float = 23.9
    most_fps: float = 121.0
    gap: float = 0.5
    whole: float = 0.9
    sound: float = 0.9


class Probe:
    """Reads every packet of a file once, decodes one picture."""

    name = "probe"
    version = 1

    def __init__(self, settings: ProbeSettings, resources: Resources) -> None:
        self.settings, self.resources = settings, resources

    def __call__(self, record: Record) -> list[Record]:
        facts = look(record.source)
        seen = record.with_data(**{name: _short(value) for name, value in asdict(facts).items()})
        reason = self._reason(facts)
        if reason is not None:
            return [seen.reject(reason)]
        return [seen.part("source", 0, int(facts.seconds * FPS + 1e-6))]

    def _reason(self, facts: Facts) -> str | None:
        wanted = self.settings
        size = f"{facts.width}x{facts.height} pixels"
        if min(facts.width, facts.height) < wanted.shorter_side:
            return f"too small: {size}, the shorter side must have {wanted.shorter_side}"
        if max(facts.width, facts.height) > wanted.longer_side:
            return f"too large: {size}, the longer side may have {wanted.longer_side}"
        if max(facts.declared, facts.seconds) > wanted.most_seconds:
            return f"too long: {max(facts.declared, facts.seconds):.0f} s, at most {wanted.most_seconds:.0f} s"
        if facts.declared and facts.seconds < wanted.whole * facts.declared - 0.2:
            return f"cut off: it claims {facts.declared:.1f} s and holds {facts.seconds:.1f} s of pictures"
        if facts.seconds < wanted.least_seconds:
            return f"too short: {facts.seconds:.2f} s, at least {wanted.least_seconds:.2f} s"
        if facts.gap > max(wanted.gap, 1.5 / facts.fps):
            return f"pictures are missing: {facts.gap:.2f} s without a new one"
        if not wanted.least_fps <= facts.fps <= wanted.most_fps:
            return f"{facts.fps:.2f} frames a second, {wanted.least_fps:g} to {wanted.most_fps:g} are wanted"
        if facts.hdr:
            return f"HDR ({facts.hdr}): its colours would be wrong without tone mapping"
        if abs(facts.pixel_form - 1) > _SQUARE:
            return f"its pixels are not square (width over height {facts.pixel_form:.3f})"
        if facts.interlaced:
            return "interlaced: lips would be in two places at once"
        if facts.sound_seconds == 0:
            return "no sound: who speaks cannot be told"
        if facts.sound_seconds < wanted.sound * facts.seconds:
            return f"sound of {facts.sound_seconds:.1f} s for pictures of {facts.seconds:.1f} s"
        return None


def _short(value: object) -> object:
    return round(value, 4) if isinstance(value, float) else value
