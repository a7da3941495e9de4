"""Train a small language model: ray job submit -- python jobs/train.py --data NAME --checkpoint NAME [--workers 2]

Ray Train runs the workers, on CPUs. Each streams its share of the table --data, whose column `tokens` has lists of
bytes of one length, and reports every step for 'raylog status'; where there is no such table, one is made of the
sources of Python's standard library. Every --every steps and at the end they save model, optimizer, random numbers and
their place in the data. A worker that dies is replaced, a job that was killed is resumed by the same command, on as
many workers, and both go on exactly from the last checkpoint. The last line is one JSON object: the steps at which it
began and ended, the loss at the end, the seconds it took. Exit status: see 'raylog --help'.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context
from ray.train.torch import TorchConfig, TorchTrainer, prepare_model
from torch import Tensor, nn

import raylog
from raylog.demo import standard_library
from raylog.jobs import run

LENGTH = 128  # of a sample; its row has one token more, which is only foretold
LEARNING_RATE = 3e-3
RESTARTS = 3  # of the workers, within one job


class LanguageModel(nn.Module):
    """Foretells each byte from those before it."""

    def __init__(self, width: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 256)

    def forward(self, tokens: Tensor) -> Tensor:
        length, width = tokens.shape[1], self.embedding.embedding_dim
        angles = torch.arange(length)[:, None] / 10_000 ** (torch.arange(0, width, 2) / width)
        inputs = self.embedding(tokens) + torch.cat([angles.sin(), angles.cos()], dim=1)
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        found: Tensor = self.head(self.blocks(inputs, mask, is_causal=True))
        return found


def train(config: dict[str, Any]) -> dict[str, object]:
    """What each worker does; rank 0's answer is the job's."""
    torch.set_num_threads(1)  # sums in one order: a run that was resumed has the same losses, bit for bit
    torch.manual_seed(1)
    network = LanguageModel()
    model = prepare_model(network)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
    torch.manual_seed(get_context().get_world_rank())  # dropout differs from rank to rank

    dataset = raylog.StreamingDataset(
        config["data"], batch_size=config["batch"], columns=["tokens"], dtypes={"tokens": "int64"}, drop_last=True
    )
    with dataset, raylog.CheckpointManager(config["checkpoint"], keep=3) as checkpoints:
        step = began = 0
        if (state := checkpoints.load()) is not None:
            network.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            dataset.load_state_dict(state["stream"])
            torch.set_rng_state(state["random"])
            step = began = state["step"]
        loss = None
        while step < config["steps"]:
            for batch in dataset:
                loss = learn(model, optimizer, batch["tokens"])
                step += 1
                raylog.report(step=step, samples=len(batch["tokens"]), tokens=batch["tokens"].numel(), loss=loss)
                if config["losses"] and dataset.rank == 0:
                    append(Path(config["losses"]), {"step": step, "loss": loss.item()})
                if step % config["every"] == 0 or step == config["steps"]:
                    state = {"model": network.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                    checkpoints.save(step, state | {"stream": dataset.state_dict(), "random": torch.get_rng_state()})
                if step == config["steps"]:
                    break
    return {"began_at_step": began, "step": step, "loss": None if loss is None else loss.item()}


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, tokens: Tensor) -> Tensor:
    """One step; the loss before it."""
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    optimizer.step()
    return loss.detach()


def append(path: Path, line: dict[str, object]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def sources() -> pa.Table:
    """The sources of Python's standard library as rows of bytes."""
    text = "\0".join(standard_library()["text"].to_pylist()).encode()
    rows = len(text) // (LENGTH + 1)
    values = pa.array(np.frombuffer(text, np.uint8)[: rows * (LENGTH + 1)])
    return pa.table({"tokens": pa.FixedSizeListArray.from_arrays(values, LENGTH + 1)})


def main(arguments: argparse.Namespace) -> dict[str, object]:
    started_s = time.monotonic()
    wrong = [name for name in ("steps", "workers", "batch", "every") if getattr(arguments, name) < 1]
    if wrong:
        raise raylog.UsageError(f"expected numbers from 1, got less for --{' and --'.join(wrong)}")
    with raylog.connect() as client, tempfile.TemporaryDirectory() as folder:
        try:
            data = client.stat(arguments.data)
        except raylog.NotFound:
            data = client.put(arguments.data, sources())
        if data.rows < arguments.workers * arguments.batch:
            raise raylog.UsageError(f"expected rows for a batch on each worker in {data}, got {data.rows}")
        trainer = TorchTrainer(
            train,
            train_loop_config=vars(arguments),
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ScalingConfig(num_workers=arguments.workers),
            run_config=RunConfig(
                name=arguments.checkpoint.replace("/", "-"),
                storage_path=folder,  # of Ray Train's own, which holds nothing here
                failure_config=FailureConfig(max_failures=RESTARTS),
            ),
        )
        found: dict[str, object] = trainer.fit().return_value
    return {"trained": found, "seconds": time.monotonic() - started_s}


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", required=True, metavar="NAME", help="table of token rows; made where it is not there")
parser.add_argument("--checkpoint", required=True, metavar="NAME", help="artifact to save to and to resume from")
parser.add_argument("--steps", type=int, default=1000, help="in all, those before a resume included (default 1000)")
parser.add_argument("--workers", type=int, default=2, help="ranks (default 2)")
parser.add_argument("--batch", type=int, default=32, help="samples of a step on each rank (default 32)")
parser.add_argument("--every", type=int, default=50, help="steps from one checkpoint to the next (default 50)")
parser.add_argument("--losses", metavar="FILE", help="rank 0 appends its loss of each step, a line of JSON")

if __name__ == "__main__":
    run(main, parser)
