"""An urgent request goes before those that wait."""

import time
from concurrent.futures import ThreadPoolExecutor, as_completed

import numpy as np
import tritonclient.grpc as grpcclient

from clipchoir_server.triton import Triton
from tests.conftest import encoded, noise

URGENT, BULK = 1, 3
BATCH = 64  # a full one: it shares a pass with no other
REQUESTS = 24


def test_an_urgent_request_overtakes_those_that_wait(server: Triton) -> None:
    row = encoded(noise(0), "JPEG")
    finished: dict[str, float] = {}

    def send(name: str, priority: int) -> None:
        image = grpcclient.InferInput("image", [BATCH, 1], "BYTES")
        image.set_data_from_numpy(np.full((BATCH, 1), row, np.object_))
        with grpcclient.InferenceServerClient(server.address.grpc) as client:
            client.infer("zero_shot", [image], priority=priority, client_timeout=120)
        finished[name] = time.monotonic()

    with ThreadPoolExecutor(REQUESTS + 1) as pool:
        sent = [pool.submit(send, f"bulk {number}", BULK) for number in range(REQUESTS)]
        next(as_completed(sent)).result()
        waiting = REQUESTS - len(finished)
        sent.append(pool.submit(send, "urgent", URGENT))
        for each in sent:
            each.result()
    overtaken = sum(moment > finished["urgent"] for moment in finished.values())
    assert waiting >= 8
    assert overtaken >= waiting / 2  # two batches are in hand at each step
