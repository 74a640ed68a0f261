package submission

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"postern/internal/share"
	"postern/relay/smtp"
)

// Bodies grow in steps, so that a small message holds little and a large one
// takes few steps.
var chunkSizes = [...]int{8 << 10, 64 << 10, 256 << 10}

// errFull is the answer when a budget for bodies is spent.
var errFull = &smtp.Error{Reply: smtp.Temporary(452, 3, 1, "Insufficient system storage, try again later")}

// spool makes bodies: in memory up to memoryBody octets, beyond it in a file that
// has no name any more. Both kinds are charged, before they are there, to what all
// sessions share by user and network.
type spool struct {
	memory     *share.Pool
	files      *share.Pool // octets
	handles    *share.Pool // files that are open
	memoryBody int64
	dir        string
	pools      [len(chunkSizes)]sync.Pool
}

func newSpool(l Limits, dir string) *spool {
	return &spool{memoryBody: l.MemoryBody, dir: dir, memory: share.New(l.Memory, sharePart), files: share.New(l.TempFiles, sharePart),
		handles: share.New(int64(l.Files), sharePart)}
}

// resize sets the budgets. It takes nothing back.
func (sp *spool) resize(l *Limits) {
	sp.memory.Resize(l.Memory)
	sp.files.Resize(l.TempFiles)
	sp.handles.Resize(int64(l.Files))
}

// room reports whether a message of the declared size (0: unknown) may find room.
func (sp *spool) room(size int64, who holders) bool {
	if size > sp.memoryBody {
		return sp.files.Fits(size, who...) && sp.handles.Fits(1, who...)
	}
	return sp.memory.Fits(max(size, int64(chunkSizes[0])), who...)
}

// chunk is a piece of memory; len(buf) octets of it are used.
type chunk struct {
	buf   []byte
	class int
}

// chunk takes a piece of the class from the budget, or returns nil.
func (sp *spool) chunk(class int, who holders) *chunk {
	size := chunkSizes[class]
	if !sp.memory.Take(int64(size), who...) {
		return nil
	}
	if c, ok := sp.pools[class].Get().(*chunk); ok {
		return c
	}
	return &chunk{buf: make([]byte, 0, size), class: class}
}

func (sp *spool) free(c *chunk, of holders) {
	c.buf = c.buf[:0]
	sp.memory.Give(int64(cap(c.buf)), of...)
	sp.pools[c.class].Put(c)
}

// body is one message as it will be delivered. It implements content.Body.
type body struct {
	refs   atomic.Int64
	spool  *spool
	owners holders
	size   int64
	chunks []*chunk // in memory: all full but the last; in a file: the write buffer
	inline [6]*chunk
	file   *os.File
	onDisk int64  // octets written to file, and charged
	hash   []byte // queue.Message.BodyHash
	octets []byte // the hash of what the client sent; nil if copies are not recognised
}

// read makes a body of what r gives until io.EOF. An *smtp.Error says that there
// was no room; other errors are r's. r may be left unread then.
func (sp *spool) read(r io.Reader, who holders) (*body, error) {
	b := &body{spool: sp, owners: who}
	b.chunks = b.inline[:0]
	b.refs.Store(1)
	if err := b.readFrom(r); err != nil {
		b.Drop()
		return nil, err
	}
	return b, nil
}

func (b *body) readFrom(r io.Reader) error {
	for {
		tail, err := b.tail()
		if err != nil {
			return err
		}
		n, err := r.Read(tail.buf[len(tail.buf):cap(tail.buf)])
		tail.buf = tail.buf[:len(tail.buf)+n]
		b.size += int64(n)
		if err == io.EOF {
			if b.file != nil {
				return b.writeOut(tail)
			}
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// tail returns a chunk with room for more.
func (b *body) tail() (*chunk, error) {
	n := len(b.chunks)
	if n > 0 {
		if c := b.chunks[n-1]; len(c.buf) < cap(c.buf) {
			return c, nil
		}
	}
	class := min(n, len(chunkSizes)-1)
	if b.file == nil && n > 0 && b.size+int64(chunkSizes[class]) > b.spool.memoryBody {
		if err := b.spill(); err != nil {
			return nil, err
		}
	}
	if b.file != nil {
		c := b.chunks[0]
		return c, b.writeOut(c)
	}
	c := b.spool.chunk(class, b.owners)
	if c == nil {
		return nil, errFull
	}
	b.chunks = append(b.chunks, c)
	return c, nil
}

// spill moves what is in memory to a file and keeps the largest chunk as buffer.
func (b *body) spill() error {
	if !b.spool.handles.Take(1, b.owners...) {
		return errFull
	}
	f, err := os.CreateTemp(b.spool.dir, "postern-body-*")
	if err == nil {
		// Unlinked immediately: a crash leaves nothing behind, and nobody else opens it.
		if err = os.Remove(f.Name()); err != nil {
			f.Close()
		}
	}
	if err != nil {
		b.spool.handles.Give(1, b.owners...)
		return storageError(err)
	}
	b.file = f
	for _, c := range b.chunks {
		if err := b.writeOut(c); err != nil {
			return err
		}
	}
	last := len(b.chunks) - 1
	for _, c := range b.chunks[:last] {
		b.spool.free(c, b.owners)
	}
	b.chunks[0] = b.chunks[last]
	b.chunks = b.chunks[:1]
	return nil
}

// writeOut appends c to the file and empties it.
func (b *body) writeOut(c *chunk) error {
	n := int64(len(c.buf))
	if !b.spool.files.Take(n, b.owners...) {
		return errFull
	}
	b.onDisk += n
	if _, err := b.file.Write(c.buf); err != nil {
		return storageError(err)
	}
	c.buf = c.buf[:0]
	return nil
}

func storageError(err error) error {
	return &smtp.Error{Reply: errFull.Reply, Err: fmt.Errorf("temporary file: %w", err)}
}

// Size returns the octets of the message.
func (b *body) Size() int64 { return b.size }

// ReadAt implements io.ReaderAt.
func (b *body) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("submission: negative offset into a body")
	}
	if b.file != nil {
		return b.file.ReadAt(p, off)
	}
	n := 0
	for _, c := range b.chunks {
		if off < int64(len(c.buf)) {
			n += copy(p[n:], c.buf[off:])
			off = 0
			if n == len(p) {
				return n, nil
			}
			continue
		}
		off -= int64(len(c.buf))
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Retain adds a reference.
func (b *body) Retain() { b.refs.Add(1) }

// Drop gives a reference back; the last one frees memory, file and budgets. A
// Drop too many is a defect that would free another message's memory, so it panics.
func (b *body) Drop() {
	switch n := b.refs.Add(-1); {
	case n > 0:
		return
	case n < 0:
		panic("submission: body dropped more often than retained")
	}
	for _, c := range b.chunks {
		b.spool.free(c, b.owners)
	}
	b.chunks = nil
	if b.file != nil {
		b.file.Close()
		b.spool.handles.Give(1, b.owners...)
		b.spool.files.Give(b.onDisk, b.owners...)
	}
}
