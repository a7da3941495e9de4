"""Serve a model whose weights are published while it serves: ray job submit -- python jobs/serve.py WEIGHTS

WEIGHTS is what a trainer publishes: client.publish("weights/toy", {"model": model.state_dict()}). Each replica
subscribes to it and switches, between two requests, to the newest version that its node has: no request fails or waits
for that, and each is answered by one version alone. A POST of a JSON list of inputs is answered by {"version",
"outputs"}. The model is one linear layer: put yours into make_model. Needs ray[serve] and torch.

The application outlives this job: 'serve shutdown' ends it. The last line is one JSON object: where it answers. Exit
status: see 'raylog --help'.
"""

import argparse
import logging
from typing import Any

from ray import serve

import raylog
from raylog.errors import RaylogError, Unavailable
from raylog.jobs import run

FIRST_TIMEOUT_S = 300.0
log = logging.getLogger("ray.serve")


def make_model(inputs: int, outputs: int) -> Any:
    import torch

    return torch.nn.Linear(inputs, outputs).requires_grad_(False)


@serve.deployment
class Model:
    """One replica. Between its awaits nothing else runs in it: a switch is never in the middle of an answer."""

    def __init__(self, weights: str, inputs: int, outputs: int) -> None:
        self._model = make_model(inputs, outputs)
        self._client = raylog.connect()
        self._weights = self._client.subscribe(weights, into=self._model.state_dict(), key="/model")
        self._weights.wait(FIRST_TIMEOUT_S)

    def check_health(self) -> None:
        """Asked by Ray Serve, which makes a replica anew that fails: rather that than old weights for good."""
        if not self._weights.is_running:
            raise Unavailable("the subscription to the weights has ended")

    async def __call__(self, request: Any) -> Any:
        import torch
        from starlette.responses import JSONResponse

        try:
            inputs = torch.tensor(await request.json(), dtype=torch.float32).reshape(-1, self._model.in_features)
        except (ValueError, TypeError, RuntimeError) as error:
            expected = f"expected a JSON list of lists of {self._model.in_features} numbers"
            return JSONResponse({"error": f"{expected}: {error}"}, status_code=400)
        try:
            self._weights.poll()
        except RaylogError as error:
            log.warning("a version of the weights is left out: %s", error)
        return {"version": self._weights.version.number, "outputs": self._model(inputs).tolist()}


def main(arguments: argparse.Namespace) -> dict[str, object]:
    with raylog.connect():
        serve.start(http_options={"host": arguments.host, "port": arguments.port})
        model = Model.options(num_replicas=arguments.replicas)
        serve.run(
            model.bind(arguments.weights, arguments.inputs, arguments.outputs),
            name=arguments.app,
            route_prefix=f"/{arguments.app}",
        )
    return {"serving": arguments.weights, "url": f"http://{arguments.host}:{arguments.port}/{arguments.app}"}


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("weights", help="name under which the weights are published")
parser.add_argument("--inputs", type=int, default=8, help="of the linear layer (default 8)")
parser.add_argument("--outputs", type=int, default=4, help="of the linear layer (default 4)")
parser.add_argument("--replicas", type=int, default=1, help="of the model (default 1)")
parser.add_argument("--app", default="model", help="the application's name and path (default model)")
parser.add_argument("--host", default="127.0.0.1", help="where HTTP is served (default 127.0.0.1)")
parser.add_argument("--port", type=int, default=8000, help="where HTTP is served (default 8000)")

if __name__ == "__main__":
    run(main, parser)
