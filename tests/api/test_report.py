"""`raylog.report` without a cluster, and its mistakes; with one: cluster/test_reports.py."""

from typing import Any

import numpy as np
import pytest

import raylog
from raylog.errors import UsageError

torch = pytest.importorskip("torch")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"step": -1}, "expected step to be an integer from 0, got -1"),
        ({"step": 1.5}, "got 1.5"),
        ({"step": None}, "got None"),
        ({"step": True}, "got True"),
        ({"samples": -8}, "expected samples to be an integer from 0, got -8"),
        ({"tokens": "many"}, "expected tokens to be an integer from 0, got 'many'"),
        ({"loss": "2.5"}, "expected loss to be a number or a tensor of one real number, got str"),
        ({"loss": torch.zeros(2)}, "got Tensor"),
        ({"loss": False}, "got bool"),
        ({"rank": 1}, "rank and world_size together"),
        ({"rank": 2, "world_size": 2}, "expected a rank from 0 to world_size - 1"),
    ],
)
def test_mistakes(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        raylog.report(**({"step": 1} | wrong))


@pytest.mark.parametrize("loss", [None, 2, 2.5, np.float32(2.5), torch.tensor(2.5), torch.tensor([2.5]), float("nan")])
def test_without_a_cluster_it_says_what_to_call_first(loss: Any) -> None:
    with pytest.raises(UsageError, match=r"call raylog\.connect\(\) first"):
        raylog.report(step=np.int64(1), samples=np.int32(8), tokens=0, loss=loss)
