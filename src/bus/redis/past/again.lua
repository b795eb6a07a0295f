-- Keeps messages again: those of which nobody knows whether Redis took them, and those that were lost with another process. What is
-- there already stays as it is; the others are kept and published, in order, in one step. Numbers are those of append.lua.
-- KEYS  the clock, then for each message the list of its topic
-- ARGV  the run, the command that publishes, a number in 16 digits: they are looked for among what has a higher one; then for each
--       message: how many its list keeps (0: none, its key is the clock's), for how many milliseconds, flags, where it was kept,
--       channel, envelope
--   flags     s: under the number of the one before, or there with it
--   where     '' for what was never answered, else runs and numbers (28 letters each): those who have it from there know it by them
--   envelope  '' where it is the same as before
-- Returns for each message its number and how many heard it and one more, or 0 where it was there; or why it was refused, and 0.
local call, pcall, format, digits = redis.call, redis.pcall, string.format, '%.0f'
local run, publish, since = ARGV[1], ARGV[2], ARGV[3]
local unions = KEYS[1] .. ':unions'
local clock = call('HMGET', KEYS[1], 'run', 'n', 'ahead')
local time = call('TIME')
local ahead, last = tonumber(clock[3] or '0'), tonumber(clock[2] or '0')
local n = time[1] * 1000000 + time[2] + ahead
if n <= last then
  if last - n >= 1000000 then
    call('HSET', KEYS[1], 'ahead', format(digits, ahead + last + 1 - n))
  end
  n = last + 1
end
local count = #KEYS - 1
if clock[1] ~= run then
  local first = format(digits, n)
  if clock[1] then
    local began = call('HGET', KEYS[1], 'began')
    call('HSET', KEYS[1], 'end:' .. clock[1] .. ':' .. began, clock[2], 'run', run, 'began', first)
  else
    call('HSET', KEYS[1], 'run', run, 'born', first, 'began', first)
  end
end
call('HSET', KEYS[1], 'n', format(digits, n + count - 1))

-- Without what says how often its partition had moved, which may be another by now.
local function bare(entry, at)
  if string.byte(entry, at) == 0 then at = at + 5 end
  return string.sub(entry, at)
end

-- By list, the number of each envelope.
local numbers = {}
local function number_of(key, envelope)
  local known = numbers[key]
  if not known then
    known = {}
    numbers[key] = known
    local take, list = 8, nil
    repeat
      list = pcall('LRANGE', key, -take, -1)
      take = take * 4
    until list.err or #list < take / 4 or string.sub(list[1], 2, 17) <= since
    for k = 1, #list do
      local entry, at = list[k], 18
      if string.byte(entry) > 3 then
        while string.find(entry, '^%w', at) do at = at + 28 end
      end
      if string.sub(entry, 2, 17) > since then known[bare(entry, at)] = string.sub(entry, 2, 17) end
    end
  end
  return known[bare(envelope, 1)]
end

local out, envelope, there, number = {}, nil, nil, nil
for i = 1, count do
  local a, key = 6 * i - 2, KEYS[i + 1]
  local length, former, channel = tonumber(ARGV[a]), ARGV[a + 3], ARGV[a + 4]
  if ARGV[a + 5] ~= '' then envelope = ARGV[a + 5] end
  if ARGV[a + 2] ~= 's' then
    there = nil
    local k = i
    repeat
      if tonumber(ARGV[6 * k - 2]) > 0 then there = there or number_of(KEYS[k + 1], envelope) end
      k = k + 1
    until k > count or ARGV[6 * k] ~= 's'
    if not there then
      number = format(digits, n)
      n = n + 1
    end
  end
  local told, heard = there or number, 0
  if not there then
    local again = former ~= ''
    local kept = (again and '\4' or '\2') .. number .. former .. envelope
    local held = 0
    if length > 0 then
      held = pcall('RPUSHX', key, kept)
      if held == 0 then
        held = pcall('RPUSH', key, (again and '\5' or '\3') .. number .. former .. envelope)
      elseif type(held) == 'number' and held > length * 5 / 4 then
        call('LTRIM', key, -length, -1)
      end
      if type(held) == 'number' then
        call('PEXPIRE', key, ARGV[a + 1])
        if key == unions then call('HSET', KEYS[1], 'unions', number) end
      end
    end
    if type(held) ~= 'number' then
      told = held
    elseif channel == '' then
      heard = 1
    else
      heard = pcall(publish, channel, kept)
      if type(heard) == 'number' then
        heard = heard + 1
      else
        if held > 0 then heard = { err = 'KEPT ' .. heard.err } end
        told, heard = heard, 0
      end
    end
  end
  out[2 * i - 1], out[2 * i] = told, heard
end
return out
