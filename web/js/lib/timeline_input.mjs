// Pointer, wheel and keys of the dialogue timeline. A gesture changes a draft, which is stored when it ends.
import * as math from "./dialogue_math.mjs";
import { hit } from "./timeline_view.mjs";

const SNAP = 7; // pixels

export class Input {
  constructor(timeline) {
    this.timeline = timeline;
    this.gesture = null; // what is dragged
    this.held = false; // whether an arrow key is held
    const { canvas, scroll } = timeline;
    const events = {
      pointerdown: (event) => this.pointerDown(event),
      pointermove: (event) => this.pointerMove(event),
      pointerup: (event) => this.pointerUp(event),
      pointercancel: () => this.cancel(),
      dblclick: (event) => this.doubleClick(event),
      keydown: (event) => this.keyDown(event),
      keyup: (event) => this.keyUp(event),
      contextmenu: (event) => event.stopPropagation(),
    };
    for (const [name, listener] of Object.entries(events)) canvas.addEventListener(name, listener);
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    canvas.addEventListener("focus", () => timeline.focusChanged(true));
    canvas.addEventListener("blur", () => {
      if (this.held) this.keyUp();
      timeline.focusChanged(false);
    });
    scroll.addEventListener("scroll", () => timeline.scrolledTo());
    scroll.addEventListener("pointerdown", (event) => event.stopPropagation());
  }

  point(event) {
    const box = this.timeline.canvas.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * this.timeline.canvas.clientWidth;
    const y = ((event.clientY - box.top) / box.height) * this.timeline.canvas.clientHeight;
    return { x, y, time: math.xToTime(this.timeline.view, x) };
  }

  pointerDown(event) {
    if (event.button !== 0 || !this.timeline.view) return;
    event.stopPropagation();
    this.timeline.canvas.focus({ preventScroll: true });
    this.timeline.canvas.setPointerCapture(event.pointerId);
    const { x, y, time } = this.point(event);
    const target = hit(this.timeline.model(), x, y);
    if (target.kind === "clip") this.timeline.select({ kind: "clip", lane: target.lane, clip: target.clip });
    else if (target.kind === "prompt") this.timeline.select({ kind: "prompt", index: target.index });
    else this.timeline.select(null);
    const chosen = this.timeline.chosen();
    let grabbed = 0;
    if (chosen?.clip) grabbed = time - math.clipSpan(chosen.clip, chosen.source)[target.part === "end" ? 1 : 0];
    if (chosen?.span) grabbed = time - chosen.span[target.part === "end" ? "end" : "start"];
    this.gesture = { ...target, ...chosen, grabbed, x, moved: false, spans: this.timeline.prompts, base: this.timeline.dialogue };
    if (!["clip", "prompt"].includes(target.kind)) this.timeline.seek(time);
  }

  pointerMove(event) {
    if (!this.timeline.view) return; // not drawn yet
    const { x, y, time } = this.point(event);
    const { gesture } = this;
    if (!gesture) {
      const target = hit(this.timeline.model(), x, y);
      const cursors = { start: "ew-resize", end: "ew-resize", body: "grab" };
      this.timeline.canvas.style.cursor = cursors[target.part] ?? "default";
      return;
    }
    event.stopPropagation();
    if (!gesture.moved && Math.abs(x - gesture.x) < 3) return;
    gesture.moved = true;
    if (gesture.clip && gesture.kind === "clip") this.dragClip(gesture, time - gesture.grabbed, event.shiftKey);
    else if (gesture.span) this.dragSpan(gesture, time - gesture.grabbed, event.shiftKey);
    else this.timeline.seek(time);
  }

  dragClip(gesture, time, free) {
    const { clip, voice, source, part } = gesture;
    const number = this.timeline.state.selection.clip;
    const [start, end] = math.clipSpan(clip, source);
    const shifts = part === "body" && end != null ? [0, end - start] : [0];
    const to = free ? time : this.snap(math.toFrame(time), voice, number, shifts);
    const changes = { body: math.movedClip, start: math.trimmedStart, end: math.trimmedEnd };
    if (end == null && part !== "body") return;
    this.timeline.canvas.style.cursor = part === "body" ? "grabbing" : "ew-resize";
    this.timeline.change({ dialogue: math.withClip(gesture.base, voice, number, changes[part](clip, source, to)) });
    this.timeline.inspector.show(this.timeline.model());
  }

  dragSpan(gesture, time, free) {
    const { selection } = this.timeline.state;
    const length = gesture.span.end - gesture.span.start;
    const to = free ? time : this.snap(math.toFrame(time), null, null, gesture.part === "body" ? [0, length] : [0]);
    const span = math.changedSpan(gesture.spans, selection.index, gesture.part, to);
    this.timeline.change({ prompts: gesture.spans.map((one, index) => (index === selection.index ? span : one)) });
  }

  /** Aligns a time with edges of other clips, prompts, the playhead and the start. */
  snap(time, voice, number, shifts) {
    const marks = [0, this.timeline.state.playhead];
    for (const lane of this.timeline.lanes()) {
      if (!lane.source) continue;
      math.clipsOf(this.timeline.dialogue, lane.voice).forEach((clip, index) => {
        if (lane.voice !== voice || index !== number) marks.push(...math.clipSpan(clip, lane.source).filter((one) => one != null));
      });
    }
    if (voice !== null) for (const { start, end } of this.timeline.prompts ?? []) marks.push(start, end);
    return math.snapped(time, marks, SNAP / this.timeline.view.scale, shifts);
  }

