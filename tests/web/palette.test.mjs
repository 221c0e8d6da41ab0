import assert from "node:assert/strict";
import { test } from "node:test";
import { characterColor, characterRgb, TYPES } from "../../web/js/lib/palette.mjs";

test("characters have different colors", () => {
  const colors = [...Array(12).keys()].map((index) => String(characterRgb(index)));
  assert.equal(new Set(colors).size, 12);
});

test("CSS colors", () => assert.equal(characterColor(0, 0.5), "rgba(230, 120, 0, 0.5)"));

test("socket types have different colors", () => assert.equal(new Set(Object.values(TYPES)).size, 6));
