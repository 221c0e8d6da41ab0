// Buttons and fields around the lanes of the dialogue timeline: toolbar, headers of the lanes, fields of the selection.
import { clipSpan, clipTo, clock, movedClip, trimmedEnd, trimmedStart } from "./dialogue_math.mjs";
import { element, text } from "./kit.mjs";
import { characterColor } from "./palette.mjs";
import { PROMPTS, RULER } from "./timeline_view.mjs";

const BUTTON = {
  font: "11px sans-serif", minWidth: "20px", height: "20px", padding: "0 5px", borderRadius: "4px", cursor: "pointer",
  color: "inherit", background: "transparent", border: "1px solid var(--border-color, #555)", lineHeight: "1",
};

/** A button that leaves the focus, and so the keys of the timeline, where they are. */
function button(label, title, onClick, style = {}) {
  const made = element("button", { type: "button", textContent: label, title, attributes: { "aria-label": title }, style: { ...BUTTON, ...style } });
  made.addEventListener("pointerdown", (event) => event.stopPropagation());
  made.addEventListener("keydown", (event) => event.stopPropagation());
  made.addEventListener("click", (event) => {
    event.stopPropagation();
    onClick();
  });
  return made;
}

function pressed(made, on, color) {
  made.setAttribute("aria-pressed", String(on));
  made.style.background = on ? color : "transparent";
  made.style.color = on ? "#111" : "inherit";
}

const row = { display: "flex", alignItems: "center", gap: "4px", height: "30px", padding: "0 6px", flex: "none", whiteSpace: "nowrap", overflow: "hidden" };

/** Play, time, split, zoom. Returns {root, show, time}. */
export function toolbar(timeline) {
  const play = button("▶", text("timeline.play", "Play (space)"), () => timeline.toggle(), { width: "30px" });
  const time = element("span", { style: { fontVariantNumeric: "tabular-nums", minWidth: "112px", opacity: "0.9" } });
  const reset = button(text("timeline.reset", "Reset"), text("timeline.resetHint", "Remove all edits of the recordings"), () => timeline.reset());
  const root = element(
    "div",
    { style: row },
    play,
    time,
    element("span", { style: { flex: "1" } }),
    button(text("timeline.splitShort", "Split"), text("timeline.splitHint", "Split the selected clip at the playhead (S)"), () => timeline.split()),
    reset,
    button("−", text("timeline.zoomOut", "Zoom out (-)"), () => timeline.zoom(1 / 1.5)),
    button("+", text("timeline.zoomIn", "Zoom in (+)"), () => timeline.zoom(1.5)),
    button(text("timeline.fit", "Fit"), text("timeline.fitHint", "Show the whole video (F)"), () => timeline.fit()),
  );
  let end = null;
  const showTime = (now) => (time.textContent = end == null ? clock(now) : `${clock(now)} / ${clock(end)}`);
  return {
    root,
    time: showTime,
    show(owner, model) {
      end = model.end;
      play.textContent = owner.position ? "■" : "▶";
      reset.style.visibility = owner.stored && !owner.stored.voices.length && !owner.stored.characters ? "hidden" : "";
      showTime(owner.state.playhead);
    },
  };
}

/** Names of the characters, mute, solo and the exchange of voices. */
export class Headers {
  static WIDTH = 112;

  constructor(timeline) {
    this.timeline = timeline;
    this.root = element("div", {
      style: { width: `${Headers.WIDTH}px`, flex: "none", overflow: "hidden", borderRight: "1px solid var(--border-color, #444)", boxSizing: "border-box" },
    });
    this.rows = [];
    this.dragged = null;
  }

  show(model, places) {
    if (this.rows.length !== model.lanes.length) this.build(model.lanes.length);
    const { cast } = this.timeline;
    model.lanes.forEach((lane, index) => {
      const { root, name, mute, solo } = this.rows[index];
      root.style.height = `${places.lane}px`;
      name.textContent = cast[index].name;
      name.title = lane.voice === index ? cast[index].name : `${cast[index].name}: ${lane.label}`;
      pressed(mute, lane.muted, "#e5a54b");
      pressed(solo, lane.solo, "#e8d84a");
    });
  }

