-- The seats of users. Each node owns one hash: the name of a user's topic -> "since:number," for each of
-- its sockets there (microseconds of Redis' clock; the socket's number in hexadecimal), and beside the users
--   epoch     which of the node's connections may write: what an older one still sends is stale
--   whole     set once all the node's seats are written
--   said      the number of the last thing said: with an older one, Redis has lost what came after it
--   nodes     who is in the sorted set
--   replaced  "user=number," for each socket that lost its seat to a newer one of another node
-- A sorted set names the nodes by the end of their lease. All keys expire with the lease, that one with the last.
--
-- Any key may be gone at any time (deleted, evicted, flushed), or what was last written to it (a failover). It must not read as nobody's:
--   a node of the set whose hash is not whole is missing, and it writes its seats anew as soon as it notices;
--   the set is restored from any hash, since each names all nodes;
--   where no hash is left either, OTHERS stands for whom nobody knows, until everyone alive must have noticed.
-- So it is when Redis' clock jumps, which ends the leases of the living, or prolongs those of the dead.
--
-- KEYS  the sorted set, the node's own hash (any other node's: <sorted set>:<node>)
-- ARGV  operation, node, epoch, lease in milliseconds, how long it takes at most until a node notices, what Redis'
--       clock should say in milliseconds (0: not known), the number of what is said and of the last thing that Redis
--       confirmed, what the operation takes
local leases, own = KEYS[1], KEYS[2]
local operation, node, epoch = ARGV[1], ARGV[2], ARGV[3]
local lease, grace, expected = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local says, confirmed = ARGV[7], tonumber(ARGV[8])
local time = redis.call('TIME')
local micros = time[1] * 1000000 + time[2]
local millis = math.floor(micros / 1000)
local OTHERS = 'others'

local function text(integer) return string.format('%.0f', integer) end
local function hash(of) return leases .. ':' .. of end
local function running() return redis.call('ZRANGEBYSCORE', leases, '(' .. text(millis), '+inf') end

-- For how long.
local function others_stand()
  return math.max(0, (redis.call('ZSCORE', leases, OTHERS) or 0) - millis)
end

local function suspect()
  if others_stand() == 0 then redis.call('ZADD', leases, millis + grace, OTHERS) end
end

local function renew()
  redis.call('PEXPIRE', own, lease)
  local ended = redis.call('ZREMRANGEBYSCORE', leases, '-inf', text(millis))
  redis.call('ZADD', leases, millis + lease, node)
  local later = redis.call('ZRANGEBYSCORE', leases, '(' .. text(millis + lease), '+inf')
  if #later == 0 then redis.call('PEXPIRE', leases, lease) end
  return ended
end

local function tell()
  local nodes = running()
  local names = table.concat(nodes, ',')
  for _, other in ipairs(nodes) do
    if redis.call('HEXISTS', hash(other), 'epoch') == 1 then redis.call('HSET', hash(other), 'nodes', names) end
  end
end

-- Names may have OTHERS among them: then they are not all.
local function recall(names)
  for other in string.gmatch(names, '[^,]+') do
    if other == OTHERS then
      suspect()
    else
      redis.call('ZADD', leases, 'NX', text(millis + lease), other)
    end
  end
end

-- Who has its hash and is not in the set: the set was lost, and the hash tells who was there.
local function restore()
  if redis.call('ZSCORE', leases, node) then return end
  redis.call('ZREM', leases, OTHERS)
  recall(redis.call('HGET', own, 'nodes') or OTHERS)
  renew()
  tell()
end

-- While less than a third of a lease is wrong, nobody's lease has ended who renews it in time.
local function check_clock()
  if expected == 0 then return end
  if millis > expected + lease / 3 then suspect() end
  if millis >= expected - lease / 3 then return end
  for _, other in ipairs(redis.call('ZRANGEBYSCORE', leases, '(' .. text(millis + lease), '+inf')) do
    redis.call('ZADD', leases, millis + lease, other)
    redis.call('PEXPIRE', hash(other), lease)
  end
end

if operation == 'leave' then
  redis.call('UNLINK', own)
  redis.call('ZREM', leases, node)
  tell()
  local left = running()
  if #left == 1 and left[1] == OTHERS then redis.call('UNLINK', leases) end
  return 1
end

