package acme

import (
	"errors"
	"io/fs"
	"testing"
	"time"

	"postern/internal/pgtest"
)

// TestAnswers: strangers who ask for the answer to a validation ask the database
// seldom, and what is written counts immediately.
func TestAnswers(t *testing.T) {
	t.Parallel()
	const key = "acme/ca.test/challenge_tokens/mail.test.json"
	db := pgtest.New(t)
	one, two := testStorage(t, db, "one"), testStorage(t, db, "two")
	one.answers.age = time.Hour
	ctx := t.Context()
	want := func(text string) {
		t.Helper()
		value, err := one.Load(ctx, key)
		if string(value) != text || (text == "") != errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q, %v; want %q", value, err, text)
		}
	}
	want("")
	must(t, two.Store(ctx, key, []byte("theirs")))
	want("") // the database was asked a moment ago
	one.answers.age = 0
	want("theirs")

	one.answers.age = time.Hour
	must(t, one.Store(ctx, key, []byte("ours")))
	want("ours")
	must(t, two.Store(ctx, key, []byte("theirs")))
	want("ours")
	must(t, one.Delete(ctx, "acme/ca.test/challenge_tokens"))
	want("")
}
