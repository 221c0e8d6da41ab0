// The dialogue timeline of BYA Scene: one lane per character, and one for the timed prompts.
// Edits are stored in the inputs `dialogue` and `prompt_schedule`, once per gesture.
import { app } from "../../../../scripts/app.js";
import { castOf, isLinked, ownValue } from "./cast.mjs";
import * as math from "./dialogue_math.mjs";
import { chain, domWidget, edit, element, growTo, outputsOf, text, toast, warn, widget } from "./kit.mjs";
import * as player from "./player.mjs";
import { Headers, Inspector, toolbar } from "./timeline_controls.mjs";
import { Input } from "./timeline_input.mjs";
import { draw, LANE, layout, PROMPTS, RULER, theme } from "./timeline_view.mjs";

const AROUND = 100; // pixels above and below the lanes
const heightFor = (count) => AROUND + RULER + PROMPTS + LANE * count;
const remembered = new Map(); // per node: view, selection, playhead; undo makes all nodes anew

export function nodeCreated(node) {
  if (node.comfyClass !== "BYA_Scene" || !widget(node, "dialogue")) return;
  node.byaTimeline = new Timeline(node);
  growTo(node, 480, node.size[1]);
}

class Timeline {
  constructor(node) {
    Object.assign(this, { node, cast: [], loaded: new Map(), draft: null, position: null });
    this.state = { view: null, selection: null, playhead: 0, solo: new Set() };
    this.build();
    this.bound = domWidget(node, "dialogue", "timeline", this.root, {
      minHeight: heightFor(2), // constant: a node that grows by itself would add steps to the undo history
      onValue: () => this.valueChanged(),
      onLook: () => this.look(),
      onGone: () => this.dispose(),
    });
    for (const name of ["prompt_schedule", "length", "seconds", "frames"]) {
      const one = widget(node, name);
      if (one) chain(one, "callback", () => this.valueChanged());
    }
    chain(node, "onExecuted", () => this.look());
    chain(node, "onConnectionsChange", () => this.growForCast());
    this.valueChanged();
  }

  build() {
    this.canvas = element("canvas", {
      tabIndex: 0,
      className: "bya-timeline-canvas",
      attributes: { role: "application", "aria-label": text("timeline.label", "Dialogue timeline"), "aria-describedby": "" },
      style: { position: "absolute", inset: "0", width: "100%", height: "100%", touchAction: "none", outline: "none" },
    });
    this.cursor = element("div", {
      style: { position: "absolute", top: "0", width: "1.5px", background: "#ff5555", pointerEvents: "none", display: "none" },
    });
    this.area = element("div", { style: { position: "relative", flex: "1", minWidth: "0", overflow: "hidden" } }, this.canvas, this.cursor);
    this.headers = new Headers(this);
    this.spacer = element("div", { style: { height: "1px" } });
    this.scroll = element(
      "div",
      { className: "bya-timeline-scroll", style: { overflowX: "auto", overflowY: "hidden", height: "12px", scrollbarWidth: "thin", scrollbarColor: "var(--descrip-text, #888) transparent", marginLeft: `${Headers.WIDTH}px`, flex: "none" } },
      this.spacer,
    );
    this.bar = toolbar(this);
    this.inspector = new Inspector(this);
    this.live = element("div", {
      attributes: { "aria-live": "polite" },
      style: { position: "absolute", width: "1px", height: "1px", overflow: "hidden", clipPath: "inset(50%)" },
    });
    this.rows = element("div", { style: { display: "flex", minHeight: "100%" } }, this.headers.root, this.area);
    const body = element("div", { style: { flex: "1", minHeight: "0", overflowX: "hidden", overflowY: "auto", scrollbarWidth: "thin" } }, this.rows);
    this.root = element(
      "div",
      {
        className: "bya-timeline",
        style: {
          display: "flex", flexDirection: "column", position: "relative", font: "11px sans-serif", borderRadius: "6px",
          color: "var(--input-text, #ddd)", background: "var(--comfy-input-bg, #222)", border: "1px solid var(--border-color, #444)",
        },
      },
      this.bar.root, body, this.scroll, this.inspector.root, this.live,
    );
    this.input = new Input(this);
  }

