"""Connections that were let in, and are not known any more; passwords and rights that change."""

from __future__ import annotations

import time

import pytest
import seckill
import seckill.aio
from support import acl
from support.aio import on_loop
from support.clients import HOUR, on_sale, sold_more
from support.relay import Relay
from support.servers import version
from support.threads import all_of, call, wait_until

pytestmark = pytest.mark.core


@pytest.fixture
def guarded(start_server, own_kind):
    """A server that lets nobody in without a password; its seller has the usual one."""
    server = start_server(kind=own_kind, password="sesame")
    server.redis().execute_command("ACL", "SETUSER", acl.USER, "+reset")
    return server


def set_password(server, password):
    server.redis().execute_command("ACL", "SETUSER", acl.USER, "resetpass", f">{password}")


class Forgetful(Relay):
    """Has the server forget who asks: before the next request of a connection it says RESET."""

    RESET, DONE = b"*1\r\n$5\r\nRESET\r\n", b"+RESET\r\n"

    def __init__(self, server):
        super().__init__((server.host, server.port))
        self.wanted, self.done = set(), []
        self.on_request, self.on_reply = self._request, self._reply

    def _request(self, connection, data, on):
        if connection in self.wanted:
            self.wanted.remove(connection)
            self.done.append(connection)
            data = self.RESET + data
        on(data)

    def _reply(self, connection, data, on):
        if connection in self.done:
            data = data.replace(self.DONE, b"")
        if data:
            on(data)


@pytest.fixture
def relay(guarded):
    relay = Forgetful(guarded)
    yield relay
    relay.close()


class Provider:
    """Tells what it is given, and counts how often it is asked."""

    def __init__(self, password=acl.PASSWORD):
        self.password, self.asked = password, 0

    def __call__(self):
        self.asked += 1
        return acl.USER, self.password


def client_of(relay, provider=None, **options):
    if provider is None:
        return seckill.Client(relay.url, **options)
    return seckill.Client(
        host="127.0.0.1", port=relay.port, credential_provider=provider, **options
    )


# -- NOAUTH on a living connection ---------------------------------------------------------------


@pytest.mark.parametrize("how", ["provider", "url"])
def test_a_connection_that_is_not_known_any_more_is_replaced(guarded, relay, how):
    """NOAUTH says that nothing was run: the call is asked for again, within the caller's time."""
    provider = Provider() if how == "provider" else None
    client = client_of(relay, provider)
    client.incr_inventory("stock", 10)
    relay.wanted.add(0)
    client.update_inventory("lock", "stock", -1)
    assert relay.done == [0]
    assert client.statistics()["connects"] == 2
    if provider:
        assert provider.asked == 2
    assert guarded.redis().get("stock") == b"9"


def test_the_one_who_knows_the_password_is_asked_for_the_new_one(guarded, relay):
    provider = Provider()
    client = client_of(relay, provider)
    client.incr_inventory("stock", 10)
    set_password(guarded, "rotated")
    provider.password = "rotated"
    relay.wanted.add(0)
    client.update_inventory("lock", "stock", -1)
    assert guarded.redis().get("stock") == b"9"


@pytest.mark.parametrize("how", ["provider", "url"])
def test_a_password_that_has_become_wrong_is_said(guarded, relay, how):
    """At once, with nothing in doubt; and the next call tries anew."""
    client = client_of(relay, Provider() if how == "provider" else None, timeout=30)
    client.incr_inventory("stock", 10)
    set_password(guarded, "rotated")
    relay.wanted.add(0)
    for function in (
        lambda: client.update_inventory("lock", "stock", -1, time_out=30_000),
        lambda: client.acquire_lock("lock", 5000, 30_000),
        lambda: client.incr_inventory("stock", 1),
    ):
        with pytest.raises(seckill.AuthenticationError, match="does not accept the credentials"):
            function()
    assert client.statistics()["connects"] == 1
    assert guarded.redis().get("stock") == b"10"
    set_password(guarded, acl.PASSWORD)
    client.update_inventory("lock", "stock", -1)
    assert guarded.redis().get("stock") == b"9"


def test_a_crowd_goes_on_and_one_of_it_asks(guarded, relay):
    provider = Provider()
    client = client_of(relay, provider)
    client.incr_inventory("stock", 1000)
    relay.wanted.add(0)
    all_of([lambda: client.update_inventory("lock", "stock", -1)] * 64)
    assert provider.asked == 2
    assert guarded.redis().get("stock") == b"936"


def test_tasks_as_well(guarded, relay):
    provider = Provider()

    async def main():
        place = {"host": "127.0.0.1", "port": relay.port}
        async with seckill.aio.Client(**place, credential_provider=provider) as client:
            await client.incr_inventory("stock", 10)
            relay.wanted.add(0)
            await client.update_inventory("lock", "stock", -1)

    on_loop(main())
    assert provider.asked == 2
    assert guarded.redis().get("stock") == b"9"


def test_who_waits_for_a_lock_is_told_on_a_new_connection(guarded, relay):
    """The one that listens is not the one that asks."""
    holder = seckill.Client(relay.url)
    assert holder.acquire_lock("lock", HOUR)
    waiter = client_of(relay)
    waiting = call(waiter.acquire_lock, "lock", HOUR, 60_000).until_asleep()
    relay.wanted.add(2)  # its next question is a heartbeat's
    wait_until(lambda: relay.done == [2])
    holder.release_lock("lock")
    assert waiting.result(20) is True


