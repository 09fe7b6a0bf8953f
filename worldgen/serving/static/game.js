// The drive being played: asks for steps at the chosen pace, keeps the actions, goes back in time.

import { Kind, packStep } from "./protocol.js";
import { Statistics } from "./statistics.js";

const UNATTENDED_MILLISECONDS = 180_000;

export class Game {
  /**
   * @param {import("./link.js").Link} link
   * @param {import("./controls.js").Controls} controls
   * @param {import("./screen.js").Screen} dream
   * @param {(reason?: string) => void} changed called when something that the page shows changed
   */
  constructor(link, controls, dream, changed) {
    Object.assign(this, { link, controls, dream, changed });
    this.statistics = new Statistics();
    this.drive = null;
    this.card = null;
    this.frame = 0;
    this.digest = 0;
    this.running = false;
    this.begun = false;
    this.pace = "own";
    /** Frame being looked at while the world stands still, or null. */
    this.looking = null;
    /** The step whose picture has not come yet. */
    this.asked = null;
    /** A command whose answer has not come yet: no step is sent meanwhile. */
    this.busy = true;
    this.inputTime = null;
    this.attended = performance.now();
    this.timer = 0;
    this.due = 0;
    this.previewing = false;
    /** Who acts while no key does: null, "model", or a route with its `first` frame, `actions` and `path`. */
    this.driver = null;
    /** The action that the server has taken for the step under way, where it says so. */
    this.taken = null;
  }

  get period() {
    return 1000 / (this.card?.frames_per_second ?? 16);
  }

  get first() {
    return Math.max(this.drive.first, this.frame - this.drive.capacity + 1);
  }

  get ready() {
    return this.link.open && !this.busy && this.drive !== null;
  }

  // Commands.

  command(name, fields) {
    this.busy = true;
    this.link.command(name, fields);
    this.changed();
  }

  open(world, { seed = 0, start = 0, decoder = null } = {}) {
    this.pause();
    this.begun = false;
    this.driver = null;
    this.command("open", { world, seed, start, decoder });
  }

  restore() {
    const { world, seed, start, decoder, actions } = this.drive;
    this.command("restore", { world, seed, start, decoder, actions, digest: this.digest });
  }

  fork() {
    const frame = this.looking ?? this.frame;
    this.looking = null;
    this.command("fork", { frame });
  }

  /** Let the model act by itself, or nobody; world's keys take over at any time. */
  letModelDrive(on) {
    this.driver = on ? "model" : null;
    if (on) this.play();
    else this.changed();
  }

  /** Take the steps of a route, which begins at the present frame. */
  follow({ frame, actions, path }) {
    this.busy = false;
    this.driver = { first: frame, actions, path };
    this.play();
  }

  get route() {
    return this.driver === "model" ? null : this.driver;
  }

  /** Take over what the server says about the drive. */
  arrived(drive, card) {
    const previous = this.drive;
    const other = previous?.world !== drive.world;
    const same = !other && previous.branch === drive.branch && previous.seed === drive.seed
      && previous.start === drive.start;
    // Up to where it began a route is as it was; on another way it leads somewhere else.
    if (other || (this.route && !(same && drive.actions.length >= this.route.first))) this.driver = null;
    this.drive = drive;
    this.card = card;
    this.frame = drive.actions.length;
    this.looking = null;
    this.asked = null;
    this.busy = false;
    if (other) this.statistics.reset();
    this.changed("drive");
    this.schedule();
  }

  lost() {
    this.asked = null;
    this.taken = null;
    this.busy = true;
    this.previewing = false;
    clearTimeout(this.timer);
    this.changed();
  }

  // Time.

  play() {
    if (!this.ready) return;
    this.attended = performance.now();
    this.begun = true;
    this.running = true;
    this.goOnFromHere();
    // Where the mouse went while the world stood still must not jerk the view.
    this.controls.still();
    this.due = performance.now();
    this.schedule();
    this.changed();
  }

  pause() {
    this.running = false;
    clearTimeout(this.timer);
    this.changed();
  }

