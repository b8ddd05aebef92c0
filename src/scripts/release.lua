-- Gives a lock back, if the token holds it; and a place in the queue for it.
--
-- KEYS  1      the session's record
--       2      the lock
--       3 4 5  for a place: queue, lives and place, as in acquire.lua
--       last   the fence's counter, if ARGV 6 is given
-- ARGV  1 2 3  see session.lua
--       4      the token; '' to give up the place only
--       5      who we are in the queue, or ''
--       6      the attempt that must have taken the lock, for a token that others may use, too; or ''
-- returns
--       'R'    released
--       'F'    foreign: the lock was not the token's, nothing was changed
local ours = ARGV[4] ~= '' and seen[2] == ARGV[4]
if ours and ARGV[6] ~= '' then
  ours = string.match(seen[#KEYS] or '', ' (.*)$') == ARGV[6]
end
-- A full server must still let go of its locks, so here the record may fail: asked again, it says 'F'.
-- Nor is it missed by a delayed acquire, which a full server refuses in any case.
local answer = record(ours and 'R' or 'F', redis.pcall)
if ours then call('DEL', KEYS[2]) end
-- Who may not use the queue's commands has no place there.
if ARGV[5] ~= '' then
  redis.pcall('ZREM', KEYS[3], ARGV[5])
  redis.pcall('HDEL', KEYS[4], ARGV[5])
  redis.pcall('DEL', KEYS[5])
end
return answer
