"""TLS: who is believed, what is told when somebody is not, and that all else stays as it is."""

from __future__ import annotations

import asyncio
import os
import pickle
import re
import signal
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest
import redis
import redis.asyncio
import seckill
import seckill.aio
import valkey
from support.aio import every_call, on_loop
from support.certificates import Authority, Certificate, self_signed
from support.clients import connected, on_sale, sold_more
from support.ledger import Ledger
from support.programs import run
from support.proxy import Proxy, SilentHost, random_faults
from support.relay import Relay
from support.servers import SECURE
from support.threads import all_of, call, wait_until
from support.tls_front import TlsFront

STRESS = bool(os.environ.get("SECKILL_STRESS"))


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def certificate(authority):
    return authority.issue("localhost", "127.0.0.1")


@pytest.fixture
def start_secure(start_server, certificate):
    """A private server with TLS: `start_secure(*configuration lines, certificate=...)`."""

    def start(*options, certificate: Certificate = certificate):
        return start_server(*options, kind=SECURE, certificate=certificate)

    return start


@pytest.fixture
def secure(start_secure):
    return start_secure()


@pytest.fixture
def start_front(start_server):
    """Put a TLS server of our own choice in front of a real one."""
    fronts = []

    def start(certificate, set_up=lambda _context: None):
        server = start_server()
        fronts.append(TlsFront((server.host, server.port), certificate, set_up))
        return fronts[-1]

    yield start
    for front in fronts:
        front.__exit__()


def sells(client):
    client.incr_inventory("stock", 10)
    client.update_inventory("lock", "stock", -1)
    assert client.acquire_lock("lock", 60_000, 0) is True
    client.update_inventory("lock", "stock", -1)
    client.release_lock("lock")
    return True


def refusal(client, within=5.0):
    """What a call ends with that cannot have a connection: at once, and nothing was sent."""
    start = time.monotonic()
    with pytest.raises(seckill.ConnectionError) as caught:
        client.update_inventory("lock", "stock", -1, time_out=30_000)
    assert time.monotonic() - start < within
    assert not isinstance(caught.value, seckill.OutcomeUnknown | seckill.AuthenticationError)
    assert caught.value.sent is False
    return str(caught.value)


# -- how to ask for it -------------------------------------------------------------------------


@pytest.mark.core
@pytest.mark.parametrize("scheme", ["rediss", "valkeys", "REDISS"])
def test_the_scheme_asks_for_it(secure, scheme):
    assert sells(seckill.Client(secure.tls_url.replace("rediss", scheme)))
    assert secure.redis().get("stock") == b"8"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
@pytest.mark.parametrize("how", ["file", "path", "directory", "pem", "pem bytes", "der"])
def test_the_keywords_ask_for_it(secure, authority, tmp_path, host, how):
    (tmp_path / "one.pem").write_bytes(authority.pem)
    (tmp_path / "notes.txt").write_text("not a certificate")
    ca = {
        "file": {"ssl_ca_certs": str(authority.file)},
        "path": {"ssl_ca_certs": authority.file},
        "directory": {"ssl_ca_path": tmp_path},
        "pem": {"ssl_ca_data": authority.pem.decode()},
        "pem bytes": {"ssl_ca_data": authority.pem},
        "der": {"ssl_ca_data": authority.der * 2},
    }
    assert sells(seckill.Client(host=host, port=secure.tls_port, ssl=True, **ca[how]))


@pytest.mark.parametrize("library", [redis.Redis, redis.asyncio.Redis, valkey.Valkey])
def test_an_instance_asks_for_it(secure, authority, library):
    theirs = library(
        host="localhost", port=secure.tls_port, ssl=True, ssl_ca_certs=str(authority.file)
    )
    assert sells(seckill.Client(theirs))


@pytest.mark.usefixtures("loop_kind")
async def test_it_is_awaited_as_well(secure, name):
    async with seckill.aio.Client(secure.tls_url) as shop:
        assert await every_call(shop, name) == 7
        await asyncio.gather(*(shop.incr_inventory("crowd", 1) for _ in range(1000)))
    assert secure.redis().get("crowd") == b"1000"


