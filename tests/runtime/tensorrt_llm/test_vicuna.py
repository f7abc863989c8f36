"""A TensorRT-LLM Vicuna answers as the PyTorch model does, through either backend's released interface."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llamavid.errors import CheckpointError, DeviceError, PromptError, UsageError
from llamavid.export.huggingface import HuggingFaceOptions, export_huggingface
from llamavid.export.to_trtllm import export_trtllm
from llamavid.export.trtllm_options import TrtllmOptions
from llamavid.model.llamavid import LlamaVid, model_from_checkpoint
from llamavid.prompt import conversation, movie
from llamavid.runtime import tensorrt_llm
from llamavid.runtime.assembly import FrameTokens
from llamavid.runtime.tensorrt_llm.prompt_rows import ids_with_rows, rows_of
from llamavid.runtime.tensorrt_llm.vicuna import Vicuna, open_vicuna
from llamavid.sampling import Sampling
from llamavid.tokenizer import SLOT_ID
from tests.conftest import golden_checkpoint
from tests.runtime.tensorrt_llm import stand_in
from tests.runtime.tensorrt_llm.stand_in import API

ROOM = Path(tensorrt_llm.__file__).parent
FRAMES, TOKENS = 3, 12


@dataclass(frozen=True)
class Asked:
    """A prompt with frames, and what the PyTorch model says."""

    model: LlamaVid
    ids: np.ndarray[Any, Any]
    tokens: FrameTokens
    answer: list[int]
    text: str


def asked(family: str, *, slots: str = "one", seed: int = 0) -> Asked:
    """Frame tokens of a fixed kind; one slot for all, or one for each row with subtitles between."""
    model = model_from_checkpoint(golden_checkpoint(family), dtype=torch.float32, device="cpu").eval()
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn((FRAMES, 2, model.config.language.hidden), generator=generator) * 0.1
    parts = conversation("What is this?")
    if slots == "each":
        parts = movie("What is this?", ["one", "", "two"], tokens_per_frame=2)
    flat = rows.flatten(0, 1)
    sequence = model.sequence(parts, [flat] if slots == "one" else flat[:, None])
    answer = answered(model, sequence)
    tokens = FrameTokens(rows[:, :1].numpy(), rows[:, 1:].numpy())
    ids = model.language_tokenizer.ids(parts)
    return Asked(model, ids, tokens, answer, model.language_tokenizer.text(answer).strip())


def answered(model: LlamaVid, sequence: torch.Tensor) -> list[int]:
    """Token ids without the end's."""
    end = model.config.language.eos_id
    return [token for token in stand_in.greedy(model.language, sequence, TOKENS, end) if token != end]


