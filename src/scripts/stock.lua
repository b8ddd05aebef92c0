-- Changes a stock by what a crowd asks for, each caller judged in turn, all in one step.
--
-- KEYS  1      the session's record
--       2      the stock
--       3      the lock that must be free or ours; without it the change is a plain INCRBY that
--              has no floor and creates a missing key (incr_inventory)
-- ARGV  1 2 3  see session.lua
--       4      the token under which the callers hold the lock, or ''
--       5 6 .. runs: a change and how many callers in a row ask for it
-- returns
--       'H pttl'           the lock is held by somebody else, for so many ms (-1: for ever)
--       'N'                there is no stock
--       'W type'           the stock is a list, a hash, ...
--       'I value'          the stock is not an integer
--       'C g n [g n ..]'   for each run: g callers were granted, in order; then the stock was n.
--                          A caller beyond g was refused: n + change is below zero (too little
--                          stock) or above what 64 bits hold (overflow), whichever it is
--
-- Lua's numbers are doubles: exact up to 2^53. What may come near it is counted by the server's own
-- 64-bit INCRBY, with the record, which is overwritten at the end, as the scratch pad.
local stock, floor = seen[2], KEYS[3] ~= nil

if floor then
  local holder = seen[3]
  if holder then
    if ARGV[4] == '' or holder ~= ARGV[4] then
      return record('H ' .. redis.call('PTTL', KEYS[3]))
    end
  elseif redis.call('EXISTS', KEYS[3]) == 1 then -- a lock of another type is held, too
    return record('H ' .. redis.call('PTTL', KEYS[3]))
  end
end

if not stock then
  local kind = redis.call('TYPE', KEYS[2]).ok
  if kind ~= 'none' then return record('W ' .. kind) end
  if floor then return record('N') end
end

local before = tonumber(stock or '0')
local exact = before and (not stock or (string.format('%.0f', before) == stock and stock ~= '-0'))
local reach = exact and math.abs(before)
for i = 5, #ARGV, 2 do
  if exact then reach = reach + math.abs(ARGV[i]) * ARGV[i + 1] end
end

local out = { 'C' }
if exact and reach < 9007199254740992 then
  local after, any = before, false
  for i = 5, #ARGV, 2 do
    local change, granted = tonumber(ARGV[i]), tonumber(ARGV[i + 1])
    if floor and after + change < 0 then
      granted = 0
    elseif floor and change < 0 then
      granted = math.min(granted, (after - math.fmod(after, -change)) / -change)
    end
    any = any or granted > 0
    after = after + granted * change
    out[#out + 1] = string.format('%.0f %.0f', granted, after)
  end
  local answer = record(table.concat(out, ' '))
  if any then redis.call('INCRBY', KEYS[2], string.format('%.0f', after - before)) end
  return answer
end

local scratch, after, any = KEYS[1], stock or '0', false
redis.call('SET', scratch, after, 'PX', ARGV[3])
if type(redis.pcall('INCRBY', scratch, '0')) == 'table' then
  return record('I ' .. string.sub(stock, 1, 64))
end
for i = 5, #ARGV, 2 do
  local granted = 0
  for _ = 1, tonumber(ARGV[i + 1]) do
    if type(redis.pcall('INCRBY', scratch, ARGV[i])) == 'table' then break end
    local value = redis.call('GET', scratch)
    if floor and string.sub(value, 1, 1) == '-' then
      redis.call('SET', scratch, after, 'PX', ARGV[3])
      break
    end
    after, granted, any = value, granted + 1, true
  end
  out[#out + 1] = string.format('%.0f ', granted) .. after
end
local answer = record(table.concat(out, ' '))
if any then redis.call('SET', KEYS[2], after, 'KEEPTTL') end
return answer
