-- Changes a stock by what a crowd asks for, each caller judged in turn, all in one step.
--
-- KEYS  1      the session's record
--       2      the stock
--       3      the lock that must be free or ours, if it is in this slot
-- ARGV  1 2 3  see session.lua
--       4      the token under which the callers hold the lock, or ''
--       5      '1' if the token must still hold the lock, or, without a lock, that there is a floor;
--              else '', and without a lock the change is a plain INCRBY that has no floor and creates a
--              missing key (incr_inventory)
--       6 7 .. runs: a change and how many callers in a row ask for it
-- returns
--       'X'                the token, which must, does not hold the lock (any more)
--       'H pttl'           the lock is held by somebody else, for so many ms (-1: for ever)
--       'N'                there is no stock
--       'W type'           the stock is a list, a hash, ...
--       'I value'          the stock is not an integer
--       'C g n [g n ..]'   for each run: g callers were granted, in order; then the stock was n.
--                          A caller beyond g was refused: n + change is below zero (too little
--                          stock) or above what 64 bits hold (overflow), whichever it is
--
-- Lua's numbers are doubles, exact up to 2^53. While all sums stay below 2^52 they do the counting;
-- else the server's own 64-bit INCRBY does, with the record, which is overwritten at the end, as the
-- scratch pad.
local stock, floor = seen[2], KEYS[3] ~= nil or ARGV[5] ~= ''

if KEYS[3] then
  local holder = seen[3]
  if ARGV[5] ~= '' then
    if holder ~= ARGV[4] then return record('X') end
  elseif holder then
    if ARGV[4] == '' or holder ~= ARGV[4] then
      return record('H ' .. call('PTTL', KEYS[3]))
    end
  elseif call('EXISTS', KEYS[3]) == 1 then -- a lock of another type is held, too
    return record('H ' .. call('PTTL', KEYS[3]))
  end
end

if not stock then
  local kind = call('TYPE', KEYS[2]).ok
  if kind ~= 'none' then return record('W ' .. kind) end
  if floor then return record('N') end
  stock = '0'
end

local out, any = { 'C' }, false
local exact = #stock < 16 and (stock == '0' or string.find(stock, '^-?[1-9]%d*$'))
if exact then
  local before = tonumber(stock)
  local after = before
  for i = 6, #ARGV, 2 do
    local change, granted = tonumber(ARGV[i]), tonumber(ARGV[i + 1])
    if floor and after + change < 0 then
      granted = 0
    elseif floor and after + granted * change < 0 then
      granted = (after - after % -change) / -change
    end
    local sum = granted * change
    after, any = after + sum, any or granted > 0
    if math.abs(sum) >= 2 ^ 52 or math.abs(after) >= 2 ^ 52 then
      exact = false
      break
    end
    out[#out + 1] = string.format('%.0f %.0f', granted, after)
  end
  if exact then
    local answer = record(table.concat(out, ' '))
    if any then call('INCRBY', KEYS[2], string.format('%.0f', after - before)) end
    return answer
  end
end

local scratch, after = KEYS[1], stock
out, any = { 'C' }, false
call('SET', scratch, after, 'PX', ARGV[3])
if type(redis.pcall('INCRBY', scratch, '0')) == 'table' then
  return record('I ' .. string.sub(stock, 1, 64))
end
for i = 6, #ARGV, 2 do
  local change, left, granted = tonumber(ARGV[i]), tonumber(ARGV[i + 1]), 0
  -- As many at once as can be told exactly and are granted together; where not, half as many.
  local step = left
  while left > 0 do
    step = math.min(step, left)
    if floor and string.sub(after, 1, 1) == '-' then step = 1 end
    while step > 1 and math.abs(change * step) >= 2 ^ 53 do step = math.floor(step / 2) end
    local by = step > 1 and string.format('%.0f', change * step) or ARGV[i]
    local refused = type(redis.pcall('INCRBY', scratch, by)) == 'table'
    if not refused then
      local value = call('GET', scratch)
      refused = floor and string.sub(value, 1, 1) == '-'
      if refused then
        call('SET', scratch, after, 'PX', ARGV[3])
      else
        after, granted, left, any = value, granted + step, left - step, true
      end
    end
    if refused then
      if step == 1 then break end
      step = math.floor(step / 2)
    end
  end
  out[#out + 1] = string.format('%.0f ', granted) .. after
end
local answer = record(table.concat(out, ' '))
if any then call('SET', KEYS[2], after, 'KEEPTTL') end
return answer
