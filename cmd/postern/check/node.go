package check

import (
	"context"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/admin/health"
	"postern/cmd/postern/screen"
)

var nodeKinds = []kind{
	{"node.ok", health.OK, "", ""},
	{"node.taken", health.Failed, "A node of this name is running elsewhere: the one that starts later stops the other.",
		"set another node (or hostname) in one configuration"},
	{"node.twice", health.Warning, "A process took over this node's name while an earlier one lived.",
		"after a crash, nothing; if both run, set another node in one configuration"},
	{"queue.set-aside", health.Failed, "Mail is held because its rows in the database are bad; it is not lost.",
		"find what damaged them; then 'postern queue show ID', and 'queue release ID' or 'queue cancel ID'"},
	{"queue.in-doubt", health.Warning, "Mail that may have been delivered is held until a person decides.",
		"'postern queue list --in-doubt'; then 'postern queue resolve ID' with --delivered or --resend"},
	{"queue.held", health.Warning, "Mail is held until a person releases it: its user is on hold, or it was held by itself.",
		"'postern queue list --state held'; then 'postern queue release' or 'postern queue cancel'"},
	{"queue.lost", health.Warning, "A notice of the last day could not be delivered, so a sender does not know what became of mail.",
		"'postern queue lost'; tell the sender another way"},
	{"alerts.undelivered", health.Warning, "The last alert by mail was not delivered within an hour, or refused.",
		"'postern trace' with its id; correct mail in [alerts], or what keeps it from going out"},
}

// inDoubt asks for mail that waits for a person because it may have been delivered.
func (in *inspection) inDoubt(ctx context.Context) error {
	var total int
	err := in.conn.QueryRow(ctx, `select count(*) from recipient where doubt = 'hold' and state = 'waiting'`).Scan(&total)
	switch {
	case toldElsewhere(err):
		return nil
	case total > 0:
		in.r.add("queue.in-doubt", "queue", "%s in doubt", screen.Count(total, "recipient"))
	}
	return err
}

// held asks for mail that waits for a person for another reason.
func (in *inspection) held(ctx context.Context) error {
	var total int
	var who []string
	err := in.conn.QueryRow(ctx, `
		select (select count(*) from recipient where held_at is not null and set_aside is null and doubt is distinct from 'hold'),
			coalesce((select array_agg(u.name || ': ' || h.reason order by h.made_at) from hold h join app_user u on u.id = h.user_id), '{}')`).Scan(&total, &who)
	switch {
	case toldElsewhere(err):
		return nil
	case len(who) > 0:
		in.r.add("queue.held", "queue", "%s held; on hold: %s", screen.Count(total, "recipient"), screen.Few(who))
	case total > 0:
		in.r.add("queue.held", "queue", "%s held", screen.Count(total, "recipient"))
	}
	return err
}

// lost asks for notices that nobody got, and for the last alert.
func (in *inspection) lost(ctx context.Context) error {
	var notices int
	var undelivered *string
	err := in.conn.QueryRow(ctx, `
		select (select count(*) from notice where lost is not null and lost_at > now() - interval '1 day'),
			(select a.message_id::text from alert a where mailed_at < now() - interval '1 hour' and exists (select from recipient r where r.message_id = a.message_id)
				or exists (select from history h where h.message_id = a.message_id and h.result in ('failed', 'expired') and not h.fenced))`).Scan(&notices, &undelivered)
	switch {
	case toldElsewhere(err):
		return nil
	case err != nil:
		return err
	}
	if notices > 0 {
		in.r.add("queue.lost", "notices", "%d", notices)
	}
	if undelivered != nil {
		in.r.add("alerts.undelivered", "alerts", "%s", *undelivered)
	}
	return nil
}

// setAside asks for mail of which the nodes could make nothing; before the migration there is
// no place for it.
func (in *inspection) setAside(ctx context.Context) error {
	rows, _ := in.conn.Query(ctx, `
		select message_id::text || ' ' || set_aside, count(*) over ()
		from recipient where held_at is not null and set_aside is not null order by held_at limit 3`) // ForEachRow has its error
	var first string
	var total int
	var list []string
	_, err := pgx.ForEachRow(rows, []any{&first, &total}, func() error {
		list = append(list, first)
		return nil
	})
	switch {
	case toldElsewhere(err):
		return nil
	case len(list) > 0:
		in.r.add("queue.set-aside", "queue", "%d: %s", total, strings.Join(list, "; "))
	}
	return err
}

// nodes looks for another process with this node's name. Which one is ours is told by
// the listeners: where nothing of ours answers, a living node of the name is elsewhere.
func (in *inspection) nodes(ctx context.Context) error {
	living, err := in.living(ctx)
	if err != nil {
		return err
	}
	if len(living) > 0 {
		in.r.add("node.ok", "nodes", "%d alive: %s", len(living), screen.Few(living))
	}
	own := in.c.cfg.Node
	if own == "" {
		if own, err = in.c.cfg.ServerName(); err != nil {
			return nil // told elsewhere
		}
	}
	for _, name := range living {
		if name == own && len(in.c.cfg.Listeners) > 0 && !in.c.running && !in.c.runsHere(ctx) {
			in.r.add("node.taken", "nodes", "%q is alive, and no server of this configuration runs on this machine", own)
			return nil
		}
	}
	if len(living) == 0 {
		return nil
	}
	var taken *time.Time
	err = in.conn.QueryRow(ctx, `
		select max(superseded_at) from node
		where name = $1 and superseded_at > clock_timestamp() - interval '10 minutes'
			and superseded_at < expires_at and beat_at > superseded_at - interval '10 seconds'`, own).Scan(&taken)
	if err == nil && taken != nil {
		in.r.add("node.twice", "nodes", "%q was taken over at %s", own, screen.LocalTime(*taken))
	}
	return err
}

// living are the names of the nodes whose lease holds. Without a schema there are none.
func (in *inspection) living(ctx context.Context) ([]string, error) {
	var exists bool
	err := in.conn.QueryRow(ctx, `select coalesce(has_table_privilege(to_regclass('node'), 'SELECT'), false)`).Scan(&exists)
	if err != nil || !exists {
		return nil, err
	}
	rows, err := in.conn.Query(ctx, `
		select name from node
		where superseded_at is null and reaped_at is null and expires_at > clock_timestamp() order by name`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// runsHere reports that one of the configured listeners is a Postern of this hostname,
// or somebody who hears load balancers only and is taken for one.
func (c *checkup) runsHere(ctx context.Context) bool {
	hostname, _ := c.cfg.ServerName()
	for _, l := range c.cfg.Listeners {
		d := doorOf(l)
		if d.deaf && d.open(ctx) {
			return true
		}
		t, greeting, err := dialTalk(ctx, d, hostname)
		if err != nil {
			continue
		}
		t.quit()
		if strings.EqualFold(greeting.Text, hostname+" ESMTP Postern") {
			return true
		}
	}
	return false
}
