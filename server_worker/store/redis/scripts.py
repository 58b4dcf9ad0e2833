"""The Redis store's Lua scripts: the same decisions as `rules.py`, atomic where the state is.

KEYS are one session's meta record, log and snapshots (all under one hash tag); blob keys are derived from
them. No blob passes through a script. Each validates before it writes, since Redis undoes nothing, and
each may run twice. Scripts that may free memory run when it is full, too: what they add is small, and
the blobs before them were refused already.

Answers: {'done', meta record (names and values, zeros between), snapshot steps (spaces between)}, or the name
of another outcome and its fields.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

_COMMON = """
local META, LOG, SNAPS = KEYS[1], KEYS[2], KEYS[3]
local BLOBS = string.sub(META, 1, -5)  -- the key without its 'meta'
local WAITING = BLOBS .. 'waiting'  -- 'request:TOKEN' or 'snapshot:TOKEN' → bytes, of what nothing names yet

local function load()
  local flat = redis.call('HGETALL', META)
  if #flat == 0 then return nil end
  local m = {}
  for i = 1, #flat, 2 do m[flat[i]] = flat[i + 1] end
  for _, name in ipairs({'number', 'fence', 'committed', 'oldest', 'updated'}) do
    m[name] = tonumber(m[name])
  end
  return m
end

local function text(n) return string.format('%.0f', n) end

local function snapshots()
  local steps = {}
  for i, step in ipairs(redis.call('HKEYS', SNAPS)) do steps[i] = tonumber(step) end
  table.sort(steps)
  return steps
end

