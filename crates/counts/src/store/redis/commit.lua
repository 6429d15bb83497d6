-- Applies one batch to one lane: the fence, the positions, then the writes, in one step.
--
-- KEYS  1 ckpt, 2 meta, 3 quarantine, 4 one that never exists, then the data keys in the order in
--       which ARGV speaks of them
-- ARGV  plan hash
--       spans: n, then n * (field, from, to)
--       guard of the HLL shadow: n, then n * (field, position);
--         n, then n * (index into KEYS of a key that must exist, expiry)
--       writes: n, then n * (kind, tracking key, expiry or '', number of arguments that follow,
--         arguments)
-- Answer  {'applied', expired keys, values folded, {quarantined key, error, ...}}
--         {'plan', stored hash}, {'fence', stored, ...} in the order of the spans, {'shadow'}
--
-- A script has no rollback. What the user may not do is found before the fence. The first write is
-- the positions, by `call`, so that a store out of memory refuses the batch as a whole; after it
-- only the errors of `tolerated` can happen, and they quarantine one key.
--
-- While a cluster moves the slot of a lane, its keys are here or there, and a call for one that is
-- not here fails in the middle. But a node that moves a slot away refuses a script before it begins
-- if one of KEYS is missing, and the fourth always is.

local call, pcall_redis = redis.call, redis.pcall
-- What is used for every value; globals are looked up each time.
local ARGV, type = ARGV, type
local at = 0
local function arg()
  at = at + 1
  return ARGV[at]
end
local key_at = 4
local function key()
  key_at = key_at + 1
  return KEYS[key_at]
end

local now = tonumber(call('TIME')[1])
local OTHER = '__other__'
local CHUNK = 4000
-- Scores read and written at a time.
local SCORES = 500

-- the permissions ---------------------------------------------------------------------------------

-- All that is called on data keys. One that is missing would end the script behind the positions,
-- and its batch would be lost.
local COMMANDS = 'EXISTS EXPIREAT HEXISTS HINCRBY HLEN HMGET HSET PFADD SADD SCARD SISMEMBER ZADD ZCARD ZMSCORE ZSCORE'

local written = KEYS[5] or KEYS[3]
for command in string.gmatch(COMMANDS, '%u+') do
  if not redis.acl_check_cmd(command, written) then
    return redis.error_reply('NOPERM ' .. command .. ' on ' .. written)
  end
end

-- the fence ---------------------------------------------------------------------------------------

local plan = call('HGET', KEYS[2], 'plan')
if plan ~= arg() then
  return { 'plan', plan or '' }
end

local spans = tonumber(arg())
local positions, fields, holds = {}, {}, true
for i = 1, spans do
  fields[i], positions[i * 2 - 1] = ARGV[at + 1], ARGV[at + 1]
  positions[i * 2] = ARGV[at + 3]
  local stored = call('HGET', KEYS[1], fields[i])
  holds = holds and stored == ARGV[at + 2]
  at = at + 3
end
if not holds then
  local answer = { 'fence' }
  for i = 1, spans do
    answer[i + 1] = call('HGET', KEYS[1], fields[i]) or ''
  end
  return answer
end

for _ = 1, tonumber(arg()) do
  local stored = call('HGET', KEYS[1], arg())
  local built = tonumber(arg())
  if not stored or tonumber(string.match(stored, '^%-?%d+')) < built then
    return { 'shadow' }
  end
end
for _ = 1, tonumber(arg()) do
  local name, expiry = KEYS[tonumber(arg())], arg()
  -- A key that has expired is not written, so there is nothing to miss.
  local is_live = expiry == '' or tonumber(expiry) > now
  if is_live and call('EXISTS', name) == 0 then
    return { 'shadow' }
  end
end

-- the positions -----------------------------------------------------------------------------------

