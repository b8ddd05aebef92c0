"""What the least-privilege user needs more in some deployments: what is listed, and no more."""

from __future__ import annotations

import contextlib

import pytest
import seckill
from support import acl
from support.acl import USER_INFO, as_observer
from support.clusters import slot_of
from support.servers import version

KEYS = ("lock:*", "stock:*", "{*", "seckill:*")


def become(servers, *rows, without=()):
    """The seller may do the usual things, and what these rows of the second table list."""
    usual, special = acl.tables()
    for server in servers:
        rules = [
            rule
            for row in [*usual, *(row for row in special if row.purpose in rows)]
            for rule in row.rules
            if row.since <= version(server.kind) and rule not in without
        ]
        words = ["reset", "on", f">{acl.PASSWORD}", *(f"~{key}" for key in KEYS), *rules]
        server.redis().execute_command("ACL", "SETUSER", acl.USER, *words)
        server.redis().execute_command("ACL", "LOG", "RESET")


def denied(servers):
    log = [entry["object"] for server in servers for entry in server.redis().acl_log()]
    # Before Redis 7.2 and Valkey nobody may name the library, for the server does not know how.
    return set(log) - ({"client", "client|setinfo"} if version(servers[0].kind) < (7, 2) else set())


def as_seller(url):
    return as_observer(url).replace("://", f"://{USER_INFO}")


# -- waiting for replicas, and for the disk ------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "wish"), [("`wait_replicas`", {"wait_replicas": 1}), ("`wait_aof`", {"wait_aof": True})]
)
def test_to_be_sure_of_a_change_takes_one_command(start_server, row, wish):
    server = start_server("appendonly yes")
    replica = start_server(f"replicaof {server.host} {server.port}")
    command = {"wait_replicas": "wait", "wait_aof": "waitaof"}[next(iter(wish))]
    become([server], row)
    with seckill.Client(server.url, **wish, socket_timeout=5) as client:
        client.incr_inventory("stock:1", 5)
        client.update_inventory("lock:1", "stock:1", -1)
    assert denied([server]) == set()
    become([server])
    with (
        seckill.Client(server.url, **wish, socket_timeout=5) as client,
        pytest.raises(seckill.NotReplicated),
    ):
        client.incr_inventory("stock:1", 1)
    assert denied([server]) == {command}
    assert replica.redis().ping()


# -- Sentinel ------------------------------------------------------------------------------------


def test_what_is_listed_is_enough_under_sentinel(start_deployment, own_kind):
    deployment = start_deployment(own_kind)
    become(deployment.servers, "Sentinel")
    with seckill.Client(as_seller(deployment.url)) as client:
        client.incr_inventory("stock:1", 5)
        client.update_inventory("lock:1", "stock:1", -1)
        with seckill.Lock(client, "lock:1", timeout=5):
            pass
    assert denied(deployment.servers) == set()


def test_without_role_it_sells_all_the_same(start_deployment):
    deployment = start_deployment()
    become(deployment.servers)
    with seckill.Client(as_seller(deployment.url)) as client:
        client.incr_inventory("stock:1", 5)
    assert denied(deployment.servers) == {"role"}


# -- Cluster -------------------------------------------------------------------------------------

ROWS = ("Cluster", "Cluster, while slots move", "Cluster, a part that is cut off")


def sell_everywhere(cluster):
    """From stocks of all nodes; and one that is on its way to another."""
    names = ["stock:1", "stock:2", "stock:3", "{a}stock", "{b}stock"]
    with seckill.Client(as_seller(cluster.url), timeout=5) as client:
        for name in names:
            client.incr_inventory(name, 5)
            client.update_inventory("lock:1", name, -1)
        here = cluster.node_of("{b}stock")
        move = cluster.begin_move(
            slot_of("{b}stock"), next(n for n in cluster.primaries if n is not here)
        )
        move.keys()  # but the slot has not changed hands
        # Stock and record are there; a lock that is free is nowhere, and so TRYAGAIN.
        client.incr_inventory("{b}stock", -1)
        move.finish()
        client.update_inventory("{b}lock", "{b}stock", -1)
    return cluster.observer("{b}stock").get("{b}stock")


def test_what_is_listed_is_enough_in_a_cluster(start_cluster, own_kind):
    cluster = start_cluster(own_kind)
    become(cluster.nodes, *ROWS)
    assert sell_everywhere(cluster) == b"2"
    assert denied(cluster.nodes) == set()


@pytest.mark.parametrize(
    ("rule", "error"),
    [
        ("+cluster|slots", seckill.ServerError),
        ("+asking", seckill.ServerError),
        ("+cluster|info", None),
    ],
)
def test_each_is_asked_for_in_a_cluster(start_cluster, rule, error):
    cluster = start_cluster()
    become(cluster.nodes, *ROWS, without=[rule])
    with pytest.raises(error) if error else contextlib.nullcontext():
        sell_everywhere(cluster)
    assert denied(cluster.nodes) == {rule.removeprefix("+")}
