package auth

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/bcrypt"
)

const argon = "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4"

func TestParseImport(t *testing.T) {
	t.Parallel()
	file := "\xef\xbb\xbfName,password,HASH,senders\r\n" +
		"Alice@Example.COM,\"a,\"\"b\",,*@Example.com b@c\r\n" +
		"\r\n" +
		"bob@example.com,,\"" + argon + "\",\r\n" +
		" carol ,,,<> c@d\r\n"
	got, err := ParseImport(strings.NewReader(file))
	must(t, err)
	want := []ImportUser{
		{Line: 2, Name: "alice@example.com", Password: `a,"b`, Senders: []string{"*@example.com", "b@c"}},
		{Line: 4, Name: "bob@example.com", Hash: argon, Senders: []string{}},
		{Line: 5, Name: "carol", Senders: []string{"<>", "c@d"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	got, err = ParseImport(strings.NewReader("name,senders,resend\nx,a@b C@d,c@D *@e\ny,,z@b\n"))
	want = []ImportUser{
		{Line: 2, Name: "x", Senders: []string{"a@b", "c@d", "*@e"}, Resend: []string{"c@d", "*@e"}},
		{Line: 3, Name: "y", Senders: []string{"z@b"}, Resend: []string{"z@b"}},
	}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
	if got, err := ParseImport(strings.NewReader("senders,name\na@b,x\n")); err != nil || len(got) != 1 || got[0].Name != "x" {
		t.Errorf("other columns: %+v, %v", got, err)
	}
}

func TestParseImportNamesTheLine(t *testing.T) {
	t.Parallel()
	const head = "name,password,hash,senders\n"
	for _, tt := range []struct{ file, want string }{
		{"", "line 1 must name the columns"},
		{"a@b,pw,,\n", `line 1: column "a@b"`},
		{"name,name\n", "at most once"},
		{"password,hash\n", `names no column "name"`},
		{head + "a@b,pw\n", "line 2: it has 2 fields, the first line has 4"},
		{head + "\n\na b,pw,,\n", `line 4: name "a b"`},
		{head + "a@b,pw,,\n\"A@b\",pw,,\n", "line 3: a@b is on line 2 already: remove one"},
		{head + "a@b,," + argon + ",\n", "line 2: it has 6 fields, the first line has 4: put fields with a comma, such as argon2id"},
		{head + "a@b,pw,\"" + argon + "\",\n", "line 2: there is a password and a hash"},
		{head + "a@b,\"p\nq\",,\n", "line 2: not a valid password"},
		{head + "a@b,,$1$md5,\n", "line 2: the hash is neither bcrypt"},
		{head + "a@b,,\"$argon2id$v=19$m=4194304,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4\",\n", "up to 131072 KiB"},
		{head + "a@b,pw,,nothing\n", "line 2: senders: not a valid sender pattern"},
		{head + "word,pw,,\n", "line 2: word is not an address: name in senders"},
		{head + "a@b,\"pw,,\n", "line"},
		{"name,resend\na@b,<>\n", "line 2: resend: not a valid sender pattern"},
		{"name,resend\na@b,nothing\n", "line 2: resend: not a valid sender pattern"},
	} {
		users, err := ParseImport(strings.NewReader(tt.file))
		if !errors.Is(err, ErrImport) || !strings.Contains(err.Error(), tt.want) || len(users) > 1 {
			t.Errorf("%q: %v, want %q", tt.file, err, tt.want)
		}
	}
	_, err := ParseImport(strings.NewReader(head + strings.Repeat("a b,,,\n", 1000)))
	if n := strings.Count(err.Error(), "line "); n != importErrors {
		t.Errorf("%d errors", n)
	}
}

func TestImportErrorAnd(t *testing.T) {
	t.Parallel()
	bad := errors.New("bad")
	e := &ImportError{[]LineError{{3, bad}, {9, bad}}}
	got := e.And([]LineError{{2, ErrExists}, {7, ErrExists}})
	if diff := cmp.Diff("the file cannot be imported: line 2: already exists\nline 3: bad\nline 7: already exists\nline 9: bad", got.Error()); diff != "" {
		t.Error(diff)
	}
	if !errors.Is(got, ErrImport) || !errors.Is(got, ErrExists) || !errors.Is(got, bad) || errors.Is(e, ErrExists) {
		t.Errorf("%v is not what it says", got)
	}
	for range importErrors {
		got = got.And([]LineError{{1, bad}})
	}
	if len(got.Lines) != importErrors || got.Lines[importErrors-1].Line != 1 {
		t.Errorf("lines %v", got.Lines)
	}
}

func FuzzParseImport(f *testing.F) {
	f.Add("name,password,hash,senders\na@b,pw,,*@b\n")
	f.Fuzz(func(t *testing.T, file string) {
		users, err := ParseImport(strings.NewReader(file))
		for _, u := range users {
			if name, err := CanonicalName(u.Name); err != nil || name != u.Name || u.Password != "" && u.Hash != "" {
				t.Fatalf("%+v", u)
			}
		}
		if err != nil && !errors.Is(err, ErrImport) {
			t.Fatal(err)
		}
	})
}

func TestStoreImport(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := testStore(t)
	_, err := s.AddUser(ctx, NewUser{Name: "there"})
	must(t, err)
	bc, err := bcrypt.GenerateFromPassword([]byte("pw1"), bcrypt.MinCost)
	must(t, err)
	users := []ImportUser{{Name: "user0", Password: "pw0", Senders: []string{"a@b", "c@d"}, Resend: []string{"c@d"}}, {Name: "user1", Hash: string(bc)}, {Name: "user2"}}
	for i := 3; i < 2*importBatch; i++ {
		users = append(users, ImportUser{Name: fmt.Sprint("user", i)})
	}
	count := func() (n int) {
		must(t, s.db.QueryRow(ctx, `select count(*) from app_user`).Scan(&n))
		return n
	}
	taken := append(users[:len(users):len(users)], ImportUser{Name: "there", Line: 4711})
	for _, dryRun := range []bool{true, false} {
		if n, err := s.Import(ctx, taken, dryRun); !errors.Is(err, ErrExists) || !strings.Contains(err.Error(), "line 4711: user there: already exists") || n != 0 || count() != 1 {
			t.Errorf("dry run %v: %d, %v, %d users", dryRun, n, err, count())
		}
	}
	if n, err := s.Import(ctx, users, true); err != nil || n != len(users) || count() != 1 {
		t.Errorf("dry run: %d, %v, %d users", n, err, count())
	}
	if n, err := s.Import(ctx, users, false); err != nil || n != len(users) || count() != len(users)+1 {
		t.Errorf("%d, %v, %d users", n, err, count())
	}
	a := newAuthenticator(s, cheap, patient)
	for i, password := range []string{"pw0", "pw1"} {
		id, err := a.Verify(ctx, users[i].Name, password, at(ip(i)))
		if err != nil || len(id.Senders) != len(users[i].Senders) || !slices.Equal(id.Resend, users[i].Resend) {
			t.Errorf("%s: %+v, %v", users[i].Name, id, err)
		}
	}
	if u, err := s.User(ctx, "user2"); err != nil || u.HasPassword || u.Credentials != 0 {
		t.Errorf("user2 = %+v, %v", u, err)
	}
}
