"""Who asks sentinels for the primary: found by honest ones, in spite of all the others."""

from __future__ import annotations

import time

import pytest
import seckill
import seckill.aio
from support import acl
from support.aio import every_call
from support.fake_sentinels import at
from support.proxy import SilentHost
from support.sentinels import SERVICE
from support.servers import Server, lasting_port
from support.threads import call, wait_until

pytestmark = pytest.mark.core

QUICK = {"socket_timeout": 0.3}


class Nobody:
    """An address where nothing listens."""

    host = "127.0.0.1"

    def __init__(self):
        self.port = lasting_port()


def url_of(*sentinels, service=SERVICE, user=""):
    places = ",".join(f"{sentinel.host}:{sentinel.port}" for sentinel in sentinels)
    return f"redis+sentinel://{user}{places}/{service}/0"


def error_of(client, **times):
    """What a call on a client that never was connected raises."""
    with pytest.raises(seckill.ConnectionError) as caught:
        client.update_inventory("lock", "stock", -1, **({"time_out": 30_000} | times))
    assert caught.value.sent is False
    return caught.value


@pytest.fixture
def server(start_server):
    """A primary; the sentinels of these tests are made up."""
    return start_server()


@pytest.fixture
def other(start_server):
    """Another one, that calls itself a primary as well: it has been replaced."""
    return start_server()


def sells_at(server: Server, client) -> bool:
    client.incr_inventory("stock", 10)
    client.update_inventory("lock", "stock", -1)
    return server.redis().get("stock") == b"9"


# -- sentinels as they should be -------------------------------------------------------------------


def test_the_primary_is_found_and_sold_at(deployment, connect, key, lock):
    client = connect(deployment.url)
    client.incr_inventory(key, 10)
    client.update_inventory(lock, key, -3)
    assert client.acquire_lock(lock, 60_000) is True
    client.update_inventory(lock, key, -1)
    client.release_lock(lock)
    with pytest.raises(seckill.InsufficientInventory):
        client.update_inventory(lock, key, -7)
    assert deployment.redis().get(key) == b"6"
    deployment.catch_up()
    assert [replica.redis().get(key) for replica in deployment.replicas] == [b"6"]


async def test_all_that_a_client_does_it_does_here(deployment, name, loop_kind):
    async with seckill.aio.Client(deployment.url) as client:
        assert await every_call(client, name) == 7


@pytest.mark.parametrize("scheme", ["redis+sentinel", "valkey+sentinel"])
def test_the_url_says_which_service_and_which_database(deployment, key, scheme):
    url = deployment.url_of(deployment.sentinels[1], db=3).replace("redis+sentinel", scheme)
    with seckill.Client(url) as client:
        client.incr_inventory(key, 1)
    assert deployment.redis(db=3).get(key) == b"1"


def test_keywords_say_it_as_well(deployment, key):
    sentinels = [(sentinel.host, sentinel.port) for sentinel in deployment.sentinels]
    with seckill.Client(sentinels=sentinels, service_name=SERVICE) as client:
        client.incr_inventory(key, 1)
    assert deployment.redis().get(key) == b"1"


def test_one_connection_serves_all_threads(deployment, key):
    client = seckill.Client(deployment.url)
    callers = [call(client.incr_inventory, key, 1) for _ in range(8)]
    for caller in callers:
        caller.result()
    assert deployment.redis().get(key) == b"8"
    assert client.statistics()["connects"] == 1
    client.close()


def test_passwords_of_servers_and_of_sentinels(start_deployment, connect):
    deployment = start_deployment(password="sesame", sentinel_password="open")
    client = connect(deployment.url)
    client.incr_inventory("stock", 1)
    assert deployment.redis().get("stock") == b"1"
    for wrong in (
        deployment.url.replace("sesame", "thistle"),
        deployment.url.replace("=open", "=shut"),
        deployment.url.partition("?")[0],
    ):
        error = error_of(connect(wrong))
        assert isinstance(error, seckill.AuthenticationError), (wrong, error)
        assert "thistle" not in str(error)
        assert "shut" not in str(error)
    assert deployment.redis().get("stock") == b"1"


# -- sentinels that are not there, or say nothing --------------------------------------------------


def test_dead_sentinels_are_passed_over(deployment, connect, key):
    client = connect(deployment.url_of(Nobody(), Nobody(), deployment.sentinels[0]))
    client.incr_inventory(key, 1)
    assert deployment.redis().get(key) == b"1"


