package queue

import (
	"context"
	"fmt"
	"math"
	"net/netip"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"postern/relay/smtp"
)

var (
	sqlMessages    = texts.Bind("messages", "id")
	sqlSmallBodies = texts.Bind("small_bodies", "id")
	sqlStored      = texts.Bind("stored", "id", "last", "octets")
)

// loaded is a message as it is stored, see fault.
type loaded struct {
	Message
	body Body
	bad  string // why it cannot be read
}

func scanMessage(row pgx.CollectableRow) (Message, error) {
	var m Message
	var bodyType, ret, addr string
	var accepted *time.Time
	err := row.Scan(&m.ID, &m.UserID, &m.CredentialID, &m.Sender.Local, &m.Sender.Domain, &m.Size, &bodyType, &m.UTF8, &m.EightBit, &ret,
		&m.EnvID, &m.MessageID, &accepted, &addr, &m.ClientHello, &m.Listener, &m.TLS)
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

// loadMessages reads the messages of ids and their bodies into found: up to a window's size
// whole into memory, larger ones as a Body that reads on demand.
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
	var small, large [][16]byte
	for _, m := range messages {
		found[m.ID] = &loaded{Message: m}
		switch {
		case m.Size < 0 || m.Size > mostStored:
		case m.Size <= window:
			small = append(small, m.ID)
		default:
			large = append(large, m.ID)
		}
	}
	if err := loadSmall(ctx, conn, small, found); err != nil {
		return err
	}
	return findLarge(ctx, conn, pool, large, found)
}

// mostStored is more than a message may ever have.
const mostStored = int64(chunkSize) * math.MaxInt32

// findLarge gives a Body to those that are stored.
func findLarge(ctx context.Context, conn *pgx.Conn, pool *pgxpool.Pool, large [][16]byte, found map[ID]*loaded) error {
	if len(large) == 0 {
		return nil
	}
	last, octets := make([]int32, len(large)), make([]int32, len(large))
	for i, id := range large {
		end := found[id].Size - 1
		last[i], octets[i] = int32(end/chunkSize), int32(end%chunkSize)+1
	}
	rows, err := conn.Query(ctx, sqlStored, large, last, octets)
	if err != nil {
		return fmt.Errorf("find bodies: %w", err)
	}
	stored, err := pgx.CollectRows(rows, pgx.RowTo[ID])
	if err != nil {
		return fmt.Errorf("find bodies: %w", err)
	}
	for _, id := range stored {
		found[id].body = newStoredBody(pool, id, found[id].Size)
	}
	return nil
}

func loadSmall(ctx context.Context, conn *pgx.Conn, small [][16]byte, found map[ID]*loaded) error {
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
		if at := n * chunkSize; at >= 0 && at <= len(data[id]) {
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
		}
	}
	return nil
}
