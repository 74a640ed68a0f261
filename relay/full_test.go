package relay_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"postern/internal/rig"
)

// heavyMail is a load that fills a disk.
func heavyMail(random *rand.Rand) rig.Shape {
	shape := rig.Shape{From: "sender@" + rig.Domain, Size: 20<<10 + random.IntN(60<<10)}
	if random.IntN(20) == 0 {
		shape.Size = 1<<20 + random.IntN(1<<20)
	}
	for n := range 1 + random.IntN(2) {
		shape.To = append(shape.To, fmt.Sprintf("rcpt%d-%d@dest%d.test", n, random.IntN(1000), random.IntN(10)))
	}
	return shape
}

// TestR5FullDisk fills the disk of the database while the upstream says nothing. Mail is
// refused then, and what was accepted goes out as soon as the upstream is back, without
// anybody's help. Nothing is lost.
func TestR5FullDisk(t *testing.T) {
	t.Parallel()
	for _, filler := range []string{"mail", "a foreign file"} {
		t.Run(filler, func(t *testing.T) {
			t.Parallel()
			r, disk := rig.NewSmallDisk(t, 256<<20)
			sink := rig.NewSink(t, "", 0)
			r.RouteTo(sink, 10)
			node := r.Node(rig.NodeConfig{Name: "solo", Extra: smallDisk})
			awaitReserve(t, r, 16<<20)
			open := sink.Hold(rig.BeforeData, "solo.test")
			load := newLoad(t, r, node)
			load.Shape = heavyMail
			load.Start()
			awaitMore(t, load.Ledger, 100)
			file := filepath.Join(disk, "foreign")
			if filler != "mail" {
				fillDisk(t, file)
			}
			if !load.Ledger.WaitFailed("MAIL", 452) {
				t.Fatalf("mail is not refused: %s", load.Ledger)
			}
			load.Stop()
			open()
			r.Drain()
			if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			again := newLoad(t, r, node)
			again.Shape, again.Ledger = heavyMail, load.Ledger
			again.Start()
			awaitMore(t, load.Ledger, 50)
			wantCalm(t, settle(t, r, again, sink, node))
		})
	}
}

// smallDisk is the part of a node's configuration for a small disk of its database, and none
// of what else might refuse mail.
const smallDisk = `[queue]
reserve = "16MiB"
[submission]
memory = "1GiB"
[delivery]
memory = "8MiB"
`

// awaitReserve waits until the node has its reserve.
func awaitReserve(t *testing.T, r *rig.Rig, size int) {
	t.Helper()
	await(t, "the reserve is made", func() bool { return count(t, r, `select pg_relation_size('reserve')`) >= size })
}

// fillDisk writes a file until nothing is free.
func fillDisk(t *testing.T, name string) {
	t.Helper()
	file, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for block := make([]byte, 64<<10); len(block) > 0; {
		_, err := file.Write(block)
		switch {
		case errors.Is(err, syscall.ENOSPC):
			block = block[:len(block)/2]
		case err != nil:
			t.Fatal(err)
		}
	}
}
