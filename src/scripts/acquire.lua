-- Takes a lock with a token and a lease, or else a place in the queue for it.
--
-- KEYS  1      the session's record
--       2      the lock
--       3 4 5  for a place: the queue, places by arrival; until when each lives; our place itself
--       last   the fence's counter, if a fence is wanted
-- ARGV  1 2 3  see session.lua
--       4      the token
--       5      the lease, in milliseconds; '' for ever
--       6      '1' if the token may hold the lock already, else ''
--       7      '1' if a fence is wanted, else ''
--       8      for a place: who we are in the queue
--       9      when we arrived, in microseconds of this server's clock
--       10     how long our place lives, in milliseconds; '0' if we do not wait
--       11     '1' if nobody who arrived before us is to be overtaken, else ''
-- returns
--       'A fence'    acquired (fence: '' if none is wanted); if the token held the lock already, its
--                    lease begins anew
--       'H pttl'     held by somebody else, for so many ms (-1: for ever): watch the lock
--       'Q ms who'   somebody is before us, whose place lives so many ms if it is not renewed: watch
--                    that place
--
-- The queue is for waking, not for order: one who frees the lock wakes the first two (the second,
-- because the first may be gone), however many wait. Who comes while the lock is free takes it; but not
-- one who is fair, and then the first alone watches the lock.
--
-- A place is three things: a member of the queue, a time in the hash, and a key that whoever comes next
-- can watch. It is gone when its owner takes the lock, gives up, or does not ask again in time. The key
-- is written by its owner alone, so each call names all its keys; and seldom, for it is told.
--
-- A fence is this server's time in microseconds, or more if the last fence was: so it grows also when
-- the counter is lost. The counter lives longer than the lease, and not for ever.
local mine = ARGV[6] ~= '' and seen[2] == ARGV[4]
local free = mine or call('EXISTS', KEYS[2]) == 0
local me, fair = ARGV[8], ARGV[11] == '1'
local queue, lives, place
if me then queue, lives, place = KEYS[3], KEYS[4], KEYS[5] end

local before, life
if me and not mine and (fair or not free) then
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  local arrived = string.format('%.0f', math.min(tonumber(ARGV[9]), time[1] * 1000000 + time[2]))
  local rank = call('ZRANK', queue, me) or call('ZCOUNT', queue, '-inf', arrived)
  while rank > 0 do
    rank = rank - 1
    local who = call('ZRANGE', queue, rank, rank)[1]
    local left = tonumber(call('HGET', lives, who) or 0) - now
    if left > 0 then
      if fair or rank > 0 then before, life = who, left end
      break
    end
    call('ZREM', queue, who)
    call('HDEL', lives, who)
  end
  if (before or not free) and ARGV[10] ~= '0' then
    call('ZADD', queue, arrived, me)
    call('HSET', lives, me, string.format('%.0f', now + ARGV[10]))
    call('PEXPIRE', queue, ARGV[10])
    call('PEXPIRE', lives, ARGV[10])
    if call('PTTL', place) < 2 * ARGV[10] then call('SET', place, '', 'PX', 8 * ARGV[10]) end
  end
end

if before then return record(string.format('Q %.0f ', life) .. before) end
if not free then return record('H ' .. call('PTTL', KEYS[2])) end

local fence, counter = '', ARGV[7] ~= '' and #KEYS
if counter then
  local number = math.max(time[1] * 1000000 + time[2], (tonumber(seen[counter] or 0) or 0) + 1)
  fence = string.format('%.0f', number)
end
local answer = record('A ' .. fence)
if ARGV[5] == '' then
  call('SET', KEYS[2], ARGV[4])
else
  call('SET', KEYS[2], ARGV[4], 'PX', ARGV[5])
end
if counter then
  local life = string.format('%.0f', tonumber(ARGV[3]) + (tonumber(ARGV[5]) or 0))
  call('SET', KEYS[counter], fence, 'PX', life)
end
if me and seen[5] then
  call('ZREM', queue, me)
  call('HDEL', lives, me)
  call('DEL', place)
end
return answer
