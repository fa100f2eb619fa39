"""What happens once, happens once when two processes do it at the same time: each has connections of its own to one database."""

import asyncio
import time

import pytest

from fhircm.access.sealing import Seal, SealBroken
from fhircm.smart.keys import SigningKeys
from fhircm.store.credentials import Credentials
from fhircm.store.database import open_database
from fhircm.store.grants import Grants


@pytest.fixture
async def pair(database_url):
    both = [await open_database(database_url), await open_database(database_url)]
    yield both
    for one in both:
        await one.close()


async def test_the_first_signing_key_is_one(pair, tmp_path):
    seal = Seal.open(tmp_path / "keys")
    both = [SigningKeys(database, seal) for database in pair]
    made = await asyncio.gather(*(keys.to_sign("ES384") for keys in both for _ in range(3)))
    assert len({key.kid for key in made}) == 1
    assert [key.kid for key in await both[0].listed()] == [made[0].kid]


async def test_after_a_rotation_every_process_signs_with_the_new_key(pair, tmp_path):
    seal = Seal.open(tmp_path / "keys")
    mine, other = (SigningKeys(database, seal) for database in pair)
    before = (await mine.to_sign("ES384")).kid
    fresh = await asyncio.gather(mine.rotate("ES384"), other.rotate("ES384"))
    active = {(await keys.to_sign("ES384")).kid for keys in (mine, other)}
    assert len(active) == 1
    assert active < {kid for kids in fresh for kid in kids}
    published = [key["kid"] for key in await other.published()]
    assert {before, *active} <= set(published)


async def test_a_private_key_opens_with_its_seal_only(pair, tmp_path):
    await SigningKeys(pair[0], Seal.open(tmp_path / "keys")).to_sign("ES384")
    with pytest.raises(SealBroken):
        await SigningKeys(pair[1], Seal.open(tmp_path / "others")).to_sign("ES384")


async def test_a_launch_is_taken_once(pair):
    both, now = [Grants(database) for database in pair], int(time.time())
    await both[0].add_launch("a-launch", {"client_id": "x"}, now + 300, now)
    taken = await asyncio.gather(*(grants.take_launch("a-launch", now) for grants in both for _ in range(4)))
    assert [one for one in taken if one is not None] == [{"client_id": "x"}]


async def test_a_change_of_a_registration_keeps_what_another_changed(pair):
    both = [Credentials(database) for database in pair]
    assert await both[0].create_client("x", {"scope": "user/*.rs"})
    assert not await both[1].create_client("x", {"scope": "user/*.cruds"})
    await asyncio.gather(*(both[n % 2].change_client("x", {f"member-{n}": n}) for n in range(10)))
    kept = await both[0].client("x")
    assert kept == {"scope": "user/*.rs", **{f"member-{n}": n for n in range(10)}}
    assert await both[0].change_client("x", {"member-1": None}) == {name: kept[name] for name in kept if name != "member-1"}
    assert await both[0].change_client("nobody", {"a": 1}) is None
    assert await both[0].remove_client("x")
    assert not await both[1].remove_client("x")
