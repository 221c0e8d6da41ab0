import assert from "node:assert/strict";
import { test } from "node:test";
import { assignFiles, isDemo, kindOf } from "../../web/js/lib/file_rules.mjs";

const files = (...names) => names.map((name) => ({ name, type: "" }));
const CAST = [{ name: "puppet A", image: 1, audio: 2 }, { name: "puppet B", image: 3, audio: 4 }];
const assigned = (list, cast = CAST, firstFrame = null) => {
  const { pairs, left } = assignFiles(list, cast, firstFrame);
  return { ...Object.fromEntries(pairs.map(([{ name }, loader]) => [loader, name])), left: left.map(({ name }) => name) };
};

test("kinds of files", () => {
  assert.equal(kindOf({ name: "a.PNG", type: "" }), "image");
  assert.equal(kindOf({ name: "a.bin", type: "audio/wav" }), "audio");
  assert.equal(kindOf({ name: "a.png", type: "text/plain" }), null);
  assert.equal(kindOf({ name: "graph.json", type: "" }), null);
  assert.ok(isDemo("bya_A.png") && isDemo("sub/bya_first_frame.png") && !isDemo("anna.png"));
});

test("files are taken in the order of their names", () => {
  const found = assigned(files("10.wav", "9.png", "10.png", "9.wav"));
  assert.deepEqual(found, { 1: "9.png", 2: "9.wav", 3: "10.png", 4: "10.wav", left: [] });
});

test("a recording goes to the image of the same name", () => {
  const found = assigned(files("ben.png", "anna.png", "ben.wav"));
  assert.deepEqual(found, { 1: "anna.png", 3: "ben.png", 4: "ben.wav", left: [] });
});

test("a file with the name of a character goes to it", () => {
  const found = assigned(files("a_puppet_B.png", "voice of Puppet-B.mp3", "x.wav"));
  assert.deepEqual(found, { 3: "a_puppet_B.png", 4: "voice of Puppet-B.mp3", 2: "x.wav", left: [] });
});

test("first frame, listeners, shared recordings, and files that are left", () => {
  const found = assigned(files("first frame.png", "a.png", "b.png", "c.png", "a.wav", "b.wav"),
    [{ name: "", image: 1, audio: 2 }, { name: "", image: 3, audio: 2 }], 9);
  assert.deepEqual(found, { 9: "first frame.png", 1: "a.png", 3: "b.png", 2: "a.wav", left: ["b.wav", "c.png"] });
  assert.deepEqual(assigned(files("a.wav"), [{ name: "", image: 1, audio: null }]).left, ["a.wav"]);
});
