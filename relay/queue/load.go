package queue

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postern/relay/queue/content"
	"postern/relay/smtp"
)

var sqlMessages = texts.Bind("messages", "id")

// loaded is a message as it is stored, see fault.
type loaded struct {
	Message
	body content.Body
	bad  string // why it cannot be read
}

func scanMessage(row pgx.CollectableRow) (Message, error) {
	var m Message
	var bodyType, ret, addr string
	var accepted *time.Time
	err := row.Scan(&m.ID, &m.UserID, &m.CredentialID, &m.Sender.Local, &m.Sender.Domain, &m.Size, &bodyType, &m.UTF8, &m.EightBit, &ret,
		&m.EnvID, &m.MessageID, &m.TLSNeed, &accepted, &addr, &m.ClientHello, &m.Listener, &m.TLS, &m.BodyHash)
	m.BodyType, m.Ret = smtp.BodyType(bodyType), smtp.Return(ret)
	if accepted != nil {
		m.AcceptedAt = *accepted
	}
	if addr != "" {
		m.ClientAddr, _ = netip.ParseAddr(addr)
	}
	return m, err
}

// load reads the messages of ids, which name each once. The fault of each says what is
// wrong with it.
func (q *Queue) load(ctx context.Context, conn *pgx.Conn, ids [][16]byte) (map[ID]*loaded, error) {
	found := make(map[ID]*loaded, len(ids))
	err := halved(ids, func(some [][16]byte) error {
		return q.cfg.Guard.Try("reading messages", func() error { return loadMessages(ctx, conn, q.cfg.WorkPool, some, found) })
	}, func(id [16]byte, err error) {
		found[id] = &loaded{bad: ofRows(err)}
	})
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		if found[id] == nil {
			found[id] = &loaded{bad: "no message has its id"}
		}
	}
	return found, nil
}

// loadMessages reads the messages of ids and their bodies into found.
func loadMessages(ctx context.Context, conn *pgx.Conn, pool *pgxpool.Pool, ids [][16]byte, found map[ID]*loaded) error {
	if len(ids) == 0 {
		return nil
	}
	rows, err := conn.Query(ctx, sqlMessages, ids)
	if err != nil {
		return fmt.Errorf("load messages: %w", err)
	}
	messages, err := pgx.CollectRows(rows, scanMessage)
	if err != nil {
		return fmt.Errorf("load messages: %w", err)
	}
	sizes := make(map[ID]int64, len(messages))
	for _, m := range messages {
		found[m.ID] = &loaded{Message: m}
		sizes[m.ID] = m.Size
	}
	bodies, err := content.Load(ctx, conn, pool, sizes)
	for id, b := range bodies {
		found[id].body = b
	}
	return err
}
