// The elements of the mask viewer and painter: picture, tools, frames, legend.
import { app } from "../../../../scripts/app.js";
import { element, text, warn } from "./kit.mjs";
import { ADD, REMOVE, fitInto, frameSeconds, tint } from "./masks_math.mjs";

const OPACITY = 0.5;
const LANE = 9; // pixels of a character's lane in the strip of frames
const TOOLS = ["brush", "eraser", "fill"];
const KEYS = { b: "brush", e: "eraser", f: "fill" };
const ICONS = {
  brush: "M3 17c3 0 3-4 6-4l2 2c0 3-4 5-8 2zM11 11l7-8 2 2-8 7z",
  eraser: "M8 20h12M4 13l8-8 7 7-7 7H8z M8 9l7 7",
  fill: "M5 12l7-7 7 7-7 7zM5 12h14M20 16c1 2 2 3 0 4-2-1-1-2 0-4z",
  copy: "M4 12h12M12 7l5 5-5 5M20 5v14",
  undo: "M5 9h9a5 5 0 010 10h-4M5 9l4-4M5 9l4 4",
  play: "M7 5l11 7-11 7z",
  pause: "M8 5v14M16 5v14",
};

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  const path = document.createElementNS(svg.namespaceURI, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

function button(name, title, onclick) {
  const made = element("button", { className: "bya-tool", type: "button", title, onclick }, icon(name));
  made.setAttribute("aria-label", title);
  return made;
}

export class MaskPanel {
  /**
   * @param view Masks and strokes, see masks.mjs.
   * @param paints Whether strokes can be painted.
   */
  constructor(view, paints) {
    addStyle();
    this.view = view;
    this.paints = paints;
    this.state = { frame: 0, character: 0, tool: "brush", size: 0.12, hidden: [] };
    this.canvas = element("canvas", { className: "bya-mask-picture", tabIndex: 0 });
    this.strip = element("canvas", { className: "bya-mask-strip" });
    this.time = element("span", { className: "bya-mask-time" });
    this.legend = element("div", { className: "bya-mask-legend" });
    this.message = element("div", { className: "bya-mask-message" });
    this.playing = null;
    this.player = button("play", text("masks.play", "Play"), () => this.play(!this.playing));
    this.tools = paints ? this.makeTools() : null;
    const scrub = element("div", { className: "bya-mask-row" }, this.player, this.strip, this.time);
    this.root = element("div", { className: "bya-masks bya-live" }, ...(this.tools ? [this.tools] : []), this.canvas,
      this.message, scrub, this.legend);
    this.tinted = document.createElement("canvas");
    this.listen();
    this.say("");
  }

  makeTools() {
    const names = {
      brush: text("masks.brush", "Brush: add to the mask (B). Alt: remove. Shift: let masks overlap."),
      eraser: text("masks.eraser", "Eraser: remove from the mask (E)"),
      fill: text("masks.fill", "Fill: add the area under the cursor (F). Alt: remove. Shift: let masks overlap."),
    };
    this.toolButtons = TOOLS.map((tool) => button(tool, names[tool], () => this.choose(tool)));
    this.sizeInput = element("input", {
      type: "range", min: 1, max: 50, value: 12, className: "bya-mask-size",
      title: text("masks.size", "Size of the brush ([ and ])"),
      oninput: (event) => this.setSize(event.target.value / 100),
    });
    const choice = (value, label) => element("option", { value, textContent: label });
    const clear = element("select", {
      className: "bya-mask-clear", title: text("masks.clearTitle", "Remove strokes; the masks of the router return"),
      onchange: () => {
        this.view.clear(clear.value, this.state.character, this.state.frame);
        clear.value = "";
      },
    }, choice("", text("masks.clear", "Clear…")), choice("frame", text("masks.clearFrame", "this character, this frame")),
    choice("character", text("masks.clearCharacter", "this character, all frames")),
    choice("all", text("masks.clearAll", "everything")));
    return element("div", { className: "bya-mask-row bya-mask-tools" },
      ...this.toolButtons, this.sizeInput,
      button("copy", text("masks.copy", "Copy this character's mask to all following frames"), () => {
        if (this.ready) this.view.copyForward(this.state.character, this.state.frame);
      }),
      button("undo", text("masks.undo", "Undo (Ctrl+Z)"), () => app.extensionManager.command.execute("Comfy.Undo")),
      clear);
  }

  get ready() {
    return this.view.frames > 0;
  }

  /** Takes over tool, frame and size of the same node before undo. */
  restore(state) {
    this.state = state;
    if (this.sizeInput) this.sizeInput.value = state.size * 100;
    this.draw();
  }

  choose(tool) {
    this.state.tool = tool;
    this.draw();
  }

  setSize(size) {
    this.state.size = Math.min(0.5, Math.max(0.01, size));
    this.sizeInput.value = this.state.size * 100;
    this.draw();
  }

  setFrame(frame) {
    if (!this.ready) return;
    this.state.frame = Math.min(this.view.frames - 1, Math.max(0, frame));
    this.draw();
  }

  play(on) {
    clearInterval(this.playing);
    this.playing = null;
    if (on && this.view.frames > 1) {
      const { fps = 25, time_factor: factor = 4 } = this.view.scene;
      const next = () => this.setFrame((this.state.frame + 1) % this.view.frames);
      this.playing = setInterval(next, (1000 * factor) / fps);
    }
    this.player.replaceChildren(icon(this.playing ? "pause" : "play"));
  }

  /** Shows a preview of the run in place of the masks; null ends it. */
  async showPreview(blob) {
    this.live = blob;
    const image = blob && (await createImageBitmap(blob).catch(() => null));
    if (this.live !== blob) return; // a newer one has come
    this.preview = image;
    this.draw();
  }

  /** A sentence below the picture; "" hides it. */
  say(message) {
    this.message.textContent = message;
    this.message.style.display = message ? "" : "none";
  }

  listen() {
    const { canvas, strip } = this;
    const stop = (event) => event.stopPropagation();
    for (const kind of ["pointerdown", "pointermove", "pointerup", "dblclick", "contextmenu"]) {
      this.root.addEventListener(kind, stop);
    }
    canvas.addEventListener("pointerdown", (event) => this.press(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerup", (event) => this.release(event));
    canvas.addEventListener("pointercancel", (event) => this.release(event));
    canvas.addEventListener("pointerleave", () => {
      this.cursor = null;
      this.draw();
    });
    const scrub = (event) => {
      const box = strip.getBoundingClientRect();
      this.setFrame(Math.floor(((event.clientX - box.left) / box.width) * this.view.frames));
    };
    strip.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || !this.ready) return;
      this.play(false);
      strip.setPointerCapture(event.pointerId);
      canvas.focus({ preventScroll: true });
      scrub(event);
    });
    strip.addEventListener("pointermove", (event) => strip.hasPointerCapture(event.pointerId) && scrub(event));
    this.root.addEventListener("wheel", (event) => {
      if (!this.ready || !this.root.contains(document.activeElement)) return;
      event.preventDefault();
      event.stopPropagation();
      this.setFrame(this.state.frame + Math.sign(event.deltaY));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => this.key(event));
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || !this.ready) return;
    const { state, view } = this;
    const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const number = Number(name) - 1;
    if (name === "ArrowLeft" || name === "ArrowRight") this.setFrame(state.frame + (name === "ArrowRight" ? 1 : -1));
    else if (name === " ") this.play(!this.playing);
    else if (number >= 0 && number < view.names.length) this.pick(number);
    else if (this.paints && KEYS[name]) this.choose(KEYS[name]);
    else if (this.paints && (name === "[" || name === "]")) this.setSize(state.size * (name === "]" ? 1.2 : 1 / 1.2));
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** Chooses the character to paint. */
  pick(character) {
    this.state.character = character;
    this.state.hidden = this.state.hidden.filter((index) => index !== character);
    this.draw();
  }

  toggle(character) {
    const { hidden } = this.state;
    this.state.hidden = hidden.includes(character) ? hidden.filter((one) => one !== character) : [...hidden, character];
    this.draw();
  }

  // painting

  /** Position of a pointer in pixels of the strokes, with the radius of the brush. */
  point(event) {
    const box = this.canvas.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * this.canvas.clientWidth - this.area.x;
    const y = ((event.clientY - box.top) / box.height) * this.canvas.clientHeight - this.area.y;
    const { width, height } = this.view.mask(this.state.character, this.state.frame);
    return {
      at: [(x / this.area.width) * width, (y / this.area.height) * height],
      radius: (this.state.size * Math.min(width, height)) / 2,
      inside: x >= 0 && y >= 0 && x < this.area.width && y < this.area.height,
    };
  }

  press(event) {
    if (event.button !== 0 || !this.ready || !this.area || this.preview) return;
    this.canvas.focus({ preventScroll: true });
    if (!this.paints) return;
    this.play(false);
    const { at, radius, inside } = this.point(event);
    const { character, frame, tool } = this.state;
    const value = tool === "eraser" || event.altKey ? REMOVE : ADD;
    if (tool === "fill") {
      if (inside) this.view.fill(character, frame, at, value, event.shiftKey);
      return;
    }
    this.canvas.setPointerCapture(event.pointerId);
    this.stroke = { value, last: at, character, frame, overlap: event.shiftKey };
    this.view.paint(character, frame, at, at, radius, value, event.shiftKey);
  }

  move(event) {
    if (!this.ready || !this.area) return;
    this.cursor = { x: event.clientX, y: event.clientY };
    if (this.stroke) {
      const { at, radius } = this.point(event);
      const { character, frame, last, value, overlap } = this.stroke;
      this.view.paint(character, frame, last, at, radius, value, overlap);
      this.stroke.last = at;
    } else if (this.paints) {
      this.draw();
    }
  }

  release() {
    if (!this.stroke) return;
    this.stroke = null;
    this.view.commit();
  }

  // drawing

  resize() {
    for (const canvas of [this.canvas, this.strip]) {
      const ratio = window.devicePixelRatio || 1;
      const [width, height] = [canvas.clientWidth * ratio, canvas.clientHeight * ratio].map(Math.round);
      if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    }
    this.draw();
  }

  /** Draws once per frame of the page, however often it is called. */
  draw() {
    this.waiting ??= requestAnimationFrame(() => {
      this.waiting = null;
      try {
        this.render();
      } catch (error) {
        warn("masks", error);
      }
    });
  }

  render() {
    const { canvas, view, state } = this;
    const context = canvas.getContext("2d");
    const ratio = canvas.clientWidth ? canvas.width / canvas.clientWidth : 1;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, canvas.clientWidth, canvas.clientHeight);
    this.root.classList.toggle("bya-mask-empty", !this.ready);
    if (this.preview) {
      const { width, height } = this.preview;
      const area = fitInto(canvas.clientWidth, canvas.clientHeight, width, height);
      context.drawImage(this.preview, area.x, area.y, area.width, area.height);
    } else if (!this.ready) {
      context.fillStyle = "#999";
      context.font = "13px sans-serif";
      context.textAlign = "center";
      const hint = text("masks.run", "Run the workflow to see the masks here");
      context.fillText(hint, canvas.clientWidth / 2, canvas.clientHeight / 2, canvas.clientWidth - 20);
    } else {
      state.frame = Math.min(state.frame, view.frames - 1);
      state.character = Math.min(state.character, view.names.length - 1);
      this.renderPicture(context);
    }
    this.renderStrip();
    this.renderLegend();
    this.toolButtons?.forEach((one, index) => one.classList.toggle("bya-on", TOOLS[index] === state.tool));
  }

  renderPicture(context) {
    const { canvas, view, state } = this;
    const [height, width] = view.scene.size;
    this.area = fitInto(canvas.clientWidth, canvas.clientHeight, width, height);
    const { x, y, width: w, height: h } = this.area;
    context.imageSmoothingQuality = "high";
    context.fillStyle = "#3a3a40";
    context.fillRect(x, y, w, h);
    const picture = view.picture(state.frame);
    if (picture) context.drawImage(picture.image, picture.x, picture.y, picture.width, picture.height, x, y, w, h);
    const masks = view.names.map((_, index) => (state.hidden.includes(index) ? null : view.mask(index, state.frame)));
    const { width: across, height: down } = view.mask(0, state.frame);
    Object.assign(this.tinted, { width: across, height: down });
    const pixels = tint(masks.map((item) => item?.mask), view.names.map((_, i) => view.color(i)), across, down, OPACITY);
    this.tinted.getContext("2d").putImageData(new ImageData(pixels, across, down), 0, 0);
    context.drawImage(this.tinted, x, y, w, h);
    if (this.paints && this.cursor && state.tool !== "fill") this.renderCursor(context);
  }

  renderCursor(context) {
    const { canvas, state } = this;
    const box = canvas.getBoundingClientRect();
    const x = ((this.cursor.x - box.left) / box.width) * canvas.clientWidth;
    const y = ((this.cursor.y - box.top) / box.height) * canvas.clientHeight;
    const radius = (state.size * Math.min(this.area.width, this.area.height)) / 2;
    const color = state.tool === "eraser" ? "#fff" : `rgb(${this.view.color(state.character).join(" ")})`;
    for (const [style, line] of [["rgb(0 0 0 / 0.7)", 3], [color, 1.5]]) {
      context.strokeStyle = style;
      context.lineWidth = line;
      context.beginPath();
      context.arc(x, y, Math.max(radius, 1), 0, 2 * Math.PI);
      context.stroke();
    }
  }

  /** One lane per character: how much of each frame it covers, a line below painted frames, the current frame. */
  renderStrip() {
    const { strip, view, state } = this;
    const context = strip.getContext("2d");
    strip.style.height = `${Math.max(1, view.names.length) * LANE + 4}px`;
    const ratio = strip.clientWidth ? strip.width / strip.clientWidth : 1;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, strip.clientWidth, strip.clientHeight);
    this.time.textContent = "";
    if (!this.ready) return;
    const step = strip.clientWidth / view.frames;
    const gap = step > 5 ? 1 : 0;
    view.names.forEach((_, index) => {
      const top = 2 + index * LANE;
      const largest = Math.max(0.01, ...Array.from({ length: view.frames }, (__, t) => view.coverage(index, t)));
      for (let frame = 0; frame < view.frames; frame++) {
        const share = view.coverage(index, frame) / largest;
        const alpha = share < 0.02 ? 0 : 0.25 + 0.6 * share;
        context.fillStyle = alpha ? `rgb(${view.color(index).join(" ")} / ${alpha})` : "rgb(128 128 128 / 0.15)";
        context.fillRect(frame * step, top, step - gap, LANE - 2);
        if (!view.isPainted(index, frame)) continue;
        context.fillStyle = "#fff";
        context.fillRect(frame * step + (step - gap) / 2 - 1.5, top + LANE / 2 - 2.5, 3, 3);
      }
    });
    context.strokeStyle = "#fff";
    context.lineWidth = 1.5;
    context.strokeRect(state.frame * step + 0.75, 0.75, Math.max(2, step - gap - 1.5), strip.clientHeight - 1.5);
    const seconds = frameSeconds(state.frame, view.scene).toFixed(2);
    this.time.textContent = `${state.frame + 1}/${view.frames} · ${seconds} s`;
    this.time.title = text("masks.frame", "Latent frame of {count}, and its time in the video", { count: view.frames });
  }

  renderLegend() {
    const { view, state } = this;
    const shown = view.names.map((name, index) => {
      const share = this.ready ? `${Math.round(100 * view.coverage(index, state.frame))}%` : "";
      return JSON.stringify([name, share, view.color(index), state.hidden.includes(index), state.character === index]);
    }).join();
    if (shown === this.shownLegend) return;
    this.shownLegend = shown;
    this.legend.replaceChildren(...view.names.map((name, index) => {
      const swatch = element("i", { style: { background: `rgb(${view.color(index).join(" ")})` } });
      swatch.title = text("masks.toggle", "Show or hide this character");
      const share = `${Math.round(100 * view.coverage(index, state.frame))}%`;
      const chip = element("button", { type: "button", className: "bya-chip" }, swatch,
        element("b", { textContent: name }), element("span", { textContent: share }));
      chip.title = this.paints ? text("masks.pick", "Paint the mask of {name}", { name }) : swatch.title;
      chip.classList.toggle("bya-on", this.paints && state.character === index);
      chip.classList.toggle("bya-off", state.hidden.includes(index));
      chip.onclick = (event) => (this.paints && event.target !== swatch ? this.pick(index) : this.toggle(index));
      return chip;
    }));
  }

  remove() {
    this.play(false);
    if (this.waiting) cancelAnimationFrame(this.waiting);
  }
}

