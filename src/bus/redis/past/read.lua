-- What came to topics since a position, and a cut: everything up to it is in the answer, everything later is not. What is proven is
-- said in proof.rs.
-- KEYS  the clock, then the lists; the first of them may be that of the large unions
-- ARGV  the run, the position's run ('' for whatever is kept) and its number in 16 digits, whether keys are evicted ('1'), how many
--       bytes at most before the rest is to be asked for, how many of one list, how many of the large unions are looked at, then for
--       each list for how many milliseconds it keeps, and how many entries at most
-- Returns the cut, how many of the lists are answered, 1 where nothing is proven of any, then for those with something to tell: place,
-- 1 proven, 2 too many, 3 late, 4 forgotten, and the entries.
local call, digits = redis.call, '%.0f'
local run, since_run, since, evicts, most = ARGV[1], ARGV[2], ARGV[3], ARGV[4] == '1', tonumber(ARGV[5])
local most_of_one, most_of_unions = tonumber(ARGV[6]), tonumber(ARGV[7])
local unions = KEYS[1] .. ':unions'
local clock = call('HMGET', KEYS[1], 'run', 'n', 'ahead', 'born', 'began', 'unions')
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

-- What a list has, the newest first: back to what is not later than the position, or to more than is wanted.
local function newest_of(key, newest, limit, room)
  local found, size, list, take = { newest }, #newest, nil, nil
  repeat
    take = math.max(1, math.min(4 * #found, math.floor((room - size) * #found / size)))
    list = call('LRANGE', key, -#found - take, -#found - 1)
    for k = #list, 1, -1 do
      found[#found + 1] = list[k]
      size = size + #list[k]
    end
  until #list < take or string.sub(found[#found], 2, 17) <= from or #found > limit or size > room
  return found
end

-- Whether a large union may name one of the topics: of many that is not looked for.
local function concerns(union)
  for i = 3, #KEYS do
    if #KEYS > 18 or string.find(union, string.sub(KEYS[i], #KEYS[1] + 2), 18, true) then return true end
  end
  return false
end

local out = { cut, #KEYS - 1, 0 }
local age = (n - (tonumber(from) or n)) / 1000
local bytes = 0
for i = 2, #KEYS do
  local key, keep, limit = KEYS[i], tonumber(ARGV[2 * i + 4]), tonumber(ARGV[2 * i + 5])
  local room = key == unions and most_of_unions or most_of_one
  if since_run ~= '' and age > keep then
    out[#out + 1] = { i - 1, 3, {} }
  elseif since_run == '' and key ~= unions then
    local list = call('LRANGE', key, -limit, -1)
    for k = 1, #list do bytes = bytes + #list[k] end
    if #list > 0 then out[#out + 1] = { i - 1, 1, list } end
  else
    local newest = call('LINDEX', key, -1)
    if not newest then
      local gone = evicts
      -- Of those it is known which was the last.
      if key == unions then gone = clock[6] and clock[6] > from end
      if gone and since_run ~= '' then out[#out + 1] = { i - 1, 4, {} } end
    elseif string.sub(newest, 2, 17) > from then
      local found = newest_of(key, newest, limit, room)
      local first = string.byte(found[#found])
      local whole, older, news, size = first == 3 or first == 5, false, {}, 0
      for k = #found, 1, -1 do
        if string.sub(found[k], 2, 17) <= from then
          older = true
        else
          news[#news + 1] = found[k]
          size = size + #found[k]
        end
      end
      local proven = 2
      if since_run == '' then
        proven = 1
      elseif #news <= limit and size <= room then
        if older then proven = 1 elseif whole then proven = evicts and 4 or 1 end
      end
      if proven ~= 1 then news = {} end
      if key == unions then
        -- They are sent with every part.
        local all = news
        news = {}
        for k = 1, #all do
          if concerns(all[k]) then news[#news + 1] = all[k] end
        end
      else
        bytes = bytes + size
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
