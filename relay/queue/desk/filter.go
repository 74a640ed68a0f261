package desk

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/relay/queue"
	"postern/relay/smtp"
)

// Filter chooses recipients; zero fields choose all.
type Filter struct {
	IDs          []queue.ID // of messages
	State        State
	UserID       int64
	UserName     string // of UserID, for the audit only
	CredentialID int64
	Sender       string        // address, or "<>"
	Recipient    string        // address
	Domain       string        // domain key of the recipient
	Upstream     string        // of the last attempt
	Reply        string        // what the last reply begins with
	OlderThan    time.Duration // since it was accepted

	Limit   int      // of List: 100 when 0
	AfterID queue.ID // of List: after this recipient
	AfterN  int
}

// sqlMatches holds for a row r that a filter chooses. It repeats the states in the form of
// the partial indexes of waiting and of held rows; the message is read only if the filter
// asks about it.
const sqlMatches = `($1::uuid[] is null or r.message_id = any($1)) and ($2 = '' or ` + sqlState + ` = $2)
	and ($2 <> 'held' or r.held_at is not null) and ($2 <> 'waiting' or r.held_at is null and r.owner is null and r.state = 'waiting')
	and ($3 = 0 or r.user_id = $3)
	and ($4 = 0 or (select o.credential_id from message o where o.id = r.message_id) = $4)
	and ($5::text[] is null or (select lower(o.sender_local || '@' || o.sender_domain) from message o where o.id = r.message_id) = any(array(select lower(f) from unnest($5) f)))
	and ($6::text[] is null or lower(r.local || '@' || r.domain) = any(array(select lower(f) from unnest($6) f)))
	and ($7 = '' or r.domain_key = $7) and ($8 = '' or r.last_upstream = $8) and sane_time(r.accepted_at) <= now() - $9::interval
	and ($10 = '' or starts_with(` + sqlReply + `, $10))`

// sqlReply is the last reply of row r as people read it.
const sqlReply = `concat_ws(' ', nullif(r.reply_code, 0), nullif(r.reply_enhanced, ''), r.reply_text)`

func (f *Filter) args() []any {
	var ids [][16]byte // nil is null: all
	for _, id := range f.IDs {
		ids = append(ids, id)
	}
	return []any{ids, string(f.State), f.UserID, f.CredentialID, spellings(f.Sender), spellings(f.Recipient), f.Domain, f.Upstream, max(f.OlderThan, 0), f.Reply}
}

// spellings are the ways in which the tables may have an address, whose local part is not
// quoted; "<>" is the null sender, and "" none. The database folds their case, as it does in
// its columns: beyond ASCII that depends on its locale.
func spellings(address string) []string {
	switch at := strings.LastIndexByte(address, '@'); {
	case address == "":
		return nil
	case address == "<>":
		return []string{"@"} // both parts are empty
	case at < 0:
		return []string{address}
	default:
		var list []string
		for _, domain := range smtp.DomainSpellings(address[at+1:]) {
			list = append(list, address[:at+1]+domain)
		}
		return list
	}
}

// String describes the choice, for the audit.
func (f *Filter) String() string {
	var parts []string
	add := func(name, value string) {
		if value != "" && value != "0" {
			parts = append(parts, name+" "+value)
		}
	}
	if len(f.IDs) == 1 {
		add("id", f.IDs[0].String())
	} else if len(f.IDs) > 1 {
		add("ids", fmt.Sprintf("%s and %d more", f.IDs[0], len(f.IDs)-1))
	}
	add("state", string(f.State))
	if f.UserName != "" {
		add("user", f.UserName)
	} else {
		add("user", fmt.Sprint(f.UserID))
	}
	add("credential", fmt.Sprint(f.CredentialID))
	add("sender", f.Sender)
	add("recipient", f.Recipient)
	add("domain", f.Domain)
	add("upstream", f.Upstream)
	add("reply", f.Reply)
	if f.OlderThan > 0 {
		add("older than", f.OlderThan.String())
	}
	if len(parts) == 0 {
		return "all"
	}
	return strings.Join(parts, ", ")
}

// ageSteps are the columns of a Shape: accepted within so long.
var ageSteps = []time.Duration{5 * time.Minute, 15 * time.Minute, time.Hour, 4 * time.Hour, 24 * time.Hour}

// Shape is how many live recipients a destination has, by the age of their messages.
type Shape struct {
	Domain  string  `json:"domain"`
	Total   int64   `json:"total"`
	Held    int64   `json:"held"`
	Ages    []int64 `json:"ages"` // within 5m, 15m, 1h, 4h, 24h, and older
	Octets  int64   `json:"octets"`
	Oldest  int64   `json:"oldest_s"`             // seconds since the oldest was accepted
	LastErr string  `json:"last_reply,omitempty"` // of the attempt that ended last
}

// sqlShape reads the largest destinations: first which they are, from what is narrow,
// then what is in them.
const sqlShape = `
with top as materialized (select domain_key, count(*) as n from recipient group by domain_key order by count(*) desc, domain_key limit $1)
select domain_key, count(*), count(*) filter (where held_at is not null),
	array[count(*) filter (where step = 0), count(*) filter (where step = 1), count(*) filter (where step = 2),
		count(*) filter (where step = 3), count(*) filter (where step = 4), count(*) filter (where step = 5)],
	coalesce(sum(size), 0)::bigint, extract(epoch from max(age))::bigint, coalesce((max(reply collate "C"))[2], '')
from (select r.domain_key, r.held_at, now() - sane_time(r.accepted_at) as age, m.size,
		width_bucket(now() - sane_time(r.accepted_at), $2::interval[]) as step,
		case when r.reply_code > 0 then array[coalesce(to_char(r.last_attempt_at at time zone 'utc', 'YYYYMMDDHH24MISSUS'), ''), ` + sqlReply + `] end as reply
	from recipient r left join message m on m.id = r.message_id where r.domain_key in (select top.domain_key from top)) x
group by domain_key order by count(*) desc, domain_key limit $1`

// Shape returns the destinations with the most live recipients.
func (a *Admin) Shape(ctx context.Context, limit int) ([]Shape, error) {
	rows, err := a.db.Query(ctx, sqlShape, limit, ageSteps)
	if err != nil {
		return nil, fmt.Errorf("shape of the queue: %w", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Shape])
	if err != nil {
		return nil, fmt.Errorf("shape of the queue: %w", err)
	}
	return list, nil
}
