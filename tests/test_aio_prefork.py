"""Servers that load an application, which awaits seckill, and then fork their workers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from support.programs import run, search_path
from support.threads import wait_until

pytestmark = pytest.mark.core


def connections(observer, name):
    return sorted(c["id"] for c in observer.client_list() if c["name"] == name)


@contextlib.contextmanager
def started(directory, *command, **environment):
    """A server of somebody else's, with an application of ours, in a group of its own."""
    log = (directory / "log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        # What it keeps in somebody's home, it keeps here.
        env={**os.environ, "PYTHONPATH": search_path(), "HOME": str(directory), **environment},
        start_new_session=True,
    )
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        print((directory / "log").read_text())  # shown if the test fails
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()


WEB_APPLICATION = """
import asyncio, os
import seckill.aio
from fastapi import FastAPI, HTTPException

seckill.aio.configure(os.environ["SELLER"], client_name="shop")
# The parent uses it, before it forks the workers.
asyncio.run(seckill.aio.incr_inventory("stock", 500))
asyncio.run(seckill.aio.acquire_lock("parents", 600_000))
parent = os.getpid()
app = FastAPI()

@app.post("/buy")
async def buy():
    try:
        await seckill.aio.update_inventory("lock", "stock", -1)
    except seckill.InsufficientInventory:
        raise HTTPException(409)
    return {"pid": os.getpid(), "parent": parent}

@app.post("/release")
async def release():
    await seckill.aio.release_lock("parents")  # of the parent: changes nothing
"""


def test_gunicorn_preloads_an_application_and_forks_uvicorn_workers(start_server, tmp_path):
    server = start_server()
    observer = server.redis()
    (tmp_path / "shop.py").write_text(WEB_APPLICATION)
    command = ["gunicorn", "--preload", "--workers", "2", "--bind", "unix:socket"]
    command += ["--worker-class", "uvicorn.workers.UvicornWorker", "shop:app"]

    def browser():
        transport = httpx.HTTPTransport(uds=str(tmp_path / "socket"))
        # A connection for each request: so that no worker is left out.
        close = {"Connection": "close"}
        return httpx.Client(transport=transport, base_url="http://shop", headers=close, timeout=30)

    with started(tmp_path, *command, SELLER=server.url) as gunicorn:
        up = "Application startup complete"
        wait_until(lambda: (tmp_path / "log").read_text().count(up) == 2, within=30)
        parents = connections(observer, "shop")
        with browser() as web:
            assert web.post("/release").status_code == 200

            def buyer(_):
                with browser() as mine:
                    return [mine.post("/buy") for _ in range(40)]

            with ThreadPoolExecutor(16) as crowd:
                answers = [answer for told in crowd.map(buyer, range(16)) for answer in told]
            told = Counter(answer.status_code for answer in answers)
            assert told == {200: 500, 409: 140}
            sellers = {answer.json()["pid"] for answer in answers if answer.status_code == 200}
            assert len(sellers) == 2, "both workers sell"
            assert {a.json()["parent"] for a in answers if a.status_code == 200} == {gunicorn.pid}
            # The parent's, which is as it was, and one for each worker.
            assert set(parents) < set(connections(observer, "shop"))
            assert len(connections(observer, "shop")) == 3
        assert observer.get("stock") == b"0"
        assert observer.exists("parents")


CELERY_APPLICATION = """
import asyncio, os
import celery
import seckill.aio

app = celery.Celery("shop", broker=os.environ["BROKER"], backend=os.environ["BROKER"])
app.conf.update(result_serializer="pickle", result_accept_content=["pickle"])
seckill.aio.configure(os.environ["SELLER"], client_name="shop")
if os.environ.get("SEED"):
    # The parent uses it, before it forks the pool.
    asyncio.run(seckill.aio.incr_inventory("stock", 20))

@app.task
def buy(units):
    asyncio.run(seckill.aio.update_inventory("lock", "stock", -units))
"""


def buy_through_celery(count):
    """The caller's side: how many were refused."""
    import sys

    sys.path.insert(0, ".")
    import seckill
    import shop

    told = [shop.buy.delay(2) for _ in range(count)]
    told = [result.get(timeout=60, propagate=False) for result in told]
    refused = [error for error in told if isinstance(error, seckill.InsufficientInventory)]
    assert {(error.key, error.available, error.requested) for error in refused} == {("stock", 0, 2)}
    assert None in told, "some have bought"
    return len(refused)


def test_a_celery_prefork_pool_sells(start_server, tmp_path, monkeypatch):
    shop, broker = start_server(), start_server()
    (tmp_path / "shop.py").write_text(CELERY_APPLICATION)
    observer = shop.redis()
    environment = {"BROKER": broker.open_url, "SELLER": shop.url}
    command = ["celery", "--app", "shop", "worker", "--pool", "prefork", "--concurrency", "2"]
    command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    with started(tmp_path, *command, SEED="yes", **environment):
        wait_until(lambda: connections(observer, "shop"), within=30)
        parents = connections(observer, "shop")
        monkeypatch.chdir(tmp_path)
        ended = run(buy_through_celery, 15, limit=90, env=environment)
        assert ended.value == 5
        assert observer.get("stock") == b"0"
        # The parent's, which is as it was, and at most one for each of the pool.
        assert set(parents) < set(connections(observer, "shop"))
        assert len(connections(observer, "shop")) <= 3
