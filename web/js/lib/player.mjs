// Decoded recordings and their playback. Both survive undo, which makes all nodes anew.
import { loudSpans, peaksOf } from "./dialogue_math.mjs";

const KEPT = 16; // recordings
const RATE = 32_000; // Hz of decoded recordings, to save memory
let context = null;
const recordings = new Map();

function audioContext() {
  context ??= new AudioContext();
  return context;
}

/** A recording {buffer, seconds, peaks, spans} of an address; decoded once. Rejects if it cannot be decoded. */
export function recording(url) {
  let found = recordings.get(url);
  if (!found) {
    found = decode(url);
    // what cannot be decoded is not tried again; what cannot be loaded is
    found.catch((error) => error.name === "EncodingError" || recordings.delete(url));
  }
  recordings.delete(url);
  recordings.set(url, found); // the most recent is last
  if (recordings.size > KEPT) recordings.delete(recordings.keys().next().value);
  return found;
}

async function decode(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${response.status} ${response.statusText}`);
  const buffer = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(await response.arrayBuffer());
  const channels = [...Array(buffer.numberOfChannels).keys()].map((index) => buffer.getChannelData(index));
  const peaks = peaksOf(channels, buffer.sampleRate);
  return { buffer, seconds: buffer.duration, peaks, spans: loudSpans(peaks) };
}

let playing = null;

/** Stops what is playing. */
export function stop() {
  const last = playing;
  playing = null;
  for (const source of last?.sources ?? []) source.stop();
  last?.onEnd?.();
}

/**
 * Plays recordings at once.
 * @param entries [{buffer, when, from, seconds, gain}], see `playlist` in dialogue_math.mjs
 * @param onEnd Called when the playback is stopped.
 * @returns A function with the seconds since the start; null once it is stopped.
 */
export async function play(entries, onEnd) {
  stop();
  const audio = audioContext();
  const own = { sources: [], onEnd };
  playing = own;
  await audio.resume();
  if (playing !== own) return () => null;
  const start = audio.currentTime + 0.05;
  own.sources = entries.map(({ buffer, when, from, seconds, gain }) => {
    const source = audio.createBufferSource();
    const volume = audio.createGain();
    source.buffer = buffer;
    volume.gain.value = gain;
    source.connect(volume).connect(audio.destination);
    source.start(start + when, from, seconds);
    return source;
  });
  return () => (playing === own ? Math.max(0, audio.currentTime - start) : null);
}
