"""What may be handed to `Client` and `configure`, and what comes of it."""

from __future__ import annotations

import inspect
import pickle
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
import seckill
import seckill.aio
import valkey
from seckill import _keywords
from seckill._settings import resolve

DEFAULT = {"url": "redis://localhost:6379/0"}


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SECKILL_REDIS_URL", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)


class TestNothingGiven:
    def test_means_the_redis_of_this_machine(self) -> None:
        assert resolve(None, {}) == DEFAULT

    def test_means_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("REDIS_URL", "redis://general/1")
        assert resolve(None, {}) == {"url": "redis://general/1"}
        monkeypatch.setenv("SECKILL_REDIS_URL", "redis://special/2")
        assert resolve(None, {}) == {"url": "redis://special/2"}

    def test_an_empty_variable_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SECKILL_REDIS_URL", "")
        monkeypatch.setenv("REDIS_URL", "redis://general/1")
        assert resolve(None, {}) == {"url": "redis://general/1"}
        monkeypatch.setenv("REDIS_URL", "")
        assert resolve(None, {}) == DEFAULT

    @pytest.mark.parametrize(
        ("url", "words"),
        [
            ("http://:sesame@h", "the URL must start with "),
            ("redis://:sesame@h/zero", "url: "),
            ("redis://:sesame@h?colour=red", "url has the unknown parameter"),
            ("redis://:sesame@h:port", "url"),
            ("redis+sentinel://:sesame@h", "url"),
        ],
    )
    @pytest.mark.parametrize("variable", ["SECKILL_REDIS_URL", "REDIS_URL"])
    @pytest.mark.parametrize("make", [seckill.Client, seckill.aio.Client, seckill.configure])
    def test_a_variable_that_cannot_be_read_is_named(
        self,
        monkeypatch: pytest.MonkeyPatch,
        make: Callable[[], object],
        variable: str,
        url: str,
        words: str,
    ) -> None:
        monkeypatch.setenv(variable, url)
        with pytest.raises(ValueError, match=f"^{variable}: {words}") as caught:
            make()
        assert "sesame" not in str(caught.value)

    def test_what_is_wrong_with_a_keyword_is_not_the_variables(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("REDIS_URL", "redis://h")
        with pytest.raises(ValueError, match=r"^timeout must be"):
            seckill.Client(timeout=1e-9)
        # A half that the other half completes.
        monkeypatch.setenv("REDIS_URL", "rediss://h?ssl_keyfile=/key.pem")
        assert "rediss://h" in repr(seckill.Client(ssl_certfile="/cert.pem"))

    def test_nor_do_an_empty_user_and_password_say_anything(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("REDIS_URL", "redis://u:p@general/1")
        assert resolve(None, {"username": "", "password": b""}) == {"url": "redis://u:p@general/1"}

    def test_with_waits_still_means_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("REDIS_URL", "redis://general/1")
        assert resolve(None, {"timeout": 3, "host": None}) == {
            "url": "redis://general/1",
            "timeout": 3.0,
        }


class TestKeywords:
    @pytest.mark.parametrize(
        ("keywords", "settings"),
        [
            ({"host": "h", "port": 7000, "db": 2}, {"host": "h", "port": 7000, "db": 2}),
            ({"port": 7000}, {"host": "localhost", "port": 7000}),
            ({"db": 3}, {"host": "localhost", "db": 3}),
            ({"password": "p"}, {"host": "localhost", "password": "p"}),
            (
                {"username": "u", "password": b"p"},
                {"host": "localhost", "username": "u", "password": "p"},
            ),
            ({"host": "h", "port": "7000", "db": "2"}, {"host": "h", "port": 7000, "db": 2}),
            ({"username": "", "password": "p"}, {"host": "localhost", "password": "p"}),
            ({"username": "u", "password": ""}, {"host": "localhost", "username": "u"}),
            ({"unix_socket_path": "/run/r.sock"}, {"unix_socket_path": "/run/r.sock"}),
            (
                {"unix_socket_path": Path("/run/r.sock"), "db": 1},
                {"unix_socket_path": "/run/r.sock", "db": 1},
            ),
            (
                {"host": "h", "socket_timeout": 2, "socket_connect_timeout": 0.5, "timeout": 3},
                {"host": "h", "socket_timeout": 2.0, "socket_connect_timeout": 0.5, "timeout": 3.0},
            ),
            (
                {"host": "h", "client_name": "shop", "socket_timeout": None},
                {"host": "h", "client_name": "shop"},
            ),
        ],
    )
    def test_mean_what_they_mean_in_redis_py(
        self,
        monkeypatch: pytest.MonkeyPatch,
        keywords: dict[str, object],
        settings: dict[str, object],
    ) -> None:
        monkeypatch.setenv("SECKILL_REDIS_URL", "redis://elsewhere")
        assert resolve(None, keywords) == settings

    @pytest.mark.parametrize("theirs", [redis.Redis, valkey.Valkey])
    def test_of_redis_py_and_valkey_py_are_all_known(self, theirs: type) -> None:
        names = set(inspect.signature(theirs).parameters)
        known = {*_keywords.READ, *_keywords.IDLE, *_keywords.REFUSED}
        assert names <= known | {*_keywords.READ_WITH_TLS, *_keywords.REFUSED_WITH_TLS}

    def test_that_tune_redis_py_have_no_effect(self) -> None:
        idle: dict[str, object] = dict.fromkeys(_keywords.IDLE, "anything")
        assert resolve(None, idle) == DEFAULT
        assert resolve(None, dict.fromkeys(_keywords.REFUSED)) == DEFAULT

    @pytest.mark.parametrize("said", [{}, {"ssl": False}, {"ssl": None}])
    def test_that_say_how_to_use_tls_have_no_effect_without_it(self, said: dict[str, bool]) -> None:
        assert resolve(None, {**said, "ssl_ca_certs": "/ca.pem", "ssl_ciphers": "x"}) == DEFAULT
        url = {"url": "redis://h"}
        assert resolve("redis://h", {**said, "ssl_ca_certs": "/ca.pem"}) == url

    def test_that_ask_for_tls(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert resolve(None, {"ssl": True}) == {"host": "localhost", "ssl": True}
        monkeypatch.setenv("REDIS_URL", "rediss://h")
        assert resolve(None, {"ssl_ca_certs": Path("/ca.pem"), "ssl_ca_path": None}) == {
            "url": "rediss://h",
            "ssl_ca_certs": "/ca.pem",
        }
        assert resolve(
            None,
            {
                "host": "h",
                "ssl": True,
                "ssl_cert_reqs": None,
                "ssl_ca_data": "text",
                "ssl_min_version": ssl.TLSVersion.TLSv1_3,
                "ssl_validate_ocsp": False,
            },
        ) == {
            "host": "h",
            "ssl": True,
            "ssl_cert_reqs": "none",
            "ssl_ca_data": b"text",
            "ssl_min_version": 772,
        }

    @pytest.mark.parametrize(
        ("keyword", "value", "error", "message"),
        [
            ("ssl_ciphers", "HIGH", ValueError, "ssl_ciphers: .* is not supported"),
            ("ssl_password", "secret", ValueError, "ssl_password: an encrypted key is not supp"),
            ("ssl_validate_ocsp", True, ValueError, "ssl_validate_ocsp: OCSP is not supported"),
            ("ssl_cert_reqs", "maybe", ValueError, "ssl_cert_reqs must be 'required'"),
            ("ssl_cert_reqs", [], ValueError, "ssl_cert_reqs must be 'required'"),
            ("ssl_check_hostname", "no", TypeError, "ssl_check_hostname must be a bool, not str"),
            ("ssl_ca_certs", 5, TypeError, "ssl_ca_certs must be a path, not int"),
            ("ssl_ca_data", 5, TypeError, "ssl_ca_data must be a str"),
            ("ssl_min_version", "1.3", TypeError, "ssl_min_version must be an ssl.TLSVersion"),
        ],
    )
    def test_of_tls_that_cannot_be_are_an_error(
        self, keyword: str, value: object, error: type[Exception], message: str
    ) -> None:
        for source in (None, "rediss://h"):
            with pytest.raises(error, match=f"^{message}"):
                resolve(source, {"ssl": True, keyword: value})

    def test_that_contradict_each_other_are_an_error(self) -> None:
        with pytest.raises(ValueError, match="the URL says that there is no TLS"):
            seckill.Client("redis://h", ssl=True)
        with pytest.raises(ValueError, match="ssl_keyfile needs ssl_certfile"):
            seckill.Client(ssl=True, ssl_keyfile="/key")

    @pytest.mark.parametrize("make", [seckill.Client, seckill.configure])
    def test_that_nobody_knows_are_an_error(self, make: Callable[..., object]) -> None:
        with pytest.raises(TypeError, match="unexpected keyword argument 'hots'"):
            make(hots="h")

    @pytest.mark.parametrize(
        ("keywords", "error", "message"),
        [
            (
                {"credential_provider": object()},
                TypeError,
                r"credential_provider must have get_credentials\(\), or be callable, not object",
            ),
            ({"connection_pool": redis.ConnectionPool()}, ValueError, "connection_pool: "),
            ({"redis_connect_func": print}, ValueError, "redis_connect_func: "),
            ({"host": 5}, TypeError, "host must be a str, not int"),
            ({"port": 6379.0}, TypeError, "port must be an int, not float"),
            ({"port": True}, TypeError, "port must be an int, not bool"),
            ({"port": "http"}, ValueError, "port must be an int, not 'http'"),
            ({"port": 65536}, ValueError, "port must be from 1 to 65535, not 65536"),
            ({"db": -1}, ValueError, "db must be from 0 to 2147483647, not -1"),
            ({"db": "zero"}, ValueError, "db must be an int, not 'zero'"),
            ({"unix_socket_path": 5}, TypeError, "unix_socket_path must be a path, not int"),
            ({"timeout": "3"}, TypeError, "timeout must be a number of seconds, not str"),
            ({"timeout": True}, TypeError, "timeout must be a number of seconds, not bool"),
            ({"timeout": 0}, ValueError, "timeout must be more than 0 s, not 0"),
            ({"socket_timeout": -1}, ValueError, "socket_timeout must be more than 0 s, not -1"),
            (
                {"socket_connect_timeout": float("nan")},
                ValueError,
                "socket_connect_timeout must be",
            ),
            ({"timeout": float("inf")}, ValueError, "timeout must be"),
        ],
    )
    def test_that_cannot_be_are_an_error(
        self, keywords: dict[str, object], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=f"^{message}"):
            resolve(None, keywords)


class TestTopology:
    def test_of_sentinels(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SECKILL_REDIS_URL", "redis://elsewhere")
        sentinels = [("one", 26379), ["two", "26380"]]
        assert resolve(None, {"sentinels": sentinels, "service_name": "m", "db": 1}) == {
            "sentinels": [("one", 26379), ("two", 26380)],
            "service_name": "m",
            "db": 1,
        }

    def test_of_sentinels_without_a_user_of_their_own(self) -> None:
        place = {"sentinels": [("one", 26379)], "service_name": "m"}
        theirs = {"username": "", "password": "p"}
        read = resolve(None, {**place, "username": "", "sentinel_kwargs": theirs})
        assert read == {**place, "sentinel_kwargs": {"password": "p"}}

    def test_of_sentinels_to_be_talked_to_in_their_own_way(self) -> None:
        theirs: dict[str, object] = {
            "username": "u",
            "password": b"p",
            "ssl": True,
            "ssl_ca_certs": Path("/ca.pem"),
            "socket_timeout": 0.1,
            "decode_responses": True,
        }
        place = {"sentinels": (("h", 1),), "service_name": "m"}
        assert resolve(None, {**place, "sentinel_kwargs": theirs})["sentinel_kwargs"] == {
            "username": "u",
            "password": "p",
            "ssl": True,
            "ssl_ca_certs": "/ca.pem",
        }
        theirs["ssl"] = False
        read = resolve(None, {**place, "ssl": True, "sentinel_kwargs": theirs})
        assert read["sentinel_kwargs"] == {"username": "u", "password": "p"}
        assert read["ssl"] is True

    def test_of_a_cluster(self) -> None:
        read = resolve(None, {"cluster": [("one", 7000), ("::1", 7001)], "password": "p"})
        assert read == {"cluster": [("one", 7000), ("::1", 7001)], "password": "p"}

    @pytest.mark.parametrize(
        ("keywords", "error", "message"),
        [
            ({"sentinels": [("h", 1)]}, TypeError, "sentinels needs service_name"),
            ({"service_name": "m"}, TypeError, "service_name needs sentinels"),
            ({"sentinel_kwargs": {}}, TypeError, "sentinel_kwargs needs sentinels"),
            (
                {"host": "h", "cluster": [("h", 1)]},
                TypeError,
                "cluster cannot be given together with host",
            ),
            (
                {"sentinels": [("h", 1)], "service_name": "m", "cluster": [("h", 1)]},
                TypeError,
                "cluster cannot be given together with sentinels",
            ),
            ({"cluster": []}, ValueError, "cluster must name one place at least"),
            ({"cluster": "h:1"}, TypeError, r"cluster must be a list of \(host, port\), not str"),
            ({"cluster": ["h:1"]}, TypeError, r"cluster must be a list of \(host, port\), not of"),
            ({"cluster": [("h", 0)]}, ValueError, "cluster must be from 1 to 65535, not 0"),
            ({"cluster": [(5, 1)]}, TypeError, "cluster must be a str, not int"),
            ({"service_name": ""}, ValueError, "service_name must not be empty"),
            ({"sentinel_kwargs": 5}, TypeError, "sentinel_kwargs must be a dict, not int"),
            (
                {"sentinel_kwargs": {"pasword": "p"}},
                TypeError,
                "sentinel_kwargs got an unexpected keyword argument 'pasword'",
            ),
            (
                {"sentinel_kwargs": {"credential_provider": print}},
                ValueError,
                "sentinel_kwargs: credential_provider is not supported",
            ),
            ({"sentinel_kwargs": {"host": "h"}}, ValueError, "sentinel_kwargs: host is not supp"),
        ],
    )
    def test_that_cannot_be_is_an_error(
        self, keywords: dict[str, object], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=f"^{message}"):
            resolve(None, keywords)


class TestUrl:
    @pytest.mark.parametrize(
        "url",
        [
            "rediss://h?ssl_ca_certs=/ca",
            "redis://h:7000/2",
            "valkey://u:p@h",
            "unix:///run/r.sock?db=1",
            "REDIS://h",
            "redis+sentinel://u:p@h,h2:1/mymaster/1",
            "valkeys+sentinel://h/mymaster",
            "REDISS+cluster://h,h2",
        ],
    )
    def test_is_handed_on_as_it_is(self, url: str) -> None:
        assert resolve(url, {}) == {"url": url}

    def test_may_be_joined_by_keywords(self) -> None:
        assert resolve("redis://h", {"password": "p", "db": 1}) == {
            "url": "redis://h",
            "password": "p",
            "db": 1,
        }

    @pytest.mark.parametrize(
        "place",
        [
            {"host": "h"},
            {"port": 1},
            {"unix_socket_path": "/s"},
            {"sentinels": [("h", 1)]},
            {"service_name": "m"},
            {"sentinel_kwargs": {}},
            {"cluster": [("h", 1)]},
        ],
    )
    def test_is_not_joined_by_another_place(self, place: dict[str, object]) -> None:
        with pytest.raises(
            TypeError, match=f"{next(iter(place))} cannot be given together with a URL"
        ):
            resolve("redis://h", place)

    @pytest.mark.parametrize(
        "url",
        ["", "localhost", "http://h", "localhost:6379", "redis:/h", "redis:h", "redis+proxy://h"],
    )
    def test_that_is_none(self, url: str) -> None:
        with pytest.raises(
            ValueError,
            match=r"the URL must start with redis://, rediss://, valkey://, valkeys://, unix://, "
            r"redis\+sentinel://, redis\+cluster://",
        ):
            resolve(url, {})

    def test_never_shows_its_password(self) -> None:
        for url in ("http://:secret@h", "redis+cluster://:1/secret@h", "secret"):
            with pytest.raises(ValueError, match=r"URL|url") as caught:
                seckill.Client(url)
            assert "secret" not in str(caught.value)


class TestClient:
    def test_travels_with_its_settings(self) -> None:
        client = seckill.Client(host="h", port=7000, password="secret", timeout=3)
        arrived = pickle.loads(pickle.dumps(client))
        assert type(arrived) is seckill.Client
        assert arrived.settings() == client.settings()

    @pytest.mark.parametrize("make", [seckill.Client, seckill.aio.Client])
    @pytest.mark.parametrize(
        ("source", "shown"),
        [
            ("redis://:p@h/2", "redis://:***@h:6379/2"),
            ("unix:///r%3F.sock", "unix:///r%3F.sock?db=0"),
            (
                "redis+sentinel://u:p@one,[::1]:7/m/1?sentinel_username=s&sentinel_password=q",
                "redis+sentinel://u:***@one:26379,[::1]:7/m/1",
            ),
            (
                "valkeys+sentinel://h/m?ssl_ca_certs=/ca&ssl_min_version=772&sentinel_password=q",
                "rediss+sentinel://h:26379/m/0",
            ),
            ("rediss+cluster://:p@one,two:1?timeout=3", "rediss+cluster://:***@one:6379,two:1/0"),
        ],
    )
    def test_from_a_url_travels_with_all_that_it_says(
        self, make: Callable[[str], seckill.Client], source: str, shown: str
    ) -> None:
        client = make(source)
        arrived = pickle.loads(pickle.dumps(client))
        assert arrived.settings() == client.settings()
        assert repr(arrived) == repr(client) == f"Client('{shown}')"

    def test_tells_how_to_reach_the_sentinels(self) -> None:
        url = "redis+sentinel://one,two:7/m?sentinel_username=s&sentinel_password=q"
        settings = seckill.Client(url).settings()
        assert settings["sentinels"] == [("one", 26379), ("two", 7)]
        assert settings["service_name"] == "m"
        assert settings["sentinel_kwargs"] == {"username": "s", "password": "q"}
        tls = seckill.Client(url.replace("redis", "rediss") + "&ssl_ca_certs=/ca").settings()
        theirs = tls["sentinel_kwargs"]
        assert isinstance(theirs, dict)
        assert theirs["ssl"] is True
        assert theirs["ssl_ca_certs"] == tls["ssl_ca_certs"] == "/ca"

    def test_of_a_subclass_travels_as_such(self) -> None:
        arrived = pickle.loads(pickle.dumps(OfMine("redis://h:7000/2")))
        assert type(arrived) is OfMine
        assert arrived.settings() == OfMine("redis://h:7000/2").settings()

    def test_never_shows_its_password(self) -> None:
        for client in (seckill.Client(password="secret"), seckill.Client("redis://:secret@h")):
            assert "secret" not in repr(client)

    def test_takes_its_source_by_position_only(self) -> None:
        with pytest.raises(TypeError, match="unexpected keyword argument 'source'"):
            seckill.Client(source="redis://h")  # type: ignore[call-arg]


class OfMine(seckill.Client):
    def __init__(self, url: str) -> None:
        super().__init__(url)
