// What results look like, without imports from the page, so that node can test it.

export const LINE = 15; // pixels

/** Height of the result of each node class in pixels. What is longer scrolls. */
export const ROOM = {
  BYA_AudioEncode: 74,
  BYA_BestTake: 7 * LINE,
  BYA_BindingReport: 5 * LINE,
  BYA_Dub: 10 * LINE,
  BYA_MaskOverlay: 200,
  BYA_Preflight: 8 * LINE,
  BYA_Scene: 6 * LINE,
  BYA_Script: 8 * LINE,
  BYA_ScriptLines: 8 * LINE,
  BYA_VideoReport: 5 * LINE,
};

/** Level of a finding -> mark and color. */
export const MARKS = { ok: ["✓", "#2ea05e"], warning: ["⚠", "#ffb84d"], error: ["✗", "#e05252"] };

/**
 * Bars of a waveform: [{x, width, height, speech}] in pixels.
 *
 * @param wave {peaks: loudness 0..1 of equal parts, start, end: seconds, spans: [[start, end]] with speech}
 */
export function bars({ peaks, start, end, spans }, width, height) {
  const step = width / Math.max(1, peaks.length);
  return peaks.map((peak, index) => {
    const from = start + ((end - start) * index) / peaks.length;
    const to = start + ((end - start) * (index + 1)) / peaks.length;
    const speech = spans.some(([first, last]) => first < to && last > from);
    return { x: index * step, width: Math.max(1, step - 1), height: Math.max(1, Math.min(1, peak) * height), speech };
  });
}

/** Seconds as "0:07.5" or "62:05.0"; negative ones with a minus. */
export function clock(seconds) {
  const tenths = Math.round(Math.abs(seconds) * 10);
  const minutes = Math.floor(tenths / 600);
  return `${seconds < 0 && tenths ? "-" : ""}${minutes}:${((tenths % 600) / 10).toFixed(1).padStart(4, "0")}`;
}
