package webhook

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"postern/internal/dnstest"
	"postern/internal/refusal"
	"postern/internal/special"
)

func allow(t *testing.T, list ...string) Allow {
	t.Helper()
	a, err := ParseAllow(list)
	must(t, err)
	return a
}

func TestParseAllow(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"", "hooks.internal", "10.0.0.0", ":80", "hooks.internal:", "10.0.0.0/33"} {
		if _, err := ParseAllow([]string{bad}); err == nil {
			t.Errorf("%q is allowed", bad)
		}
	}
	allow(t, "10.0.0.0/8", "fd00::/8", "hooks.internal:8443", "[::1]:80")
}

// Parse takes public https endpoints, and others that are allowed.
func TestURLs(t *testing.T) {
	t.Parallel()
	inside := []string{"10.0.0.0/8", "hooks.internal:8080", "[::1]:443"}
	for _, c := range []struct {
		url         string
		none, allow bool
	}{
		{"https://example.com/hook?a=b", true, true},
		{"https://EXAMPLE.com:8443", true, true},
		{"https://8.8.8.8/", true, true},
		{"http://example.com/", false, true}, // its address decides
		{"http://hooks.internal:8080/", false, true},
		{"https://10.1.2.3/", false, true},
		{"http://10.1.2.3/", false, true},
		{"http://[::ffff:10.1.2.3]/", false, true},
		{"https://[::1]/", false, true},
		{"https://[::1]:444/", false, false},
		{"https://127.0.0.1/", false, false},
		{"https://[::ffff:127.0.0.1]/", false, false},
		{"https://169.254.169.254/latest", false, false},
		{"https://[64:ff9b::7f00:1]/", false, false},
		{"https://[64:ff9b:1::7f00:1]/", false, false},
		{"https://[::ffff:169.254.169.254]/", false, false},
		{"https://user:secret@example.com/", false, false},
		{"https://example.com/#part", false, false},
		{"ftp://example.com/", false, false},
		{"https:///hook", false, false},
		{"https://:443/", false, false},
		{"mailto:a@example.com", false, false},
		{"example.com", false, false},
		{"", false, false},
		{"https://example.com/" + strings.Repeat("a", MaxURL), false, false},
	} {
		for a, want := range map[*Allow]bool{{}: c.none, new(allow(t, inside...)): c.allow} {
			_, err := a.Parse(c.url)
			if (err == nil) != want || err != nil && !errors.Is(err, refusal.ErrInvalid) {
				t.Errorf("%s with %v: %v", c.url, a, err)
			}
		}
	}
}

// The address that is dialled counts.
func TestDialGuard(t *testing.T) {
	t.Parallel()
	a := allow(t, "10.0.0.0/8", "hooks.internal:80", "hooks.internal:443")
	for _, c := range []struct {
		url, address string
		want         error
	}{
		{"https://example.com", "8.8.8.8", nil},
		{"https://example.com", "10.9.9.9", nil},
		{"https://example.com", "127.0.0.1", special.Err},
		{"https://example.com", "::ffff:127.0.0.1", special.Err},
		{"https://example.com", "169.254.169.254", special.Err},
		{"https://example.com", "64:ff9b::10.0.0.1", special.Err},
		{"https://example.com", "64:ff9b::7f00:1", special.Err},
		{"https://example.com", "64:ff9b:1::1", special.Err},
		{"https://example.com", "fe80::1%lo", special.Err},
		{"https://example.com", "::ffff:10.0.0.1", nil},
		{"http://example.com", "10.9.9.9", nil},
		{"http://example.com", "8.8.8.8", errClear},
		{"http://hooks.internal", "8.8.8.8", nil},
		{"https://hooks.internal", "127.0.0.1", nil},
	} {
		u, err := url.Parse(c.url)
		must(t, err)
		control := a.control(u)
		err = nil
		if control != nil {
			err = control("tcp", netip.AddrPortFrom(netip.MustParseAddr(c.address), 443).String(), nil)
		}
		if !errors.Is(err, c.want) || c.want == nil && err != nil {
			t.Errorf("%s at %s: %v", c.url, c.address, err)
		}
	}
}

