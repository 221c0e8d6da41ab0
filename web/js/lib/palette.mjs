// Colors, without imports from the page, so that node can test them.

/** Colors of the first characters, the same as in bya_core/io/overlay.py. */
export const CHARACTERS = [
  [230, 120, 0],
  [60, 160, 240],
  [0, 160, 110],
  [220, 90, 170],
  [235, 220, 50],
  [130, 80, 200],
];
const GOLDEN_RATIO = 0.618034;

/** Colors of the sockets and links of each type of this pack. */
export const TYPES = {
  BYA_MODEL: "#a78bfa",
  BYA_CAST: "#f472b6",
  BYA_SPEECH: "#22d3ee",
  BYA_SCENE: "#a3e635",
  BYA_ROUTING: "#fb923c",
  BYA_LORA: "#f87171",
};

/** RGB color [0..255, 0..255, 0..255] of a character, as in the mask overlays. */
export function characterRgb(index) {
  if (index < CHARACTERS.length) return CHARACTERS[index];
  return hsvToRgb((index * GOLDEN_RATIO) % 1, 0.4, 0.95).map((value) => Math.round(value * 255));
}

/** CSS color of a character; `alpha` in 0..1. */
export function characterColor(index, alpha = 1) {
  const [red, green, blue] = characterRgb(index);
  return `rgba(${red}, ${green}, ${blue}, ${alpha})`;
}

function hsvToRgb(hue, saturation, value) {
  const sector = Math.floor(hue * 6);
  const fraction = hue * 6 - sector;
  const low = value * (1 - saturation);
  const falling = value * (1 - saturation * fraction);
  const rising = value * (1 - saturation * (1 - fraction));
  return [
    [value, rising, low],
    [falling, value, low],
    [low, value, rising],
    [low, falling, value],
    [rising, low, value],
    [value, low, falling],
  ][sector % 6];
}
