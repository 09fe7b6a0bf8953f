// The controls of a world as caps, drawn from its action schema: to be read, clicked and touched.

const PADS = [
  { ArrowUp: "up", ArrowLeft: "left", ArrowDown: "down", ArrowRight: "right" },
  { KeyW: "up", KeyA: "left", KeyS: "down", KeyD: "right" },
];
const LABELS = {
  ArrowUp: "↑", ArrowDown: "↓", ArrowLeft: "←", ArrowRight: "→",
  ShiftLeft: "Shift", ShiftRight: "Shift", ControlLeft: "Ctrl", ControlRight: "Ctrl", AltLeft: "Alt",
  Mouse0: "left button", Mouse1: "middle button", Mouse2: "right button",
};
const NUMBERED = /^(.*?)[ _.-]?(\d+)$/;

/** Return what is printed on a key, for example "←" or "A". */
export function keyLabel(code) {
  return LABELS[code] ?? code.replace(/^(Key|Digit|Numpad)/, "");
}

export class Legend {
  /** @param {HTMLElement} container where the caps go */
  constructor(container) {
    this.container = container;
    this.caps = new Map();
  }

  /** Draw the caps: keys that lie like arrows, other keys, rows of numbers, the mouse. */
  draw({ keys, pointer = {} }) {
    this.caps.clear();
    const codes = new Map();
    for (const [code, action] of Object.entries(keys)) codes.set(action, [...(codes.get(action) ?? []), code]);

    const pads = PADS.map(() => element("div", "pad"));
    const rest = element("div", "caps");
    const rows = numberedRows([...codes.keys()]);
    const mouse = element("div", "mouse");
    for (const [action, all] of codes) {
      const number = PADS.findIndex((places) => all.some((code) => code in places));
      const code = all.find((each) => each in (PADS[number] ?? {})) ?? all[0];
      const cap = this.cap(action, code, all);
      if (number >= 0) {
        cap.classList.add("place-" + PADS[number][code]);
        pads[number].append(cap);
      } else if (/^Mouse[012]$/.test(code)) {
        cap.classList.add("of-" + code);
        cap.firstChild.textContent = keyLabel(code).replace(" button", "");
        mouse.append(cap);
      } else if (rows.has(stem(action))) {
        rows.get(stem(action)).append(cap);
      } else rest.append(cap);
    }
    if (Object.keys(pointer).length) {
      const ways = Object.values(pointer).map(({ group }) => words(group)).join(", ");
      mouse.append(element("p", "move soft", `move it: ${ways}`));
    }
    const parts = [...pads.reverse(), rest, ...rows.values(), titled(mouse, "mouse")];
    this.container.replaceChildren(...parts.filter((part) => part.querySelector(".cap, .move")));
  }

  cap(action, code, all) {
    const cap = element("button", "cap");
    cap.type = "button";
    cap.dataset.action = action;
    cap.setAttribute("aria-label", `${words(action)}: ${all.map((each) => LABELS[each] ?? each.replace(/^Key/, "")).join(" or ")}`);
    cap.title = `${words(action)}: ${all.map(keyLabel).join(" or ")}`;
    cap.append(element("kbd", "", keyLabel(code)), element("span", "", words(action)));
    this.caps.set(action, cap);
    return cap;
  }

  /** Light the caps of these actions, and no others. */
  light(actions) {
    for (const [action, cap] of this.caps) cap.classList.toggle("on", actions.has(action));
  }
}

/** Return a row for each run of actions whose names differ in a number alone: title -> row. */
function numberedRows(actions) {
  const rows = new Map();
  for (const name of actions.map(stem)) {
    const count = actions.filter((action) => stem(action) === name).length;
    if (name && count > 2) rows.set(name, titled(element("div", "numbers"), words(name)));
  }
  return rows;
}

function stem(action) {
  return NUMBERED.exec(action)?.[1] ?? "";
}

function words(name) {
  return name.replaceAll("_", " ").replace(/([a-z])([A-Z])/g, (_, end, next) => `${end} ${next.toLowerCase()}`);
}

function titled(part, title) {
  part.prepend(element("h3", "soft", title));
  return part;
}

function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}
