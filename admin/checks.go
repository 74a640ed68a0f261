package admin

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"golang.org/x/sys/unix"

	"postern/relay/queue"
)

// DatabaseCheck asks whether the database answers.
func DatabaseCheck(ping func(ctx context.Context) error) Check {
	return Check{"database", func(ctx context.Context) Finding {
		ctx, cancel := context.WithTimeout(ctx, checkTime*2/3)
		defer cancel()
		if err := ping(ctx); err != nil {
			return Finding{Failed, err.Error(), "see whether PostgreSQL runs and this node reaches it; mail is answered 451 until then"}
		}
		return Finding{State: OK, Detail: "the database answers"}
	}}
}

// EpochCheck asks for trouble of this node's lease: available is nil when mail can
// probably be stored and delivered now.
func EpochCheck(available func() error) Check {
	return Check{"epoch", func(context.Context) Finding {
		if err := available(); err != nil && !errors.Is(err, queue.ErrFull) {
			return Finding{Failed, err.Error(), "this node has no valid lease in the database: see its log, the database, and that no other process has its node name"}
		}
		return Finding{State: OK, Detail: "this node's lease is valid"}
	}}
}

// DiskCheck fails while no mail is accepted because the disk of the database is full.
func DiskCheck(available func() error) Check {
	return Check{"disk", func(context.Context) Finding {
		if errors.Is(available(), queue.ErrFull) {
			return Finding{Failed, queue.ErrFull.Error(), "make room there; mail is answered 452 until then, and what was accepted is delivered"}
		}
		return Finding{State: OK, Detail: "mail finds room"}
	}}
}

// DrainCheck fails once the node is stopping, so that no new clients are sent to it.
func DrainCheck(draining func() bool) Check {
	return Check{"draining", func(context.Context) Finding {
		if draining() {
			return Finding{Failed, "this node is stopping", "send clients to another node"}
		}
		return Finding{State: OK, Detail: "this node takes mail"}
	}}
}

// Certificate is one certificate of the listeners.
type Certificate struct {
	Name                string // as configured: not from a client
	NotBefore, NotAfter time.Time
	FailingSince        time.Time // its renewal; zero when that is well
	Error               string    // why it fails
}

// Bounds of what is left of a certificate.
const (
	tooLate   = time.Hour          // then clients are to be sent elsewhere
	soonAtAll = 7 * 24 * time.Hour // a warning, or a fifth of its life if that is less
)

// CertificateCheck judges the certificates that list returns. A renewal that fails is
// a warning as long as there is a certificate to show.
func CertificateCheck(list func() []Certificate, now func() time.Time) Check {
	return Check{"certificates", func(context.Context) Finding {
		all := list()
		if len(all) == 0 {
			return Finding{Failed, "there is no certificate", "set certificate and key in [tls]; see docs/certificates.md"}
		}
		found := make([]Finding, len(all))
		for i, c := range all {
			found[i] = c.judge(now())
		}
		return worst(found)
	}}
}

func (c Certificate) judge(now time.Time) Finding {
	left := c.NotAfter.Sub(now)
	until := c.NotAfter.UTC().Format(time.RFC3339)
	const renew = "renew it: put new files in place, or see why the CA gives none"
	switch {
	case c.NotAfter.IsZero():
		return Finding{Failed, fmt.Sprintf("%s: there is no certificate: %s", c.Name, c.Error), renew}
	case now.Before(c.NotBefore):
		return Finding{Failed, fmt.Sprintf("%s: the certificate is not valid before %s", c.Name, c.NotBefore.UTC().Format(time.RFC3339)), "set the clock of this machine"}
	case left <= 0:
		return Finding{Failed, fmt.Sprintf("%s: the certificate expired at %s", c.Name, until), renew}
	case left < tooLate:
		return Finding{Failed, fmt.Sprintf("%s: the certificate expires within the hour, at %s", c.Name, until), renew}
	case !c.FailingSince.IsZero():
		return Finding{Warning, fmt.Sprintf("%s: renewal fails since %s: %s; the certificate is valid until %s",
			c.Name, c.FailingSince.UTC().Format(time.RFC3339), c.Error, until), "see why the CA gives none; until then nothing is lost"}
	case left < min(soonAtAll, c.NotAfter.Sub(c.NotBefore)/5):
		return Finding{Warning, fmt.Sprintf("%s: the certificate expires at %s", c.Name, until), renew}
	}
	return Finding{State: OK, Detail: fmt.Sprintf("%s: valid until %s", c.Name, until)}
}

// RoomCheck asks whether dir takes a temporary file of the size of the largest message
// that is taken now, and warns when it takes fewer than ten of them.
func RoomCheck(dir string, largest func() int64) Check {
	return Check{"spool", func(context.Context) Finding {
		const advice = "make room there, or set another [submission] spool_dir; large messages are answered 452 until then"
		message := largest()
		free, err := FreeSpace(dir)
		if err == nil {
			err = unix.Access(dir, unix.W_OK|unix.X_OK)
		}
		switch {
		case err != nil:
			return Finding{Failed, fmt.Sprintf("%s: %v", dir, err), advice}
		case free < message:
			return Finding{Failed, fmt.Sprintf("%s has room for %d octets, less than one message may have", dir, free), advice}
		case free < 10*message:
			return Finding{Warning, fmt.Sprintf("%s has room for %d octets", dir, free), advice}
		}
		return Finding{State: OK, Detail: fmt.Sprintf("%s has room for %d octets", dir, free)}
	}}
}

// FreeSpace returns the octets that others than root may still write into a folder.
func FreeSpace(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("ask for room: %w", err)
	}
	// The types differ between machines, and some file systems have no end.
	if free := float64(st.Bavail) * float64(st.Bsize); free < math.MaxInt64 {
		return int64(free), nil
	}
	return math.MaxInt64, nil
}
