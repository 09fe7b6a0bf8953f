// Wires the page together: the link, the game, the two screens and everything around them.

import { showBranches } from "./branches.js";
import { renderCard, words } from "./card.js";
import { Controls } from "./controls.js";
import { Game } from "./game.js";
import { Link } from "./link.js";
import { Mouse } from "./mouse.js";
import { keyLabel } from "./legend.js";
import { RouteMap } from "./map.js";
import { Kind, unpack } from "./protocol.js";
import { Screen } from "./screen.js";
import { Timeline } from "./timeline.js";
import { showVeil } from "./veil.js";

const $ = (id) => document.getElementById(id);
const FIGURES_MILLISECONDS = 250;
const TIME_MILLISECONDS = 70;

const worlds = new Map();
let reality = { state: "waiting" };
let realityFrame = 0;
let replaying = null;
let maxCommandBytes = 0;
let maxTrajectoryBytes = 0;
let adaptive = false;
let linkTrouble = { name: "connecting" };

// The page leaves room for pictures of the shape that the dream has.
const dreamScreen = new Screen($("dream"), document.querySelector("main"));
const realityScreen = new Screen($("reality"));
const controls = new Controls($("keys"), {
  press: (time) => game.pressed(time), move: (time) => game.moved(time),
});
const mouse = new Mouse($("dream").parentElement, $("dream"), controls, { changed, begin });
const link = new Link({ notice, binary, state: linkState });
const game = new Game(link, controls, dreamScreen, changed);
const map = new RouteMap($("map"), { begin: mayDraw, drawn });
const timeline = new Timeline($("graph"), $("slider"), (frame) => game.look(frame));

// What the server says.

function notice(message) {
  const handler = {
    hello, drive, progress, restored, verified, cancelled, taken, route,
    error: ({ message: text }) => {
      game.busy = false;
      replaying = null;
      say(text);
      // A drive that the server cannot bring back: begin a new one rather than stand there.
      if (game.drive && !game.drive.settled) openFirst();
      changed();
    },
    log: ({ log }) => save(new Blob([JSON.stringify(log)], { type: "application/json" }), "json"),
    reality: realityState,
  }[message.say];
  handler?.(message);
}

function hello({ worlds: offered, max_command_bytes: most, max_trajectory_bytes: longest, adaptive: chooses }) {
  maxCommandBytes = most;
  maxTrajectoryBytes = longest;
  adaptive = chooses;
  worlds.clear();
  for (const world of offered) worlds.set(world.key, world);
  $("worlds").replaceChildren(...offered.map(worldTab));
  $("worlds").hidden = offered.length < 2;
  link.command("reality", { on: $("reality-on").checked });
  const { drive: kept } = game;
  if (kept && worlds.has(kept.world) && kept.start !== null && kept.actions.length) {
    replaying = { what: "Restoring your run", done: 0, total: kept.actions.length };
    game.drive.settled = false;
    game.restore();
  } else openFirst();
}

function openFirst() {
  const wish = new URLSearchParams(location.hash.slice(1));
  const key = [game.drive?.world, wish.get("world"), ...worlds.keys()].find((each) => worlds.has(each));
  const whole = (name) => Math.max(0, Math.floor(Number(wish.get(name)))) || 0;
  game.open(key, { seed: whole("seed"), start: whole("start") });
}

function worldTab({ key, card }) {
  const tab = document.createElement("button");
  tab.type = "button";
  tab.textContent = card.title;
  tab.dataset.world = key;
  tab.title = card.description;
  tab.addEventListener("click", () => game.open(key));
  return tab;
}

