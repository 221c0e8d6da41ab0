// The cast and the recordings behind a node: names, files, offsets. From the nodes before it, or from its last run.
import { fileUrl, holder, outputsOf, parseFile, upstream } from "./kit.mjs";

const MUTED = 2; // mode of a node
const UNKNOWN = { offset: 0, gain: 0, url: null, label: "" }; // a recording without a file

/** Whether an input has a link. */
export const isLinked = (node, name) => node.inputs?.find((one) => one.name === name)?.link != null;

/** The value of a widget, also if a subgraph node shows it; undefined if it is missing or another node sets it. */
export const ownValue = (node, name) => holder(node, name)?.value;

/** BYA Face Encode nodes behind an input of the type BYA_CAST, in order; null if another node makes the cast. */
export function characterNodes(node, input = "cast", depth = 0) {
  if (!isLinked(node, input) || depth > 100) return [];
  const origin = upstream(node, input)?.node;
  if (origin?.mode === MUTED) return [];
  if (origin?.comfyClass === "BYA_FaceEncode") {
    const before = characterNodes(origin, "cast", depth + 1);
    return before && [...before, origin];
  }
  if (isLinked(origin ?? {}, "cast")) return characterNodes(origin, "cast", depth + 1); // BYA Preflight returns its input
  if (origin?.comfyClass !== "BYA_Cast") return null;
  const parts = origin.inputs
    .filter((one) => one.link != null && one.type === "BYA_CAST")
    .map((one) => characterNodes(origin, one.name, depth + 1));
  return parts.includes(null) ? null : parts.flat();
}

/** Whether the speech of a cast comes from a BYA Script. */
function isScripted(node, depth = 0) {
  const origin = isLinked(node, "cast") && depth < 100 ? upstream(node, "cast")?.node : null;
  return Boolean(origin) && (origin.comfyClass === "BYA_Script" || isScripted(origin, depth + 1));
}

/** Recording of a BYA Face Encode: null for a listener, else {offset, gain, url, label}; url is null if unknown. */
function recordingOf(face) {
  if (!isLinked(face, "speech")) return null;
  const voice = upstream(face, "speech")?.node;
  if (!voice || voice.mode === MUTED) return null; // the page leaves out what muted and bypassed nodes do not give
  if (voice.comfyClass !== "BYA_AudioEncode") return UNKNOWN;
  const source = upstream(voice, "audio")?.node;
  const file = source?.type === "LoadAudio" ? ownValue(source, "audio") : null;
  return {
    offset: Number(ownValue(voice, "offset") ?? 0),
    gain: Number(ownValue(voice, "gain") ?? 0),
    url: typeof file === "string" && file ? fileUrl(parseFile(file)) : null,
    label: typeof file === "string" ? file.split("/").at(-1) : "",
  };
}

/**
 * Characters of a BYA Scene: [{name, recording: null | {offset, gain, url, seconds, label}}].
 *
 * Recordings that no file is known for come from the last run of the node (`bya_dialogue`).
 */
export function castOf(scene) {
  const nodes = characterNodes(scene);
  const ran = outputsOf(scene)?.bya_dialogue?.[0]?.voices;
  const fromRun = (voice) => (voice.seconds ? { ...voice, url: voice.file && fileUrl(voice.file), label: "" } : null);
  if (nodes === null) return (ran ?? []).map((voice) => ({ name: voice.name, recording: fromRun(voice) }));
  const scripted = isScripted(scene);
  return nodes.map((face, index) => {
    const known = ran?.length === nodes.length ? ran[index] : null;
    const recording = scripted ? UNKNOWN : recordingOf(face);
    const name = ownValue(face, "name")?.trim() || known?.name || `${index + 1}`;
    return { name, recording: recording && !recording.url && known ? fromRun(known) : recording };
  });
}