const STYLE = `
.bya-masks { display: flex; flex-direction: column; gap: 5px; height: 100%; width: 100%; box-sizing: border-box;
  padding: 2px 4px 4px; font: 12px sans-serif; color: var(--input-text, #ddd); }
.bya-mask-picture { flex: 1; width: 100%; min-height: 0; border-radius: 6px; background: rgb(0 0 0 / 0.35); outline: none;
  touch-action: none; cursor: crosshair; }
.bya-mask-empty .bya-mask-picture { cursor: default; }
.bya-mask-row { display: flex; align-items: center; gap: 4px; flex: none; }
.bya-mask-strip { flex: 1; min-width: 0; width: 100%; cursor: ew-resize; touch-action: none; border-radius: 3px; }
.bya-mask-time { min-width: 84px; text-align: right; opacity: 0.8; font-variant-numeric: tabular-nums; }
.bya-mask-message { flex: none; color: #ffb84d; line-height: 1.3; }
.bya-mask-legend { display: flex; flex-wrap: wrap; gap: 4px; flex: none; max-height: 52px; overflow: auto; }
.bya-masks button, .bya-masks select { font: inherit; color: inherit; border: 1px solid transparent;
  border-radius: 5px; background: var(--comfy-input-bg, #2a2a2e); cursor: pointer; }
.bya-masks select { height: 26px; padding: 0 4px; max-width: 84px; }
.bya-tool { width: 28px; height: 26px; padding: 3px; flex: none; }
.bya-tool svg { width: 100%; height: 100%; fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round;
  stroke-linecap: round; }
.bya-masks button:hover, .bya-masks select:hover { border-color: #888; }
.bya-masks .bya-on { border-color: var(--input-text, #ddd); }
.bya-mask-size { flex: 1; min-width: 40px; max-width: 140px; }
.bya-chip { display: inline-flex; align-items: center; gap: 5px; padding: 3px 8px 3px 5px; max-width: 100%; }
.bya-chip i { width: 12px; height: 12px; border-radius: 3px; flex: none; }
.bya-chip b { font-weight: 500; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.bya-chip span { opacity: 0.65; font-variant-numeric: tabular-nums; }
.bya-off { opacity: 0.45; }
`;

function addStyle() {
  if (document.getElementById("bya-mask-style")) return;
  document.head.append(element("style", { id: "bya-mask-style", textContent: STYLE }));
}
