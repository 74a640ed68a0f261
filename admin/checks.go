package admin

import (
	"context"
	"time"

	"postern/admin/health"
)

// DatabaseCheck asks whether the database answers.
func DatabaseCheck(ping func(ctx context.Context) error) Check {
	return Check{"database", func(ctx context.Context) health.Finding {
		ctx, cancel := context.WithTimeout(ctx, checkTime*2/3)
		defer cancel()
		return health.Database(ping(ctx))
	}}
}

// EpochCheck asks for trouble of this node's lease: available is nil when mail can
// probably be stored and delivered now.
func EpochCheck(available func() error) Check {
	return Check{"epoch", func(context.Context) health.Finding { return health.Epoch(available()) }}
}

// DiskCheck fails while no mail is accepted because the disk of the database is full.
func DiskCheck(available func() error) Check {
	return Check{"disk", func(context.Context) health.Finding { return health.Disk(available()) }}
}

// DrainCheck fails once the node is stopping, so that no new clients are sent to it.
func DrainCheck(draining func() bool) Check {
	return Check{"draining", func(context.Context) health.Finding { return health.Drain(draining()) }}
}

// CertificateCheck judges the certificates that list returns.
func CertificateCheck(list func() []health.Certificate, now func() time.Time) Check {
	return Check{"certificates", func(context.Context) health.Finding {
		all := list()
		if len(all) == 0 {
			return health.CertificateNone.Found("certificate", "there is no certificate")
		}
		found := make([]health.Finding, len(all))
		for i, c := range all {
			found[i] = c.Judge(now())
		}
		return health.Worst(found)
	}}
}

// RoomCheck asks whether dir takes temporary files of the size of the largest message
// that is taken now.
func RoomCheck(dir string, largest func() int64) Check {
	return Check{"spool", func(context.Context) health.Finding { return health.Spool(dir, largest(), 0) }}
}
