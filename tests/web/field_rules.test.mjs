import assert from "node:assert/strict";
import { test } from "node:test";
import { characterChoices, freeName, hasEffect, startValues } from "../../web/js/lib/field_rules.mjs";

test("settings of the video have an effect if they are custom", () => {
  assert.equal(hasEffect("BYA_Scene", "width", { settings: "model defaults" }), false);
  assert.equal(hasEffect("BYA_Scene", "width", { settings: "custom" }), true);
  assert.equal(hasEffect("BYA_Scene", "width", { settings: undefined }), true); // connected
  assert.equal(hasEffect("BYA_Scene", "prompt", {}), true);
});

test("one kind of length", () => {
  const shown = (length) => ["seconds", "frames"].filter((name) => hasEffect("BYA_Preflight", name, { length }));
  assert.deepEqual(shown("as long as the speech"), []);
  assert.deepEqual(shown("seconds"), ["seconds"]);
  assert.deepEqual(shown("frames"), ["frames"]);
});

test("inputs of other router modes", () => {
  const names = ["probe", "probe_steps", "threshold", "num_seeds", "region", "segmenter"];
  const shown = (mode, probe) => names.filter((name) => hasEffect("BYA_EmbeddingRouter", name, { mode, probe }));
  assert.deepEqual(shown("intra", "fixed number of steps"), ["probe", "probe_steps", "num_seeds"]);
  assert.deepEqual(shown("intra", "until the masks converge"), ["probe", "threshold", "num_seeds"]);
  assert.deepEqual(shown("pre", "fixed number of steps"), ["region"]);
  assert.deepEqual(shown("post", "fixed number of steps"), ["segmenter"]);
  assert.deepEqual(shown("manual", "fixed number of steps"), []);
});

test("the override of BYA Mask Refine", () => {
  const shown = (values) => ["character", "strength"].filter((name) => hasEffect("BYA_MaskRefine", name, values));
  assert.deepEqual(shown({ override_mask: false, painted_masks: "" }), []);
  assert.deepEqual(shown({ override_mask: true, painted_masks: "" }), ["character", "strength"]);
  assert.deepEqual(shown({ override_mask: false, painted_masks: "{}" }), ["strength"]);
});

test("custom settings start with those of the model", () => {
  const official = { width: 720, steps: 50 };
  const toy = { width: 96, steps: 24, cfg: null };
  const known = [official, toy];
  assert.deepEqual(startValues({ width: 720, steps: 50, cfg: 7 }, toy, known), { width: 96, steps: 24 });
  assert.deepEqual(startValues({ width: 720, steps: 30 }, toy, known), {}); // typed by the user
  assert.deepEqual(startValues({ width: 720, steps: 50 }, undefined, known), {});
});

test("characters keep a value that is no name", () => {
  assert.deepEqual(characterChoices(["Ada", "Bo", "Bo", ""], "Bo"), ["Ada", "Bo"]);
  assert.deepEqual(characterChoices(["Ada", "Bo"], "1"), ["Ada", "Bo", "1"]);
});

test("default names of characters are unique", () => {
  const names = ["character A", "Ada", "character A", "Ada"];
  assert.equal(freeName("character A", names, 0), "character A");
  assert.equal(freeName("character A", names, 2), "character B");
  assert.equal(freeName("Ada", names, 3), "Ada"); // chosen by someone
});
