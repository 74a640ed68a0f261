package alert

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/admin/health"
	"postern/internal/pg"
	"postern/relay/dkim"
	"postern/relay/queue"
	"postern/relay/smtp"
)

//go:embed *.sql
var files embed.FS

var texts = pg.Load(files)

var (
	sqlNote    = texts.Bind("note", "node", "key", "id", "status", "subject", "text", "todo", "fresh")
	sqlForget  = texts.Bind("forget")
	sqlState   = texts.Bind("state")
	sqlCurrent = texts.Bind("current", "fresh")
	sqlMail    = texts.Bind("mail", "told", "message_id", "seen")
	sqlShrink  = texts.Bind("shrink", "told", "seen")
	sqlTest    = texts.Bind("test", "message_id")
)

const (
	pollEvery  = 5 * time.Second  // whether a test was asked for
	firstLook  = time.Minute      // after the start
	lookEvery  = 10 * time.Minute // a finding counts when it was there at two looks
	fresh      = 25 * time.Minute // for how long a look counts
	apart      = time.Hour        // between two mails
	again      = 24 * time.Hour   // a mail follows while something fails
	againWarns = 7 * again        // while there are only warnings
	callTime   = 10 * time.Second
)

// Queue takes the mails; relay/queue's Queue fits.
type Queue interface {
	EnqueueOwn(ctx context.Context, m queue.Message, rcpts []queue.Recipient, body []byte, record func(ctx context.Context, tx pgx.Tx) (bool, error)) (bool, error)
}

// Config configures Alerts.
type Config struct {
	DB       pg.DB // a pool
	Queue    Queue
	Node     string
	Hostname string                                     // our name in the mails
	Find     func(ctx context.Context) []health.Finding // looks for what is wrong here; those that are neither Failed nor a Warning are left out
	Keys     dkim.Keys                                  // that sign the mails; may be nil
	Log      *slog.Logger
}

// Alerts are those of a node. Its methods may be called concurrently.
type Alerts struct {
	cfg    Config
	to     atomic.Pointer[[]smtp.Address]
	status atomic.Pointer[Status]
}

// Status is what a node knows of the mails, for the metrics.
type Status struct {
	MailedAt         time.Time // of the last mail of any node; zero: never
	Failed, Warnings int       // what is wrong now, on all nodes
}

// New returns Alerts that go to nobody.
func New(cfg Config) *Alerts {
	a := &Alerts{cfg: cfg}
	a.SendTo(nil)
	a.status.Store(&Status{})
	return a
}

// SendTo sets who gets the mails. While that is nobody, nothing is looked for.
func (a *Alerts) SendTo(list []smtp.Address) { a.to.Store(&list) }

// Status returns what was known after the last look.
func (a *Alerts) Status() Status { return *a.status.Load() }

// Run looks and mails until ctx ends.
func (a *Alerts) Run(ctx context.Context) {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	next := time.Now().Add(firstLook)
	looked, troubled := false, false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if len(*a.to.Load()) == 0 {
			continue
		}
		var err error
		if time.Now().After(next) {
			next = time.Now().Add(lookEvery)
			err = a.note(ctx, a.cfg.Find(ctx))
			looked = true
		}
		if err == nil {
			err = a.mail(ctx, looked)
			looked = looked && err != nil
		}
		if err != nil && !troubled && ctx.Err() == nil {
			a.cfg.Log.Warn("alerts by mail: cannot look, will retry", "error", err)
		}
		troubled = err != nil
	}
}

// note writes down what was found.
func (a *Alerts) note(ctx context.Context, found []health.Finding) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	var keys, ids, states, subjects, texts, todos []string
	for _, f := range found {
		if f.Status != health.Failed && f.Status != health.Warning {
			continue
		}
		key := f.ID + " " + f.Subject
		for n := 2; slices.Contains(keys, key); n++ {
			key = fmt.Sprintf("%s %s (%d)", f.ID, f.Subject, n)
		}
		keys, ids, states = append(keys, pg.Storable(key)), append(ids, f.ID), append(states, string(f.Status))
		subjects, texts, todos = append(subjects, pg.Storable(f.Subject)), append(texts, pg.Storable(f.Text)), append(todos, pg.Storable(f.Todo))
	}
	_, err := a.cfg.DB.Exec(ctx, sqlNote, a.cfg.Node, keys, ids, states, subjects, texts, todos, fresh)
	if err == nil {
		_, err = a.cfg.DB.Exec(ctx, sqlForget)
	}
	if err != nil {
		return fmt.Errorf("note findings: %w", err)
	}
	return nil
}

// finding is something that is wrong.
type finding struct {
	health.Finding
	key   string
	since time.Time
	nodes []string
	sure  bool // some node has seen it twice
	isNew bool // the last mail did not tell of it
}

// state is what the last mail told.
type state struct {
	mailed *time.Time // nil: there was none
	told   []string
	test   bool
	young  bool      // something was seen once, and may be gone at the next look
	now    time.Time // the database's
}