@pytest.mark.parametrize("full", [False, True], ids=["accepts", "does not even accept"])
def test_silent_sentinels_are_not_waited_for(deployment, connect, key, full):
    with SilentHost(full=full) as one, SilentHost(full=full) as another:
        client = connect(deployment.url_of(one, another, deployment.sentinels[0]), **QUICK)
        started = time.monotonic()
        client.incr_inventory(key, 1)
        assert time.monotonic() - started < 5
    assert deployment.redis().get(key) == b"1"


def test_a_frozen_sentinel_is_not_waited_for(start_deployment, connect):
    deployment = start_deployment()
    with deployment.sentinels[0].frozen(), deployment.sentinels[1].frozen():
        client = connect(deployment.url, **QUICK)
        client.incr_inventory("stock", 1)
    assert deployment.redis().get("stock") == b"1"


def test_without_any_sentinel_it_is_an_error_at_once_that_names_them(connect):
    nobody = [Nobody(), Nobody()]
    started = time.monotonic()
    error = error_of(connect(url_of(*nobody)))
    assert time.monotonic() - started < 5
    for sentinel in nobody:
        assert str(sentinel.port) in str(error)


def test_sentinels_that_are_all_silent_are_an_error_in_time(connect):
    with SilentHost() as one, SilentHost(full=True) as another:
        started = time.monotonic()
        error_of(connect(url_of(one, another), **QUICK))
        assert time.monotonic() - started < 5


def test_a_host_that_nobody_knows_is_passed_over(deployment, key):
    nobody = Nobody()
    nobody.host = "no-such-host.invalid"
    with seckill.Client(deployment.url_of(nobody, deployment.sentinels[0])) as client:
        client.incr_inventory(key, 1)
    assert deployment.redis().get(key) == b"1"


# -- services that nobody knows --------------------------------------------------------------------


def test_an_unknown_service_is_an_error_at_once_that_names_it(deployment, connect):
    started = time.monotonic()
    error = error_of(connect(deployment.url_of(*deployment.sentinels, service="othermaster")))
    assert time.monotonic() - started < 5
    assert "othermaster" in str(error)
    assert SERVICE not in str(error)


@pytest.mark.parametrize("resp3", [True, False])
def test_who_does_not_know_the_service_does_not_speak_for_the_others(
    server, start_fake, connect, resp3
):
    ignorant = [start_fake(lambda: None, resp3=resp3) for _ in range(2)]
    knows = start_fake(lambda: at(server), resp3=resp3)
    assert sells_at(server, connect(url_of(*ignorant, knows, user=server.user_info)))


# -- primaries that were replaced ------------------------------------------------------------------

PATIENT = {"time_out": 20_000}


class Words:
    """Sentinels that say, each of them, what the test wants; the first is the first to answer."""

    def __init__(self, start_fake, *places):
        self.places = list(places)
        self.fakes = [start_fake(self._of(number)) for number in range(len(places))]

    def _of(self, number):
        def where():
            time.sleep(0.01 if number else 0)  # much less than the others are waited for
            return self.places[number]

        return where

    def all_say(self, *places):
        self.places[:] = places


def leave(client, server):
    """The client's connection to that server ends; it has to ask the sentinels again."""
    before = client.statistics()["connects"]
    named = [known for known in server.redis().client_list() if known["lib-name"] == "seckill"]
    assert before
    assert named
    for known in named:
        server.redis().client_kill_filter(_id=known["id"])


@pytest.fixture
def words(server, start_fake):
    return Words(start_fake, *[at(server, 1)] * 3)


@pytest.fixture
def client(words, server, other, connect):
    """It has sold on `server`, after the first fail-over. There is some stock on both."""
    for one in (server, other):
        one.redis().set("stock", 100)
    client = connect(url_of(*words.fakes, user=server.user_info), **QUICK)
    client.update_inventory("lock", "stock", -1)
    return client


def stocks(*servers):
    return [int(server.redis().get("stock")) for server in servers]


def test_nobody_goes_back_to_a_primary_of_an_older_epoch_whoever_names_it(
    words, client, server, other
):
    """The new one is silent for a moment, and most sentinels have not heard of it yet."""
    words.all_say(at(other, 2), at(server, 1), at(server, 1))
    leave(client, server)
    client.update_inventory("lock", "stock", -1, **PATIENT)
    assert stocks(server, other) == [99, 99]
    leave(client, other)
    with other.frozen():
        with pytest.raises(seckill.ConnectionError):
            client.update_inventory("lock", "stock", -1, time_out=1500)
        buying = call(client.update_inventory, "lock", "stock", -1, **PATIENT)
        time.sleep(0.5)
        assert buying.is_alive()
    buying.result(20)
    # Who was told an error is not served later, and everybody else by the new one.
    assert stocks(server, other) == [99, 98]