def test_the_system_says_whom_to_believe_if_nobody_else_does(secure, authority):
    environment = {"SSL_CERT_FILE": str(authority.file), "SSL_CERT_DIR": ""}
    other = Authority(authority.file.parent, "other").pem.decode()
    ended = run(trust_of_the_system, secure.tls_port, other, env=environment)
    assert "is not signed by a CA that is trusted here" in ended.value
    assert secure.redis().get("stock") == b"2"


def trust_of_the_system(port, other):
    import seckill

    for _ in range(2):
        seckill.Client(host="localhost", port=port, ssl=True).incr_inventory("stock", 1)
    client = seckill.Client(host="localhost", port=port, ssl=True, ssl_ca_data=other)
    try:
        client.incr_inventory("stock", 1)
    except seckill.ConnectionError as error:
        return str(error)


def test_a_client_travels_with_all_that_was_said_of_it(authority):
    client = seckill.Client(
        host="h",
        ssl=True,
        ssl_ca_certs="/ca.pem",
        ssl_ca_data=authority.der,
        ssl_certfile=Path("/our.pem"),
        ssl_keyfile="/our.key",
        ssl_check_hostname=False,
        ssl_min_version=ssl.TLSVersion.TLSv1_3,
    )
    arrived = pickle.loads(pickle.dumps(client))
    assert arrived.settings() == client.settings()
    assert arrived.settings().items() >= {"ssl": True, "ssl_min_version": 772}.items()
    assert repr(client) == "Client('rediss://h:6379/0')"


# -- who is not believed -----------------------------------------------------------------------

BAD = {
    "another CA": "is not signed by a CA that is trusted here",
    "expired": "has expired",
    "not valid yet": "is not valid yet, or the clock of this machine is slow",
    "another host": "is for another host name: for shop.example, not for localhost",
    "a CA's own": "is a CA's own: a server wants one that its CA has signed",
}


@pytest.fixture(params=BAD)
def bad(request, authority, tmp_path):
    """A certificate that is not to be believed, whom the client trusts, and what it says."""
    kind = request.param
    made = {
        "another CA": lambda: authority.issue("localhost"),
        "expired": lambda: authority.issue("localhost", days=(-30, -1)),
        "not valid yet": lambda: authority.issue("localhost", days=(1, 30)),
        "another host": lambda: authority.issue("shop.example"),
        "a CA's own": lambda: self_signed(tmp_path),
    }[kind]()
    trusted = Authority(tmp_path, "other") if kind == "another CA" else made.authority
    return made, trusted.file, BAD[kind]


def test_a_server_that_is_not_believed_is_an_error_that_says_why(start_secure, bad):
    certificate, trusted, words = bad
    server = start_secure(certificate=certificate)
    client = seckill.Client(host="localhost", port=server.tls_port, ssl=True, ssl_ca_certs=trusted)
    for _ in range(2):
        message = refusal(client)
        assert message.startswith(f"cannot connect to localhost:{server.tls_port}: the server's")
        assert re.search(words, message), message
    awaited = seckill.aio.Client(
        host="localhost", port=server.tls_port, ssl=True, ssl_ca_certs=trusted
    )

    async def main():
        with pytest.raises(seckill.ConnectionError, match=words):
            await awaited.incr_inventory("stock", 1)
        await awaited.aclose()

    on_loop(main())
    assert not server.redis().exists("stock")


@pytest.mark.parametrize("names_and_days", [("localhost", -1), ("shop.example", 30)])
def test_nor_is_it_waited_for_by_a_client_that_was_connected_before(
    start_secure, authority, names_and_days
):
    server = start_secure("tls-session-caching no")
    client = connected(server.tls_url)
    server.kill()
    name, days = names_and_days
    server.certificate = authority.issue(name, days=(-30, days))
    server.start()
    with pytest.raises(seckill.ConnectionError, match="the server's certificate"):
        client.update_inventory("lock", "stock", -1, time_out=30_000)  # was under way when it broke
    assert "the server's certificate" in refusal(client)


def test_a_certificate_that_was_put_right_is_found_at_the_next_call(start_secure, tmp_path):
    first, second = Authority(tmp_path, "first"), Authority(tmp_path, "second")
    server = start_secure(certificate=second.issue("localhost"))
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(first.pem)
    client = seckill.Client(host="localhost", port=server.tls_port, ssl=True, ssl_ca_certs=trusted)
    assert "is not signed by a CA" in refusal(client)
    trusted.write_bytes(first.pem + second.pem)
    assert sells(client)


