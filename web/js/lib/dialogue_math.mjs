// The dialogue of BYA Scene as data: clips, prompts, the visible range, waveforms. No imports from the page.
// Times are in seconds. The text has the form that bya_core/scene/dialogue.py reads.

export const FRAME = 0.04; // seconds
export const MIN_CLIP = 0.08; // shortest clip that the timeline makes
export const PEAKS = 100; // per second
const WHOLE = Object.freeze({ start: 0, from: 0, to: null, gain: 0 });

const round = (value) => Math.round(value * 1000) / 1000;
const clamp = (value, low, high) => Math.max(low, Math.min(high, value));
export const toFrame = (time) => round(Math.round(time / FRAME) * FRAME);

/** {voices: [{clips: null | [clip], mute}], characters: null | [voice index]}, or null for an invalid text. */
export function readDialogue(text) {
  if (!text?.trim()) return { voices: [], characters: null };
  try {
    const data = JSON.parse(text);
    const voices = (data.voices ?? []).map((voice) => ({
      clips: voice.clips?.map((clip) => ({ ...WHOLE, ...clip })) ?? null,
      mute: voice.mute ?? false,
    }));
    const characters = data.characters ?? null;
    const valid = characters === null || characters.every((_, index) => characters.includes(index));
    return valid && !Array.isArray(data) ? { voices, characters } : null;
  } catch {
    return null;
  }
}

/** The shortest text of a dialogue; empty without edits. */
export function writeDialogue({ voices, characters }) {
  const short = voices.map(({ clips, mute }) => {
    const voice = {};
    if (clips && !(clips.length === 1 && isWhole(clips[0]))) voice.clips = clips.map(shortClip);
    if (mute) voice.mute = true;
    return voice;
  });
  while (short.length && !Object.keys(short.at(-1)).length) short.pop();
  const data = {};
  if (short.length) data.voices = short;
  if (characters?.some((voice, index) => voice !== index)) data.characters = characters;
  return Object.keys(data).length ? JSON.stringify(data) : "";
}

const isWhole = (clip) => Object.keys(WHOLE).every((key) => (clip[key] ?? null) === WHOLE[key]);

function shortClip(clip) {
  const kept = {};
  for (const [key, value] of Object.entries(WHOLE)) {
    const own = clip[key] == null ? null : round(clip[key]);
    if (own !== value) kept[key] = own;
  }
  return kept;
}

/** The voice of each of `count` characters. */
export const voicesOf = ({ characters }, count) =>
  [...Array(count).keys()].map((index) => characters?.[index] ?? index);

/** The clips of a voice; the whole recording if it is not edited. */
export const clipsOf = ({ voices }, voice) => voices[voice]?.clips ?? [{ ...WHOLE }];

/** A copy of the dialogue with another voice: `change` gets {clips, mute} and returns what replaces parts of it. */
export function withVoice(dialogue, index, change) {
  const voices = dialogue.voices.map((voice) => ({ ...voice }));
  while (voices.length <= index) voices.push({ clips: null, mute: false });
  voices[index] = { ...voices[index], ...change({ ...voices[index], clips: clipsOf(dialogue, index) }) };
  return { ...dialogue, voices };
}

/** A copy of the dialogue with another clip. */
export const withClip = (dialogue, voice, number, clip) =>
  withVoice(dialogue, voice, ({ clips }) => ({ clips: clips.map((one, index) => (index === number ? clip : one)) }));

/** Swaps the voices of two of `count` characters. */
export function swapVoices(dialogue, count, one, other) {
  const voices = voicesOf(dialogue, Math.max(count, dialogue.characters?.length ?? 0)); // stays a permutation
  [voices[one], voices[other]] = [voices[other], voices[one]];
  return { ...dialogue, characters: voices };
}

/** End of a clip in its recording of `seconds` (null: unknown, then null unless the clip has an end). */
export const clipTo = (clip, seconds) =>
  clip.to == null ? seconds : seconds == null ? clip.to : Math.min(clip.to, seconds);

/** Start and end of a clip in the video; the end is null if the recording's length is unknown. */
export function clipSpan(clip, source) {
  const start = (source.offset ?? 0) + clip.start;
  const to = clipTo(clip, source.seconds);
  return [start, to == null ? null : start + to - clip.from];
}

/** A clip moved to start at `time` in the video, not before 0. */
export const movedClip = (clip, source, time) => ({ ...clip, start: round(Math.max(0, time) - (source.offset ?? 0)) });