function drive(message) {
  const previous = game.drive;
  const { card, num_starts: starts, policy, ego_motion: egoMotion } = worlds.get(message.world);
  if (previous?.world !== message.world || !controls.legend.caps.size) {
    controls.use(card.action_schema);
    mouse.unlock();
    showShortcuts();
    $("title").textContent = card.title;
    document.title = `${card.title} – worldgen`;
    $("pace-own").textContent = `${round(card.frames_per_second)} a second`;
    $("about-title").textContent = card.title;
    $("about-body").replaceChildren(renderCard(card));
    $("start").replaceChildren(...Array.from({ length: starts }, (_, index) => new Option(index, index)));
    const orders = card.decoders.map((name) => new Option(words(name), name));
    $("decoder").replaceChildren(...(adaptive ? [new Option("by load", "")] : []), ...orders);
    $("decoder-label").hidden = card.decoders.length < 2;
    $("autopilot").hidden = !policy;
    $("autopilot").textContent = egoMotion ? "Drives itself" : "Plays itself";
    $("map-figure").hidden = !egoMotion;
    document.body.classList.toggle("mapped", Boolean(egoMotion));
    if (egoMotion) map.use(egoMotion);
  }
  if (previous?.world !== message.world || previous.branch !== message.branch
      || previous.seed !== message.seed || previous.start !== message.start) {
    timeline.clear();
  }
  timeline.cut(message.actions.length);
  $("start").value = message.start ?? "";
  $("seed").value = message.seed;
  const byLoad = $("decoder").querySelector("option[value='']");
  if (!byLoad) $("decoder").value = message.decoder;
  // Whoever leaves the order to the server does so for the next run too, and sees what it chose.
  else byLoad.textContent = $("decoder").value ? "by load" : `by load: ${words(message.decoder)}`;
  for (const tab of $("worlds").children) {
    tab.setAttribute("aria-pressed", String(tab.dataset.world === message.world));
  }
  if (message.start !== null) {
    const place = new URLSearchParams({ world: message.world, start: message.start, seed: message.seed });
    history.replaceState(null, "", `#${place}`);
  }
  replaying = null;
  message.settled = true;
  game.arrived(message, card);
  showBranches($("branches"), game);
}

/** What the server did in the step whose picture comes next. */
function taken(message) {
  game.taken = message;
  if (message.pose) game.drive.path[message.frame] = message.pose;
}

function route(message) {
  if (message.problems.length) say(message.problems.join(". "));
  game.follow(message);
}

function progress({ done, total }) {
  replaying = { what: "Replaying", ...replaying, done, total };
  changed();
}

function restored({ frames, same }) {
  say(same ? `Your run is back: ${frames} frames replayed, the last one identical.`
    : `Your run is back, but the server draws it differently now: ${frames} frames replayed.`);
}

function verified({ frames, first_difference: difference }) {
  say(difference === null ? `Replayed ${frames} frames: identical to the log.`
    : `Replayed ${frames} frames: frame ${difference} is the first that differs from the log.`);
  game.begun = true;
}

function cancelled() {
  replaying = null;
  game.busy = false;
  say("Stopped.");
  if (!game.drive?.settled) openFirst();
  else game.look(game.frame);
  changed();
}

function binary(buffer) {
  const message = unpack(buffer);
  switch (message.kind) {
    case Kind.DREAM:
    case Kind.DREAM_PREVIEW:
      game.show(message);
      break;
    case Kind.REALITY:
      timeline.set(message.frame, message.difference);
      if (game.looking === null) showReality(message);
      break;
    case Kind.REALITY_PREVIEW:
      if (game.looking !== null || message.frame === game.frame) showReality(message);
      break;
    case Kind.DIFFERENCES:
      timeline.clear();
      message.values.forEach((value, index) => timeline.set(message.first + index, value));
      break;
    case Kind.VIDEO:
      $("video").disabled = false;
      save(new Blob([message.content], { type: "video/mp4" }), "mp4");
      break;
  }
}

function showReality(picture) {
  realityScreen.draw(picture);
  const difference = timeline.values.get(picture.frame);
  fill("likeness", Number.isFinite(difference) ? `${difference.toFixed(1)} dB` : "–");
  realityFrame = picture.frame;
  showTimeSoon();
}

