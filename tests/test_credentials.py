"""As whom to connect: user and password that are given, or asked for at each connect."""

from __future__ import annotations

import asyncio
import os
import pickle
import threading
import time

import pytest
import redis
import redis.asyncio
import seckill
import seckill.aio
import valkey
from support.aio import on_loop
from support.clients import on_sale, sold_more
from support.programs import run
from support.threads import all_of, native_threads

pytestmark = pytest.mark.core


@pytest.fixture
def guarded(start_server, own_kind):
    """A server that wants to know who comes: alice, or the default user with another password."""
    server = start_server(kind=own_kind, password="sesame")
    set_password(server, "secret")
    return server


def set_password(server, password):
    server.redis().acl_setuser(
        "alice",
        enabled=True,
        reset_passwords=True,
        passwords=[f"+{password}"],
        categories=["+@all"],
        keys=["*"],
    )


def place(server):
    return {"host": server.host, "port": server.port}


class Provider:
    """As redis-py has them; counts how often it is asked, and by which threads."""

    def __init__(self, *told, error=None, pause=0.0):
        self.told, self.error, self.pause = told, error, pause
        self.asked, self.threads = 0, set()

    def get_credentials(self):
        self.asked += 1
        self.threads.add(threading.get_ident())
        time.sleep(self.pause)
        if self.error is not None:
            raise self.error
        return self.told


# -- who is told -------------------------------------------------------------------------------


@pytest.mark.parametrize("told", [("alice", "secret"), ("sesame",), "sesame", b"sesame"])
@pytest.mark.parametrize("how", ["provider", "callable"])
def test_user_and_password_are_asked_for(guarded, told, how):
    provider = Provider(*told) if isinstance(told, tuple) else lambda: told
    if how == "callable":
        provider = getattr(provider, "get_credentials", provider)
    with seckill.Client(**place(guarded), credential_provider=provider) as client:
        client.incr_inventory("stock", 2)
        client.update_inventory("lock", "stock", -1)
    assert guarded.redis().get("stock") == b"1"


@pytest.mark.parametrize("how", ["keywords", "instance", "URL", "provider"])
def test_an_empty_user_is_the_default_one_as_in_redis_py(guarded, how):
    login = {"username": "", "password": "sesame"}
    make = {
        "keywords": lambda: seckill.Client(**place(guarded), **login),
        "instance": lambda: seckill.Client(redis.Redis(**place(guarded), **login)),
        "URL": lambda: seckill.Client(
            f"redis://{guarded.host}:{guarded.port}?username=&password=sesame"
        ),
        "provider": lambda: seckill.Client(
            **place(guarded), credential_provider=lambda: ("", "sesame")
        ),
    }[how]
    assert redis.Redis(**place(guarded), **login).ping()
    with make() as client:
        client.incr_inventory("stock", 1)


def test_of_the_coroutine_kind_as_well(guarded):
    class Awaited(redis.CredentialProvider):
        async def get_credentials_async(self):
            await asyncio.sleep(0.01)
            return "alice", "secret"

    async def told():
        return "sesame"

    for provider in (Awaited(), told):
        seckill.Client(**place(guarded), credential_provider=provider).incr_inventory("stock")
    assert guarded.redis().get("stock") == b"2"


@pytest.mark.parametrize("library", [redis.Redis, redis.asyncio.Redis, valkey.Valkey])
def test_the_one_of_an_instance_is_asked(guarded, library):
    provider = Provider("alice", "secret")
    client = seckill.Client(library(**place(guarded), credential_provider=provider))
    client.incr_inventory("stock", 1)
    assert provider.asked == 1


def test_it_is_asked_at_each_connect_and_only_then(guarded):
    provider = Provider("alice", "secret")
    client = seckill.Client(**place(guarded), credential_provider=provider)
    assert provider.asked == 0
    for _ in range(3):
        client.incr_inventory("stock", 1)
    assert provider.asked == 1
    set_password(guarded, "rotated")
    provider.told = ("alice", "rotated")
    client.close()
    client.incr_inventory("stock", 1)
    assert provider.asked == 2


