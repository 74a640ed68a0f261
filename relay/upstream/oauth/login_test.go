package oauth

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"postern/internal/oauthtest"
)

func (c *cluster) login(a Account) *Login {
	c.t.Helper()
	l, err := NewLogin(Config{Authorities: at(c.Authority), Roots: c.Roots}, a)
	if err != nil {
		c.t.Fatal(err)
	}
	return l
}

func (c *cluster) save(l *Login) error {
	c.t.Helper()
	tx, err := c.db.Pool.Begin(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if err := l.Save(c.t.Context(), tx, sealer(c.t)); err != nil {
		return err
	}
	return tx.Commit(c.t.Context())
}

func person1(t testing.TB) Account {
	return Account{Upstream: "m365", Username: "relay@example.com", Grant: byPerson(t)}
}

func TestLoginByBrowser(t *testing.T) {
	t.Parallel()
	c, a := newCluster(t), person1(t)
	node := c.node("a", c.db.Pool)
	var f *Fault
	if _, err := node.Token(t.Context(), a); !errors.As(err, &f) || !f.Login {
		t.Fatalf("a token before anybody logged in: %v", err)
	}
	l := c.login(a)
	address := l.URL()
	for _, part := range []string{"/contoso.example/oauth2/v2.0/authorize?", "code_challenge_method=S256", "login_hint=relay%40example.com",
		"SMTP.Send+offline_access", "redirect_uri=http%3A%2F%2Flocalhost&"} {
		if !strings.Contains(address, part) {
			t.Errorf("%s has no %s", address, part)
		}
	}
	end, err := c.Allow(address)
	if err != nil {
		t.Fatal(err)
	}
	for pasted, want := range map[string]string{
		"":                                    "not the address",
		"https://evil.example/?code=1":        "not the address",
		"http://localhost/?code=1&state=else": "belongs to another login",
		"http://localhost/?state=" + l.state:  "no code",
		"http://localhost/?error=access_denied&error_description=no&state=" + l.state: "access_denied: ",
	} {
		if err := l.Paste(t.Context(), pasted); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", pasted, err, want)
		}
	}
	if err := c.save(l); err == nil {
		t.Error("nothing was given, and it was saved")
	}
	if err := l.Paste(t.Context(), " "+end+"\n"); err != nil {
		t.Fatal(err)
	}
	if err := l.Paste(t.Context(), end); err == nil || strings.Contains(err.Error(), l.verifier) {
		t.Errorf("a code is good twice: %v", err)
	}
	if err := c.save(l); err == nil {
		t.Error("a failed login was saved")
	}
	end, err = c.Allow(l.URL())
	if err == nil {
		err = l.Paste(t.Context(), end)
	}
	if err == nil {
		err = c.save(l)
	}
	if err != nil {
		t.Fatal(err)
	}
	requests := len(c.Requests())
	token := must(t, c.node("b", c.db.Pool), a)
	if c.Valid(token.Access) != "person" || len(c.Requests()) != requests {
		t.Error("the token is not that of the login")
	}
	c.expire()
	if token = must(t, c.node("c", c.db.Pool), a); c.Valid(token.Access) != "person" {
		t.Error("the refresh token is not that of the login")
	}
}

func TestLoginByDevice(t *testing.T) {
	t.Parallel()
	c, a := newCluster(t), person1(t)
	l := c.login(a)
	err := l.Device(t.Context(), func(address, code string, until time.Time) {
		if address != "https://microsoft.example/devicelogin" || code != "ABCD-EFGH" || time.Until(until) > time.Minute {
			t.Errorf("%s, %s, %v", address, code, until)
		}
		c.Type()
	})
	if err == nil {
		err = c.save(l)
	}
	if err != nil {
		t.Fatal(err)
	}
	must(t, c.node("a", c.db.Pool), a)

	a.Grant = complete(t, Grant{Kind: RefreshToken, ClientID: "app-1"})
	if err := c.login(a).Device(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "with a browser") {
		t.Errorf("Google: %v", err)
	}
	if _, err := NewLogin(Config{}, credentials(t)); err == nil {
		t.Error("a login where nobody logs in")
	}
}

// A login wins over a node that asks with the former refresh token meanwhile.
func TestLoginWhileRefreshing(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	a := c.refreshing()
	l := c.login(a)
	end, err := c.Allow(l.URL())
	if err == nil {
		err = l.Paste(t.Context(), end)
	}
	if err != nil {
		t.Fatal(err)
	}
	c.Set(func(s *oauthtest.Settings) {
		s.Given = func(map[string][]string) {
			if err := c.save(l); err != nil {
				t.Error(err)
			}
		}
	})
	if token := must(t, c.node("a", c.db.Pool), a); token.Access != l.got.Access {
		t.Error("the login's token was replaced")
	}
}
