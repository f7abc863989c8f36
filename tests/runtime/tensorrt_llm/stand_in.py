"""A stand-in of TensorRT-LLM 1.2: its recorded signatures, behind them a LLaMA of transformers on the CPU.

It answers what the exported files mean, read by the tests' own reader, and it takes a call only by the
parameters in `api_1_2.json`. It behaves as the source was read: how prompts are routed, who refuses ids above
the vocabulary, that unfetched responses disturb the next request, how long a RoPE table is.
"""

from __future__ import annotations

import functools
import inspect
import json
import shutil
import sys
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, DynamicCache
from transformers import LlamaForCausalLM as Llama

from tests.export.trtllm_reader import read_trtllm

API: dict[str, Any] = json.loads((Path(__file__).parent / "api_1_2.json").read_text())
Kind = inspect.Parameter
Call = Callable[..., Any]


def recorded_signature(name: str) -> inspect.Signature:
    """Of the released function: every parameter optional, as only names are recorded."""
    kind, parameters = Kind.POSITIONAL_OR_KEYWORD, []
    for parameter in API["parameters"][name]:
        if parameter == "*":
            kind = Kind.KEYWORD_ONLY
        elif parameter == "**":
            parameters.append(Kind("more", Kind.VAR_KEYWORD))
        else:
            parameters.append(Kind(parameter, kind, default=None))
    return inspect.Signature(parameters)


def recorded(name: str, *, method: bool = True) -> Callable[[Call], Call]:
    """Refuses arguments that the released function does not take."""

    def guard(function: Call) -> Call:
        signature = recorded_signature(name)

        @functools.wraps(function)
        def checked(*arguments: Any, **named: Any) -> Any:
            signature.bind(*arguments[1:] if method else arguments, **named)
            return function(*arguments, **named)

        return checked

    return guard


def build(checkpoint: Path, engine: Path, *, version: str = "1.2.1", max_rows: int | None = None) -> Path:
    """What the trtllm-build line leaves behind, as far as the runner looks."""
    config = json.loads((checkpoint / "config.json").read_text())
    length = config["max_position_embeddings"]
    built = {"max_seq_len": length, "max_prompt_embedding_table_size": max_rows or length}
    engine.mkdir()
    document = {"version": version, "pretrained_config": config, "build_config": built}
    (engine / "config.json").write_text(json.dumps(document))
    shutil.copytree(checkpoint, engine / "as_it_was")
    for name in ("vicuna.json", "tokenizer.model"):
        shutil.copyfile(checkpoint / name, engine / name)
    return engine


def greedy(model: Llama, sequence: Tensor, tokens: int, end_id: int) -> Iterator[int]:
    """Embeddings [1, L, D] -> ids, the end's included."""
    cache, step = DynamicCache(config=model.config), sequence
    for _ in range(tokens):
        with torch.inference_mode():
            output = model(inputs_embeds=step, past_key_values=cache, use_cache=True)
        token = int(output.logits[0, -1].argmax())
        yield token
        if token == end_id:
            return
        step = model.model.embed_tokens(torch.tensor([[token]]))


class ModelRunnerCpp:
    calls: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, folder: Path) -> None:
        self._model = read_trtllm(folder / "as_it_was")
        built = json.loads((folder / "config.json").read_text())
        self.dtype = getattr(torch, built["pretrained_config"]["dtype"])
        self.max_sequence_length = built["build_config"]["max_seq_len"]
        self.max_prompt_embedding_table_size = built["build_config"]["max_prompt_embedding_table_size"]
        self._unfetched = False

    @classmethod
    @recorded("ModelRunnerCpp.from_dir")
    def from_dir(cls, engine_dir: str, **settings: Any) -> ModelRunnerCpp:
        assert settings.get("rank", 0) == 0
        assert not settings.get("kv_cache_enable_block_reuse"), "two videos have the same ids"
        return cls(Path(engine_dir))

    @recorded("ModelRunnerCpp.generate")
    def generate(self, batch_input_ids: list[Tensor], **settings: Any) -> Iterator[dict[str, Tensor]]:
        assert not self._unfetched, "a response of an earlier request"
        ModelRunnerCpp.calls.append(settings)
        (ids,) = batch_input_ids
        assert ids.dtype is torch.int32
        assert ids.ndim == 1
        return self._stream(ids.long(), settings)

    def _stream(self, ids: Tensor, settings: dict[str, Any]) -> Iterator[dict[str, Tensor]]:
        table, vocab = settings["prompt_table"], self._model.config.vocab_size
        embedded = self._model.model.embed_tokens(ids.clamp(max=vocab - 1))
        if table is not None:
            assert table.dtype is self.dtype
            assert (table.ndim, settings["prompt_tasks"]) == (3, "0")
            embedded = torch.where(
                (ids >= vocab)[:, None], table[0][(ids - vocab).clamp(min=0)].float(), embedded
            )
        end, sequence = settings["end_id"], ids.tolist()
        self._unfetched = True
        for token in greedy(self._model, embedded[None], settings["max_new_tokens"], end):
            sequence.append(token)
            padded = [*sequence, *[end] * 8]
            yield {
                "output_ids": torch.tensor([[padded]]),
                "sequence_lengths": torch.tensor([[len(sequence)]]),
            }
        self._unfetched = False