  // values

  /** The dialogue as shown: while a gesture goes on, with its changes. Null if the text is invalid. */
  get dialogue() {
    return this.draft?.dialogue ?? this.stored;
  }

  get prompts() {
    return this.draft?.prompts ?? this.storedPrompts;
  }

  get count() {
    return this.cast.length;
  }

  valueChanged() {
    if (this.input.gesture || this.input.held) return; // stored when the gesture ends
    const connected = isLinked(this.node, "prompt_schedule");
    this.stored = math.readDialogue(widget(this.node, "dialogue").value);
    this.storedPrompts = connected ? null : math.readPrompts(widget(this.node, "prompt_schedule").value);
    this.draft = null;
    this.refresh();
  }

  /** Stores the draft: one step of the undo history. */
  commit() {
    const { draft } = this;
    this.draft = null;
    if (!draft) return;
    const values = {};
    if (draft.dialogue) values.dialogue = math.writeDialogue(draft.dialogue);
    if (draft.prompts) values.prompt_schedule = math.writePrompts(draft.prompts);
    this.stored = draft.dialogue ?? this.stored;
    this.storedPrompts = draft.prompts ?? this.storedPrompts;
    const changed = Object.entries(values).some(([name, value]) => widget(this.node, name).value !== value);
    if (changed) edit(this.node, values);
    this.refresh();
    if (changed && this.position) this.play(); // what is heard follows the edit
  }

  change(draft) {
    this.draft = { ...this.draft, ...draft };
    this.refresh();
  }

  /** Applies a change at once. */
  apply(draft) {
    this.change(draft);
    this.commit();
  }

  // what is shown

  /** Reads the cast and its recordings. Called when links, files or the size may have changed. */
  async look() {
    this.recall();
    const cast = castOf(this.node);
    this.run = outputsOf(this.node)?.bya_dialogue?.[0] ?? null;
    this.cast = cast;
    this.valueChanged();
    const urls = [...new Set(cast.map(({ recording }) => recording?.url).filter(Boolean))];
    for (const url of this.loaded.keys()) if (!urls.includes(url)) this.loaded.delete(url); // each run has new files
    await Promise.all(
      urls.map(async (url) => {
        if (this.loaded.get(url)?.peaks) return;
        try {
          const found = await player.recording(url);
          this.loaded.set(url, { ...found, loudest: math.peakIn(found.peaks, 0, found.seconds) });
        } catch (error) {
          if (!this.loaded.get(url)?.failed) warn("timeline", error); // once, not after every change of the graph
          this.loaded.set(url, { failed: true });
        }
        this.refresh();
      }),
    );
  }

  /** Makes room for all lanes when the user connects a cast. */
  growForCast() {
    if (app.configuringGraph || !this.node.graph) return;
    const count = castOf(this.node).length;
    const added = heightFor(count) - heightFor(Math.max(2, this.cast.length));
    if (count > this.cast.length && added > 0) this.node.setSize([this.node.size[0], this.node.size[1] + added]);
  }

  source(voice) {
    const found = this.cast[voice]?.recording;
    if (!found) return null;
    const loaded = this.loaded.get(found.url) ?? {};
    return { offset: found.offset ?? 0, gain: found.gain ?? 0, seconds: loaded.seconds ?? found.seconds ?? null, ...pick(loaded) };
  }

  lanes() {
    const voices = math.voicesOf(this.dialogue ?? { characters: null }, this.count);
    const { solo } = this.state;
    return voices.map((voice, lane) => {
      const source = this.source(voice);
      const owner = this.cast[voice];
      const muted = this.dialogue?.voices[voice]?.mute ?? false;
      const file = owner?.recording?.label ?? "";
      const label = voice === lane ? file : text("timeline.voice", "Voice of {name}", { name: owner?.name ?? voice + 1 });
      return { voice, source, label, muted, solo: solo.has(lane), audible: solo.size ? solo.has(lane) : !muted, note: this.note(owner) };
    });
  }

