"""What other locks get wrong: the same plot for redis-py's lock, python-redis-lock, and ours."""

from __future__ import annotations

import threading
import time

import pytest
import redis
import redis_lock
import seckill
from support.clients import connected
from support.lock_plots import outcome, passed_over
from support.peers import python_redis_lock_fails, redis_py_fails, resending, warmed
from support.proxy import REPLY, REQUEST, Fault, random_faults
from support.servers import KINDS
from support.threads import call, wait_until
from test_late_arrivals import late

LOST = ["cut", "reset", "swallow"]


@pytest.fixture
def any_server(start_server):
    """One kind is as good as another for the peers: it is in them that they fail."""
    return start_server()


def ours(url, name, lease=60, **options):
    """A lock of ours, and with its client everything is well so far."""
    settings = {"socket_timeout": 0.2, "socket_connect_timeout": 1} | options
    return warmed(seckill.Lock(connected(url, **settings), name, timeout=lease))


# -- a lost reply ---------------------------------------------------------------------------------


@redis_py_fails
@pytest.mark.parametrize("action", LOST)
def test_redis_py_takes_the_lock_and_says_false(any_server, start_proxy, lock, action):
    proxy = start_proxy(any_server)
    with resending(proxy.url) as client:
        theirs = client.lock(lock, timeout=60)
        proxy.strike(Fault(action, REPLY))
        assert theirs.acquire(blocking=False, token="mine") is False
        assert any_server.redis().get(lock) == b"mine"
        with pytest.raises(redis.exceptions.LockError, match="not owned or is already unlocked"):
            theirs.release()


@python_redis_lock_fails
@pytest.mark.parametrize("action", LOST)
def test_python_redis_lock_takes_the_lock_and_says_false(any_server, start_proxy, name, action):
    proxy = start_proxy(any_server)
    with resending(proxy.url) as client:
        theirs = redis_lock.Lock(client, name("peer"), expire=60, id="mine")
        assert theirs.locked() is False
        # It asks first whether it holds the lock already: that answer arrives.
        proxy.strike(Fault(action, REPLY, after=len("$-1\r\n")))
        assert theirs.acquire(blocking=False) is False
        assert any_server.redis().get(name("lock:peer")) == b"mine"


@pytest.mark.parametrize("action", LOST)
def test_a_lost_reply_to_acquire_is_asked_for_again(server, start_proxy, lock, action):
    proxy, observer = start_proxy(server), server.redis()
    mine = ours(proxy.url, lock)
    proxy.strike(Fault(action, REPLY))
    assert mine.acquire(blocking_timeout=20, token="mine") is True
    assert proxy.faults_met == 1
    assert observer.get(lock) == b"mine"
    mine.release()
    assert not observer.exists(lock)


@redis_py_fails
@pytest.mark.parametrize("action", LOST)
def test_redis_py_releases_and_says_that_the_lock_was_anothers(
    any_server, start_proxy, lock, action
):
    proxy = start_proxy(any_server)
    with resending(proxy.url) as client:
        theirs = warmed(client.lock(lock, timeout=60))
        assert theirs.acquire()
        proxy.strike(Fault(action, REPLY))
        with pytest.raises(redis.exceptions.LockNotOwnedError):
            theirs.release()
        assert not any_server.redis().exists(lock), "nobody else can have released it"


@pytest.mark.parametrize("action", LOST)
def test_a_lost_reply_to_release_is_no_lost_lock(server, start_proxy, lock, action):
    proxy = start_proxy(server)
    mine = ours(proxy.url, lock)
    assert mine.acquire()
    proxy.strike(Fault(action, REPLY))
    mine.release()
    assert proxy.faults_met == 1
    assert mine.local.token is None
    assert not server.redis().exists(lock)


@redis_py_fails
@pytest.mark.parametrize("action", LOST)
def test_redis_py_extends_twice(any_server, start_proxy, lock, action):
    proxy = start_proxy(any_server)
    with resending(proxy.url) as client:
        theirs = warmed(client.lock(lock, timeout=60))
        assert theirs.acquire()
        proxy.strike(Fault(action, REPLY))
        theirs.extend(600)
        assert any_server.redis().pttl(lock) > 1_200_000