# The PyTorch backend.


class DecoderModelForCausalLM(nn.Module):
    """Whose prompts the executor checks against the vocabulary."""


class LlamaForCausalLM(DecoderModelForCausalLM):
    @recorded("LlamaForCausalLM")
    def __init__(self, model_config: Any) -> None:
        super().__init__()
        self.config = model_config.pretrained_config
        self._llama = Llama(self.config).eval()
        self.model = self._llama.model
        self._cache = DynamicCache(config=self.config)
        self.vocab_size_padded = self.config.vocab_size

    @recorded("LlamaForCausalLM.load_weights")
    def load_weights(self, weights: dict[str, Tensor]) -> None:
        self._llama.load_state_dict({name: one.float() for name, one in weights.items()}, strict=True)

    @recorded("LlamaForCausalLM.infer_max_seq_len")
    def infer_max_seq_len(self) -> int:
        factor = self.config.rope_parameters.get("factor", 1.0)
        return int(self.config.max_position_embeddings * factor)

    @recorded("LlamaForCausalLM.forward")
    def forward(
        self,
        attn_metadata: Any,
        input_ids: Tensor | None,
        position_ids: Tensor,
        inputs_embeds: Tensor | None,
        return_context_logits: bool,
    ) -> Tensor:
        assert int(position_ids.max()) < self.config.max_position_embeddings, "beyond the RoPE table"
        if attn_metadata.num_contexts:
            self._cache = DynamicCache(config=self.config)
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.model.embed_tokens(input_ids)
        output = self._llama(
            inputs_embeds=inputs_embeds[None].float(), past_key_values=self._cache, use_cache=True
        )
        logits: Tensor = output.logits[:, -1]
        return logits


@recorded("find_input_mm_embeds", method=False)
def find_input_mm_embeds(mm_embeds: list[Tensor], multimodal_params: list[Any]) -> list[Tensor]:
    assert len(mm_embeds) == len(multimodal_params)
    return mm_embeds


@recorded("fuse_input_embeds", method=False)
def fuse_input_embeds(
    embedding_layer: nn.Embedding, input_ids: Tensor, mm_embeds: Sequence[Tensor], **more: Any
) -> tuple[Tensor | None, Tensor | None]:
    if not mm_embeds:
        return input_ids, None
    rows, places = torch.cat(list(mm_embeds)), input_ids >= embedding_layer.num_embeddings
    if int(places.sum()) != len(rows):
        raise ValueError("Multimodal token count mismatch")
    fused = embedding_layer(torch.where(places, 0, input_ids)).detach().clone()
    fused[places] = rows.to(fused.dtype)
    return None, fused


MODELS: dict[str, type[nn.Module]] = {}
PROCESSORS: dict[type[nn.Module], type[Any]] = {}


@recorded("register_auto_model", method=False)
def register_auto_model(name: str) -> Callable[[type[nn.Module]], type[nn.Module]]:
    def register(model: type[nn.Module]) -> type[nn.Module]:
        return MODELS.setdefault(name, model)

    return register


@recorded("register_input_processor", method=False)
def register_input_processor(
    processor_cls: type[Any], model_type: str, placeholder_metadata: Any
) -> Callable[[type[nn.Module]], type[nn.Module]]:
    assert isinstance(placeholder_metadata, MultimodalPlaceholderMetadata)

    def register(model: type[nn.Module]) -> type[nn.Module]:
        PROCESSORS[model] = processor_cls
        return model

    return register


@dataclass(frozen=True)
class MultimodalPlaceholderMetadata:
    placeholder_map: dict[str, str] = field(default_factory=dict)


class BaseMultimodalInputProcessor(ABC):
    @recorded("BaseMultimodalInputProcessor")
    def __init__(self, model_path: str, config: Any, tokenizer: Any, trust_remote_code: bool = True) -> None:
        self._config, self._tokenizer, self._model_path = config, tokenizer, model_path

    @property
    @abstractmethod
    def processor(self) -> Any: ...

    @property
    @abstractmethod
    def tokenizer(self) -> Any: ...

    @property
    @abstractmethod
    def config(self) -> Any: ...

    @property
    @abstractmethod
    def dtype(self) -> Any: ...

    @abstractmethod
    def __call__(self, inputs: Any, sampling_params: Any) -> Any: ...


