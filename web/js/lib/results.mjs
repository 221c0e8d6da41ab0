// Results shown on the nodes that made them: findings, reports, waveforms, overlays.
import { chain, domWidget, element, fileUrl, growTo, outputsOf, takePreviews, text } from "./kit.mjs";
import { bars, clock, MARKS, ROOM, LINE } from "./results_view.mjs";

const KEYS = ["bya_findings", "bya_waveform", "bya_overlay", "bya_table", "bya_text"];
const IMAGE = { flex: "1 1 0", minHeight: "0", width: "100%", objectFit: "contain" };
const OTHERS = ["BYA_Scene", "BYA_BestTake", "BYA_VideoReport"]; // whose free space is for the timeline or the panel

export function nodeCreated(node) {
  if (ROOM[node.comfyClass]) new Result(node);
}

/** The result of a node. It has the same height before and after a run, so that no node grows over the one below. */
class Result {
  constructor(node) {
    this.root = element("div", {
      className: "bya-result",
      style: {
        display: "flex", flexDirection: "column", gap: "4px", font: "11px sans-serif",
        color: "var(--input-text, #ddd)", lineHeight: `${LINE}px`,
      },
    });
    const height = ROOM[node.comfyClass];
    domWidget(node, null, "result", this.root, {
      minHeight: height,
      maxHeight: OTHERS.includes(node.comfyClass) ? height : undefined,
      onLook: () => this.show(outputsOf(node)),
    });
    this.root.style.minHeight = `${height}px`; // Nodes 2.0
    growTo(node, 0, node.computeSize()[1]);
    chain(node, "onExecuted", (output) => this.show(output));
    this.show(null);
    if (node.comfyClass !== "BYA_Dub") return;
    this.root.classList.add("bya-live");
    takePreviews(node, (blob) => this.preview(blob));
  }

  /** Shows a preview of the run in place of the result; null ends it. */
  preview(blob) {
    const before = this.image?.src;
    this.image = blob && element("img", { src: URL.createObjectURL(blob), style: IMAGE, attributes: { alt: "" } });
    if (before) URL.revokeObjectURL(before);
    if (this.image) this.root.replaceChildren(this.image);
    else if (before) this.root.replaceChildren(...this.parts);
  }

  /** Shows the results of a run, or where they will be. */
  show(output) {
    const given = KEYS.filter((key) => output?.[key]?.length);
    const content = JSON.stringify(given.map((key) => output[key]));
    if (content === this.content) return;
    this.content = content;
    const parts = given.map((key) => this[key](output[key]));
    const empty = element("div", {
      textContent: text("results.empty", "The result appears here."),
      style: { color: "var(--descrip-text, #999)" },
    });
    this.parts = parts.length ? parts : [empty];
    this.root.replaceChildren(...this.parts);
  }

  bya_findings(findings) {
    const order = ["error", "warning", "ok"];
    const sorted = [...findings].sort((one, other) => order.indexOf(one.level) - order.indexOf(other.level));
    const lines = sorted.map(({ subject, level, text: sentence }) => {
      const [mark, color] = MARKS[level] ?? MARKS.ok;
      return element("div", {}, element("span", { textContent: `${mark} `, style: { color } }), element("b", { textContent: `${subject}: ` }), sentence);
    });
    return element("div", { style: { overflowY: "auto", flex: "1 1 0", minHeight: "0", userSelect: "text" } }, ...lines);
  }

  bya_text(lines) {
    return element("div", {
      textContent: lines.join("\n"),
      style: { overflowY: "auto", flex: "1 1 0", minHeight: "0", whiteSpace: "pre-wrap", userSelect: "text" },
    });
  }

  bya_table([content]) {
    return element("div", {
      textContent: content,
      style: { overflow: "auto", flex: "1 1 0", minHeight: "0", whiteSpace: "pre", fontFamily: "monospace", userSelect: "text" },
    });
  }

  bya_overlay([file]) {
    return element("img", {
      src: fileUrl(file),
      alt: text("results.overlay", "Character masks over the video"),
      style: IMAGE,
    });
  }

  bya_waveform([wave]) {
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
