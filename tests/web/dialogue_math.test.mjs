import assert from "node:assert/strict";
import { test } from "node:test";
import * as math from "../../web/js/lib/dialogue_math.mjs";

const source = { seconds: 4, offset: 0.5, gain: -6 };
const clip = { start: 1, from: 0.5, to: 3, gain: 0 };
const near = (actual, expected) => assert.ok(Math.abs(actual - expected) < 1e-6, `${actual} instead of ${expected}`);

test("a dialogue without edits is an empty text", () => {
  for (const text of ["", "{}", '{"voices":[{}]}', '{"characters":[0,1]}', '{"voices":[{"clips":[{"start":0}]}]}']) {
    assert.equal(math.writeDialogue(math.readDialogue(text)), "");
  }
});

test("a dialogue keeps what was edited", () => {
  const text = '{"voices":[{"clips":[{"start":1.5,"to":2}]},{"mute":true}],"characters":[1,0]}';
  assert.equal(math.writeDialogue(math.readDialogue(text)), text);
});

test("invalid dialogues are not edited", () => {
  for (const text of ["{", "[]", '{"characters":[1,1]}', '{"voices":3}']) assert.equal(math.readDialogue(text), null);
});

test("clips of one voice change, those of the others stay", () => {
  const empty = math.readDialogue("");
  const edited = math.withClip(empty, 1, 0, { ...math.clipsOf(empty, 1)[0], start: 2 });
  assert.equal(math.writeDialogue(edited), '{"voices":[{},{"clips":[{"start":2}]}]}');
  assert.equal(math.writeDialogue(empty), "");
  const muted = math.withVoice(edited, 1, () => ({ mute: true }));
  assert.equal(math.writeDialogue(muted), '{"voices":[{},{"clips":[{"start":2}],"mute":true}]}');
  const unmuted = math.withVoice(muted, 1, () => ({ mute: false }));
  assert.equal(math.writeDialogue(unmuted), math.writeDialogue(edited));
});

test("swapping twice restores the voices", () => {
  const once = math.swapVoices(math.readDialogue(""), 3, 0, 2);
  assert.deepEqual(math.voicesOf(once, 3), [2, 1, 0]);
  assert.equal(math.writeDialogue(math.swapVoices(once, 3, 0, 2)), "");
  assert.deepEqual(math.voicesOf(once, 4), [2, 1, 0, 3]);
});

test("swapping keeps the voices of characters that are not in the cast", () => {
  const swapped = math.swapVoices({ voices: [], characters: [2, 0, 1] }, 2, 0, 1);
  assert.deepEqual(math.readDialogue(math.writeDialogue(swapped)).characters, [0, 2, 1]);
});

test("spans of clips in the video", () => {
  assert.deepEqual(math.clipSpan(clip, source), [1.5, 4]);
  assert.deepEqual(math.clipSpan({ ...clip, to: null }, source), [1.5, 5]);
  assert.deepEqual(math.clipSpan({ ...clip, to: null }, { seconds: null }), [1, null]);
});

test("moving", () => {
  assert.equal(math.movedClip(clip, source, 2).start, 1.5);
  assert.equal(math.movedClip(clip, source, -3).start, -0.5, "not before the video");
});

test("trimming the start keeps what is heard in place", () => {
  const trimmed = math.trimmedStart(clip, source, 2);
  assert.deepEqual([trimmed.start, trimmed.from, math.clipSpan(trimmed, source)[1]], [1.5, 1, 4]);
  assert.equal(math.trimmedStart(clip, source, 0).from, 0, "not before the recording");
  near(math.clipSpan(math.trimmedStart(clip, source, 9), source)[0], 4 - math.MIN_CLIP);
  const early = { start: -0.5, from: 2, to: 3, gain: 0 };
  assert.equal(math.trimmedStart(early, source, -1).from, 2, "not before the video");
});

test("trimming the end", () => {
  assert.equal(math.trimmedEnd(clip, source, 3).to, 2);
  assert.equal(math.trimmedEnd(clip, source, 9).to, null, "the end of the recording");
  near(math.trimmedEnd(clip, source, 0).to, 0.5 + math.MIN_CLIP);
});

test("splitting", () => {
  const [first, second] = math.splitClip(clip, source, 2.5);
  assert.deepEqual([math.clipSpan(first, source), math.clipSpan(second, source)], [[1.5, 2.5], [2.5, 4]]);
  assert.equal(first.to, second.from);
  assert.equal(math.splitClip(clip, source, 1.5), null);
  assert.equal(math.splitClip(clip, source, 4), null);
});