  build(count) {
    this.rows = [...Array(count).keys()].map((index) => this.header(index, count));
    const filler = (height, label) => element("div", {
      textContent: label,
      style: { height: `${height}px`, lineHeight: `${height}px`, padding: "0 8px", background: "var(--comfy-menu-bg, #353535)", color: "var(--descrip-text, #999)" },
    });
    this.root.replaceChildren(filler(RULER, ""), ...this.rows.map(({ root }) => root), filler(PROMPTS, text("timeline.prompts", "Prompts")));
  }

  header(index, count) {
    const { timeline } = this;
    const name = element("div", { style: { overflow: "hidden", textOverflow: "ellipsis", whiteSpace: "nowrap", fontWeight: "600" } });
    const mute = button("M", text("timeline.mute", "Mute: the character becomes a listener (M)"), () => timeline.mute(index));
    const solo = button("S", text("timeline.solo", "Solo: play only this voice, without effect on the video (O)"), () => timeline.solo(index));
    const swap = button("⇅", text("timeline.swap", "Swap voices with the next character (X)"), () => timeline.swap(index, (index + 1) % count));
    const buttons = element("div", { style: { display: "flex", gap: "3px" } }, mute, solo, ...(count > 1 ? [swap] : []));
    const root = element(
      "div",
      {
        title: count > 1 ? text("timeline.dragHeader", "Drag onto another name to swap their voices") : "",
        style: {
          display: "flex", flexDirection: "column", justifyContent: "center", gap: "3px", padding: "0 6px", boxSizing: "border-box", minWidth: "0",
          borderLeft: `4px solid ${characterColor(index)}`, borderTop: "1px solid var(--border-color, #444)", cursor: count > 1 ? "grab" : "default", touchAction: "none",
        },
      },
      name,
      buttons,
    );
    this.listen(root, index);
    return { root, name, mute, solo };
  }

  /** Dragging the header of a lane onto that of another one swaps their voices. */
  listen(root, index) {
    const laneAt = (event) => this.rows.findIndex(({ root: other }) => {
      const box = other.getBoundingClientRect();
      return event.clientY >= box.top && event.clientY < box.bottom;
    });
    const mark = (lane) => this.rows.forEach((one, other) => {
      one.root.style.background = other === lane && lane !== index ? characterColor(lane, 0.3) : "";
    });
    root.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      event.stopPropagation();
      root.setPointerCapture(event.pointerId);
      this.dragged = index;
    });
    root.addEventListener("pointermove", (event) => this.dragged === index && mark(laneAt(event)));
    const end = (event) => {
      if (this.dragged !== index) return;
      this.dragged = null;
      mark(-1);
      const lane = laneAt(event);
      if (event.type === "pointerup" && lane >= 0) this.timeline.swap(index, lane);
    };
    root.addEventListener("pointerup", end);
    root.addEventListener("pointercancel", end);
  }
}

/** Fields of the selected clip or prompt. */
export class Inspector {
  constructor(timeline) {
    this.timeline = timeline;
    this.root = element("div", { style: { ...row, borderTop: "1px solid var(--border-color, #444)" } });
    this.kind = undefined;
    this.fields = {};
  }

  show() {
    const chosen = this.timeline.chosen();
    const kind = chosen?.clip ? "clip" : chosen?.span ? "prompt" : null;
    const broken = this.timeline.dialogue === null;
    if (kind !== this.kind || broken !== this.broken) this.build(kind, broken);
    if (kind === "clip") this.showClip(chosen);
    if (kind === "prompt") {
      this.set("start", chosen.span.start);
      this.set("end", chosen.span.end);
      this.set("prompt", chosen.span.prompt);
    }
  }

  showClip({ clip, source }) {
    this.set("start", clipSpan(clip, source)[0]);
    this.set("from", clip.from);
    const to = clipTo(clip, source.seconds);
    this.set("to", to ?? "");
    this.set("gain", clip.gain);
  }

  set(name, value) {
    const field = this.fields[name];
    if (!field || document.activeElement === field) return;
    field.value = typeof value === "number" ? String(Math.round(value * 1000) / 1000) : value;
  }