-- 'anew' when what is there is to be forgotten, and the nodes that this one remembers. Returns whether the node
-- has to write all its seats anew, for how long OTHERS stands, the nodes, and the time in milliseconds.
if operation == 'join' then
  local kept = redis.call('HMGET', own, 'whole', 'said')
  local older = kept[2] and tonumber(kept[2]) < confirmed
  local anew = ARGV[9] == 'anew' or not kept[1] or older
  if anew then redis.call('UNLINK', own) end
  redis.call('HSET', own, 'epoch', epoch, 'said', says)
  if older or #running() == 0 then suspect() end
  check_clock()
  if not anew then restore() end
  if others_stand() > 0 then recall(ARGV[10]) end
  renew()
  tell()
  return { anew and 1 or 0, others_stand(), redis.call('HGET', own, 'nodes'), text(millis) }
end

local kept = redis.call('HMGET', own, 'epoch', 'said')
if kept[1] ~= epoch then return redis.error_reply('STALE another epoch') end
if tonumber(kept[2]) < confirmed then return redis.error_reply('STALE older than what was confirmed') end
restore()
check_clock()

-- Takes what the last renewal returned; returns what came since (whose seats were lost to sockets of other
-- nodes, so that nothing of it is lost with an answer), the nodes, and the time in milliseconds.
if operation == 'renew' then
  if renew() > 0 then tell() end
  local known, replaced = ARGV[9], redis.call('HGET', own, 'replaced') or ''
  if known ~= '' and string.sub(replaced, 1, #known) == known then
    replaced = string.sub(replaced, #known + 1)
    if replaced == '' then redis.call('HDEL', own, 'replaced') else redis.call('HSET', own, 'replaced', replaced) end
  end
  return { replaced, redis.call('HGET', own, 'nodes') or '', text(millis) }
end

-- user, seats, user, seats, ..
if operation == 'write' then
  -- Others wait for the last of many: they see that it comes.
  if redis.call('HEXISTS', own, 'whole') == 0 then renew() end
  redis.call('HSET', own, 'said', says)
  for at = 9, #ARGV, 2 do
    if ARGV[at + 1] == '' then
      redis.call('HDEL', own, ARGV[at])
    else
      redis.call('HSET', own, ARGV[at], ARGV[at + 1])
    end
  end
  return 1
end

-- claim: user, number, limit, 'refuse' or 'replace', and the missing nodes that the claimer has given up, as they
-- were told. Returns when refused 0, or -1 when nodes are missing; when nodes are missing that were not given
-- up 'missing', the time in milliseconds and "node=end of its lease" for each; else 'granted', or 'unchecked'
-- when it is without those given up, since when the seat is held, and the sockets that lost theirs.
local user, number, limit, over, given_up = ARGV[9], ARGV[10], tonumber(ARGV[11]), ARGV[12], ARGV[13]
local held, missing, waits = {}, { 'missing', text(millis) }, false
for _, other in ipairs(running()) do
  local found = redis.call('HMGET', hash(other), 'whole', user)
  if not found[1] then
    local name = other .. '=' .. redis.call('ZSCORE', leases, other)
    missing[#missing + 1] = name
    waits = waits or not string.find(given_up, name .. ',', 1, true)
  end
  for since, socket in string.gmatch(found[2] or '', '(%d+):(%x+),') do
    held[#held + 1] = { since = since, age = tonumber(since), node = other, number = socket }
  end
end
local whole = #missing == 2
local lost = #held + 1 - limit
if lost > 0 and over == 'refuse' then return whole and 0 or -1 end
if waits then return missing end
-- It stood for nobody.
if whole and redis.call('ZREM', leases, OTHERS) == 1 then tell() end

table.sort(held, function(a, b)
  if a.age ~= b.age then return a.age < b.age end
  if a.node ~= b.node then return a.node < b.node end
  return tonumber(a.number, 16) < tonumber(b.number, 16)
end)
local since = text(micros)
local reply = { whole and 'granted' or 'unchecked', since }
for at = 1, lost do
  local seat = held[at]
  local pair = seat.since .. ':' .. seat.number .. ','
  local left = string.gsub(redis.call('HGET', hash(seat.node), user), pair, '', 1)
  if left == '' then redis.call('HDEL', hash(seat.node), user) else redis.call('HSET', hash(seat.node), user, left) end
  if seat.node ~= node then
    local replaced = redis.call('HGET', hash(seat.node), 'replaced') or ''
    redis.call('HSET', hash(seat.node), 'replaced', replaced .. user .. '=' .. seat.number .. ',')
  end
  reply[#reply + 1] = seat.node .. '-' .. seat.number
end
redis.call('HSET', own, user, (redis.call('HGET', own, user) or '') .. since .. ':' .. number .. ',', 'said', says)
return reply
