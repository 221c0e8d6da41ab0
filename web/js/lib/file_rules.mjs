// Which dropped file belongs to which character. Without imports, so that node can test it.

const IMAGE = /\.(png|jpe?g|webp|bmp|avif)$/i;
const RECORDING = /\.(wav|mp3|flac|ogg|oga|opus|m4a|aac)$/i;
const FIRST_FRAME = /first[ _-]?frame/i;
const DEMO = /^bya_.*\.\w+$/; // files that come with the pack

/** "image", "audio" or null, of a file {name, type}. */
export function kindOf({ name, type = "" }) {
  if (type.startsWith("image/") && type !== "image/svg+xml") return "image";
  if (type.startsWith("audio/")) return "audio";
  if (type) return null;
  if (IMAGE.test(name)) return "image";
  return RECORDING.test(name) ? "audio" : null;
}

/** Whether a widget holds a file that comes with the pack. */
export const isDemo = (value) => DEMO.test(String(value ?? "").split("/").at(-1));

const words = (name) => name.toLowerCase().replace(/[\s_-]+/g, " ");
const stem = (name) => words(name.replace(/\.\w+$/, ""));
const inOrder = (one, other) => one.name.localeCompare(other.name, undefined, { numeric: true });

/**
 * Assigns files to the loaders of characters: by the name of the character in the name of the file, then recordings to
 * the image of the same name, then in the order of the names.
 *
 * @param files [{name, type}].
 * @param characters [{name, image, audio}] in order; image and audio are any values that identify a loader, or null.
 * @param firstFrame The loader of the first frame, or null.
 * @returns {{pairs: [[file, loader]], left: [file]}} one file at most for each loader, and the files without one.
 */
export function assignFiles(files, characters, firstFrame = null) {
  const pairs = [];
  const taken = new Set(); // files and loaders
  const pair = (file, loader) => {
    if (!file || loader == null || taken.has(file) || taken.has(loader)) return;
    pairs.push([file, loader]);
    taken.add(file).add(loader);
  };
  const sorted = [...files].sort(inOrder);
  const images = sorted.filter((file) => kindOf(file) === "image");
  const recordings = sorted.filter((file) => kindOf(file) === "audio");
  if (firstFrame != null) pair(images.find(({ name }) => FIRST_FRAME.test(name)), firstFrame);
  const named = (list, name) => name.length > 1 && list.find((file) => !taken.has(file) && stem(file.name).includes(words(name)));
  for (const { name, image, audio } of characters) {
    pair(named(images, name), image);
    pair(named(recordings, name), audio);
  }
  const next = (list) => list.find((file) => !taken.has(file));
  for (const { image } of characters) {
    if (image != null && !taken.has(image)) pair(next(images), image);
  }
  for (const { image, audio } of characters) {
    const own = pairs.find(([, loader]) => loader === image)?.[0];
    if (own) pair(recordings.find((file) => stem(file.name) === stem(own.name)), audio);
  }
  for (const { audio } of characters) {
    if (audio != null && !taken.has(audio)) pair(next(recordings), audio);
  }
  return { pairs, left: sorted.filter((file) => !taken.has(file)) };
}