// inner is a server inside, and how many connections it has had.
func inner(t *testing.T) (*httptest.Server, *atomic.Int32) {
	t.Helper()
	var n atomic.Int32
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			n.Add(1)
		}
	}
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // of clients that do not trust it
	s.StartTLS()
	t.Cleanup(s.Close)
	return s, &n
}

// A name that was public when it was added, and leads inside when it is asked for again.
func TestRebinding(t *testing.T) {
	t.Parallel()
	server, conns := inner(t)
	zones := &dnstest.Zones{}
	zones.AddHost("rebinds.test", "127.0.0.1")
	address := zones.Serve(t)
	names := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}}
	u, err := url.Parse(server.URL)
	must(t, err)
	a, err := Send(t.Context(), Reach{Resolver: names}, "https://rebinds.test:"+u.Port()+"/", []Secret{newSecret()}, "id", nil)
	must(t, err)
	if !errors.Is(a.Err, special.Err) || conns.Load() != 0 {
		t.Errorf("%v, %d connections", a.Err, conns.Load())
	}
}

// An endpoint whose name leads inside is refused before it is asked, with the entry that it needs.
func TestCheck(t *testing.T) {
	t.Parallel()
	zones := &dnstest.Zones{}
	zones.AddHost("inside.test", "10.1.2.3")
	zones.AddHost("outside.test", "8.8.8.8")
	address := zones.Serve(t)
	r := Reach{Resolver: &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}}}
	for _, c := range []struct {
		allow, url, want string
	}{
		{"", "https://inside.test/", `it needs an entry in [webhooks] allow, as "inside.test:443"`},
		{"", "https://127.0.0.1:8443/", `it needs an entry in [webhooks] allow, as "127.0.0.1:8443"`},
		{"", "https://outside.test/", ""},
		{"", "https://nothing.test/", ""},
		{"10.0.0.0/8", "https://inside.test/", ""},
		{"inside.test:443", "https://inside.test/", ""},
		{"inside.test:443", "https://inside.test:8443/", `as "inside.test:8443"`},
		{"10.0.0.0/8", "http://outside.test/", `http needs an entry in [webhooks] allow, as "outside.test:80"`},
	} {
		r.Allow = Allow{}
		if c.allow != "" {
			r.Allow = allow(t, c.allow)
		}
		err := r.Check(t.Context(), c.url)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s with %q: %v", c.url, c.allow, err)
		}
	}
}

// A redirect is not followed, wherever it leads.
func TestRedirect(t *testing.T) {
	t.Parallel()
	server, conns := inner(t)
	outer := newReceiver(t, func(w http.ResponseWriter, _ request) {
		w.Header().Set("Location", server.URL)
		w.WriteHeader(http.StatusTemporaryRedirect)
	})
	a, err := Send(t.Context(), Reach{Allow: allow(t, "127.0.0.0/8")}, outer.URL, []Secret{newSecret()}, "id", nil)
	must(t, err)
	if a.Err == nil || a.Status != http.StatusTemporaryRedirect || conns.Load() != 0 {
		t.Errorf("%+v, %d connections", a, conns.Load())
	}
}

// An answer is read in part, and a certificate is verified.
func TestAnswers(t *testing.T) {
	t.Parallel()
	reach := Reach{Allow: allow(t, "127.0.0.0/8")}
	long := newReceiver(t, func(w http.ResponseWriter, _ request) {
		_, _ = w.Write([]byte(strings.Repeat("\u00e4\x00", 100_000)))
	})
	a, err := Send(t.Context(), reach, long.URL, []Secret{newSecret()}, "id", nil)
	must(t, err)
	if a.Err != nil || len(a.Body) > keptAnswer || strings.Contains(a.Body, "\x00") {
		t.Errorf("%d octets, %v", len(a.Body), a.Err)
	}
	server, _ := inner(t)
	if a, err := Send(t.Context(), reach, server.URL, []Secret{newSecret()}, "id", nil); err != nil || a.Err == nil || a.Status != 0 {
		t.Errorf("an unknown certificate: %+v, %v", a, err)
	}
	reach.Roots = server.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	if a, err := Send(t.Context(), reach, server.URL, []Secret{newSecret()}, "id", nil); err != nil || a.Err != nil {
		t.Errorf("%+v, %v", a, err)
	}
}
