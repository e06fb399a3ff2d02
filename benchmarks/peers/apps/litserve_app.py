"""LitServe with its own batching: `python litserve_app.py PORT`.

LitServe forms batches of requests, whatever number of images these have.
"""

import sys
from collections.abc import Sequence
from typing import Annotated

import litserve
from fastapi import Depends, HTTPException, Request, Response
from pipeline import Answer, Pipeline, Settings, rows

LONGEST = 600.0  # seconds that a request may wait


async def raw(request: Request) -> bytes:
    """The body, as it is: LitServe itself would take it for JSON or a form."""
    return await request.body()


class Classifier(litserve.LitAPI):
    """Images, each with its length before it -> labels, scores and errors."""

    def setup(self, device: str) -> None:  # noqa: ARG002
        self.pipeline = Pipeline(Settings.read())

    def decode_request(self, request: Annotated[bytes, Depends(raw)]) -> list[bytes]:
        try:
            return rows(request)
        except ValueError as error:
            raise HTTPException(400, str(error)) from error

    def batch(self, inputs: Sequence[list[bytes]]) -> Sequence[list[bytes]]:
        return inputs

    def predict(self, x: Sequence[list[bytes]] | list[bytes]) -> list[Answer] | Answer:
        if self.max_batch_size == 1:
            return self.pipeline(x)
        answer = self.pipeline([image for images in x for image in images])
        return answer.split([len(images) for images in x])

    def unbatch(self, output: list[Answer]) -> list[Answer]:
        return output

    def encode_response(self, output: Answer) -> Response:
        return Response(output.json(), media_type="application/json")


if __name__ == "__main__":
    settings = Settings.read()
    api = Classifier(max_batch_size=settings.max_batch, batch_timeout=settings.wait / 1000, api_path="/classify")
    server = litserve.LitServer(
        api, accelerator="cpu", devices=1, workers_per_device=settings.workers, timeout=LONGEST, fast_queue=True
    )
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), num_api_servers=1, log_level="warning", generate_client_file=False
    )
