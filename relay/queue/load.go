package queue

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postern/relay/smtp"
)

// sqlMessages reads envelopes.
const sqlMessages = `
select m.id, m.user_id, m.credential_id, m.sender_local, m.sender_domain, m.size, m.body_type, m.utf8, m.ret, m.envid, m.header_id,
	m.accepted_at, m.client_addr, m.client_hello, m.listener, m.tls
from unnest($1::uuid[]) w(id) join message m on m.id = w.id`

// sqlSmallBodies reads the bodies that came or go in one piece.
const sqlSmallBodies = `
select b.message_id, b.chunk from unnest($1::uuid[]) w(id) join body b on b.message_id = w.id and b.n = 0`

type loaded struct {
	Message
	body Body
}

func scanMessage(row pgx.CollectableRow) (Message, error) {
	var m Message
	var bodyType, ret, addr string
	err := row.Scan(&m.ID, &m.UserID, &m.CredentialID, &m.Sender.Local, &m.Sender.Domain, &m.Size, &bodyType, &m.UTF8, &ret,
		&m.EnvID, &m.MessageID, &m.AcceptedAt, &addr, &m.ClientHello, &m.Listener, &m.TLS)
	m.BodyType, m.Ret = smtp.BodyType(bodyType), smtp.Return(ret)
	if addr != "" {
		m.ClientAddr, _ = netip.ParseAddr(addr)
	}
	return m, err
}

// loadMessages reads the messages of ids and their bodies: one chunk at once in
// memory, larger ones as a Body that reads on demand. A message whose body is not
// stored is left out.
func loadMessages(ctx context.Context, conn *pgx.Conn, pool *pgxpool.Pool, ids [][16]byte) (map[ID]loaded, error) {
	found := make(map[ID]loaded, len(ids))
	if len(ids) == 0 {
		return found, nil
	}
	rows, err := conn.Query(ctx, sqlMessages, ids)
	if err != nil {
		return nil, fmt.Errorf("load messages: %w", err)
	}
	messages, err := pgx.CollectRows(rows, scanMessage)
	if err != nil {
		return nil, fmt.Errorf("load messages: %w", err)
	}
	var small [][16]byte
	for _, m := range messages {
		if m.Size <= chunkSize {
			small = append(small, m.ID)
			found[m.ID] = loaded{Message: m}
			continue
		}
		found[m.ID] = loaded{m, newStoredBody(pool, m.ID, m.Size)}
	}
	if err := loadSmall(ctx, conn, small, found); err != nil {
		return nil, err
	}
	for id, m := range found {
		if m.body == nil {
			delete(found, id)
		}
	}
	return found, nil
}

func loadSmall(ctx context.Context, conn *pgx.Conn, small [][16]byte, found map[ID]loaded) error {
	if len(small) == 0 {
		return nil
	}
	rows, err := conn.Query(ctx, sqlSmallBodies, small)
	if err != nil {
		return fmt.Errorf("load bodies: %w", err)
	}
	var id ID
	var chunk []byte
	_, err = pgx.ForEachRow(rows, []any{&id, &chunk}, func() error {
		m := found[id]
		m.body = NewBody(chunk)
		found[id] = m
		chunk = nil
		return nil
	})
	if err != nil {
		return fmt.Errorf("load bodies: %w", err)
	}
	return nil
}
