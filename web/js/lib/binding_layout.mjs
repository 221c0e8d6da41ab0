// Geometry and texts of the binding panel, without imports from the page, so that node can test them.

export const LANE = 54; // height of the track of one character in pixels
export const GAP = 6; // between tracks
export const AXIS = 16; // height of the time axis
const UPPER = 0.58; // part of a track for the mouth and the voice; the rest is for the scores

/** Height of the tracks of `count` characters with the time axis. */
export const tracksHeight = (count) => count * (LANE + GAP) + AXIS;

/** The parts of each track: {top, middle, bottom} in pixels; `middle` divides movement from scores. */
export function lanes(count) {
  return Array.from({ length: count }, (_, index) => {
    const top = index * (LANE + GAP);
    return { top, middle: top + LANE * UPPER, bottom: top + LANE };
  });
}

/** Time in seconds at `x` of a plot of `width` pixels, within 0..duration. */
export const timeAt = (x, width, duration) => Math.min(Math.max(x / Math.max(width, 1), 0), 1) * duration;

/** Index of the character whose track is at `y`, or -1. */
export function laneAt(y, count) {
  const index = Math.floor(y / (LANE + GAP));
  return index >= 0 && index < count ? index : -1;
}

/** Value of a track that covers 0..duration at a time; null if there is no track. */
export function valueAt(track, time, duration) {
  if (!track?.length || !(duration > 0)) return null;
  const index = Math.floor((time / duration) * track.length);
  return track[Math.min(Math.max(index, 0), track.length - 1)];
}

/** Points [x, y] of a track; `low` is drawn at `bottom`, `high` at `top`, values beyond are cut. */
export function polyline(track, width, top, bottom, low = 0, high = 1) {
  return track.map((value, index) => {
    const share = Math.min(Math.max((value - low) / (high - low), 0), 1);
    return [((index + 0.5) / track.length) * width, bottom - share * (bottom - top)];
  });
}

/** Smallest and largest score of all characters, at least -0.2 and 0.6. */
export function scoreRange(characters) {
  const values = characters.flatMap((one) => [...(one.tracks.score ?? []), ...(one.tracks.other ?? [])]);
  return values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [-0.2, 0.6]);
}

/** Seconds covered by spans [[start, end], ...]. */
export const covered = (spans) => spans.reduce((sum, [start, end]) => sum + end - start, 0);

/** The spans of 0..duration that are not in `listening`, which is sorted. */
export function spoken(listening, duration) {
  const edges = [0, ...listening.flat(), duration];
  const spans = [];
  for (let index = 0; index < edges.length; index += 2) {
    if (edges[index + 1] - edges[index] > 1e-6) spans.push([edges[index], edges[index + 1]]);
  }
  return spans;
}

/** Where a click on a character jumps to: the first moment that is not as expected, else the start of its speech. */
export function firstMoment(character, duration) {
  return (character.failed[0] ?? spoken(character.listening, duration)[0] ?? [0])[0];
}

/** Steps of the time axis in seconds: the smallest of 0.1, 0.2, 0.5, 1, 2, 5, ... with at least `room` pixels each. */
export function tickStep(duration, width, room = 56) {
  for (let power = 0.1; ; power *= 10) {
    for (const factor of [1, 2, 5]) if ((power * factor * width) / duration >= room) return power * factor;
  }
}

const signed = (value, digits) => (value > 0 ? "+" : "") + value.toFixed(digits);

/**
 * The numbers of a character as texts; a dash where nothing was measured.
 * @param text Function (key, english, values) that translates, as in kit.mjs.
 */
export function cells(character, duration, text) {
  const number = (value, write) => (value == null ? "–" : write(value));
  return {
    score: number(character.score, (value) => value.toFixed(2)),
    margin: number(character.margin, (value) => signed(value, 2)),
    lag: number(character.lag, (value) =>
      value === 0 ? text("binding.onTime", "on time") : `${signed(character.lag_seconds * 1000, 0)} ms`),
    listening: `${Math.round((100 * covered(character.listening)) / Math.max(duration, 1e-9))} %`,
    coverage: `${Math.round(100 * character.coverage)} %`,
  };
}

/** One line about a character at a moment. */
export function momentText(character, time, duration, text) {
  const at = (name) => valueAt(character.tracks[name], time, duration);
  const listens = !spoken(character.listening, duration).some(([start, end]) => time >= start && time <= end);
  const parts = [`${time.toFixed(2)} s`, character.name];
  parts.push(listens ? text("binding.listens", "listens") : text("binding.speaks", "speaks"));
  const percent = (value) => `${Math.round(100 * value)} %`;
  if (!listens && at("score") != null) parts.push(text("binding.ownScore", "own voice {value}", { value: at("score").toFixed(2) }));
  if (!listens && at("other") != null) parts.push(text("binding.otherScore", "next {value}", { value: at("other").toFixed(2) }));
  if (at("mouth") != null) parts.push(text("binding.mouth", "mouth {value}", { value: percent(at("mouth")) }));
  parts.push(text("binding.coverageAt", "covers {value}", { value: percent(at("coverage") ?? 0) }));
  return parts.join(" · ");
}
