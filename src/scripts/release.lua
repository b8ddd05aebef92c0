-- Gives a lock back, if the token holds it; and a place in the queue for it.
--
-- KEYS  1      the session's record
--       2      the lock
--       3 4 5  for a place: queue, lives and place, as in acquire.lua
-- ARGV  1 2 3  see session.lua
--       4      the token
--       5      who we are in the queue
-- returns
--       'R'    released
--       'F'    foreign: the lock was not the token's, nothing was changed
if KEYS[3] then
  call('ZREM', KEYS[3], ARGV[5])
  call('HDEL', KEYS[4], ARGV[5])
  call('DEL', KEYS[5])
end
if seen[2] ~= ARGV[4] then return record('F', redis.pcall) end
-- A full server must still let go of its locks, so here the record may fail: asked again, it says 'F'.
-- Nor is it missed by a delayed acquire, which a full server refuses in any case.
local answer = record('R', redis.pcall)
call('DEL', KEYS[2])
return answer
