package dkimtest

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"postern/internal/peers"
)

// Foreign has foreign programs verify messages, and returns for each message which of them take which
// signatures by domains with records, as "opendkim rsa-sha256". Of a good message with an RSA and an
// Ed25519 signature that is Good.
func (r Records) Foreign(t testing.TB, messages [][]byte) (valid [][]string) {
	t.Helper()
	dir, files := t.TempDir(), make([]string, len(messages))
	for i, m := range messages {
		files[i] = filepath.Join(dir, strconv.Itoa(i))
		if err := os.WriteFile(files[i], m, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	valid = make([][]string, len(messages))
	for _, verifier := range peers.DKIMVerifiers() {
		for i, found := range peers.VerifyDKIM(t, verifier, r, files) {
			for _, s := range found {
				if s.Valid && r.has(s.Domain) {
					valid[i] = append(valid[i], verifier+" "+s.Algorithm)
				}
			}
		}
	}
	return valid
}

// Good is what Foreign says of a good message.
func Good() []string {
	return []string{"opendkim rsa-sha256", "opendkim ed25519-sha256", "dkimpy rsa-sha256", "dkimpy ed25519-sha256", "Mail::DKIM rsa-sha256"}
}