@pytest.fixture(scope="module", params=["short-video", "long-video"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, family: str) -> dict[str, Path]:
    """The exports of one family in float32, as either backend opens them."""
    at, checkpoint = tmp_path_factory.mktemp("vicuna"), golden_checkpoint(family)
    export_trtllm(checkpoint, at / "checkpoint", options=TrtllmOptions(dtype="float32"))
    engine = stand_in.build(at / "checkpoint", at / "engine")
    export_huggingface(
        checkpoint,
        at / "pytorch",
        options=HuggingFaceOptions(dtype="float32"),
        module=ROOM / "vicuna_module.py",
    )
    return {"checkpoint": at / "checkpoint", "engine": engine, "pytorch": at / "pytorch"}


Open = Callable[..., Vicuna]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in.install(monkeypatch, tmp_path / "site")


@pytest.fixture(params=["engine", "pytorch"])
def vicuna(request: pytest.FixtureRequest, folders: dict[str, Path], installed: None) -> Iterator[Vicuna]:
    with open_vicuna(folders[request.param]) as opened:
        yield opened


# It answers like PyTorch.


@pytest.mark.parametrize("slots", ["one", "each"])
def test_the_answer_is_the_pytorch_models_token_by_token(vicuna: Vicuna, family: str, slots: str) -> None:
    prompt, told = asked(family, slots=slots), list[str]()
    said = vicuna.generate(prompt.ids, prompt.tokens, max_new_tokens=TOKENS, on_text=told.append)
    assert said.token_ids == tuple(prompt.answer)
    assert said.text == prompt.text
    assert "".join(told).strip() == said.text
    assert said.finish_reason == ("length" if len(prompt.answer) == TOKENS else "stop")


def test_another_video_with_as_many_frames_gets_another_answer(vicuna: Vicuna, family: str) -> None:
    """Both prompts have the same ids: a cache found by them would give the first answer again."""
    for seed in (0, 1, 0):
        prompt = asked(family, seed=seed)
        said = vicuna.generate(prompt.ids, prompt.tokens, max_new_tokens=TOKENS)
        assert said.token_ids == tuple(prompt.answer)
    assert asked(family, seed=0).answer != asked(family, seed=1).answer


def test_a_window_of_the_rows_is_read_as_such(vicuna: Vicuna, family: str) -> None:
    prompt = asked(family)
    later = FrameTokens(prompt.tokens.context[1:], prompt.tokens.content[1:])
    windowed = vicuna.generate(prompt.ids, prompt.tokens, max_new_tokens=TOKENS, slots=[range(2, 6)])
    assert windowed == vicuna.generate(prompt.ids, later, max_new_tokens=TOKENS)


def test_a_prompt_of_words_alone_needs_no_rows(vicuna: Vicuna, family: str) -> None:
    model = asked(family).model
    ids = model.language_tokenizer.ids(["What is red?"])
    sequence = model.sequence(["What is red?"], [])
    assert vicuna.generate(ids, max_new_tokens=TOKENS).token_ids == tuple(answered(model, sequence))


@pytest.mark.parametrize("backend", ["engine", "pytorch"])
def test_it_stops_at_the_end_token_and_does_not_say_it(
    backend: str, folders: dict[str, Path], family: str, tmp_path: Path, installed: None
) -> None:
    prompt = asked(family)
    end = prompt.answer[5]
    folder = shutil.copytree(folders[backend], tmp_path / "ends")
    note = json.loads((folder / "vicuna.json").read_text())
    note["language"]["eos_id"] = end
    (folder / "vicuna.json").write_text(json.dumps(note))
    with open_vicuna(folder) as vicuna:
        said = vicuna.generate(prompt.ids, prompt.tokens, max_new_tokens=TOKENS)
        assert said.token_ids == tuple(prompt.answer[: prompt.answer.index(end)])
        assert said.finish_reason == "stop"
        again = vicuna.generate(prompt.ids, prompt.tokens, max_new_tokens=TOKENS)
        assert again == said


def test_text_comes_before_the_answer_is_whole(vicuna: Vicuna, family: str) -> None:
    """A listener that has heard enough stops the answer; the next question is not disturbed by its rest."""
    prompt, told = asked(family), list[str]()

    def listen(text: str) -> None:
        told.append(text)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vicuna.generate(prompt.ids, prompt.tokens, max_new_tokens=TOKENS, on_text=listen)
    assert len(told) == 1
    said = vicuna.generate(prompt.ids, prompt.tokens, max_new_tokens=TOKENS)
    assert said.token_ids == tuple(prompt.answer)


@pytest.mark.usefixtures("installed")
def test_an_interrupted_request_of_the_pytorch_backend_is_aborted(
    folders: dict[str, Path], family: str
) -> None:
    prompt = asked(family)

    def listen(text: str) -> None:
        raise KeyboardInterrupt

    with open_vicuna(folders["pytorch"]) as vicuna, pytest.raises(KeyboardInterrupt):
        vicuna.generate(prompt.ids, prompt.tokens, max_new_tokens=TOKENS, on_text=listen)
    (llm,) = stand_in.LLM.made
    assert [result.aborted for result in llm.results] == [True]
    assert llm.shut_down


@pytest.mark.usefixtures("installed")
def test_sampling_reaches_the_engine_in_its_words(folders: dict[str, Path], family: str) -> None:
    prompt = asked(family)
    with open_vicuna(folders["engine"]) as vicuna:
        vicuna.generate(prompt.ids, prompt.tokens, max_new_tokens=1)
        sampling = Sampling(temperature=0.5, top_p=0.9, seed=7)
        vicuna.generate(prompt.ids, prompt.tokens, max_new_tokens=1, sampling=sampling)
    greedy, drawn = stand_in.ModelRunnerCpp.calls
    assert greedy["top_k"] == 1
    assert "temperature" not in greedy
    assert (drawn["temperature"], drawn["top_p"], drawn["random_seed"], drawn["top_k"]) == (0.5, 0.9, 7, 0)


# The interface is the recorded one.


def test_every_name_taken_from_tensorrt_llm_is_in_the_recording() -> None:
    taken = []
    for file in ROOM.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tensorrt_llm"):
                taken += [(node.module, alias.name) for alias in node.names]
            elif (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "tensorrt_llm"
            ):
                taken.append(("tensorrt_llm", node.attr))
    assert ("tensorrt_llm.runtime", "ModelRunnerCpp") in taken
    assert ("tensorrt_llm", "mpi_rank") in taken
    assert [pair for pair in taken if pair[1] not in API["names"][pair[0]]] == []


@pytest.mark.usefixtures("installed")
def test_the_registered_classes_have_the_methods_that_the_backend_calls() -> None:
    import inspect

    from llamavid.runtime.tensorrt_llm.vicuna_module import FrameTokenInputs, LlamaVidVicuna

    for method, parameters in API["model methods"].items():
        found = list(inspect.signature(getattr(LlamaVidVicuna, method)).parameters)[1:]
        assert found == [name if name != "**" else "kwargs" for name in parameters]
    for method in ("attach_multimodal_embeddings", "__call__"):
        found = list(inspect.signature(getattr(FrameTokenInputs, method)).parameters)[1:]
        assert found == API["parameters"][f"BaseMultimodalInputProcessor.{method}"]
    assert not FrameTokenInputs.__abstractmethods__
    assert set(API["abstract"]["BaseMultimodalInputProcessor"]) <= set(dir(FrameTokenInputs))


def test_a_call_by_a_name_that_was_never_released_is_caught() -> None:
    """The guard itself: without it the tests above would accept anything."""
    with pytest.raises(TypeError, match="prompt_tabel"):
        stand_in.recorded_signature("ModelRunnerCpp.generate").bind([], prompt_tabel=None)
    with pytest.raises(TypeError):
        stand_in.recorded_signature("ModelRunnerCpp.generate").bind([], 3)


# What does not fit is one line.


def test_a_prompt_longer_than_the_engine_is_told_before_it_runs(vicuna: Vicuna, family: str) -> None:
    prompt = asked(family)
    limit = prompt.model.config.language.context_length
    with pytest.raises(PromptError, match=f"at most {limit}, what this Vicuna was built for"):
        vicuna.generate(prompt.ids, prompt.tokens, max_new_tokens=limit)


@pytest.mark.usefixtures("installed")
def test_more_rows_than_the_prompt_table_are_told(
    folders: dict[str, Path], family: str, tmp_path: Path
) -> None:
    engine = stand_in.build(folders["checkpoint"], tmp_path / "small", max_rows=5)
    prompt = asked(family)
    with open_vicuna(engine) as vicuna, pytest.raises(PromptError, match=r"6 rows; expected at most 5"):
        vicuna.generate(prompt.ids, prompt.tokens, max_new_tokens=1)


def test_frame_tokens_of_another_model_are_refused(vicuna: Vicuna, family: str) -> None:
    wide = np.zeros((2, 1, 64), np.float32)
    with pytest.raises(UsageError, match="width 64; expected 128"):
        vicuna.generate(asked(family).ids, FrameTokens(wide, wide), max_new_tokens=1)


@pytest.mark.parametrize(
    ("version", "backend", "said"),
    [
        ("1.1.0", "engine", "TensorRT-LLM 1.1.0 is installed; expected 1.2"),
        ("1.3.0rc20", "engine", "1.3.0rc20 is installed; expected 1.2, the last that runs engines"),
        ("1.2.0", "pytorch", "TensorRT-LLM 1.2.0 is installed; expected 1.2.1 or later"),
    ],
)
def test_another_tensorrt_llm_is_named_with_the_next_step(
    version: str,
    backend: str,
    said: str,
    folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    stand_in.install(monkeypatch, tmp_path / "site", version=version)
    with pytest.raises(DeviceError, match=said) as error:
        open_vicuna(folders[backend])
    assert "docker/a100" in str(error.value)


@pytest.mark.parametrize("backend", ["engine", "pytorch"])
def test_without_tensorrt_llm_it_says_where_there_is_one(backend: str, folders: dict[str, Path]) -> None:
    with pytest.raises(DeviceError, match=r"not installed; expected 1\.2\.1.*docker/a100; on a Jetson"):
        open_vicuna(folders[backend])


@pytest.mark.usefixtures("installed")
def test_an_engine_of_another_version_is_not_loaded(folders: dict[str, Path], tmp_path: Path) -> None:
    engine = stand_in.build(folders["checkpoint"], tmp_path / "old", version="1.2.0")
    with pytest.raises(CheckpointError, match=r"of TensorRT-LLM 1\.2\.0; expected 1\.2\.1"):
        open_vicuna(engine)


@pytest.mark.usefixtures("installed")
def test_an_engine_of_another_model_is_not_loaded(folders: dict[str, Path], tmp_path: Path) -> None:
    engine = stand_in.build(folders["checkpoint"], tmp_path / "other")
    config = json.loads((engine / "config.json").read_text())
    config["pretrained_config"]["vocab_size"] = 32000
    (engine / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="vocab_size 448"):
        open_vicuna(engine)


@pytest.mark.usefixtures("installed")
def test_a_checkpoint_is_told_from_an_engine(folders: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match=r"is a checkpoint, not an engine\. Run the trtllm-build line"):
        open_vicuna(folders["checkpoint"])


def test_two_gpus_need_two_processes(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stand_in.install(monkeypatch, tmp_path / "site", processes=2)
    with pytest.raises(DeviceError, match="runs 2 times; expected 1 times, once for each GPU"):
        open_vicuna(folders["engine"])


@pytest.mark.usefixtures("installed")
def test_a_plain_llama_and_a_strange_folder_are_no_vicuna_of_tensorrt_llm(tmp_path: Path) -> None:
    export_huggingface(golden_checkpoint("short-video"), tmp_path / "plain")
    with pytest.raises(CheckpointError, match="--format pytorch or --format engine"):
        open_vicuna(tmp_path / "plain")
    with pytest.raises(CheckpointError, match=r"holds no vicuna\.json"):
        open_vicuna(tmp_path)
    (tmp_path / "plain" / "vicuna.json").write_text('{"format_version": 2}')
    with pytest.raises(CheckpointError, match="format_version is 2, not 1"):
        open_vicuna(tmp_path / "plain")


@pytest.mark.parametrize(
    ("ids", "rows", "slots", "said"),
    [
        ([1, SLOT_ID, SLOT_ID], 3, None, "2 slots for 3 rows of frames, ranges of them: none"),
        ([1, SLOT_ID], 3, [range(2, 4)], "rows range"),
        ([1, 500], 0, None, "token id 500; expected one from 0 to 447"),
        ([1, 2], 3, None, "0 slots for 3 rows"),
    ],
)
def test_slots_and_rows_that_do_not_fit_are_refused(
    ids: list[int], rows: int, slots: list[range] | None, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        ids_with_rows(np.array(ids), rows, vocab_size=448, slots=slots)


def test_rows_are_numbered_frame_by_frame_context_first() -> None:
    context, content = np.array([[[0.0]], [[3.0]]]), np.array([[[1.0], [2.0]], [[4.0], [5.0]]])
    assert rows_of(FrameTokens(context, content), width=1).ravel().tolist() == [0, 1, 2, 3, 4, 5]
    ids = ids_with_rows(np.array([1, SLOT_ID, 9]), 6, vocab_size=32000)
    assert ids.tolist() == [1, 32000, 32001, 32002, 32003, 32004, 32005, 9]
