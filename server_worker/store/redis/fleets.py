"""A fleet's rounds in the Redis store. All keys of a fleet share one hash tag:

spliteasy:fleet:{NAME@DIGEST}:rounds             records by number
spliteasy:fleet:{NAME@DIGEST}:members            what is known of devices
spliteasy:fleet:{NAME@DIGEST}:weights            DIGEST TOKEN COUNT INDEX of weights, by name
spliteasy:fleet:{NAME@DIGEST}:weights:TOKEN:i    their pieces, with a time to live until they are named
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from server_worker.store.base import Blob
from server_worker.store.redis.link import RedisLink
from server_worker.store.redis.scripts import Script
from server_worker.store.redis.values import get_values, put_values
from spliteasy.errors import StoreError

_APPEND = Script(
    b"""#!lua flags=allow-oom
local number, record, previous = unpack(ARGV)
local length = redis.call('HLEN', KEYS[1])
if tonumber(number) < length then return redis.call('HGET', KEYS[1], number) end
if tonumber(number) > length then return false end
local last = length > 0 and redis.call('HGET', KEYS[1], string.format('%.0f', length - 1))
if last and last ~= previous then return false end
for i = 4, #ARGV do
  if redis.call('HEXISTS', KEYS[2], ARGV[i]) == 0 then return false end
end
redis.call('HSET', KEYS[1], number, record)
return record
"""
)
_NEWEST = Script(
    b"""#!lua flags=no-writes
local length = redis.call('HLEN', KEYS[1])
if length == 0 then return false end
return redis.call('HGET', KEYS[1], string.format('%.0f', length - 1))
"""
)
_PUT = Script(
    b"""#!lua flags=allow-oom
local name, digest, token, count, index = unpack(ARGV)
local pieces = KEYS[1] .. ':' .. token .. ':'
local kept = redis.call('HGET', KEYS[1], name)
if kept then
  local own = string.match(kept, '^%S+ (%S+)')
  if own ~= token then for i = 0, count - 1 do redis.call('UNLINK', pieces .. i) end end
  return string.match(kept, '^%S+')
end
for i = 0, count - 1 do
  if redis.call('EXISTS', pieces .. i) == 0 then return false end
end
for i = 0, count - 1 do redis.call('PERSIST', pieces .. i) end
redis.call('HSET', KEYS[1], name, digest .. ' ' .. token .. ' ' .. count .. ' ' .. index)
return digest
"""
)
_DROP = Script(
    b"""#!lua flags=allow-oom
local needed = tonumber(ARGV[1])
for i = 2, needed + 1 do
  if redis.call('HEXISTS', KEYS[1], ARGV[i]) == 0 then return end
end
for i = needed + 2, #ARGV do
  local name = ARGV[i]
  local token, count = string.match(redis.call('HGET', KEYS[1], name) or '', '^%S+ (%S+) (%d+)')
  if token then
    for i = 0, count - 1 do redis.call('UNLINK', KEYS[1] .. ':' .. token .. ':' .. i) end
    redis.call('HDEL', KEYS[1], name)
  end
end
"""
)


class RedisFleets:
    """`token` gives a name that was never given before."""

    def __init__(self, link: RedisLink, *, put_ttl_ms: int, token: Callable[[], str]) -> None:
        self._link = link
        self._put_ttl_ms = put_ttl_ms
        self._token = token

    async def rounds(self, fleet: str, *, after: int = -1) -> Sequence[bytes]:
        key = _key(fleet, "rounds")
        count = await self._link.call("HLEN", key)
        numbers = range(after + 1, count)
        found: list[bytes] = list(await self._link.call("HMGET", key, *numbers)) if numbers else []
        return found

    async def newest_round(self, fleet: str) -> bytes | None:
        found: bytes | None = await self._link.script(_NEWEST, [_key(fleet, "rounds")])
        return found

    async def append_round(
        self, fleet: str, record: bytes, *, number: int, previous: bytes | None, weights: Sequence[str] = ()
    ) -> bytes | None:
        keys = [_key(fleet, "rounds"), _key(fleet, "weights")]
        found: bytes | None = await self._link.script(
            _APPEND, keys, number, record, previous or b"", *weights
        )
        return found

    async def put_member(self, fleet: str, device: str, about: bytes) -> None:
        await self._link.call("HSET", _key(fleet, "members"), device, about)

    async def members(self, fleet: str, devices: Sequence[str] | None = None) -> Mapping[str, bytes]:
        if devices is not None:
            asked = sorted(devices)
            values = await self._link.call("HMGET", _key(fleet, "members"), *asked) if asked else []
            return {device: about for device, about in zip(asked, values, strict=True) if about is not None}
        found = await self._link.call("HGETALL", _key(fleet, "members"))
        return {device.decode(): about for device, about in sorted(found.items())}

    async def put_weights(self, fleet: str, name: str, body: Blob, *, digest: str) -> str:
        key, token = _key(fleet, "weights"), self._token()
        count, index = await put_values(self._link, f"{key}:{token}", {name: body}, ttl_ms=self._put_ttl_ms)
        kept = await self._link.script(_PUT, [key], name, digest, token, count, index)
        if kept is None:
            raise StoreError(f"fleet {fleet}: the weights {name} ran out before they were named")
        return str(kept, "utf-8")

    async def weights(self, fleet: str) -> Mapping[str, str]:
        found = await self._link.call("HGETALL", _key(fleet, "weights"))
        return {name.decode(): about.split(b" ")[0].decode() for name, about in sorted(found.items())}

    async def read_weights(self, fleet: str, name: str) -> bytes:
        key = _key(fleet, "weights")
        kept = await self._link.call("HGET", key, name)
        if kept is None:
            raise KeyError(f"fleet {fleet} has no weights {name}")
        _, token, _, index = kept.split(b" ", 3)
        return (await get_values(self._link, f"{key}:{token.decode()}", index))[name]

    async def drop_weights(self, fleet: str, names: Sequence[str], *, needs: Sequence[str] = ()) -> None:
        if names:
            await self._link.script(_DROP, [_key(fleet, "weights")], len(needs), *needs, *names)

    async def forget(self, fleet: str) -> bool:
        await self.drop_weights(fleet, list(await self.weights(fleet)))
        keys = [_key(fleet, what) for what in ("rounds", "members", "weights")]
        return bool(await self._link.call("UNLINK", *keys))


def _key(fleet: str, what: str) -> str:
    return f"spliteasy:fleet:{{{fleet}}}:{what}"
