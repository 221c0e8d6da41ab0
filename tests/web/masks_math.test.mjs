import assert from "node:assert/strict";
import test from "node:test";
import * as masks from "../../web/js/lib/masks_math.mjs";

const GRID = [3, 2, 4];
const NAMES = ["Ada", "Bo"];
const { ADD, KEEP, REMOVE } = masks;

test("strokes survive the picture that stores them", () => {
  const strokes = masks.emptyStrokes(GRID, NAMES, 5);
  masks.tileOf(strokes, 1, 2).fill(ADD, 10, 40);
  masks.tileOf(strokes, 0, 0)[7] = REMOVE;
  const sheet = masks.toSheet(strokes);
  const painted = { grid: GRID, characters: NAMES, columns: sheet.columns, start: 5 };
  assert.deepEqual(masks.fromSheet(painted, sheet.pixels, sheet.width, sheet.height), strokes);
  assert.equal(masks.fromSheet(painted, sheet.pixels, sheet.width - 1, sheet.height), null);
  assert.equal(masks.fromSheet({ ...painted, characters: ["Ada"] }, sheet.pixels, sheet.width, sheet.height), null);
});

test("white, black and transparent pixels are what the Python side reads", () => {
  const strokes = masks.emptyStrokes([1, 1, 1], ["Ada"]);
  strokes.tiles[0].set([ADD, REMOVE, KEEP]);
  const { pixels } = masks.toSheet(strokes);
  assert.deepEqual([...pixels.slice(0, 12)], [255, 255, 255, 255, 0, 0, 0, 255, 0, 0, 0, 0]);
});

test("many or large tiles stay small", () => {
  assert.equal(masks.strokeScale([13, 8, 12], 2), 16);
  assert.equal(masks.strokeScale([13, 30, 45], 2), 5);
  const scale = masks.strokeScale([500, 30, 45], 4);
  assert.ok(scale >= 1 && 4 * 500 * 30 * 45 * scale * scale <= 24_000_000);
});

test("a brush paints a line with round ends", () => {
  const tile = new Uint8Array(20 * 10);
  masks.visitLine(20, 10, [5, 5], [15, 5], 2, (index) => { tile[index] = ADD; });
  const row = (y) => [...tile.slice(20 * y, 20 * (y + 1))].map((value) => value / 2).join("");
  assert.equal(row(4), "00011111111111111000");
  assert.equal(row(2), "0".repeat(20));
  assert.equal(row(3)[5], "1");
  assert.equal(row(3)[3], "0");
  let count = 0;
  masks.visitLine(20, 10, [-50, -50], [-40, -40], 3, () => { count += 1; });
  assert.equal(count, 0);
});

test("fill stops at the edge of a region", () => {
  const ring = new Set();
  masks.visitLine(20, 20, [10, 10], [10, 10], 7, (index) => ring.add(index));
  masks.visitLine(20, 20, [10, 10], [10, 10], 4, (index) => ring.delete(index));
  const inside = (index) => ring.has(index);
  const hole = masks.connected(20, 20, [10, 10], inside);
  assert.ok(hole.length > 30 && hole.length < 60);
  assert.equal(masks.connected(20, 20, [0, 0], inside).length + ring.size + hole.length, 400);
});

test("exclusive paint is taken away from the other characters", () => {
  const strokes = masks.emptyStrokes(GRID, NAMES);
  masks.setPixel(strokes, 0, 1, 9, ADD, true);
  masks.setPixel(strokes, 0, 1, 10, ADD, false);
  masks.setPixel(strokes, 0, 1, 11, REMOVE, true);
  assert.deepEqual([...masks.tileOf(strokes, 1, 1).slice(9, 12)], [REMOVE, KEEP, KEEP]);
  const mask = masks.apply(new Uint8Array(strokes.width * strokes.height).fill(100), masks.tileOf(strokes, 0, 1));
  assert.deepEqual([...mask.slice(8, 12)], [100, 255, 255, 0]);
});

test("characters are matched by name", () => {
  const strokes = masks.emptyStrokes(GRID, NAMES);
  masks.tileOf(strokes, 1, 0)[3] = ADD;
  const other = masks.reorder(strokes, ["Bo", "Cy", "Ada"]);
  assert.equal(masks.tileOf(other, 0, 0)[3], ADD);
  assert.ok(!masks.isPainted(masks.tileOf(other, 1, 0)));
  assert.ok(masks.fits(strokes, { grid: GRID, names: ["Bo", "Ada"] }));
  assert.ok(!masks.fits(strokes, { grid: GRID, names: ["Bo"] }));
  assert.ok(!masks.fits(strokes, { grid: [3, 2, 5], names: NAMES }));
  assert.ok(!masks.fits(strokes, { grid: GRID, names: NAMES, start: 4 }));
});

test("masks are enlarged smoothly and tinted in the colors of their characters", () => {
  const big = masks.enlarge(new Uint8Array([0, 255]), 1, 2, 4);
  assert.deepEqual([...big.slice(0, 8)], [0, 0, 32, 96, 159, 223, 255, 255]);
  const pixels = masks.tint([new Uint8Array([255, 0, 255]), new Uint8Array([255, 0, 0]), null],
    [[200, 0, 0], [0, 100, 0], [1, 1, 1]], 3, 1);
  assert.deepEqual([...pixels.slice(4, 8)], [0, 0, 0, 0]);
  assert.deepEqual([...pixels.slice(8, 12)], [200, 0, 0, 255]); // an edge
  assert.equal(masks.coverage(new Uint8Array([255, 0, 128, 127])), 0.5);
  const sheet = new Uint8ClampedArray(4 * 4 * 2).map((_, index) => Math.floor(index / 4));
  const found = masks.readMasks({ grid: [2, 1, 2], names: ["Ada", "Bo"], columns: 2 }, sheet, 4);
  assert.deepEqual(found.map((tile) => [...tile]), [[0, 1], [2, 3], [4, 5], [6, 7]]);
});

test("time of latent frames", () => {
  const entry = { fps: 25, time_factor: 4 };
  assert.deepEqual([0, 1, 2].map((frame) => masks.frameSeconds(frame, entry)), [0, 0.04, 0.2]);
  assert.equal(masks.frameSeconds(0, { ...entry, start: 10 }), 37 / 25);
});

test("descriptions of paintings", () => {
  const painted = { file: "a.png [input]", grid: GRID, characters: NAMES, columns: 3 };
  assert.deepEqual(masks.parsePainted(JSON.stringify(painted)), painted);
  for (const value of ["", "{", "[]", "null", JSON.stringify({ ...painted, columns: 0 })]) {
    assert.equal(masks.parsePainted(value), null);
  }
});