class Recorded:
    """An object that only holds what it was called with."""

    name = ""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.given = recorded_signature(self.name).bind(*arguments, **named).arguments


class KvCacheConfig(Recorded):
    name = "KvCacheConfig"


class SamplingParams(Recorded):
    name = "SamplingParams"


@dataclass
class RequestOutput:
    steps: Iterator[int]
    finished: bool = False
    aborted: bool = False
    outputs: list[Any] = field(default_factory=lambda: [types.SimpleNamespace(token_ids=[])])

    def __iter__(self) -> Iterator[RequestOutput]:
        for token in self.steps:
            self.outputs[0].token_ids = [*self.outputs[0].token_ids, token]
            yield self
        self.finished = True

    @recorded("RequestOutput.abort")
    def abort(self) -> None:
        self.aborted = True


class LLM:
    made: ClassVar[list[LLM]] = []

    @recorded("LLM")
    def __init__(self, model: str, **settings: Any) -> None:
        assert not settings["kv_cache_config"].given["enable_block_reuse"], "two videos have the same ids"
        assert settings["skip_tokenizer_init"]
        config = AutoConfig.from_pretrained(model)
        architecture = MODELS[json.loads((Path(model) / "config.json").read_text())["architectures"][0]]
        self._model = architecture(types.SimpleNamespace(pretrained_config=config))
        weights: dict[str, Tensor] = {}
        for file in sorted(Path(model).glob("*.safetensors")):
            weights |= load_file(file)
        self._model.load_weights(weights)
        assert settings["max_seq_len"] <= config.max_position_embeddings, "beyond the RoPE table"
        self._processor = PROCESSORS[architecture](model, config, None, trust_remote_code=True)
        self.settings, self.results, self.shut_down = settings, list[RequestOutput](), False
        LLM.made.append(self)

    @recorded("LLM.generate_async")
    def generate_async(
        self, inputs: dict[str, Any], sampling_params: SamplingParams, streaming: bool
    ) -> RequestOutput:
        assert streaming
        assert "prompt_token_ids" not in inputs, "1.2 leaves the embeddings out, or turns ids into text"
        ids, extra = self._processor.attach_multimodal_embeddings(
            inputs, inputs["multi_modal_embeddings"], sampling_params
        )
        if isinstance(self._model, DecoderModelForCausalLM):
            raise ValueError("Token ID out of range")
        data = (extra or {}).get("multimodal_data")
        result = RequestOutput(self._steps(ids, data, sampling_params.given))
        self.results.append(result)
        return result

    @recorded("LLM.shutdown")
    def shutdown(self) -> None:
        self.shut_down = True

    def _steps(self, ids: list[int], data: Any, sampling: dict[str, Any]) -> Iterator[int]:
        request = types.SimpleNamespace(multimodal_data=data, multimodal_input=None, multimodal_runtime=None)
        given, positions, contexts = torch.tensor(ids), torch.arange(len(ids)), 1
        for _ in range(sampling["max_tokens"]):
            logits = self._model(
                types.SimpleNamespace(num_contexts=contexts),
                input_ids=given,
                position_ids=positions,
                multimodal_params=[request] if contexts and data else [],
            )
            token = int(logits[0].argmax())
            yield token
            if token == sampling["end_id"]:
                return
            given, positions, contexts = torch.tensor([token]), positions[-1:] + 1, 0


def install(
    monkeypatch: pytest.MonkeyPatch, folder: Path, *, version: str = "1.2.1", processes: int = 1
) -> None:
    """Makes `import tensorrt_llm` find the stand-in, of a version and with so many MPI processes."""
    described = folder / f"tensorrt_llm-{version}.dist-info"
    described.mkdir(parents=True)
    (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tensorrt_llm\nVersion: {version}\n")
    monkeypatch.syspath_prepend(str(folder))
    own = {**globals(), "mpi_rank": lambda: 0, "mpi_world_size": lambda: processes}
    for module, names in API["names"].items():
        parts = module.split(".")
        for depth in range(1, len(parts) + 1):
            name = ".".join(parts[:depth])
            if name not in sys.modules:
                monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        for name in names:
            if name in own:
                setattr(sys.modules[module], name, own[name])
    # A class of its own for each stand-in, which it is registered with.
    monkeypatch.delitem(sys.modules, "llamavid.runtime.tensorrt_llm.vicuna_module", raising=False)
    MODELS.clear()
    PROCESSORS.clear()
    ModelRunnerCpp.calls.clear()
    LLM.made.clear()
    monkeypatch.setenv("TLLM_WORKER_USE_SINGLE_PROCESS", "1")