@pytest.mark.parametrize("action", LOST)
def test_a_lost_reply_to_extend_is_no_second_extension(server, start_proxy, lock, action):
    proxy, observer = start_proxy(server), server.redis()
    mine = ours(proxy.url, lock)
    assert mine.acquire()
    proxy.strike(Fault(action, REPLY))
    assert mine.extend(600) is True
    assert proxy.faults_met == 1
    assert 600_000 < observer.pttl(lock) <= 660_000
    assert 600 < mine.remaining() <= 660
    proxy.strike(Fault(action, REPLY))
    assert mine.reacquire() is True
    assert proxy.faults_met == 2
    assert 0 < observer.pttl(lock) <= 60_000
    assert 0 < mine.remaining() <= 60


def test_a_lossy_network_changes_no_answer(server, start_proxy, lock):
    proxy, observer = start_proxy(server), server.redis()
    mine = ours(proxy.url, lock)
    proxy.faults = random_faults(seed=KINDS.index(server.kind), mean_bytes=3000)
    proxy.cut()
    for _ in range(60):
        assert mine.acquire(blocking_timeout=20) is True
        assert mine.owned() is True
        assert mine.extend(600) is True
        assert 600_000 < observer.pttl(lock) <= 660_000
        assert mine.reacquire() is True
        assert observer.pttl(lock) <= 60_000
        mine.ensure_held()
        mine.release()
        assert not observer.exists(lock)
    assert proxy.faults_met > 10


# -- a release that fails on the connection -------------------------------------------------------


@redis_py_fails
def test_redis_py_forgets_the_token_and_leaves_the_key(any_server, start_proxy, lock):
    proxy = start_proxy(any_server)
    with resending(proxy.url, resends=0) as client:
        theirs = client.lock(lock)
        assert theirs.acquire()
        proxy.refuse()
        proxy.cut()
        with pytest.raises(redis.exceptions.ConnectionError):
            theirs.release()
        proxy.listen()
        with pytest.raises(redis.exceptions.LockError, match="not owned or is already unlocked"):
            theirs.release()
        assert any_server.redis().ttl(lock) == -1, "there for ever, and nobody's"


def test_a_release_that_fails_on_the_connection_can_be_tried_again(server, start_proxy, lock):
    proxy, observer = start_proxy(server), server.redis()
    mine = ours(proxy.url, lock, lease=None, timeout=1)
    assert mine.acquire()
    token = mine.local.token
    proxy.refuse()
    proxy.cut()
    for _ in range(2):
        with pytest.raises(seckill.ConnectionError):
            mine.release()
        assert mine.local.token == token
        assert observer.get(lock) == token
    proxy.listen()
    assert mine.owned() is True
    mine.release()
    assert mine.local.token is None
    assert not observer.exists(lock)


def test_a_release_whose_outcome_is_unknown_can_be_tried_again(server, start_proxy, lock):
    """It has been carried out, and nobody can know: the second one has nothing to complain of."""
    proxy, observer = start_proxy(server), server.redis()
    mine = ours(proxy.url, lock, timeout=1)
    assert mine.acquire()
    proxy.strike(Fault("swallow", REPLY))
    proxy.refuse()
    with pytest.raises(seckill.OutcomeUnknown):
        mine.release()
    assert not observer.exists(lock)
    assert mine.local.token is not None
    proxy.listen()
    mine.release()
    assert mine.local.token is None


def test_a_release_that_failed_is_not_carried_out_late(server, start_proxy, lock):
    proxy, observer = start_proxy(server), server.redis()
    mine = ours(proxy.url, lock, timeout=1)
    assert mine.acquire()
    proxy.strike(Fault("hold", REQUEST))
    proxy.refuse()
    with pytest.raises(seckill.ConnectionError):
        mine.release()
    token = observer.get(lock)
    assert token == mine.local.token
    late(proxy, observer)
    proxy.listen()
    assert mine.owned() is True
    assert observer.get(lock) == token
    mine.release()
    assert not observer.exists(lock)


