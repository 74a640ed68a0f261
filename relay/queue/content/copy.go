package content

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"postern/internal/pg"
)

// sqlCopyBody takes the rows of copyRows.
const sqlCopyBody = `copy large_body (turn, message_id, n, chunk) from stdin with (format binary)`

var (
	sqlTurn    = texts.Bind("turn")
	sqlNoLimit = texts.Bind("no_limit")
)

// Copy stores a large body by COPY within the connection's transaction.
func Copy(ctx context.Context, conn *pgx.Conn, id uuid.UUID, body Body) error {
	src := &copyRows{body: body, id: id}
	if err := conn.QueryRow(ctx, sqlTurn).Scan(&src.turn, nil); err != nil {
		return fmt.Errorf("which turn: %w", err)
	}
	_, err := conn.PgConn().CopyFrom(ctx, src, sqlCopyBody)
	src.stop()
	if src.err != nil {
		return &pg.RowError{Err: src.err}
	}
	if err != nil {
		return fmt.Errorf("copy body: %w", err)
	}
	if _, err := conn.Exec(ctx, sqlNoLimit); err != nil {
		return fmt.Errorf("copy body: %w", err)
	}
	return nil
}

// The binary format of COPY: a header, each row as a count of fields and each field
// with its length, and a count of -1 at the end.
const (
	copyHeader  = "PGCOPY\n\xff\r\n\x00" + "\x00\x00\x00\x00" + "\x00\x00\x00\x00"
	copyTrailer = "\xff\xff"
	copyFields  = 2 + 4 + 2 + 4 + 16 + 4 + 4 + 4 // what a row has before the octets of its chunk
	copyRow     = copyFields + ChunkSize
)

// copyRows reads a body in the binary format of COPY. The octets go straight from the body
// into the reader's buffer, if that has room for a row.
type copyRows struct {
	body Body
	turn int16
	id   uuid.UUID
	n    int    // the next row
	rest []byte // of a row for which there was no room, of the header or the trailer
	buf  []byte
	end  bool // the trailer was made
	err  error

	mu      sync.Mutex // CopyFrom reads on a goroutine of its own
	stopped bool
}

var errCopyStopped = errors.New("the copy has ended")

// stop waits for a Read that is under way and prevents later ones from using the body: a
// CopyFrom whose connection breaks returns without waiting for its reader, and the body
// may then belong to the next try or be gone.
func (c *copyRows) stop() {
	c.mu.Lock()
	c.stopped = true
	c.mu.Unlock()
}

func (c *copyRows) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped {
		return 0, errCopyStopped
	}
	if c.n == 0 && c.rest == nil {
		c.rest = []byte(copyHeader)
	}
	done := copy(p, c.rest)
	c.rest = c.rest[done:]
	for len(c.rest) == 0 && len(p)-done >= copyRow && c.more() {
		done += c.row(p[done:])
	}
	if c.err == nil && done == 0 && len(p) > 0 {
		c.refill()
		done = copy(p, c.rest)
		c.rest = c.rest[done:]
	}
	switch {
	case c.err != nil:
		return 0, c.err
	case done == 0 && len(p) > 0:
		return 0, io.EOF
	}
	return done, nil
}

// refill makes rest of the next row or the trailer.
func (c *copyRows) refill() {
	switch {
	case c.more():
		if c.buf == nil {
			c.buf = make([]byte, copyRow)
		}
		c.rest = c.buf[:c.row(c.buf)]
	case !c.end:
		c.end = true
		c.rest = []byte(copyTrailer)
	}
}

// more reports whether there is another row, if all went well.
func (c *copyRows) more() bool {
	return c.err == nil && int64(c.n)*ChunkSize < c.body.Size()
}

// row writes the next row to p, which has room for it, and returns its length.
func (c *copyRows) row(p []byte) int {
	off := int64(c.n) * ChunkSize
	size := int(min(ChunkSize, c.body.Size()-off))
	p = p[:copyFields+size]
	head := binary.BigEndian.AppendUint16(p[:0], 4)
	head = binary.BigEndian.AppendUint32(head, 2)
	head = binary.BigEndian.AppendUint16(head, uint16(c.turn))
	head = binary.BigEndian.AppendUint32(head, uint32(len(c.id)))
	head = append(head, c.id[:]...)
	head = binary.BigEndian.AppendUint32(head, 4)
	head = binary.BigEndian.AppendUint32(head, uint32(c.n))
	binary.BigEndian.AppendUint32(head, uint32(size))
	c.err = Read(c.body, p[copyFields:], off)
	c.n++
	return len(p)
}
