// What stands over the dream while there is nothing to play: why, and what can be done.

const $ = (id) => document.getElementById(id);

/** Show or lift the veil; `replaying` is { what, done, total } or null, `linkTrouble` as in main.js. */
export function showVeil({ linkTrouble, replaying, game }) {
  const [title, text, button] = words(linkTrouble, replaying, game);
  $("veil").hidden = !title;
  $("veil").dataset.clear = String(!linkTrouble && !replaying);
  $("veil-title").textContent = title ?? "";
  $("veil-text").textContent = text ?? "";
  $("veil-button").textContent = button ?? "";
  $("veil-button").hidden = !button;
  $("veil-progress").hidden = !replaying || Boolean(linkTrouble);
  if (replaying) Object.assign($("veil-progress"), { max: replaying.total, value: replaying.done });
}

/** Return title, text and button of the veil, nothing when the picture is to be seen. */
function words(linkTrouble, replaying, game) {
  if (linkTrouble) {
    const again = linkTrouble.seconds ? `Trying again in ${Math.ceil(linkTrouble.seconds)} s.` : "";
    return {
      connecting: ["Connecting", "", null],
      waiting: ["The server is away", `${again} Your run is kept in this page.`, "Try now"],
      full: ["Every place is taken", linkTrouble.text, "Try now"],
      failed: ["The server had trouble", `${linkTrouble.text ?? ""} ${again}`, "Try now"],
      idle: ["Asleep", "Nothing happened for a long time. Your run is kept in this page.", "Wake up"],
    }[linkTrouble.name];
  }
  if (replaying) {
    return [replaying.what, `frame ${replaying.done} of ${replaying.total}`, "Stop"];
  }
  if (!game.drive) return ["Opening the world", "", null];
  if (!game.begun) {
    const touch = matchMedia("(pointer: coarse)").matches;
    if (touch) return ["Hold a button to begin", "", "Play"];
    return [game.controls.looks ? "Click here or press a key to begin" : "Press a key to begin", "", "Play"];
  }
  return [];
}