function realityState(message) {
  reality = message;
  const { state, reason, done, total } = message;
  $("reality-text").textContent = {
    "catching up": total ? `Catching up, ${Math.round((100 * done) / total)} %` : "Catching up",
    missing: `No reality here: ${reason}.`,
    off: "Switched off.",
  }[state] ?? "";
  $("reality-veil").hidden = state === "running" || state === "ended";
  $("reality-veil").dataset.state = state;
  showTimeSoon();
  if (state === "missing" || state === "off") {
    timeline.clear();
    fill("likeness", "–");
  }
  document.body.classList.toggle("alone", state === "missing" || state === "off");
  // A switch for what is not there would only puzzle.
  $("reality-on").closest("label").hidden = state === "missing";
}

function linkState(name, seconds, text) {
  $("link").dataset.state = name;
  $("link-text").textContent = {
    connecting: "connecting", open: "connected", waiting: "server away",
    idle: "asleep", full: "all places taken", failed: "server trouble",
  }[name];
  if (name === "connecting" && link.attempt > 0) return;
  linkTrouble = name === "open" ? null : { name, seconds, text };
  if (name !== "open") game.lost();
  changed();
}

// What the page shows.

/** Time flies by in frames; the page's words about it follow a few times a second. */
let timePending = 0;
function showTimeSoon() {
  timePending ||= setTimeout(showTime, TIME_MILLISECONDS);
}

function showTime() {
  clearTimeout(timePending);
  timePending = 0;
  if (!game.drive) return;
  const over = reality.state === "ended" && !Number.isFinite(timeline.values.get(realityFrame));
  $("reality-over").hidden = !over;
  $("reality-note").textContent = over || $("reality-veil").hidden === false ? "" : `frame ${realityFrame}`;
  const rate = game.card.frames_per_second;
  const shown = game.looking ?? game.frame;
  timeline.span(game.first, game.frame, shown);
  $("slider").disabled = game.frame === 0 || !link.open;
  $("dream-frame").textContent = `frame ${shown}`;
  $("position").textContent = game.looking === null ? `${(game.frame / rate).toFixed(1)} s`
    : `${((game.frame - shown) / rate).toFixed(1)} s back · a key or Play goes on from here`;
  if (game.drive.path) showMap(shown);
}

function showMap(shown) {
  map.show(game.drive.path, shown, game.route?.path ?? null);
  $("driven").textContent = `${map.driven.toFixed(0)} ${map.unit} driven`;
}

function changed(reason) {
  if (reason === "frame") {
    showTimeSoon();
    return;
  }
  if (reason === "unattended") say("Paused: no key for three minutes.");
  if (reason === "arrived") say("The car is at the end of its route.");
  showTime();
  showVeil({ linkTrouble, replaying, game });
  $("play").textContent = game.running ? "Pause" : "Play";
  $("newest").hidden = game.looking === null;
  $("fork").textContent = game.looking === null ? "Fork" : "Fork here";
  for (const id of ["play", "step", "fork", "video", "save", "load", "autopilot", "trajectory"]) {
    $(id).disabled = !game.ready && !(id === "play" && game.running);
  }
  $("autopilot").setAttribute("aria-pressed", String(game.driver === "model"));
  $("route-end").hidden = !game.route;
  showMouse();
  $("paused").hidden = game.running || !game.begun || !$("veil").hidden;
  if (reason === "drive") showBranches($("branches"), game);
}

/** Say how the mouse looks around; what stands over the picture has buttons that need it. */
function showMouse() {
  if (!$("veil").hidden) mouse.unlock();
  document.body.classList.toggle("looks", controls.looks);
  document.body.classList.toggle("locked", mouse.locked);
  $("mouse").textContent = $("mouse").title = !controls.looks ? ""
    : mouse.locked ? "Esc frees the mouse"
    : !mouse.lockable ? "drag to look around"
    : mouse.refused ? "the browser keeps the mouse: drag to look"
    : "click to look with the mouse";
}

