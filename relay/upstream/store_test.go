package upstream

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pgx/v5"

	"postern/internal/pgtest"
	"postern/internal/refusal"
	"postern/internal/smtptest"
	"postern/relay/dkim"
	"postern/relay/seal"
)

func newSealer(t *testing.T, fill byte) *seal.Sealer {
	t.Helper()
	s, err := seal.New(bytes.Repeat([]byte{fill}, seal.KeySize))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func sink() Account {
	return Account{Name: "sink", Host: "127.0.0.1", Port: 2600, TLS: TLSNone, DKIM: dkim.Off}
}

func account() Account {
	return Account{
		Name: "provider", Host: "smtp.provider.example", Port: 587, TLS: TLSRequire,
		Username: "relay", Password: "secret", MaxConnections: 7, DKIM: dkim.Off,
	}
}

func TestStatements(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	conn, err := db.Pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	for name, sql := range map[string]string{
		"addAccount": addAccount, "listAccounts": listAccounts, "removeAccount": removeAccount,
		"loadAccounts": loadAccounts, "knownUpstreams": knownUpstreams,
		"tellExpiring": tellExpiring, "accountForChange": accountForChange, "changeAccount": changeAccount, "pauseAccount": pauseAccount,
		"lockAccount": lockAccount, "loadRows": loadRows, "addRow": addRow, "removeRow": removeRow,
	} {
		if _, err := conn.Conn().Prepare(t.Context(), name, sql); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestUpstreams(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	ctx := t.Context()
	s := NewStore(db.Pool, newSealer(t, 1))
	for _, u := range []Account{sink(), account()} {
		if err := s.Add(ctx, u); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Add(ctx, sink()); !errors.Is(err, refusal.ErrExists) {
		t.Errorf("added twice: %v, want ErrExists", err)
	}
	list, err := s.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	want := []Listed{
		{Account: Account{Name: "provider", Host: "smtp.provider.example", Port: 587, TLS: TLSRequire, Username: "relay", MaxConnections: 7, DKIM: dkim.Off}},
		{Account: Account{Name: "sink", Host: "127.0.0.1", Port: 2600, TLS: TLSNone, DKIM: dkim.Off}},
	}
	if diff := cmp.Diff(want, list, cmpopts.IgnoreFields(Listed{}, "CreatedAt"), cmpopts.EquateEmpty()); diff != "" {
		t.Error(diff)
	}
	var sealed []byte
	if err := db.Pool.QueryRow(ctx, "select password from upstream where name = 'provider'").Scan(&sealed); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(sealed), "secret") {
		t.Error("the database holds the password")
	}
	if err := s.Remove(ctx, "sink"); err != nil {
		t.Error(err)
	}
	if err := s.Remove(ctx, "sink"); !errors.Is(err, refusal.ErrNotFound) {
		t.Errorf("removed twice: %v, want ErrNotFound", err)
	}
	if err := NewStore(db.Pool, nil).Add(ctx, account()); !errors.Is(err, refusal.ErrInvalid) {
		t.Errorf("a password without a key: %v, want ErrInvalid", err)
	}
}

// An upstream whose password does not open is named, and no other.
func TestUnusable(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	ctx := t.Context()
	s := NewStore(db.Pool, newSealer(t, 1))
	for _, u := range []Account{sink(), account()} {
		if err := s.Add(ctx, u); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		sealer *seal.Sealer
		want   int
	}{
		"the key":     {newSealer(t, 1), 0},
		"another key": {newSealer(t, 2), 1},
		"no key":      {nil, 1},
	} {
		usable, bad, err := NewStore(db.Pool, c.sealer).Usable(ctx)
		if err != nil || len(bad) != c.want {
			t.Errorf("%s: %v, %v", name, bad, err)
		}
		want := seal.ErrSeal
		if c.sealer == nil {
			want = ErrNoKey
		}
		if c.want > 0 && !errors.Is(bad["provider"], want) {
			t.Errorf("%s: %v", name, bad["provider"])
		}
		if len(usable) != 2-c.want {
			t.Errorf("%s: %+v", name, usable)
		}
		for _, u := range usable {
			if u.Name == "provider" && u.Password != account().Password {
				t.Errorf("%s: the password is %q", name, u.Password)
			}
		}
	}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	ca := string(smtptest.NewCA(t).PEM())
	ok := map[string]func(*Account){
		"as it is":      func(*Account) {},
		"IPv6":          func(u *Account) { u.Host = "2001:db8::1" },
		"its own CA":    func(u *Account) { u.CA = ca },
		"implicit":      func(u *Account) { u.TLS = TLSImplicit },
		"no account":    func(u *Account) { u.Username, u.Password = "", "" },
		"a final dot":   func(u *Account) { u.Host = "smtp.example.com." },
		"one character": func(u *Account) { u.Password = "x" },
		"two sources":   func(u *Account) { u.Source = "192.0.2.1, 2001:db8::1" },
		"EHLO literal":  func(u *Account) { u.Hello = "[IPv6:2001:db8::1]" },
		"a pin":         func(u *Account) { u.TLSPins = "sha256:x" },
		"a mechanism":   func(u *Account) { u.Mechanism = "LOGIN" },
	}
	for name, change := range ok {
		u := account()
		change(&u)
		if err := u.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	bad := map[string]func(*Account){
		"no name":                func(u *Account) { u.Name = "" },
		"name mx":                func(u *Account) { u.Name = "mx" },
		"name with a space":      func(u *Account) { u.Name = "a b" },
		"upper case name":        func(u *Account) { u.Name = "Sink" },
		"long name":              func(u *Account) { u.Name = strings.Repeat("a", 64) },
		"no host":                func(u *Account) { u.Host = "" },
		"host with a port":       func(u *Account) { u.Host = "example.com:25" },
		"mistyped address":       func(u *Account) { u.Host = "127.0.0.256" },
		"unspecified address":    func(u *Account) { u.Host = "0.0.0.0" },
		"the same, mapped":       func(u *Account) { u.Host = "::ffff:0.0.0.0" },
		"host with a newline":    func(u *Account) { u.Host = "example.com\n" },
		"port 0":                 func(u *Account) { u.Port = 0 },
		"port 65536":             func(u *Account) { u.Port = 65536 },
		"no TLS mode":            func(u *Account) { u.TLS = "" },
		"another TLS mode":       func(u *Account) { u.TLS = "starttls" },
		"account without TLS":    func(u *Account) { u.TLS = TLSNone },
		"account, opportunistic": func(u *Account) { u.TLS = TLSOpportunistic },
		"no password":            func(u *Account) { u.Password = "" },
		"no user":                func(u *Account) { u.Username = "" },
		"NUL in the password":    func(u *Account) { u.Password = "a\x00b" },
		"CRLF in the user name":  func(u *Account) { u.Username = "a\r\nb" },
		"no PEM":                 func(u *Account) { u.CA = "no PEM" },
		"CA without use":         func(u *Account) { u.TLS, u.CA, u.Username, u.Password = TLSNone, ca, "", "" },
		"two sources of IPv4":    func(u *Account) { u.Source = "192.0.2.1,192.0.2.2" },
		"a source by name":       func(u *Account) { u.Source = "eth0" },
		"source of another IP":   func(u *Account) { u.Source, u.IP = "192.0.2.1", IPv6 },
		"IP of no version":       func(u *Account) { u.IP = "5" },
		"host of another IP":     func(u *Account) { u.Host, u.IP = "2001:db8::1", IPv4 },
		"host not of its source": func(u *Account) { u.Host, u.Source = "2001:db8::1", "192.0.2.1" },
		"EHLO with a space":      func(u *Account) { u.Hello = "a b" },
		"EHLO beyond ASCII":      func(u *Account) { u.Hello = "grün.example" },
		"TLS name of two words":  func(u *Account) { u.TLSName = "a b" },
		"pin beside a CA":        func(u *Account) { u.CA, u.TLSPins = ca, "sha256:x" },
		"pin without TLS":        func(u *Account) { u.TLS, u.TLSPins, u.Username, u.Password = TLSNone, "sha256:x", "", "" },
		"mechanism of a token":   func(u *Account) { u.Mechanism = "XOAUTH2" },
		"mechanism, no account":  func(u *Account) { u.Mechanism, u.Username, u.Password = "PLAIN", "", "" },
		"unknown mechanism":      func(u *Account) { u.Mechanism = "CRAM-MD5" },
		"idle for a day":         func(u *Account) { u.IdleSeconds = 86400 },
		"too many connections":   func(u *Account) { u.MaxConnections = mostConnections + 1 },
		"negative connections":   func(u *Account) { u.MaxConnections = -1 },
	}
	for name, change := range bad {
		u := account()
		change(&u)
		if err := u.Validate(); !errors.Is(err, refusal.ErrInvalid) || err.Error() == refusal.ErrInvalid.Error() {
			t.Errorf("%s: %v, want ErrInvalid with a sentence", name, err)
		}
	}
}

func TestRefusesCredentialsInClear(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	_, err := db.Pool.Exec(context.Background(), `insert into upstream (name, host, port, tls, username, password)
		values ('x', 'h', 25, 'opportunistic', 'u', '\x00')`)
	if err == nil {
		t.Error("the table takes credentials without verified TLS")
	}
}

// A change keeps what it does not name, the sealed password among it.
func TestChange(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	ctx := t.Context()
	s := NewStore(db.Pool, newSealer(t, 1)).As("root")
	if err := s.Add(ctx, account()); err != nil {
		t.Fatal(err)
	}
	loaded := func() Account {
		t.Helper()
		list, _, err := s.Usable(ctx)
		if err != nil || len(list) != 1 {
			t.Fatalf("%v, %v", list, err)
		}
		return list[0]
	}
	keyless := NewStore(db.Pool, nil).As("root")
	if _, err := keyless.Change(ctx, "provider", func(a *Account) error { a.Port, a.Preset, a.MaxRecipients = 2587, "m365", 50; return nil }); err != nil {
		t.Fatal(err)
	}
	want := account()
	want.Port, want.Preset, want.MaxRecipients = 2587, "m365", 50
	if got := loaded(); !got.Equal(want) || got.Replies != Table("m365") {
		t.Errorf("%+v, want %+v", got, want)
	}
	if _, err := s.Change(ctx, "provider", func(a *Account) error { a.Username, a.Password = "other", "new secret"; return nil }); err != nil {
		t.Fatal(err)
	}
	want.Username, want.Password = "other", "new secret"
	if got := loaded(); !got.Equal(want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	for name, change := range map[string]func(*Account){
		"a user without a password": func(a *Account) { a.Username = "third" },
		"a password without TLS":    func(a *Account) { a.TLS = TLSNone },
		"no host":                   func(a *Account) { a.Host = "" },
		"an unknown preset":         func(a *Account) { a.Preset = "nope" },
	} {
		if _, err := s.Change(ctx, "provider", func(a *Account) error { change(a); return nil }); !errors.Is(err, refusal.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
	if _, err := keyless.Change(ctx, "provider", func(a *Account) error { a.Password = "x"; return nil }); !errors.Is(err, refusal.ErrInvalid) {
		t.Errorf("a password without a key: %v, want ErrInvalid", err)
	}
	if _, err := s.Change(ctx, "nowhere", func(*Account) error { return nil }); !errors.Is(err, refusal.ErrNotFound) {
		t.Errorf("%v, want ErrNotFound", err)
	}
	if got := loaded(); !got.Equal(want) {
		t.Errorf("what was refused is done: %+v", got)
	}
	if _, err := s.Change(ctx, "provider", func(a *Account) error { a.Username, a.Password = "", ""; return nil }); err != nil {
		t.Fatal(err)
	}
	if got := loaded(); got.Username != "" || got.Password != "" {
		t.Errorf("%+v has an account still", got)
	}
	wantAudit(t, db, []string{
		`upstream add provider`,
		`upstream set provider {"port": 2587, "preset": "m365", "max_recipients": 50}`,
		`upstream set provider {"password": "changed", "username": "other"}`,
		`upstream set provider {"username": ""}`,
	})
}

// wantAudit wants these deeds of root; of "upstream add", which has all settings, without them.
func wantAudit(t *testing.T, db *pgtest.DB, want []string) {
	t.Helper()
	rows, err := db.Pool.Query(t.Context(), `select action || ' ' || object || case action when 'upstream add' then '' else coalesce(' ' || detail::text, '') end
		from audit where actor = 'root' order by id`)
	if err != nil {
		t.Fatal(err)
	}
	got, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// Every setting comes back as it was stored, by Add and by Change.
func TestSettingsAreKept(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	s := NewStore(db.Pool, newSealer(t, 1))
	want := account()
	want.Preset, want.MaxConnections, want.MaxMessages, want.MaxRecipients, want.IdleSeconds = "google", 1, 2, 3, 4
	want.TLSName, want.Mechanism, want.SecretExpires, want.InDoubt = "mail.example", "LOGIN", "2027-01-31", "hold"
	want.DKIM = dkim.Both
	want.Origin = Origin{Source: "192.0.2.1", IP: IPBoth, Hello: "out.example"}
	if err := s.Add(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	same := func(want Account) {
		t.Helper()
		if got, err := s.Open(t.Context(), want.Name); err != nil || !got.Equal(want) {
			t.Errorf("%+v, %v; want %+v", got, err, want)
		}
	}
	same(want)
	_, err := s.Change(t.Context(), want.Name, func(a *Account) error {
		a.CA, a.TLSName, a.TLSPins, a.Mechanism, a.Source, a.IP, a.IdleSeconds = "", "", "sha256:x", "", "", "", 0
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want.TLSName, want.TLSPins, want.Mechanism, want.Source, want.IP, want.IdleSeconds = "", "sha256:x", "", "", "", 0
	same(want)
	if got, err := s.Named(t.Context(), want.Name); err != nil || got.TLSPins != want.TLSPins || got.Origin != want.Origin || got.MaxRecipients != 3 || got.InDoubt != "hold" {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestPins(t *testing.T) {
	t.Parallel()
	leaf := smtptest.NewCA(t).Leaf(t, "a.test").ServerConfig().Certificates[0].Leaf
	sum := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	pins, err := PinsFrom([]string{"sha256:" + hex.EncodeToString(make([]byte, 32)), "sha256:" + hex.EncodeToString(sum[:])})
	if a := (Account{TLSPins: pins}); err != nil || !a.Pinned(leaf) || !strings.HasSuffix(pins, ","+Pin(leaf)) {
		t.Errorf("%q, %v, want %s", pins, err, Pin(leaf))
	}
	for _, bad := range []string{"", "sha256:", "sha256:YQ==", "sha1:" + Pin(leaf), strings.TrimPrefix(Pin(leaf), "sha256:")} {
		if _, err := PinsFrom([]string{bad}); !errors.Is(err, refusal.ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// The mail of a paused upstream waits, and it is none that cannot be used. The feed hears of each change.
func TestPause(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	ctx := t.Context()
	s := NewStore(db.Pool, nil).As("root")
	if err := s.Add(ctx, sink()); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct{ pause, changed bool }{{false, false}, {true, true}, {true, false}, {false, true}} {
		changed, err := s.Pause(ctx, "sink", step.pause)
		if err != nil || changed != step.changed {
			t.Errorf("%+v: %v, %v", step, changed, err)
		}
		accounts, err := s.Load(ctx, db.Pool)
		if err != nil || isPaused(accounts["sink"].Err) != step.pause {
			t.Errorf("%+v: %v, %v", step, accounts["sink"], err)
		}
		l, err := s.Named(ctx, "sink")
		if err != nil || (l.PausedAt != nil) != step.pause {
			t.Errorf("%+v: %v, %v", step, l, err)
		}
		usable, bad, err := s.Usable(ctx)
		if err != nil || len(bad) != 0 {
			t.Errorf("%+v: unusable: %v, %v", step, bad, err)
		}
		if len(usable) != 1 {
			t.Errorf("%+v: usable: %v", step, usable)
		}
	}
	if _, err := s.Pause(ctx, "nowhere", true); !errors.Is(err, refusal.ErrNotFound) {
		t.Errorf("%v, want ErrNotFound", err)
	}
	wantAudit(t, db, []string{"upstream add sink", "upstream pause sink {}", "upstream resume sink {}"})
	if _, err := s.Change(ctx, "sink", func(a *Account) error { a.Port = 2525; return nil }); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(ctx, "sink"); err != nil {
		t.Fatal(err)
	}
	var told string
	if err := db.Pool.QueryRow(ctx, `select string_agg(kind || case kind when 'upstream.added' then '' else ' ' || detail::text end, ', ' order by id) from event
		where object = 'sink' and user_id is null`).Scan(&told); err != nil {
		t.Fatal(err)
	}
	if want := `upstream.added, upstream.paused {}, upstream.resumed {}, upstream.changed {"port": 2525}, upstream.removed {}`; told != want {
		t.Errorf("the feed has %s, want %s", told, want)
	}
}

// Rows that an admin has added come first, in their order.
func TestReplies(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	ctx := t.Context()
	s := NewStore(db.Pool, nil).As("root")
	up := sink()
	up.Preset = "ses"
	if err := s.Add(ctx, up); err != nil {
		t.Fatal(err)
	}
	denied := said(t, "554 Access denied: no")
	judged := func() string {
		t.Helper()
		table, err := s.Replies(ctx, "sink")
		if err != nil {
			t.Fatal(err)
		}
		accounts, err := s.Load(ctx, db.Pool)
		if err != nil {
			t.Fatal(err)
		}
		v, loaded := table.Classify(StageDot, denied), accounts["sink"].Account.Replies.Classify(StageDot, denied)
		if v.Result != loaded.Result || v.Scope != loaded.Scope || v.Wait() != loaded.Wait() {
			t.Errorf("a node takes it for %+v, the shell for %+v", loaded, v)
		}
		return verdictText(v)
	}
	if got := judged(); got != "later account ses" {
		t.Error(got)
	}
	second, err := s.AddReply(ctx, "sink", Row{Code: "55X", Text: " Access  DENIED", Result: Never, Scope: ScopeMessage}, false)
	if err != nil {
		t.Fatal(err)
	}
	if got := judged(); got != "never message " {
		t.Error(got)
	}
	first, err := s.AddReply(ctx, "sink", Row{Code: "554", Stage: StageDot, Result: Later, Scope: ScopeSender, Wait: 2 * time.Hour}, true)
	if err != nil {
		t.Fatal(err)
	}
	if got := judged(); got != "later sender  2h" {
		t.Error(got)
	}
	if _, err := s.AddReply(ctx, "sink", Row{Code: "554", Result: Never, Scope: ScopeAccount}, false); !errors.Is(err, refusal.ErrInvalid) {
		t.Errorf("%v, want ErrInvalid", err)
	}
	if _, err := s.AddReply(ctx, "nowhere", Row{Code: "554", Result: Later, Scope: ScopeAccount}, false); !errors.Is(err, refusal.ErrNotFound) {
		t.Errorf("%v, want ErrNotFound", err)
	}
	if w, err := s.RemoveReply(ctx, "sink", first.ID); err != nil || w.Code != "554" || w.Wait != 2*time.Hour {
		t.Errorf("%+v, %v", w, err)
	}
	for name, id := range map[string]int64{"sink": first.ID, "nowhere": second.ID} {
		if _, err := s.RemoveReply(ctx, name, id); !errors.Is(err, refusal.ErrNotFound) {
			t.Errorf("%s: %v, want ErrNotFound", name, err)
		}
	}
	if got := judged(); got != "never message " {
		t.Error(got)
	}
	// A row that this program cannot read decides nothing.
	if _, err := db.Pool.Exec(ctx, `update upstream_reply set stage = 'later'`); err != nil {
		t.Fatal(err)
	}
	if got := judged(); got != "later account ses" {
		t.Error(got)
	}
	wantAudit(t, db, []string{
		"upstream add sink",
		fmt.Sprintf(`upstream reply add sink {"row": %d, "reply": "55x \"access denied\"", "scope": "message", "result": "never"}`, second.ID),
		fmt.Sprintf(`upstream reply add sink {"row": %d, "wait": "2h0m0s", "reply": "554 at dot", "scope": "sender", "result": "later"}`, first.ID),
		fmt.Sprintf(`upstream reply remove sink {"row": %d, "wait": "2h0m0s", "reply": "554 at dot", "scope": "sender", "result": "later"}`, first.ID),
	})
	if err := s.Remove(ctx, "sink"); err != nil {
		t.Errorf("its rows keep it from being removed: %v", err)
	}
}

// A port that an admin has set stays when TLS is changed.
func TestSetTLS(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		was      TLSMode
		port     int
		mode     TLSMode
		wantPort int
	}{
		{TLSRequire, 587, TLSImplicit, 465},
		{TLSImplicit, 465, TLSRequire, 587},
		{TLSOpportunistic, 25, TLSImplicit, 465},
		{TLSOpportunistic, 25, TLSRequire, 25}, // as of a connector
		{TLSOpportunistic, 2525, TLSRequire, 2525},
		{TLSNone, 27251, TLSOpportunistic, 27251},
		{TLSRequire, 2587, TLSImplicit, 2587},
		{"", 0, TLSRequire, 587},
		{"", 0, TLSNone, 25},
	} {
		a := Account{Name: "a", Host: "h.test", Port: test.port, TLS: test.was}
		a.SetTLS(test.mode)
		if err := a.Fill(); err != nil || a.Port != test.wantPort || a.TLS != test.mode {
			t.Errorf("%+v: port %d, %v", test, a.Port, err)
		}
	}
}

// TestLoadSendsAs: the mailbox is parsed where an account is loaded, and one that a hand has put
// into the table spoils its own upstream only.
func TestLoadSendsAs(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	s := NewStore(db.Pool, newSealer(t, 1))
	for _, name := range []string{"good", "bad", "none"} {
		a := sink()
		if a.Name = name; name != "none" {
			a.RewriteSender = "relay@Example.com"
		}
		if err := s.Add(t.Context(), a); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := db.Pool.Exec(t.Context(), `update upstream set rewrite_sender = 'nonsense' where name = 'bad'`); err != nil {
		t.Fatal(err)
	}
	got, err := s.Load(t.Context(), db.Pool)
	if err != nil {
		t.Fatal(err)
	}
	if good := got["good"]; good.Err != nil || good.Account.SendsAs.String() != "relay@Example.com" {
		t.Errorf("good: %+v", good)
	}
	if none := got["none"]; none.Err != nil || !none.Account.SendsAs.IsNull() {
		t.Errorf("none: %+v", none)
	}
	if bad := got["bad"]; bad.Err == nil || !strings.Contains(bad.Err.Error(), `upstream "bad": sender "nonsense" is not an address`) {
		t.Errorf("bad: %v", bad.Err)
	}
}
