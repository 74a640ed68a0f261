package content

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
)

// bodyOfCopy takes the octets of the chunks out of what copyRows made.
func bodyOfCopy(t *testing.T, id uuid.UUID, data []byte) []byte {
	t.Helper()
	data, ok := bytes.CutPrefix(data, []byte(copyHeader))
	if !ok {
		t.Fatal("no header")
	}
	var body []byte
	for n := uint32(0); !bytes.Equal(data, []byte(copyTrailer)); n++ {
		if len(data) < copyFields || !bytes.Equal(data[12:28], id[:]) || binary.BigEndian.Uint32(data[32:]) != n {
			t.Fatalf("row %d begins with %x", n, data[:min(len(data), copyFields)])
		}
		size := int(binary.BigEndian.Uint32(data[36:]))
		if size == 0 || size > ChunkSize || size > len(data)-copyFields {
			t.Fatalf("row %d has %d octets of %d", n, size, len(data)-copyFields)
		}
		body = append(body, data[copyFields:copyFields+size]...)
		data = data[copyFields+size:]
	}
	return body
}

func TestCopyRows(t *testing.T) {
	t.Parallel()
	for _, size := range []int{1, ChunkSize - 1, ChunkSize, ChunkSize + 1, 20*ChunkSize + 7} {
		want := make([]byte, size)
		for i := range want {
			want[i] = byte(rand.Uint32())
		}
		for _, room := range []int{1, 33, copyRow - 1, copyRow, copyRow + 1, 65531, 1 << 20} {
			src := &copyRows{body: New(want), id: uuid.New()}
			var all []byte
			p := make([]byte, room)
			for {
				n, err := src.Read(p)
				all = append(all, p[:n]...)
				if err == io.EOF {
					break
				}
				if err != nil || n == 0 {
					t.Fatalf("body of %d in pieces of %d: read %d, %v", size, room, n, err)
				}
			}
			if got := bodyOfCopy(t, src.id, all); !bytes.Equal(got, want) {
				t.Fatalf("body of %d in pieces of %d: got %d octets, or others", size, room, len(got))
			}
		}
	}
}

// shortBody says that it is longer than it is.
type shortBody struct{ Body }

func (b shortBody) Size() int64 { return b.Body.Size() + 1 }

// A body that ends early is an error, never the end of a shorter message.
func TestCopyRowsOfAShortBody(t *testing.T) {
	t.Parallel()
	for _, room := range []int{100, 65531} {
		src := &copyRows{body: shortBody{New(make([]byte, 3*ChunkSize))}}
		_, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{src}, make([]byte, room))
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("pieces of %d: %v", room, err)
		}
	}
}

// slowBody waits in each read until it may go on.
type slowBody struct {
	Body
	reading, goOn chan struct{}
	reads         *atomic.Int32 // that are over
}

func (b slowBody) ReadAt(p []byte, off int64) (int, error) {
	b.reading <- struct{}{}
	<-b.goOn
	defer b.reads.Add(1)
	return b.Body.ReadAt(p, off)
}

// A CopyFrom whose connection breaks leaves its reader behind: the body is another's
// after stop, so stop waits for the read under way and the next one is refused.
func TestCopyRowsStopped(t *testing.T) {
	t.Parallel()
	body := slowBody{New(make([]byte, 3*ChunkSize)), make(chan struct{}), make(chan struct{}), new(atomic.Int32)}
	src := &copyRows{body: body}
	left := make(chan error)
	go func() {
		p := make([]byte, copyRow+len(copyHeader)) // room for one row
		_, err := src.Read(p)
		for err == nil {
			_, err = src.Read(p)
		}
		left <- err
	}()
	<-body.reading
	stopped := make(chan int32)
	go func() {
		src.stop()
		stopped <- body.reads.Load()
	}()
	close(body.goOn)
	for {
		select {
		case <-body.reading: // won the lock before stop did
			continue
		case reads := <-stopped:
			if reads == 0 {
				t.Error("stop did not wait for the read that was under way")
			}
		}
		break
	}
	if err := <-left; err != errCopyStopped && err != io.EOF {
		t.Errorf("after the stop, Read says %v", err)
	}
	if _, err := src.Read(make([]byte, copyRow)); err != errCopyStopped {
		t.Errorf("after the stop, Read says %v", err)
	}
}
