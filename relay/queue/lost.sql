-- Notices that were lost (lost.go).

-- name: lost_notices
-- Takes losses of which nobody has been told. Two nodes take different ones. The last reply to a
-- notice is a server's or, if there was none, the queue's own.
select t.message_id, t.about, t.kind, t.lost, coalesce(last.local, ''), coalesce(last.domain, ''),
	coalesce(last.reply_code, 0), coalesce(last.reply_enhanced, ''), coalesce(last.reply_text, '')
from (select message_id, about, kind, lost, lost_at from notice
	where lost is not null and told_at is null order by lost_at limit @rows for update skip locked) t
left join lateral (select a.local, a.domain, a.reply_code, a.reply_enhanced, a.reply_text from history a
	where a.message_id = t.message_id and not a.fenced order by a.upstream || a.remote_mta <> '' desc, a.reply_code > 0 desc, a.at desc limit 1) last on true
order by t.lost_at
