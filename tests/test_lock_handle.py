"""What a lock object is beyond redis-py's: it knows its lease, and tells its state and its loss.

The first of these tests are held against the awaited lock too, where a thread is a task.
"""

from __future__ import annotations

import inspect
import math
import pickle
import threading
import time

import pytest
import seckill
import valkey
from support.locks import DIRECT, SOMEBODY, locks, server_of_the_place
from support.programs import run
from support.proxy import Fault
from support.threads import all_of, call, wait_until

pytestmark = pytest.mark.core

server = server_of_the_place
make = locks(DIRECT)


# -- the lease --------------------------------------------------------------------------------


def test_a_lock_knows_how_much_of_its_lease_is_left(make, lock):
    made = make(lock, timeout=60)
    assert (made.lost, made.remaining()) == (False, 0.0)
    made.acquire()
    assert made.lost is False
    assert 50 < made.remaining() <= 60
    made.extend(60)
    assert 110 < made.remaining() <= 120
    made.extend(30, replace_ttl=True)
    assert 20 < made.remaining() <= 30
    made.reacquire()
    assert 50 < made.remaining() <= 60
    made.release()
    assert (made.lost, made.remaining()) == (False, 0.0)


def test_a_lock_without_timeout_has_no_end(make, lock):
    made = make(lock)
    made.acquire()
    assert (made.lost, made.remaining()) == (False, math.inf)
    made.release()
    assert (made.lost, made.remaining()) == (False, 0.0)


def test_what_remains_is_never_more_than_the_server_gives(
    make, lock, redis_py, server, start_proxy
):
    """Though the answers take their time: the lease began before they set out."""
    proxy = start_proxy(server)
    made = make.at(proxy.url)(lock, timeout=60)
    made.locked()
    for step in (made.acquire, made.reacquire, lambda: made.extend(5), made.reacquire):
        proxy.strike(Fault("delay", seconds=0.2))
        step()
        given = redis_py.pttl(lock)
        # The server counts in whole milliseconds.
        assert 0 < made.remaining() * 1000 <= given + 1
    made.release()


def test_a_lock_is_lost_when_its_lease_has_ended(make, lock):
    made = make(lock, timeout=0.1)
    made.acquire()
    wait_until(lambda: made.lost)
    assert made.lost is True
    assert made.remaining() == 0.0


def test_to_look_at_the_lease_asks_nobody(make, lock):
    made = make(lock, timeout=60)
    made.acquire()
    asked = make.client.statistics()["calls"]
    assert made.lost is False
    assert made.remaining() > 0
    assert made.fence > 0
    assert lock in repr(made)
    assert made.statistics()["acquired"] == 1
    assert make.client.statistics()["calls"] == asked
    made.release()


ASK = {
    "ensure_held": lambda made: made.ensure_held(),
    "extend": lambda made: made.extend(1),
    "reacquire": lambda made: made.reacquire(),
    "release": lambda made: made.release(),
}


@pytest.mark.parametrize("ask", ASK)
@pytest.mark.parametrize("now", [SOMEBODY, None])
def test_a_lock_is_lost_when_the_server_says_so(make, lock, redis_py, ask, now):
    made = make(lock, timeout=60)
    made.acquire()
    redis_py.delete(lock)
    if now:
        redis_py.set(lock, now)
    assert made.lost is False, "nobody has told"
    with pytest.raises(seckill.LockLostError) as caught:
        ASK[ask](made)
    assert caught.value.lock_name == lock
    assert (made.lost, made.remaining()) == (True, 0.0)
    assert redis_py.get(lock) == now


def test_a_lock_is_lost_when_it_is_seen_to_be_anothers(make, lock, redis_py):
    made = make(lock)
    made.acquire()
    redis_py.set(lock, SOMEBODY)
    assert made.owned() is False
    assert (made.lost, made.remaining()) == (True, 0.0)


@pytest.mark.parametrize("released", [True, False])
def test_a_lost_lock_can_be_acquired_anew(make, lock, redis_py, released):
    made = make(lock, timeout=60)
    made.acquire()
    redis_py.delete(lock)
    with pytest.raises(seckill.LockLostError):
        made.release() if released else made.ensure_held()
    assert made.acquire(blocking=False) is True
    assert made.lost is False
    assert made.remaining() > 50
    made.ensure_held()
    made.release()
    assert not redis_py.exists(lock)


def test_ensure_held_asks_the_server(make, lock, redis_py):
    made = make(lock, timeout=60)
    made.acquire()
    redis_py.pexpire(lock, 30_000)
    asked = make.client.statistics()["calls"]
    assert made.ensure_held() is None
    assert make.client.statistics()["calls"] == asked + 1
    assert redis_py.pttl(lock) <= 30_000, "it changes nothing"
    made.release()


