// Masks and strokes as arrays, without imports from the page, so that node can test them.
//
// Strokes: one tile per character and latent frame, all frames of the first character first. Each pixel of a tile keeps
// the mask below it, takes the character away, or adds it. bya_core/scene/painted_masks.py reads the same layout.

export const KEEP = 0;
export const REMOVE = 1;
export const ADD = 2;

const TILE_SIDE = 256; // pixels of the longer side of a tile, about
const MAX_SHEET = 24_000_000; // pixels of all tiles
const MAX_WIDTH = 8192; // pixels of a row of tiles

/** Pixels per token and side of the strokes. */
export function strokeScale([frames, height, width], characters) {
  const fitting = Math.floor(TILE_SIDE / Math.max(height, width));
  const affordable = Math.floor(Math.sqrt(MAX_SHEET / (characters * frames * height * width)));
  return Math.max(1, Math.min(16, fitting, affordable));
}

/** Strokes without any paint: {grid, names, start, scale, width, height, tiles: Uint8Array[]}. */
export function emptyStrokes(grid, names, start = 0) {
  const scale = strokeScale(grid, names.length);
  return blank(grid, names, start, scale);
}

function blank(grid, names, start, scale) {
  const [frames, rows, columns] = grid;
  const width = columns * scale;
  const height = rows * scale;
  const tiles = Array.from({ length: names.length * frames }, () => new Uint8Array(width * height));
  return { grid: [...grid], names: [...names], start, scale, width, height, tiles };
}

export const tileOf = (strokes, character, frame) => strokes.tiles[character * strokes.grid[0] + frame];

/** A copy that does not change with the original. */
export const copyStrokes = (strokes) => ({ ...strokes, tiles: strokes.tiles.map((tile) => tile.slice()) });

export const isPainted = (tile) => tile.some((value) => value !== KEEP);

/** Whether strokes belong to masks of this grid, window and cast. */
export function fits(strokes, { grid, names, start = 0 }) {
  return strokes.grid.every((size, axis) => size === grid[axis]) && strokes.start === start
    && strokes.names.every((name) => names.includes(name));
}

/** The same strokes with the characters in another order; characters without strokes get empty tiles. */
export function reorder(strokes, names) {
  if (names.length === strokes.names.length && names.every((name, index) => name === strokes.names[index])) {
    return strokes;
  }
  const result = blank(strokes.grid, names, strokes.start, strokes.scale);
  const frames = strokes.grid[0];
  names.forEach((name, index) => {
    const from = strokes.names.indexOf(name);
    for (let frame = 0; from >= 0 && frame < frames; frame++) {
      result.tiles[index * frames + frame] = tileOf(strokes, from, frame).slice();
    }
  });
  return result;
}

/** Pixels of a round brush moved from one point to another; calls `visit(index)`. */
export function visitLine(width, height, [x0, y0], [x1, y1], radius, visit) {
  const reach = Math.max(radius, 0.5);
  const left = Math.max(0, Math.floor(Math.min(x0, x1) - reach));
  const right = Math.min(width - 1, Math.ceil(Math.max(x0, x1) + reach));
  const top = Math.max(0, Math.floor(Math.min(y0, y1) - reach));
  const bottom = Math.min(height - 1, Math.ceil(Math.max(y0, y1) + reach));
  const dx = x1 - x0;
  const dy = y1 - y0;
  const length = dx * dx + dy * dy;
  for (let y = top; y <= bottom; y++) {
    for (let x = left; x <= right; x++) {
      const px = x + 0.5 - x0;
      const py = y + 0.5 - y0;
      const along = length ? Math.min(1, Math.max(0, (px * dx + py * dy) / length)) : 0;
      const ex = px - along * dx;
      const ey = py - along * dy;
      if (ex * ex + ey * ey <= reach * reach) visit(y * width + x);
    }
  }
}

/** Pixels connected to a point (by their sides) on which `inside(index)` is the same as there. */
export function connected(width, height, [x, y], inside) {
  const start = Math.floor(y) * width + Math.floor(x);
  const wanted = inside(start);
  const seen = new Uint8Array(width * height);
  const found = [];
  const stack = [start];
  seen[start] = 1;
  while (stack.length) {
    const at = stack.pop();
    found.push(at);
    const column = at % width;
    for (const next of [column > 0 ? at - 1 : -1, column < width - 1 ? at + 1 : -1, at - width, at + width]) {
      if (next >= 0 && next < seen.length && !seen[next] && inside(next) === wanted) {
        seen[next] = 1;
        stack.push(next);
      }
    }
  }
  return found;
}

/** Sets a pixel for one character. With `exclusive`, added pixels are taken away from the other characters. */
export function setPixel(strokes, character, frame, index, value, exclusive) {
  tileOf(strokes, character, frame)[index] = value;
  if (!exclusive || value !== ADD) return;
  for (let other = 0; other < strokes.names.length; other++) {
    if (other !== character) tileOf(strokes, other, frame)[index] = REMOVE;
  }
}

/** A mask of `rows` x `columns` tokens (0..255), enlarged bilinearly to pixels. */
export function enlarge(tokens, rows, columns, scale) {
  const width = columns * scale;
  const height = rows * scale;
  const result = new Uint8Array(width * height);
  const place = (pixel, count) => {
    const at = Math.min(count - 1, Math.max(0, (pixel + 0.5) / scale - 0.5));
    const low = Math.floor(at);
    return [low, Math.min(count - 1, low + 1), at - low];
  };
  const across = Array.from({ length: width }, (_, x) => place(x, columns));
  for (let y = 0; y < height; y++) {
    const [top, bottom, v] = place(y, rows);
    for (let x = 0; x < width; x++) {
      const [left, right, u] = across[x];
      const upper = tokens[top * columns + left] * (1 - u) + tokens[top * columns + right] * u;
      const lower = tokens[bottom * columns + left] * (1 - u) + tokens[bottom * columns + right] * u;
      result[y * width + x] = Math.round(upper * (1 - v) + lower * v);
    }
  }
  return result;
}

