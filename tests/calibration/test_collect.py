"""Watching a model: what is seen is what it computes, and an interrupted run ends as an uninterrupted one."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from llamavid.calibration.arrays import write_arrays
from llamavid.calibration.collect import Collected, collect
from llamavid.calibration.looks import RowSample
from llamavid.calibration.material import Clip, Material
from llamavid.calibration.modules import graph_modules
from llamavid.calibration.observed import SAMPLE_ROWS, Observed
from llamavid.calibration.options import CalibrationOptions
from llamavid.errors import CheckpointError, PromptError, ScalesError, UsageError
from llamavid.model.checkpoint import Checkpoint, open_checkpoint
from llamavid.model.llamavid import model_from_checkpoint
from llamavid.model.watching import pair_norms
from llamavid.prompt import conversation
from tests.calibration.small import changed_weight, small_checkpoint, small_material, write_small

EIGHT = CalibrationOptions(frame_format="int8", llm_format="int8")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return small_checkpoint(tmp_path_factory.mktemp("small") / "release")


@pytest.fixture(scope="module")
def whole(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    collect(checkpoint, small_material(), folder, EIGHT)
    return folder


@pytest.fixture(scope="module")
def found(checkpoint: Checkpoint, whole: Path) -> Collected:
    return collect(checkpoint, small_material(), whole, EIGHT)


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (folder / "observed").iterdir()}


def test_every_product_of_every_graph_is_seen(checkpoint: Checkpoint, found: Collected) -> None:
    for graph, modules in graph_modules(checkpoint.config).items():
        observed = found.graphs[graph].observed
        assert observed.keys() == modules.keys()
        for name, size in modules.items():
            assert observed[name].rows == size.rows or "text" in name  # which depends on the question
            assert observed[name].channels.largest.shape == (size.inputs,)


def test_what_is_seen_is_what_the_model_computes(checkpoint: Checkpoint, found: Collected) -> None:
    """fc2 of the last block, which nothing migrates, and the head, after everything."""
    model, material, entered = model_from_checkpoint(checkpoint), small_material(), list[Tensor]()
    block = model.vision.blocks[1]
    block.mlp.fc2.register_forward_hook(lambda _, args, out: entered.append(args[0]))
    model.language.lm_head.register_forward_hook(lambda _, args, out: entered.append(args[0]))
    features = model.encode_frames(torch.from_numpy(material.pixels()))
    require_seen(found.graphs["vision"].observed["blocks.1.mlp.fc2"], torch.cat(entered))
    entered.clear()
    for frames, question in material.asked():
        rows = model.frame_tokens(features[frames], question).flatten(0, 1)
        with torch.inference_mode():
            model.language(inputs_embeds=model.sequence(conversation(question), [rows]))
    require_seen(found.graphs["llm"].observed["lm_head"], torch.cat(entered, dim=1))


def require_seen(one: Observed, entered: Tensor) -> None:
    rows = entered.flatten(0, -2)
    assert one.channels.rows == len(rows)
    assert one.histogram.total == rows.numel()
    assert one.histogram.largest == pytest.approx(float(rows.abs().max()), rel=1e-4)
    np.testing.assert_allclose(one.channels.mean_square, rows.square().mean(0), rtol=1e-3)
    distance = torch.cdist(torch.from_numpy(one.sample), rows, compute_mode="donot_use_mm_for_euclid_dist")
    assert float(distance.amin(1).max()) < 1e-3 * float(rows.norm(dim=1).max())
    assert len(one.sample) == min(SAMPLE_ROWS, len(rows))


def test_magnitudes_are_counted_as_they_are_after_migration(found: Collected) -> None:
    graph = found.graphs["vision"]
    assert graph.migrations
    for migration in graph.migrations:
        for module in migration.multiplied:
            one = graph.observed[module]
            assert one.divisor is graph.vectors[migration.vector]
            expected = (one.channels.largest / one.divisor).max()
            assert one.histogram.largest == pytest.approx(expected, rel=1e-6)
            assert np.abs(one.migrated_sample).max() <= one.histogram.largest * (1 + 1e-6)


def test_the_cache_of_every_layer_has_a_range(checkpoint: Checkpoint, found: Collected) -> None:
    assert found.graphs["vision"].cache == {}
    layers = range(checkpoint.config.language.layers)
    assert found.graphs["llm"].cache.keys() == {f"model.layers.{index}.self_attn" for index in layers}
    assert all(largest > 0 for largest in found.graphs["llm"].cache.values())


def test_the_cache_has_another_range_where_a_migration_divides_values(
    checkpoint: Checkpoint, found: Collected
) -> None:
    """An fp8 engine's cache had the range of values as the checkpoint makes them, and its own were divided
    by up to 256: it was clipped, or had a few levels left."""
    llm, material, keys, values = found.graphs["llm"], small_material(), list[Tensor](), list[Tensor]()
    divided = {one.multiplied[0]: llm.vectors[one.vector] for one in llm.migrations}
    moved = [name for name in llm.cache if f"{name}.o_proj" in divided]
    assert moved
    assert set(moved) == llm.migrated_cache.keys()
    model = model_from_checkpoint(checkpoint)
    for role, seen in (("k", keys), ("v", values)):
        projection = model.language.get_submodule(f"{moved[0]}.{role}_proj")
        projection.register_forward_hook(lambda _, args, out, seen=seen: seen.append(out))
    features = model.encode_frames(torch.from_numpy(material.pixels()))
    for frames, question in material.asked():
        rows = model.frame_tokens(features[frames], question).flatten(0, 1)
        with torch.inference_mode():
            model.language(inputs_embeds=model.sequence(conversation(question), [rows]))
    key = max(float(pair_norms(one, checkpoint.config.language.head_dim).amax()) for one in keys)
    largest = torch.cat(values, dim=1).abs().flatten(0, 1).amax(0)
    of_values = float((largest / torch.from_numpy(divided[f"{moved[0]}.o_proj"])).amax())
    assert llm.migrated_cache[moved[0]] == pytest.approx(max(key, of_values), rel=1e-4)
    assert llm.cache[moved[0]] == pytest.approx(max(key, float(largest.amax())), rel=1e-4)


def test_a_run_that_stops_after_every_part_ends_with_the_same_bytes(
    checkpoint: Checkpoint, whole: Path, tmp_path: Path
) -> None:
    """Each run goes on for one part; what it finished is not gone through again."""
    gone_through: list[str] = []
    finished = 0

    def stop_after_one(what: str, done: int, total: int, note: str) -> None:
        if done == finished:
            raise KeyboardInterrupt
        gone_through.append(note)

    while not (tmp_path / "observed" / "language.lm_head.npz").exists():
        finished += 1
        with contextlib.suppress(KeyboardInterrupt):
            collect(checkpoint, small_material(), tmp_path, EIGHT, on_progress=stop_after_one)
        (tmp_path / "observed" / ".vision.npz.77").write_bytes(b"half a file of a run that was killed")
    collect(checkpoint, small_material(), tmp_path, EIGHT)
    assert gone_through == list(dict.fromkeys(gone_through))
    assert len(gone_through) > 8
    assert files(tmp_path) == files(whole)


def test_a_run_that_is_killed_between_two_files_goes_on(
    checkpoint: Checkpoint, whole: Path, tmp_path: Path
) -> None:
    """What leaves block 0 is there, what was seen in it is not: the block is gone through again."""

    def stop(what: str, done: int, total: int, note: str) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(checkpoint, small_material(), tmp_path, EIGHT, on_progress=stop)
    write_arrays(tmp_path / "observed" / "activations.1.npz", {"000000": np.zeros((1, 1, 1), np.float32)})
    collect(checkpoint, small_material(), tmp_path, EIGHT)
    assert files(tmp_path) == files(whole)


def test_parts_whose_activations_are_gone_are_gone_through_again(
    checkpoint: Checkpoint, whole: Path, tmp_path: Path
) -> None:
    collect(checkpoint, small_material(), tmp_path, EIGHT)
    (tmp_path / "observed" / "content.npz").unlink()
    collect(checkpoint, small_material(), tmp_path, EIGHT)
    assert files(tmp_path) == files(whole)


def test_a_finished_run_is_read_and_not_run(checkpoint: Checkpoint, whole: Path) -> None:
    seen: list[tuple[int, int]] = []
    collect(checkpoint, small_material(), whole, EIGHT, on_progress=lambda w, d, t, n: seen.append((d, t)))
    ((done, total),) = seen
    assert done == total


def test_batches_do_not_change_which_rows_are_sampled() -> None:
    rows = torch.randn(1000, 3)
    at_once, in_parts = RowSample(), RowSample()
    at_once.add(rows)
    for part in rows.split([1, 5, 300, 694]):
        in_parts.add(part)
    np.testing.assert_array_equal(at_once.rows(), in_parts.rows())
    assert at_once.rows().shape == (SAMPLE_ROWS, 3)


def test_the_folder_of_another_run_is_refused_and_replaced_when_asked(
    checkpoint: Checkpoint, whole: Path
) -> None:
    before = files(whole)
    with pytest.raises(ScalesError, match=r"other clips or questions; expected the same\. Pass --replace"):
        collect(checkpoint, small_material(seed=9), whole, EIGHT)
    with pytest.raises(ScalesError, match="other formats and migration"):
        collect(checkpoint, small_material(), whole, CalibrationOptions("int8", "fp8", migrate=False))
    assert files(whole) == before
    collect(checkpoint, small_material(seed=9), whole, EIGHT, replace=True)
    assert files(whole).keys() == before.keys()
    collect(checkpoint, small_material(), whole, EIGHT, replace=True)
    assert files(whole) == before


def test_a_folder_of_other_things_is_left_alone(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "observed").mkdir()
    (tmp_path / "observed" / "my notes.npz").write_text("dear diary")
    for replace in (False, True):
        with pytest.raises(ScalesError, match=r"holds 'my notes\.npz' and no run\.json"):
            collect(checkpoint, small_material(), tmp_path, EIGHT, replace=replace)
    assert (tmp_path / "observed" / "my notes.npz").read_text() == "dear diary"


def test_a_damaged_file_of_a_run_is_told(checkpoint: Checkpoint, whole: Path) -> None:
    file = whole / "observed" / "content.npz"
    sound, alone = file.read_bytes(), io.BytesIO()
    np.save(alone, np.zeros(3))  # one array is no npz: NumPy opens it all the same
    try:
        for damaged in (sound[:2000], b"", alone.getvalue(), sound[:3000] + b"\xff" * 99 + sound[3099:]):
            file.write_bytes(damaged)
            with pytest.raises(ScalesError, match=r"content\.npz cannot be read .* --replace"):
                collect(checkpoint, small_material(), whole, EIGHT)
    finally:
        file.write_bytes(sound)


def test_only_what_gets_a_format_is_watched(checkpoint: Checkpoint, tmp_path: Path) -> None:
    frames = collect(checkpoint, small_material(), tmp_path / "frames", CalibrationOptions("fp8", "none"))
    assert list(frames.graphs) == ["vision", "content", "context"]
    assert not (tmp_path / "frames" / "observed" / "language.lm_head.npz").exists()
    words = collect(checkpoint, small_material(), tmp_path / "words", CalibrationOptions("none", "int4"))
    assert list(words.graphs) == ["llm"]
    one = words.graphs["llm"].observed["model.layers.1.mlp.down_proj"]
    divided = one.channels.mean_square / np.square(1 if one.divisor is None else one.divisor)
    np.testing.assert_allclose(one.importance, divided, rtol=1e-5)
    identity = json.loads((tmp_path / "words" / "observed" / "run.json").read_text())
    assert identity["formats"] == {"llm": "int4"}


# Bad input


@pytest.mark.parametrize(
    ("weight", "named"),
    [
        ("blocks.1.mlp.fc1.weight", r"what enters blocks\.1\.mlp\.fc2 of graph vision is nan"),
        ("blocks.0.mlp.fc2.bias", r"what leaves vision\.blocks\.0 is nan"),
        ("model.layers.1.mlp.gate_proj.weight", r"what enters model\.layers\.1\.mlp\.down_proj of .* is nan"),
        ("model.layers.0.self_attn.k_proj.weight", r"the cache of model\.layers\.0\.self_attn of .* is nan"),
        ("model.vlm_att_val_projector.weight", "what leaves context is nan"),
    ],
)  # fmt: skip
def test_what_is_no_number_names_the_module(weight: str, named: str, tmp_path: Path) -> None:
    folder = write_small(tmp_path / "release")
    changed_weight(folder, weight, lambda tensor: tensor.view(-1)[3:4].fill_(float("nan")))
    with pytest.raises(CheckpointError, match=named):
        collect(open_checkpoint(folder), small_material(), tmp_path / "out", EIGHT)


@pytest.mark.parametrize(("bias", "how"), [(0.0, "always 0"), (1.5, "the same in 204 rows")])
def test_an_input_that_never_varies_names_the_module(bias: float, how: str, tmp_path: Path) -> None:
    folder = write_small(tmp_path / "release")
    changed_weight(folder, "blocks.1.norm2.weight", lambda tensor: tensor.zero_())
    changed_weight(folder, "blocks.1.norm2.bias", lambda tensor: tensor.fill_(bias))
    with pytest.raises(
        ScalesError, match=rf"what enters blocks\.1\.mlp\.fc1 of graph vision is {how}; .* clips"
    ):
        collect(open_checkpoint(folder), small_material(), tmp_path / "out", EIGHT)


def test_too_long_a_prompt_is_told_before_anything_runs(checkpoint: Checkpoint, tmp_path: Path) -> None:
    size = checkpoint.config.vision.image_size
    long = Clip("long", np.zeros((2100, 3, size, size), np.float32), ("What?",))
    with pytest.raises(PromptError, match="a clip of 2100 frames and its question make"):
        collect(checkpoint, Material((long,)), tmp_path / "out", EIGHT)
    assert not (tmp_path / "out").exists()


def test_nothing_to_watch_is_told(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no frame to watch"):
        collect(checkpoint, Material(()), tmp_path, EIGHT)
    with pytest.raises(UsageError, match="neither the frame graphs nor the language model"):
        CalibrationOptions("none", "none")
