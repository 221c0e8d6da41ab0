// What the features share: widgets whose value is stored in a hidden text widget, undo, links, files, translations.
import { app } from "../../../../scripts/app.js";
import { api } from "../../../../scripts/api.js";

/** Logs an error of one feature without stopping the others. */
export const warn = (where, error) => console.warn(`[BindYourAvatar] ${where}:`, error);

/** The widget of a node with this name. */
export const widget = (node, name) => node.widgets?.find((one) => one.name === name);

/** Calls `added` after the method `key` of `owner`, which may be missing. */
export function chain(owner, key, added) {
  const previous = owner[key];
  owner[key] = function (...values) {
    const result = previous?.apply(this, values);
    added.apply(this, values);
    return result;
  };
}

/** Stores the current graph as one step of the undo history. */
export function undoPoint() {
  const tracker = app.extensionManager.workflow?.activeWorkflow?.changeTracker;
  (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker);
}

/** Sets widgets of a node ({name: value}) as one step of the undo history. */
export function edit(node, values) {
  for (const [name, value] of Object.entries(values)) {
    const one = widget(node, name);
    if (!one || one.value === value) continue;
    one.value = value;
    one.callback?.(value, app.canvas, node);
  }
  node.graph?.setDirtyCanvas(true, true);
  undoPoint();
}

/** Hides a widget in classic nodes and in Nodes 2.0. Its value is still saved and sent. */
export function hide(one) {
  if (!one) return;
  one.hidden = true;
  if (one.options) one.options.hidden = true;
}

/** Makes a node at least this large; only for new nodes, before a saved size is applied. */
export const growTo = (node, width, height) =>
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);

/** {filename, subfolder, type} of a file name in a widget, such as "sub/name.wav [output]". */
export function parseFile(text) {
  const [, path, type] = /^(.*?)(?: \[(input|output|temp)\])?$/s.exec(text);
  const parts = path.split("/");
  const filename = parts.pop();
  return { filename, subfolder: parts.join("/"), type: type ?? "input" };
}

/** Address of a file {filename, subfolder, type} on the server; `bust` prevents caching. */
export function fileUrl(file, bust = false) {
  const query = { filename: file.filename, subfolder: file.subfolder ?? "", type: file.type ?? "input" };
  return api.apiURL(`/view?${new URLSearchParams(bust ? { ...query, rand: Math.random() } : query)}`);
}

/** The subgraph node that shows a graph, or null for the root graph. */
function hostOf(graph, within = app.rootGraph ?? app.graph) {
  for (const node of within.nodes) {
    if (!node.subgraph) continue;
    if (node.subgraph === graph) return node;
    const found = hostOf(graph, node.subgraph);
    if (found) return found;
  }
  return null;
}

/** The widget that sets an input: its own, or that of the subgraph node which shows it; undefined behind other nodes. */
export function holder(node, name) {
  const input = node.inputs?.find((one) => one.name === name);
  if (input?.link == null) return widget(node, name);
  const link = linkOf(node.graph, input.link);
  const host = link?.originIsIoNode && hostOf(node.graph);
  const outer = host && host.inputs[link.origin_slot];
  if (!outer) return undefined;
  if (outer.link != null) return holder(host, outer.name);
  return host.widgets?.find((one) => outer.widgetId && one.widgetId === outer.widgetId) ?? widget(host, outer.name);
}

/** All nodes of a class, also in subgraphs. */
export const nodesOf = (kind, graph = app.rootGraph ?? app.graph) =>
  (graph?.nodes ?? []).flatMap((node) => (node.subgraph ? nodesOf(kind, node.subgraph) : node.comfyClass === kind ? [node] : []));

const linkOf = (graph, id) => (id == null ? null : graph.getLink?.(id) ?? graph.links?.get?.(id) ?? graph.links?.[id]);

/**
 * The node behind an input, past reroutes, bypassed nodes and the borders of subgraphs.
 * @returns {{node, slot: number} | null} the node and the index of its output
 */
export function upstream(node, input) {
  let graph = node.graph;
  if (!graph) return null;
  let link = linkOf(graph, node.inputs?.find((one) => one.name === input)?.link);
  for (let step = 0; link && step < 64; step++) {
    if (link.originIsIoNode) {
      const host = hostOf(graph);
      if (!host) return null;
      graph = host.graph;
      link = linkOf(graph, host.inputs[link.origin_slot]?.link);
      continue;
    }
    const origin = graph.getNodeById(link.origin_id);
    if (!origin) return null;
    if (origin.isSubgraphNode?.()) {
      graph = origin.subgraph;
      link = linkOf(graph, graph.outputNode.slots[link.origin_slot]?.linkIds[0]);
      continue;
    }
    if (origin.type === "Reroute" || origin.mode === 4) {
      link = linkOf(graph, passed(origin, link.origin_slot)?.link);
      continue;
    }
    return { node: origin, slot: link.origin_slot };
  }
  return null;
}

/** The input that a reroute or a bypassed node passes on: the one of the output's type, at the same place if possible. */
function passed({ type, inputs = [], outputs = [] }, slot) {
  if (type === "Reroute") return inputs[0];
  return [inputs[slot], ...inputs].find((one) => one && one.type === outputs[slot]?.type);
}

/** The results of a node's last run ({key: list}), also inside subgraphs. */
export const outputsOf = (node) =>
  app.nodeOutputs?.[node.graph?.isRootGraph === false ? `${node.graph.id}:${node.id}` : node.id];

const ENDS = ["execution_success", "execution_error", "execution_interrupted"];