// mail sends the mail that is due after a look, or a test that was asked for.
func (a *Alerts) mail(ctx context.Context, looked bool) error {
	s, err := a.state(ctx)
	if err != nil || !looked && !s.test {
		return err
	}
	if s.test && !looked {
		if err := a.note(ctx, a.cfg.Find(ctx)); err != nil {
			return err
		}
	}
	found, err := a.current(ctx, &s)
	if err != nil {
		return err
	}
	var keys []string
	for i := range found {
		keys = append(keys, found[i].key)
	}
	if s.test {
		return a.send(ctx, s, test, found, func(id queue.ID) (string, []any) { return sqlTest, []any{id} })
	}
	what := s.due(found)
	if what != nothing {
		return a.send(ctx, s, what, found, func(id queue.ID) (string, []any) { return sqlMail, []any{append([]string{}, keys...), id, s.mailed} })
	}
	// A finding that has ended and comes back is news.
	left := slices.DeleteFunc(slices.Clone(s.told), func(key string) bool { return !slices.Contains(keys, key) })
	if len(left) == len(s.told) || len(left) == 0 {
		return nil
	}
	_, err = a.cfg.DB.Exec(ctx, sqlShrink, left, s.mailed)
	return err
}

func (a *Alerts) state(ctx context.Context) (s state, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	if err := a.cfg.DB.QueryRow(ctx, sqlState).Scan(&s.mailed, &s.told, &s.test, &s.now); err != nil {
		return s, fmt.Errorf("read the last mail: %w", err)
	}
	return s, nil
}

// current is what is wrong now: what was seen twice, or was told already; for a test, whatever was
// seen. It completes s.
func (a *Alerts) current(ctx context.Context, s *state) (found []finding, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	rows, err := a.cfg.DB.Query(ctx, sqlCurrent, fresh)
	if err != nil {
		return nil, fmt.Errorf("read findings: %w", err)
	}
	var f finding
	status := Status{}
	if s.mailed != nil {
		status.MailedAt = *s.mailed
	}
	_, err = pgx.ForEachRow(rows, []any{&f.key, &f.ID, &f.Status, &f.Subject, &f.Text, &f.Todo, &f.since, &f.nodes, &f.sure}, func() error {
		if f.isNew = !slices.Contains(s.told, f.key); f.isNew && !f.sure && !s.test {
			s.young = true
			return nil
		}
		found = append(found, f)
		if f.Status == health.Failed {
			status.Failed++
		} else {
			status.Warnings++
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read findings: %w", err)
	}
	a.status.Store(&status)
	return found, nil
}

// occasion is why a mail is sent.
type occasion int

const (
	nothing occasion = iota
	worse            // something is new
	still            // nothing is
	well             // all is well again
	test             // it was asked for
)

// due is why a mail is to be sent now.
func (s *state) due(found []finding) occasion {
	since := againWarns
	if s.mailed != nil && !s.mailed.After(s.now) { // else the clock was set back since
		since = s.now.Sub(*s.mailed)
	}
	if since < apart {
		return nothing
	}
	wait := againWarns
	for i := range found {
		if found[i].isNew {
			return worse
		}
		if found[i].Status == health.Failed {
			wait = again
		}
	}
	switch {
	case len(found) == 0 && len(s.told) > 0 && !s.young:
		return well
	case len(found) > 0 && since >= wait:
		return still
	}
	return nothing
}

// send enqueues a mail in one transaction with the statement that record gives for it, unless that
// changes nothing.
func (a *Alerts) send(ctx context.Context, s state, what occasion, found []finding, record func(queue.ID) (string, []any)) error {
	id, to := queue.NewID(), *a.to.Load()
	d := digest{id: id.String(), hostname: a.cfg.Hostname, to: to, what: what, found: found, told: s.told, now: s.now}
	body := d.bytes()
	m := queue.Message{
		ID: id, AcceptedAt: time.Now(), MessageID: d.messageID(), Listener: "alert",
		BodyHash: dkim.HashOf(a.cfg.Keys, smtp.Address{Domain: a.cfg.Hostname}.DomainKey(), body),
	}
	var rcpts []queue.Recipient
	for n, address := range to {
		rcpts = append(rcpts, queue.Recipient{N: n, Address: address, Notify: smtp.NotifyNever})
	}
	sent, err := a.cfg.Queue.EnqueueOwn(ctx, m, rcpts, body, func(ctx context.Context, tx pgx.Tx) (bool, error) {
		sql, args := record(id)
		tag, err := tx.Exec(ctx, sql, args...)
		return tag.RowsAffected() > 0, err
	})
	if sent {
		a.cfg.Log.Info("alert by mail", "id", id, "findings", len(found))
	}
	return err
}

var (
	sqlWantTest = texts.Bind("want_test")
	sqlTested   = texts.Bind("tested")
	sqlGiveUp   = texts.Bind("give_up")
)

// ErrNobody means that no node that runs has an address for alerts.
var ErrNobody = errors.New("no running node sends alerts: set mail in [alerts] of a node's configuration, and reload it")

// Test has a node send a mail now, and returns its queue id. The error is ErrNobody if no node has done so
// within patience, or the database's.
func Test(ctx context.Context, db pg.DB, patience time.Duration) (id queue.ID, err error) {
	if _, err := db.Exec(ctx, sqlWantTest); err != nil {
		return id, fmt.Errorf("ask for an alert: %w", err)
	}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); ; {
		var sent *queue.ID
		if err := db.QueryRow(ctx, sqlTested).Scan(&sent); err != nil {
			return id, fmt.Errorf("wait for an alert: %w", err)
		}
		if sent != nil {
			return *sent, nil
		}
		if time.Now().After(end) {
			if _, err := db.Exec(ctx, sqlGiveUp); err != nil {
				return id, fmt.Errorf("wait for an alert: %w", err)
			}
			return id, ErrNobody
		}
		select {
		case <-ctx.Done():
			return id, ctx.Err()
		case <-tick.C:
		}
	}
}
