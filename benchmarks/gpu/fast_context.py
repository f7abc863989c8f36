"""Context attention in fewer products. Equal to `Compressor.context_tokens` after `text_query`.

    scores = q (Wk x + bk) = (q Wk) x + a constant, which softmax drops; and q = Wq h + bq: so one matrix
    Wk^T Wq / sqrt(C) takes hidden rows [T, M, H] to what meets the patches themselves.

256 rows times a 1408 x 1408 matrix become 32 rows, and the mean over M is taken of the weights, before they
meet the patches (facts section 11).
"""

from __future__ import annotations

from torch import Tensor, nn

from benchmarks.gpu.compiling import Compile, not_compiled
from benchmarks.gpu.fast_encoder import Dense
from llamavid.model.compressor import Compressor


class FastContext(nn.Module):
    """features [T, R, C] and hidden [T, M, H] -> context tokens [T, 1, D]."""

    def __init__(
        self,
        plain: Compressor,
        *,
        folded_keys: bool = True,
        averaged_weights: bool = True,
        compile: Compile = not_compiled,
    ) -> None:
        super().__init__()
        self.plain, self.patches = plain, plain.config.vision.patches
        self.folded_keys, self.averaged_weights = folded_keys, averaged_weights
        self.query = _folded(plain)
        self.run = compile(_tokens)

    def forward(self, features: Tensor, hidden: Tensor) -> Tensor:
        return self.run(self, features, hidden)

    def scores(self, patches: Tensor, hidden: Tensor) -> Tensor:
        if self.folded_keys:
            return self.query(hidden) @ patches.transpose(1, 2)
        query = self.plain.query_projector(hidden)
        return query @ self.plain.key_projector(patches).transpose(1, 2) / patches.shape[-1] ** 0.5


def _tokens(own: FastContext, features: Tensor, hidden: Tensor) -> Tensor:
    patches = features[:, -own.patches :]
    weights = own.scores(patches, hidden).softmax(dim=-1)
    if own.averaged_weights:
        gathered = weights.mean(dim=1, keepdim=True) @ patches
    else:
        gathered = (weights @ patches).mean(dim=1, keepdim=True)
    return own.plain.value_projector(gathered)


def _folded(plain: Compressor) -> Dense:
    """Multiplied in float32, stored in the dtype of the weights."""
    query, key = plain.query_projector, plain.key_projector.weight.float()
    scale = key.shape[0] ** -0.5
    weight, bias = key.t() @ query.weight.float() * scale, query.bias.float() @ key * scale
    dtype = query.weight.dtype
    return Dense(weight.to(dtype), bias.to(dtype))
