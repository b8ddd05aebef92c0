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
--       8      this attempt: who we are in the queue, and beside the fence
--       9      for a place: when we arrived, in microseconds of this server's clock
--       10     how long a place lives, in milliseconds
--       11     '1' if we wait for the lock, and '' if we only ask
--       12     '1' if nobody who arrived before us is to be overtaken, else ''
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
-- is written by its owner alone, so each call names all its keys; and seldom, for it is told. Whoever
-- may not use the queue's commands (an ACL) does without, and watches the lock, unless he is fair.
--
-- A fence is this server's time in microseconds, or more if the last fence was: so it grows also when
-- the counter is lost. The counter lives longer than the lease, and not for ever.
local mine = ARGV[6] ~= '' and seen[2] == ARGV[4]
local free = mine or call('EXISTS', KEYS[2]) == 0
local me, fair = ARGV[8], ARGV[12] == '1'
local queue, lives, place
if ARGV[9] then queue, lives, place = KEYS[3], KEYS[4], KEYS[5] end

local rank, entered, now
if queue and not mine and (fair or not free) then
  now = time[1] * 1000 + math.floor(time[2] / 1000)
  local arrived = string.format('%.0f', math.min(tonumber(ARGV[9]), time[1] * 1000000 + time[2]))
  local try = fair and call or redis.pcall
  local function may(...) return type(try(...)) ~= 'table' end
  if ARGV[11] == '' or (free and call('ZCARD', queue) == 0) then
    rank = call('ZCOUNT', queue, '-inf', arrived)
  elseif
    may('HSET', lives, me, string.format('%.0f', now + ARGV[10]))
    and may('PEXPIRE', lives, ARGV[10])
    -- Once: a place is never moved, or two could each believe that the other comes first.
    and may('ZADD', queue, 'NX', arrived, me)
    and may('PEXPIRE', queue, ARGV[10])
    and may('ZRANK', queue, me)
    and may('HGET', lives, me)
  then
    rank, entered = call('ZRANK', queue, me), true
  end
end

local before, life
while rank and rank > 0 do
  rank = rank - 1
  local who = call('ZRANGE', queue, rank, rank)[1]
  local left = tonumber(call('HGET', lives, who) or 0) - now
  -- One that lives for longer than any lives was entered before this clock was set back.
  if left > 0 and left <= tonumber(ARGV[10]) then
    -- Two may watch the lock, if the second may take it.
    if fair or rank > 0 then before, life = who, left end
    break
  end
  call('ZREM', queue, who)
  call('HDEL', lives, who)
end
if entered and (before or not free) and call('PTTL', place) < 2 * ARGV[10] then
  call('SET', place, '', 'PX', 8 * ARGV[10])
end

if before then return record(string.format('Q %.0f ', life) .. before) end
if not free then return record('H ' .. call('PTTL', KEYS[2])) end

local fence, counter = '', ARGV[7] ~= '' and #KEYS
if counter then
  local last = tonumber(string.match(seen[counter] or '', '^%d+') or 0)
  fence = string.format('%.0f', math.max(time[1] * 1000000 + time[2], last + 1))
end
local answer = record('A ' .. fence)
if ARGV[5] == '' then
  call('SET', KEYS[2], ARGV[4])
else
  call('SET', KEYS[2], ARGV[4], 'PX', ARGV[5])
end
if counter then
  local life = string.format('%.0f', tonumber(ARGV[3]) + (tonumber(ARGV[5]) or 0))
  call('SET', KEYS[counter], fence .. ' ' .. ARGV[8], 'PX', life)
end
if entered or queue and seen[5] then
  call('ZREM', queue, me)
  call('HDEL', lives, me)
  call('DEL', place)
end
return answer