# -- another thread -------------------------------------------------------------------------------

QUESTIONS = ["owned", "release", "reacquire"]


@pytest.mark.core
@redis_py_fails
def test_redis_py_breaks_in_another_thread(any_server, lock):
    theirs = any_server.redis().lock(lock, timeout=60)
    assert theirs.acquire()
    for question in QUESTIONS:
        with pytest.raises(AttributeError):
            call(getattr(theirs, question)).result()


@pytest.mark.core
def test_another_thread_holds_nothing_and_is_told_so(server, lock):
    mine = ours(server.url, lock)
    assert mine.acquire()

    def look():
        answers = [mine.local.token, mine.lost, mine.remaining(), mine.fence]
        return [*answers, *(outcome(getattr(mine, question)) for question in QUESTIONS)]

    assert call(look).result() == [None, False, 0.0, None, "False", "LockError", "LockError"]
    with pytest.raises(redis.exceptions.LockError) as caught:
        call(mine.extend, 5).result()
    assert not isinstance(caught.value, seckill.LockNotOwnedError)
    assert caught.value.lock_name == lock
    assert mine.owned() is True
    mine.release()
    assert not server.redis().exists(lock)


@pytest.mark.core
def test_without_thread_local_the_other_thread_may_release(server, lock):
    client = connected(server.url)
    mine = seckill.Lock(client, lock, timeout=60, thread_local=False)
    assert mine.acquire()
    assert call(mine.owned).result() is True
    call(mine.release).result()
    assert mine.local.token is None
    assert not server.redis().exists(lock)


# -- waiting --------------------------------------------------------------------------------------


@pytest.fixture
def sleepy(own_server):
    """A server that announces no expiry: so a busy one may behave for seconds."""
    own_server.redis().execute_command("DEBUG", "SET-ACTIVE-EXPIRE", "0")
    return own_server


@python_redis_lock_fails
def test_python_redis_lock_sleeps_past_a_crashed_holders_lease(sleepy):
    observer = sleepy.redis()
    observer.set("lock:name", "crashed", px=300)
    waiter = call(redis_lock.Lock(sleepy.redis(), "name").acquire).until_asleep()
    time.sleep(1.5)
    assert not observer.exists("lock:name")
    assert waiter.is_alive()
    observer.lpush("lock-signal:name", 1)  # for this test to end
    assert waiter.result() is True


@pytest.mark.core
def test_a_waiter_gets_the_lock_when_a_crashed_holders_lease_ends(sleepy):
    observer = sleepy.redis()
    mine = ours(sleepy.url, "name")
    observer.set("name", "crashed", px=300)
    waiter = call(mine.acquire)
    assert waiter.result(10) is True
    assert waiter.ended - waiter.started < 5


@python_redis_lock_fails
def test_python_redis_lock_starts_its_time_anew_at_each_wake_up(start_server):
    server = start_server()
    observer = server.redis()
    observer.set("lock:name", "other", px=60_000)
    theirs = redis_lock.Lock(server.redis(), "name", expire=60)
    with passed_over(observer, "lock:name", "lock-signal:name", every=0.1):
        waiter = call(theirs.acquire, timeout=1)
        time.sleep(3)
        assert waiter.is_alive(), "it has waited three times as long as it was allowed to"
    assert waiter.result() is False


def test_a_waiter_who_is_woken_in_vain_gives_up_in_time(own_server):
    observer = own_server.redis()
    observer.set("name", "other", px=60_000)
    client = connected(own_server.url, socket_timeout=1)
    mine = seckill.Lock(client, "name", timeout=60)
    with passed_over(observer, "name", every=0.1):
        waiter = call(mine.acquire, blocking_timeout=1)
        assert waiter.result(10) is False
    assert 0.8 < waiter.ended - waiter.started < 2.5
    assert mine.local.token is None
    assert observer.get("name").startswith(b"other")


@redis_py_fails
def test_redis_py_is_asleep_when_the_lock_is_released(any_server, lock):
    observer = any_server.redis()
    observer.set(lock, "other", px=60_000)
    waiter = call(observer.lock(lock, timeout=60, sleep=3).acquire).until_asleep()
    observer.delete(lock)
    time.sleep(0.5)
    assert waiter.is_alive()
    assert not observer.exists(lock)
    assert waiter.result() is True


