package content

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"postern/internal/pg"
)

const (
	// ChunkSize is how many octets a row has, but for the last of a body: as many as a page
	// holds in one row.
	ChunkSize = 8100

	windowRows = 32 // rows read by one query
	window     = windowRows * ChunkSize
)

// ErrDamaged says that a stored body is not whole.
var ErrDamaged = errors.New("the stored message is damaged")

// Body holds the octets of one message as they will be delivered: CRLF lines, not
// dot-stuffed. It may live in memory, in an unlinked file or in the database.
// ReadAt may be called by several goroutines concurrently. A Body starts with one
// reference; the last Drop frees what it holds.
type Body interface {
	io.ReaderAt
	Size() int64
	Retain()
	Drop()
}

// New returns a Body that holds data in memory.
func New(data []byte) Body { return &memory{data: data} }

// memory is garbage collected; its references are not counted.
type memory struct{ data []byte }

func (b *memory) Size() int64 { return int64(len(b.data)) }
func (b *memory) Retain()     {}
func (b *memory) Drop()       {}

func (b *memory) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= int64(len(b.data)) {
		return 0, io.EOF
	}
	n := copy(p, b.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// stored reads from the database, a window for each query, and keeps the last
// window: its readers go forward. No connection is held between reads.
type stored struct {
	pool *pgxpool.Pool
	id   uuid.UUID
	size int64
	refs atomic.Int32

	damaged atomic.Bool // noticed by a reader

	mu   sync.Mutex
	have int // first row of the window in data, -1 for none
	data []byte
}

func newStored(pool *pgxpool.Pool, id uuid.UUID, size int64) *stored {
	b := &stored{pool: pool, id: id, size: size, have: -1}
	b.refs.Store(1)
	return b
}

func (b *stored) Size() int64 { return b.size }
func (b *stored) Retain()     { b.refs.Add(1) }

func (b *stored) Drop() {
	if b.refs.Add(-1) == 0 {
		b.mu.Lock()
		b.data, b.have = nil, -1
		b.mu.Unlock()
	}
}

func (b *stored) ReadAt(p []byte, off int64) (int, error) {
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
func (b *stored) fetch(first int) error {
	if b.have == first {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return b.load(ctx, b.pool, first)
}

// load reads the window that begins with a row. The caller has mu, or is the only user of b.
func (b *stored) load(ctx context.Context, from pg.DB, first int) error {
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

// readChunks appends the rows [first, end) of a body to data.
func readChunks(ctx context.Context, from pg.DB, data []byte, id uuid.UUID, first, end int) ([]byte, error) {
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

// Read reads octets [off, off+len(p)) of b, all of them.
func Read(b Body, p []byte, off int64) error {
	n, err := b.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read body: %w", err)
}

// Damaged reports whether a reader has found b damaged.
func Damaged(b Body) bool {
	s, ok := b.(*stored)
	return ok && s.damaged.Load()
}

// Head reads the first octets of b, at most so many, over conn if they are in the database: a
// claim has a connection in hand, and must not wait for one of the pool.
func Head(ctx context.Context, conn *pgx.Conn, b Body, most int64) ([]byte, error) {
	if s, ok := b.(*stored); ok {
		if err := s.load(ctx, conn, 0); err != nil {
			return nil, err
		}
	}
	head := make([]byte, min(b.Size(), most))
	return head, Read(b, head, 0)
}