def test_a_password_that_changes_in_mid_sale_costs_nobody_anything(guarded):
    provider = Provider("alice", "secret")
    client = seckill.Client(**place(guarded), credential_provider=provider, socket_timeout=2)
    observer = guarded.redis()
    ledger, end = on_sale(guarded, client, 1_000_000, time_out=60_000)
    for number in range(5):
        provider.told = ("alice", f"secret {number}")
        set_password(guarded, f"secret {number}")
        observer.client_kill_filter(_type="normal", skipme=True)
        sold_more(ledger, 20)
    end()
    assert ledger.sold == ledger.calls, ledger
    assert int(observer.get("stock")) == 1_000_000 - ledger.sold
    assert provider.asked >= 6


def test_a_crowd_asks_once_for_its_one_connection(guarded):
    provider = Provider("alice", "secret", pause=0.1)
    client = seckill.Client(**place(guarded), credential_provider=provider)
    all_of([lambda: client.incr_inventory("stock", 1)] * 32)
    assert guarded.redis().get("stock") == b"32"
    assert provider.asked == 1


@pytest.mark.usefixtures("loop_kind")
async def test_the_event_loop_runs_on_meanwhile_and_the_provider_may_need_it(guarded):
    loop = asyncio.get_running_loop()
    turns = 0

    async def in_the_loop():
        await asyncio.sleep(0.2)
        return "alice", "secret"

    def ask():
        return asyncio.run_coroutine_threadsafe(in_the_loop(), loop).result(5)

    async def count():
        nonlocal turns
        while True:
            await asyncio.sleep(0.01)
            turns += 1

    counting = asyncio.ensure_future(count())
    async with seckill.aio.Client(**place(guarded), credential_provider=ask) as shop:
        await asyncio.gather(*(shop.incr_inventory("stock", 1) for _ in range(100)))
    counting.cancel()
    assert turns >= 10
    assert guarded.redis().get("stock") == b"100"


def test_who_waits_for_a_lock_is_told_of_it_as_that_user(guarded):
    provider = Provider("alice", "secret")
    first = seckill.Client(**place(guarded), credential_provider=provider)
    second = seckill.Client(**place(guarded), credential_provider=provider)
    assert first.acquire_lock("lock", 60_000)
    timer = threading.Timer(0.3, first.release_lock, ["lock"])
    timer.start()
    assert second.acquire_lock("lock", 60_000, 20_000) is True
    users = {one["user"] for one in guarded.redis().client_list() if "t" in one["flags"]}
    assert users == {"alice"}
    assert provider.asked == 3


# -- what may go wrong -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [RuntimeError("no token"), ConnectionError("away"), SystemExit(3)]
)
def test_an_error_of_the_provider_is_told_at_once_and_is_the_cause(guarded, error):
    provider = Provider(error=error)
    client = seckill.Client(**place(guarded), credential_provider=provider)
    start = time.monotonic()
    with pytest.raises(seckill.AuthenticationError) as caught:
        client.update_inventory("lock", "stock", -1, time_out=30_000)
    assert time.monotonic() - start < 5
    assert caught.value.__cause__ is error
    assert type(error).__name__ in str(caught.value)
    assert caught.value.sent is False
    assert provider.asked == 1
    provider.error, provider.told = None, ("alice", "secret")
    client.incr_inventory("stock", 1)


def test_an_error_of_the_provider_reaches_a_task_as_well(guarded):
    error = RuntimeError("no token")

    async def main():
        async with seckill.aio.Client(
            **place(guarded), credential_provider=Provider(error=error)
        ) as shop:
            with pytest.raises(seckill.AuthenticationError) as caught:
                await shop.incr_inventory("stock", 1)
            assert caught.value.__cause__ is error

    on_loop(main())


@pytest.mark.parametrize("told", [None, 5, (), ("a", "b", "c"), ("alice", None), ("alice", 5)])
def test_what_cannot_be_credentials_is_a_type_error_that_does_not_show_them(guarded, told):
    client = seckill.Client(**place(guarded), credential_provider=lambda: told)
    with pytest.raises(seckill.AuthenticationError) as caught:
        client.incr_inventory("stock", 1)
    assert isinstance(caught.value.__cause__, TypeError)
    assert "alice" not in str(caught.value) + str(caught.value.__cause__)


