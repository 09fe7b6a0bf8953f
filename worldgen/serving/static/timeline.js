// How alike dream and reality were, drawn above the slider that goes back in time.

const LOW = 5;
const HIGH = 40;
const THUMB = 8;
const MILLISECONDS = 80;

export class Timeline {
  constructor(canvas, slider, onLook) {
    Object.assign(this, { canvas, slider });
    this.context = canvas.getContext("2d");
    this.values = new Map();
    this.pending = false;
    slider.addEventListener("input", () => onLook(Number(slider.value)));
    // After a drag with the pointer the arrow keys belong to the world again.
    slider.addEventListener("pointerup", () => slider.blur());
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  /** Show the span of frames at hand, and which one is seen. */
  span(first, last, shown) {
    const { slider } = this;
    slider.min = first;
    slider.max = last;
    slider.value = shown;
    this.drawSoon();
  }

  set(index, value) {
    this.values.set(index, value);
    this.drawSoon();
  }

  /** Forget the values after a frame. */
  cut(last) {
    for (const index of this.values.keys()) if (index > last) this.values.delete(index);
  }

  clear() {
    this.values.clear();
    this.drawSoon();
  }

  drawSoon() {
    if (this.pending) return;
    this.pending = true;
    setTimeout(() => {
      this.pending = false;
      requestAnimationFrame(() => this.draw());
    }, MILLISECONDS);
  }

  draw() {
    const { canvas, context, slider } = this;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!width) return;
    canvas.width = width * devicePixelRatio;
    canvas.height = height * devicePixelRatio;
    context.scale(devicePixelRatio, devicePixelRatio);
    const style = getComputedStyle(canvas);
    const first = Number(slider.min);
    const last = Number(slider.max);
    const x = (index) => THUMB + ((width - 2 * THUMB) * (index - first)) / Math.max(1, last - first);
    const y = (value) => height - 3 - ((height - 6) * (clamp(value) - LOW)) / (HIGH - LOW);
    context.strokeStyle = style.getPropertyValue("--line");
    context.fillStyle = style.getPropertyValue("--soft");
    context.font = `10px ${style.fontFamily}`;
    context.textBaseline = "top";
    for (const value of [20, 30]) {
      line(context, [[THUMB, y(value)], [width - THUMB, y(value)]]);
      context.fillText(`${value} dB`, THUMB, y(value) + 2);
    }
    // Not more points than the screen can show.
    const stride = Math.max(1, Math.floor((last - first) / width));
    const points = [];
    for (let index = first; index <= last; index += stride) {
      const value = this.values.get(index);
      if (Number.isFinite(value)) points.push([x(index), y(value)]);
    }
    context.strokeStyle = style.getPropertyValue("--real");
    context.lineWidth = 1.5;
    context.lineJoin = "round";
    if (points.length > 1) line(context, points);
    const shown = x(Number(slider.value));
    context.strokeStyle = style.getPropertyValue("--dream");
    context.lineWidth = 1;
    line(context, [[shown, 0], [shown, height]]);
  }
}

function clamp(value) {
  return Math.min(HIGH, Math.max(LOW, value));
}

function line(context, points) {
  context.beginPath();
  for (const [x, y] of points) context.lineTo(x, y);
  context.stroke();
}
