package main

import (
	"context"
	"log/slog"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/rogpeppe/go-internal/testscript"

	"postern/auth"
	"postern/policy/quota"
	"postern/relay/queue"
	"postern/relay/queue/content"
	"postern/relay/smtp"
)

// scriptCommands are what scripts can do besides running the program.
var scriptCommands = map[string]func(ts *testscript.TestScript, neg bool, args []string){"mail": scriptMail, "sql": runSQL}

// scriptMail is "mail USER CREDENTIAL RECIPIENT...": a message of the user, by a
// credential or 0, comes into the queue and waits there, charged against the user's limits.
func scriptMail(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 {
		ts.Fatalf("usage: mail USER CREDENTIAL RECIPIENT...")
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	pool, err := pgxpool.New(ctx, ts.Getenv("POSTERN_DATABASE_URL"))
	ts.Check(err)
	defer pool.Close()
	u, err := auth.NewStore(pool).User(ctx, args[0])
	ts.Check(err)
	id, err := auth.NewStore(pool).Identity(ctx, u.ID, 0)
	ts.Check(err)
	credential, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	q := queue.New(queue.Config{EnqueuePool: pool, WorkPool: pool, Node: "script", Log: slog.New(slog.DiscardHandler)})
	ts.Check(q.Start(ctx))
	defer func() { ts.Check(q.Close(ctx)) }()
	var recipients []queue.Recipient
	for i, to := range args[2:] {
		address, err := smtp.ParseAddress(to)
		ts.Check(err)
		recipients = append(recipients, queue.Recipient{N: i, Address: address})
	}
	m := queue.Message{
		ID: queue.NewID(), UserID: u.ID, CredentialID: credential, Sender: smtp.Address{Local: "s", Domain: "example.com"}, AcceptedAt: time.Now(),
		Charges: []quota.Limit{{Scope: quota.User, Subject: quota.ID(u.ID), Kind: quota.Messages, Window: time.Hour, Max: 1000}},
	}
	for _, l := range quota.Windows(id.Limits) {
		if l.Scope == quota.Domain {
			m.Charges = append(m.Charges, l)
		}
	}
	_, err = q.Enqueue(ctx, m, recipients, content.New([]byte("Subject: x\r\n\r\nbody\r\n")), false)
	ts.Check(err)
}