def test_another_host_name_will_do_if_the_caller_says_so(start_secure, authority, tmp_path):
    server = start_secure(certificate=authority.issue("shop.example"))
    place = {"host": "localhost", "port": server.tls_port, "ssl": True}
    lenient = {"ssl_check_hostname": False}
    assert sells(seckill.Client(**place, **lenient, ssl_ca_certs=authority.file))
    other = Authority(tmp_path, "other")
    client = seckill.Client(**place, **lenient, ssl_ca_certs=other.file)
    assert "is not signed by a CA that is trusted here" in refusal(client)


@pytest.mark.parametrize("none", ["none", None, ssl.CERT_NONE])
def test_anybody_will_do_if_the_caller_says_so(start_secure, tmp_path, none):
    server = start_secure(certificate=self_signed(tmp_path))
    place = {"host": "127.0.0.1", "port": server.tls_port, "ssl": True}
    assert sells(seckill.Client(**place, ssl_cert_reqs=none))
    assert sells(seckill.Client(redis.Redis(**place, ssl_cert_reqs=none)))


# -- who we are --------------------------------------------------------------------------------


def test_a_client_shows_its_certificate(start_secure, authority, tmp_path):
    server = start_secure("tls-auth-clients yes")
    ours = authority.issue("client")
    both = tmp_path / "both.pem"
    both.write_bytes(ours.key.read_bytes() + ours.file.read_bytes())
    for shown in ({"ssl_certfile": ours.file, "ssl_keyfile": ours.key}, {"ssl_certfile": both}):
        assert sells(seckill.Client(server.tls_url, **shown))


@pytest.mark.parametrize("protocols", ["TLSv1.2", "TLSv1.3"])
def test_a_client_without_the_certificate_that_is_wanted_is_told_so(
    start_secure, tmp_path, protocols
):
    server = start_secure("tls-auth-clients yes", f"tls-protocols {protocols}")
    for _ in range(20):  # the server's alert and its hanging up are a race
        assert "a certificate of ours (ssl_certfile)" in refusal(seckill.Client(server.tls_url))
    strange = Authority(tmp_path, "strange").issue("client")
    shown = {"ssl_certfile": strange.file, "ssl_keyfile": strange.key}
    for _ in range(20):
        message = refusal(seckill.Client(server.tls_url, **shown))
        assert "the server does not accept our certificate" in message


@pytest.mark.parametrize(
    ("keyword", "words"),
    [
        ("ssl_ca_certs", "ssl_ca_certs: cannot read /nowhere: "),
        ("ssl_ca_path", "ssl_ca_path: cannot read /nowhere: "),
        ("ssl_certfile", "ssl_certfile: cannot read /nowhere: "),
    ],
)
def test_a_file_that_is_not_there_is_named(secure, keyword, words):
    place = {"host": "localhost", "port": secure.tls_port, "ssl": True}
    assert words in refusal(seckill.Client(**place, **{keyword: "/nowhere"}))


def test_a_file_with_something_else_in_it_is_named(secure, certificate, tmp_path):
    other = tmp_path / "other.pem"
    other.write_text("no certificate")
    place = {"host": "localhost", "port": secure.tls_port, "ssl": True}
    assert f"no certificate in {other}" in refusal(seckill.Client(**place, ssl_ca_certs=other))
    data = {"ssl_ca_data": b"0\x82\x10\x00"}
    assert "ssl_ca_data is neither PEM nor DER" in refusal(seckill.Client(**place, **data))
    keys = {"ssl_certfile": certificate.file, "ssl_keyfile": certificate.file}
    assert "ssl_keyfile: cannot read" in refusal(seckill.Client(secure.tls_url, **keys))


# -- which TLS ---------------------------------------------------------------------------------


@pytest.mark.parametrize("protocols", ["TLSv1.2", "TLSv1.3"])
def test_both_versions_are_spoken(start_secure, protocols):
    assert sells(seckill.Client(start_secure(f"tls-protocols {protocols}").tls_url))


