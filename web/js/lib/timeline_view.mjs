// Drawing and hit testing of the dialogue timeline. The model is a plain object, see `model` in timeline.mjs.
import { clipsOf, clipSpan, clipTo, clock, peakIn, tickStep, timeToX, xToTime } from "./dialogue_math.mjs";
import { characterColor } from "./palette.mjs";

export const RULER = 20;
export const PROMPTS = 26;
export const LANE = 44; // smallest height of a lane
const EDGE = 7; // pixels at both ends of a clip that trim it
const GAP = 3;

/** Heights and positions of the lanes in a canvas. */
export function layout(count, height) {
  const lane = Math.max(LANE, Math.min(150, (height - RULER - PROMPTS) / Math.max(1, count)));
  return { lane, top: (index) => RULER + index * lane, prompts: RULER + count * lane };
}

/** What is at a point: {kind: "ruler" | "clip" | "lane" | "prompt" | "prompts", ...}. */
export function hit(model, x, y) {
  const { lanes, view } = model;
  const places = layout(lanes.length, model.height);
  if (y < RULER) return { kind: "ruler" };
  if (y >= places.prompts) {
    for (let index = (model.prompts ?? []).length - 1; index >= 0; index--) {
      const { start, end } = model.prompts[index];
      const part = partAt(x, timeToX(view, start), timeToX(view, end));
      if (part) return { kind: "prompt", index, part };
    }
    return { kind: "prompts" };
  }
  const lane = Math.min(lanes.length - 1, Math.floor((y - RULER) / places.lane));
  if (lane < 0) return { kind: "ruler" };
  const { voice, source } = lanes[lane];
  if (source && model.dialogue) {
    const clips = clipsOf(model.dialogue, voice);
    for (let clip = clips.length - 1; clip >= 0; clip--) {
      const [start, end] = clipSpan(clips[clip], source);
      const part = partAt(x, timeToX(view, start), end == null ? Infinity : timeToX(view, end));
      if (part) return { kind: "clip", lane, clip, part };
    }
  }
  return { kind: "lane", lane };
}

function partAt(x, left, right) {
  if (x < left - 3 || x > right + 3) return null;
  const edge = Math.min(EDGE, (right - left) / 3);
  if (x < left + edge) return "start";
  return x > right - edge ? "end" : "body";
}

/** Draws the timeline; the playhead is an element of its own. */
export function draw(context, model) {
  const { width, height, theme } = model;
  const places = layout(model.lanes.length, height);
  context.clearRect(0, 0, width, height);
  context.font = "11px sans-serif";
  context.textBaseline = "middle";
  model.lanes.forEach((lane, index) => drawLane(context, model, lane, index, places));
  drawPrompts(context, model, places);
  drawEnd(context, model, places);
  drawRuler(context, model);
  context.fillStyle = theme.border;
  for (let index = 0; index <= model.lanes.length; index++) context.fillRect(0, places.top(index) - 0.5, width, 1);
}

function drawRuler(context, { width, view, theme }) {
  const step = tickStep(view.scale);
  const digits = step < 1 ? 2 : 0;
  context.fillStyle = theme.bar;
  context.fillRect(0, 0, width, RULER);
  context.textAlign = "left";
  for (let n = Math.floor(view.start / step); n * step <= xToTime(view, width); n++) {
    const x = Math.round(timeToX(view, n * step));
    context.fillStyle = theme.faint;
    for (let part = 0; part < 5; part++) {
      const at = Math.round(timeToX(view, (n + part / 5) * step));
      context.fillRect(at, part ? RULER - 4 : RULER - 9, 1, part ? 4 : 9);
    }
    context.fillText(clock(n * step, digits).replace(" s", "s"), x + 4, RULER / 2 - 1);
  }
}

function drawLane(context, model, lane, index, places) {
  const { width, view, theme } = model;
  const top = places.top(index);
  context.fillStyle = characterColor(index, 0.06);
  context.fillRect(0, top, width, places.lane);
  if (!lane.source || !model.dialogue) {
    context.fillStyle = theme.faint;
    context.textAlign = "left";
    context.fillText(lane.source ? "" : lane.note, 8, top + places.lane / 2);
    return;
  }
  clipsOf(model.dialogue, lane.voice).forEach((clip, number) => {
    const [start, end] = clipSpan(clip, lane.source);
    const left = timeToX(view, start);
    const right = end == null ? width + 20 : timeToX(view, end);
    if (right < 0 || left > width) return;
    const chosen = model.selection?.kind === "clip" && model.selection.lane === index && model.selection.clip === number;
    drawClip(context, model, { lane, index, clip, left, right, top: top + GAP, height: places.lane - 2 * GAP, chosen });
  });
}

