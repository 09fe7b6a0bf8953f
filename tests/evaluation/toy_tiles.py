"""A walker on coloured tiles: 64 x 64 frames, six rows of a map around the player and two of bag."""

import functools
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch.nn import functional as F

from tests.factories import tiny_model_config, tiny_tokenizer_config
from worldgen.data.captions import Caption, CaptionTable, fact_holds, write_caption_column
from worldgen.data.episodes import (
    Column,
    Dataset,
    DatasetMetadata,
    Episode,
    EpisodeInfo,
    EpisodeWriter,
)
from worldgen.evaluation.judges.probes import TileColumn, TileProbe, TileProbeConfig, save_probes
from worldgen.generation import SamplingConfig, Start
from worldgen.models import NextFrameTransformer, save_world_model
from worldgen.pipeline import EnvironmentCard, WorldCard, save_starts
from worldgen.records import to_float
from worldgen.tokenizers.action import ActionSchema, Categorical
from worldgen.tokenizers.text import TextTokenizer
from worldgen.tokenizers.visual import build_visual_tokenizer, save_visual_tokenizer

ENVIRONMENT = "tests.evaluation.toy_tiles:worldgen-tests/ToyTiles-v0"
MOVES = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
CLASSES = ("grass", "sand", "path", "stone", "cow", *(f"player-{move}" for move in MOVES))
WALKABLE = 3
CELL = (3, 4)
PROBE = TileProbeConfig(
    columns=(
        TileColumn(name="tiles", rows=6, classes=CLASSES),
        TileColumn(name="bag", rows=2, classes=("none", "some")),
    ),
    width=8,
)
_COLOURS = np.array(
    [[(n * 97) % 256, (n * 57 + 40) % 256, (n * 151 + 80) % 256] for n in range(11)]
)
_SIDE = 41


def schema() -> ActionSchema:
    """Return a rest and four moves."""
    options = ("noop", *MOVES)
    return ActionSchema(
        groups=(Categorical("action", options),),
        named={name: {} if name == "noop" else {"action": name} for name in options},
    )


