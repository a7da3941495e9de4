"""What needs torch says so, and by name, where there is none; the rest of raylog does not ask for it."""

import subprocess
import sys

PROGRAM = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

sys.meta_path.insert(0, Missing())
import raylog

assert raylog.CheckpointManager and raylog.StreamingDataset and raylog.connect
for use in (
    lambda: raylog.StreamingDataLoader,
    lambda: raylog.RaylogStorageWriter,
    lambda: raylog.StreamingDataset("a", batch_size=1),
):
    try:
        use()
    except raylog.UsageError as error:
        print(error)
"""


def test_what_needs_torch_says_so() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == [
        "raylog.StreamingDataLoader needs torch, which is not installed here: pip install torch",
        "raylog.RaylogStorageWriter needs torch, which is not installed here: pip install torch",
        "output='torch' needs torch, which is not installed here: ask for 'numpy' or 'arrow'",
    ]