function drawClip(context, model, { lane, index, clip, left, right, top, height, chosen }) {
  const { source } = lane;
  const color = (alpha) => characterColor(index, lane.audible ? alpha : alpha * 0.35);
  context.save();
  context.beginPath();
  context.roundRect(left, top, Math.max(2, right - left), height, 4);
  context.fillStyle = color(chosen ? 0.34 : 0.22);
  context.fill();
  context.clip();
  if (source.peaks) {
    drawSpeech(context, model, lane, clip, left, top, height, color);
    drawWaveform(context, model, lane, clip, left, right, top, height, color);
  } else {
    drawHatching(context, left, right, top, height, color(0.3));
  }
  const gain = clip.gain ? ` ${clip.gain > 0 ? "+" : "−"}${Math.abs(clip.gain)} dB` : "";
  const note = source.peaks ? "" : ` ${lane.note}`;
  drawLabel(context, model, `${lane.label}${gain}${note}`, left, right, top);
  context.restore();
  context.beginPath();
  context.roundRect(left + 0.5, top + 0.5, Math.max(2, right - left) - 1, height - 1, 4);
  context.strokeStyle = chosen ? model.theme.text : color(0.9);
  context.lineWidth = chosen ? 1.5 : 1;
  context.stroke();
  if (chosen) {
    context.fillStyle = model.theme.text;
    for (const x of [left + 2, right - 5]) context.fillRect(x, top + height / 2 - 7, 3, 14);
  }
}

function drawSpeech(context, { view }, { source }, clip, left, top, height, color) {
  const to = clipTo(clip, source.seconds);
  context.fillStyle = color(0.22);
  for (const [start, end] of source.spans) {
    const [first, last] = [Math.max(start, clip.from), Math.min(end, to)];
    if (last <= first) continue;
    const x = left + (first - clip.from) * view.scale;
    context.fillRect(x, top, (last - first) * view.scale, height);
  }
}

function drawWaveform(context, { view, width }, { source }, clip, left, right, top, height, color) {
  const middle = top + height / 2 + 4;
  const reach = (height / 2 - 7) * 10 ** ((clip.gain + (source.gain ?? 0)) / 20);
  const limit = height / 2 - 5;
  context.fillStyle = color(0.95);
  const loudest = Math.max(0.05, source.loudest);
  for (let x = Math.max(0, Math.floor(left)); x < Math.min(width, right); x++) {
    const from = clip.from + Math.max(0, x - left) / view.scale;
    const peak = peakIn(source.peaks, from, from + 1 / view.scale) / loudest;
    const size = Math.max(0.5, Math.min(limit, peak * reach));
    context.fillRect(x, middle - size, 1, 2 * size);
  }
}

function drawHatching(context, left, right, top, height, style) {
  context.strokeStyle = style;
  context.lineWidth = 1;
  context.beginPath();
  for (let x = left - height; x < right; x += 9) {
    context.moveTo(x, top + height);
    context.lineTo(x + height, top);
  }
  context.stroke();
}

function drawLabel(context, { theme }, label, left, right, top) {
  const start = Math.max(0, left) + 6;
  if (right - start < 24) return;
  context.textAlign = "left";
  context.font = "10px sans-serif";
  context.fillStyle = theme.text;
  context.fillText(label, start, top + 8);
  context.font = "11px sans-serif";
}

function drawPrompts(context, model, { prompts: top }) {
  const { view, width, theme } = model;
  context.fillStyle = theme.bar;
  context.fillRect(0, top, width, PROMPTS);
  context.textAlign = "left";
  if (!model.prompts?.length) {
    context.fillStyle = theme.faint;
    context.fillText(model.promptHint, 8, top + PROMPTS / 2);
  }
  context.fillStyle = theme.faint;
  for (const time of model.windows) context.fillRect(Math.round(timeToX(view, time)), top, 1, PROMPTS);
  (model.prompts ?? []).forEach(({ start, end, prompt }, index) => {
    const [left, right] = [timeToX(view, start), timeToX(view, end)];
    if (right < 0 || left > width) return;
    const chosen = model.selection?.kind === "prompt" && model.selection.index === index;
    context.save();
    context.beginPath();
    context.roundRect(left + 0.5, top + 3, Math.max(2, right - left - 1), PROMPTS - 6, 4);
    context.fillStyle = chosen ? theme.accent : theme.faintFill;
    context.fill();
    context.strokeStyle = chosen ? theme.text : theme.faint;
    context.stroke();
    context.clip();
    context.fillStyle = theme.text;
    context.fillText(prompt, Math.max(0, left) + 6, top + PROMPTS / 2);
    context.restore();
  });
}

/** Shades what is after the end of the video. */
function drawEnd(context, { view, width, end, theme, height }, places) {
  if (end == null) return;
  const x = timeToX(view, end);
  if (x > width) return;
  const bottom = Math.min(height, places.prompts + PROMPTS);
  context.fillStyle = theme.shade;
  context.fillRect(Math.max(0, x), RULER, width - x, bottom - RULER);
  context.fillStyle = theme.faint;
  context.fillRect(Math.round(x), RULER, 1, bottom - RULER);
}

/** Colors of the page's theme. */
export function theme(root) {
  const style = getComputedStyle(root);
  const value = (name, otherwise) => style.getPropertyValue(name).trim() || otherwise;
  return {
    text: value("--input-text", "#ddd"),
    faint: value("--descrip-text", "#999"),
    border: value("--border-color", "#4e4e4e"),
    bar: value("--comfy-menu-bg", "#353535"),
    faintFill: "rgba(128, 128, 128, 0.25)",
    accent: "rgba(96, 165, 250, 0.45)",
    shade: "rgba(0, 0, 0, 0.25)",
  };
}
