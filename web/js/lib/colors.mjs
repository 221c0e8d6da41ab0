// One color per socket type of this pack. The page resets the colors of custom types when it loads a color palette.
import { app } from "../../../../scripts/app.js";
import { TYPES } from "./palette.mjs";

export function applyColors() {
  for (const [type, color] of Object.entries(TYPES)) {
    app.canvas.default_connection_color_byType[type] = color; // sockets of classic nodes
    app.canvas.constructor.link_type_colors[type] = color; // links
    document.documentElement.style.setProperty(`--color-datatype-${type}`, color); // sockets of Nodes 2.0
  }
  app.canvas.setDirty?.(true, true);
}

export function setup() {
  applyColors();
  app.ui.settings.addEventListener("Comfy.ColorPalette.change", () => setTimeout(applyColors, 100));
}

export const afterConfigureGraph = applyColors;
