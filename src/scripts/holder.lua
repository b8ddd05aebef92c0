-- Tells who holds a lock. Changes nothing, so nothing is recorded.
--
-- KEYS  1      the session's record
--       2      the lock
-- ARGV  1 2 3  see session.lua
-- returns
--       'T token'  the token that stands there
--       'W'        something stands there that is no string: nobody's token, and no free lock either
--       'N'        nobody
if seen[2] then return stamp .. 'T ' .. seen[2] end
return stamp .. (call('EXISTS', KEYS[2]) == 1 and 'W' or 'N')