def test_a_lock_is_renewed_on_a_new_connection(guarded, relay):
    client = client_of(relay)
    with seckill.Lock(client, "lock", timeout=1.5, auto_renew=True) as lock:
        relay.wanted.add(0)
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > 2)  # longer than the first lease
        assert relay.done == [0]
        assert lock.owned()
        assert not lock.lost


def test_a_server_that_lets_in_and_forgets_again_and_again_is_given_up_in_time(guarded, relay):
    client = client_of(relay, timeout=1)
    client.incr_inventory("stock", 10)

    class Each:
        """Every connection, when it first asks for something: not yet in its handshake."""

        def __init__(self):
            self.greeted = {0}

        def __contains__(self, connection):
            known = connection in self.greeted
            self.greeted.add(connection)
            return known

        def remove(self, connection):
            pass

    relay.wanted = Each()
    with pytest.raises(seckill.ConnectionError, match=r"NOAUTH|unauthenticated") as caught:
        client.update_inventory("lock", "stock", -1, time_out=1000)
    assert not isinstance(caught.value, seckill.OutcomeUnknown)
    assert 1 < len(relay.done) < 30
    assert guarded.redis().get("stock") == b"10"


# -- what is in doubt ----------------------------------------------------------------------------


def test_a_password_that_changes_behind_a_lost_reply_leaves_the_outcome_unknown(guarded, relay):
    client = client_of(relay)
    client.incr_inventory("stock", 10)

    def lose(connection, data, on):
        if connection == 0:
            set_password(guarded, "rotated")
            for caller in guarded.redis().client_list():
                if caller["user"] == acl.USER:
                    guarded.redis().client_kill_filter(_id=caller["id"])
        else:
            on(data)

    relay.on_reply = lose
    with pytest.raises(seckill.OutcomeUnknown, match="does not accept the credentials"):
        client.update_inventory("lock", "stock", -1)
    assert guarded.redis().get("stock") == b"9"


# -- connections that the server ends ------------------------------------------------------------


def seller(server):
    return f"redis://{acl.USER_INFO}{server.host}:{server.port}"


def test_a_user_who_is_removed_and_put_back(guarded):
    """ACL DELUSER ends its connections, perhaps while a request is on its way."""
    observer = guarded.redis()
    client = seckill.Client(seller(guarded), timeout=30)
    client.incr_inventory("stock", 10)
    observer.acl_deluser(acl.USER)
    with pytest.raises((seckill.AuthenticationError, seckill.OutcomeUnknown), match="WRONGPASS"):
        client.update_inventory("lock", "stock", -1, time_out=30_000)
    with pytest.raises(seckill.AuthenticationError, match="WRONGPASS"):
        client.update_inventory("lock", "stock", -1, time_out=30_000)
    observer.execute_command("ACL", "SETUSER", acl.USER, *acl.user(version(guarded.kind), "*"))
    client.update_inventory("lock", "stock", -1)
    assert observer.get("stock") == b"9"


def test_a_rotation_under_a_sale_costs_nobody_anything(guarded):
    """First the new password, beside the old one; then the connections; then without the old."""
    observer, provider = guarded.redis(), Provider()
    client = seckill.Client(host=guarded.host, port=guarded.port, credential_provider=provider)
    ledger, end = on_sale(guarded, client, 1_000_000, time_out=60_000)
    for number in range(5):
        old, new = provider.password, f"password-{number}"
        observer.execute_command("ACL", "SETUSER", acl.USER, f">{new}")
        provider.password = new
        observer.execute_command("ACL", "SETUSER", acl.USER, f"<{old}")
        observer.client_kill_filter(_type="normal", skipme=True)
        sold_more(ledger, 20)
    end()
    assert ledger.sold == ledger.calls, ledger
    assert int(observer.get("stock")) == 1_000_000 - ledger.sold


# -- rights that change --------------------------------------------------------------------------


def test_rights_that_are_taken_and_given_back_need_no_new_connection(guarded):
    observer = guarded.redis()
    client = seckill.Client(seller(guarded))
    client.incr_inventory("stock", 10)
    observer.execute_command("ACL", "SETUSER", acl.USER, "resetkeys", "~lock", "~seckill:*")
    for _ in range(3):
        with pytest.raises(seckill.ServerError, match="NOPERM"):
            client.update_inventory("lock", "stock", -1)
    observer.execute_command("ACL", "SETUSER", acl.USER, "~*")
    client.update_inventory("lock", "stock", -1)
    assert client.statistics()["connects"] == 1
    assert observer.get("stock") == b"9"


def test_a_user_who_is_switched_off_sells_on_with_the_connection_it_has(guarded):
    """As servers have it: `off` is for those who come."""
    observer = guarded.redis()
    client = seckill.Client(seller(guarded))
    client.incr_inventory("stock", 10)
    observer.execute_command("ACL", "SETUSER", acl.USER, "off")
    client.update_inventory("lock", "stock", -1)
    client.close()
    with pytest.raises(seckill.AuthenticationError):
        client.update_inventory("lock", "stock", -1)
    assert observer.get("stock") == b"9"
