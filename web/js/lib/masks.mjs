// Mask viewer of BYA Embedding Router and BYA Mask Refine, and painter of BYA Mask Refine.
import { chain, domWidget, edit, growTo, outputsOf, takePreviews, text, widget } from "./kit.mjs";
import { isInline, lastResults, loadPicture, pixelsOf, pictureCanvas } from "./mask_files.mjs";
import * as math from "./masks_math.mjs";
import { characterRgb } from "./palette.mjs";
import { MaskPanel } from "./mask_panel.mjs";

const KEY = "bya_masks";
const VALUE = "painted_masks";
const HISTORY = new Map(); // strokes by file, so that undo does not flicker
const KEPT = 30;
const looks = new Map(); // tool, frame, ... by node: undo builds all nodes anew

export function nodeCreated(node) {
  if (node.comfyClass === "BYA_EmbeddingRouter") attach(node, false);
  if (node.comfyClass === "BYA_MaskRefine") attach(node, true);
}

function attach(node, paints) {
  const view = new MaskView(node, paints);
  const added = domWidget(node, paints ? VALUE : null, "mask_view", view.panel.root, {
    minHeight: paints ? 300 : 250,
    onValue: (value) => view.readValue(value),
    onLook: () => view.look(),
    onGone: () => view.remove(),
  });
  if (!added) return;
  growTo(node, 400, node.size[1] + (paints ? 330 : 280));
  takePreviews(node, (blob) => view.panel.showPreview(blob));
  chain(node, "onExecuted", (output) => view.show(output?.[KEY]?.[0]));
}

/** Masks of the last run, strokes on them, and the panel that shows both. */
class MaskView {
  constructor(node, paints) {
    this.node = node;
    this.paints = paints;
    this.entry = null; // what the node sent, see nodes/mask_view.py
    this.tokens = []; // one mask per character and frame, at the resolution of the token grid
    this.strokes = null;
    this.value = ""; // the description that `strokes` was read from
    this.pictures = {};
    this.cache = new Map();
    this.panel = new MaskPanel(this, paints);
  }

  get key() {
    return `${this.node.graph?.id ?? ""}:${this.node.id}`;
  }

  /** Grid, names and window that is shown: of the last run, or of the strokes. */
  get scene() {
    return this.entry ?? (this.strokes && { ...this.strokes, size: this.strokes.grid.slice(1) });
  }

  get names() {
    return this.scene?.names ?? [];
  }

  get frames() {
    return this.scene?.grid[0] ?? 0;
  }

  color(index) {
    return this.entry?.colors?.[index] ?? characterRgb(index);
  }

  /** Called when the node, its links or its size may have changed. */
  async look() {
    const memory = looks.get(this.key);
    if (memory && this.panel.state !== memory) this.panel.restore(memory);
    else looks.set(this.key, this.panel.state);
    if (this.paints) this.readValue(widget(this.node, VALUE).value);
    this.panel.resize();
    const entry = outputsOf(this.node)?.[KEY]?.[0] ?? this.entry ?? (await lastResults(this.node))?.[KEY]?.[0];
    if (entry) await this.show(entry);
  }

  /** Shows the masks of a run. */
  async show(entry) {
    if (!entry || entry === this.shown) return;
    this.shown = entry;
    try {
      const [sheet, still, preview] = await Promise.all([
        loadPicture(entry), loadPicture(entry.still), loadPicture(entry.preview),
      ]);
      if (this.shown !== entry || !sheet) return;
      this.entry = entry;
      this.tokens = math.readMasks(entry, pixelsOf(sheet).data, sheet.naturalWidth);
      this.pictures = { still, preview };
      this.fitStrokes();
      this.changed();
    } catch {
      this.shown = null; // the temporary files of an earlier session are gone
    }
  }

  /** Strokes from the text widget: after opening a file, undo, paste, or an edit through the API of the page. */
  async readValue(value) {
    if (value === this.value) return;
    this.value = value;
    const painted = math.parsePainted(value);
    if (!painted) return this.useStrokes(null);
    const known = HISTORY.get(value);
    if (known) return this.useStrokes(math.copyStrokes(known));
    const picture = await loadPicture(painted.file).catch(() => null);
    if (this.value !== value) return;
    const pixels = picture && pixelsOf(picture).data;
    const strokes = picture && math.fromSheet(painted, pixels, picture.naturalWidth, picture.naturalHeight);
    if (!strokes) this.panel.say(text("masks.fileMissing", "The painting {file} is missing. Paint again, or clear it.", { file: isInline(painted.file) ? "" : painted.file }));
    else remember(value, strokes);
    this.useStrokes(strokes && math.copyStrokes(strokes));
  }

  useStrokes(strokes) {
    this.strokes = strokes;
    this.fitStrokes();
    this.changed();
  }

  /** Orders the strokes as the characters of the run. Strokes of another scene are not shown. */
  fitStrokes() {
    this.foreign = Boolean(this.entry && this.strokes && !math.fits(this.strokes, this.entry));
    if (this.foreign) {
      this.panel.say(text("masks.otherScene", "The painting belongs to another size, length, window or cast: clear it, or go back."));
    } else if (this.entry && this.strokes) {
      this.strokes = math.reorder(this.strokes, this.entry.names);
      this.panel.say("");
    }
  }

