package queue

import (
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"postern/internal/pg"
)

const (
	chunkSize  = 8100 // octets of a row of body: as many as a page holds in one row
	windowRows = 32   // rows read by one query
	window     = windowRows * chunkSize
	smallBody  = 1 << 20 // up to this size bodies go through memory
)

// NewBody returns a Body that holds data in memory.
func NewBody(data []byte) Body { return &memoryBody{data: data} }

// memoryBody is garbage collected; its references are not counted.
type memoryBody struct{ data []byte }

func (b *memoryBody) Size() int64 { return int64(len(b.data)) }
func (b *memoryBody) Retain()     {}
func (b *memoryBody) Drop()       {}

func (b *memoryBody) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= int64(len(b.data)) {
		return 0, io.EOF
	}
	n := copy(p, b.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// storedBody reads from the database, a window for each query, and keeps the last
// window: its readers go forward. No connection is held between reads.
type storedBody struct {
	pool *pgxpool.Pool
	id   ID
	size int64
	refs atomic.Int32

	damaged atomic.Bool // noticed by a reader

	mu   sync.Mutex
	have int // first row of the window in data, -1 for none
	data []byte
}

// sqlChunks reads the rows $2 to $3 of a body; the last of them is left out.
const sqlChunks = `select chunk from stored_body where message_id = $1 and n >= $2 and n < $3 order by n`

func newStoredBody(pool *pgxpool.Pool, id ID, size int64) *storedBody {
	b := &storedBody{pool: pool, id: id, size: size, have: -1}
	b.refs.Store(1)
	return b
}

func (b *storedBody) Size() int64 { return b.size }
func (b *storedBody) Retain()     { b.refs.Add(1) }

func (b *storedBody) Drop() {
	if b.refs.Add(-1) == 0 {
		b.mu.Lock()
		b.data, b.have = nil, -1
		b.mu.Unlock()
	}
}

func (b *storedBody) ReadAt(p []byte, off int64) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	done := 0
	for done < len(p) {
		at := off + int64(done)
		if at >= b.size {
			return done, io.EOF
		}
		if err := b.fetch(int(at/window) * windowRows); err != nil {
			if pg.OfTheRow(err) {
				b.damaged.Store(true)
				err = fmt.Errorf("%w: %w", ErrDamaged, err)
			}
			return done, err
		}
		skip := int(at % window)
		if skip >= len(b.data) {
			b.damaged.Store(true)
			return done, fmt.Errorf("%w: %w", ErrDamaged, io.ErrUnexpectedEOF)
		}
		done += copy(p[done:], b.data[skip:])
	}
	return done, nil
}

// fetch makes data the window that begins with a row.
func (b *storedBody) fetch(first int) error {
	if b.have == first {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return b.load(ctx, b.pool, first)
}

// load reads the window that begins with a row. The caller has mu, or is the only user of b.
func (b *storedBody) load(ctx context.Context, from querier, first int) error {
	b.have = -1
	if b.data == nil {
		b.data = make([]byte, 0, min(b.size, window))
	}
	data, err := readChunks(ctx, from, b.data[:0], b.id, first, first+windowRows)
	if err != nil {
		return fmt.Errorf("read message %s from row %d: %w", b.id, first, err)
	}
	b.have, b.data = first, data
	return nil
}

// querier is a connection, a pool or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// readChunks appends the rows [first, end) of a body to data.
func readChunks(ctx context.Context, from querier, data []byte, id ID, first, end int) ([]byte, error) {
	rows, err := from.Query(ctx, sqlChunks, id, first, end)
	if err != nil {
		return nil, err
	}
	var chunk pgtype.DriverBytes // points into the connection's buffer
	_, err = pgx.ForEachRow(rows, []any{&chunk}, func() error {
		data = append(data, chunk...)
		return nil
	})
	return data, err
}

// readBody reads octets [off, off+len(p)) of b, all of them.
func readBody(b Body, p []byte, off int64) error {
	n, err := b.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read body: %w", err)
}