test("snapping", () => {
  assert.equal(math.snapped(1.03, [0, 1, 2], 0.1), 1);
  assert.equal(math.snapped(1.3, [0, 1, 2], 0.1), 1.3);
  near(math.snapped(1.3, [0, 2], 0.1, [0, 0.75]), 1.25);
  near(math.toFrame(0.49), 0.48);
});

test("frames of a video", () => {
  assert.deepEqual([0, 0.04, 0.08, 0.2, 1, 7.8].map(math.framesFor), [1, 1, 5, 5, 25, 197]);
});

test("end of the video", () => {
  const [seconds, frames] = [2, 50];
  near(math.videoEnd({ length: "seconds", seconds, frames }, 9, 9), 1.96);
  near(math.videoEnd({ length: "frames", seconds, frames }, 9, 9), 1.96);
  near(math.videoEnd({ length: "as long as the speech", seconds, frames }, 0.9, 9), 1);
  assert.equal(math.videoEnd({ length: "as long as the speech" }, 0, undefined), null);
  near(math.videoEnd({ length: "seconds" }, 9, 49), 1.96);
  near(math.videoEnd({}, 9, 49), 1.96);
});

test("timed prompts", () => {
  const spans = math.readPrompts("4 to 5 s: Bo nods\n\n 0 - 2.5: Ada laughs: loudly ");
  assert.deepEqual(spans[0], { start: 0, end: 2.5, prompt: "Ada laughs: loudly" });
  assert.equal(math.writePrompts(spans), "0 - 2.5: Ada laughs: loudly\n4 - 5: Bo nods");
  for (const text of ["Ada laughs", "2 - 1: Ada", "1 - : Ada"]) assert.equal(math.readPrompts(text), null);
});

test("spans of prompts stay between their neighbors", () => {
  const spans = math.readPrompts("0 - 1: a\n2 - 3: b\n4 - 6: c");
  assert.deepEqual(math.changedSpan(spans, 1, "body", 9), { start: 3, end: 4, prompt: "b" });
  assert.equal(math.changedSpan(spans, 1, "start", 0).start, 1);
  assert.equal(math.changedSpan(spans, 1, "end", 1).end, 2.2);
  assert.equal(math.changedSpan(spans, 2, "end", 60).end, 60);
  assert.deepEqual(math.freeRange(spans, 1.2, 2), { start: 1.2, end: 2 });
  assert.equal(math.freeRange(spans, 2.5, 2), null);
  assert.equal(math.freeRange(spans, 1.9, 2), null);
});

test("zooming keeps the time under the pointer", () => {
  const view = math.fitView(10, 500);
  const closer = math.zoomed(view, 4, 250, 10, 500);
  near(math.xToTime(closer, 250), math.xToTime(view, 250));
  assert.deepEqual(math.zoomed(closer, 1e-6, 0, 10, 500), view);
  near(math.scrolled(closer, 1e9, 10, 500).start + 500 / closer.scale, math.reach(10));
  assert.ok(math.tickStep(view.scale) * view.scale >= 64);
});

test("clock", () => {
  assert.deepEqual([1.256, 65.5, 600].map((time) => math.clock(time)), ["1.26 s", "1:05.50", "10:00.00"]);
  assert.equal(math.clock(61, 0), "1:01");
});

test("peaks and loud spans", () => {
  const rate = 8000;
  const samples = new Float32Array(2 * rate).map((_, n) => (n >= rate / 2 && n < rate ? 0.5 * (-1) ** n : 0));
  const peaks = math.peaksOf([samples], rate);
  assert.equal(peaks.length, 2 * math.PEAKS);
  assert.deepEqual(math.loudSpans(peaks), [[0.5, 1]]);
  assert.deepEqual([math.peakIn(peaks, 0, 0.4), math.peakIn(peaks, 0.4, 0.6)], [0, 0.5]);
  assert.deepEqual(math.loudSpans(math.peaksOf([new Float32Array(rate)], rate)), []);
});

test("what is played", () => {
  const dialogue = math.withClip(math.readDialogue(""), 0, 0, { ...clip, gain: 6 });
  const lanes = [
    { voice: 0, source, audible: true },
    { voice: 1, source: { seconds: 1 }, audible: false },
    { voice: 2, source: { seconds: null }, audible: true },
  ];
  const [entry, ...rest] = math.playlist(dialogue, lanes, 2);
  assert.deepEqual(entry, { character: 0, voice: 0, when: 0, from: 1, seconds: 2, gain: 1 });
  assert.equal(rest.length, 0);
  assert.equal(math.playlist(dialogue, lanes, 0)[0].when, 1.5);
  assert.equal(math.playlist(dialogue, lanes, 4).length, 0);
});
