-- Takes a lock with a token and a lease.
--
-- KEYS  1      the session's record
--       2      the lock
-- ARGV  1 2 3  see session.lua
--       4      the token
--       5      the lease, in milliseconds
-- returns
--       'A'        acquired; also when the token holds the lock already
--       'H pttl'   held by somebody else, for so many ms (-1: for ever)
if seen[2] == ARGV[4] then return record('A') end
if redis.call('EXISTS', KEYS[2]) == 1 then
  return record('H ' .. redis.call('PTTL', KEYS[2]))
end
local answer = record('A')
redis.call('SET', KEYS[2], ARGV[4], 'PX', ARGV[5])
return answer