/** A clip whose start in the video is trimmed to `time`; what is heard stays in place. */
export function trimmedStart(clip, source, time) {
  const [start, end] = clipSpan(clip, source);
  const latest = end == null ? Infinity : end - MIN_CLIP;
  const earliest = Math.max(0, start - clip.from);
  const moved = clamp(time, Math.min(earliest, latest), latest) - start;
  return { ...clip, start: round(clip.start + moved), from: round(clip.from + moved) };
}

/** A clip whose end in the video is trimmed to `time`. */
export function trimmedEnd(clip, source, time) {
  const [start] = clipSpan(clip, source);
  const to = Math.max(clip.from + time - start, clip.from + MIN_CLIP);
  return { ...clip, to: source.seconds != null && to >= source.seconds - 1e-3 ? null : round(to) };
}

/** Two clips, split at `time` of the video, or null if that is not inside of the clip. */
export function splitClip(clip, source, time) {
  const [start, end] = clipSpan(clip, source);
  if (time < start + MIN_CLIP || (end != null && time > end - MIN_CLIP)) return null;
  const at = clip.from + time - start;
  return [
    { ...clip, to: round(at) },
    { ...clip, from: round(at), start: round(clip.start + time - start) },
  ];
}

/** `time` or the candidate within `tolerance` of it. `shifts`: distances from `time` that may be aligned, too. */
export function snapped(time, candidates, tolerance, shifts = [0]) {
  let best = time;
  let nearest = tolerance;
  for (const shift of shifts) {
    for (const candidate of candidates) {
      const distance = Math.abs(candidate - shift - time);
      if (distance < nearest) [nearest, best] = [distance, candidate - shift];
    }
  }
  return best;
}

/** Number of video frames that hold `seconds`: a multiple of 4, plus 1, as bya_core rounds it. */
export const framesFor = (seconds) => Math.ceil((Math.max(1, Math.ceil(seconds / FRAME - 1e-3)) - 1) / 4) * 4 + 1;

/**
 * End of the video, in seconds; null if it is not known.
 * @param length {length, seconds, frames} as in the inputs of BYA Scene; undefined if they are connected
 * @param last End of the last voice; 0 without voices.
 * @param ran Number of frames of the last run, which is used for connected inputs.
 */
export function videoEnd({ length, seconds, frames }, last, ran) {
  const chosen = { seconds: seconds === undefined ? undefined : Math.round(seconds / FRAME), frames }[length];
  if (chosen !== undefined) return (4 * Math.round((Math.max(1, chosen) - 1) / 4) + 1) * FRAME;
  const fits = length !== undefined && length !== "seconds" && length !== "frames";
  if (fits && last > 0) return framesFor(last) * FRAME;
  return ran ? ran * FRAME : null;
}

// timed prompts: lines such as "2.5 - 4: Ada laughs"

const LINE = /^([\d.]+)\s*(?:-|to)\s*([\d.]+)\s*s?\s*:\s*(.+)$/;

/** Spans [{start, end, prompt}] sorted by start, or null if a line has another form. */
export function readPrompts(text) {
  const spans = [];
  for (const line of (text ?? "").split("\n").map((one) => one.trim())) {
    if (!line) continue;
    const found = LINE.exec(line);
    if (!found || !(Number(found[1]) < Number(found[2]))) return null;
    spans.push({ start: Number(found[1]), end: Number(found[2]), prompt: found[3].trim() });
  }
  return spans.sort((one, other) => one.start - other.start);
}

/** The text of spans; line breaks in prompts become spaces. */
export const writePrompts = (spans) =>
  [...spans]
    .sort((one, other) => one.start - other.start)
    .map(({ start, end, prompt }) => `${round(start)} - ${round(end)}: ${prompt.replace(/\s+/g, " ").trim()}`)
    .join("\n");

/** A span moved or trimmed (`part`: "body", "start", "end") to `time`, between its neighbors. */
export function changedSpan(spans, number, part, time, shortest = 0.2) {
  const span = spans[number];
  const low = spans[number - 1]?.end ?? 0;
  const high = spans[number + 1]?.start ?? Infinity;
  if (part === "start") return { ...span, start: round(clamp(time, low, span.end - shortest)) };
  if (part === "end") return { ...span, end: round(clamp(time, span.start + shortest, high)) };
  const length = span.end - span.start;
  const start = round(clamp(time, low, Math.max(low, high - length)));
  return { ...span, start, end: round(start + length) };
}

/** The range for a new span around `time`, or null without room. */
export function freeRange(spans, time, length, shortest = 0.2) {
  if (spans.some((span) => time >= span.start && time < span.end)) return null;
  const high = Math.min(Infinity, ...spans.filter((span) => span.start >= time).map((span) => span.start));
  const end = Math.min(high, time + length);
  return end - time < shortest ? null : { start: round(time), end: round(end) };
}

