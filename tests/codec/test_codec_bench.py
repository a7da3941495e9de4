"""The benchmark runs, and says what it must say."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_codec_benchmark_answers_in_json() -> None:
    command = [sys.executable, str(ROOT / "bench" / "codec.py"), "--json", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    result = json.loads(done.stdout)
    for payload in ("text", "tokens_int64", "tokens_int32", "weights_bf16", "random_bytes"):
        assert result[payload]["ratio_put"] > 0 and result[payload]["raylog_get_gb_s"] > 0
    assert set(result["text"]["chunks"]) == {"lz4"}
    assert result["random_bytes"]["chunks"]["none"] >= 4
