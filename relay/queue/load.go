package queue

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"postern/relay/smtp"
)

// sqlMessages reads envelopes.
const sqlMessages = `
select m.id, m.user_id, m.credential_id, m.sender_local, m.sender_domain, m.size, m.body_type, m.utf8, m.eight_bit, m.ret, m.envid, m.header_id,
	m.accepted_at, m.client_addr, m.client_hello, m.listener, m.tls
from unnest($1::uuid[]) w(id) join message m on m.id = w.id`

// sqlSmallBodies reads whole bodies, their rows in any order.
const sqlSmallBodies = `
select b.message_id, b.n, b.chunk from unnest($1::uuid[]) w(id) join body b on b.message_id = w.id`

type loaded struct {
	Message
	body Body
}

func scanMessage(row pgx.CollectableRow) (Message, error) {
	var m Message
	var bodyType, ret, addr string
	err := row.Scan(&m.ID, &m.UserID, &m.CredentialID, &m.Sender.Local, &m.Sender.Domain, &m.Size, &bodyType, &m.UTF8, &m.EightBit, &ret,
		&m.EnvID, &m.MessageID, &m.AcceptedAt, &addr, &m.ClientHello, &m.Listener, &m.TLS)
	m.BodyType, m.Ret = smtp.BodyType(bodyType), smtp.Return(ret)
	if addr != "" {
		m.ClientAddr, _ = netip.ParseAddr(addr)
	}
	return m, err
}

// sqlStored says which of the bodies are stored.
const sqlStored = `select w.id from unnest($1::uuid[]) w(id) where exists (select from stored_body b where b.message_id = w.id)`

// loadMessages reads the messages of ids and their bodies: up to a window's size at
// once into memory, larger ones as a Body that reads on demand. A message whose body is not
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
	var small, large [][16]byte
	for _, m := range messages {
		found[m.ID] = loaded{Message: m}
		if m.Size <= window {
			small = append(small, m.ID)
		} else {
			large = append(large, m.ID)
		}
	}
	if err := loadSmall(ctx, conn, small, found); err != nil {
		return nil, err
	}
	if err := findLarge(ctx, conn, pool, large, found); err != nil {
		return nil, err
	}
	for id, m := range found {
		if m.body == nil {
			delete(found, id)
		}
	}
	return found, nil
}

// findLarge gives those that are stored a Body.
func findLarge(ctx context.Context, conn *pgx.Conn, pool *pgxpool.Pool, large [][16]byte, found map[ID]loaded) error {
	if len(large) == 0 {
		return nil
	}
	rows, err := conn.Query(ctx, sqlStored, large)
	if err != nil {
		return fmt.Errorf("find bodies: %w", err)
	}
	stored, err := pgx.CollectRows(rows, pgx.RowTo[ID])
	if err != nil {
		return fmt.Errorf("find bodies: %w", err)
	}
	for _, id := range stored {
		m := found[id]
		m.body = newStoredBody(pool, id, m.Size)
		found[id] = m
	}
	return nil
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
	var n int
	var chunk pgtype.DriverBytes // points into the connection's buffer
	data, stored := make(map[ID][]byte, len(small)), make(map[ID]int64, len(small))
	_, err = pgx.ForEachRow(rows, []any{&id, &n, &chunk}, func() error {
		if data[id] == nil {
			data[id] = make([]byte, found[id].Size)
		}
		if at := n * chunkSize; at <= len(data[id]) {
			stored[id] += int64(copy(data[id][at:], chunk))
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("load bodies: %w", err)
	}
	for id, b := range data {
		if m := found[id]; stored[id] == m.Size {
			m.body = NewBody(b)
			found[id] = m
		}
	}
	return nil
}