function showFigures() {
  const summary = game.statistics.summary();
  const milliseconds = (value) => (Number.isFinite(value) ? `${value < 10 ? value.toFixed(1) : Math.round(value)} ms` : "–");
  const moving = game.running && Number.isFinite(summary.frames_per_second);
  fill("rate", moving ? round(summary.frames_per_second) : "–");
  $("latency").textContent = milliseconds(summary.latency_ms_p50);
  $("latency-high").textContent = milliseconds(summary.latency_ms_p95);
  $("model-time").textContent = milliseconds(summary.model_ms_p50);
}
setInterval(showFigures, FIGURES_MILLISECONDS);

/** Write a figure everywhere the page shows it. */
function fill(name, text) {
  for (const place of document.querySelectorAll(`[data-${name}]`)) place.textContent = text;
}

let statusTimer = 0;
function say(text) {
  $("status").textContent = text;
  $("status").classList.add("shown");
  clearTimeout(statusTimer);
  statusTimer = setTimeout(() => $("status").classList.remove("shown"), 7000);
}

function save(blob, ending) {
  const anchor = document.createElement("a");
  anchor.href = URL.createObjectURL(blob);
  anchor.download = `${game.drive.world}-seed${game.drive.seed}-frame${game.frame}.${ending}`;
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(anchor.href), 10_000);
  say(`Saved ${anchor.download}`);
}

function round(value) {
  return String(Math.round(value * 10) / 10);
}

// What the visitor does.

const shortcuts = {
  KeyP: () => (game.running ? game.pause() : game.play()),
  Period: () => game.single(),
  KeyF: () => game.fork(),
  KeyN: () => surprise(),
};

/** Name the page's own keys on its buttons, except those that the world has taken. */
function showShortcuts() {
  for (const button of document.querySelectorAll("[data-shortcut]")) {
    const { shortcut, title } = button.dataset;
    const label = { Period: "." }[shortcut] ?? keyLabel(shortcut);
    const taken = controls.has(shortcut);
    button.title = taken ? title : `${title} (${label})`;
    if (taken) button.removeAttribute("aria-keyshortcuts");
    else button.setAttribute("aria-keyshortcuts", label);
  }
}

/** The picture was clicked or dragged: play; return whether there is a world that goes on. */
function begin() {
  if (!linkTrouble && !replaying && !game.running) game.play();
  return game.running;
}

addEventListener("keydown", (event) => {
  if (controls.foreign(event) || $("about").open) return;
  const target = event.target;
  if (target.matches("input:not([type=radio]):not([type=checkbox]), select, textarea")) return;
  if (target.matches("button, label input") && ["Space", "Enter"].includes(event.code)) return;
  if (linkTrouble?.name === "idle") link.connect();
  // The browser lets the mouse go by itself, unless it shows no window.
  if (event.code === "Escape") mouse.unlock();
  if (controls.key(event.code, true, event)) {
    event.preventDefault();
  } else if (!event.repeat && game.ready && shortcuts[event.code]) {
    event.preventDefault();
    shortcuts[event.code]();
  }
});
addEventListener("keyup", (event) => controls.key(event.code, false, event));

// Control+W while both are keys of the world closes the page in most browsers: they ask first.
addEventListener("beforeunload", (event) => controls.anyDown && event.preventDefault());

// A control that was used with the pointer must not keep the space bar or the arrows from the world.
addEventListener("click", (event) => {
  const control = event.target.closest("button, .choice, .switch");
  if (control && event.detail > 0) document.activeElement?.blur();
});
for (const id of ["start", "decoder"]) $(id).addEventListener("change", () => $(id).blur());

document.addEventListener("visibilitychange", () => {
  if (document.hidden && game.running) {
    game.pause();
    say("Paused while the page was hidden.");
  }
});

