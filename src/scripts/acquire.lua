-- Takes a lock with a token and a lease.
--
-- KEYS  1      the session's record
--       2      the lock
-- ARGV  1 2 3  see session.lua
--       4      the token
--       5      the lease, in milliseconds
-- returns
--       'A'        acquired; if the token holds the lock already, its lease begins anew
--       'H pttl'   held by somebody else, for so many ms (-1: for ever)
if seen[2] ~= ARGV[4] and call('EXISTS', KEYS[2]) == 1 then
  return record('H ' .. call('PTTL', KEYS[2]))
end
local answer = record('A')
call('SET', KEYS[2], ARGV[4], 'PX', ARGV[5])
return answer
