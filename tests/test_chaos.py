"""Servers and sellers are killed and stopped in mid-sale, and the ledger outside adds up.

The long form is `make chaos`; here each deployment gets a few seconds of it.
"""

from __future__ import annotations

import itertools
import os

import pytest
import seckill
from chaos.runs import run
from chaos.worlds import Sharded, Standalone, Watched
from support.fake_sentinels import at
from support.replicas import start_replicated
from support.servers import ANY

FIXTURES = (start_replicated,)
STRESS = bool(os.environ.get("SECKILL_STRESS"))
SEED = os.environ.get("SECKILL_SEED", "5")

SHORT = {
    "one server": (Standalone, {}, 5, None),
    "sentinel": (Watched, {}, 6, ["primary_killed", "replica_lags", "seller_killed"]),
    "sentinel without wait": (Watched, {"careful": False}, 4, ["primary_killed"]),
    "cluster": (Sharded, {}, 5, ["primary_killed", "slots_move"]),
}


@pytest.mark.stress
@pytest.mark.parametrize("deployment", SHORT)
def test_whatever_happens_the_ledger_adds_up(tmp_path, deployment):
    world, settings, seconds, faults = SHORT[deployment]
    if STRESS:
        seconds, faults = 60, None
    report = run(world(ANY, **settings), tmp_path, SEED, seconds, faults=faults)
    assert report.good, str(report)
    assert sum(report.faults.values()) > 0, str(report)
    assert report.verdict.outcomes["sold"] > 50, str(report)


# -- what is lost when nobody waits --------------------------------------------------------------


@pytest.fixture
def service(start_replicated, own_kind, start_fake):
    """A primary, a replica that can be promoted by hand, and the URL by which both are found."""
    replicated = start_replicated(own_kind, replicas=1)
    epochs = itertools.count(1)
    fake = start_fake(lambda: at(replicated.primary, next(epochs)))
    info = replicated.primary.user_info
    url = f"redis+sentinel://{info}{fake.host}:{fake.port}/mymaster"
    replicated.primary.redis().set("stock", 100)
    replicated.catch_up()
    return replicated, url


def sell_and_fail_over(replicated, client):
    """Of ten sales the replica gets five before it is cut off; then the primary is gone."""
    (replica,) = replicated.replicas
    told = []
    for number in range(10):
        if number == 5:
            replicated.catch_up()
            replica.ask("REPLICAOF", replica.host, 1)  # where nobody is
        try:
            client.update_inventory("lock", "stock", -1)
            told.append("sold")
        except seckill.NotReplicated:
            told.append("unsafe")
    replicated.primary.kill()
    replicated.promote(replica)
    return told


def test_a_fail_over_loses_what_the_replica_had_not_seen(service):
    """Sold, and gone: asynchronous replication allows that to whoever does not wait for it."""
    replicated, url = service
    client = seckill.Client(url)
    told = sell_and_fail_over(replicated, client)
    assert told == ["sold"] * 10
    assert replicated.primary.redis().get("stock") == b"95"
    client.update_inventory("lock", "stock", -1)
    assert replicated.primary.redis().get("stock") == b"94"


def test_who_waits_for_the_replica_is_told_of_no_sale_that_is_lost(service):
    replicated, url = service
    client = seckill.Client(url, wait_replicas=1, socket_timeout=1)
    told = sell_and_fail_over(replicated, client)
    assert told == ["sold"] * 5 + ["unsafe"] * 5
    assert replicated.primary.redis().get("stock") == b"95"
