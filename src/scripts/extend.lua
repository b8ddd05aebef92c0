-- Sets how much longer a token holds a lock.
--
-- KEYS  1      the session's record
--       2      the lock
-- ARGV  1 2 3  see session.lua
--       4      the token
--       5      milliseconds
--       6      'add' them to what is left of the lease, 'replace' what is left, or 'reset' the lease,
--              also that of a lock that has none
-- returns
--       'E ms'   the lease ends in so many ms
--       'F'      foreign: the lock was not the token's, or has no lease; nothing was changed
--
-- A full server lets leases be renewed. The record, for which it has no room, matters only where to do
-- it twice is not the same as once.
local set = ARGV[6] == 'add' and call or redis.pcall
if seen[2] ~= ARGV[4] then return record('F', set) end
local left = call('PTTL', KEYS[2])
if left < 0 and ARGV[6] ~= 'reset' then return record('F', set) end
local ms = ARGV[5]
if ARGV[6] == 'add' then ms = string.format('%.0f', left + ms) end
local answer = record('E ' .. ms, set)
call('PEXPIRE', KEYS[2], ms)
return answer