/** The mask that results from strokes on a mask (both of the same size). */
export function apply(mask, tile) {
  if (!tile) return mask;
  const result = mask.slice();
  for (let index = 0; index < tile.length; index++) {
    if (tile[index] !== KEEP) result[index] = tile[index] === ADD ? 255 : 0;
  }
  return result;
}

/** Fraction of the pixels that belong to the character. */
export function coverage(mask) {
  let count = 0;
  for (const value of mask) count += value > 127;
  return count / mask.length;
}

/**
 * Colors of masks as RGBA pixels, as in bya_core/io/overlay.py: colors mix where masks overlap, edges are opaque.
 * @param masks Masks (0..255), null for a hidden character.
 * @param colors RGB color of each.
 */
export function tint(masks, colors, width, height, opacity = 0.5) {
  const pixels = new Uint8ClampedArray(width * height * 4);
  const shown = masks.map((mask, index) => [mask, colors[index]]).filter(([mask]) => mask);
  for (let index = 0; index < width * height; index++) {
    let [total, red, green, blue] = [0, 0, 0, 0];
    for (const [mask, color] of shown) {
      const value = mask[index] / 255;
      total += value;
      red += value * color[0];
      green += value * color[1];
      blue += value * color[2];
    }
    if (total === 0) continue;
    pixels.set([red / total, green / total, blue / total, 255 * opacity * Math.min(1, total)], index * 4);
  }
  for (const [mask, color] of shown) {
    for (let index = 0; index < width * height; index++) {
      if (mask[index] > 127 && isEdge(mask, index, width, height)) pixels.set([...color, 255], index * 4);
    }
  }
  return pixels;
}

function isEdge(mask, index, width, height) {
  const column = index % width;
  const row = (index - column) / width;
  return (column > 0 && mask[index - 1] <= 127) || (column < width - 1 && mask[index + 1] <= 127)
    || (row > 0 && mask[index - width] <= 127) || (row < height - 1 && mask[index + width] <= 127);
}

/** Strokes as the RGBA pixels of one picture: {pixels, width, height, columns}. */
export function toSheet(strokes) {
  const { width, height, tiles } = strokes;
  const columns = Math.max(1, Math.min(tiles.length, Math.floor(MAX_WIDTH / width), Math.ceil(Math.sqrt(tiles.length))));
  const across = columns * width;
  const down = Math.ceil(tiles.length / columns) * height;
  const pixels = new Uint8ClampedArray(across * down * 4);
  tiles.forEach((tile, number) => {
    const corner = Math.floor(number / columns) * height * across + (number % columns) * width;
    for (let index = 0; index < tile.length; index++) {
      if (tile[index] === KEEP) continue;
      const at = (corner + Math.floor(index / width) * across + (index % width)) * 4;
      const value = tile[index] === ADD ? 255 : 0;
      pixels.set([value, value, value, 255], at);
    }
  });
  return { pixels, width: across, height: down, columns };
}

/** The strokes of a picture; `painted` is its description. Null if the size of the picture does not fit. */
export function fromSheet(painted, pixels, across, down) {
  const { grid, characters, columns, start = 0 } = painted;
  const [frames, rows, width] = grid;
  const scale = across / (columns * width);
  const count = characters.length * frames;
  if (!Number.isInteger(scale) || down !== Math.ceil(count / columns) * rows * scale) return null;
  const strokes = blank(grid, characters, start, scale);
  strokes.tiles.forEach((tile, number) => {
    const corner = Math.floor(number / columns) * strokes.height * across + (number % columns) * strokes.width;
    for (let index = 0; index < tile.length; index++) {
      const at = (corner + Math.floor(index / strokes.width) * across + (index % strokes.width)) * 4;
      if (pixels[at + 3] > 127) tile[index] = pixels[at] > 127 ? ADD : REMOVE;
    }
  });
  return strokes;
}

/** The tokens of every mask in a sheet of gray tiles: Uint8Array[], from RGBA pixels that are `across` wide. */
export function readMasks({ grid: [frames, rows, columns], names, columns: perRow }, pixels, across) {
  return Array.from({ length: names.length * frames }, (_, number) => {
    const corner = Math.floor(number / perRow) * rows * across + (number % perRow) * columns;
    const tokens = new Uint8Array(rows * columns);
    for (let index = 0; index < tokens.length; index++) {
      tokens[index] = pixels[(corner + Math.floor(index / columns) * across + (index % columns)) * 4];
    }
    return tokens;
  });
}

/** The description of a painting in a text widget, or null if there is none. */
export function parsePainted(value) {
  try {
    const painted = JSON.parse(value);
    const valid = typeof painted?.file === "string" && painted.grid?.length === 3 && Array.isArray(painted.characters);
    return valid && painted.columns > 0 ? painted : null;
  } catch {
    return null;
  }
}

/** Seconds at which a latent frame starts; `frame` counts from the first of a window. */
export function frameSeconds(frame, { start = 0, time_factor: factor = 4, fps = 25 }) {
  const absolute = start + frame;
  return (absolute === 0 ? 0 : (absolute - 1) * factor + 1) / fps;
}

/** Position and size of a picture that is fitted into a box: {x, y, width, height}. */
export function fitInto(boxWidth, boxHeight, width, height) {
  const scale = Math.min(boxWidth / width, boxHeight / height);
  const [w, h] = [width * scale, height * scale];
  return { x: (boxWidth - w) / 2, y: (boxHeight - h) / 2, width: w, height: h };
}
