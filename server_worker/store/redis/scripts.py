"""The Redis store's Lua scripts. They decide nothing about sessions, which is for `rules.py`: one makes the
write that was decided on, if the record is still the one that the decision was about.

No blob passes through a script. Each validates before it writes, since Redis undoes nothing, and each may run
twice. Scripts that may free memory run when it is full, too: what they add is small, and the blobs before
them were refused already.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

_WRITE = """
-- KEYS[1]: the session's record, a hash of its version, of the record itself, and of entries, each
-- 'BYTES TOKEN COUNT TOKEN COUNT ...' and a line for its reader: it names pieces of blobs, and so keeps them.
-- ARGV: the change, and the new record (nothing: the session is deleted). Answers with a word, and with the
-- version, record, bytes and time that stand there now.
local KEY = KEYS[1]
local BASE = string.sub(KEY, 1, -7)  -- the key without its 'record'
local WAITING = BASE .. 'waiting'  -- TOKEN -> 'BYTES COUNT' of what no entry names yet
local change, record = cjson.decode(ARGV[1]), ARGV[2]

local function each_piece(command, token, count)
  local found = 0
  for i = 0, count - 1 do found = found + redis.call(command, BASE .. token .. ':' .. i) end
  return found
end

local function each_named(entry, work)
  local names = string.match(entry, '^%d+([^\\n]*)')
  for token, count in string.gmatch(names, ' (%S+) (%d+)') do work(token, count) end
end

local function answer(word)
  local now, waiting = redis.call('HMGET', KEY, 'version', 'record', 'log_bytes', 'updated'), 0
  for _, size in ipairs(redis.call('HVALS', WAITING)) do waiting = waiting + string.match(size, '^%d+') end
  return {word, now[1], word ~= 'done' and now[2], now[3], now[4], waiting}
end

local version = redis.call('HGET', KEY, 'version') or ''
if version ~= change.before then return answer(version == change.after and 'done' or 'moved') end
local t = redis.call('TIME')
if change.idle_s and t[1] + t[2] / 1000000 - redis.call('HGET', KEY, 'updated') <= change.idle_s then
  return answer('moved')
end
for _, entry in pairs(change.entries) do
  local missing = false
  each_named(entry, function(token, count)
    missing = missing or each_piece('EXISTS', token, count) < tonumber(count)
  end)
  if missing then return answer('missing') end
end

local function drop_waiting(token)
  local size = redis.call('HGET', WAITING, token)
  if size then each_piece('UNLINK', token, string.match(size, '%d+$')) end
  redis.call('HDEL', WAITING, token)
end

local bytes = 0
for _, name in ipairs(change.drop) do
  local entry = redis.call('HGET', KEY, name)
  if entry then
    each_named(entry, function(token, count) each_piece('UNLINK', token, count) end)
    bytes = bytes - string.match(entry, '^%d+')
    redis.call('HDEL', KEY, name)
  end
end
for name, entry in pairs(change.entries) do
  each_named(entry, function(token, count)
    each_piece('PERSIST', token, count)
    redis.call('HDEL', WAITING, token)
  end)
  bytes = bytes + string.match(entry, '^%d+')
  redis.call('HSET', KEY, name, entry)
end
for _, token in ipairs(change.gone) do drop_waiting(token) end
if change.clear then  -- all that waits, of the kind that this is the beginning of
  for _, token in ipairs(redis.call('HKEYS', WAITING)) do
    if string.sub(token, 1, #change.clear) == change.clear then drop_waiting(token) end
  end
end
for token, size in pairs(change.wait) do
  redis.call('HSET', WAITING, token, size)
  redis.call('PEXPIRE', WAITING, change.ttl_ms)
end
if record == '' then
  redis.call('UNLINK', KEY, BASE .. 'losses', BASE .. 'deliveries')
  return {'done'}
end
redis.call('HSET', KEY, 'version', change.after, 'record', record)
if bytes ~= 0 or version == '' then redis.call('HINCRBY', KEY, 'log_bytes', string.format('%.0f', bytes)) end
if change.touch then redis.call('HSET', KEY, 'updated', t[1] .. '.' .. string.format('%06d', t[2])) end
return answer('done')
"""

_KEEP = """
local base = string.sub(KEYS[1], 1, -7)
local all = redis.call('HGETALL', base .. 'waiting')
for i = 1, #all, 2 do
  if string.sub(all[i], 1, 8) == 'request:' then
    for piece = 0, string.match(all[i + 1], '%d+$') - 1 do
      redis.call('PEXPIRE', base .. all[i] .. ':' .. piece, ARGV[1])
    end
  end
end
return redis.call('PEXPIRE', base .. 'waiting', ARGV[1])
"""

_BEGIN_DELIVERY = """
local request, ttl_ms, most, unread = unpack(ARGV)
if unread == '0' and redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local key = string.sub(KEYS[1], 1, -7) .. 'deliveries'
if redis.call('HLEN', key) >= tonumber(most) then redis.call('UNLINK', key) end  -- somebody makes them up
local count = redis.call('HINCRBY', key, request, '1')
redis.call('PEXPIRE', key, ttl_ms)
return count
"""

_ADD_LOSSES = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local key = string.sub(KEYS[1], 1, -7) .. 'losses'
redis.call('HSET', key, unpack(ARGV))
return redis.call('HLEN', key)
"""

_ADD_JOB = """
local token, count, index, manifest = unpack(ARGV)
if redis.call('EXISTS', KEYS[1]) == 1 then return 1 end
local parts = string.sub(KEYS[1], 1, -4) .. 'part:' .. token .. ':'  -- the key without its 'job'
for i = 0, count - 1 do
  if redis.call('EXISTS', parts .. i) == 0 then return 0 end
end
for i = 0, count - 1 do redis.call('PERSIST', parts .. i) end
redis.call('HSET', KEYS[1], 'manifest', manifest, 'token', token, 'index', index)
return 1
"""

_SUBMIT = """
local name, digest = unpack(ARGV)
local digests = {digest}
for other in string.gmatch(redis.call('HGET', KEYS[1], name) or '', '%S+') do
  if other ~= digest then digests[#digests + 1] = other end
end
redis.call('HSET', KEYS[1], name, table.concat(digests, ' '))
"""

_HEARTBEAT = """
local worker, ttl_ms, info = unpack(ARGV)
local t = redis.call('TIME')
local now_ms = t[1] * 1000 + math.floor(t[2] / 1000)
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  if tonumber(string.match(all[i + 1], '^%d+')) <= now_ms then redis.call('HDEL', KEYS[1], all[i]) end
end
redis.call('HSET', KEYS[1], worker, string.format('%.0f', now_ms + tonumber(ttl_ms)) .. ' ' .. info)
"""


@dataclass(frozen=True, slots=True)
class Script:
    source: bytes
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha", hashlib.sha1(self.source, usedforsecurity=False).hexdigest())


def _script(body: str, flag: str = "allow-oom") -> Script:
    return Script(f"#!lua flags={flag}\n{body}".encode())


WRITE = _script(_WRITE)
CREATE = _script(_WRITE, "")
"""The same, where a new session begins: a full server refuses it."""
KEEP = _script(_KEEP)
BEGIN_DELIVERY = _script(_BEGIN_DELIVERY)
ADD_LOSSES = _script(_ADD_LOSSES, "")
ADD_JOB = _script(_ADD_JOB)
SUBMIT = _script(_SUBMIT)
HEARTBEAT = _script(_HEARTBEAT)