/** Calls `show(blob)` for each live preview of a node, which the page then does not show, and `show(null)` at the end. */
export function takePreviews(node, show) {
  addPreviewStyle();
  const taken = ({ detail }) => {
    if (!isPreviewOf(node, detail)) return;
    for (const key of Object.keys(app.nodePreviewImages ?? {})) {
      if (key === String(node.id) || key.endsWith(`:${node.id}`)) delete app.nodePreviewImages[key]; // classic nodes
    }
    node.preview = node.images = node.imgs = null;
    show(detail.blob);
  };
  const ended = () => show(null);
  api.addEventListener("b_preview_with_metadata", taken);
  for (const event of ENDS) api.addEventListener(event, ended);
  chain(node, "onExecuted", ended);
  chain(node, "onRemoved", () => {
    api.removeEventListener("b_preview_with_metadata", taken);
    for (const event of ENDS) api.removeEventListener(event, ended);
  });
}

/** Nodes 2.0: the page's own preview of a run, which it keeps after the run. */
function addPreviewStyle() {
  if (document.getElementById("bya-preview-style")) return;
  const body = `.lg-node:has(.bya-live) [data-testid^="node-body-"]`;
  document.head.append(element("style", { id: "bya-preview-style", textContent: `${body} > img, ${body} > img + div { display: none; }` }));
}

/** Whether a preview of a run is of this node; `detail` of the event "b_preview_with_metadata". */
function isPreviewOf(node, { nodeId, displayNodeId }) {
  const path = String(displayNodeId ?? nodeId).split(":"); // ids of the subgraph nodes around it, and its own
  return path.at(-1) === String(node.id) && (path.length > 1) === (node.graph?.isRootGraph === false);
}

/**
 * Adds an interactive element to a node. The value stays in the widget `valueName`, a hidden text input.
 *
 * @param node Node in `nodeCreated`.
 * @param valueName Name of the hidden widget with the value; null for an element without one.
 * @param name Name of the element's widget.
 * @param element Element to show.
 * @param options
 *   minHeight: smallest height in pixels, or a function that returns it;
 *   maxHeight: largest height in pixels; without it, the element takes free space of the node;
 *   onValue(value): the value was set, also by undo, paste, and opening a file;
 *   onLook(): links, other nodes or the size may have changed;
 *   onGone(): the node was removed.
 * @returns The value widget and the element's widget, or null if the node has no such input.
 */
export function domWidget(node, valueName, name, element, { minHeight, maxHeight, onValue, onLook, onGone }) {
  const value = valueName === null ? null : widget(node, valueName);
  if (value === undefined) return null;
  hide(value);
  Object.assign(element.style, { minHeight: "0", overflow: "hidden", ...(maxHeight && { maxHeight: `${maxHeight}px` }) });
  element.dataset.captureWheel = "true";
  const shown = node.addDOMWidget(name, `bya_${name}`, element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => (typeof minHeight === "function" ? minHeight() : minHeight),
    ...(maxHeight && { getMaxHeight: () => maxHeight }),
  });
  shown.serialize = false; // not in the workflow file; the option above: not in the prompt

  const look = async () => {
    if (!node.graph || app.configuringGraph) return;
    replaceOld(`${node.graph.id}:${node.id}:${name}`, element);
    try {
      await onLook?.();
    } catch (error) {
      warn(name, error);
    }
  };
  let timer;
  const later = () => {
    clearTimeout(timer);
    timer = setTimeout(look, 120);
  };
  if (value) {
    chain(value, "callback", () => onValue(value.value));
    chain(node, "onConfigure", () => onValue(value.value));
  }
  for (const key of ["onConnectionsChange", "onGraphConfigured", "onAdded"]) chain(node, key, later);
  const observer = new ResizeObserver(later); // also when first shown, as on entering a subgraph
  observer.observe(element);
  api.addEventListener("graphChanged", later);
  chain(node, "onRemoved", () => {
    clearTimeout(timer);
    observer.disconnect();
    api.removeEventListener("graphChanged", later);
    onGone?.();
  });
  return { value, shown };
}

const elements = new Map(); // the last element of each widget

/** Shows `element` in the place of the element that the same widget had before undo, which Nodes 2.0 keeps. */
function replaceOld(place, element) {
  const old = elements.get(place)?.deref();
  if (old && old !== element && old.isConnected && !element.isConnected) old.replaceWith(element);
  elements.set(place, new WeakRef(element));
}

/** Creates an element with properties, attributes (as `attributes`) and children. */
export function element(tag, { attributes = {}, style = {}, ...properties } = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  Object.assign(made.style, style);
  made.append(...children);
  return made;
}

/** Shows a message; severity: "success", "info", "warn" or "error". */
export const toast = (severity, summary, detail, life = 6000) =>
  app.extensionManager.toast.add({ severity, summary, detail, life });

let texts = {};

/** Reads the translations of this pack: the key "bindYourAvatar" of locales/<language>/main.json. */
export async function loadText() {
  const all = (await api.getCustomNodesI18n?.()) ?? {};
  const language = app.extensionManager.setting.get("Comfy.Locale");
  texts = { ...all.en?.bindYourAvatar, ...all[language]?.bindYourAvatar };
}

/**
 * A text of the page in the user's language.
 * @param key Key below "bindYourAvatar", such as "timeline.play"; the file nests it by its parts.
 * @param english The English text; `{name}` is replaced by `values.name`.
 */
export function text(key, english, values = {}) {
  const found = key.split(".").reduce((level, part) => level?.[part], texts);
  const chosen = typeof found === "string" ? found : english;
  return chosen.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}
