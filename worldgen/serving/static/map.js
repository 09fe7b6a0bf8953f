// The way driven so far as a small map, on which a way to drive can be drawn.

const SECONDS_ACROSS = 5;
const ZOOM = 1.5;
const ZOOMS = { least: 1 / 4, most: 40 };
const CAR_PIXELS = 9;
const BAR_SHARE = 0.3;
/** A pen leaves a place only so far from the one before. */
const PEN_PIXELS = 3;

/** Return a length of 1, 2 or 5 times a power of ten, not longer than `most`. */
export function roundLength(most) {
  const power = 10 ** Math.floor(Math.log10(most));
  return power * [5, 2, 1].find((times) => times * power <= most * (1 + 1e-9));
}

export class RouteMap {
  /**
   * Places are [x, y] or poses [x, y, heading], x forward and y left of the vehicle at frame 0, which
   * looks up on the map.
   * @param {HTMLCanvasElement} canvas
   * @param {{begin: () => boolean, drawn: (points: number[][]) => void}} on `begin` is asked
   *   before a line is drawn, `drawn` gets it
   */
  constructor(canvas, on) {
    Object.assign(this, { canvas, on });
    this.context = canvas.getContext("2d");
    this.poses = [];
    this.shown = 0;
    this.route = null;
    this.stroke = null;
    this.pending = false;
    canvas.addEventListener("pointerdown", (event) => this.penDown(event));
    canvas.addEventListener("pointermove", (event) => this.penMoves(event));
    canvas.addEventListener("pointerup", (event) => this.penUp(event));
    canvas.addEventListener("pointercancel", () => this.penLeaves());
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  /** Take over what the server says about a world's motion. */
  use({ length_unit: unit, usual_speed: speed }) {
    Object.assign(this, { unit, poses: [], shown: 0, route: null, stroke: null });
    this.usualRadius = speed * SECONDS_ACROSS;
    this.radius = this.usualRadius;
  }

  /** Show the poses by frame, the vehicle at one of them, and the way ahead of it or null. */
  show(poses, shown, route) {
    const planned = route !== this.route && route;
    Object.assign(this, { poses, shown, route });
    if (planned) this.widen(planned);
    this.drawSoon();
  }

  /** See half or twice as much, about. */
  zoom(inwards) {
    const radius = this.radius * (inwards ? 1 / ZOOM : ZOOM);
    const { least, most } = ZOOMS;
    this.radius = Math.min(Math.max(radius, least * this.usualRadius), most * this.usualRadius);
    this.draw();
  }

  /** Show all of a route, if that is not too far away. */
  widen(route) {
    const { width, height, middle } = this.view;
    // As shares of the map's sides.
    const furthest = route.reduce((most, [x, y]) =>
      Math.max(most, Math.abs(x - middle[0]) / height, Math.abs(y - middle[1]) / width), 0);
    const radius = 1.1 * furthest * Math.min(width, height);
    this.radius = Math.min(Math.max(this.radius, radius || 0), ZOOMS.most * this.usualRadius);
  }

  get car() {
    return this.poses[Math.min(this.shown, this.poses.length - 1)] ?? [0, 0, 0];
  }

  /** The length of the way up to the frame shown. */
  get driven() {
    let length = 0;
    for (let frame = 1; frame <= this.shown && frame < this.poses.length; frame += 1) {
      const [[x, y], [nextX, nextY]] = [this.poses[frame - 1], this.poses[frame]];
      length += Math.hypot(nextX - x, nextY - y);
    }
    return length;
  }

  // The pen.

  penDown(event) {
    if (event.button !== 0 || this.stroke || !this.poses.length || !this.on.begin()) return;
    event.preventDefault();
    this.canvas.setPointerCapture(event.pointerId);
    this.stroke = { pointer: event.pointerId, points: [], last: null };
    this.penMoves(event);
  }

  penMoves(event) {
    const { stroke } = this;
    if (stroke?.pointer !== event.pointerId) return;
    // A quick hand moves far between two frames of the screen.
    const moves = event.getCoalescedEvents?.() ?? [];
    for (const { offsetX, offsetY } of moves.length ? moves : [event]) {
      if (stroke.last && Math.hypot(offsetX - stroke.last[0], offsetY - stroke.last[1]) < PEN_PIXELS) continue;
      stroke.last = [offsetX, offsetY];
      stroke.points.push(this.place(offsetX, offsetY));
    }
    this.drawSoon();
  }

  penUp(event) {
    if (this.stroke?.pointer !== event.pointerId) return;
    const { points } = this.stroke;
    this.stroke = null;
    this.on.drawn(points);
    this.drawSoon();
  }

  penLeaves() {
    this.stroke = null;
    this.drawSoon();
  }

  // Places and pixels: the vehicle of the frame shown is in the middle.

  get view() {
    const [width, height] = [this.canvas.clientWidth, this.canvas.clientHeight];
    return { width, height, scale: Math.min(width, height) / 2 / this.radius, middle: this.car };
  }

  place(pixelX, pixelY) {
    const { width, height, scale, middle } = this.view;
    return [middle[0] - (pixelY - height / 2) / scale, middle[1] - (pixelX - width / 2) / scale];
  }

  // Drawing.

  drawSoon() {
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => this.draw());
  }

