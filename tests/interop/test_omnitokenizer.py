"""Imported tokenizers against numbers that OmniTokenizer's own code computed, and bad input."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.interop.omnitokenizer_numbers import compare, infer, load, train
from tests.reference_cases import Case, reference_cases
from worldgen.checkpoint import file_hash
from worldgen.cli import main
from worldgen.errors import CheckpointError, ConfigError
from worldgen.interop.omnitokenizer import (
    import_omnitokenizer,
    omnitokenizer_arguments,
    omnitokenizer_config,
    upstream_state,
)
from worldgen.tokenizers.visual import (
    OmniAutoencoder,
    OmniTokenizer,
    OmniTokenizerConfig,
    load_autoencoder,
    load_visual_tokenizer,
)

# Cases of the language model on top have no attention paths.
CASES = reference_cases("omnitokenizer", lambda config: "attention_paths" in config)
INFERENCE_CASES = reference_cases(
    "omnitokenizer", lambda config: "attention_paths" in config and config["mode"] == "eval"
)
TOKENIZER_CASES = reference_cases(
    "omnitokenizer",
    lambda config: "attention_paths" in config and not config["args"].get("use_vae"),
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    # The reference numbers come from one thread; networks this small are fastest so, too.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("case", CASES)
def test_every_number_is_reproduced(case: Case) -> None:
    computed: dict[str, Tensor] = {}
    expected = case.outputs
    for path in case.config["attention_paths"]:
        prefix = f"{path}." if any(name.startswith(f"{path}.") for name in expected) else ""
        if case.config["mode"] == "train":
            numbers = train(case, path)
        else:
            numbers = infer(case, load(case, path).network)
        computed |= {prefix + name: tensor for name, tensor in numbers.items()}
    compare(computed, expected)


@pytest.mark.parametrize("case", INFERENCE_CASES)
def test_command_makes_a_folder_that_gives_the_same_numbers(case: Case, tmp_path: Path) -> None:
    containers = sorted(case.folder.glob("*.ckpt"))
    checkpoint = containers[0] if containers else case.weights
    path = case.config["attention_paths"][-1]
    words = ["import", "omnitokenizer", "--checkpoint", str(checkpoint)]
    words += ["--out", str(tmp_path / "made"), "--attention", path]
    if not containers:
        words += ["--arguments", str(case.folder / "config.json")]
    assert main(words) == 0
    made = {file.name: file for file in (tmp_path / "made").iterdir()}
    network: OmniTokenizer | OmniAutoencoder
    if "autoencoder.safetensors" in made:
        network = load_autoencoder(made["autoencoder.safetensors"])
    else:
        loaded = load_visual_tokenizer(made["tokenizer.safetensors"])
        assert isinstance(loaded, OmniTokenizer)
        network = loaded
    prefixed = any(name.startswith(f"{path}.") for name in case.outputs)
    expected = {
        name.removeprefix(f"{path}."): tensor
        for name, tensor in case.outputs.items()
        if not prefixed or name.startswith(f"{path}.")
    }
    compare(infer(case, network), expected)

    record = json.loads(made["import.json"].read_text())
    assert record["checkpoint_sha256"] == file_hash(checkpoint)
    assert (record["mode"], record["attention"]) == ("upstream", path)
    assert record["arguments"]["embedding_dim"] == case.config["args"]["embedding_dim"]
    assert record["unexpected"] == []
    stored = {
        name for name in record["ignored"] if name.startswith(("perceptual_model.", "image_disc"))
    }
    assert stored == {
        name
        for name in load_names(checkpoint)
        if name.startswith(("perceptual_model.", "image_disc"))
    }
    assert record["checkpoint_sha256"] in made["README.md"].read_text()


def load_names(checkpoint: Path) -> list[str]:
    if checkpoint.suffix == ".safetensors":
        return list(load_file(checkpoint))
    with torch.serialization.safe_globals([argparse.Namespace]):
        return list(torch.load(checkpoint, weights_only=True)["state_dict"])


@pytest.mark.parametrize("case", CASES)
def test_weights_go_back_to_upstreams_names(case: Case) -> None:
    imported = load(case, case.config["attention_paths"][0])
    theirs = load_file(case.weights)
    returned = upstream_state(imported.network)
    assert theirs.keys() - returned.keys() == set(imported.ignored)
    for name, tensor in returned.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("case", TOKENIZER_CASES)
def test_aligned_mode_is_causal_where_upstreams_is_not(case: Case) -> None:
    path = case.config["attention_paths"][0]
    aligned, upstream = (load(case, path, mode).network for mode in ("aligned", "upstream"))
    assert isinstance(aligned, OmniTokenizer)
    assert isinstance(upstream, OmniTokenizer)
    size = case.config["args"]["resolution"]
    step = aligned.frames_per_latent
    generator = torch.Generator().manual_seed(0)
    clip = torch.rand(1, 1 + 2 * step, 3, size, size, generator=generator) * 2 - 1
    image = clip[:, :1]
    # Of one frame both orders of memory are the same.
    torch.testing.assert_close(aligned.encoder(image), upstream.encoder(image))
    assert not upstream.causal
    with pytest.raises(ConfigError, match=r"not causal .* needs whole clips"):
        upstream.encoder_stream()
    with pytest.raises(ConfigError, match=r"not causal .* needs whole clips"):
        upstream.decoder_stream()
    if aligned.causal:
        assert torch.equal(aligned.encode(clip)[:, :1], aligned.encode(image))
        assert torch.equal(aligned.encoder_stream().push(clip), aligned.encode(clip))


ARGUMENTS: dict[str, Any] = {
    "embedding_dim": 8,
    "n_codes": 8,
    "codebook_dim": 4,
    "resolution": 16,
    "patch_size": 4,
    "temporal_patch_size": 2,
    "enc_block": "tw",
    "dec_block": "t",
    "temporal_depth": 1,
    "spatial_pos": "rope",
    "causal_in_temporal_transformer": True,
    "causal_in_peg": True,
    "dim_head": 4,
    "heads": 2,
    "l2_code": True,
}


def tiny_weights(arguments: dict[str, Any] = ARGUMENTS) -> dict[str, Tensor]:
    """Random tensors of a network with these arguments, by upstream's names."""
    complete, _ = omnitokenizer_arguments(arguments, Path("x"))
    config = omnitokenizer_config(complete, mode="upstream", attention="sdpa")
    torch.manual_seed(0)
    assert isinstance(config, OmniTokenizerConfig)
    network = OmniTokenizer(config)
    return {name: tensor.clone() for name, tensor in upstream_state(network).items()}