def test_the_least_version_is_for_the_caller_to_say(start_secure):
    server = start_secure("tls-protocols TLSv1.2")
    for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_2):
        assert sells(seckill.Client(server.tls_url, ssl_min_version=version))
    client = seckill.Client(server.tls_url, ssl_min_version=ssl.TLSVersion.TLSv1_3)
    assert "the server and we have no TLS in common" in refusal(client)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_the_second_connection_resumes_the_session_of_the_first(start_front, certificate, version):
    def only(context):
        context.maximum_version = version

    front = start_front(certificate, only)
    client = seckill.Client(front.url)
    for _ in range(3):
        client.incr_inventory("stock", 1)
        client.close()
    assert front.resumed == [False, True, True]
    seckill.Client(front.url).incr_inventory("stock", 1)
    assert front.resumed[3:] == [False], "each client has sessions of its own"


# -- ports that speak something else -----------------------------------------------------------


def test_tls_to_a_port_in_the_clear_is_told(own_server):
    """Redis reads on and on for the end of a line that does not come."""
    url = f"rediss://{own_server.host}:{own_server.port}?ssl_cert_reqs=none"
    message = refusal(seckill.Client(url, socket_timeout=0.3))
    assert "agreeing on TLS (does this port speak it?) took longer than 300ms" in message


def test_tls_to_a_port_that_answers_in_the_clear_is_told():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            guest, _ = listener.accept()
            guest.recv(4096)
            guest.sendall(b"-ERR unknown command\r\n")
            return guest

        answering = call(answer)
        url = f"rediss://127.0.0.1:{listener.getsockname()[1]}?ssl_cert_reqs=none"
        assert "what answers does not speak TLS" in refusal(seckill.Client(url))
        answering.result().close()


def test_in_the_clear_to_a_port_with_tls_is_told(secure):
    client = seckill.Client(host="localhost", port=secure.tls_port)
    assert "(does this port want TLS? rediss://, ssl=True)" in refusal(client)


def test_a_host_that_says_nothing_costs_one_connect_time_out():
    with SilentHost() as host:
        client = seckill.Client(
            f"rediss://{host.host}:{host.port}?ssl_cert_reqs=none", socket_connect_timeout=0.3
        )
        start = time.monotonic()
        assert "agreeing on TLS (does this port speak it?) took longer than 300ms" in refusal(
            client
        )
        assert time.monotonic() - start > 0.25


def test_ctrl_c_ends_the_wait_for_a_handshake():
    with SilentHost() as host:
        client = seckill.Client(
            f"rediss://{host.host}:{host.port}?ssl_cert_reqs=none", socket_connect_timeout=20
        )
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        start = time.monotonic()
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            client.acquire_lock("lock", 60_000, 30_000)
        assert time.monotonic() - start < 2


# -- what stays as it is -----------------------------------------------------------------------


def test_a_request_larger_than_every_buffer_gets_through(secure):
    client = seckill.Client(secure.tls_url, socket_timeout=10)
    names = [f"{number}".encode() * 300_000 for number in range(4)]
    all_of([lambda name=name: client.incr_inventory(name, 1) for name in names])
    assert [secure.redis().get(name) for name in names] == [b"1"] * 4


def test_who_waits_for_a_lock_is_told_over_tls(secure):
    observer = secure.redis()
    client, other = seckill.Client(secure.tls_url), seckill.Client(secure.tls_url)
    assert other.acquire_lock("lock", 60_000)
    waiting = call(client.acquire_lock, "lock", 60_000, 30_000).until_asleep()

    def listening():
        return [one for one in observer.client_list() if "t" in one["flags"]]

    wait_until(listening)
    ports = {one["laddr"].rpartition(":")[2] for one in listening()}
    assert ports == {str(secure.tls_port)}
    other.release_lock("lock")
    assert waiting.result(10) is True


