// Binding panel of BYA Sampler: the video, and per character score, margin, lag, listening and coverage over time.
// A click on a track jumps to that moment of the video.
import {
  cells, firstMoment, laneAt, lanes, momentText, polyline, scoreRange, spoken, tickStep, timeAt, tracksHeight,
} from "./binding_layout.mjs";
import { chain, element, fileUrl, growTo, outputsOf, takePreviews, text, warn } from "./kit.mjs";

const NODES = ["BYA_Sampler", "BYA_VideoReport", "BYA_BestTake"];
const KEY = "bya_binding"; // of the results of a node
const ROW = 20;
const WIDTH = 360; // smallest width of a node with a result
const VIDEO = 200; // smallest height of the video in a node that grows for its result
const GOOD = "#2ea05e";
const BAD = "#e05252";
const MUTED = "#8b8f9c";
const MARKS = new Map([[true, ["✓", GOOD]], [false, ["✗", BAD]], [null, ["?", MUTED]]]);

const COLUMNS = {
  score: ["Score", "How well the mouth fits the assigned voice."],
  margin: ["Margin", "Score minus that of the best other voice."],
  lag: ["Lag", "How late (+) or early (-) the mouth is."],
  listening: ["Listens", "Part of the video in which the assigned voice is silent."],
  coverage: ["Area", "Mean part of the frame that is covered by the mask."],
};

export function nodeCreated(node) {
  if (NODES.includes(node.comfyClass)) new Panel(node);
}

class Panel {
  constructor(node) {
    this.node = node;
    this.data = null;
    this.hover = null; // time under the pointer
    this.video = element("video", { controls: true, playsInline: true, preload: "auto" });
    this.preview = element("img", { attributes: { alt: "" } }); // of the run in progress
    for (const one of [this.video, this.preview]) {
      Object.assign(one.style, { flex: "1 1 0", minHeight: "0", width: "100%", objectFit: "contain", background: "#000" });
    }
    this.table = element("div", { style: { flex: "none", overflow: "hidden" } });
    this.canvas = element("canvas", {
      tabIndex: 0,
      attributes: { role: "slider", "aria-label": text("binding.tracks", "Moments of the video") },
      style: { flex: "none", width: "100%", touchAction: "none", outline: "none", cursor: "crosshair" },
    });
    this.line = element("div", {
      style: { flex: "none", height: `${ROW}px`, lineHeight: `${ROW}px`, whiteSpace: "nowrap", overflow: "hidden", textOverflow: "ellipsis", color: "var(--descrip-text, #999)" },
    });
    this.root = element(
      "div",
      {
        className: "bya-binding bya-live",
        style: { display: "flex", flexDirection: "column", gap: "4px", minHeight: "0", overflow: "hidden", font: "11px sans-serif", color: "var(--input-text, #ddd)" },
      },
      this.preview, this.video, this.table, this.canvas, this.line,
    );
    const shown = node.addDOMWidget(KEY, KEY, this.root, {
      serialize: false,
      hideOnZoom: false,
      getMinHeight: () => this.minHeight(),
    });
    shown.serialize = false;
    this.listen();
    this.show(null);
    growTo(node, WIDTH, node.computeSize()[1] - this.minHeight() + this.fixedHeight(2) + VIDEO);
  }

  minHeight() {
    return this.fixedHeight() + (this.data?.video || this.preview.src ? 140 : 0);
  }

  /** Height of everything but the video, for a number of characters. */
  fixedHeight(count = this.data?.characters.length ?? 0) {
    return (count ? (count + 1) * ROW + tracksHeight(count) + 8 : 0) + ROW + 8;
  }