  note(owner) {
    if (!owner?.recording) return text("timeline.listener", "Silent listener: no recording is connected");
    const loaded = this.loaded.get(owner.recording.url);
    if (loaded?.failed) return text("timeline.unreadable", "The recording cannot be read by the browser");
    if (owner.recording.url) return text("timeline.loading", "Loading…");
    return text("timeline.afterRun", "Waveform after the first run");
  }

  model() {
    const lanes = this.lanes();
    const { clientWidth: width, clientHeight: height } = this.canvas;
    let [last, longest] = [0, 0];
    for (const { voice, source, muted } of lanes) {
      if (!source || !this.dialogue) continue;
      const ends = math.clipsOf(this.dialogue, voice).map((clip) => math.clipSpan(clip, source)[1] ?? 0);
      longest = Math.max(longest, ...ends);
      if (!muted) last = Math.max(last, ...ends);
    }
    const given = Object.fromEntries(["length", "seconds", "frames"].map((name) => [name, ownValue(this.node, name)]));
    const end = math.videoEnd(given, last, this.run?.frames);
    const total = Math.max(1, end ?? 0, longest, ...(this.prompts ?? []).map((span) => span.end));
    this.total = total;
    const view = this.input.gesture ? this.view : this.visible(width); // the scale stays while dragging
    const windows = (this.run?.windows ?? []).slice(1).map(([start]) => start);
    const promptHint = this.prompts
      ? text("timeline.promptHint", "Double-click to add a prompt for a part of the video")
      : text("timeline.promptsElsewhere", "prompt_schedule is connected, or has lines of another form");
    return {
      lanes, view, width, height, end, windows, promptHint, dialogue: this.dialogue, prompts: this.prompts,
      selection: this.state.selection, theme: theme(this.root),
    };
  }

  visible(width) {
    const { view } = this.state;
    const fit = math.fitView(this.total, width);
    return view && view.scale > fit.scale ? math.scrolled(view, 0, this.total, width) : fit;
  }

  refresh() {
    if (this.pending) return;
    this.pending = requestAnimationFrame(() => {
      this.pending = null;
      this.render();
    });
  }

  render() {
    this.rows.style.height = `max(100%, ${heightFor(this.count) - AROUND}px)`;
    const model = this.model();
    const { canvas } = this;
    if (!model.width || !model.height) return;
    const zoom = canvas.getBoundingClientRect().width / model.width; // of the graph
    const ratio = Math.min(3, Math.max(1.5, zoom * (window.devicePixelRatio || 1)));
    const [width, height] = [Math.round(model.width * ratio), Math.round(model.height * ratio)];
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.view = model.view;
    draw(context, model);
    const places = layout(model.lanes.length, model.height);
    this.headers.show(model, places);
    this.cursor.style.height = `${places.prompts + PROMPTS}px`;
    this.inspector.show(model);
    this.bar.show(this, model);
    this.spacer.style.width = `${Math.round(math.reach(this.total) * model.view.scale)}px`;
    const left = Math.round(model.view.start * model.view.scale);
    if (Math.abs(this.scroll.scrollLeft - left) > 1) this.scroll.scrollLeft = left;
    this.moveCursor();
  }

  moveCursor() {
    const x = math.timeToX(this.view, this.state.playhead);
    this.cursor.style.display = x < 0 || x > this.canvas.clientWidth ? "none" : "";
    this.cursor.style.transform = `translateX(${x}px)`;
    this.bar.time(this.state.playhead);
  }

  // what is remembered when undo makes the node anew

  key() {
    return `${this.node.graph?.id}:${this.node.id}`;
  }

  recall() {
    if (this.recalled) return;
    this.recalled = true;
    const found = remembered.get(this.key());
    if (!found) return;
    remembered.delete(this.key());
    this.state = found.state;
    if (found.focused) this.canvas.focus({ preventScroll: true });
  }

  dispose() {
    this.gone = true;
    cancelAnimationFrame(this.pending);
    cancelAnimationFrame(this.playing);
    if (this.position) player.stop();
  }

