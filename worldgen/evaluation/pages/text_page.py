"""Frames drawn from sentences as one page that needs nothing else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worldgen.checkpoint import write_text
from worldgen.evaluation.pages.page import conditions, page, percent, table, text

__all__ = ["format_text", "write_page"]

_SOURCES = {
    "generated": "drawn from the sentence",
    "later": "some seconds on",
    "real_frames": "real frames",
    "tokenizer_reconstruction": "reconstructed",
    "no_text": "drawn from no sentence",
    "another_caption": "from another sentence",
}


def write_page(result: Mapping[str, Any], path: Path) -> None:
    """Write the figures of `evaluate_text` as one HTML page.

    Args:
        result: From `evaluate_text`.
        path: Destination.
    """
    protocol = result["protocol"]
    title = f"{result['world']}: does it show what it is told"
    sources = {name: label for name, label in _SOURCES.items() if name in result["facts"]}
    head = (
        f"<header><h1>{text(title)}</h1><p>{protocol['captions']} captions of the test split, "
        f"{protocol['facts']} stated facts, read from the frames by a judge.</p>"
        f'<p class="score"><b>{percent(result["facts"]["generated"])}</b> of the facts are true '
        f"(in real frames the judge finds {percent(result['facts']['real_frames'])} true)</p></header>"
    )
    rows = [
        [
            label,
            percent(result["facts"][name]),
            percent(result["captions_with_all_facts"][name]),
        ]
        for name, label in sources.items()
    ]
    topics = [
        [topic, str(each["facts"]), *(percent(each.get(name)) for name in sources)]
        for topic, each in result["by_topic"].items()
    ]
    sections = [
        head,
        "<section><h2>Facts</h2><p>Facts of a caption are all true in its real frame. Frames drawn "
        "from no sentence, and from another one, say how often they are true by chance.</p>"
        f"{table(['frames', 'facts that are true', 'captions with all facts true'], rows)}"
        f"{table(['facts about', 'facts', *sources.values()], topics)}</section>",
        _cards(result),
        conditions(
            {
                "protocol": protocol,
                "hardware": result["hardware"],
                "versions": {"world hash": result["world_hash"][:16], **result["versions"]},
            }
        ),
    ]
    write_text(path, page(title, sections))


def _cards(result: Mapping[str, Any]) -> str:
    cards = []
    for strip in result["film_strips"]:
        facts = result["captions"][strip["row"]]["facts"]
        lines = "".join(
            f'<small class="{"good" if fact["true"] else "bad"}">'
            f"{'true' if fact['true'] else 'wrong'}: {text(fact['fact'])}</small>"
            for fact in facts
        )
        cards.append(
            f'<figure class=card><img alt="{text(strip["title"])}" '
            f'src="data:image/png;base64,{strip["png"]}">'
            f"<figcaption><b>{text(strip['title'])}</b>{lines}</figcaption></figure>"
        )
    return (
        "<section><h2>Sentences</h2><p>The first ones as they were drawn, and of the others those "
        f"with a wrong fact.</p><div class=cards>{''.join(cards)}</div></section>"
    )


def format_text(result: Mapping[str, Any]) -> list[str]:
    """Return the figures as lines for a terminal."""
    return [
        f"{_SOURCES[name]}: {percent(share)} of facts true, "
        f"{percent(result['captions_with_all_facts'][name])} of captions in all"
        for name, share in result["facts"].items()
    ]
