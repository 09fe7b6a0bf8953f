// The card of a world as a page of facts: what it is, how it was made, how good it is, its limits.

export function words(key) {
  return key.replaceAll("_", " ");
}

function text(value) {
  if (typeof value === "number") {
    return Number.isInteger(value) ? value.toLocaleString("en") : String(Number(value.toPrecision(4)));
  }
  if (typeof value === "boolean") return value ? "yes" : "no";
  return value === null ? "–" : String(value);
}

function node(tag, content) {
  const made = document.createElement(tag);
  if (typeof content === "string") made.textContent = content;
  else if (content) made.append(content);
  return made;
}

/** Return a value of the card as elements: objects as tables, lists as lists. */
function render(value) {
  if (Array.isArray(value)) {
    const plain = value.every((item) => typeof item !== "object" || item === null);
    if (plain && value.every((item) => text(item).length < 24)) return node("span", value.map(text).join(", "));
    const list = node("ul");
    for (const item of value) list.append(node("li", render(item)));
    return list;
  }
  if (value !== null && typeof value === "object") {
    const table = node("dl");
    for (const [key, item] of Object.entries(value)) {
      const row = node("div");
      row.append(node("dt", words(key)), node("dd", render(item)));
      table.append(row);
    }
    return table;
  }
  const shown = text(value);
  return node(/^(python|make|worldgen) /.test(shown) ? "code" : "span", shown);
}

/** Return the sections of a card. */
export function renderCard(card) {
  const body = document.createDocumentFragment();
  body.append(node("p", card.description));
  const basics = {
    frames_per_second: card.frames_per_second,
    decoding_orders: card.decoders.map(words),
    sampling: card.sampling,
    real_environment: card.environment?.id ?? "none",
  };
  const sections = [
    ["What it cannot do", card.limits],
    ["Measured", card.figures],
    ["How it plays", basics],
    ["Data", card.data],
    ["Training", card.training],
  ];
  for (const [title, value] of sections) {
    if (!value || !Object.keys(value).length) continue;
    const content = Array.isArray(value) ? node("ul") : render(value);
    if (Array.isArray(value)) for (const item of value) content.append(node("li", text(item)));
    body.append(node("h3", title), content);
  }
  return body;
}
