"""Two threads wait for each other longer than tiny products take, where the machine does other work too.

Of a whole module, so that its fixtures have one too: another number of threads sums in another order.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