def test_a_waiter_is_told_of_the_release_whatever_its_sleep(server, lock):
    observer = server.redis()
    mine = seckill.Lock(connected(server.url), lock, timeout=60, sleep=3)
    observer.set(lock, "other", px=60_000)
    waiter = call(mine.acquire, blocking_timeout=60).until_asleep()
    freed = time.monotonic()
    observer.delete(lock)
    assert waiter.result(10) is True
    assert waiter.ended - freed < 1.5


def asked_in_a_second(observer, waiters, *commands):
    """How often the server was asked by these commands, while they all wait."""

    def asked():
        counts = observer.info("commandstats")
        return sum(counts.get(f"cmdstat_{name}", {}).get("calls", 0) for name in commands)

    for waiter in waiters:
        waiter.until_asleep()
    before = asked()
    time.sleep(1)
    return asked() - before


@redis_py_fails
def test_redis_pys_waiters_poll_ten_times_a_second_each(any_server):
    observer = any_server.redis()
    observer.set("lock", "other", px=60_000)
    with resending(any_server.url) as client:
        waiters = [call(client.lock("lock").acquire, blocking_timeout=3) for _ in range(20)]
        assert asked_in_a_second(observer, waiters[:1], "set") > 50
        for waiter in waiters:
            assert waiter.result() is False


def test_a_crowd_that_waits_asks_hardly_anything(own_server):
    """One of them speaks for all, and says once a second that he is still there."""
    observer = own_server.redis()
    client = connected(own_server.url, socket_timeout=1)
    observer.set("lock", "other", px=60_000)
    locks = [seckill.Lock(client, "lock", timeout=60, sleep=0.1) for _ in range(20)]
    waiters = [call(lock.acquire, blocking_timeout=3) for lock in locks]
    assert asked_in_a_second(observer, waiters, "eval", "evalsha") < 5
    for waiter in waiters:
        assert waiter.result() is False


# -- after a loss ---------------------------------------------------------------------------------


@pytest.fixture
def ends_of_threads(monkeypatch):
    """What threads ended with: nobody else is told."""
    ends = []
    monkeypatch.setattr(threading, "excepthook", lambda end: ends.append(end.exc_type))
    return ends


@python_redis_lock_fails
def test_python_redis_lock_is_of_no_use_after_a_loss(any_server, name, ends_of_threads):
    observer = any_server.redis()
    theirs = redis_lock.Lock(any_server.redis(), name("peer"), expire=1, auto_renewal=True)
    assert theirs.acquire()
    observer.delete(name("lock:peer"))
    wait_until(lambda: ends_of_threads == [redis_lock.NotAcquired])
    with pytest.raises(redis_lock.NotAcquired):
        theirs.release()
    with pytest.raises(redis_lock.AlreadyStarted):
        theirs.acquire()
    assert observer.exists(name("lock:peer")), "and now it is locked"


@pytest.mark.core
@pytest.mark.parametrize("by", ["deletion", "theft"])
@pytest.mark.parametrize("released", [True, False])
def test_a_lock_can_be_taken_again_after_a_loss(server, lock, by, released):
    observer = server.redis()
    mine = seckill.Lock(connected(server.url), lock, timeout=1, auto_renew=True)
    for _ in range(2):
        assert mine.acquire()
        if by == "theft":
            observer.set(lock, "thief", px=60_000)
        else:
            observer.delete(lock)
        wait_until(lambda: mine.lost)
        assert mine.remaining() == 0
        assert mine.owned() is False
        assert observer.get(lock) == (b"thief" if by == "theft" else None)
        if released:
            with pytest.raises(seckill.LockLostError):
                mine.release()
            assert mine.local.token is None
            assert outcome(mine.release) == "LockError"
        observer.delete(lock)
    assert mine.acquire()
    assert mine.lost is False
    mine.ensure_held()
    assert observer.get(lock) == mine.local.token
    mine.release()
    assert not observer.exists(lock)