def test_a_sentinel_that_was_wrong_once_is_not_remembered(words, client, server, start_server):
    """What it said no primary has ever confirmed. Of the others one is left."""
    replica = start_server()
    replica.ask("REPLICAOF", server.host, server.port)
    words.all_say(at(replica, 9), at(server, 1), at(server, 1))
    leave(client, server)
    client.update_inventory("lock", "stock", -1, **PATIENT)
    words.all_say(None, None, at(server, 1))
    leave(client, server)
    client.update_inventory("lock", "stock", -1, time_out=3000)
    assert stocks(server) == [97]


def test_sentinels_that_are_set_up_from_scratch_are_believed_when_all_agree(
    words, client, server, other
):
    words.all_say(at(server, 0), *[at(other, 0)] * 2)
    leave(client, server)
    with pytest.raises(seckill.ConnectionError, match=r"config-epoch 0.*was at.*config-epoch 1"):
        client.update_inventory("lock", "stock", -1, time_out=700)
    words.all_say(*[at(other, 0)] * 3)
    client.update_inventory("lock", "stock", -1, **PATIENT)
    assert stocks(server, other) == [99, 99]
    # From there on they count as ever.
    words.all_say(at(server, 1), *[at(other, 0)] * 2)
    leave(client, other)
    client.update_inventory("lock", "stock", -1, **PATIENT)
    assert stocks(server, other) == [98, 99]


# -- servers and sentinels that refuse -------------------------------------------------------------


@pytest.fixture
def locked(start_server):
    """A server that does not know the user."""
    server = start_server(password="sesame")
    server.ask("ACL", "DELUSER", acl.USER)
    return server


def test_one_sentinel_that_names_a_server_that_refuses_is_passed_over(
    words, client, server, locked, connect
):
    words.all_say(at(locked, 9), at(server, 1), at(server, 1))
    for _ in range(3):
        fresh = connect(url_of(*words.fakes, user=server.user_info), **QUICK)
        fresh.update_inventory("lock", "stock", -1, time_out=3000)
    leave(client, server)
    client.update_inventory("lock", "stock", -1, time_out=3000)
    assert stocks(server) == [95]


def test_a_refusal_that_one_sentinel_led_to_is_ridden_out(words, client, server, other, locked):
    """By a client whom others have let in: whom most name is about to be replaced."""
    words.all_say(at(locked, 9), *[at(Nobody(), 1)] * 2)
    leave(client, server)
    buying = call(client.update_inventory, "lock", "stock", -1, **PATIENT)
    time.sleep(0.5)
    assert buying.is_alive()
    words.all_say(at(locked, 9), *[at(other, 2)] * 2)
    buying.result(20)
    assert stocks(server, other) == [99, 99]


def test_a_refusal_by_whom_most_sentinels_name_is_told_at_once(
    words, client, server, other, locked, connect
):
    words.all_say(at(locked, 2), at(other, 1), at(locked, 2))
    started = time.monotonic()
    error = error_of(connect(url_of(*words.fakes, user=server.user_info)))
    assert isinstance(error, seckill.AuthenticationError)
    assert f"the server at {locked.host}:{locked.port} does not accept" in str(error)
    leave(client, server)
    with pytest.raises(seckill.ConnectionError, match="does not accept the credentials"):
        client.update_inventory("lock", "stock", -1, **PATIENT)
    assert time.monotonic() - started < 5


def test_a_refusal_says_that_it_was_a_sentinel(start_server, server, connect):
    """Among the dead: who never was connected is told at once what there is to do about it."""
    guarded = start_server(password="sesame")
    url = url_of(guarded, Nobody(), user=server.user_info)
    error = error_of(connect(f"{url}?sentinel_password=thistle"))
    assert isinstance(error, seckill.AuthenticationError)
    assert f"the sentinel at {guarded.host}:{guarded.port} does not accept" in str(error)


def test_one_sentinel_that_refuses_does_not_speak_for_those_who_are_away(
    start_fake, start_server, server, connect
):
    """A client that was connected before rides it out."""
    guarded = start_server(password="sesame")
    place = at(server, 1)
    fake = start_fake(lambda: place)
    url = url_of(guarded, fake, user=server.user_info)
    client = connect(f"{url}?sentinel_password=thistle", **QUICK)
    client.incr_inventory("stock", 10)
    place = None
    leave(client, server)
    buying = call(client.update_inventory, "lock", "stock", -1, **PATIENT)
    time.sleep(0.5)
    assert buying.is_alive()
    place = at(server, 1)
    buying.result(20)
    assert server.redis().get("stock") == b"9"


# -- sentinels that lie ----------------------------------------------------------------------------


