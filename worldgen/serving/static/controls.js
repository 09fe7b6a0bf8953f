// What is held down and how far the mouse went since the last step, as values of the action schema.

import { Legend } from "./legend.js";

const MODIFIERS = { ctrlKey: "Control", altKey: "Alt", metaKey: "Meta" };

export class Controls {
  /**
   * @param {HTMLElement} container where the key caps go
   * @param {{press: (time: number) => void, move: (time: number) => void}} on called when an
   *   action begins and when the mouse moves, with the event's time
   */
  constructor(container, on) {
    this.on = on;
    this.legend = new Legend(container);
    /** Source of an action -> { action, down, fresh }, in the order of pressing. */
    this.held = new Map();
    this.moved = { x: 0, y: 0 };
    this.pointers = new Map();
    this.schema = { groups: [], named: {}, keys: {} };
    container.addEventListener("pointerdown", (event) => this.touch(event));
    addEventListener("pointermove", (event) => this.pointers.has(event.pointerId) && this.touch(event));
    for (const name of ["pointerup", "pointercancel"]) {
      addEventListener(name, (event) => this.lift(event.pointerId));
    }
    container.addEventListener("contextmenu", (event) => event.preventDefault());
    container.addEventListener("click", (event) => {
      // A click without a pointer comes from the keyboard or a screen reader: one tap.
      const cap = event.target.closest("[data-action]");
      if (cap && event.detail === 0) {
        this.press("click", cap.dataset.action, event.timeStamp);
        this.release("click");
      }
    });
    addEventListener("blur", () => this.releaseAll());
  }

  use(schema) {
    this.schema = schema;
    this.held.clear();
    this.pointers.clear();
    this.still();
    this.legend.draw(schema);
  }

  /** Whether moving the mouse is part of the actions. */
  get looks() {
    return Object.keys(this.schema.pointer ?? {}).length > 0;
  }

  /** Return whether the world has this key or mouse button. */
  has(code) {
    return Object.hasOwn(this.schema.keys, code);
  }

  /** Return whether a modifier is down that the world does not play: the event is the browser's. */
  foreign(event) {
    return Object.entries(MODIFIERS).some(([flag, name]) =>
      event[flag] && !this.has(`${name}Left`) && !this.has(`${name}Right`));
  }

  /** Handle a key or mouse button by its code; return whether it belongs to the world. */
  key(code, down, event) {
    if (!this.has(code)) return false;
    if (down && !event.repeat) this.press(code, this.schema.keys[code], event.timeStamp);
    if (!down) this.release(code);
    return true;
  }

  press(source, action, time) {
    const before = this.held.get(source);
    if (before?.down && before.action === action) return;
    this.held.delete(source);
    this.held.set(source, { action, down: true, fresh: true });
    this.light();
    this.on.press(time);
  }

  release(source) {
    const held = this.held.get(source);
    if (!held) return;
    // What went down since the last step still acts once.
    if (held.fresh) held.down = false;
    else this.held.delete(source);
    this.light();
  }

  releaseAll() {
    this.pointers.clear();
    for (const source of [...this.held.keys()]) this.release(source);
  }

  touch(event) {
    // A thumb that slides from one cap to the next changes the action without lifting.
    const cap = document.elementFromPoint(event.clientX, event.clientY)?.closest("[data-action]");
    const source = `pointer ${event.pointerId}`;
    if (!cap) return;
    event.preventDefault();
    this.pointers.set(event.pointerId, cap);
    this.press(source, cap.dataset.action, event.timeStamp);
  }

  lift(pointerId) {
    if (this.pointers.delete(pointerId)) this.release(`pointer ${pointerId}`);
  }

  /** Add a movement of the mouse, in pixels to the right and down. */
  move(x, y, time) {
    if (!x && !y) return;
    this.moved.x += x;
    this.moved.y += y;
    this.on.move(time);
  }

  /** Forget where the mouse went. */
  still() {
    this.moved = { x: 0, y: 0 };
  }

  /** Whether a key, a button or a cap is down at this moment. */
  get anyDown() {
    return [...this.held.values()].some(({ down }) => down);
  }

  /** Whether there is something for the next step. */
  get anyHeld() {
    return this.held.size > 0 || Object.keys(this.schema.pointer ?? {}).some((axis) => this.moved[axis]);
  }

  /**
   * Return one number per group of the schema for the next step: of everything that was down since
   * the last one, in the order of pressing, so that of two keys for one group the later wins, and
   * of the way of the mouse since then. What is beyond the end of an axis is dropped: carried over
   * it would turn the view after the hand has stopped.
   */
  values() {
    const { groups, named, pointer = {} } = this.schema;
    const settings = {};
    for (const { action } of this.held.values()) Object.assign(settings, named[action]);
    for (const [axis, { group, per_pixel: perPixel }] of Object.entries(pointer)) {
      if (this.moved[axis]) settings[group] = this.moved[axis] * perPixel;
    }
    this.still();
    for (const [source, held] of this.held) {
      held.fresh = false;
      if (!held.down) this.held.delete(source);
    }
    return groups.map((group) => value(group, settings[group.name]));
  }

  light() {
    this.legend.light(new Set([...this.held.values()].flatMap(({ action, down }) => (down ? action : []))));
  }
}

/** Return a setting of a group as a number: the option's index, or a place on the axis. */
function value({ options, limit, low = -limit, high = limit }, setting) {
  if (options) return setting === undefined ? 0 : options.indexOf(setting);
  return Math.min(Math.max(Number(setting ?? 0), low), high);
}
