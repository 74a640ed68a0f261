package acme

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"postern/internal/crowd"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3"
)

// validationTime bounds one connection of an authority that validates.
const validationTime = 10 * time.Second

// validations is how many of them are answered concurrently; an authority needs a few.
const validations = 64

// responder answers an authority's validations on a standing port. Behind a balancer
// they may come to any node: the answer is in memory or in the storage.
type responder struct {
	listener net.Listener
	serve    func() error
	close    func()
	done     chan struct{}
}

// listenFor opens a port that validations come to.
func listenFor(challenge Challenge, address string) (net.Listener, error) {
	ln, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s for the validations of %s: %w", address, challenge, err)
	}
	return ln, nil
}

func (r *responder) start(log *slog.Logger) {
	r.done = make(chan struct{})
	go func() {
		defer close(r.done)
		if err := r.serve(); err != nil {
			log.Error("no longer answering validations", "address", r.listener.Addr().String(), "error", err)
		}
	}()
}

func (r *responder) stop() {
	r.close()
	if r.done != nil {
		<-r.done
	}
}

// respondHTTP answers HTTP-01 (RFC 8555 section 8.3) for our names, and nothing else.
func respondHTTP(ln net.Listener, issuer *certmagic.ACMEIssuer, cfg Config) *responder {
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !ourHost(r.Host, cfg.Names) || !issuer.HandleHTTPChallenge(w, r) {
				http.NotFound(w, r)
			}
		}),
		ReadHeaderTimeout: cfg.validationTime, ReadTimeout: cfg.validationTime,
		WriteTimeout: 2 * cfg.validationTime, IdleTimeout: cfg.validationTime,
		MaxHeaderBytes: 8 << 10,
		ErrorLog:       slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug), // what strangers send
	}
	return &responder{
		listener: ln,
		serve: func() error {
			err := server.Serve(crowd.New(ln, validations))
			if errors.Is(err, http.ErrServerClosed) {
				return nil
			}
			return err
		},
		close: func() { _ = server.Close(); _ = ln.Close() },
	}
}

// ourHost keeps strangers from asking the database about other names.
func ourHost(host string, names []string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	return slices.Contains(names, strings.ToLower(host))
}

// respondTLSALPN answers TLS-ALPN-01 (RFC 8737): a handshake is all there is.
func respondTLSALPN(ln net.Listener, config *certmagic.Config, cfg Config) *responder {
	conf := &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{acmez.ACMETLS1Protocol},
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if !ourHost(hello.ServerName, cfg.Names) || !slices.Equal(hello.SupportedProtos, []string{acmez.ACMETLS1Protocol}) {
				return nil, errors.New("only validations are answered here")
			}
			return config.GetCertificate(hello)
		},
	}
	ctx, cancel := context.WithCancel(context.Background())
	limited := crowd.New(ln, validations)
	return &responder{
		listener: ln,
		serve: func() error {
			for {
				conn, err := limited.Accept()
				switch {
				case ctx.Err() != nil:
					return nil
				case errors.Is(err, net.ErrClosed):
					return err
				case err != nil: // too many descriptors, or a client that has gone
					time.Sleep(10 * time.Millisecond)
					continue
				}
				go func() {
					_ = cfg.Guard.Try("certificate: a validation", func() error {
						validateTLS(ctx, conn, conf, cfg.validationTime)
						return nil
					})
				}()
			}
		},
		close: func() { cancel(); _ = ln.Close() },
	}
}

func validateTLS(ctx context.Context, conn net.Conn, conf *tls.Config, within time.Duration) {
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	_ = tls.Server(conn, conf).HandshakeContext(ctx) // the authority tells what was wrong with it
}
