// Pictures of the mask viewer, with a cache that survives undo.
import { app } from "../../../../scripts/app.js";
import { api } from "../../../../scripts/api.js";
import { fileUrl, parseFile } from "./kit.mjs";

const KEPT = 60;
const pictures = new Map();
let histories = null;

/** The image of a file: {filename, subfolder, type}, a reference such as "a/b.png [input]", or a data URL; null without one. */
export function loadPicture(file) {
  if (!file) return Promise.resolve(null);
  const url = isInline(file) ? file : fileUrl(typeof file === "string" ? parseFile(file) : file);
  if (!pictures.has(url)) {
    const image = new Image();
    image.src = url;
    const loading = image.decode().then(() => image);
    loading.catch(() => pictures.delete(url));
    pictures.set(url, loading);
    if (pictures.size > KEPT) pictures.delete(pictures.keys().next().value);
  }
  return pictures.get(url);
}

/** Whether a reference to a file is a data URL. */
export const isInline = (file) => typeof file === "string" && file.startsWith("data:");

/** The pixels of an image as ImageData. */
export function pixelsOf(image) {
  const canvas = document.createElement("canvas");
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

/** A canvas with RGBA pixels {pixels, width, height}. */
export function pictureCanvas({ pixels, width, height }) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d").putImageData(new ImageData(pixels, width, height), 0, 0);
  return canvas;
}

/** The results of a node in the latest run of this workflow; the page forgets them when it is loaded again. */
export async function lastResults(node) {
  if (node.graph?.isRootGraph === false) return null;
  histories ??= api.fetchApi("/history?max_items=8").then((answer) => answer.json()).catch(() => ({}));
  const workflow = (app.rootGraph ?? app.graph)?.id;
  const runs = Object.values(await histories).reverse();
  const run = runs.find((one) => workflow && one.prompt?.[3]?.extra_pnginfo?.workflow?.id === workflow
    && one.outputs?.[node.id]);
  return run?.outputs[node.id] ?? null;
}