  draw() {
    this.pending = false;
    const { canvas, context, view } = this;
    const { width, height, scale, middle } = view;
    if (!width || !this.radius) return;
    canvas.width = Math.round(width * devicePixelRatio);
    canvas.height = Math.round(height * devicePixelRatio);
    context.scale(devicePixelRatio, devicePixelRatio);
    context.lineJoin = context.lineCap = "round";
    const style = getComputedStyle(canvas);
    const color = (name) => style.getPropertyValue(name);
    const pixel = ([x, y]) => [width / 2 - (y - middle[1]) * scale, height / 2 - (x - middle[0]) * scale];
    const bar = roundLength((BAR_SHARE * width) / scale);

    context.strokeStyle = color("--line");
    context.globalAlpha = 0.6;
    grid(context, view, bar, pixel);
    context.globalAlpha = 1;

    const shown = Math.min(this.shown, this.poses.length - 1);
    const pixels = this.poses.map(pixel);
    if (pixels.length) ring(context, pixels[0], color("--soft"));
    // What lies after a past frame that is looked at is there until the world goes on from it.
    trace(context, pixels.slice(shown), color("--soft"), { width: 1.5, dash: [2, 5] });
    if (this.route) trace(context, this.route.map(pixel), color("--real"), { width: 4, alpha: 0.55 });
    trace(context, pixels.slice(0, shown + 1), color("--dream"), { width: 2.5 });
    if (this.stroke) {
      trace(context, [middle, ...this.stroke.points].map(pixel), color("--real"), { width: 3, dash: [6, 6] });
    }
    car(context, pixel(middle), middle[2], color("--text"), color("--panel"));
    scaleBar(context, height, bar * scale, `${bar.toLocaleString("en")} ${this.unit}`, color("--text"), style.fontFamily);
  }
}

/** Draw lines through multiples of a length. */
function grid(context, { width, height, scale, middle }, step, pixel) {
  context.lineWidth = 1;
  context.beginPath();
  const [halfX, halfY] = [height / 2 / scale, width / 2 / scale];
  for (let x = Math.ceil((middle[0] - halfX) / step) * step; x < middle[0] + halfX; x += step) {
    const across = Math.round(pixel([x, 0])[1]) + 0.5;
    context.moveTo(0, across);
    context.lineTo(width, across);
  }
  for (let y = Math.ceil((middle[1] - halfY) / step) * step; y < middle[1] + halfY; y += step) {
    const along = Math.round(pixel([0, y])[0]) + 0.5;
    context.moveTo(along, 0);
    context.lineTo(along, height);
  }
  context.stroke();
}

/** Draw a line through pixels, leaving out those that cannot be told from the one before. */
function trace(context, pixels, color, { width, dash = [], alpha = 1 }) {
  if (pixels.length < 2) return;
  Object.assign(context, { strokeStyle: color, lineWidth: width, globalAlpha: alpha });
  context.setLineDash(dash);
  context.beginPath();
  let last = [NaN, NaN];
  for (const [index, [x, y]] of pixels.entries()) {
    if (Math.hypot(x - last[0], y - last[1]) < 1 && index < pixels.length - 1) continue;
    context.lineTo(x, y);
    last = [x, y];
  }
  context.stroke();
  context.setLineDash([]);
  context.globalAlpha = 1;
}

function ring(context, [x, y], color) {
  Object.assign(context, { strokeStyle: color, lineWidth: 1.5 });
  context.beginPath();
  context.arc(x, y, 4, 0, 2 * Math.PI);
  context.stroke();
}

/** Draw the vehicle as an arrow head; a heading turns to the left. */
function car(context, [x, y], heading, color, edge) {
  context.save();
  context.translate(x, y);
  context.rotate(-heading);
  context.beginPath();
  context.moveTo(0, -CAR_PIXELS);
  context.lineTo(0.7 * CAR_PIXELS, 0.8 * CAR_PIXELS);
  context.lineTo(0, 0.35 * CAR_PIXELS);
  context.lineTo(-0.7 * CAR_PIXELS, 0.8 * CAR_PIXELS);
  context.closePath();
  Object.assign(context, { strokeStyle: edge, lineWidth: 3, fillStyle: color });
  context.stroke();
  context.fill();
  context.restore();
}

function scaleBar(context, height, length, label, color, family) {
  const [left, bottom] = [12.5, height - 12.5];
  Object.assign(context, { strokeStyle: color, fillStyle: color, lineWidth: 1.5, font: `11px ${family}` });
  context.beginPath();
  context.moveTo(left, bottom - 5);
  context.lineTo(left, bottom);
  context.lineTo(left + length, bottom);
  context.lineTo(left + length, bottom - 5);
  context.stroke();
  context.textBaseline = "bottom";
  context.fillText(label, left + 5, bottom - 3);
}
