import assert from "node:assert/strict";
import { test } from "node:test";
import { bars, clock } from "../../web/js/lib/results_view.mjs";

test("bars fill the width and mark speech", () => {
  const shown = bars({ peaks: [0.1, 1, 2, 0], start: 1, end: 5, spans: [[2.2, 2.8], [4, 4.5]] }, 40, 20);
  assert.deepEqual(shown.map((bar) => bar.x), [0, 10, 20, 30]);
  assert.deepEqual(shown.map((bar) => bar.height), [2, 20, 20, 1]);
  assert.deepEqual(shown.map((bar) => bar.speech), [false, true, false, true]);
});

test("an empty recording has no bars", () => {
  assert.deepEqual(bars({ peaks: [], start: 0, end: 0, spans: [] }, 40, 20), []);
});

test("times", () => {
  assert.equal(clock(7.46), "0:07.5");
  assert.equal(clock(3725), "62:05.0");
  assert.equal(clock(-0.4), "-0:00.4");
  assert.equal(clock(59.96), "1:00.0");
});