def test_both_spellings_and_missing_and_retired_arguments() -> None:
    weights = tiny_weights()
    given = import_omnitokenizer(weights, ARGUMENTS, Path("x.ckpt"))
    old = {
        name.replace("causal", "casual"): value
        for name, value in ARGUMENTS.items()
        if name != "window"
    }
    old |= {"q_strides": "11", "use_checkpoint": False}
    spelt = import_omnitokenizer(weights, old, Path("x.ckpt"))
    assert spelt.network.config == given.network.config
    assert spelt.network.config.encoder.causal
    assert "twod_window_size" in spelt.defaulted
    assert spelt.network.config.encoder.window == 4
    assert "enc_block" not in spelt.defaulted


def test_positions_belong_to_the_path_of_attention() -> None:
    arguments = ARGUMENTS | {"spatial_pos": "rel"}
    weights = tiny_weights(arguments)
    without = import_omnitokenizer(weights, arguments, Path("x"), attention="sdpa")
    assert without.network.config.encoder.spatial_positions == "none"
    assert without.network.config.encoder.temporal_positions == "none"
    with pytest.raises(CheckpointError, match=r"missing .*spatial_rel_pos_bias\.net\.0\.0\.weight"):
        import_omnitokenizer(weights, arguments, Path("x"), attention="einsum_bias")