def test_ensure_held_of_what_is_not_held_is_a_lock_error(make, lock):
    made, other = make(lock, timeout=60), make(lock)

    def nothing_is_held():
        with pytest.raises(seckill.LockError) as caught:
            made.ensure_held()
        assert not isinstance(caught.value, seckill.LockNotOwnedError)
        assert caught.value.lock_name == lock

    nothing_is_held()
    other.acquire()
    nothing_is_held()
    other.release()
    made.acquire()
    call(nothing_is_held).result()  # in another thread
    made.ensure_held()
    made.release()
    nothing_is_held()


def test_each_thread_sees_its_own_acquisition(make, lock, redis_py):
    made = make(lock, timeout=60)
    made.acquire()
    redis_py.delete(lock)

    def other():
        state = [made.lost, made.remaining(), made.fence]
        made.acquire(blocking=False)
        return state, made.fence

    before, fence = call(other).result()
    assert before == [False, 0.0, None]
    assert made.fence < fence
    assert made.owned() is False
    assert made.lost is True


# -- what it tells of itself ------------------------------------------------------------------


def test_its_repr_tells_its_name_and_state(make, lock, redis_py):
    made = make(lock, timeout=60)
    told = [repr(made)]
    made.acquire()
    told.append(repr(made))
    redis_py.delete(lock)
    assert made.owned() is False
    told.append(repr(made))
    made.acquire()
    made.release()
    assert all(lock in text for text in told)
    assert len(set(told)) == 3
    assert "lost" in told[2]
    assert not any("lost" in text for text in told[:2])
    assert repr(made) == told[0]


def test_no_repr_tells_a_token_or_password(make, lock, start_server):
    server = start_server(password="open-sesame")
    made = make.at(server.url)(lock, timeout=60)
    made.acquire()
    assert "open-sesame" not in repr(made)
    assert made.local.token.decode("latin-1") not in repr(made)
    made.release()


def test_it_counts_what_became_of_its_acquisitions(make, lock, redis_py):
    made = make(lock, timeout=60)
    counts = ["acquired", "refused", "released", "lost", "renewed", "waited"]
    assert made.statistics() == dict.fromkeys(counts, 0)
    made.acquire()
    assert made.acquire(blocking=False) is False
    assert made.acquire(blocking_timeout=0.2) is False
    made.release()
    made.acquire()
    redis_py.delete(lock)
    with pytest.raises(seckill.LockLostError):
        made.release()
    counts = made.statistics()
    assert 0.1 < counts.pop("waited") < 20
    assert counts == {"acquired": 2, "refused": 2, "released": 1, "lost": 1, "renewed": 0}


# -- on which server --------------------------------------------------------------------------


def test_a_lock_takes_any_client_or_url(server, lock, redis_py):
    sources = [seckill.Client(server.url), redis_py, valkey.Valkey(server.host, server.port)]
    sources += [server.url, None]
    seckill.configure(server.url)
    for source in sources:
        made = seckill.Lock(source, lock, timeout=60)
        assert made.redis is source
        assert made.acquire(blocking=False) is True
        assert redis_py.get(lock) == made.local.token
        for other in sources:
            assert seckill.Lock(other, lock).acquire(blocking=False) is False
        made.release()
        assert not redis_py.exists(lock)


def test_valkey_py_makes_locks_of_ours(server, lock, redis_py):
    made = valkey.Valkey(server.host, server.port).lock(lock, timeout=5, lock_class=seckill.Lock)
    with made:
        assert redis_py.get(lock) == made.local.token
    with pytest.raises(seckill.LockError):
        made.release()


def test_without_a_client_it_is_the_default_client_of_the_moment(server, start_server, lock):
    made = seckill.Lock(None, lock, timeout=60)
    seckill.configure(server.url)
    with made:
        assert server.redis().exists(lock)
    other = start_server()
    seckill.configure(other.url)
    with made:
        assert other.redis().exists(lock)
        assert not server.redis().exists(lock)


def test_locks_of_one_redis_py_client_share_a_connection(start_server):
    server = start_server()
    observer = server.redis()
    theirs = server.redis()
    before = len(observer.client_list())
    made = [theirs.lock(f"lock:{number}", lock_class=seckill.Lock) for number in range(20)]
    for each in made:
        each.acquire()
    assert len(observer.client_list()) <= before + 2
    for each in made:
        each.release()


def lock_without_redis_py(url):
    import sys

    import seckill

    lock = seckill.Lock(url, "lock", timeout=5)
    with lock:
        lock.extend(5)
    try:
        lock.release()
    except seckill.LockError as error:
        told = [type(error) is seckill.LockError, error.lock_name, error.message == str(error)]
    return [*told, "redis" in sys.modules]


