// The branches of a run, to switch between.

/** Fill `container` with one chip per branch: go there, or forget it. */
export function showBranches(container, game) {
  const { branches, branch } = game.drive;
  const name = (id) => String.fromCharCode(65 + (id % 26)) + (id >= 26 ? Math.floor(id / 26) : "");
  container.hidden = branches.length < 2;
  container.replaceChildren(...branches.map(({ id, last, parent, forked_at: at }) => {
    const chip = document.createElement("span");
    chip.className = "chip";
    const go = document.createElement("button");
    go.type = "button";
    go.textContent = `${name(id)} · ${id === branch ? "here" : `${last} frames`}`;
    go.title = parent === null ? "The first branch" : `Left branch ${name(parent)} at frame ${at}`;
    go.setAttribute("aria-pressed", String(id === branch));
    go.addEventListener("click", () => { game.pause(); game.command("switch", { branch: id }); });
    chip.append(go);
    if (id !== branch) {
      const close = document.createElement("button");
      close.type = "button";
      close.textContent = "×";
      close.setAttribute("aria-label", `Forget branch ${name(id)}`);
      close.addEventListener("click", () => game.command("close", { branch: id }));
      chip.append(close);
    }
    return chip;
  }));
}