  focusChanged(focused) {
    this.canvas.style.boxShadow = focused ? "inset 0 0 0 1px var(--p-primary-color, #60a5fa)" : "";
    // undo takes the element away, and its focus with it: the new one gets it back
    if (focused) this.remember(true);
    else setTimeout(() => this.canvas.isConnected && this.remember(false), 50);
  }

  remember(focused = document.activeElement === this.canvas) {
    if (this.node.graph) remembered.set(this.key(), { state: this.state, focused });
  }

  select(selection) {
    this.state.selection = selection;
    this.remember();
    this.refresh();
    this.announce();
  }

  /** Describes the selection to screen readers. */
  announce() {
    const chosen = this.chosen();
    if (chosen?.clip) {
      const [start, end] = math.clipSpan(chosen.clip, chosen.source);
      this.live.textContent = text("timeline.clipAt", "{name}, clip {number}: {start} to {end}", {
        name: this.cast[this.state.selection.lane].name, number: this.state.selection.clip + 1, start: math.clock(start), end: end == null ? "?" : math.clock(end),
      });
    } else if (chosen?.span) {
      this.live.textContent = `${math.clock(chosen.span.start)} – ${math.clock(chosen.span.end)}: ${chosen.span.prompt}`;
    }
  }

  /** The selected clip {clip, voice, source} or prompt {span}; null without a selection. */
  chosen() {
    const { selection } = this.state;
    if (selection?.kind === "prompt") {
      const span = this.prompts?.[selection.index];
      return span ? { span } : null;
    }
    if (selection?.kind !== "clip" || !this.dialogue) return null;
    const voice = math.voicesOf(this.dialogue, this.count)[selection.lane];
    const [clip, source] = [math.clipsOf(this.dialogue, voice)[selection.clip], this.source(voice)];
    return clip && source ? { clip, voice, source } : null;
  }

  // visible range

  setView(view) {
    this.state.view = view;
    this.refresh();
  }

  zoom(factor) {
    if (!this.view) return;
    const width = this.canvas.clientWidth;
    const at = math.timeToX(this.view, this.state.playhead);
    this.setView(math.zoomed(this.view, factor, at >= 0 && at <= width ? at : width / 2, this.total, width));
  }

  fit() {
    this.setView(null);
  }

  scrolledTo() {
    if (!this.view) return;
    const start = this.scroll.scrollLeft / this.view.scale;
    if (Math.abs(start - this.view.start) * this.view.scale > 1.5) this.setView({ ...this.view, start });
  }

  // commands of buttons and keys

  /** Changes the selected clip; `how` gets (clip, source). */
  changeClip(how) {
    const chosen = this.chosen();
    if (!chosen?.clip) return;
    const clip = how(chosen.clip, chosen.source);
    if (clip) this.change({ dialogue: math.withClip(this.dialogue, chosen.voice, this.state.selection.clip, clip) });
  }

  changePrompt(how) {
    const { selection } = this.state;
    const span = this.chosen()?.span;
    if (!span) return;
    this.change({ prompts: this.prompts.map((one, index) => (index === selection.index ? how(one) : one)) });
  }

  mute(lane) {
    if (!this.dialogue) return;
    const voice = math.voicesOf(this.dialogue, this.count)[lane];
    this.apply({ dialogue: math.withVoice(this.dialogue, voice, ({ mute }) => ({ mute: !mute })) });
  }

  solo(lane) {
    const { solo } = this.state;
    if (!solo.delete(lane)) solo.add(lane);
    this.remember();
    this.refresh();
    if (this.position) this.play();
  }

  swap(one, other) {
    if (!this.dialogue || one === other || this.count < 2) return;
    this.apply({ dialogue: math.swapVoices(this.dialogue, this.count, one, other) });
    const [first, second] = [this.cast[one].name, this.cast[other].name];
    this.live.textContent = text("timeline.swapped", "{first} and {second} have swapped voices", { first, second });
  }

