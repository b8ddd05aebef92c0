"""The ways in which Python starts processes, with a parent that has used seckill before."""

from __future__ import annotations

import pytest
from support.programs import run

pytestmark = pytest.mark.core


def processes_sell(url, method, hand_over):
    """Ten processes, as the old scripts have them; the parent has used its client before."""
    import multiprocessing

    import seckill
    from support import workers

    client = seckill.Client(url) if hand_over else None
    (client or seckill).incr_inventory("stock", 300)
    context = multiprocessing.get_context(method)
    answers = context.SimpleQueue()
    target = workers.sell_through if hand_over else workers.sell
    arguments = (answers, *([client] if hand_over else []), "lock", "stock", 40)
    processes = [context.Process(target=target, args=arguments) for _ in range(10)]
    for process in processes:
        process.start()
    sold = sum(answers.get() for _ in processes)
    for process in processes:
        process.join()
    (client or seckill).incr_inventory("stock", 1)
    return [sold, [process.exitcode for process in processes]]


@pytest.mark.parametrize("hand_over", [False, True], ids=["functions", "client as argument"])
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_ten_processes_sell_exactly_what_there_is(start_server, method, hand_over):
    server = start_server()
    ended = run(
        *(processes_sell, server.url, method, hand_over),
        limit=60,
        env={"SECKILL_REDIS_URL": server.url},
    )
    assert ended.value == [300, [0] * 10]
    assert server.redis().get("stock") == b"1"


def a_pool_sells(method, executor):
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    import seckill
    from support import workers

    seckill.incr_inventory("stock", 100)
    context = multiprocessing.get_context(method)
    told = []
    if executor:
        with ProcessPoolExecutor(4, mp_context=context) as pool:
            futures = [pool.submit(workers.buy, 3) for _ in range(40)]
            errors = [future.exception(60) for future in futures]
            told = [future.result() for future in futures if future.exception() is None]
            # The function itself may be handed over as well.
            pool.submit(seckill.incr_inventory, "other", 5).result(60)
    else:
        with context.Pool(4) as pool:
            results = [pool.apply_async(workers.buy, (3,)) for _ in range(40)]
            errors = []
            for result in results:
                try:
                    told.append(result.get(60))
                except seckill.SeckillError as error:
                    errors.append(error)
            pool.apply(seckill.incr_inventory, ("other", 5))
    refused = [error for error in errors if error is not None]
    assert all(type(error) is seckill.InsufficientInventory for error in refused)
    assert all(
        (error.key, error.available, error.requested) == ("stock", 1, 3) for error in refused
    )
    return [sum(told), len(refused)]


@pytest.mark.parametrize("executor", [True, False], ids=["ProcessPoolExecutor", "Pool"])
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_process_pool_sells_and_its_errors_find_the_way_back(start_server, method, executor):
    server = start_server()
    ended = run(a_pool_sells, method, executor, limit=60, env={"SECKILL_REDIS_URL": server.url})
    assert ended.value == [99, 7]
    assert server.redis().get("other") == b"5"


def prefork(url):
    """A server in the style of gunicorn: the application is loaded, then workers are forked."""
    import os
    import threading

    import seckill

    seckill.configure(url)  # never used before the fork
    pids = []
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            try:
                threads = [
                    threading.Thread(
                        target=lambda: [
                            seckill.update_inventory("lock", "stock", -1) for _ in range(20)
                        ]
                    )
                    for _ in range(4)
                ]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                os._exit(0)
            finally:
                os._exit(1)
        pids.append(pid)
    return [os.waitpid(pid, 0)[1] for pid in pids]


def test_workers_forked_from_a_parent_that_never_connected_work(start_server):
    server = start_server()
    server.redis().set("stock", 1000)
    assert run(prefork, server.url).value == [0, 0, 0]
    assert server.redis().get("stock") == b"760"