$("play").addEventListener("click", shortcuts.KeyP);
$("step").addEventListener("click", shortcuts.Period);
$("fork").addEventListener("click", shortcuts.KeyF);
$("newest").addEventListener("click", () => game.look(game.frame));
$("full").hidden = !document.fullscreenEnabled;
$("full").addEventListener("click", async () => {
  await $("dream-figure").requestFullscreen();
  // On the whole screen, and in some browsers, a page may have Control+W and its like as well.
  await navigator.keyboard?.lock(Object.keys(controls.schema.keys).filter((code) => !code.startsWith("Mouse")));
});
$("video").addEventListener("click", () => {
  $("video").disabled = true;
  say("Making the video.");
  link.command("video");
});
$("save").addEventListener("click", () => link.command("save"));
$("load").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", async () => {
  const [file] = $("file").files;
  $("file").value = "";
  if (!file) return;
  if (file.size > maxCommandBytes - 100) {
    say(`${file.name} is longer than this server replays; use worldgen replay.`);
    return;
  }
  try {
    const log = JSON.parse(await file.text());
    game.pause();
    game.driver = null;
    replaying = { what: "Replaying the log", done: 0, total: log.digests?.length ?? 0 };
    game.command("load", { log });
  } catch {
    say(`${file.name} is not a log: it is not JSON.`);
  }
});
$("autopilot").addEventListener("click", () => game.letModelDrive(game.driver !== "model"));

/** A way to drive is about to be drawn: the world waits; return whether it may be. */
function mayDraw() {
  if (linkTrouble || replaying || !game.drive) return false;
  game.pause();
  return true;
}

function drawn(points) {
  game.goOnFromHere();
  game.command("trace", { points });
}

$("zoom-in").addEventListener("click", () => map.zoom(true));
$("zoom-out").addEventListener("click", () => map.zoom(false));
$("route-end").addEventListener("click", () => {
  game.driver = null;
  game.pause();
});
$("trajectory").addEventListener("click", () => $("trajectory-file").click());
$("trajectory-file").addEventListener("change", async () => {
  const [file] = $("trajectory-file").files;
  $("trajectory-file").value = "";
  if (!file) return;
  if (file.size > maxTrajectoryBytes) {
    say(`${file.name} is longer than this server drives; use worldgen rollout --trajectory.`);
    return;
  }
  const content = await file.text();
  game.pause();
  game.goOnFromHere();
  game.command("trajectory", { name: file.name, content });
});

$("new-form").addEventListener("submit", (event) => {
  event.preventDefault();
  document.activeElement?.blur();
  const [seed, start] = [Number($("seed").value), Number($("start").value)];
  game.open(game.drive.world, { seed, start, decoder: $("decoder").value || null });
});
$("surprise").addEventListener("click", surprise);
function surprise() {
  const random = (count) => Math.floor(Math.random() * count);
  const { num_starts: starts } = worlds.get(game.drive.world);
  game.open(game.drive.world, { seed: random(1e6), start: random(starts), decoder: $("decoder").value || null });
}
$("pace").addEventListener("change", (event) => game.setPace(event.target.value));
$("reality-on").addEventListener("change", (event) => link.command("reality", { on: event.target.checked }));
$("veil-button").addEventListener("click", () => {
  if (linkTrouble) link.connect();
  else if (replaying) link.command("cancel");
  else game.play();
});
$("about-open").addEventListener("click", () => $("about").showModal());
$("about").addEventListener("click", (event) => event.target === $("about") && $("about").close());

/** For measurements: figures of the page, the poses by frame, and the switches that they need. */
window.worldgen = {
  statistics: () => ({
    ...game.statistics.summary(),
    world: game.drive?.world, pace: game.pace, running: game.running, frame: game.frame,
    waiting: game.busy || game.asked !== null,
  }),
  path: () => game.drive?.path,
  resetStatistics: () => game.statistics.reset(),
  setPace: (pace) => game.setPace(pace),
  play: () => game.play(),
  pause: () => game.pause(),
};

link.connect();