@pytest.mark.parametrize("resp3", [True, False])
def test_the_latest_fail_over_counts_not_the_first_answer(
    server, other, start_fake, connect, resp3
):
    liar = start_fake(lambda: at(other, 3), resp3=resp3)

    def after_the_liar():
        wait_until(lambda: liar.asked == 2)
        return at(server, 4)

    truthful = start_fake(after_the_liar, resp3=resp3)
    client = connect(url_of(liar, truthful, user=server.user_info))
    assert sells_at(server, client)
    assert other.redis().dbsize() == 0


def test_one_that_was_cut_off_does_not_speak_for_the_majority(server, other, start_fake, connect):
    fakes = [start_fake(lambda: at(other, 3)), *(start_fake(lambda: at(server, 4)) for _ in "ab")]
    assert sells_at(server, connect(url_of(*fakes, user=server.user_info)))
    assert other.redis().dbsize() == 0


def test_a_replica_that_is_named_is_not_written_to_and_the_question_is_asked_again(
    deployment, start_fake, connect, key
):
    """As in the moments of a fail-over in which the replica is not promoted yet."""
    answers = [deployment.replicas[0]] * 4

    def named():
        return at(answers.pop() if answers else deployment.primary, 9)

    user = deployment.servers[0].user_info
    client = connect(url_of(start_fake(named), user=user))
    client.incr_inventory(key, 1)
    assert not answers
    assert deployment.redis().get(key) == b"1"


def test_a_replica_that_is_named_again_and_again_is_an_error_that_says_so(
    deployment, start_fake, connect
):
    replica, user = deployment.replicas[0], deployment.servers[0].user_info
    client = connect(url_of(start_fake(lambda: at(replica)), user=user), **QUICK)
    error = error_of(client, time_out=500)
    assert "no primary" in str(error)
    assert str(replica.port) in str(error)


def test_a_primary_that_has_died_is_looked_for_again(server, start_fake, connect):
    """Also by a client that never was connected: the sentinels are about to name another."""
    dead, answers = Nobody(), 4

    def named():
        nonlocal answers
        answers -= 1
        return at(dead if answers >= 0 else server, 1)

    client = connect(url_of(start_fake(named), user=server.user_info))
    client.incr_inventory("stock", 10)
    assert answers < 0
    assert server.redis().get("stock") == b"10"


NOISES = {
    "another protocol": b"HTTP/1.1 400 Bad Request\r\nServer: other\r\n\r\n",
    "a huge array": b"*1000000000\r\n",
    "a huge text": b"$99999999999\r\n",
    "nulls": b"\0" * 100,
    "half an answer": b"*2\r\n$9\r\n127.0",
    "fine": b"+OK\r\n",
    "an error": b"-ERR whatever it was\r\n",
    "not ready": b"-LOADING the sentinel is thinking\r\n",
    "a number": b":1\r\n",
    "nothing": b"$-1\r\n",
}


@pytest.mark.parametrize("noise", NOISES)
def test_nonsense_is_no_answer(server, start_fake, connect, noise):
    fakes = [start_fake(lambda: None, noise=NOISES[noise]) for _ in range(2)]
    truthful = start_fake(lambda: at(server))
    client = connect(url_of(*fakes, truthful, user=server.user_info), **QUICK)
    assert sells_at(server, client)


@pytest.mark.parametrize("noise", NOISES)
def test_nothing_but_nonsense_is_an_error_in_time(start_fake, noise):
    fake = start_fake(lambda: None, noise=NOISES[noise])
    started = time.monotonic()
    with seckill.Client(url_of(fake), **QUICK) as client, pytest.raises(seckill.SeckillError):
        client.update_inventory("lock", "stock", -1, time_out=1000)
    assert time.monotonic() - started < 10


ADDRESSES = {
    "no host": ("", 6379),
    "no port": ("127.0.0.1", 0),
    "a word for a port": ("127.0.0.1", "redis"),
    "a port beyond all": ("127.0.0.1", 65536),
    "a negative port": ("127.0.0.1", -1),
}


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_that_is_none_does_not_count(server, start_fake, connect, address):
    """However late the fail-over that it is said to come from."""
    liar = start_fake(lambda: (*ADDRESSES[address], 99))
    truthful = start_fake(lambda: at(server, 1))
    client = connect(url_of(liar, truthful, user=server.user_info), **QUICK)
    assert sells_at(server, client)


def test_an_ordinary_server_is_no_sentinel_and_the_error_says_so(server, connect):
    error = error_of(connect(url_of(server)))
    assert "sentinel" in str(error).lower()
    assert str(server.port) in str(error)
