"""The README.md of an exported Vicuna: how to feed it, and what an engine gets wrong in silence."""

from __future__ import annotations

import json

from llamavid.config import LanguageConfig
from llamavid.vicuna_folder import MODULE, VicunaFormat

_OPENING = """\
# The Vicuna of {checkpoint}

The language model of a LLaMA-VID checkpoint alone, in the layout of a plain LLaMA. It reads text like any
Vicuna v1.5. Frames reach it as embeddings: for each frame its context token, then its content tokens, rows
of {hidden} numbers in place of `<image>`. `llamavid` makes them; an engine that takes no embeddings can read
text only.
"""
_ROPE = """\
## RoPE is linear

Positions are divided by {factor:g}; the context is {length} tokens. An engine that ignores `rope_scaling`
answers, and answers nonsense: compare its logits with transformers' before anything else.

**TensorRT Edge-LLM 0.11 ignores `linear` without a word.** There write in `config.json`

```json
"rope_scaling": {proportional}
```

which is the same mathematics: with a partial factor of 1 every frequency is divided by the factor. Nobody has
run it there yet. Its runtime takes pixels, not embeddings, so frames need its engine's own inputs.
"""
_PYTORCH = """\
## For TensorRT-LLM's PyTorch backend (1.2.1 and later)

`{module}/` registers the architecture that `config.json` names, and takes frame tokens as multimodal
embeddings. The runner of `llamavid` loads it, on one GPU. `trtllm-serve` loads it with
`--custom_module_dirs {module}`; give it two more settings:

- `max_seq_len: {length}`. `max_position_embeddings` is the extended length here, because the RoPE table has
  so many rows; where RoPE is linear the backend would multiply it by the factor again.
- `kv_cache_config: {{enable_block_reuse: false}}`. All frames have one placeholder id, so two videos look
  alike to the cache.
"""
_LICENCE = """\
## Licence

LLaMA-VID's published weights are CC BY-NC 4.0, and so is a folder made of them.
"""


def readme(language: LanguageConfig, checkpoint: str, kind: VicunaFormat) -> str:
    """Markdown for people who load the folder with their own engine."""
    factor, length = language.rope_factor, language.context_length
    parts = [_OPENING.format(checkpoint=checkpoint, hidden=language.hidden)]
    if factor != 1:
        proportional = json.dumps(
            {"rope_type": "proportional", "factor": factor, "partial_rotary_factor": 1.0}
        )
        parts.append(_ROPE.format(factor=factor, length=length, proportional=proportional))
    if kind is VicunaFormat.PYTORCH:
        parts.append(_PYTORCH.format(module=MODULE, length=length))
    return "\n".join([*parts, _LICENCE])
