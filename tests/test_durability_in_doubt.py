"""A proof is about what its own connection has written; where none may write there is none."""

from __future__ import annotations

import pytest
import redis
import seckill
from support.proxy import REPLY, Fault
from support.replicas import connect, face, start_replicated
from support.threads import call, wait_until

FIXTURES = (connect, face, start_replicated)


def test_a_proof_that_cannot_be_had_is_not_believed(
    start_replicated, own_kind, connect, start_proxy, lock, key
):
    """The answer is lost while the replica lags; and then the primary takes no writes for that."""
    good = ("min-replicas-to-write 1", "min-replicas-max-lag 2")
    replicated = start_replicated(own_kind, *good, replicas=1)
    observer = replicated.primary.redis()
    wait_until(lambda: not takes_no_writes(observer, key))
    observer.set(key, 10)
    proxy = start_proxy(replicated.primary)
    client = connect(proxy.url, wait_replicas=1, socket_timeout=2)
    client.update_inventory(lock, key, -1)
    with replicated.lagging(1):
        proxy.strike(Fault("cut", REPLY))
        proxy.refuse()
        selling = call(client.update_inventory, lock, key, -1, 5000, 30_000)
        wait_until(lambda: observer.get(key) == b"8")
        wait_until(lambda: takes_no_writes(observer, key))
        proxy.listen()
        with pytest.raises(seckill.NotReplicated) as caught:
            selling.result()
    assert caught.value.acknowledged == 0
    assert observer.get(key) == b"8"


def takes_no_writes(observer, key):
    try:
        observer.persist(key)
    except redis.ResponseError as error:
        return str(error).startswith("NOREPLICAS")
    return False
