package submission

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"testing/iotest"

	"postern/relay/queue/content"
	"postern/relay/smtp"
)

var _ content.Body = (*body)(nil)

func testSpool(t *testing.T, l Limits) *spool {
	return newSpool(l.withDefaults(), t.TempDir())
}

// text makes n octets that differ from place to place.
func text(n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(1, uint64(n)))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// TestBodySizes reads bodies of sizes around every step, in memory and in a file,
// and reads them back whole, in pieces, and from several goroutines.
func TestBodySizes(t *testing.T) {
	t.Parallel()
	sp := testSpool(t, Limits{})
	const k = 1 << 10
	for _, n := range []int{0, 1, 8*k - 1, 8 * k, 8*k + 1, 72 * k, 72*k + 1, 328 * k, 840 * k, 840*k + 1, 1096 * k, 1 << 20, 1<<20 + 1, 3<<20 + 17} {
		want := text(n)
		b, err := sp.read(iotest.DataErrReader(bytes.NewReader(want)), nil)
		if err != nil {
			t.Fatalf("%d octets: %v", n, err)
		}
		if b.Size() != int64(n) {
			t.Errorf("size %d, want %d", b.Size(), n)
		}
		if n > 1<<20 && b.file == nil || n <= 840*k && b.file != nil {
			t.Errorf("%d octets: in a file: %v", n, b.file != nil)
		}
		if n < 80*k { // it takes time that grows faster than n
			if err := iotest.TestReader(io.NewSectionReader(b, 0, b.Size()), want); err != nil {
				t.Errorf("%d octets: %v", n, err)
			}
		}
		var readers sync.WaitGroup
		for range 3 {
			b.Retain()
			readers.Go(func() {
				defer b.Drop()
				got, err := io.ReadAll(io.NewSectionReader(b, 0, b.Size()))
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("%d octets: read back %d, %v", n, len(got), err)
				}
			})
		}
		readers.Wait()
		b.Drop()
	}
	nothingHeld(t, sp)
}

// TestBodyReadAt asks at and beyond the ends.
func TestBodyReadAt(t *testing.T) {
	t.Parallel()
	sp := testSpool(t, Limits{})
	for _, n := range []int{100, 2 << 20} {
		b, err := sp.read(bytes.NewReader(text(n)), nil)
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 10)
		if got, err := b.ReadAt(p, int64(n)); got != 0 || err != io.EOF {
			t.Errorf("at the end: %d, %v", got, err)
		}
		if got, err := b.ReadAt(p, int64(n)-4); got != 4 || err != io.EOF {
			t.Errorf("near the end: %d, %v", got, err)
		}
		if _, err := b.ReadAt(p, -1); err == nil || err == io.EOF {
			t.Errorf("at -1: %v", err)
		}
		b.Drop()
	}
}

// TestBodyBudgets: neither budget is exceeded, and both come back.
func TestBodyBudgets(t *testing.T) {
	t.Parallel()
	sp := testSpool(t, Limits{Memory: 600 << 10, TempFiles: 3 << 20})
	small := func() (*body, error) { return sp.read(bytes.NewReader(text(300<<10)), nil) } // charged 328 KiB
	b, err := small()
	if err != nil {
		t.Fatal(err)
	}
	_, err = small()
	var refusal *smtp.Error
	if !errors.As(err, &refusal) || refusal.Reply.Code != 452 {
		t.Errorf("over the memory budget: %v", err)
	}
	if used, _ := sp.memory.Use(); used != 328<<10 {
		t.Errorf("%d octets are charged after the refusal, want those of one body", used)
	}
	b.Drop()
	sp.memory.Resize(4 << 20)
	if _, err = sp.read(bytes.NewReader(text(4<<20)), nil); !errors.As(err, &refusal) || refusal.Reply.Code != 452 {
		t.Errorf("over the file budget: %v", err)
	}
	nothingHeld(t, sp)
}

// TestL2DescriptorsSpool: no more files are open than the process has descriptors for, and
// no user holds all of them.
func TestL2DescriptorsSpool(t *testing.T) {
	t.Parallel()
	sp := testSpool(t, Limits{MemoryBody: 64 << 10, Files: 2})
	var held []*body
	for range 2 {
		b, err := sp.read(bytes.NewReader(text(100<<10)), nil)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, b)
	}
	var refusal *smtp.Error
	if _, err := sp.read(bytes.NewReader(text(100<<10)), nil); !errors.As(err, &refusal) || refusal.Reply.Code != 452 {
		t.Errorf("a third file: %v", err)
	}
	if sp.room(100<<10, nil) {
		t.Error("MAIL promises room for a third file")
	}
	if b, err := sp.read(bytes.NewReader(text(5<<10)), nil); err != nil {
		t.Errorf("a small message needs no file: %v", err)
	} else {
		b.Drop()
	}
	for _, b := range held {
		b.Drop()
	}
	nothingHeld(t, sp)
	sp.dir = "/nowhere"
	if _, err := sp.read(bytes.NewReader(text(100<<10)), nil); err == nil {
		t.Error("no file can be made there")
	}
	nothingHeld(t, sp)
	nothingHeld(t, sp)
}

// TestBodyFailures: errors of the source come through, those of the file system are
// temporary, and nothing is kept.
func TestBodyFailures(t *testing.T) {
	t.Parallel()
	sp := testSpool(t, Limits{})
	broken := errors.New("connection lost")
	for _, n := range []int{0, 100, 2 << 20} {
		_, err := sp.read(io.MultiReader(bytes.NewReader(text(n)), iotest.ErrReader(broken)), nil)
		if err != broken {
			t.Errorf("after %d octets: %v", n, err)
		}
	}
	sp.dir = "/nonexistent"
	_, err := sp.read(bytes.NewReader(text(2<<20)), nil)
	var refusal *smtp.Error
	if !errors.As(err, &refusal) || refusal.Reply.Code != 452 || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no folder for files: %v", err)
	}
	nothingHeld(t, sp)
}

// TestBodyFileHasNoName: a crash leaves no file behind.
func TestBodyFileHasNoName(t *testing.T) {
	t.Parallel()
	sp := testSpool(t, Limits{})
	b, err := sp.read(bytes.NewReader(text(2<<20)), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Drop()
	left, err := os.ReadDir(sp.dir)
	if err != nil || len(left) != 0 {
		t.Errorf("in the folder: %v, %v", left, err)
	}
}

func TestBodyDropTooOften(t *testing.T) {
	t.Parallel()
	b, err := testSpool(t, Limits{}).read(bytes.NewReader(text(10)), nil)
	if err != nil {
		t.Fatal(err)
	}
	b.Drop()
	defer func() {
		if recover() == nil {
			t.Error("a Drop too many went unnoticed")
		}
	}()
	b.Drop()
}

func nothingHeld(t *testing.T, sp *spool) {
	t.Helper()
	memory, _ := sp.memory.Use()
	files, _ := sp.files.Use()
	handles, _ := sp.handles.Use()
	if memory != 0 || files != 0 || handles != 0 {
		t.Errorf("held at the end: %d in memory and %d in %d files", memory, files, handles)
	}
}