  build(kind, broken) {
    const { timeline } = this;
    Object.assign(this, { kind, broken, fields: {} });
    if (kind === "clip") {
      this.root.replaceChildren(
        this.number("start", text("timeline.start", "Start"), text("timeline.startHint", "Start in the video, in seconds"), 0.04, (value) => timeline.changeClip((clip, source) => movedClip(clip, source, value))),
        this.number("from", text("timeline.from", "From"), text("timeline.fromHint", "Start in the recording, in seconds"), 0.04, (value) => timeline.changeClip((clip, source) => {
          const [start] = clipSpan(clip, source);
          return trimmedStart(clip, source, start + value - clip.from);
        })),
        this.number("to", text("timeline.to", "To"), text("timeline.toHint", "End in the recording, in seconds"), 0.04, (value) => timeline.changeClip((clip, source) => {
          const [start] = clipSpan(clip, source);
          return trimmedEnd(clip, source, start + value - clip.from);
        })),
        this.number("gain", text("timeline.gain", "Gain"), text("timeline.gainHint", "Gain in dB ([ and ])"), 1, (value) => timeline.changeClip((clip) => ({ ...clip, gain: Math.max(-60, Math.min(60, value)) })), "dB"),
        element("span", { style: { flex: "1" } }),
        button("✕", text("timeline.delete", "Delete (Delete)"), () => timeline.deleteSelected()),
      );
    } else if (kind === "prompt") {
      const field = this.field("prompt", "text", (value) => value.trim() && timeline.changePrompt((span) => ({ ...span, prompt: value.replace(/\s+/g, " ").trim() })), {
        flex: "1", minWidth: "60px",
      });
      field.setAttribute("aria-label", text("timeline.promptText", "Prompt"));
      const times = (part) => (value) => timeline.changePrompt((span) => {
        const changed = { ...span, [part]: Math.max(0, value) };
        return changed.start < changed.end ? changed : span;
      });
      this.root.replaceChildren(
        this.number("start", "", text("timeline.startHint", "Start in the video, in seconds"), 0.04, times("start")),
        element("span", { textContent: "–" }),
        this.number("end", "", text("timeline.endHint", "End in the video, in seconds"), 0.04, times("end")),
        field,
        button("✕", text("timeline.delete", "Delete (Delete)"), () => timeline.deleteSelected()),
      );
    } else {
      const hint = broken
        ? text("timeline.invalid", "The input dialogue is not valid. Reset removes it.")
        : text("timeline.hint", "Drag clips to move, edges to trim. Keys: ← → move, Alt trim, S split, [ ] gain, Space play");
      this.root.replaceChildren(element("span", { textContent: hint, title: hint, style: { color: "var(--descrip-text, #999)", overflow: "hidden", textOverflow: "ellipsis" } }));
    }
  }

  number(name, label, hint, step, onValue, unit = "s") {
    const field = this.field(name, "number", (value) => value !== "" && Number.isFinite(Number(value)) && onValue(Number(value)), { width: "58px" });
    Object.assign(field, { step: String(step), title: hint });
    field.setAttribute("aria-label", hint);
    return element("label", { title: hint, style: { display: "flex", alignItems: "center", gap: "3px" } }, ...(label ? [label] : []), field, unit);
  }

  field(name, type, onValue, style) {
    const field = element("input", {
      type,
      style: {
        font: "11px sans-serif", height: "20px", boxSizing: "border-box", padding: "0 4px", borderRadius: "4px", color: "inherit",
        background: "var(--comfy-menu-bg, #353535)", border: "1px solid var(--border-color, #555)", ...style,
      },
    });
    field.addEventListener("pointerdown", (event) => event.stopPropagation());
    field.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Enter") field.blur();
      if (event.key === "Escape") {
        this.timeline.input.cancel();
        this.timeline.canvas.focus({ preventScroll: true });
      }
    });
    field.addEventListener("change", () => {
      onValue(field.value);
      this.timeline.commit();
    });
    this.fields[name] = field;
    return field;
  }

  /** Puts the keyboard focus into the first field. */
  focusText() {
    this.show();
    const field = this.fields.prompt ?? this.fields.start;
    field?.focus({ preventScroll: true });
    field?.select();
  }
}
