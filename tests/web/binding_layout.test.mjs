import assert from "node:assert/strict";
import { test } from "node:test";
import {
  cells, covered, firstMoment, laneAt, lanes, momentText, polyline, scoreRange, spoken, tickStep, timeAt, tracksHeight, valueAt,
} from "../../web/js/lib/binding_layout.mjs";

const english = (key, words, values = {}) => words.replace(/\{(\w+)\}/g, (whole, name) => values[name]);
const speaker = {
  name: "Ada", score: 0.714, margin: 0.5, lag: 2, lag_seconds: 0.08, coverage: 0.314,
  listening: [[0, 0.4], [1.2, 2]], failed: [],
  tracks: { mouth: [0, 1, 0.5, 0], loudness: [0, 1, 1, 0], coverage: [0.3, 0.3, 0.3, 0.3], score: [0.1, 0.9, 0.8, 0], other: null },
};
const listener = {
  ...speaker, name: "Bo", score: null, margin: null, lag: null, lag_seconds: null, listening: [[0, 2]], failed: [[0.5, 0.7]],
  tracks: { ...speaker.tracks, score: null },
};

test("a click selects a time within the video", () => {
  assert.equal(timeAt(50, 200, 4), 1);
  assert.equal(timeAt(-5, 200, 4), 0);
  assert.equal(timeAt(900, 200, 4), 4);
});

test("tracks are stacked and found again", () => {
  const [first, second] = lanes(2);
  assert.ok(first.top < first.middle && first.middle < first.bottom && first.bottom < second.top);
  assert.ok(second.bottom < tracksHeight(2));
  assert.equal(laneAt(second.middle, 2), 1);
  assert.equal(laneAt(second.bottom + 200, 2), -1);
  assert.equal(laneAt(-1, 2), -1);
});

test("values of a track", () => {
  assert.equal(valueAt([1, 2, 3, 4], 1.1, 2), 3);
  assert.equal(valueAt([1, 2, 3, 4], 2, 2), 4);
  assert.equal(valueAt(null, 1, 2), null);
  assert.deepEqual(polyline([0, 2], 100, 0, 10, 0, 1), [[25, 10], [75, 0]]);
  assert.deepEqual(scoreRange([speaker, listener]), [-0.2, 0.9]);
});

test("a character jumps to what failed, else to its first word", () => {
  assert.equal(firstMoment(listener, 2), 0.5);
  assert.equal(firstMoment(speaker, 2), 0.4);
  assert.equal(firstMoment({ ...listener, failed: [] }, 2), 0);
  assert.equal(firstMoment({ ...speaker, listening: [[1, 2]] }, 2), 0);
});

test("spans of speech are those without listening", () => {
  assert.deepEqual(spoken([[0, 0.4], [1.2, 2]], 2), [[0.4, 1.2]]);
  assert.deepEqual(spoken([[0.5, 1]], 2), [[0, 0.5], [1, 2]]);
  assert.deepEqual(spoken([], 2), [[0, 2]]);
  assert.deepEqual(spoken([[0, 2]], 2), []);
});

test("numbers as texts", () => {
  assert.deepEqual(cells(speaker, 2, english), {
    score: "0.71", margin: "+0.50", lag: "+80 ms", listening: "60 %", coverage: "31 %",
  });
  const none = cells(listener, 2, english);
  assert.deepEqual([none.score, none.margin, none.lag, none.listening], ["–", "–", "–", "100 %"]);
  assert.equal(cells({ ...speaker, lag: 0 }, 2, english).lag, "on time");
  assert.ok(Math.abs(covered(speaker.listening) - 1.2) < 1e-9);
});

test("a moment as text", () => {
  assert.equal(momentText(speaker, 0.6, 2, english), "0.60 s · Ada · speaks · own voice 0.90 · mouth 100 % · covers 30 %");
  assert.match(momentText(listener, 1.9, 2, english), /Bo · listens · mouth 0 %/);
});

test("ticks of the time axis have room", () => {
  assert.equal(tickStep(2, 400), 0.5);
  assert.ok((tickStep(600, 300) * 300) / 600 >= 56);
});
