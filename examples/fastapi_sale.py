"""A small shop over HTTP: limited stock, a crowd of buyers, an honest answer for each of them.

    redis-cli set stock:ticket 100
    uvicorn examples.fastapi_sale:app --workers 2
    curl -X POST 'localhost:8000/buy/ticket?units=2'

The server is the one that SECKILL_REDIS_URL names, else the one on localhost:6379. To try it
without any, ask for a private one, which has a hundred tickets and ends with the program:

    python examples/fastapi_sale.py --embedded

An item is on sale while there is a plain integer under `stock:<item>`. Whoever holds `lock:<item>`
pauses its sale, to count or to change the price.
"""

import argparse
import logging
import os
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Annotated

import seckill
import uvicorn
from fastapi import Depends, FastAPI, Query, Request
from fastapi.responses import JSONResponse
from seckill.aio import Client

PATIENCE = 2_000  # ms that a buyer waits for a paused sale, or for a server that is gone
MORE_THAN_THERE_CAN_BE = 2**63

log = logging.getLogger("uvicorn.error")


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[dict[str, Client]]:
    """One client for all requests of a worker; it connects when the first one comes."""
    async with Client() as shop:
        yield {"shop": shop}


async def the_shop(request: Request) -> Client:  # async: FastAPI sends others to a thread pool
    """The client that `lifespan` has opened."""
    return request.state.shop


app = FastAPI(title="Flash sale", lifespan=lifespan)
Shop = Annotated[Client, Depends(the_shop)]
Units = Annotated[int, Query(ge=1, le=10)]


async def take(shop: Client, item: str, units: int) -> None:
    await shop.update_inventory(f"lock:{item}", f"stock:{item}", -units, time_out=PATIENCE)


@app.post("/buy/{item}")
async def buy(shop: Shop, item: str, units: Units = 1) -> dict[str, bool]:
    """Sell so many units, all of them or none."""
    await take(shop, item, units)
    return {"done": True}


@app.get("/stock/{item}")
async def stock(shop: Shop, item: str) -> dict[str, int]:
    """Ask for more than there can be: the refusal changes nothing, and tells what is left."""
    left = 0
    try:
        await take(shop, item, MORE_THAN_THERE_CAN_BE)
    except seckill.InsufficientInventory as refusal:
        left = refusal.available
    return {"left": left}


@app.exception_handler(seckill.SeckillError)
async def refuse(request: Request, error: seckill.SeckillError) -> JSONResponse:
    """Say what became of the request: 409 is a no, 503 means that the shop cannot answer."""
    done: bool | None = False
    headers = {}
    match error:
        case seckill.InsufficientInventory():
            status, detail = 409, f"only {error.available} left"
        case seckill.InventoryError():
            status, detail = 409, "not on sale"
        case seckill.LockTimeout():
            status, detail = 409, "the sale is paused"
            headers = {"Retry-After": "2"}
        case seckill.ConnectionError(sent=True):  # OutcomeUnknown: nobody is told to try again
            status, done = 503, None
            detail = "the answer was lost: this may have been done, and will not be done any more"
        case _:  # no server, or one that refuses: nothing was changed
            status, detail = 503, "closed for a moment"
            headers = {"Retry-After": "2"}
    if status == 503:
        log.warning("%s %s: %r", request.method, request.url.path, error)
    return JSONResponse({"done": done, "detail": detail}, status, headers)


def main() -> None:
    """Serve from one process; uvicorn's own command has more to choose from."""
    parser = argparse.ArgumentParser(description="A small shop over HTTP.")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--embedded", action="store_true", help="sell from a private server")
    chosen = parser.parse_args()
    with ExitStack() as private:
        if chosen.embedded:
            server = private.enter_context(seckill.embedded())
            private.enter_context(server.client()).incr_inventory("stock:ticket", 100)
            os.environ["SECKILL_REDIS_URL"] = server.url
        uvicorn.run(app, port=chosen.port)


if __name__ == "__main__":
    main()
