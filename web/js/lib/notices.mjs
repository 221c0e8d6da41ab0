// Notices of a run as badges and toasts, and the sentence of a failed run.
import { app } from "../../../../scripts/app.js";
import { api } from "../../../../scripts/api.js";
import { outputsOf, text, toast } from "./kit.mjs";

const KEY = "bya_notices";
const PREFIX = "BYA_";
const PROGRESS = "$$node-text-preview"; // the page's name of the widget
const ENDED = "Done"; // see `running` in nodes/host.py
const WITH_NOTICES = ["BYA_Scene", "BYA_Dub"]; // whose results contain them
const LIFE = 12000; // milliseconds; errors stay until they are closed, or the next run

let before = new Set(); // sentences of the last run, which are not shown again
let shown = new Set(); // sentences of the current run: several nodes may report the same one
const errors = [];

export function setup() {
  api.addEventListener("execution_start", () => {
    before = shown;
    shown = new Set();
  });
  api.addEventListener("executed", ({ detail }) => {
    removeProgress(nodeOf(detail.node));
    const notices = detail.output?.[KEY] ?? [];
    const added = notices.filter((notice) => !shown.has(notice) && !before.has(notice));
    notices.forEach((notice) => shown.add(notice));
    if (added.length) toast("warn", titleOf(detail.node), added.join("\n"), LIFE);
    if (notices.length) refreshBadges();
  });
  api.addEventListener("execution_error", ({ detail }) => {
    if (detail.node_type?.startsWith(PREFIX)) showError(detail.node_id, sentence(detail));
  });
  watchRejected();
}

/** Removes the text of the progress from a node that has ended, which would take room from its result. */
function removeProgress(node) {
  const index = node?.comfyClass?.startsWith(PREFIX) ? node.widgets.findIndex((one) => one.name === PROGRESS) : -1;
  if (index < 0 || (node.widgets[index].value !== ENDED && !WITH_NOTICES.includes(node.comfyClass))) return;
  node.widgets[index].onRemove?.();
  node.widgets.splice(index, 1);
  node.graph?.setDirtyCanvas(true, true);
}

/** Shows what `validate_inputs` of a node said: the page itself only says that a value was rejected. */
function watchRejected() {
  const queue = api.queuePrompt;
  api.queuePrompt = async function (...values) {
    closeErrors();
    try {
      const answer = await queue.apply(this, values); // other parts of the workflow run
      showRejected(answer?.node_errors);
      return answer;
    } catch (error) {
      showRejected(error?.response?.node_errors);
      throw error;
    }
  };
}

function showRejected(nodes) {
  for (const [id, { class_type: kind, errors: found }] of Object.entries(nodes ?? {})) {
    const rejected = found?.find((one) => one.type === "custom_validation_failed");
    if (kind?.startsWith(PREFIX) && rejected) showError(id, rejected.details.replace(/^[\w.]+ - /, ""));
  }
}

function showError(id, detail) {
  const message = { severity: "error", summary: titleOf(id), detail };
  errors.push(message);
  app.extensionManager.toast.add(message);
}

function closeErrors() {
  for (const message of errors.splice(0)) app.extensionManager.toast.remove?.(message);
}

export function nodeCreated(node) {
  const Badge = window.LGraphBadge;
  if (!Badge || !Array.isArray(node.badges)) return;
  node.badges.push(() => {
    void app.extensionManager.toast.messagesToAdd; // see refreshBadges
    const count = outputsOf(node)?.[KEY]?.length ?? 0;
    const label = count === 1 ? text("notices.one", "1 notice") : text("notices.several", "{count} notices", { count });
    return new Badge({ text: count ? `⚠ ${label}` : "", fgColor: "#1e1e1e", bgColor: "#ffb84d" });
  });
}

/** The message of an error, without what Python adds to it. */
function sentence({ exception_message: message, exception_type: kind }) {
  const plain = String(message ?? "").trim();
  return plain || text("notices.failed", "The node failed with {kind}.", { kind: kind ?? "" });
}

/** Nodes 2.0 evaluate badges again only when a value changes that the page observes, such as the list of toasts. */
function refreshBadges() {
  const { toast: store } = app.extensionManager;
  if (Array.isArray(store.messagesToAdd)) store.messagesToAdd = [...store.messagesToAdd];
  app.canvas?.setDirty?.(true, true);
}

const titleOf = (id) => nodeOf(id)?.title ?? "Bind-Your-Avatar";

/** The node with an execution id, such as "11:3" for node 3 in the subgraph of node 11. */
function nodeOf(id) {
  let graph = app.rootGraph ?? app.graph;
  let node = null;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(part) ?? graph?.getNodeById(Number(part));
    graph = node?.subgraph;
  }
  return node;
}