def test_a_wrong_password_is_told_at_once_and_asked_for_again_at_the_next_call(guarded):
    provider = Provider("alice", "wrong")
    client = seckill.Client(**place(guarded), credential_provider=provider)
    for asked in (1, 2):
        with pytest.raises(seckill.AuthenticationError, match="does not accept the credentials"):
            client.update_inventory("lock", "stock", -1, time_out=30_000)
        assert provider.asked == asked


def test_one_who_never_answers_costs_one_connect_time_out_and_one_thread(guarded):
    over = threading.Event()
    provider = Provider("alice", "secret")

    def ask():
        over.wait(30)
        return provider.get_credentials()

    client = seckill.Client(
        **place(guarded), credential_provider=ask, socket_connect_timeout=0.2, timeout=2
    )
    threads = native_threads()
    for _ in range(5):
        start = time.monotonic()
        with pytest.raises(seckill.ConnectionError, match="asking for user and password") as caught:
            client.incr_inventory("stock", 1)
        assert 0.15 < time.monotonic() - start < 2
        assert caught.value.sent is False
    assert native_threads() <= threads + 1
    over.set()
    while provider.asked < 1:
        time.sleep(0.01)
    client.incr_inventory("stock", 1)
    assert provider.asked == 2, "the answer that came too late is not used"


def test_a_provider_that_uses_the_client_it_is_for_ends_in_an_error(guarded):
    def ask():
        client.incr_inventory("stock", 1)
        return "sesame"

    client = seckill.Client(**place(guarded), credential_provider=ask, timeout=1)
    start = time.monotonic()
    with pytest.raises(seckill.ConnectionError):
        client.incr_inventory("stock", 1)
    assert time.monotonic() - start < 10
    assert not guarded.redis().exists("stock")


def test_a_provider_may_use_another_client(guarded):
    other = seckill.Client(guarded.url)

    def ask():
        other.incr_inventory("asked", 1)
        return "sesame"

    seckill.Client(**place(guarded), credential_provider=ask).incr_inventory("stock", 1)
    assert guarded.redis().get("asked") == b"1"


@pytest.mark.parametrize("given", [{"username": "alice"}, {"password": "secret"}])
def test_user_and_password_beside_a_provider_are_an_error(given):
    with pytest.raises(ValueError, match="credential_provider: user and password are given"):
        seckill.Client(**given, credential_provider=print)
    with pytest.raises(ValueError, match="credential_provider: user and password are given"):
        seckill.Client("redis://:secret@h", credential_provider=print)


# -- processes ---------------------------------------------------------------------------------


def tell():
    return "alice", "secret"


def test_a_client_travels_with_its_provider(guarded):
    client = seckill.Client(**place(guarded), credential_provider=tell)
    arrived = pickle.loads(pickle.dumps(client))
    assert arrived.settings() == client.settings()
    arrived.incr_inventory("stock", 1)


def test_a_child_asks_for_itself_also_when_its_parent_was_asking(guarded):
    asking, over = threading.Event(), threading.Event()
    parent = os.getpid()

    def ask():
        if os.getpid() == parent:
            asking.set()
            over.wait(20)
        return "alice", "secret"

    client = seckill.Client(**place(guarded), credential_provider=ask, socket_connect_timeout=20)
    caller = threading.Thread(target=client.incr_inventory, args=("stock", 1))
    caller.start()
    assert asking.wait(10)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            client.incr_inventory("stock", 1)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    over.set()
    caller.join(20)
    assert guarded.redis().get("stock") == b"2"


def exit_while_asking(host, port, how):
    import threading
    import time

    import seckill

    started = threading.Event()

    def ask():
        started.set()
        while True:
            if how == "sleeping":
                time.sleep(0.01)

    client = seckill.Client(
        host=host, port=port, credential_provider=ask, socket_connect_timeout=60, timeout=60
    )
    threading.Thread(target=client.incr_inventory, args=("stock", 1), daemon=True).start()
    assert started.wait(10)
    return True


@pytest.mark.parametrize("how", ["sleeping", "busy"])
@pytest.mark.parametrize("attempt", range(3))
def test_an_exit_while_a_provider_is_at_work_is_clean(start_server, how, attempt):
    server = start_server(password="sesame")
    ended = run(exit_while_asking, server.host, server.port, how, limit=20)
    assert ended.value is True
    assert ended.stderr == ""