def test_what_does_not_fit_is_listed() -> None:
    weights = tiny_weights()
    del weights["pre_vq_conv.1.bias"]
    weights["decoder.dec_spatial_transformer.layers.7.0.dsconv.bias"] = torch.zeros(8)
    weights["codebook.N"] = torch.zeros(9)
    with pytest.raises(
        CheckpointError,
        match=r"missing pre_vq_conv\.1\.bias, unexpected decoder.*layers\.7\.0\.dsconv\.bias, "
        r"wrong shape codebook\.N \(9,\) instead of \(8,\)",
    ):
        import_omnitokenizer(weights, ARGUMENTS, Path("x"))


def test_names_outside_of_the_tokenizer_are_told_and_kept_out() -> None:
    weights = tiny_weights()
    weights |= {"optimizer_of_something": torch.zeros(1), "perceptual_model.a": torch.zeros(1)}
    imported = import_omnitokenizer(weights, ARGUMENTS, Path("x"))
    assert imported.unexpected == ("optimizer_of_something",)
    assert imported.ignored == ("perceptual_model.a",)


def test_training_goes_on_with_the_codebook_of_the_file() -> None:
    weights = tiny_weights()
    network = import_omnitokenizer(weights, ARGUMENTS, Path("x")).network
    assert isinstance(network, OmniTokenizer)
    network.train()(torch.zeros(1, 1, 3, 16, 16))
    moved = network.quantizer.state_dict()["codebook"]
    used = network.quantizer.state_dict()["code_uses"] > 1
    assert torch.allclose(moved[~used], weights["codebook.embeddings"][~used], atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_external_codebook": True}, "use_external_codebook True; only False"),
        ({"patch_embed": "pixelshuffle"}, "patch_embed 'pixelshuffle'; only 'linear' and 'cnn'"),
        ({"patch_embed": "cnn", "norm_type": "group"}, "norm_type 'group'; only 'batch'"),
        ({"spatial_pos": "sine"}, "spatial_pos 'sine'"),
        ({"image_channels": 1}, "image_channels 1"),
        ({"codebook_dim": None}, "no argument codebook_dim"),
        ({"dec_block": "tn"}, r"unknown letters \['n'\]"),
        ({"resolution": 18}, "18 x 18 pixels do not divide"),
        ({"embedding_dim": 16}, r"wrong shape .* instead of"),
        ({"dec_block": "tt"}, r"missing decoder\.dec_spatial_transformer\.layers\.1"),
    ],
)
def test_another_configuration_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        import_omnitokenizer(tiny_weights(), ARGUMENTS | changes, Path("x.ckpt"))


def test_shifts_after_normalisation_are_refused() -> None:
    weights = tiny_weights() | {"encoder.enc_spatial_transformer.norm_out.beta": torch.ones(8)}
    with pytest.raises(CheckpointError, match=r"shifts normalised vectors \(encoder.*beta\)"):
        import_omnitokenizer(weights, ARGUMENTS, Path("x"))


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str]:
    status = main(["import", "omnitokenizer", *map(str, words)])
    return status, capsys.readouterr().err


def test_command_refuses_a_folder_in_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": tiny_weights()}, tmp_path / "x.ckpt")
    status, error = run(capsys, "--checkpoint", tmp_path / "x.ckpt", "--out", tmp_path)
    assert status == 2
    assert "not empty; choose another folder" in error


def test_command_asks_for_arguments_that_the_file_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file(tiny_weights(), tmp_path / "x.safetensors")
    words: list[str | Path] = ["--checkpoint", tmp_path / "x.safetensors"]
    words += ["--out", tmp_path / "made"]
    status, error = run(capsys, *words)
    assert status == 2
    assert "give these as a JSON file with --arguments" in error
    (tmp_path / "a.json").write_text("[")
    status, error = run(capsys, *words, "--arguments", tmp_path / "a.json")
    assert status == 2
    assert "cannot read the arguments" in error
    (tmp_path / "a.json").write_text(json.dumps(ARGUMENTS))
    assert run(capsys, *words, "--arguments", tmp_path / "a.json") == (0, "")


def test_command_runs_nothing_that_a_pickle_hides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Hidden:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"state_dict": tiny_weights(), "callbacks": Hidden()}, tmp_path / "x.ckpt")
    status, error = run(capsys, "--checkpoint", tmp_path / "x.ckpt", "--out", tmp_path / "made")
    assert status == 2
    assert "could run code" in error
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "made").exists()
