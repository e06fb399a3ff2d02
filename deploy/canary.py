#!/usr/bin/env python3
"""Health check: has the service classify one small picture, and says what is wrong if it does not.

Triton stays live and ready when the process of a Python step has died, so that only an answer proves the service well.
The standard library alone: it runs inside NVIDIA's image, and wherever a scheduler wants an exec probe.
"""

import argparse
import base64
import json
import ssl
import sys
import time
import urllib.request
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError

MODEL = "zero_shot"
# 16x16 pixels, the upper half blue and the lower half green.
PICTURE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAIAAACQkWg2AAAAIElEQVR42mO0qbjDQApgYiARjGogBrA8kksYDaWB1wAAFYsDEhkJBO4AAAAASUVORK5CYII="
)
FIRST = 1  # priority; an overloaded server is not an ill one, and restarting it would help nobody


class UnhealthyError(Exception):
    """The service does not answer as it should; the message says why, on one line."""


def classify(url: str, timeout: float, tls: ssl.SSLContext | None = None) -> str:
    """Send the picture and return its label.

    Args:
        url: of Triton's HTTP endpoint.
        timeout: seconds without a sign of the server.
        tls: for an https `url`.

    Raises:
        UnhealthyError: no answer, an error, or an answer without a label.
    """
    row = len(PICTURE).to_bytes(4, "little") + PICTURE
    header = {
        "inputs": [
            {"name": "image", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(row)}}
        ],
        "outputs": [{"name": "label"}, {"name": "error"}],
        "parameters": {"priority": FIRST},
    }
    head = json.dumps(header).encode()
    request = urllib.request.Request(  # noqa: S310  the operator gives the URL
        f"{url.rstrip('/')}/v2/models/{MODEL}/infer",
        data=head + row,
        headers={"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"},
    )
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls))
    try:
        with direct.open(request, timeout=timeout) as answer:
            return _label(answer.read())
    except HTTPError as error:
        raise UnhealthyError(f"HTTP {error.code}: {_explanation(error)}") from error
    except TimeoutError as error:
        raise UnhealthyError(f"no answer within {timeout:g} s") from error
    except URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise UnhealthyError(f"no connection within {timeout:g} s") from error
        raise UnhealthyError(f"cannot be reached: {error.reason}") from error
    except (OSError, HTTPException) as error:
        raise UnhealthyError(f"the connection broke: {error!r}") from error


def _label(content: bytes) -> str:
    try:
        outputs = {output["name"]: output["data"][0] for output in json.loads(content)["outputs"]}
        label, error = str(outputs["label"]), str(outputs["error"])
    except (ValueError, LookupError, TypeError) as problem:
        raise UnhealthyError(f"not an answer of {MODEL}: {content[:200]!r}") from problem
    if error:
        raise UnhealthyError(f"the picture was refused: {error}")
    if not label:
        raise UnhealthyError("the answer has no label")
    return label


def _explanation(error: HTTPError) -> str:
    content = error.read(2000).decode(errors="replace")
    try:
        message: Any = json.loads(content)["error"]
    except (ValueError, LookupError, TypeError):
        message = content or error.reason
    return " ".join(str(message).split())


def _tls(ca: str | None, certificate: str | None, key: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca)
    if certificate:
        context.load_cert_chain(certificate, key)
    return context


def main() -> int:
    """Exit code 0: healthy. 1: not, and one line says why."""
    parser = argparse.ArgumentParser(description="Ask a clipchoir server to classify one small picture.")
    parser.add_argument("--url", default="http://localhost:8000", help="Triton's HTTP endpoint (%(default)s)")
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds to wait (%(default)g)")
    parser.add_argument("--ca", metavar="FILE", help="certificates to trust for https, PEM")
    parser.add_argument("--cert", metavar="FILE", help="client certificate for https, PEM")
    parser.add_argument("--key", metavar="FILE", help="its private key, if that is not in the same file")
    options = parser.parse_args()
    if not options.url.startswith(("http://", "https://")):
        parser.error(f"--url must begin with http:// or https://, got {options.url}")
    start = time.monotonic()
    try:
        tls = _tls(options.ca, options.cert, options.key) if options.url.startswith("https:") else None
        label = classify(options.url, options.timeout, tls)
    except (UnhealthyError, OSError) as error:  # OSError: a certificate file
        print(f"unhealthy: {options.url}: {error}")
        return 1
    print(f'healthy: {options.url}: "{label}" in {time.monotonic() - start:.2f} s')
    return 0


if __name__ == "__main__":
    sys.exit(main())