  listen() {
    const { node, video, canvas } = this;
    const restore = () => setTimeout(() => this.restore(), 120);
    takePreviews(node, (blob) => this.showPreview(blob));
    chain(node, "onExecuted", (output) => this.show(output?.[KEY]?.[0] ?? null, true));
    for (const key of ["onAdded", "onConfigure", "onGraphConfigured"]) chain(node, key, restore);
    const observer = new ResizeObserver(() => this.draw());
    observer.observe(this.root);
    chain(node, "onRemoved", () => {
      observer.disconnect();
      this.hidePreview();
      cancelAnimationFrame(this.frame);
      video.removeAttribute("src");
      video.load();
    });
    for (const kind of ["timeupdate", "seeking", "seeked", "loadedmetadata", "pause"]) video.addEventListener(kind, () => this.draw());
    video.addEventListener("play", () => this.follow());
    video.addEventListener("error", () => this.data && this.say(text("binding.gone", "The video is no longer on the server; run again.")));

    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || !this.data) return;
      event.stopPropagation();
      canvas.focus({ preventScroll: true });
      canvas.setPointerCapture(event.pointerId);
      this.seek(this.timeOf(event));
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!this.data) return;
      this.hover = this.timeOf(event);
      if (canvas.hasPointerCapture(event.pointerId)) this.seek(this.hover);
      this.describe(event);
      this.draw();
    });
    canvas.addEventListener("pointerleave", () => {
      this.hover = null;
      this.describe(null);
      this.draw();
    });
    canvas.addEventListener("keydown", (event) => this.key(event));
  }

  /** The result of the last run, when the graph was loaded again by undo or by a change of tabs. */
  restore() {
    if (this.data || !this.node.graph) return;
    const found = outputsOf(this.node)?.[KEY]?.[0];
    if (found) this.show(found);
  }

  /** Shows a result, or what to do if there is none. */
  show(data, grow = false) {
    this.data = data;
    this.hidePreview();
    const filled = Boolean(data?.characters?.length);
    this.video.style.display = data?.video ? "" : "none";
    this.table.style.display = this.canvas.style.display = filled ? "" : "none";
    this.canvas.style.height = `${tracksHeight(data?.characters?.length ?? 0)}px`;
    this.table.replaceChildren();
    if (!data) {
      this.say(text("binding.empty", "The result and the binding of each character appear here."));
      return;
    }
    if (data.video) this.video.src = fileUrl(data.video);
    if (filled) this.fillTable();
    this.describe(null);
    if (grow) this.grow();
    this.draw();
  }

  /** Gives the node room for the result; never makes it smaller. */
  grow() {
    const { node } = this;
    const needed = node.computeSize()[1] - this.minHeight() + this.fixedHeight() + (this.data?.video || this.preview.src ? VIDEO : 0);
    node.setSize([Math.max(node.size[0], WIDTH), Math.max(node.size[1], needed)]);
    node.graph?.setDirtyCanvas(true, true);
  }

  /** Shows a preview of the run in place of the video; null ends it. */
  showPreview(blob) {
    this.hidePreview();
    if (!blob) {
      this.video.style.display = this.data?.video ? "" : "none";
      return;
    }
    this.preview.src = URL.createObjectURL(blob);
    this.preview.style.display = "";
    this.video.style.display = "none";
    this.video.pause();
    this.grow();
  }

  hidePreview() {
    if (this.preview.src) URL.revokeObjectURL(this.preview.src);
    this.preview.removeAttribute("src");
    this.preview.style.display = "none";
  }

  fillTable() {
    const { data, table } = this;
    const grid = { display: "grid", gridTemplateColumns: "minmax(0, 1.5fr) repeat(5, minmax(0, 1fr))", height: `${ROW}px`, lineHeight: `${ROW}px`, columnGap: "4px" };
    const cell = (words, more = {}) =>
      element("span", { textContent: words, ...more, style: { overflow: "hidden", textOverflow: "ellipsis", whiteSpace: "nowrap", textAlign: "right", ...more.style } });
    const head = Object.entries(COLUMNS).map(([key, [name, hint]]) =>
      cell(text(`binding.${key}`, name), { title: text(`binding.${key}Hint`, hint), style: { color: MUTED } }));
    const measure = cell(text(`binding.measures.${data.measure}`, data.measure), { style: { color: MUTED, textAlign: "left" } });
    table.append(element("div", { style: grid }, measure, ...head));
    for (const character of data.characters) {
      const [mark, color] = MARKS.get(character.passed ?? null);
      const voice = character.voice && character.voice !== character.name ? ` ← ${character.voice}` : "";
      const dot = element("span", { textContent: "● ", style: { color: character.color } });
      const name = element("span", { style: { overflow: "hidden", textOverflow: "ellipsis", whiteSpace: "nowrap" } },
        element("span", { textContent: `${mark} `, style: { color, fontWeight: "bold" } }), dot, `${character.name}${voice}`);
      const values = cells(character, data.duration, text);
      const row = element("div", { className: "bya-binding-row", title: character.text, style: { ...grid, cursor: "pointer" } },
        name, ...Object.keys(COLUMNS).map((key) => cell(values[key])));
      row.addEventListener("pointerdown", (event) => event.stopPropagation());
      row.addEventListener("click", () => this.seek(firstMoment(character, data.duration)));
      row.addEventListener("pointerenter", () => this.say(character.text));
      row.addEventListener("pointerleave", () => this.describe(null));
      table.append(row);
    }
  }

  say(words) {
    this.line.textContent = this.line.title = words;
  }

  /** The line below the tracks: the moment under the pointer, else notices or what was found. */
  describe(event) {
    const { data } = this;
    if (!data) return;
    const index = event ? laneAt(event.offsetY, data.characters.length) : -1;
    if (index >= 0) return this.say(momentText(data.characters[index], this.hover, data.duration, text));
    const failed = data.characters.filter((one) => one.passed === false);
    const found = failed.length ? failed : data.characters.filter((one) => one.passed == null);
    const words = [...(data.notices ?? []), ...found.map((one) => one.text)].join(" ");
    this.say(words || text("binding.passed", "Every mouth follows its own voice. Click a moment to see it."));
  }

  timeOf(event) {
    const box = this.canvas.getBoundingClientRect(); // after the zoom of the page's canvas
    return timeAt(event.clientX - box.left, box.width, this.data.duration);
  }

  /** Jumps to a moment; a little before the end, where the last frame is still shown. */
  seek(time) {
    const { video, data } = this;
    if (!data.video) return;
    video.currentTime = Math.min(Math.max(time, 0), Math.max(data.duration - 0.02, 0));
    this.draw();
  }

  key(event) {
    const { video, data } = this;
    if (!data) return;
    const frame = 1 / (data.fps || 25);
    const actions = {
      ArrowLeft: () => this.seek(video.currentTime - frame),
      ArrowRight: () => this.seek(video.currentTime + frame),
      Home: () => this.seek(0),
      End: () => this.seek(data.duration),
      " ": () => (video.paused ? video.play().catch(() => null) : video.pause()),
    };
    if (!actions[event.key]) return;
    event.preventDefault();
    event.stopPropagation();
    actions[event.key]();
  }

  /** Draws while the video plays. */
  follow() {
    cancelAnimationFrame(this.frame);
    const next = () => {
      this.draw();
      if (!this.video.paused && this.node.graph) this.frame = requestAnimationFrame(next);
    };
    next();
  }

  draw() {
    const { canvas, data } = this;
    const width = canvas.clientWidth;
    if (!data?.characters?.length || !width) return;
    const scale = window.devicePixelRatio || 1;
    const height = canvas.clientHeight;
    if (canvas.width !== Math.round(width * scale)) canvas.width = Math.round(width * scale);
    if (canvas.height !== Math.round(height * scale)) canvas.height = Math.round(height * scale);
    const pen = canvas.getContext("2d");
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, width, height);
    try {
      const range = scoreRange(data.characters);
      lanes(data.characters.length).forEach((lane, index) => this.drawLane(pen, lane, data.characters[index], width, range));
      this.drawAxis(pen, width, height);
    } catch (error) {
      warn("binding", error);
    }
  }

  drawLane(pen, { top, middle, bottom }, character, width, [low, high]) {
    const { duration } = this.data;
    const { tracks } = character;
    const at = (time) => (time / duration) * width;
    const path = (points) => {
      pen.beginPath();
      points.forEach(([x, y], index) => (index ? pen.lineTo(x, y) : pen.moveTo(x, y)));
    };
    const stroke = (points, color, thickness) => {
      path(points);
      pen.strokeStyle = color;
      pen.lineWidth = thickness;
      pen.stroke();
    };
    pen.fillStyle = "#2a2d37";
    pen.fillRect(0, top, width, bottom - top);
    pen.fillStyle = "#1b1d24";
    for (const [start, end] of character.listening) pen.fillRect(at(start), top, at(end) - at(start), bottom - top);
    if (tracks.loudness) {
      path([[0, middle], ...polyline(tracks.loudness, width, top + 3, middle), [width, middle]]);
      pen.fillStyle = "rgba(160, 165, 180, 0.35)";
      pen.fill();
    }
    if (tracks.mouth) stroke(polyline(tracks.mouth, width, top + 3, middle), character.color, 1.5);
    if (tracks.score) {
      pen.save(); // scores mean something where the assigned voice is heard
      pen.beginPath();
      for (const [start, end] of spoken(character.listening, duration)) pen.rect(at(start), middle, at(end) - at(start), bottom - middle);
      pen.clip();
      const own = polyline(tracks.score, width, middle + 3, bottom - 5, low, high);
      if (tracks.other) {
        const other = polyline(tracks.other, width, middle + 3, bottom - 5, low, high);
        own.forEach(([x, y], index) => {
          pen.fillStyle = y <= other[index][1] ? "rgba(46, 160, 94, 0.35)" : "rgba(224, 82, 82, 0.55)";
          const step = width / own.length;
          pen.fillRect(x - step / 2, Math.min(y, other[index][1]), step, Math.abs(y - other[index][1]));
        });
        stroke(other, MUTED, 1);
      }
      stroke(own, "#f2f2f5", 1.2);
      pen.restore();
    }
    const most = Math.max(...(tracks.coverage ?? [0]), 1e-9);
    (tracks.coverage ?? []).forEach((value, index, all) => {
      pen.globalAlpha = 0.15 + (0.85 * value) / most;
      pen.fillStyle = value > 0 ? character.color : "#000";
      pen.fillRect((index / all.length) * width, bottom - 3, width / all.length + 0.5, 3);
    });
    pen.globalAlpha = 1;
    pen.fillStyle = BAD;
    for (const [start, end] of character.failed) pen.fillRect(at(start), top, at(end) - at(start), 3);
    pen.font = "10px sans-serif";
    pen.textBaseline = "top";
    pen.fillStyle = "#ececf0";
    pen.fillText(character.name, 5, top + 5, width / 2);
  }

  drawAxis(pen, width, height) {
    const { duration } = this.data;
    pen.fillStyle = MUTED;
    pen.font = "10px sans-serif";
    pen.textBaseline = "bottom";
    const step = tickStep(duration, width);
    for (let time = 0; time <= duration + 1e-9; time += step) {
      const x = (time / duration) * width;
      pen.fillRect(x, height - 16, 1, 3);
      const label = `${Number(time.toFixed(1))} s`;
      const room = pen.measureText(label).width;
      pen.fillText(label, Math.min(Math.max(x - room / 2, 0), width - room), height);
    }
    const bar = (time, color) => {
      pen.fillStyle = color;
      pen.fillRect((time / duration) * width - 0.5, 0, 1.5, height - 14);
    };
    if (this.hover != null) bar(this.hover, "rgba(255, 255, 255, 0.35)");
    bar(Math.min(this.video.currentTime || 0, duration), "#ffffff");
  }
}
