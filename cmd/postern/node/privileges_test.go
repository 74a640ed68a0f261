package node

import (
	"context"
	"crypto/rand"
	"log/slog"
	"net/url"
	"strings"
	"testing"
	"time"

	"postern/cmd/postern/config"
	"postern/cmd/postern/database"
	"postern/internal/pgtest"
)

// A node does not start with a role that could not write down what becomes of mail, and
// says which GRANTs are missing.
func TestL2NodeWithoutPrivileges(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	role := "reader_" + strings.ToLower(rand.Text()[:12])
	sql := func(ctx context.Context, statement string) {
		if _, err := db.Pool.Exec(ctx, statement); err != nil {
			t.Errorf("%s: %v", statement, err)
		}
	}
	sql(t.Context(), "create role "+role)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		sql(ctx, "drop owned by "+role+"; drop role "+role)
	})
	sql(t.Context(), "grant select on all tables in schema public to "+role)
	u, err := url.Parse(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	query := u.Query()
	query.Set("options", "-crole="+role)
	u.RawQuery = query.Encode()
	cfg := config.Defaults()
	cfg.Hostname, cfg.Admin.Address = "relay.test", ""
	_, err = Build(t.Context(), Setup{Config: cfg, URL: u.String(), Only: "delivery", Log: slog.New(slog.DiscardHandler), Database: new(database.Connector)})
	if err == nil || !strings.Contains(err.Error(), " on history to "+role) {
		t.Errorf("a node: %v", err)
	}
}
