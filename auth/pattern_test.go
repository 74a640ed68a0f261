package auth

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The shortest pattern there is has room in its column.
func TestNullSenderIsStored(t *testing.T) {
	t.Parallel()
	got, err := testStore(t).AddUser(context.Background(), NewUser{Name: "a@b", Password: "secret", Senders: []string{NullSender, "a@b"}})
	must(t, err)
	if diff := cmp.Diff([]string{NullSender, "a@b"}, got.Senders); diff != "" {
		t.Error(diff)
	}
}
