"""FastAPI, uvicorn and ONNX Runtime: `uvicorn fastapi_app:app`.

The endpoint is a plain function, so that FastAPI runs it on its pool of threads; the sessions are shared by all of
them. The body is taken as it is: parsing a form of 32 files costs more than decoding some of them.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import anyio.to_thread
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from pipeline import Pipeline, Settings, rows

settings = Settings.read()
pipeline = Pipeline(settings)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """As many threads as are worth having; forty, the default, take each other's cores."""
    anyio.to_thread.current_default_thread_limiter().total_tokens = settings.threads
    yield


app = FastAPI(lifespan=lifespan)


async def raw(request: Request) -> bytes:
    """The body."""
    return await request.body()


@app.post("/classify")
def classify(body: Annotated[bytes, Depends(raw)]) -> Response:
    """Images, each with its length before it -> labels, scores and errors."""
    try:
        images = rows(body)
    except ValueError as error:
        raise HTTPException(400, str(error)) from error
    return Response(pipeline(images).json(), media_type="application/json")