// the visible range: {start, scale}, scale in pixels per second

/** Seconds that can be shown: the whole timeline, and room after its end to drag into. */
export const reach = (total) => Math.max(0.5, total * 1.1);

export const fitView = (total, width) => ({ start: 0, scale: Math.max(1, width) / reach(total) });
export const timeToX = (view, time) => (time - view.start) * view.scale;
export const xToTime = (view, x) => view.start + x / view.scale;

/** The view scaled by `factor` around the time at `x`, within the fitted view and 2,000 pixels per second. */
export function zoomed(view, factor, x, total, width) {
  const lowest = fitView(total, width).scale;
  const scale = clamp(view.scale * factor, lowest, Math.max(lowest, 2000));
  return scrolled({ start: xToTime(view, x) - x / scale, scale }, 0, total, width);
}

/** The view moved by `seconds`, within the timeline. */
export function scrolled(view, seconds, total, width) {
  const last = Math.max(0, reach(total) - width / view.scale);
  return { ...view, start: clamp(view.start + seconds, 0, last) };
}

/** Distance between labeled marks of the ruler, at least `pixels` wide. */
export function tickStep(scale, pixels = 64) {
  const steps = [0.04, 0.2, 0.4, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600];
  return steps.find((step) => step * scale >= pixels) ?? 3600 * 2 ** Math.ceil(Math.log2(pixels / (3600 * scale)));
}

/** A time as m:ss.cc, or s.cc s below a minute; `digits` after the point. */
export function clock(time, digits = 2) {
  const shown = Math.max(0, time);
  const minutes = Math.floor(shown / 60);
  const seconds = (shown - 60 * minutes).toFixed(digits);
  return minutes ? `${minutes}:${seconds.padStart(digits ? 3 + digits : 2, "0")}` : `${seconds} s`;
}

// waveforms

/** Largest magnitude in each of `PEAKS` parts per second: Float32Array. */
export function peaksOf(channels, rate) {
  const length = channels[0].length;
  const peaks = new Float32Array(Math.ceil((length * PEAKS) / rate));
  for (const samples of channels) {
    for (let part = 0; part < peaks.length; part++) {
      const stop = Math.min(length, Math.round(((part + 1) * rate) / PEAKS));
      for (let n = Math.round((part * rate) / PEAKS); n < stop; n++) {
        const magnitude = Math.abs(samples[n]);
        if (magnitude > peaks[part]) peaks[part] = magnitude;
      }
    }
  }
  return peaks;
}

/** Largest peak between two times of a recording. */
export function peakIn(peaks, from, to) {
  let found = 0;
  const stop = Math.min(peaks.length, Math.max(Math.ceil(to * PEAKS), Math.floor(from * PEAKS) + 1));
  for (let part = Math.max(0, Math.floor(from * PEAKS)); part < stop; part++) {
    if (peaks[part] > found) found = peaks[part];
  }
  return found;
}

/**
 * Spans [start, end] that are louder than 26 dB below the loud parts; gaps of 0.25 s are closed, and spans below
 * 0.1 s left out. An estimate for the display: the nodes use voice activity detection.
 */
export function loudSpans(peaks) {
  const heard = [...peaks].filter((peak) => peak > 0.001).sort((one, other) => one - other);
  if (!heard.length) return [];
  const threshold = 0.05 * heard[Math.floor(0.95 * (heard.length - 1))];
  const spans = [];
  peaks.forEach((peak, part) => {
    if (peak <= threshold) return;
    const [start, end] = [part / PEAKS, (part + 1) / PEAKS];
    const last = spans.at(-1);
    if (last && start - last[1] < 0.25) last[1] = end;
    else spans.push([start, end]);
  });
  return spans.filter(([start, end]) => end - start >= 0.1);
}

/**
 * What to play from `time` on: [{character, voice, when, from, seconds, gain}], `when` in seconds after the start of
 * the playback, `gain` as a factor.
 * @param lanes [{voice, source: {seconds, offset, gain}, audible}] per character
 */
export function playlist(dialogue, lanes, time) {
  const entries = [];
  lanes.forEach(({ voice, source, audible }, character) => {
    if (!audible || source?.seconds == null) return;
    for (const clip of clipsOf(dialogue, voice)) {
      const [start, end] = clipSpan(clip, source);
      const first = Math.max(start, time, 0);
      if (end - first < 0.005) continue;
      const gain = 10 ** (((source.gain ?? 0) + clip.gain) / 20);
      const from = clip.from + first - start;
      entries.push({ character, voice, when: first - time, from, seconds: end - first, gain });
    }
  });
  return entries;
}