for first = 1, #positions, CHUNK do
  call('HSET', KEYS[1], unpack(positions, first, math.min(first + CHUNK - 1, #positions)))
end

-- the writes --------------------------------------------------------------------------------------

local expired, folded, quarantined = 0, 0, {}

local function tolerated(text)
  return string.find(text, 'WRONGTYPE', 1, true)
    or string.find(text, 'not an integer', 1, true)
    or string.find(text, 'not a valid float', 1, true)
    or string.find(text, 'overflow', 1, true)
    or string.find(text, 'INVALIDOBJ', 1, true)
end

local function quarantine(key_name, reason)
  call('HSET', KEYS[3], key_name, reason)
  quarantined[#quarantined + 1] = key_name
  quarantined[#quarantined + 1] = reason
end

-- The reply of a command on a data key; nil when the key had to be quarantined.
local function checked(key_name, reply)
  if type(reply) ~= 'table' or not reply.err then
    return reply
  end
  if not tolerated(reply.err) then
    error(reply.err)
  end
  quarantine(key_name, reply.err)
  return nil
end

-- Decimal integers beyond 2^53 are compared as text.
local function less(x, y)
  local x_negative, y_negative = string.byte(x) == 45, string.byte(y) == 45
  if x_negative ~= y_negative then
    return x_negative
  end
  if #x ~= #y then
    return (#x < #y) ~= x_negative
  end
  return (x < y) ~= x_negative and x ~= y
end

-- Keys that this batch creates get their tracking entry, and their expiry once they are there.
local fresh = {}
local function touch(name, tracking, expiry)
  if call('EXISTS', name) == 0 then
    fresh[#fresh + 1] = { name, tracking, expiry }
  end
end

-- Of `n` values, each `width` arguments long, gives those beyond the limit the name OTHER.
local function hold_to(limit, count, n, width, has)
  if count + n <= limit then
    return
  end
  if has(OTHER) then
    count = count - 1
  end
  for i = at + 1, at + n * width, width do
    if not has(ARGV[i]) then
      if count < limit then
        count = count + 1
      else
        ARGV[i] = OTHER
        folded = folded + 1
      end
    end
  end
end

local kinds = {}

-- arguments: elements...
function kinds.u(arguments, tracking, expiry)
  local name = key()
  touch(name, tracking, expiry)
  for first = 1, arguments, CHUNK do
    local last = math.min(first + CHUNK - 1, arguments)
    if not checked(name, pcall_redis('PFADD', name, unpack(ARGV, at + first, at + last))) then
      return
    end
  end
end

-- arguments: limit, key prefix, n, then n * (label, encoded label, number of elements, elements...)
function kinds.b(_, tracking, expiry)
  local set = key()
  local limit, prefix, n = tonumber(arg()), arg(), tonumber(arg())
  touch(set, tracking, expiry)
  local count = checked(set, pcall_redis('SCARD', set))
  if not count then
    return
  end
  local has_other = call('SISMEMBER', set, OTHER) == 1
  if has_other then
    count = count - 1
  end
  for _ = 1, n do
    local label, encoded, elements = arg(), arg(), tonumber(arg())
    if call('SISMEMBER', set, label) == 0 then
      if count < limit then
        count = count + 1
      else
        label, encoded = OTHER, OTHER
        folded = folded + 1
      end
      call('SADD', set, label)
    end
    local name = prefix .. encoded
    touch(name, tracking, expiry)
    for first = 1, elements, CHUNK do
      local last = math.min(first + CHUNK - 1, elements)
      if not checked(name, pcall_redis('PFADD', name, unpack(ARGV, at + first, at + last))) then
        break
      end
    end
    at = at + elements
  end
end

-- arguments: limit, n, then n * (label, increment)
function kinds.c(_, tracking, expiry)
  local name = key()
  local limit, n = tonumber(arg()), tonumber(arg())
  touch(name, tracking, expiry)
  local count = checked(name, pcall_redis('HLEN', name))
  if not count then
    return
  end
  hold_to(limit, count, n, 2, function(label)
    return call('HEXISTS', name, label) == 1
  end)
  for i = at + 1, at + n * 2, 2 do
    checked(name, pcall_redis('HINCRBY', name, ARGV[i], ARGV[i + 1]))
  end
end

-- arguments: limit, n, then n * (member, increment)
--
-- Scores are doubles, here as there, so that many can be read, added and written at a time: where
-- the server writes an append-only file, a fifth less work than as many ZINCRBY, and less than half
-- the bytes. Hashes hold integers of 64 bits, which only HINCRBY adds.
function kinds.t(_, tracking, expiry)
  local name = key()
  local limit, n = tonumber(arg()), tonumber(arg())
  touch(name, tracking, expiry)
  local count = checked(name, pcall_redis('ZCARD', name))
  if not count then
    return
  end
  hold_to(limit, count, n, 2, function(label)
    return call('ZSCORE', name, label) ~= false
  end)
  local function add(members, increments)
    local scores, scored = call('ZMSCORE', name, unpack(members)), {}
    for i, member in ipairs(members) do
      scored[i * 2 - 1], scored[i * 2] = (tonumber(scores[i]) or 0) + increments[i], member
    end
    checked(name, pcall_redis('ZADD', name, unpack(scored)))
  end
  -- A member may stand in one ZADD once, which is true of all that the batch names.
  local members, increments, others = {}, {}, 0
  for i = at + 1, at + n * 2, 2 do
    if ARGV[i] == OTHER then
      others = others + ARGV[i + 1]
    else
      members[#members + 1], increments[#increments + 1] = ARGV[i], ARGV[i + 1]
      if #members == SCORES then
        add(members, increments)
        members, increments = {}, {}
      end
    end
  end
  if others > 0 then
    members[#members + 1], increments[#increments + 1] = OTHER, others
  end
  if #members > 0 then
    add(members, increments)
  end
end

-- arguments: limit, count, min, max, number of increments of the sum, increments..., n, then n *
-- (label, sum, count)
function kinds.s(_, tracking, expiry)
  local sums, counts, totals = key(), key(), key()
  local limit = tonumber(arg())
  touch(sums, tracking, expiry)
  touch(counts, tracking, expiry)
  touch(totals, tracking, expiry)
  local count, min, max = arg(), arg(), arg()
  local is_sound = checked(totals, pcall_redis('HINCRBY', totals, 'count', count))
  for _ = 1, tonumber(arg()) do
    local increment = arg()
    is_sound = is_sound and checked(totals, pcall_redis('HINCRBY', totals, 'sum', increment))
  end
  if is_sound then
    local stored = call('HMGET', totals, 'min', 'max')
    if not stored[1] or less(min, stored[1]) then
      call('HSET', totals, 'min', min)
    end
    if not stored[2] or less(stored[2], max) then
      call('HSET', totals, 'max', max)
    end
  end
  local n = tonumber(arg())
  local size = checked(sums, pcall_redis('HLEN', sums))
  if not size then
    quarantine(counts, 'the sums it belongs to cannot be written')
    return
  end
  local has_counts = checked(counts, pcall_redis('HLEN', counts))
  hold_to(limit, size, n, 3, function(label)
    return call('HEXISTS', sums, label) == 1
  end)
  for i = at + 1, at + n * 3, 3 do
    checked(sums, pcall_redis('HINCRBY', sums, ARGV[i], ARGV[i + 1]))
    if has_counts then
      checked(counts, pcall_redis('HINCRBY', counts, ARGV[i], ARGV[i + 2]))
    end
  end
end

local key_counts = { u = 1, b = 1, c = 1, t = 1, s = 3 }
for _ = 1, tonumber(arg()) do
  local kind, tracking, expiry, arguments = arg(), arg(), arg(), tonumber(arg())
  local next_at, next_key_at = at + arguments, key_at + key_counts[kind]
  if expiry ~= '' and tonumber(expiry) <= now then
    expired = expired + 1
  else
    fresh = {}
    kinds[kind](arguments, tracking, expiry)
    for _, entry in ipairs(fresh) do
      local name, is_there = entry[1], call('EXISTS', entry[1]) == 1
      if is_there then
        checked(tracking, pcall_redis('SADD', tracking, name))
        if expiry ~= '' then
          call('EXPIREAT', name, expiry)
          call('EXPIREAT', tracking, expiry)
        end
      end
    end
  end
  at, key_at = next_at, next_key_at
end

return { 'applied', expired, folded, quarantined }
