// Which inputs of a node have an effect, by the values of the others. Without imports, so that node can test it.

export const CUSTOM = "custom";
const MODEL_SETTINGS = ["width", "height", "steps", "cfg", "audio_cfg", "scheduler", "window_frames", "window_overlap"];

const is = (name, ...wanted) => (values) => values[name] === undefined || wanted.includes(values[name]);
const both = (one, other) => (values) => one(values) && other(values);
const same = (names, rule) => Object.fromEntries(names.map((name) => [name, rule]));

const video = {
  seconds: is("length", "seconds"),
  frames: is("length", "frames"),
  ...same(MODEL_SETTINGS, is("settings", CUSTOM)),
};
const intra = is("mode", "intra");
const edited = (values) => values.override_mask === true || Boolean(values.painted_masks);

/** Node class -> input -> whether it has an effect, given {input: value}; undefined is an input that is connected. */
export const RULES = {
  BYA_Scene: video,
  BYA_Preflight: video,
  BYA_EmbeddingRouter: {
    audio_character_matrix: is("audio_assignment", "matrix"),
    probe: intra,
    probe_steps: both(intra, is("probe", "fixed number of steps")),
    threshold: both(intra, is("probe", "until the masks converge")),
    max_percent: both(intra, is("probe", "until the masks converge")),
    num_seeds: intra,
    region: is("mode", "pre"),
    segmenter: is("mode", "post"),
  },
  BYA_MaskRefine: {
    ...same(["threshold", "propagate", "max_regions", "fill_holes", "smoothing", "exclusive", "grow"], is("refine", true)),
    character: (values) => values.override_mask === true,
    ...same(["strength", "start_percent", "end_percent"], edited),
  },
};

/** Whether an input of a node class has an effect. */
export const hasEffect = (kind, name, values) => RULES[kind]?.[name]?.(values) ?? true;

/**
 * The values to start custom settings with: those of the model, unless the user has changed one.
 *
 * @param current Values of the node, {input: value}.
 * @param model Values of its model; undefined if unknown.
 * @param known Values that nobody has typed: those of each model, and the defaults of the inputs.
 * @returns {input: value} to set, empty to keep the current ones.
 */
export function startValues(current, model, known) {
  if (!model) return {};
  const names = Object.keys(model).filter((name) => name in current && model[name] != null);
  const untouched = known.some((values) => names.every((name) => values[name] == null || values[name] === current[name]));
  return untouched ? Object.fromEntries(names.map((name) => [name, model[name]])) : {};
}

/** Entries of a list of characters: the names, and the current value if it is none of them. */
export function characterChoices(names, current) {
  const known = [...new Set(names.filter(Boolean))];
  return known.includes(current) || current == null ? known : [...known, current];
}

const DEFAULT_NAME = /^character [A-Z]$/;

/**
 * The name of a new character: its own, or the next default name that no other character has.
 *
 * @param name Its name.
 * @param names Names of all characters; a default name that only later ones have is kept.
 * @param index Its place among them.
 */
export function freeName(name, names, index) {
  if (!DEFAULT_NAME.test(name) || !names.slice(0, index).includes(name)) return name;
  const all = Array.from({ length: 26 }, (_, letter) => `character ${String.fromCharCode(65 + letter)}`);
  return all.find((one) => !names.includes(one)) ?? name;
}