  pointerUp(event) {
    if (!this.gesture) return;
    event.stopPropagation();
    this.gesture = null;
    this.timeline.canvas.style.cursor = "default";
    this.timeline.commit();
    this.timeline.announce();
  }

  cancel() {
    this.gesture = null;
    this.timeline.draft = null;
    this.timeline.refresh();
  }

  doubleClick(event) {
    event.stopPropagation();
    if (!this.timeline.view) return;
    const { x, y, time } = this.point(event);
    const target = hit(this.timeline.model(), x, y);
    if (target.kind === "prompts") this.timeline.addPrompt(time);
    else if (target.kind === "prompt") this.timeline.inspector.focusText();
  }

  wheel(event) {
    if (document.activeElement !== this.timeline.canvas || !this.timeline.view) return;
    event.preventDefault();
    event.stopPropagation();
    const { x } = this.point(event);
    const width = this.timeline.canvas.clientWidth;
    const across = event.shiftKey ? event.deltaY : event.deltaX;
    const view = across
      ? math.scrolled(this.timeline.view, across / this.timeline.view.scale, this.timeline.total, width)
      : math.zoomed(this.timeline.view, Math.exp(-event.deltaY * 0.0015), x, this.timeline.total, width);
    this.timeline.setView(view);
  }

  keyDown(event) {
    if (event.ctrlKey || event.metaKey) return;
    const step = event.shiftKey ? 10 * math.FRAME : math.FRAME;
    const sign = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const lane = this.timeline.state.selection?.lane ?? 0;
    const commands = {
      " ": () => this.timeline.toggle(), s: () => this.timeline.split(), Delete: () => this.timeline.deleteSelected(), Backspace: () => this.timeline.deleteSelected(),
      m: () => this.timeline.mute(lane), o: () => this.timeline.solo(lane), x: () => this.timeline.swap(lane, (lane + 1) % this.timeline.count), n: () => this.timeline.addPrompt(),
      "+": () => this.timeline.zoom(1.5), "=": () => this.timeline.zoom(1.5), "-": () => this.timeline.zoom(1 / 1.5), f: () => this.timeline.fit(),
      Home: () => this.timeline.seek(0), End: () => this.timeline.seek(this.timeline.total), Escape: () => (this.gesture ? this.cancel() : this.timeline.select(null)),
      ArrowUp: () => this.step(-1), ArrowDown: () => this.step(1), ",": () => this.next(-1), ".": () => this.next(1), Enter: () => this.timeline.inspector.focusText(),
      "[": () => this.gain(-1), "]": () => this.gain(1),
    };
    if (sign) {
      this.nudge(sign * step, event.altKey);
    } else if (commands[event.key] && !event.altKey) {
      if (event.repeat && event.key === " ") return;
      commands[event.key]();
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** Key edits are stored when the key is released: one step of the undo history however long it is held. */
  keyUp(event) {
    event?.stopPropagation();
    if (!this.held) return;
    this.held = false;
    this.timeline.commit();
    this.timeline.announce();
  }

  nudge(seconds, trim) {
    const { selection } = this.timeline.state;
    if (!this.timeline.chosen()) {
      this.timeline.seek(math.toFrame(this.timeline.state.playhead + seconds));
      return;
    }
    this.held = true;
    if (selection.kind === "prompt") {
      const span = math.changedSpan(this.timeline.prompts, selection.index, trim ? "end" : "body", this.timeline.chosen().span[trim ? "end" : "start"] + seconds);
      this.timeline.changePrompt(() => span);
      return;
    }
    this.timeline.changeClip((clip, source) => {
      const [start, end] = math.clipSpan(clip, source);
      if (trim && end == null) return null;
      return trim ? math.trimmedEnd(clip, source, end + seconds) : math.movedClip(clip, source, start + seconds);
    });
  }

  gain(change) {
    if (!this.timeline.chosen()?.clip) return;
    this.held = true;
    this.timeline.changeClip((clip) => ({ ...clip, gain: Math.max(-60, Math.min(60, clip.gain + change)) }));
  }

  /** Selects the first clip of the next lane, or the first prompt below the last one. */
  step(by) {
    const { selection } = this.timeline.state;
    const now = selection?.kind === "prompt" ? this.timeline.count : (selection?.lane ?? (by > 0 ? -1 : this.timeline.count));
    const lane = Math.max(0, Math.min(this.timeline.count, now + by));
    if (lane < this.timeline.count) this.timeline.select({ kind: "clip", lane, clip: 0 });
    else if (this.timeline.prompts?.length) this.timeline.select({ kind: "prompt", index: 0 });
  }

  /** Selects the next clip of the lane or prompt. */
  next(by) {
    const { selection } = this.timeline.state;
    if (selection?.kind === "prompt") {
      this.timeline.select({ kind: "prompt", index: Math.max(0, Math.min(this.timeline.prompts.length - 1, selection.index + by)) });
    } else if (selection) {
      const last = math.clipsOf(this.timeline.dialogue, this.timeline.lanes()[selection.lane].voice).length - 1;
      this.timeline.select({ ...selection, clip: Math.max(0, Math.min(last, selection.clip + by)) });
    } else this.step(1);
  }
}
