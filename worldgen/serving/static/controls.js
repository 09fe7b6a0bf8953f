// Keys and touch buttons, drawn from the world's action schema; says which action is on.

const ARROWS = { ArrowUp: "↑", ArrowDown: "↓", ArrowLeft: "←", ArrowRight: "→" };
const NAMES = { Space: "Space", Enter: "Enter", ShiftLeft: "Shift", ControlLeft: "Ctrl", Tab: "Tab" };
const PLACES = { ArrowUp: "up", ArrowLeft: "left", ArrowDown: "down", ArrowRight: "right" };

/** Return what is printed on a key, for example "←" or "A". */
export function keyLabel(code) {
  return ARROWS[code] ?? NAMES[code] ?? code.replace(/^(Key|Digit|Numpad)/, "");
}

export class Controls {
  /**
   * @param {HTMLElement} container where the key caps go
   * @param {(time: number) => void} onPress called when an action begins, with the event's time
   */
  constructor(container, onPress) {
    this.container = container;
    this.onPress = onPress;
    this.held = new Map();
    this.tapped = [];
    this.caps = new Map();
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
    this.releaseAll();
    this.caps.clear();
    const codes = new Map();
    for (const [code, action] of Object.entries(schema.keys)) {
      codes.set(action, [...(codes.get(action) ?? []), code]);
    }
    const pad = element("div", "pad");
    const rest = element("div", "caps");
    for (const [action, all] of codes) {
      const arrow = all.find((code) => code in PLACES);
      const cap = this.cap(action, arrow ?? all[0], all);
      if (arrow) cap.classList.add("place-" + PLACES[arrow]);
      (arrow ? pad : rest).append(cap);
    }
    this.container.replaceChildren(...[pad, rest].filter((part) => part.children.length));
    this.container.dataset.many = rest.children.length > 4;
  }

  cap(action, code, all) {
    const cap = element("button", "cap");
    cap.type = "button";
    cap.dataset.action = action;
    const words = action.replaceAll("_", " ");
    cap.setAttribute("aria-label", `${words}: ${all.map((each) => each.replace(/^Key/, "")).join(" or ")}`);
    cap.title = `${words}: ${all.map(keyLabel).join(" or ")}`;
    cap.append(element("kbd", "", keyLabel(code)), element("span", "", words));
    this.caps.set(action, cap);
    return cap;
  }

  /** Handle a key event of the page; return whether the key belongs to the world. */
  key(event, down) {
    const action = this.schema.keys[event.code];
    if (action === undefined) return false;
    if (down && !event.repeat) this.press(event.code, action, event.timeStamp);
    if (!down) this.release(event.code);
    return true;
  }

  press(source, action, time) {
    if (this.held.get(source) === action) return;
    this.held.delete(source);
    this.held.set(source, action);
    this.tapped.push(action);
    this.light();
    this.onPress(time);
  }

  release(source) {
    if (this.held.delete(source)) this.light();
  }

  releaseAll() {
    this.held.clear();
    this.pointers.clear();
    this.light();
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

  get anyHeld() {
    return this.held.size > 0 || this.tapped.length > 0;
  }

  /**
   * Return one number per group of the schema for the next step, and forget the taps: a key that
   * went down and up between two steps still acts once. Of two keys for one group the later wins.
   */
  values() {
    const values = this.schema.groups.map((group) =>
      group.kind === "axis" ? Math.min(Math.max(0, group.low), group.high) : 0);
    for (const action of [...this.tapped, ...this.held.values()]) {
      for (const [name, setting] of Object.entries(this.schema.named[action])) {
        const index = this.schema.groups.findIndex((group) => group.name === name);
        const { kind, options } = this.schema.groups[index];
        values[index] = kind === "axis" ? Number(setting) : options.indexOf(setting);
      }
    }
    this.tapped = [];
    return values;
  }

  light() {
    const on = new Set(this.held.values());
    for (const [action, cap] of this.caps) cap.classList.toggle("on", on.has(action));
  }
}

function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}
