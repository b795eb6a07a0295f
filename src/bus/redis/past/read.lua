-- What came to topics since a position, and a cut: everything up to it is in the answer, everything later is not. What is proven is
-- said in proof.rs.
-- KEYS  the clock, then the lists
-- ARGV  the run, the position's run ('' for whatever is kept) and its number in 16 digits, whether keys are evicted ('1'), how many
--       bytes at most, then for each list for how many milliseconds it keeps, and how many entries at most
-- Returns the cut, how many of the lists are answered, 1 where nothing is proven of any, then for those with something to tell: place,
-- 1 proven, 2 too many, 3 late, 4 forgotten, and the entries.
local call, digits = redis.call, '%.0f'
local run, since_run, since, evicts, most = ARGV[1], ARGV[2], ARGV[3], ARGV[4] == '1', tonumber(ARGV[5])
local clock = call('HMGET', KEYS[1], 'run', 'n', 'ahead', 'born', 'began')
local time = call('TIME')
local ahead, last = tonumber(clock[3] or '0'), tonumber(clock[2] or '0')
local n = time[1] * 1000000 + time[2] + ahead
if n <= last then
  if last - n >= 1000000 then
    call('HSET', KEYS[1], 'ahead', string.format(digits, ahead + last + 1 - n))
  end
  n = last + 1
end
local cut, born, began = string.format(digits, n), clock[4], clock[5]
if clock[1] ~= run then
  if clock[1] then
    call('HSET', KEYS[1], 'end:' .. clock[1] .. ':' .. began, clock[2], 'run', run, 'began', cut)
  else
    born = cut
    call('HSET', KEYS[1], 'run', run, 'born', cut, 'began', cut)
  end
  began = cut
end
call('HSET', KEYS[1], 'n', cut)
local from = since
if since_run ~= '' and (since_run ~= run or since < began) then
  local all, latest, ended = call('HGETALL', KEYS[1]), '', nil
  local prefix = 'end:' .. since_run .. ':'
  for i = 1, #all, 2 do
    local of = string.sub(all[i], #prefix + 1)
    if string.sub(all[i], 1, #prefix) == prefix and of <= since and of > latest then latest, ended = of, all[i + 1] end
  end
  if not ended then return { cut, #KEYS - 1, 1 } end
  if ended < from then from = ended end
end
if since_run ~= '' and (from < born or from > cut) then return { cut, #KEYS - 1, 1 } end
local out = { cut, #KEYS - 1, 0 }
local age = (n - (tonumber(from) or n)) / 1000
local bytes = 0
for i = 2, #KEYS do
  local key, keep, limit = KEYS[i], tonumber(ARGV[2 * i + 2]), tonumber(ARGV[2 * i + 3])
  if since_run == '' then
    local list = call('LRANGE', key, -limit, -1)
    for k = 1, #list do bytes = bytes + #list[k] end
    if #list > 0 then out[#out + 1] = { i - 1, 1, list } end
  elseif age > keep then
    out[#out + 1] = { i - 1, 3, {} }
  else
    local newest = call('LINDEX', key, -1)
    if not newest then
      -- Of unions it is known whether there was ever any.
      local was_any = string.sub(key, -7) ~= ':unions' or call('HGET', KEYS[1], 'unions')
      if evicts and was_any then out[#out + 1] = { i - 1, 4, {} } end
    elseif string.sub(newest, 2, 17) > from then
      local take, list = 4, nil
      repeat
        list = call('LRANGE', key, -take, -1)
        take = take * 4
      until #list < take / 4 or string.sub(list[1], 2, 17) <= from or #list > limit
      local first = string.byte(list[1])
      local whole, older, news = first == 3 or first == 5, false, {}
      for k = 1, #list do
        if string.sub(list[k], 2, 17) > from then news[#news + 1] = list[k] else older = true end
      end
      local proven = 1
      if #news > limit then proven = 2
      elseif older then proven = 1
      elseif whole then proven = evicts and 4 or 1
      else proven = 2 end
      if proven ~= 1 then news = {} end
      -- Of the large unions it is sent with every part.
      if key ~= KEYS[1] .. ':unions' then
        for k = 1, #news do bytes = bytes + #news[k] end
      end
      out[#out + 1] = { i - 1, proven, news }
    end
  end
  -- One beside that of the large unions, at least.
  if bytes > most and i > 2 and i < #KEYS then
    out[2] = i - 1
    return out
  end
end
return out
