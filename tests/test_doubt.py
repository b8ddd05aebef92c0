"""What may have been applied already is not called undone, and not done again."""

from __future__ import annotations

import time

import pytest
import seckill
from support.relay import Relay
from support.threads import all_of

pytestmark = pytest.mark.core


@pytest.fixture
def relay(own_server):
    relay = Relay((own_server.host, own_server.port))
    yield relay
    relay.close()


def test_a_refusal_as_late_holds_against_a_delayed_copy_with_a_later_deadline(own_server, relay):
    """The copy that is asked for again learns the server's clock over a slow handshake, so its
    deadline is earlier than that of the first copy, which is still under way."""
    observer = own_server.redis()
    client = seckill.Client(relay.url)
    client.incr_inventory("stock", 100)
    first_copy, replies, delivered = [], [], []

    def request(connection, data, on):
        if connection == 0:
            first_copy.append((data, on))
            return
        if len(replies) == 2 and not delivered:  # "late" has been answered: the next batch comes
            delivered.append(True)
            before = observer.info("commandstats")
            for held, way in first_copy:
                way(held)
            while observer.info("commandstats").get("cmdstat_evalsha") == before.get(
                "cmdstat_evalsha"
            ):
                time.sleep(0.001)
        on(data)

    def reply(connection, data, on):
        if connection == 1:
            replies.append(data)
            if len(replies) == 1:
                time.sleep(0.7)  # the handshake
        on(data)

    relay.on_request, relay.on_reply = request, reply
    client.update_inventory("lock", "stock", -1, time_out=2000)
    assert delivered, "the plot did not unfold"
    assert replies[1].rstrip().endswith(b"L")
    assert observer.get("stock") == b"99"


@pytest.mark.parametrize("forbidden", [["-evalsha", "-eval"], ["-select"]])
def test_a_server_that_refuses_after_a_lost_reply_leaves_the_outcome_unknown(
    own_server, relay, forbidden
):
    observer = own_server.redis(db=1)
    observer.execute_command("ACL", "SETUSER", "shop", "on", ">pw", "~*", "&*", "+@all")
    url = f"redis://shop:pw@127.0.0.1:{relay.port}/1"
    client = seckill.Client(url)
    client.incr_inventory("stock", 100)

    def reply(connection, data, on):
        if connection == 0:
            observer.execute_command("ACL", "SETUSER", "shop", *forbidden)
        else:
            on(data)

    relay.on_reply = reply
    with pytest.raises(seckill.OutcomeUnknown, match="NOPERM"):
        client.update_inventory("lock", "stock", -1)
    assert observer.get("stock") == b"99"
    # Without a doubt it is what the server says.
    with pytest.raises(seckill.ServerError, match="NOPERM"):
        client.update_inventory("lock", "stock", -1)


def test_a_dead_server_is_nobodys_false(own_server):
    """Also for those who queue behind another thread: nobody has said that the lock is held."""
    client = seckill.Client(own_server.url)
    client.incr_inventory("warm", 0)
    own_server.kill()
    outcomes = []

    def contender():
        try:
            outcomes.append(client.acquire_lock("lock", 5000, 1500))
        except seckill.ConnectionError as error:
            outcomes.append(type(error).__name__)

    all_of([contender] * 4)
    assert len(outcomes) == 4
    assert set(outcomes) <= {"ConnectionError", "OutcomeUnknown"}, outcomes
