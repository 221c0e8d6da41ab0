// The front-end extension of the pack: registers itself once and forwards each hook to the features in ./lib.
// A feature that cannot be loaded, or whose hook throws, is logged and does not affect the others.
import { app } from "../../../scripts/app.js";
import { loadText, warn } from "./lib/kit.mjs";

const FEATURES = ["colors", "fields", "timeline", "masks", "notices", "binding", "results", "files"];
const PREFIX = "BYA_"; // of the ids of the nodes of this pack

const loaded = await Promise.allSettled(FEATURES.map((name) => import(`./lib/${name}.mjs`)));
const features = loaded.flatMap((result, index) => {
  if (result.status === "fulfilled") return [{ name: FEATURES[index], ...result.value }];
  warn(FEATURES[index], result.reason);
  return [];
});

/** Calls a hook of every feature that has it. */
async function forward(hook, ...values) {
  for (const feature of features) {
    try {
      await feature[hook]?.(...values);
    } catch (error) {
      warn(`${feature.name}.${hook}`, error);
    }
  }
}

/** Calls a hook of every feature that has it, without waiting: nodes are used as soon as the hook returns. */
function forwardNow(hook, ...values) {
  for (const feature of features) {
    try {
      feature[hook]?.(...values);
    } catch (error) {
      warn(`${feature.name}.${hook}`, error);
    }
  }
}

app.registerExtension({
  name: "BindYourAvatar",
  async setup() {
    await loadText().catch((error) => warn("translations", error));
    await forward("setup");
  },
  // only for the nodes of this pack
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (nodeData.name.startsWith(PREFIX)) forwardNow("beforeRegisterNodeDef", nodeType, nodeData);
  },
  nodeCreated(node) {
    if (node.comfyClass?.startsWith(PREFIX)) forwardNow("nodeCreated", node);
  },
  getNodeMenuItems(node) {
    if (!node.comfyClass?.startsWith(PREFIX)) return [];
    return features.flatMap((feature) => feature.getNodeMenuItems?.(node) ?? []);
  },
  afterConfigureGraph: () => forwardNow("afterConfigureGraph"),
});
