package certificate

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"postern/internal/owned"
)

// checkEvery is how often a handshake, or who asks for the status, looks whether the
// files have changed.
const checkEvery = 2 * time.Second

// Pair names the PEM files of a certificate with its chain and of its key.
type Pair struct{ Certificate, Key string }

// files is a pair that is read again when it changes.
type files struct {
	Pair
	log   *slog.Logger
	every time.Duration

	mu      sync.Mutex
	current *tls.Certificate
	loaded  stamp // of the files that current came from
	failed  stamp // of files that could not be used, to say so once
	checked time.Time
	trouble Trouble
}

// stamp tells two states of the files apart.
type stamp struct {
	cert, key fileStamp
}

type fileStamp struct {
	size     int64
	modified time.Time
}

func loadFiles(pair Pair, log *slog.Logger) (*files, error) {
	f := &files{Pair: pair, log: log, every: checkEvery}
	at, err := f.stamp()
	if err != nil {
		return nil, fmt.Errorf("load certificate: %w", err)
	}
	if f.current, err = f.load(); err != nil {
		return nil, fmt.Errorf("load certificate: %s and %s: %w", f.Certificate, f.Key, err)
	}
	f.loaded, f.checked = at, time.Now()
	f.trouble.Success(f.checked)
	return f, nil
}

// shown returns the certificate, read again if the files have changed.
func (f *files) shown() *tls.Certificate {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.look()
	return f.current
}

// look reads the files again if they have changed. The caller has the lock.
func (f *files) look() {
	if time.Since(f.checked) >= f.every {
		f.checked = time.Now()
		_ = f.refresh(false) // logged there, and told by status
	}
}

// reload reads the files now, changed or not.
func (f *files) reload() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.checked = time.Now()
	return f.refresh(true)
}

// refresh reads changed files. Files that do not work are not used until they
// change or can be used: a certificate and its key are seldom replaced in one moment.
func (f *files) refresh(unchanged bool) error {
	at, err := f.stamp()
	if err == nil && at == f.loaded && !unchanged {
		f.trouble.Success(f.checked)
		return nil
	}
	var next *tls.Certificate
	if err == nil {
		next, err = f.load()
	}
	if err != nil {
		if at != f.failed {
			f.log.Error("certificate not usable, keeping the previous one", "certificate", f.Certificate, "key", f.Key, "error", err)
			f.failed = at
		}
		f.trouble.Failure(f.checked, err, f.checked.Add(f.every))
		return fmt.Errorf("certificate %s: %w", f.Certificate, err)
	}
	changed := at != f.loaded
	f.current, f.loaded, f.failed = next, at, stamp{}
	f.trouble.Success(f.checked)
	if changed {
		f.log.Info("certificate loaded", "certificate", f.Certificate)
	}
	return nil
}

func (f *files) load() (*tls.Certificate, error) {
	return f.Load(func(err error) {
		f.log.Warn("other users can read the key of a certificate", "error", err)
	})
}

// Load reads the files. A key that everybody may change is refused; one that everybody
// may read is reported to exposed.
func (p Pair) Load(exposed func(error)) (*tls.Certificate, error) {
	chain, err := os.ReadFile(p.Certificate)
	if err != nil {
		return nil, err
	}
	key, err := owned.ReadSecret(p.Key, exposed)
	if err != nil {
		return nil, err
	}
	cert, err := tls.X509KeyPair(chain, key)
	if err == nil && cert.Leaf == nil {
		err = errors.New("no certificate in it")
	}
	return &cert, err
}

func (f *files) stamp() (stamp, error) {
	var at stamp
	for _, file := range []struct {
		name string
		at   *fileStamp
	}{{f.Certificate, &at.cert}, {f.Key, &at.key}} {
		info, err := os.Stat(file.name)
		if err != nil {
			// A stamp of its own, so that a missing file is logged once too.
			file.at.size = -1
			return at, err
		}
		if !info.Mode().IsRegular() {
			// To open a pipe would wait for whoever writes into it, and all handshakes with us.
			file.at.size = -1
			return at, fmt.Errorf("%s is no regular file", file.name)
		}
		*file.at = fileStamp{info.Size(), info.ModTime()}
	}
	return at, nil
}

// status looks as a handshake does: while it says that a certificate has expired, none
// may come.
func (f *files) status() Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.look()
	s := f.trouble.Status(f.current)
	s.Source = "file " + f.Certificate
	return s
}
