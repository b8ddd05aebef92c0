-- The beginning of every script: a session's exactly-once protocol.
--
-- KEYS  1      the record of this session in the slot of the keys that follow
-- ARGV  1      the batch's number, growing by one with each batch of the session
--       2      the deadline, in microseconds of this server's clock
--       3      how long the record lives, in milliseconds: longer than anybody asks
-- returns '<seconds> <microseconds> <answer>': this server's time, and the script's answer ('? ' before it:
--        it was told again, and the server takes no writes, so WAIT would prove nothing), or
--       'S'    stale: a later batch of the session was here before, nothing was changed
--       'L'    late: the deadline is over, nothing was changed
--
-- A batch that finds its own number gets the recorded answer: asking again changes nothing but how long
-- the record lives.
-- Nothing may fail after a script's first write: scripts are not rolled back. That is the record, or
-- before it what does no harm done twice.
local call = redis.call
local time = call('TIME')
local stamp = time[1] .. ' ' .. time[2] .. ' '
local seen = call('MGET', unpack(KEYS))
if seen[1] then
  local number, answer = string.match(seen[1], '^(%d+) (.*)$')
  if number == ARGV[1] then
    -- Written, for WAIT asks about what its own connection has written last.
    local function may(...) return type(redis.pcall(...)) ~= 'table' end
    local written = may('PEXPIRE', KEYS[1], ARGV[3]) or may('SET', KEYS[1], seen[1], 'PX', ARGV[3])
    return stamp .. (written and '' or '? ') .. answer
  end
  if tonumber(number) > tonumber(ARGV[1]) then return stamp .. 'S' end
end

local function record(answer, set)
  (set or call)('SET', KEYS[1], ARGV[1] .. ' ' .. answer, 'PX', ARGV[3])
  return stamp .. answer
end

-- Recorded, too: a copy of this batch that is still under way may carry a later deadline.
if time[1] * 1000000 + time[2] > tonumber(ARGV[2]) then return record('L') end
