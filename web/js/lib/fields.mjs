// Inputs of the nodes: those without effect are hidden, rare ones are folded, lists of characters show the cast.
import { app } from "../../../../scripts/app.js";
import { api } from "../../../../scripts/api.js";
import { castOf, ownValue } from "./cast.mjs";
import { characterChoices, CUSTOM, freeName, hasEffect, RULES, startValues } from "./field_rules.mjs";
import { chain, edit, holder, nodesOf, text, undoPoint, upstream, warn, widget } from "./kit.mjs";

const OPEN = "bya_advanced"; // property of a node whose rare inputs are shown
const CHARACTER = ["BYA_MaskRefine", "BYA_SelectCharacterMask"];
const SCENE_INPUT = ["BYA_EmbeddingRouter", "BYA_BestTake"];
const SETTINGS = ["BYA_Scene", "BYA_Preflight"];
const definitions = {}; // node class -> {advanced: names, defaults: {name: value}, models: {model: {name: value}}}
const alive = new Set();

export function beforeRegisterNodeDef(nodeType, { name, input }) {
  const declared = { ...input?.required, ...input?.optional };
  const options = Object.entries(declared).map(([key, [, value]]) => [key, value ?? {}]);
  definitions[name] = {
    advanced: options.filter(([, value]) => value.advanced).map(([key]) => key),
    defaults: Object.fromEntries(options.map(([key, value]) => [key, value.default])),
    models: declared.settings?.[1]?.model_defaults ?? {},
  };
}

export function setup() {
  api.addEventListener("graphChanged", refreshAll);
  app.ui?.settings?.addEventListener?.("Comfy.VueNodes.Enabled.change", () => setTimeout(refreshAll, 200));
}

export const afterConfigureGraph = refreshAll;

function refreshAll() {
  for (const node of alive) {
    if (node.graph) refresh(node, false);
  }
}

export function nodeCreated(node) {
  const definition = definitions[node.comfyClass];
  if (!definition) return;
  if (definition.advanced.length) addFold(node);
  alive.add(node);
  chain(node, "onRemoved", () => alive.delete(node));
  chain(node, "onAdded", () => alive.add(node));
  chain(node, "onConfigure", () => refresh(node, false));
  chain(node, "onConnectionsChange", () => {
    if (!app.configuringGraph) setTimeout(() => refresh(node, true), 0);
  });
  for (const one of node.widgets ?? []) {
    chain(one, "callback", () => changed(node, one));
  }
  refresh(node, true);
  if (node.comfyClass === "BYA_FaceEncode") setTimeout(() => nameCharacter(node), 0);
}

/** Names must be unique: a character that is added or copied gets the next default name. Also in a blueprint. */
function nameCharacter(node) {
  const shown = node.graph && holder(node, "name");
  if (!shown) return;
  const all = nodesOf(node.comfyClass);
  const name = freeName(shown.value, all.map((one) => ownValue(one, "name")), all.indexOf(node));
  if (name !== shown.value) shown.value = name;
}

function changed(node, one) {
  if (SETTINGS.includes(node.comfyClass) && one.name === "settings" && one.value === CUSTOM) fillSettings(node);
  if (RULES[node.comfyClass]) refresh(node, true);
}

/** Custom settings start with those of the model. */
function fillSettings(node) {
  const { defaults, models } = definitions[node.comfyClass];
  const source = node.comfyClass === "BYA_Scene" ? upstream(node, "model")?.node : node;
  const model = models[source && ownValue(source, "model")];
  const current = Object.fromEntries((node.widgets ?? []).map((one) => [one.name, one.value]));
  const values = startValues(current, model, [defaults, ...Object.values(models)]);
  if (Object.keys(values).length) edit(node, values);
}

/** Hides what has no effect; with `resize`, the node becomes smaller or larger by what was hidden or shown. */
function refresh(node, resize) {
  try {
    const before = node.computeSize()[1];
    if (fold(node) && resize) {
      node.setSize([node.size[0], Math.max(node.computeSize()[1], node.size[1] + node.computeSize()[1] - before)]);
    }
    if (CHARACTER.includes(node.comfyClass)) fillCharacters(node);
    node.graph?.setDirtyCanvas?.(true, true);
  } catch (error) {
    warn(node.comfyClass, error);
  }
}

function fold(node) {
  const { advanced } = definitions[node.comfyClass];
  const linked = (name) => node.inputs?.some((one) => one.name === name && one.link != null);
  const values = {};
  for (const one of node.widgets ?? []) values[one.name] = linked(one.name) ? undefined : one.value;
  values.override_mask = linked("override_mask");
  const folded = !isNodes2() && !node.properties?.[OPEN]; // Nodes 2.0 folds them itself
  let count = 0;
  let rare = 0;
  for (const one of node.widgets ?? []) {
    const isRare = advanced.includes(one.name);
    const works = hasEffect(node.comfyClass, one.name, values);
    if (isRare && works) rare++;
    if (!isRare && !(one.name in (RULES[node.comfyClass] ?? {}))) continue;
    count += setHidden(one, !linked(one.name) && (!works || (isRare && folded)));
  }
  const button = widget(node, OPEN);
  if (button) {
    button.label = folded
      ? text("fields.more", "Show advanced inputs ({count})", { count: rare })
      : text("fields.less", "Hide advanced inputs");
    count += setHidden(button, isNodes2() || rare === 0);
  }
  return count > 0;
}

function setHidden(one, hidden) {
  const isHidden = Boolean(one.hidden);
  one.hidden = hidden;
  if (one.options) one.options.hidden = hidden;
  return isHidden === hidden ? 0 : 1;
}

const isNodes2 = () => Boolean(window.LiteGraph?.vueNodesMode);

/** A button for the rare inputs, in classic nodes; after the ordinary inputs. */
function addFold(node) {
  const button = node.addWidget("button", OPEN, null, () => {
    node.properties[OPEN] = !node.properties[OPEN];
    refresh(node, true);
    undoPoint();
  });
  button.serialize = false;
  button.options.serialize = false;
}

function fillCharacters(node) {
  const scene = sceneOf(node);
  const list = widget(node, "character");
  const names = scene ? castOf(scene).map((one) => one.name) : [];
  if (!list?.options || !names.length) return;
  const choices = characterChoices(names, list.value);
  if (String(choices) !== String(list.options.values)) list.options.values = choices;
}

/** The BYA Scene behind the routing of a node; undefined if there is none in the graph. */
function sceneOf(node) {
  let origin = upstream(node, "routing")?.node;
  for (let step = 0; origin && step < 100; step++) {
    if (origin.comfyClass === "BYA_Scene") return origin;
    origin = upstream(origin, SCENE_INPUT.includes(origin.comfyClass) ? "scene" : "routing")?.node;
  }
  return undefined;
}