def test_without_redis_py_it_is_the_plain_lock_error(server):
    assert run(lock_without_redis_py, server.url).value == [True, "lock", True, False]


# -- decorator --------------------------------------------------------------------------------


def test_a_lock_decorates_a_function(client, lock, redis_py):
    @seckill.Lock(client, lock, timeout=60)
    def double(number, *, plus=0):
        """Twice as much."""
        assert redis_py.exists(lock)
        if number < 0:
            raise ZeroDivisionError
        return 2 * number + plus

    assert double(3, plus=1) == 7
    assert not redis_py.exists(lock)
    with pytest.raises(ZeroDivisionError):
        double(-1)
    assert not redis_py.exists(lock)
    assert (double.__name__, double.__doc__) == ("double", "Twice as much.")
    assert list(inspect.signature(double).parameters) == ["number", "plus"]


def test_a_decorated_function_does_not_run_without_the_lock(client, lock, redis_py):
    redis_py.set(lock, SOMEBODY)

    @seckill.Lock(client, lock, blocking=False)
    def work():
        pytest.fail("this is not locked")

    with pytest.raises(seckill.LockError) as caught:
        work()
    assert caught.value.lock_name == lock


def test_threads_in_a_decorated_function_take_turns(client, lock):
    inside = []

    @seckill.Lock(client, lock, timeout=60)
    def work():
        inside.append(1)
        assert len(inside) == 1
        time.sleep(0.001)
        inside.pop()

    all_of([work] * 16)


# -- pickle -----------------------------------------------------------------------------------


def test_a_held_lock_is_not_pickled(client, lock):
    made = seckill.Lock(client, lock, timeout=60)
    made.acquire()
    with pytest.raises(TypeError, match="held"):
        pickle.dumps(made)
    made.release()
    pickle.dumps(made)


def test_a_lock_is_pickled_with_its_settings(server, client, lock, redis_py):
    options = {"timeout": 60, "sleep": 0.2, "blocking": False, "blocking_timeout": 3}
    options |= {"thread_local": False, "raise_on_release_error": False}
    for source in (client, server.url, None):
        seckill.configure(server.url)
        made = seckill.Lock(source, lock, **options, auto_renew=True, max_hold=100, fair=True)
        made.acquire()
        made.release()
        copy = pickle.loads(pickle.dumps(made))
        assert type(copy) is seckill.Lock
        assert copy.name == lock
        assert {name: getattr(copy, name) for name in options} == options
        assert (copy.local.token, copy.fence, copy.statistics()["acquired"]) == (None, None, 0)
        with copy:
            assert redis_py.exists(lock)
            assert made.acquire() is False
        assert repr(copy) == repr(made)


# -- on_lost ----------------------------------------------------------------------------------


class Told(list):
    """What is called with a lock that was lost; the threads in which it was called."""

    def __call__(self, lock):
        self.append((lock, threading.current_thread()))


def test_on_lost_is_called_with_the_lock_at_the_end_of_its_lease(client, lock, redis_py):
    told = Told()
    made = seckill.Lock(client, lock, timeout=0.1, on_lost=told)
    made.acquire()
    wait_until(lambda: told)
    assert made.lost is True
    [(who, thread)] = told
    assert who is made
    assert thread not in (threading.main_thread(), threading.current_thread())
    wait_until(lambda: not redis_py.exists(lock))  # the server gives a bit more
    with pytest.raises(seckill.LockLostError):
        made.release()
    time.sleep(0.05)
    assert len(told) == 1, "once"


def test_on_lost_is_called_when_a_renewal_finds_the_lock_gone(client, lock, redis_py):
    told = Told()
    made = seckill.Lock(client, lock, timeout=0.6, auto_renew=True, on_lost=told)
    made.acquire()
    redis_py.set(lock, SOMEBODY, px=60_000)
    wait_until(lambda: told)
    assert [who for who, _ in told] == [made]
    assert made.lost is True
    assert redis_py.get(lock) == SOMEBODY
    assert redis_py.pttl(lock) > 30_000


def test_on_lost_is_not_called_for_what_was_released(client, lock):
    told = Told()
    made = seckill.Lock(client, lock, timeout=0.1, on_lost=told)
    for _ in range(3):
        made.acquire()
        made.release()
    time.sleep(0.3)
    assert told == []


def test_on_lost_is_called_for_every_loss(client, lock):
    told = Told()
    made = seckill.Lock(client, lock, timeout=0.05, on_lost=told)
    for losses in range(1, 4):
        made.acquire()
        wait_until(lambda losses=losses: len(told) == losses)
    assert made.statistics()["lost"] == 3
