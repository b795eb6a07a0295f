-- The slots of users. Each node owns one hash: the name of a user's topic -> "since:number," for each of
-- its sockets there (microseconds of Redis' clock; the socket's number in hexadecimal), and beside the users
--   epoch     which of the node's connections may write: what an older one still sends is stale
--   replaced  "user=number," for each socket that lost its slot to a newer one of another node
-- A sorted set names the nodes by the end of their lease. All keys expire with the lease, that one with the last.
--
-- KEYS  the sorted set, the node's own hash (any other node's: <sorted set>:<node>)
-- ARGV  operation, node, epoch, lease in milliseconds, what the operation takes
local leases, own = KEYS[1], KEYS[2]
local operation, node, epoch, lease = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local time = redis.call('TIME')
local micros = time[1] * 1000000 + time[2]
local millis = math.floor(micros / 1000)

local function renew()
  redis.call('PEXPIRE', own, lease)
  redis.call('ZREMRANGEBYSCORE', leases, '-inf', millis)
  redis.call('ZADD', leases, millis + lease, node)
  local later = redis.call('ZRANGEBYSCORE', leases, '(' .. string.format('%.0f', millis + lease), '+inf')
  if #later == 0 then redis.call('PEXPIRE', leases, lease) end
end

if operation == 'leave' then
  redis.call('UNLINK', own)
  redis.call('ZREM', leases, node)
  return 1
end

-- Returns whether the node has to write all its slots anew.
if operation == 'join' then
  if ARGV[5] == 'anew' then redis.call('UNLINK', own) end
  local created = redis.call('HEXISTS', own, 'epoch') == 0
  redis.call('HSET', own, 'epoch', epoch)
  renew()
  return created and 1 or 0
end

if redis.call('HGET', own, 'epoch') ~= epoch then return redis.error_reply('STALE another epoch') end

-- Takes what the last renewal returned; returns what came since: whose slots were lost to sockets of other
-- nodes. So nothing of it is lost with an answer.
if operation == 'renew' then
  renew()
  local known, replaced = ARGV[5], redis.call('HGET', own, 'replaced') or ''
  if known ~= '' and string.sub(replaced, 1, #known) == known then
    replaced = string.sub(replaced, #known + 1)
    if replaced == '' then redis.call('HDEL', own, 'replaced') else redis.call('HSET', own, 'replaced', replaced) end
  end
  return replaced
end

-- user, slots, user, slots, ..
if operation == 'write' then
  for at = 5, #ARGV, 2 do
    if ARGV[at + 1] == '' then
      redis.call('HDEL', own, ARGV[at])
    else
      redis.call('HSET', own, ARGV[at], ARGV[at + 1])
    end
  end
  return 1
end

-- claim: user, number, limit, 'refuse' or 'replace'. Returns 0 when refused, else since when the slot is
-- held and the sockets that lost theirs.
local user, number, limit, over = ARGV[5], ARGV[6], tonumber(ARGV[7]), ARGV[8]
local held = {}
for _, other in ipairs(redis.call('ZRANGEBYSCORE', leases, '(' .. string.format('%.0f', millis), '+inf')) do
  local slots = redis.call('HGET', leases .. ':' .. other, user)
  if slots then
    for since, socket in string.gmatch(slots, '(%d+):(%x+),') do
      held[#held + 1] = { since = since, age = tonumber(since), node = other, number = socket }
    end
  end
end
local lost = #held + 1 - limit
if lost > 0 and over == 'refuse' then return 0 end

table.sort(held, function(a, b)
  if a.age ~= b.age then return a.age < b.age end
  if a.node ~= b.node then return a.node < b.node end
  return tonumber(a.number, 16) < tonumber(b.number, 16)
end)
local since = string.format('%.0f', micros)
local reply = { since }
for at = 1, lost do
  local slot = held[at]
  local hash = leases .. ':' .. slot.node
  local pair = slot.since .. ':' .. slot.number .. ','
  local left = string.gsub(redis.call('HGET', hash, user), pair, '', 1)
  if left == '' then redis.call('HDEL', hash, user) else redis.call('HSET', hash, user, left) end
  if slot.node ~= node then
    local replaced = redis.call('HGET', hash, 'replaced') or ''
    redis.call('HSET', hash, 'replaced', replaced .. user .. '=' .. slot.number .. ',')
  end
  reply[#reply + 1] = slot.node .. '-' .. slot.number
end
redis.call('HSET', own, user, (redis.call('HGET', own, user) or '') .. since .. ':' .. number .. ',')
return reply
