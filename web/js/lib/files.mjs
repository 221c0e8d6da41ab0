// Images and recordings of several characters in one step: dropped together, or chosen from the menu of a node.
import { app } from "../../../../scripts/app.js";
import { api } from "../../../../scripts/api.js";
import { characterNodes, ownValue } from "./cast.mjs";
import { assignFiles, isDemo, kindOf } from "./file_rules.mjs";
import { holder, nodesOf, text, toast, undoPoint, upstream, warn, widget } from "./kit.mjs";

const MUTED = 2; // mode of a node
const SCENES = ["BYA_Scene", "BYA_Preflight"];
const ENDS = ["BYA_EmbeddingRouter", "BYA_MaskRefine", "BYA_Sampler"];
const FILES = "image/*,audio/*";

const media = (event) => [...(event.dataTransfer?.files ?? [])].filter(kindOf);
const isDrag = (event) => [...(event.dataTransfer?.items ?? [])].some((item) => item.kind === "file" && /^(image|audio)\//.test(item.type));

export function setup() {
  document.addEventListener("drop", dropped, true);
}

/** Files on the canvas, or on a subgraph node: the page would add a node for each. */
function dropped(event) {
  const files = media(event);
  if (event.defaultPrevented || !files.length || files.length < event.dataTransfer.files.length) return;
  const under = app.dragOverNode ?? nodeOf(event.target) ?? nodeAt(event);
  const onSubgraph = under?.isSubgraphNode?.();
  if (under?.onDragDrop && !onSubgraph) return; // see `nodeCreated`; other nodes do what they do
  const several = new Set(files.map(kindOf)).size > 1;
  const target = (onSubgraph && targetOf(innerNode(under))) || (several ? onlyScene() : null);
  if (!target?.characters.length) return;
  event.preventDefault();
  event.stopPropagation();
  app.dragOverNode = null;
  load(files, target);
}

/** The node of an element of Nodes 2.0. */
function nodeOf(element) {
  const id = element?.closest?.("[data-node-id]")?.dataset.nodeId;
  return id == null ? null : (app.canvas.graph?.getNodeById(id) ?? app.canvas.graph?.getNodeById(Number(id)));
}

/** The node at the pointer in classic nodes. */
function nodeAt(event) {
  if (!event.clientX && !event.clientY) return null;
  app.canvas.adjustMouseEvent(event);
  return app.canvas.graph?.getNodeOnPos(event.canvasX, event.canvasY);
}

export function nodeCreated(node) {
  if (!accepts(node)) return;
  node.onDragOver = isDrag;
  node.onDragDrop = (event) => {
    const files = media(event);
    const target = files.length ? targetOf(node) : null;
    if (!target?.characters.length) return false;
    load(files, target);
    return true;
  };
}

const accepts = ({ comfyClass }) => [...SCENES, ...ENDS, "BYA_Cast", "BYA_FaceEncode", "BYA_AudioEncode"].includes(comfyClass);

export function getNodeMenuItems(node) {
  const target = accepts(node) ? targetOf(node) : null;
  if (!target?.characters.length) return [];
  return [{ content: text("files.choose", "Load images and recordings…"), callback: () => choose(target) }];
}

/** Opens a file chooser; one selection for all characters. */
function choose(target) {
  const chooser = Object.assign(document.createElement("input"), { type: "file", multiple: true, accept: FILES });
  chooser.addEventListener("change", () => load([...chooser.files].filter(kindOf), target));
  chooser.click();
}

/** The node of this pack in a subgraph that says most about its characters. */
function innerNode(host) {
  const inside = host.subgraph?.nodes ?? [];
  return [...SCENES, "BYA_FaceEncode"].map((kind) => inside.find((one) => one.comfyClass === kind)).find(Boolean);
}

function onlyScene() {
  const scenes = nodesOf("BYA_Scene");
  return scenes.length === 1 ? targetOf(scenes[0]) : null;
}

/** The loaders of the characters that a node is about, and of the first frame: {characters, firstFrame}. */
function targetOf(node) {
  if (!node) return null;
  if (node.comfyClass === "BYA_AudioEncode") return { characters: [{ name: "", image: null, audio: loaderOf(node, "audio") }], firstFrame: null };
  if (node.comfyClass === "BYA_FaceEncode") return { characters: [loadersOf(node)], firstFrame: null };
  let scene = node;
  for (let step = 0; scene && ENDS.includes(scene.comfyClass) && step < 100; step++) {
    scene = upstream(scene, scene.comfyClass === "BYA_EmbeddingRouter" ? "scene" : "routing")?.node;
  }
  const faces = scene ? facesOf(scene) : null;
  if (!faces?.length) return null;
  return { characters: faces.map(loadersOf), firstFrame: loaderOf(scene, "first_frame") };
}

function facesOf(node) {
  if (node.comfyClass !== "BYA_Cast") return characterNodes(node);
  const parts = node.inputs.filter((one) => one.type === "BYA_CAST" && one.link != null).map((one) => characterNodes(node, one.name));
  return parts.includes(null) ? null : parts.flat();
}

function loadersOf(face) {
  const voice = upstream(face, "speech")?.node;
  return {
    name: String(ownValue(face, "name") ?? ""),
    image: loaderOf(face, "image"),
    audio: voice?.comfyClass === "BYA_AudioEncode" ? loaderOf(voice, "audio") : null,
  };
}

/** The Load Image or Load Audio behind an input; null if another node is. */
function loaderOf(node, input) {
  const origin = upstream(node, input)?.node;
  return ["LoadImage", "LoadAudio"].includes(origin?.type) ? origin : null;
}

const nameOf = (loader) => (loader.type === "LoadImage" ? "image" : "audio");

/** Uploads files and shows them in the loaders; one step of the undo history. */
async function load(files, { characters, firstFrame }) {
  const { pairs, left } = assignFiles(files, characters, firstFrame);
  try {
    const names = await Promise.all(pairs.map(([file]) => upload(file)));
    pairs.forEach(([, loader], index) => show(loader, names[index]));
  } catch (error) {
    warn("files", error);
    toast("error", text("files.failed", "The files were not loaded"), error.message);
    return;
  }
  const lines = pairs.map(([file, loader]) => `${loader.title}: ${file.name}`);
  if (left.length) lines.push(text("files.left", "Not used: {files}", { files: left.map((file) => file.name).join(", ") }));
  const replaced = pairs.some(([file, loader]) => kindOf(file) === "image" && loader !== firstFrame);
  if (replaced && firstFrame && isDemo(holder(firstFrame, "image")?.value) && firstFrame.mode !== MUTED) {
    firstFrame.mode = MUTED;
    lines.push(text("files.muted", "{title} is muted, because it shows the characters of the demo (Ctrl+M turns it on)", { title: firstFrame.title }));
  }
  app.canvas.setDirty(true, true);
  undoPoint();
  toast(left.length ? "warn" : "success", text("files.loaded", "Files of the characters"), lines.join("\n"), 10000);
}

/** Stores a file in the input folder; returns its name there. */
async function upload(file) {
  const form = new FormData();
  form.append("image", file, file.name); // also for recordings: the server has one address for all files
  form.append("type", "input");
  const answer = await api.fetchApi("/upload/image", { method: "POST", body: form });
  if (!answer.ok) throw new Error(`${file.name}: ${answer.status} ${answer.statusText}`);
  const { name, subfolder } = await answer.json();
  return subfolder ? `${subfolder}/${name}` : name;
}

function show(loader, name) {
  const own = widget(loader, nameOf(loader));
  const shown = holder(loader, nameOf(loader)); // of a subgraph node, if the input is shown there
  for (const one of new Set([own, shown])) {
    if (!one) continue;
    const { values } = one.options ?? {};
    if (Array.isArray(values) && !values.includes(name)) values.push(name);
    one.value = name;
    one.callback?.(name, app.canvas, loader);
  }
}
