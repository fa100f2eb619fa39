"""Who calls is told by the proxy in front, and by nobody else."""

import pytest

from fhircm.edge.forwarded import Proxies


def told(trusted, peer, *headers):
    scope = {"type": "http", "client": (peer, 1), "scheme": "http", "headers": [(n.encode(), v.encode()) for n, v in headers]}
    found = Proxies(trusted).told(scope)
    return found["client"][0], found["scheme"]


XFF, XFP, FWD = "x-forwarded-for", "x-forwarded-proto", "forwarded"


@pytest.mark.parametrize(
    ("trusted", "peer", "headers", "expected"),
    [
        ([], "10.0.0.1", [(XFF, "198.51.100.7"), (XFP, "https")], ("10.0.0.1", "http")),
        (["10.0.0.0/8"], "192.0.2.9", [(XFF, "198.51.100.7"), (XFP, "https")], ("192.0.2.9", "http")),
        (["10.0.0.0/8"], "10.0.0.1", [(XFF, "198.51.100.7"), (XFP, "https")], ("198.51.100.7", "https")),
        (["10.0.0.0/8"], "10.0.0.1", [(XFF, "1.1.1.1, 198.51.100.7")], ("198.51.100.7", "http")),
        (["10.0.0.0/8"], "10.0.0.1", [(XFF, "1.1.1.1"), (XFF, "198.51.100.7, 10.2.2.2")], ("198.51.100.7", "http")),
        (["10.0.0.1"], "10.0.0.1", [(FWD, 'for="[2001:db8::1]:4711";proto=https')], ("2001:db8::1", "https")),
        (["10.0.0.1"], "10.0.0.1", [(FWD, "for=1.1.1.1;proto=http, for=198.51.100.7;proto=https")], ("198.51.100.7", "https")),
        (["10.0.0.1"], "10.0.0.1", [(FWD, "for=unknown;proto=https")], ("10.0.0.1", "https")),
        (["10.0.0.1"], "10.0.0.1", [(XFF, "<script>, 198.51.100.7:99")], ("198.51.100.7", "http")),
        (["10.0.0.1"], "10.0.0.1", [(XFF, "nonsense")], ("10.0.0.1", "http")),
        (["10.0.0.1"], "10.0.0.1", [(XFF, "198.51.100.7"), (XFP, "javascript")], ("198.51.100.7", "http")),
        (["10.0.0.1"], "10.0.0.1", [(XFP, "https")], ("10.0.0.1", "http")),
        (["::1"], "::1", [(XFF, "198.51.100.7")], ("198.51.100.7", "http")),
        (["127.0.0.1"], "::ffff:127.0.0.1", [(XFF, "198.51.100.7")], ("198.51.100.7", "http")),
    ],
)
def test_the_caller(trusted, peer, headers, expected):
    assert told(trusted, peer, *headers) == expected


def test_a_long_list_is_read_from_its_end_and_not_to_its_beginning():
    assert told(["10.0.0.0/8"], "10.0.0.1", (XFF, "1.1.1.1," + "10.0.0.2," * 5000 + "10.0.0.3"))[0].startswith("10.")


def test_what_is_no_network_is_refused_when_it_starts():
    with pytest.raises(ValueError, match="nonsense"):
        Proxies(["nonsense"])


async def test_callers_behind_one_proxy_are_counted_apart(door, monotonic):
    async with door(monotonic, address="10.0.0.1", trusted_proxies=("10.0.0.1",), token_rate=1) as http:

        async def status(caller):
            return (await http.post("/oauth/token", headers={"X-Forwarded-For": caller})).status_code

        assert [await status(one) for one in ("1.1.1.1", "2.2.2.2", "1.1.1.1", "9.9.9.9, 1.1.1.1")] == [400, 400, 429, 429]
