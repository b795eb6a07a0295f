-- Keeps messages and publishes them: in order, under numbers of one clock, in one step.
-- KEYS  the clock, then for each message the list of its topic
-- ARGV  the run ('' where it is to be asked for), the command that publishes, then for each message: how many its list
--       keeps (0: none, its key is the clock's), for how many milliseconds, flags, channel, envelope
--   run       who numbers: the first 12 letters of the server's run_id
--   flags     r: the list is to live so long from now on (each sender says it once in an eighth of what is kept, and a new list
--             begins so); s: under the number of the one before
--   channel   '' where it is not published
--   envelope  '' where it is the same as before
-- Returns the first number, then for each message how many heard it, or why it was refused, the others were not: 'KEPT ..' where it is
-- kept all the same.
local call, pcall, format, digits = redis.call, redis.pcall, string.format, '%.0f'
local ARGV, KEYS, tonumber = ARGV, KEYS, tonumber
local run, publish = ARGV[1], ARGV[2]
-- Of the large unions it is known which was the last, whatever becomes of their list.
local unions = KEYS[1] .. ':unions'
local clock = call('HMGET', KEYS[1], 'run', 'n', 'ahead')
local time = call('TIME')
local ahead, last = tonumber(clock[3] or '0'), tonumber(clock[2] or '0')
local n = time[1] * 1000000 + time[2] + ahead
if n <= last then
  -- Somebody set the time back: numbers go on from where they were.
  if last - n >= 1000000 then
    call('HSET', KEYS[1], 'ahead', format(digits, ahead + last + 1 - n))
  end
  n = last + 1
end
if run == '' then run = string.match(call('INFO', 'server'), 'run_id:(%w%w%w%w%w%w%w%w%w%w%w%w)') end
if clock[1] ~= run then
  local first = format(digits, n)
  if clock[1] then
    local began = call('HGET', KEYS[1], 'began')
    local ends = {}
    local all = call('HGETALL', KEYS[1])
    for i = 1, #all, 2 do
      if string.sub(all[i], 1, 4) == 'end:' then ends[#ends + 1] = { all[i], all[i + 1] } end
    end
    table.sort(ends, function(a, b) return a[2] < b[2] end)
    for i = 1, #ends - 31 do call('HDEL', KEYS[1], ends[i][1]) end
    call('HSET', KEYS[1], 'end:' .. clock[1] .. ':' .. began, clock[2], 'run', run, 'began', first)
  else
    call('HSET', KEYS[1], 'run', run, 'born', first, 'began', first)
  end
end
local count = #KEYS - 1
call('HSET', KEYS[1], 'n', format(digits, n + (count > 0 and count - 1 or 0)))
local out = { format(digits, n) }
local envelope, length_of = nil, {}
for i = 1, count do
  local a, key = 5 * i - 2, KEYS[i + 1]
  local said, flags, channel, given = ARGV[a], ARGV[a + 2], ARGV[a + 3], ARGV[a + 4]
  local length = length_of[said]
  if not length then
    length = tonumber(said)
    length_of[said] = length
  end
  if i > 1 and (flags == '' or flags == 'r') then n = n + 1 end
  if given ~= '' then envelope = given end
  local kept = '\2' .. format(digits, n) .. envelope
  local held = 0
  if length > 0 then
    held = pcall('RPUSHX', key, kept)
    if held == 0 then
      held = pcall('RPUSH', key, '\3' .. format(digits, n) .. envelope)
      if held == 1 then call('PEXPIRE', key, ARGV[a + 1]) end
    elseif type(held) == 'number' then
      if held > length * 5 / 4 then call('LTRIM', key, -length, -1) end
      if flags == 'r' or flags == 'rs' then call('PEXPIRE', key, ARGV[a + 1]) end
    end
    if key == unions and type(held) == 'number' then call('HSET', KEYS[1], 'unions', format(digits, n)) end
  end
  if type(held) ~= 'number' then
    out[i + 1] = held
  elseif channel == '' then
    out[i + 1] = 0
  else
    local heard = pcall(publish, channel, kept)
    if type(heard) ~= 'number' and held > 0 then heard = { err = 'KEPT ' .. heard.err } end
    out[i + 1] = heard
  end
end
return out