  /** Splits the selected clip at the playhead, or the clip under the playhead in the selected lane. */
  split() {
    const chosen = this.chosen();
    if (!chosen?.clip) {
      toast("info", text("timeline.split", "Split"), text("timeline.selectFirst", "Select a clip and place the playhead inside of it."));
      return;
    }
    const parts = math.splitClip(chosen.clip, chosen.source, this.state.playhead);
    if (!parts) {
      toast("info", text("timeline.split", "Split"), text("timeline.selectFirst", "Select a clip and place the playhead inside of it."));
      return;
    }
    const { lane, clip } = this.state.selection;
    this.apply({ dialogue: math.withVoice(this.dialogue, chosen.voice, ({ clips }) => ({ clips: clips.toSpliced(clip, 1, ...parts) })) });
    this.select({ kind: "clip", lane, clip: clip + 1 });
  }

  deleteSelected() {
    const chosen = this.chosen();
    const { selection } = this.state;
    if (chosen?.clip) {
      this.apply({ dialogue: math.withVoice(this.dialogue, chosen.voice, ({ clips }) => ({ clips: clips.toSpliced(selection.clip, 1) })) });
    } else if (chosen?.span) {
      this.apply({ prompts: this.prompts.toSpliced(selection.index, 1) });
    } else return;
    this.select(null);
  }

  addPrompt(time = this.state.playhead) {
    if (!this.prompts) return;
    const range = math.freeRange(this.prompts, math.toFrame(time), math.toFrame(Math.min(2, Math.max(0.4, this.total / 4))));
    if (!range) return;
    const prompt = widget(this.node, "prompt")?.value?.trim() || text("timeline.newPrompt", "New prompt");
    const prompts = [...this.prompts, { ...range, prompt: prompt.replace(/\s+/g, " ") }].sort((one, other) => one.start - other.start);
    this.apply({ prompts });
    this.select({ kind: "prompt", index: prompts.findIndex((span) => span.start === range.start) });
    requestAnimationFrame(() => this.inspector.focusText());
  }

  /** Removes all edits of the recordings. */
  reset() {
    this.state.selection = null;
    this.draft = { dialogue: { voices: [], characters: null } };
    this.commit();
  }

  // playback

  seek(time) {
    this.state.playhead = Math.max(0, Math.min(time, this.total ?? 0));
    this.remember();
    if (this.view) this.moveCursor();
    if (this.position && !this.input.gesture) this.play();
  }

  toggle() {
    if (this.position) player.stop();
    else this.play();
  }

  async play() {
    if (!this.dialogue) return;
    const end = this.model().end ?? this.total;
    if (this.state.playhead >= end - 0.05) this.state.playhead = 0;
    const start = this.state.playhead;
    const entries = math
      .playlist(this.dialogue, this.lanes(), start)
      .map((entry) => ({ ...entry, buffer: this.loaded.get(this.cast[entry.voice]?.recording?.url)?.buffer }))
      .filter((entry) => entry.buffer);
    try {
      const elapsed = await player.play(entries, () => this.stopped());
      if (elapsed() === null) return; // stopped, or started again, meanwhile
      if (this.gone) return player.stop();
      this.position = () => (elapsed() === null ? null : start + elapsed());
      this.bar.show(this, this.model());
      this.follow(end);
    } catch (error) {
      warn("timeline", error);
    }
  }

  follow(end) {
    cancelAnimationFrame(this.playing);
    const time = this.position?.();
    if (time == null) return;
    if (time >= end) {
      player.stop();
      return;
    }
    this.state.playhead = time;
    const x = math.timeToX(this.view, time);
    if (x > this.canvas.clientWidth - 8) this.setView({ ...this.view, start: time - 8 / this.view.scale });
    this.moveCursor();
    this.playing = requestAnimationFrame(() => this.follow(end));
  }

  stopped() {
    this.position = null;
    cancelAnimationFrame(this.playing);
    this.refresh();
  }
}

const pick = ({ peaks, spans, loudest, buffer }) => (peaks ? { peaks, spans, loudest, buffer } : {});
