package admin

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"slices"
	"strings"

	"postern/internal/owned"
)

// minToken is the least that a token has, in characters.
const minToken = 16

// ReadToken reads the token from a file; white space around it does not count. A file that
// everybody may change is refused; one that everybody may read is reported to exposed.
func ReadToken(file string, exposed func(error)) (string, error) {
	text, err := owned.ReadSecret(file, exposed)
	if err != nil {
		return "", fmt.Errorf("admin token: %w", err)
	}
	token := strings.TrimSpace(string(text))
	if len(token) < minToken || strings.ContainsAny(token, " \t\r\n") {
		return "", fmt.Errorf("admin token: %s must hold one word of at least %d characters; make one with: openssl rand -hex 32", file, minToken)
	}
	return token, nil
}

// knows reports that a request may see everything.
func (s *Server) knows(r *http.Request) bool {
	if s.cfg.Token == "" {
		return true
	}
	scheme, given, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	// Sums are compared, so that the time tells nothing of the length either.
	a, b := sha256.Sum256([]byte(given)), sha256.Sum256([]byte(s.cfg.Token))
	return strings.EqualFold(scheme, "Bearer") && subtle.ConstantTimeCompare(a[:], b[:]) == 1
}

// guarded shows a page to those who know the token.
func (s *Server) guarded(page http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.knows(r) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="postern"`)
			writeText(w, http.StatusUnauthorized, "this needs the token of [admin] token_file: Authorization: Bearer TOKEN\n")
			return
		}
		page.ServeHTTP(w, r)
	})
}

// meant refuses requests for a name that is not this server's: a web page that somebody
// on this machine looks at can have its own name lead here (DNS rebinding), and would read
// what is answered. It is for pages that ask for no token, which such a page has not got.
// An address cannot be led elsewhere, and a client without a Host field is no browser.
func (s *Server) meant(pages http.Handler) http.Handler {
	if s.cfg.Token != "" || strings.HasPrefix(s.cfg.Address, unixPrefix) {
		return pages
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.isOurs(r.Host) {
			writeText(w, http.StatusMisdirectedRequest, "this server does not have that name: use localhost or an address, or add the name to hosts in [admin]\n")
			return
		}
		pages.ServeHTTP(w, r)
	})
}

// isOurs judges a Host field: a name or an address, perhaps with a port.
func (s *Server) isOurs(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.Trim(host, "[]")
	if _, err := netip.ParseAddr(host); err == nil || host == "" {
		return true
	}
	same := func(name string) bool { return strings.EqualFold(name, strings.TrimSuffix(host, ".")) }
	return same("localhost") || slices.ContainsFunc(s.cfg.Hosts, same)
}

// safe keeps a defect of one page from the others and from the client, and pages from
// being kept by anybody on the way.
func (s *Server) safe(pages http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		defer func() {
			p := recover()
			if p == nil {
				return
			}
			if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
				panic(p) // net/http's own way to drop a connection; it says nothing
			}
			if s.lines.Allow("admin: panic", netip.AddrPort{}) {
				s.cfg.Log.Error("admin: panic", "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
			}
			writeText(w, http.StatusInternalServerError, "internal error\n")
		}()
		pages.ServeHTTP(w, r)
	})
}
