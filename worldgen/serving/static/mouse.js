// The mouse in the picture: locked to it, it looks around and its buttons act; a drag looks, too.

const DRAG_PIXELS = 4;

export class Mouse {
  /**
   * @param {HTMLElement} surface the picture and what stands over it
   * @param {HTMLCanvasElement} canvas the picture
   * @param {import("./controls.js").Controls} controls
   * @param {{changed: () => void, begin: () => boolean}} on `changed` when the lock came or went
   *   or was refused; `begin` when the picture was clicked: says whether there is a world to enter
   */
  constructor(surface, canvas, controls, on) {
    Object.assign(this, { surface, canvas, controls, on });
    /** Whether the browser refused the lock when it was last asked. */
    this.refused = false;
    this.drag = null;
    surface.addEventListener("pointerdown", (event) => this.dragBegins(event));
    addEventListener("pointermove", (event) => this.dragGoesOn(event));
    addEventListener("pointercancel", (event) => this.dragEnds(event));
    addEventListener("click", (event) => this.click(event), true);
    addEventListener("mousemove", (event) => {
      if (this.locked) controls.move(event.movementX, event.movementY, event.timeStamp);
    });
    for (const [name, down] of [["mousedown", true], ["mouseup", false]]) {
      addEventListener(name, (event) => this.button(event, down));
    }
    for (const name of ["contextmenu", "auxclick", "dragstart"]) {
      addEventListener(name, (event) => this.owns(event) && event.preventDefault());
    }
    addEventListener("wheel", (event) => this.locked && event.preventDefault(), { passive: false });
    document.addEventListener("pointerlockchange", () => this.lockChanged());
    document.addEventListener("pointerlockerror", () => this.lockRefused());
  }

  get locked() {
    return document.pointerLockElement === this.canvas;
  }

  /** Whether this browser has locks and a mouse to lock. */
  get lockable() {
    return Boolean(this.canvas.requestPointerLock) && matchMedia("(any-pointer: fine)").matches;
  }

  /** Whether a mouse event is the world's and not the page's. */
  owns(event) {
    if (this.locked) return true;
    const over = this.surface.contains(event.target) && !event.target.closest?.("button");
    return over && (this.controls.looks || this.controls.has(`Mouse${event.button}`));
  }

  lock() {
    // Older browsers return nothing and say by events how it went.
    this.canvas.requestPointerLock?.()?.catch?.(() => this.lockRefused());
  }

  unlock() {
    if (this.locked) document.exitPointerLock();
  }

  lockChanged() {
    this.refused = false;
    this.drag = null;
    if (this.locked) document.activeElement?.blur();
    else for (const button of [0, 1, 2, 3, 4]) this.controls.release(`Mouse${button}`);
    this.on.changed();
  }

  lockRefused() {
    this.refused = true;
    this.on.changed();
  }

  /** A button acts where the mouse is locked; where no mouse looks around, over the picture. */
  button(event, down) {
    const code = `Mouse${event.button}`;
    if (!down) this.controls.key(code, false, event);
    if (!this.owns(event)) return;
    if (this.locked) event.preventDefault();
    if (down && (this.locked || !this.controls.looks)) this.controls.key(code, true, event);
  }

  click(event) {
    const drag = this.drag;
    this.drag = null;
    if (this.locked || !this.controls.looks || event.detail === 0 || event.button !== 0) return;
    if (!this.surface.contains(event.target) || drag?.moved) return;
    if (!this.on.begin()) return;
    if (event.pointerType !== "touch" && this.lockable) this.lock();
  }

  dragBegins(event) {
    if (this.locked || !this.controls.looks || event.button !== 0 || event.target.closest("button")) return;
    this.drag = { pointer: event.pointerId, x: event.clientX, y: event.clientY, moved: false };
  }

  dragGoesOn(event) {
    const { drag } = this;
    if (!drag || drag.pointer !== event.pointerId || this.locked) return;
    // The button was let go outside of the window.
    if (!event.buttons) return void (this.drag = null);
    const [x, y] = [event.clientX - drag.x, event.clientY - drag.y];
    if (!drag.moved && Math.hypot(x, y) < DRAG_PIXELS) return;
    if (!drag.moved && !this.on.begin()) return;
    Object.assign(drag, { x: event.clientX, y: event.clientY, moved: true });
    this.controls.move(x, y, event.timeStamp);
  }

  dragEnds(event) {
    if (this.drag?.pointer === event.pointerId) this.drag = null;
  }
}
