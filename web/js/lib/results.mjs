// Results shown on the nodes that made them: findings, reports, waveforms, overlays.
import { chain, domWidget, element, fileUrl, outputsOf, text } from "./kit.mjs";
import { bars, clock, MARKS } from "./results_view.mjs";

const NODES = [
  "BYA_Scene", "BYA_Preflight", "BYA_AudioEncode", "BYA_MaskOverlay", "BYA_BindingReport", "BYA_VideoReport", "BYA_BestTake",
  "BYA_Script", "BYA_ScriptLines",
];
const KEYS = ["bya_findings", "bya_waveform", "bya_overlay", "bya_table", "bya_text"];
const LINE = 15; // pixels
const HEIGHTS = { bya_waveform: 74, bya_overlay: 200 };
const MAX_LINES = 10;

export function nodeCreated(node) {
  if (NODES.includes(node.comfyClass)) new Result(node);
}

class Result {
  constructor(node) {
    this.node = node;
    this.height = 0;
    this.root = element("div", {
      className: "bya-result",
      style: { display: "none", font: "11px sans-serif", color: "var(--input-text, #ddd)", lineHeight: `${LINE}px` },
    });
    const { shown } = domWidget(node, null, "result", this.root, {
      minHeight: () => this.height,
      onLook: () => this.show(outputsOf(node), false),
    });
    this.widget = shown;
    this.hide(true);
    chain(node, "onExecuted", (output) => this.show(output, true));
  }

  hide(hidden) {
    this.root.style.display = hidden ? "none" : "flex";
    this.widget.hidden = this.widget.options.hidden = hidden;
  }

  /** Shows the results of a run; the node grows by what is new with `grow`. */
  show(output, grow) {
    const given = KEYS.filter((key) => output?.[key]?.length);
    const content = JSON.stringify(given.map((key) => output[key]));
    if (content === this.content) return;
    this.content = content;
    const before = this.height;
    this.height = 0;
    const parts = given.map((key) => this[key](output[key]));
    this.root.replaceChildren(...parts);
    Object.assign(this.root.style, { flexDirection: "column", gap: "4px" });
    this.hide(!given.length);
    const { node } = this;
    if (grow && this.height > before) node.setSize([node.size[0], Math.max(node.size[1] + this.height - before, node.computeSize()[1])]);
    node.graph?.setDirtyCanvas?.(true, true);
  }

  bya_findings(findings) {
    const order = ["error", "warning", "ok"];
    const sorted = [...findings].sort((one, other) => order.indexOf(one.level) - order.indexOf(other.level));
    const lines = sorted.map(({ subject, level, text: sentence }) => {
      const [mark, color] = MARKS[level] ?? MARKS.ok;
      return element("div", {}, element("span", { textContent: `${mark} `, style: { color } }), element("b", { textContent: `${subject}: ` }), sentence);
    });
    this.height += LINE * Math.min(MAX_LINES, 2 * lines.length) + 4;
    return element("div", { style: { overflowY: "auto", flex: "1 1 0", minHeight: "0", userSelect: "text" } }, ...lines);
  }

  bya_text(lines) {
    const content = lines.join("\n");
    this.height += LINE * Math.min(MAX_LINES, content.split("\n").length + 1) + 4;
    return element("div", {
      textContent: content,
      style: { overflowY: "auto", flex: "1 1 0", minHeight: "0", whiteSpace: "pre-wrap", userSelect: "text" },
    });
  }

  bya_table([content]) {
    this.height += LINE * Math.min(MAX_LINES, content.split("\n").length + 1) + 4;
    return element("div", {
      textContent: content,
      style: { overflow: "auto", flex: "1 1 0", minHeight: "0", whiteSpace: "pre", fontFamily: "monospace", userSelect: "text" },
    });
  }

  bya_overlay([file]) {
    this.height += HEIGHTS.bya_overlay;
    return element("img", {
      src: fileUrl(file),
      alt: text("results.overlay", "Character masks over the video"),
      style: { flex: "1 1 0", minHeight: "0", width: "100%", objectFit: "contain" },
    });
  }

  bya_waveform([wave]) {
    this.height += HEIGHTS.bya_waveform;
    const canvas = element("canvas", {
      width: 720,
      height: 96,
      attributes: { role: "img", "aria-label": text("results.waveform", "Loudness of the recording, with speech marked") },
      style: { flex: "1 1 0", minHeight: "0", width: "100%" },
    });
    const pen = canvas.getContext("2d");
    for (const { x, width, height, speech } of bars(wave, canvas.width, canvas.height)) {
      pen.fillStyle = speech ? "#22d3ee" : "#8b8f9c";
      pen.fillRect(x, (canvas.height - height) / 2, width, height);
    }
    const spoken = wave.spans.reduce((sum, [start, end]) => sum + end - start, 0);
    const label = text("results.speech", "{start} to {end}, {speech} s of speech", {
      start: clock(wave.start), end: clock(wave.end), speech: spoken.toFixed(1),
    });
    return element("div", { style: { display: "flex", flexDirection: "column", flex: "1 1 0", minHeight: "0" } }, canvas, element("div", { textContent: label }));
  }
}