def test_a_bad_network_costs_nobody_anything(secure, tmp_path):
    seed = int(time.time())
    with Proxy((secure.host, secure.tls_port), random_faults(seed, mean_bytes=12_000)) as proxy:
        url = secure.tls_url.replace(f":{secure.tls_port}", f":{proxy.port}")
        client = seckill.Client(url, socket_timeout=0.3, timeout=60)
        proxy.faults, faults = (lambda: None), proxy.faults
        client.incr_inventory("warm", 0)
        secure.redis().set("stock", 1_000_000)
        proxy.faults = faults
        client.close()
        ledger = Ledger()
        times = 2000 if STRESS else 150

        def buyer():
            for _ in range(times):
                ledger.buy(client.update_inventory, "lock", "stock", 1, time_out=60_000)

        all_of([buyer] * 4, within=240)
        assert proxy.faults_met > 3, f"seed {seed}"
    assert ledger.sold == ledger.calls, f"seed {seed}: {ledger}"
    assert int(secure.redis().get("stock")) == 1_000_000 - ledger.sold, f"seed {seed}"


def test_killed_connections_are_replaced_in_mid_sale(secure):
    client = seckill.Client(secure.tls_url)
    observer = secure.redis()
    ledger, end = on_sale(secure, client, 1_000_000, time_out=60_000)
    for _ in range(10):
        observer.client_kill_filter(_type="normal", skipme=True)
        sold_more(ledger, 20)
    end()
    assert ledger.sold == ledger.calls, ledger
    assert int(observer.get("stock")) == 1_000_000 - ledger.sold


@pytest.mark.core
def test_a_child_writes_nothing_on_the_connection_of_its_parent(secure):
    """No request, no alert, no close_notify: not when it sells, nor when it drops the client."""
    relay = Relay((secure.host, secure.tls_port))
    seen = {}

    def count(connection, data, on):
        seen[connection] = seen.get(connection, 0) + len(data)
        on(data)

    relay.on_request = count
    try:
        url = secure.tls_url.replace(f":{secure.tls_port}", f":{relay.port}")
        client = seckill.Client(url)
        client.incr_inventory("stock", 10)
        before = dict(seen)
        for _ in range(3):
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    client.update_inventory("lock", "stock", -1)
                    client.close()
                    del client
                    status = 0
                finally:
                    os._exit(status)
            assert os.waitpid(pid, 0)[1] == 0
        assert seen[0] == before[0]
        assert len(seen) == 4
        client.update_inventory("lock", "stock", -1)
        assert len(seen) == 4, "the parent's connection is unharmed"
        assert seen[0] > before[0]
    finally:
        relay.close()
    assert secure.redis().get("stock") == b"6"


def fork_in_mid_handshake(url, forks):
    import os
    import threading

    import seckill

    clients = [seckill.Client(url) for _ in range(3)]
    over = threading.Event()

    def buyer(client):
        while not over.is_set():
            client.incr_inventory("stock", 1)
            client.close()  # so that somebody is always in the middle of a handshake

    threads = [threading.Thread(target=buyer, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    bad = []
    for _ in range(forks):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                for client in clients:
                    client.incr_inventory("children", 1)
                status = 0
            finally:
                os._exit(status)
        if os.waitpid(pid, 0)[1]:
            bad.append(pid)
    over.set()
    for thread in threads:
        thread.join()
    return bad


@pytest.mark.core
def test_children_of_a_process_in_mid_handshake_sell(secure):
    forks = 500 if STRESS else 40
    assert run(fork_in_mid_handshake, secure.tls_url, forks, limit=120).value == []
    assert secure.redis().get("children") == str(3 * forks).encode()


def test_an_exit_with_calls_in_flight_is_clean(secure):
    def program(url):
        import threading
        import time

        import seckill

        client = seckill.Client(url)

        def buy():
            while True:
                client.incr_inventory("stock", 1)

        for _ in range(4):
            threading.Thread(target=buy, daemon=True).start()
        time.sleep(0.3)
        return True

    assert run(program, secure.tls_url).value is True


def test_a_password_goes_over_tls_as_well(start_server, certificate):
    server = start_server(kind=SECURE, certificate=certificate, password="sesame")
    assert sells(seckill.Client(server.tls_url))
    url = server.tls_url.replace("sesame", "wrong")
    with pytest.raises(seckill.AuthenticationError):
        seckill.Client(url).incr_inventory("stock", 1)
    with socket.create_connection((server.host, server.tls_port)) as plain:
        plain.sendall(b"PING\r\n")
        with pytest.raises(ConnectionResetError):
            plain.recv(64)
