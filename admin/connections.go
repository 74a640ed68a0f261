package admin

import (
	"context"
	"net"
	"net/http"

	"postern/internal/crowd"
)

type connectionKey struct{}

// withConnection lets a request find its connection; it is for http.Server.ConnContext.
func withConnection(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, connectionKey{}, conn)
}

// serving keeps a connection while a request on it is in work: a client that holds
// connections open must not prevent the next look at this node's health.
func serving(pages http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if guest, ok := r.Context().Value(connectionKey{}).(*crowd.Guest); ok {
			guest.Serve(func() { pages.ServeHTTP(w, r) })
			return
		}
		pages.ServeHTTP(w, r)
	})
}