  changed(frame = null) {
    if (frame === null) this.cache.clear();
    for (let index = 0; frame !== null && index < this.names.length; index++) this.cache.delete(`${index}:${frame}`);
    this.panel.draw();
  }

  /** The mask of a character in a frame with its strokes: {mask, width, height}. */
  mask(character, frame) {
    const key = `${character}:${frame}`;
    if (!this.cache.has(key)) this.cache.set(key, this.makeMask(character, frame));
    return this.cache.get(key);
  }

  makeMask(character, frame) {
    const [frames, rows, columns] = this.scene.grid;
    const strokes = this.foreign ? null : this.strokes;
    const scale = strokes?.scale ?? math.strokeScale(this.scene.grid, this.names.length);
    const tokens = this.tokens[character * frames + frame] ?? new Uint8Array(rows * columns);
    const below = math.enlarge(tokens, rows, columns, scale);
    const mask = math.apply(below, strokes && math.tileOf(strokes, character, frame));
    return { mask, width: columns * scale, height: rows * scale };
  }

  coverage(character, frame) {
    const item = this.mask(character, frame);
    item.coverage ??= math.coverage(item.mask);
    return item.coverage;
  }

  isPainted(character, frame) {
    if (this.foreign || !this.strokes) return false;
    const item = this.mask(character, frame);
    item.painted ??= math.isPainted(math.tileOf(this.strokes, character, frame));
    return item.painted;
  }

  /** The picture below a frame: {image, x, y, width, height} of its part, or null. */
  picture(frame) {
    const { still, preview } = this.pictures;
    if (still && (!preview || (frame === 0 && !this.entry.start))) {
      return { image: still, x: 0, y: 0, width: still.naturalWidth, height: still.naturalHeight };
    }
    if (!preview) return null;
    const { columns, frames } = this.entry.preview;
    const width = preview.naturalWidth / columns;
    const height = preview.naturalHeight / Math.ceil(frames / columns);
    return { image: preview, x: (frame % columns) * width, y: Math.floor(frame / columns) * height, width, height };
  }

  /** The strokes to change; new ones where there are none, or only those of another scene. */
  editable() {
    if (!this.strokes || this.foreign) {
      this.strokes = math.emptyStrokes(this.scene.grid, this.names, this.scene.start ?? 0);
      this.foreign = false;
      this.panel.say("");
      this.cache.clear();
    }
    return this.strokes;
  }

  /** Whether what is added to one character is taken from the others. */
  get exclusive() {
    return widget(this.node, "exclusive")?.value !== false;
  }

  /** Paints a line of a round brush; points and radius in pixels of the strokes. `overlap` keeps the other masks. */
  paint(character, frame, from, to, radius, value, overlap) {
    const strokes = this.editable();
    const exclusive = this.exclusive && !overlap;
    const set = (index) => math.setPixel(strokes, character, frame, index, value, exclusive);
    math.visitLine(strokes.width, strokes.height, from, to, radius, set);
    this.changed(frame);
  }

  /** Adds or removes the region around a point. */
  fill(character, frame, point, value, overlap) {
    const strokes = this.editable();
    const exclusive = this.exclusive && !overlap;
    const { mask } = this.mask(character, frame);
    for (const index of math.connected(strokes.width, strokes.height, point, (at) => mask[at] > 127)) {
      math.setPixel(strokes, character, frame, index, value, exclusive);
    }
    this.changed(frame);
    this.commit();
  }

  /** Makes the mask of a character in all following frames that of this frame. */
  copyForward(character, frame) {
    const { mask } = this.mask(character, frame);
    const strokes = this.editable();
    for (let other = frame + 1; other < this.frames; other++) {
      for (let index = 0; index < mask.length; index++) {
        math.setPixel(strokes, character, other, index, mask[index] > 127 ? math.ADD : math.REMOVE, this.exclusive);
      }
    }
    this.changed();
    this.commit();
  }

  /** Removes strokes: of a "frame" or of a "character" ("frame": of this character only), or "all" of them. */
  clear(what, character, frame) {
    if (what === "all" || this.foreign || !this.strokes) {
      this.strokes = null;
      this.foreign = false;
    } else {
      for (let other = 0; other < this.frames; other++) {
        if (what === "character" || other === frame) math.tileOf(this.strokes, character, other).fill(math.KEEP);
      }
    }
    this.panel.say("");
    this.changed();
    this.commit();
  }

  /** Stores the strokes in the text widget: one step of the undo history. */
  commit() {
    const strokes = this.strokes && this.strokes.tiles.some(math.isPainted) ? math.copyStrokes(this.strokes) : null;
    let value = "";
    if (strokes) {
      const sheet = math.toSheet(strokes);
      const file = pictureCanvas(sheet).toDataURL("image/png"); // the workflow stays complete without other files
      const { grid, names, start } = strokes;
      value = JSON.stringify({ file, grid, characters: names, columns: sheet.columns, start });
      remember(value, strokes);
    }
    this.value = value; // so that the strokes are not read again
    edit(this.node, { [VALUE]: value });
  }

  remove() {
    this.panel.remove();
  }
}

function remember(value, strokes) {
  HISTORY.delete(value);
  HISTORY.set(value, strokes);
  if (HISTORY.size > KEPT) HISTORY.delete(HISTORY.keys().next().value);
}