  /** A step by hand; the world stands still before and after it. */
  single() {
    this.pause();
    if (!this.ready) return;
    this.begun = true;
    const rewinding = this.goOnFromHere();
    if (rewinding) this.stepWhenReady = true;
    else this.ask();
  }

  /** Forget what came after the frame being looked at; return whether there was anything. */
  goOnFromHere() {
    const { looking } = this;
    this.looking = null;
    if (looking === null || looking >= this.frame) return false;
    this.command("rewind", { frame: looking });
    return true;
  }

  look(frame) {
    this.pause();
    this.looking = frame >= this.frame ? null : frame;
    this.wanted = frame;
    this.preview();
    this.changed();
  }

  preview() {
    // One preview at a time; while it is under way only the latest wish is kept.
    if (this.previewing || !this.ready || this.wanted === undefined) return;
    this.previewing = true;
    this.link.command("preview", { frame: this.wanted });
    this.wanted = undefined;
  }

  setPace(pace) {
    this.pace = pace;
    this.statistics.reset();
    this.schedule();
  }

  /** An action began: its frame is the one whose latency counts from here. */
  pressed(time) {
    this.attended = performance.now();
    this.inputTime ??= time;
    if (this.driver) {
      this.driver = null;
      this.changed();
    }
    if (!this.ready) return;
    if (!this.running) this.play();
    else if (this.pace === "keys") this.schedule();
  }

  /** The mouse moved: an action of a world that goes on, no reason to begin. */
  moved(time) {
    if (!this.running) return;
    this.attended = performance.now();
    this.inputTime ??= time;
    if (this.ready && this.pace === "keys") this.schedule();
  }

  schedule() {
    clearTimeout(this.timer);
    if (this.stepWhenReady && this.ready) {
      this.stepWhenReady = false;
      this.ask();
      return;
    }
    if (!this.running || !this.ready || this.asked) return;
    if (this.pace === "keys" && !this.controls.anyHeld && !this.driver) return;
    const now = performance.now();
    if (this.pace === "fast" || now >= this.due) this.ask();
    else this.timer = setTimeout(() => this.schedule(), this.due - now);
  }

  ask() {
    if (this.asked) return;
    const now = performance.now();
    if (this.running && now - this.attended > UNATTENDED_MILLISECONDS) {
      this.pause();
      this.changed("unattended");
      return;
    }
    // Keeps the beat, unless the world is slower than it: then the beat starts again here.
    this.due = now - this.due > this.period ? now + this.period : this.due + this.period;
    const values = this.settings();
    this.asked = { stamp: now, input: this.inputTime ?? now, values };
    this.inputTime = null;
    this.link.send(packStep(now, values));
  }

  /** Return the settings of the next step: none leave it to the model, more are of the steps after it. */
  settings() {
    const { actions, together } = this.drive;
    const frame = actions.length;
    // Frames that are drawn with the one before heed the action held then: what is new waits.
    if (frame % together) return actions.at(-1);
    if (this.driver === "model") return [];
    if (!this.route) return this.controls.values();
    const begin = frame - this.route.first;
    return this.route.actions.slice(begin, begin + together).flat();
  }

  // Pictures.

  /** Draw a picture of the dream. */
  async show(picture) {
    const step = this.asked?.stamp === picture.stamp ? this.asked : null;
    const drawing = this.dream.draw(picture);
    if (drawing) await drawing;
    if (picture.kind === Kind.DREAM_PREVIEW) {
      this.previewing = false;
      this.preview();
      return;
    }
    if (step) {
      this.statistics.add({
        asked: step.input,
        sent: step.stamp,
        painted: performance.now(),
        modelMilliseconds: picture.modelMilliseconds,
      });
      this.asked = null;
      this.drive.actions.push(this.taken?.frame === picture.frame ? this.taken.action : step.values);
      this.taken = null;
      if (this.route && this.drive.actions.length >= this.route.first + this.route.actions.length) {
        this.driver = null;
        this.pause();
        this.changed("arrived");
      }
    }
    this.digest = picture.digest;
    if (this.drive) this.frame = step ? picture.frame : this.drive.actions.length;
    this.changed("frame");
    this.schedule();
  }
}