-- Bytes of the blobs that wait to be named, of that kind.
local function waiting(kind)
  local bytes, all = 0, redis.call('HGETALL', WAITING)
  for i = 1, #all, 2 do
    local size = string.match(all[i + 1], '^%d+')
    if string.sub(all[i], 1, #kind) == kind then bytes = bytes + tonumber(size) end
  end
  return bytes
end

-- As strings: a client in Python takes a tenth of a millisecond to read thirty values.
local function session()
  local record = table.concat(redis.call('HGETALL', META), '\\0')
  return {'done', record, table.concat(redis.call('HKEYS', SNAPS), ' '), waiting('')}
end

local function done()
  local t = redis.call('TIME')
  redis.call('HSET', META, 'updated', t[1] .. '.' .. string.format('%06d', t[2]))
  return session()
end

local function each_piece(command, token, count)
  local found = 0
  for i = 0, count - 1 do found = found + redis.call(command, BLOBS .. 'snapshot:' .. token .. ':' .. i) end
  return found
end

-- Delete what waits to be named, but for what `stays` says.
local function drop_waiting(stays)
  local all = redis.call('HGETALL', WAITING)
  for i = 1, #all, 2 do
    if not (stays and stays(all[i])) then
      local pieces = string.match(all[i + 1], ' (%d+)$')
      if pieces then each_piece('UNLINK', string.sub(all[i], #'snapshot:' + 1), tonumber(pieces))
      else redis.call('UNLINK', BLOBS .. all[i]) end
      redis.call('HDEL', WAITING, all[i])
    end
  end
end

local function drop_snapshot(step)
  local token, count = string.match(redis.call('HGET', SNAPS, text(step)), '^(%S+) (%d+)')
  each_piece('UNLINK', token, tonumber(count))
  redis.call('HDEL', SNAPS, text(step))
end

local function drop_log(first, last)
  local freed = 0
  for step = first, last do
    local bytes, tokens = string.match(redis.call('HGET', LOG, text(step)) or '0 -', '^(%d+) %S+(.*)')
    for token in string.gmatch(tokens, '%S+') do redis.call('UNLINK', BLOBS .. 'request:' .. token) end
    redis.call('HDEL', LOG, text(step))
    freed = freed + tonumber(bytes)
  end
  if freed > 0 then redis.call('HINCRBY', META, 'log_bytes', text(-freed)) end
end

local function trim(oldest_checkpoint)
  local steps = snapshots()
  local first = steps[1]
  for i = 2, #steps do
    if steps[i] > oldest_checkpoint then break end
    drop_snapshot(steps[i - 1])
    drop_log(first + 1, steps[i])
    first = steps[i]
  end
end

local function refusal(m, number, nonce, fence, owner)
  if not m then return {'unknown'} end
  if m.number ~= tonumber(number) or m.nonce ~= nonce then
    return {'stale_attempt', text(m.number), m.nonce}
  end
  if fence and (m.fence ~= tonumber(fence) or m.owner ~= owner) then
    return {'stale_owner', text(m.fence), m.owner}
  end
end

local function own(m, worker)
  if m.owner == worker then return end
  drop_waiting()
  redis.call('HSET', META, 'fence', text(m.fence + 1), 'owner', worker)
end
"""

_READ = """
if redis.call('EXISTS', META) == 0 then return {'unknown'} end
return session()
"""

_OPEN = """
local job, number, nonce, worker, environment, agent, total, restart = unpack(ARGV, 1, 8)
local m = load()
local function create(fence)
  drop_waiting()
  redis.call('HSET', META, 'job', job, 'number', number, 'nonce', nonce, 'resume', '0', 'fence', text(fence),
    'owner', worker, 'committed', '0', 'oldest', '0', 'environment', environment, 'agent', agent,
    'total', total, 'log_bytes', '0', 'closed', '0')
  redis.call('HSET', SNAPS, '0', '- 0 []')
  return done()
end
if not m then
  for i = 9, #ARGV do
    if tonumber(ARGV[i]) == 0 then return create(1) end
  end
  return {'no_common_step'}
end
local same = tonumber(number) == m.number and nonce == m.nonce
if tonumber(number) <= m.number and not same then return {'stale_attempt', text(m.number), m.nonce} end
if restart == '1' and not same then
  local first = snapshots()
  for _, step in ipairs(first) do drop_snapshot(step) end
  drop_log(first[1] + 1, m.committed)
  return create(m.fence + 1)
end
if job ~= m.job then return {'other_job', m.job} end
if same then
  own(m, worker)
  return done()
end
local steps = snapshots()
local resume, oldest
for i = 9, #ARGV do
  local step = tonumber(ARGV[i])
  if step >= steps[1] and step <= m.committed then
    resume = math.max(step, resume or step)
    oldest = math.min(step, oldest or step)
  end
end
if not resume then return {'no_common_step', text(steps[1]), text(m.committed)} end
drop_waiting()
for i = #steps, 1, -1 do
  if steps[i] > resume then drop_snapshot(steps[i]) end
end
drop_log(resume + 1, m.committed)
redis.call('HSET', META, 'number', number, 'nonce', nonce, 'resume', text(resume),
  'fence', text(m.fence + 1), 'owner', worker, 'committed', text(resume), 'oldest', text(oldest),
  'environment', environment, 'agent', agent, 'total', total, 'closed', '0')
return done()
"""

_HAND_OVER = """
local number, nonce, fence, owner, job, environment = unpack(ARGV)
local m = load()
local refused = refusal(m, number, nonce, fence, owner)
if refused then return refused end
local step = text(m.committed)
if m.committed == 0 or redis.call('HEXISTS', SNAPS, step) == 0 then return {'step_behind', step} end
redis.call('HSET', META, 'job', job, 'environment', environment, 'resume', step, 'oldest', step)
trim(m.committed)
return done()
"""

_CLAIM = """
local number, nonce, step, worker = unpack(ARGV)
local m = load()
local refused = refusal(m, number, nonce)
if refused then return refused end
local ahead = tonumber(step) - m.committed
if ahead ~= 0 and ahead ~= 1 then return {'step_behind', text(m.committed)} end
own(m, worker)
return done()
"""

_WAIT = """
-- What is written under these tokens waits from now on, instead of what an earlier try left in its place.
local number, nonce, fence, owner, step, index, ttl_ms, limit = unpack(ARGV, 1, 8)
local m = load()
local refused = refusal(m, number, nonce, fence, owner)
if refused then return refused end
if tonumber(step) <= m.committed then return {'step_behind', text(m.committed)} end
local ours, bytes = {}, 0
for i = 9, #ARGV, 2 do
  ours['request:' .. ARGV[i]], bytes = ARGV[i + 1], bytes + tonumber(ARGV[i + 1])
end
local under = '.' .. number .. '.' .. nonce .. '.' .. owner .. '.'
local place = under .. index .. '.'
drop_waiting(function(field)
  local at, rest = string.match(field, '^request:(%d+)(.*)$')
  if not at or ours[field] then return true end
  if string.sub(rest, 1, #under) ~= under or tonumber(at) <= m.committed then return false end
  return at ~= step or string.sub(rest, 1, #place) ~= place
end)
if waiting('request:') + bytes > tonumber(limit) then return {'full'} end
for field, size in pairs(ours) do redis.call('HSET', WAITING, field, size) end
redis.call('PEXPIRE', WAITING, ttl_ms)
return {'ok'}
"""

_KEEP = """
local number, nonce, fence, owner, ttl_ms = unpack(ARGV)
if refusal(load(), number, nonce, fence, owner) then return 0 end
for _, field in ipairs(redis.call('HKEYS', WAITING)) do
  if string.sub(field, 1, 8) == 'request:' then redis.call('PEXPIRE', BLOBS .. field, ttl_ms) end
end
return redis.call('PEXPIRE', WAITING, ttl_ms)
"""

_COMMIT = """
local number, nonce, fence, owner, step, oldest, digest = unpack(ARGV, 1, 7)
-- Those of the tokens that the log does not name are of no use to anybody.
local function without(answer)
  local logged = (redis.call('HGET', LOG, step) or '') .. ' '
  for i = 8, #ARGV do
    if not string.find(logged, ' ' .. ARGV[i] .. ' ', 1, true) then
      redis.call('UNLINK', BLOBS .. 'request:' .. ARGV[i])
    end
  end
  return answer
end
local m = load()
local refused = refusal(m, number, nonce, fence, owner)
if refused then return without(refused) end
local logged = redis.call('HGET', LOG, step)
if tonumber(step) == m.committed and logged and string.match(logged, '^%d+ (%S+)') == digest then
  return without(done())
end
if tonumber(step) ~= m.committed + 1 then return without({'step_behind', text(m.committed)}) end
local bytes, tokens, named = 0, {}, {}
for i = 8, #ARGV do
  local key = BLOBS .. 'request:' .. ARGV[i]
  if redis.call('EXISTS', key) == 0 then return without({'missing'}) end
  bytes = bytes + redis.call('STRLEN', key)
  tokens[#tokens + 1] = ' ' .. ARGV[i]
  named['request:' .. ARGV[i]] = true
end
oldest = math.max(m.oldest, math.min(tonumber(oldest), step - 1))
for i = 8, #ARGV do redis.call('PERSIST', BLOBS .. 'request:' .. ARGV[i]) end
redis.call('HSET', LOG, step, text(bytes) .. ' ' .. digest .. table.concat(tokens))
redis.call('HSET', META, 'committed', step, 'oldest', text(oldest))
redis.call('HINCRBY', META, 'log_bytes', text(bytes))
for field in pairs(named) do redis.call('HDEL', WAITING, field) end
drop_waiting(function(field) return string.sub(field, 1, 8) ~= 'request:' end)
trim(oldest)
return done()
"""

_WAIT_SNAPSHOT = """
-- The pieces of this snapshot wait from now on: for the script that names it, or a newer owner.
local number, nonce, fence, owner, step, ttl_ms, token, count, bytes = unpack(ARGV)
local m = load()
local refused = refusal(m, number, nonce, fence, owner)
if refused then return refused end
if tonumber(step) > m.committed then return {'step_behind', text(m.committed)} end
redis.call('HSET', WAITING, 'snapshot:' .. token, bytes .. ' ' .. count)
redis.call('PEXPIRE', WAITING, ttl_ms)
return {'ok'}
"""

_SNAPSHOT = """
local number, nonce, fence, owner, step, token, count, index = unpack(ARGV)
step, count = tonumber(step), tonumber(count)
local m = load()
redis.call('HDEL', WAITING, 'snapshot:' .. token)
local stored = redis.call('HGET', SNAPS, text(step))
local answer = refusal(m, number, nonce, fence, owner)
if not answer and step > m.committed then answer = {'step_behind', text(m.committed)} end
if not answer and not stored then
  if each_piece('EXISTS', token, count) < count then return {'missing'} end
  each_piece('PERSIST', token, count)
  stored = token .. ' ' .. text(count) .. ' ' .. index
  redis.call('HSET', SNAPS, text(step), stored)
end
-- Only here is it sure that nothing names them: the first copy of this call may have been Done.
if not stored or string.match(stored, '^%S+') ~= token then each_piece('UNLINK', token, count) end
if answer then return answer end
trim(m.oldest)
return done()
"""

_CLOSE = """
local number, nonce, fence, owner = unpack(ARGV)
local refused = refusal(load(), number, nonce, fence, owner)
if refused then return refused end
redis.call('HSET', META, 'closed', '1')
return done()
"""

_FORGET = """
local m = load()
if not m then return 0 end
local fence, owner, idle_s = unpack(ARGV)
if fence then
  local t = redis.call('TIME')
  if m.fence ~= tonumber(fence) or m.owner ~= owner then return 0 end
  if t[1] + t[2] / 1000000 - m.updated <= tonumber(idle_s) then return 0 end
end
local steps = snapshots()
drop_log(steps[1] + 1, m.committed)
for _, step in ipairs(steps) do drop_snapshot(step) end
drop_waiting()
redis.call('UNLINK', META, LOG, SNAPS, BLOBS .. 'losses', BLOBS .. 'deliveries')
return 1
"""

_BEGIN_DELIVERY = """
local request, ttl_ms = unpack(ARGV)
if redis.call('EXISTS', META) == 0 then return 0 end
local key = BLOBS .. 'deliveries'
if redis.call('HLEN', key) >= 1000 then redis.call('UNLINK', key) end  -- of ids that somebody makes up
local count = redis.call('HINCRBY', key, request, '1')
redis.call('PEXPIRE', key, ttl_ms)
return count
"""

_PAUSE = """
if redis.call('EXISTS', META) == 0 then return 0 end
redis.call('HSET', META, 'paused', ARGV[1])
return 1
"""

_ADD_LOSSES = """
if redis.call('EXISTS', META) == 0 then return 0 end
redis.call('HSET', BLOBS .. 'losses', unpack(ARGV))
return redis.call('HLEN', BLOBS .. 'losses')
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


def _script(body: str, flag: str = "", *, common: str = _COMMON) -> Script:
    return Script(f"#!lua flags={flag}\n{common}{body}".encode())


_WHEN_FULL = "allow-oom"
READ = _script(_READ, "no-writes")
OPEN = _script(_OPEN)
HAND_OVER = _script(_HAND_OVER, _WHEN_FULL)
CLAIM = _script(_CLAIM, _WHEN_FULL)
WAIT = _script(_WAIT, _WHEN_FULL)
KEEP = _script(_KEEP, _WHEN_FULL)
COMMIT = _script(_COMMIT, _WHEN_FULL)
WAIT_SNAPSHOT = _script(_WAIT_SNAPSHOT, _WHEN_FULL)
SNAPSHOT = _script(_SNAPSHOT, _WHEN_FULL)
CLOSE = _script(_CLOSE, _WHEN_FULL)
FORGET = _script(_FORGET, _WHEN_FULL)
BEGIN_DELIVERY = _script(_BEGIN_DELIVERY, _WHEN_FULL)
PAUSE = _script(_PAUSE, _WHEN_FULL)
ADD_LOSSES = _script(_ADD_LOSSES)
ADD_JOB = _script(_ADD_JOB, _WHEN_FULL, common="")
SUBMIT = _script(_SUBMIT, _WHEN_FULL, common="")
HEARTBEAT = _script(_HEARTBEAT, _WHEN_FULL, common="")
