"""One pass of a tokenizer over a folder of images and videos; its tallies grow meanwhile."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from tqdm import tqdm

from worldgen.data.media import MediaFolder
from worldgen.errors import CheckpointError, ConfigError, DataError
from worldgen.evaluation.frechet import FeatureNetwork
from worldgen.evaluation.speed.coding_speed import coding_speed
from worldgen.evaluation.tokenizers.examples import Example, Examples, clip_strip, image_strip
from worldgen.evaluation.tokenizers.media_clips import ClipPlan, spread
from worldgen.evaluation.tokenizers.tokenizer_tally import ClipTally, PictureQuality, Tally
from worldgen.nn.image_quality import psnr, ssim
from worldgen.records import to_float, to_uint8
from worldgen.tokenizers.losses.perceptual import Lpips
from worldgen.tokenizers.quantizers import Quantizer
from worldgen.tokenizers.quantizers.perturbation import perturb
from worldgen.tokenizers.visual import VisualTokenizer

__all__ = ["TokenizerPass"]

_LONGEST_WHOLE_CLIP = 33
"""Frames; longer clips go through a stream, piece by piece."""
_BATCH_PIXELS = 2**20
_LARGEST_BATCH = 16
_SHOWN_FRAMES = 7
_SHOWN_IMAGES = 6
_SHOWN_CLIPS = 2
_SSIM_WINDOW = 11


class TokenizerPass:
    """Measures a tokenizer on images and frames alone, and on clips.

    Args:
        tokenizer: On the device to measure it on.
        folder: What to measure it on; files that cannot be used are noted in it.
        size: Height and width of the pictures.
        num_frames: Of a clip; None takes videos whole.
        limit: Most images, and most clips; None takes all.
        perturbed_share: Share of the codes that are replaced by near ones for one of the figures.
        seed: Decides which.
        lpips: None leaves that figure out.
        features: Of the Frechet distance.
    """

    def __init__(
        self,
        tokenizer: VisualTokenizer,
        folder: MediaFolder,
        *,
        size: tuple[int, int],
        num_frames: int | None,
        limit: int | None,
        perturbed_share: float,
        seed: int,
        lpips: Lpips | None,
        features: FeatureNetwork,
    ) -> None:
        self._tokenizer, self._folder, self._size = tokenizer, folder, size
        self._limit, self._perturbed_share = limit, perturbed_share
        self._lpips, self._features = lpips, features
        long = num_frames is None or num_frames > _LONGEST_WHOLE_CLIP
        self._plan = ClipPlan(
            size=size,
            num_frames=num_frames,
            streamed=long and tokenizer.causal,
            frames_per_latent=tokenizer.frames_per_latent,
        )
        self._generator = torch.Generator().manual_seed(seed)
        self._images = Tally(tokenizer.codebook_size)
        self._alone = Tally(tokenizer.codebook_size)
        self._clips = ClipTally(tokenizer.codebook_size, tokenizer.frames_per_latent)
        self._image_examples = Examples(count=_SHOWN_IMAGES)
        self._clip_examples = Examples(count=_SHOWN_CLIPS)
        self._batch = max(1, min(_LARGEST_BATCH, _BATCH_PIXELS // (size[0] * size[1])))
        # Of these the speed is measured: the first clip, or the first image.
        self._timed: UInt8[np.ndarray, "t h w 3"] | None = None

    def run(self) -> None:
        """Pass all files by.

        Raises:
            DataError: If none can be used.
            ConfigError: If the tokenizer gives frames of another size.
            CheckpointError: If it gives values that are not finite.
        """
        images = spread(self._folder.images, self._limit)
        videos = spread(self._folder.videos, self._limit)
        total = len(images) + len(videos)
        # disable=None: no bar where nobody watches, as in a pipe.
        with tqdm(total=total, unit=" files", disable=None) as bar:
            read = self._read(images, bar)
            while batch := list(itertools.islice(read, self._batch)):
                self._take_images(batch)
            for number, path in enumerate(videos):
                # Where clips do not divide evenly, the first videos give one more.
                quota = self._limit and -((number - self._limit) // len(videos))
                for first_frame, pieces in self._plan.clips(self._folder, path, quota):
                    self._take_clip(path, first_frame, pieces)
                bar.update(1)
        if not self._images.frames and not self._clips.frames:
            first = self._folder.skipped[0]
            raise DataError(
                f"none of {total} images and videos of {self._folder.path} could be used: "
                f"{self._folder.name(first.path)} {first.reason}"
            )

    def figures(self) -> dict[str, Any]:
        """Return the figures of images, of frames of videos alone, and of clips."""
        tallies: dict[str, Tally] = {
            "images": self._images,
            "video_frames_alone": self._alone,
            "videos": self._clips,
        }
        return {name: tally.to_json() if tally.frames else None for name, tally in tallies.items()}

    def speed(self) -> dict[str, Any]:
        """Return milliseconds a frame, of one frame alone and of a clip."""
        assert self._timed is not None, "no picture was measured"
        frames = self._to_device(self._timed)[None]
        return {
            "image": coding_speed(self._tokenizer, frames[:, :1]),
            "video": coding_speed(self._tokenizer, frames) if frames.shape[1] > 1 else None,
        }

    def strips(self) -> list[dict[str, Any]]:
        """Return the best and the worst examples as pictures."""
        made = []
        for word in ("worst", "best"):
            if examples := getattr(self._image_examples, word):
                made.append(image_strip(f"{word} images", examples))
        for word in ("worst", "best"):
            for example in getattr(self._clip_examples, word):
                made.append(clip_strip(f"{word} clip", example))
        return [strip.to_json() for strip in made]

    def _read(self, paths: Sequence[Path], bar: Any) -> Iterator[tuple[Path, np.ndarray]]:
        for path in paths:
            image = self._folder.try_image(path, self._size)
            bar.update(1)
            if image is not None:
                yield path, image

    def _take_images(self, batch: Sequence[tuple[Path, np.ndarray]]) -> None:
        pictures = np.stack([picture for _, picture in batch])
        frames = self._to_device(pictures)
        if self._timed is None:
            self._timed = pictures[:1]
        self._images.truth_moments.add(self._features(frames))
        _, rebuilt, scores = self._take_alone(self._images, frames)
        for (path, picture), made, score in zip(batch, rebuilt, scores.tolist(), strict=True):
            if self._image_examples.wants(score):
                self._image_examples.add(
                    Example(
                        score=score,
                        file=self._folder.name(path),
                        first_frame=0,
                        positions=(0,),
                        original=picture[None],
                        reconstruction=_to_numpy(made[None]),
                    )
                )

    def _take_alone(
        self, tally: Tally, frames: Float[Tensor, "picture 3 h w"]
    ) -> tuple[
        Int[Tensor, "picture row column"],
        Float[Tensor, "picture 3 h w"],
        Float[Tensor, " picture"],
    ]:
        """Take each picture as a clip of one frame; return ids, reconstructions and PSNR."""
        taken = []
        for pictures in frames.split(self._batch):
            ids = self._tokenizer.encode(rearrange(pictures, "b rgb h w -> b 1 rgb h w"))
            rebuilt = self._rounded(self._tokenizer.decode(ids))[:, 0]
            wrong = self._rounded(self._tokenizer.decode(self._perturbed(ids)))[:, 0]
            quality = self._measure(rebuilt, pictures, wrong)
            self._add(tally, ids, rebuilt, quality)
            taken.append((ids[:, 0], rebuilt, quality.psnr))
        all_ids, all_rebuilt, scores = (torch.cat(parts) for parts in zip(*taken, strict=True))
        return all_ids, all_rebuilt, scores

    def _take_clip(
        self, path: Path, first_frame: int, pieces: Iterable[UInt8[np.ndarray, "t h w 3"]]
    ) -> None:
        coder = _Coder(self._tokenizer, self._perturbed)
        position, total = 0, 0.0
        shown: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
        last: tuple[Tensor, Tensor] | None = None
        for piece in pieces:
            frames = self._to_device(piece)
            if self._timed is None or len(self._timed) == 1:
                self._timed = piece
            ids, made, wrong = coder.take(frames[None])
            rebuilt = self._rounded(made)[0]
            quality = self._measure(rebuilt, frames, self._rounded(wrong)[0])
            self._add(self._clips, ids, rebuilt, quality)
            features = self._features(frames)
            self._clips.truth_moments.add(features)
            self._alone.truth_moments.add(features)
            alone_ids, _, _ = self._take_alone(self._alone, frames)
            if position == 0:
                self._clips.add_first(alone_ids[0], ids[0, 0])
                places = _evenly(len(piece), _SHOWN_FRAMES)
                shown = places, piece[places], _to_numpy(rebuilt[torch.from_numpy(places)])
            changes = _changes(rebuilt, last and last[1]), _changes(frames, last and last[0])
            self._clips.add_positions(position, quality.psnr, psnr(*changes))
            last = frames[-1], rebuilt[-1]
            position += len(piece)
            total += float(quality.psnr.sum())
        assert shown is not None, "a clip has a first piece"
        wanted = self._plan.num_frames
        self._clips.clips += 1
        self._clips.clips_cut_short += wanted is not None and position < wanted
        self._clip_examples.add(
            Example(
                score=total / position,
                file=self._folder.name(path),
                first_frame=first_frame,
                positions=tuple(shown[0].tolist()),
                original=shown[1],
                reconstruction=shown[2],
            )
        )

    def _measure(
        self,
        rebuilt: Float[Tensor, "picture 3 h w"],
        truth: Float[Tensor, "picture 3 h w"],
        wrong: Float[Tensor, "picture 3 h w"],
    ) -> PictureQuality:
        if rebuilt.shape != truth.shape:
            raise ConfigError(
                f"this tokenizer turns frames of {truth.shape[-2]} x {truth.shape[-1]} pixels into "
                f"frames of {rebuilt.shape[-2]} x {rebuilt.shape[-1]}, which cannot be compared"
            )
        lpips = None
        if self._lpips is not None:
            pairs = zip(rebuilt.split(self._batch), truth.split(self._batch), strict=True)
            lpips = torch.cat([self._lpips(*pair) for pair in pairs])
        return PictureQuality(
            psnr=psnr(rebuilt, truth),
            perturbed=psnr(wrong, truth),
            ssim=ssim(rebuilt, truth) if min(truth.shape[-2:]) >= _SSIM_WINDOW else None,
            lpips=lpips,
        )

    def _add(self, tally: Tally, ids: Tensor, rebuilt: Tensor, quality: PictureQuality) -> None:
        tally.moments.add(self._features(rebuilt))
        tally.add(ids, len(rebuilt) * rebuilt.shape[-2] * rebuilt.shape[-1], quality)

    def _perturbed(self, ids: Int[Tensor, "*any"]) -> Int[Tensor, "*any"]:
        quantizer = self._tokenizer.get_submodule("quantizer")
        assert isinstance(quantizer, Quantizer)
        return perturb(ids, quantizer, self._perturbed_share, self._generator)

    def _rounded(self, frames: Float[Tensor, "*any 3 h w"]) -> Float[Tensor, "*any 3 h w"]:
        if not frames.isfinite().all():
            raise CheckpointError(
                "the tokenizer decodes to values that are not finite; its weights are damaged, "
                "take those of an earlier step"
            )
        return to_float(to_uint8(frames))

    def _to_device(self, pictures: UInt8[np.ndarray, "t h w 3"]) -> Float[Tensor, "t 3 h w"]:
        on_device = torch.from_numpy(np.ascontiguousarray(pictures)).to(self._tokenizer.device)
        return to_float(on_device)


class _Coder:
    """Encodes and decodes one clip; in pieces if the tokenizer is causal, else in a single one."""

    def __init__(self, tokenizer: VisualTokenizer, perturbed: Callable[[Tensor], Tensor]) -> None:
        self._perturbed = perturbed
        self._encode: Callable[[Tensor], Tensor] = tokenizer.encode
        self._decode: Callable[[Tensor], Tensor] = tokenizer.decode
        self._decode_wrong: Callable[[Tensor], Tensor] = tokenizer.decode
        if tokenizer.causal:
            self._encode = tokenizer.encoder_stream().push
            self._decode = tokenizer.decoder_stream().push
            self._decode_wrong = tokenizer.decoder_stream().push

    def take(self, frames: Float[Tensor, "1 t 3 h w"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return ids, reconstruction, and reconstruction from perturbed ids, of the next frames."""
        ids = self._encode(frames)
        return ids, self._decode(ids), self._decode_wrong(self._perturbed(ids))


def _changes(
    frames: Float[Tensor, "t 3 h w"], before: Float[Tensor, "3 h w"] | None
) -> Float[Tensor, "change 3 h w"]:
    if before is not None:
        frames = torch.cat((before[None], frames))
    return frames[1:] - frames[:-1]


def _evenly(length: int, count: int) -> Int[np.ndarray, " place"]:
    """Return at most `count` places in `length`, the first and the last among them."""
    return np.unique(np.linspace(0, length - 1, count).round().astype(np.int64))


def _to_numpy(pictures: Float[Tensor, "t 3 h w"]) -> UInt8[np.ndarray, "t h w 3"]:
    made: UInt8[np.ndarray, "t h w 3"] = to_uint8(pictures).cpu().numpy()
    return made
