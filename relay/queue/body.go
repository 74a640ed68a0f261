package queue

import (
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	chunkSize = 256 << 10 // octets of a row of body
	smallBody = 1 << 20   // up to this size bodies go through memory
)

// NewBody returns a Body that holds data in memory.
func NewBody(data []byte) Body { return &memoryBody{data: data} }

// memoryBody is garbage collected; its references count for nothing.
type memoryBody struct{ data []byte }

func (b *memoryBody) Size() int64 { return int64(len(b.data)) }
func (b *memoryBody) Hold()       {}
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

// storedBody reads from the database, one chunk for each query, and keeps the
// last chunk: its readers go forward. No connection is held between reads.
type storedBody struct {
	pool *pgxpool.Pool
	id   ID
	size int64
	refs atomic.Int32

	mu   sync.Mutex
	have int // number of the chunk in data, -1 for none
	data []byte
}

// sqlChunk reads one chunk of a body.
const sqlChunk = `select chunk from body where message_id = $1 and n = $2`

func newStoredBody(pool *pgxpool.Pool, id ID, size int64) *storedBody {
	b := &storedBody{pool: pool, id: id, size: size, have: -1}
	b.refs.Store(1)
	return b
}

func (b *storedBody) Size() int64 { return b.size }
func (b *storedBody) Hold()       { b.refs.Add(1) }

func (b *storedBody) Drop() {
	if b.refs.Add(-1) == 0 {
		b.mu.Lock()
		b.data, b.have = nil, -1
		b.mu.Unlock()
	}
}

func (b *storedBody) ReadAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		at := off + int64(done)
		if at >= b.size {
			return done, io.EOF
		}
		chunk, err := b.chunk(int(at / chunkSize))
		if err != nil {
			return done, err
		}
		skip := int(at % chunkSize)
		if skip >= len(chunk) {
			return done, io.ErrUnexpectedEOF
		}
		done += copy(p[done:], chunk[skip:])
	}
	return done, nil
}

func (b *storedBody) chunk(n int) ([]byte, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.have == n {
		return b.data, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var chunk []byte
	if err := b.pool.QueryRow(ctx, sqlChunk, b.id, n).Scan(&chunk); err != nil {
		return nil, fmt.Errorf("read chunk %d of message %s: %w", n, b.id, err)
	}
	b.have, b.data = n, chunk
	return chunk, nil
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