def paint(tiles: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return the frame of 8 x 8 classes."""
    return _COLOURS[tiles].astype(np.uint8).repeat(8, axis=0).repeat(8, axis=1)


class ToyTiles(gymnasium.Env[NDArray[np.uint8], Any]):
    """A map of walkable ground and, here and there, stone; everything follows from the seed.

    Args:
        stones: Share of tiles that block.
        forgetful: What leaves the picture is another ground when it comes back.
    """

    observation_space = spaces.Box(0, 255, (64, 64, 3), np.uint8)
    action_space = spaces.Discrete(5)

    def __init__(self, *, stones: float = 0.05, forgetful: bool = False) -> None:
        self._stones, self._forgetful = stones, forgetful

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        super().reset(seed=seed)
        self._random = np.random.default_rng(seed)
        self.map = self._random.integers(0, WALKABLE, (_SIDE, _SIDE))
        self.map[self._random.random(self.map.shape) < self._stones] = CLASSES.index("stone")
        self.place = np.array([_SIDE // 2, _SIDE // 2])
        self.map[tuple(self.place)] = 0
        self.facing = 0
        return self._frame(), self._info()

    def step(self, action: Any) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        if int(action):
            move = list(MOVES)[int(action) - 1]
            self.facing = int(action) - 1
            target = (self.place + MOVES[move]) % _SIDE
            if self.map[tuple(target)] < WALKABLE:
                before = self._view()
                self.place = target
                if self._forgetful:
                    left = np.ones(self.map.shape, bool)
                    left[np.ix_(*before)] = False
                    left[np.ix_(*self._view())] = True
                    gone = ~left
                    self.map[gone] = self._random.integers(0, WALKABLE, gone.sum())
        return self._frame(), 0.0, False, False, self._info()

    def _view(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        row, column = self.place
        return (
            np.arange(row - CELL[0], row - CELL[0] + 6) % _SIDE,
            np.arange(column - CELL[1], column - CELL[1] + 8) % _SIDE,
        )

    def _info(self) -> dict[str, Any]:
        tiles = self.map[np.ix_(*self._view())].copy()
        tiles[CELL] = CLASSES.index("player-left") + self.facing
        return {"tiles": tiles.astype(np.uint8), "bag": np.zeros((2, 8), np.uint8)}

    def _frame(self) -> NDArray[np.uint8]:
        info = self._info()
        bag = info["bag"].astype(np.int64) + len(CLASSES)
        return paint(np.concatenate((info["tiles"].astype(np.int64), bag)))


gymnasium.register("worldgen-tests/ToyTiles-v0", "tests.evaluation.toy_tiles:ToyTiles")


@functools.cache
def probe() -> TileProbe:
    """Return a judge that reads every tile right; it takes a moment to learn the colours."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        judge = TileProbe(PROBE)
        flat = _COLOURS.astype(np.uint8)[:, None, None].repeat(8, axis=1).repeat(8, axis=2)
        tiles = to_float(torch.from_numpy(flat))
        classes = torch.arange(11)
        optimizer = torch.optim.Adam(judge.parameters(), lr=5e-3)
        for _ in range(80):
            optimizer.zero_grad()
            F.cross_entropy(judge(tiles), classes).backward()
            optimizer.step()
    return judge.eval()


def record(
    folder: Path, *, episodes: int = 3, length: int = 60, captions: CaptionTable | None = None
) -> Path:
    """Write a recording of a random walk with a test split alone; return its folder.

    With captions each frame has the first one that is true, if there is one.
    """
    environment = ToyTiles()
    folder.mkdir(parents=True, exist_ok=True)
    DatasetMetadata(
        environment={"id": ENVIRONMENT, "options": {}},
        frames_per_second=10.0,
        frame_height=64,
        frame_width=64,
        action_schema=schema().to_json(),
        columns={
            "tiles": Column(dtype="uint8", shape=(6, 8)),
            "bag": Column(dtype="uint8", shape=(2, 8)),
        },
    ).write(folder)
    writer = EpisodeWriter(folder / "test", 10.0)
    for seed in range(episodes):
        actions = np.random.default_rng(seed).integers(0, 5, (length, 1))
        frame, info = environment.reset(seed=seed)
        frames, rows = [], []
        for action in actions[:, 0]:
            frames.append(frame)
            rows.append(info)
            frame, _, _, _, info = environment.step(action)
        columns = {name: np.stack([row[name] for row in rows]) for name in ("tiles", "bag")}
        columns |= {"reward": np.zeros(length), "cut": np.arange(length) == length - 1}
        about = EpisodeInfo(index=seed, seed=seed, length=length, driver="random", split="test")
        writer.write(Episode(frames=np.stack(frames), actions=actions, columns=columns, info=about))
    if captions is not None:
        captions.write(folder)
        dataset = Dataset(folder)
        for info_row in dataset.episodes("test"):
            tiles = dataset.load_columns(info_row)["tiles"]
            numbers = np.full(info_row.length, -1)
            for frame_number, seen in enumerate(tiles):
                for number, caption in enumerate(captions.captions):
                    if all(fact_holds(fact, seen, CLASSES) for fact in caption.facts):
                        numbers[frame_number] = number
                        break
            write_caption_column(dataset, info_row, numbers)
    return folder


def caption(text: str, *classes: str, rows: tuple[int, int], columns: tuple[int, int]) -> Caption:
    """Return a sentence that says that one of these classes is somewhere."""
    fact = {"kind": "tiles", "classes": list(classes), "rows": list(rows), "least": 1}
    return Caption(text=text, facts=({**fact, "columns": list(columns)},))


def world(
    folder: Path, *, name: str = "toy tiles", texts: tuple[str, ...] = (), **changes: Any
) -> Path:
    """Write a world with random weights and a judge of tiles; return its folder.

    Args:
        folder: Of the world.
        name: On its card.
        texts: That a text tokenizer learns from; without them the world reads no text.
        changes: Of the model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if texts:
        tokenizer = TextTokenizer.train(texts, 280)
        tokenizer.save(folder / "text.json")
        changes |= {"text_vocabulary_size": tokenizer.vocabulary_size, "sink": 1}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        visual = build_visual_tokenizer(tiny_tokenizer_config()).eval()
        model = NextFrameTransformer(
            tiny_model_config(num_action_tokens=1, action_vocabulary_size=5, **changes)
        )
        ids = torch.randint(0, 64, (2, 64))
    start = Start(visual_ids=ids, action_ids=torch.zeros(1, 1, dtype=torch.int64))
    save_visual_tokenizer(folder / "tokenizer.safetensors", visual)
    save_world_model(folder / "model.safetensors", model)
    save_starts(folder / "starts.safetensors", [start])
    save_probes(folder / "probe.safetensors", {"tiles": probe()}, {"tiles": {"accuracy": 1.0}})
    WorldCard(
        name=name,
        title="Tiles",
        description="Random weights, for tests.",
        frames_per_second=10.0,
        action_schema=schema().to_json(),
        decoders=("whole_frame",),
        sampling=SamplingConfig(),
        environment=EnvironmentCard(id=ENVIRONMENT),
    ).write(folder)
    return folder
