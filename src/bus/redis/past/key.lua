-- What positions are signed with: made by the first node that asks.
-- KEYS  the clock
-- ARGV  the key that it has made
-- Returns the one that holds.
local key = redis.call('HGET', KEYS[1], 'key')
if not key then
  key = ARGV[1]
  redis.call('HSET', KEYS[1], 'key', key)
end
return key
