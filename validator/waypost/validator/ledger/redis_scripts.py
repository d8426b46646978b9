"""What Redis does in one go: the scripts of the ledger, which only compare and add.

Each gets its rows by name, and numbers to compare and add; none knows a clock or a calendar. What
a refusal means is worked out from the numbers that they return, by ``redis``. A script that ran
although its answer was lost does nothing the second time.
"""

__all__ = ["CLOSE", "FREE", "GRANT", "RENEW", "RESERVE"]

RESERVE = """
local a = cjson.decode(ARGV[1])
if a.mark and redis.call('GET', a.marked) ~= a.mark then return {'lost'} end
local known = redis.call('HMGET', KEYS[1], 'state', 'amount', 'scopes')
if known[1] then return {'known', known[1], known[2], known[3]} end
if a.key then
  local k = redis.call('HMGET', a.key, 'body', 'hold', 'at')
  if k[1] and string.sub(k[2], 1, #a.request) ~= a.request and k[3] + a.keep_key > a.now then
    return {'key', k[1], k[2], k[3], redis.call('HGET', a.holds .. k[2], 'state') or ''}
  end
end
local sums, short = {}, a.refuse
for i, w in ipairs(a.windows) do
  local row = redis.call('HMGET', w[1], 's', 'd', 'r', 'g')
  for j = 1, 4 do sums[#sums + 1] = row[j] or '0' end
  if w[2] and a.amount > 0 then
    local used = (row[1] or 0) + (row[2] or 0) + (row[3] or 0)
    if used + a.amount > w[2] + (row[4] or 0) then short = true end
  end
end
if short then return {'short', unpack(sums)} end
local frees, late = {}, false
for i, r in ipairs(a.rates) do
  local free = tonumber(redis.call('GET', r[1]) or '0')
  frees[i] = string.format('%.0f', free)
  if r[2] > 0 and math.max(free, a.now_us) + r[2] - a.now_us > r[3] then late = true end
end
if late then return {'late', unpack(frees)} end
local names = {}
for i, w in ipairs(a.windows) do
  redis.call('HINCRBY', w[1], 'r', a.amount)
  if w[3] then redis.call('EXPIRE', w[1], w[3]) end
  names[i] = w[1]
end
for i, r in ipairs(a.rates) do
  local free = math.max(tonumber(frees[i]), a.now_us) + r[2]
  redis.call('SET', r[1], string.format('%.0f', free), 'EX', math.ceil(2 * r[3] / 1000000))
end
redis.call('HSET', KEYS[1], 'state', 'held', 'amount', a.amount, 'cost', 0, 'scopes', a.scopes,
  'tokens', a.tokens, 'at', a.now, 'expires', a.expires,
  'windows', #names > 0 and cjson.encode(names) or '[]', 'backlogs', a.backlogs)
redis.call('ZADD', a.open, a.expires, a.id)
redis.call('ZADD', a.journal, a.now, a.id)
if a.key then
  redis.call('HSET', a.key, 'body', a.body, 'hold', a.id, 'at', a.now)
  redis.call('EXPIRE', a.key, a.keep_key)
end
return {'held', unpack(sums)}
"""

CLOSE = """
local h = redis.call('HMGET', KEYS[1], 'state', 'amount', 'cost', 'tokens', 'windows', 'backlogs',
  'expires')
if not h[1] then return 'unknown' end
local target, cost, amount = ARGV[2], tonumber(ARGV[3]), tonumber(h[2])
local state = target
if h[1] ~= 'held' then  -- as limits.state_after has it
  local open = h[1] == 'expired' or h[1] == 'unconfirmed'
  if open and (target == 'settled' or target == 'released') then state = 'corrected'
  elseif h[1] ~= 'expired' or target ~= 'unconfirmed' then return 'kept' end
end
if target == 'expired' then
  if tonumber(h[7]) > tonumber(ARGV[7]) then return 'kept' end  -- renewed since it was found
  cost = amount
end
local had = tonumber(h[3])
local had_spent = math.min(had, amount)
local spent = math.min(cost, h[1] == 'held' and amount or had_spent)
local windows, used, bound = cjson.decode(h[5]), tonumber(ARGV[4]), tonumber(h[4])
local backlogs = used >= 0 and bound > 0 and cjson.decode(h[6]) or {}
-- While a cluster moves the slot, some keys may be gone: that must fail before the first write.
local all = {ARGV[6], unpack(windows)}
for _, b in ipairs(backlogs) do all[#all + 1] = b[1] end
redis.call('EXISTS', unpack(all))
for _, w in ipairs(windows) do
  if h[1] == 'held' then redis.call('HINCRBY', w, 'r', 0 - amount) end  -- -0 is no integer
  redis.call('HINCRBY', w, 's', spent - had_spent)
  local owes = cost - spent - (had - had_spent)
  if owes ~= 0 then redis.call('HINCRBY', w, 'd', owes) end
end
for _, b in ipairs(backlogs) do
  local free = tonumber(redis.call('GET', b[1]) or '0')
  free = math.max(0, free - math.floor(b[2] * (bound - used) / bound))
  redis.call('SET', b[1], string.format('%.0f', free), 'KEEPTTL')
end
redis.call('HSET', KEYS[1], 'state', state, 'cost', cost)
if state == 'settled' or state == 'released' or state == 'corrected' then
  redis.call('HDEL', KEYS[1], 'tokens', 'windows', 'backlogs')  -- nothing corrects it any more
end
redis.call('EXPIRE', KEYS[1], ARGV[5])
redis.call('ZREM', ARGV[6], ARGV[1])
return state
"""

FREE = """
local hold = redis.call('HGET', KEYS[1], 'hold')
if hold and string.sub(hold, 1, #ARGV[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 'ok'
"""

GRANT = """
local known = redis.call('HGET', KEYS[1], 'amount')
if known then return known end
local row = redis.call('HMGET', KEYS[2], 's', 'd', 'g')
local amount = ARGV[1]
if amount == '' then
  amount = string.format('%.0f', math.max(0, (row[1] or 0) + (row[2] or 0) - (row[3] or 0)))
end
redis.call('HINCRBY', KEYS[2], 'g', amount)
redis.call('HSET', KEYS[1], 'amount', amount, 'grant', ARGV[2])
return amount
"""

RENEW = """
local h = redis.call('HMGET', KEYS[1], 'state', 'expires')
if h[1] ~= 'held' or tonumber(h[2]) >= tonumber(ARGV[2]) then return 'kept' end
redis.call('HSET', KEYS[1], 'expires', ARGV[2])
redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
return 'renewed'
"""
