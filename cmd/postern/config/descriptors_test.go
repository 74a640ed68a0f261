package config

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestL2DescriptorsFit: what may be open fits into the limit, and everybody has some.
func TestL2DescriptorsFit(t *testing.T) {
	t.Parallel()
	plain := func(*Config) {}
	for _, test := range []struct {
		limit  uint64
		change func(*Config)
		want   Descriptors
	}{
		{0, plain, Descriptors{1000, 500, 0, 8}},
		{1, plain, Descriptors{1, 1, 1, 2}},
		{64, plain, Descriptors{1, 1, 1, 8}},
		{256, plain, Descriptors{128, 21, 22, 8}},
		{1024, plain, Descriptors{704, 85, 86, 8}},
		{1024, func(c *Config) { c.Submission.Connections = 100 }, Descriptors{100, 286, 288, 8}},
		{1024, func(c *Config) { c.Listeners = nil }, Descriptors{0, 320, 320, 8}},
		{1024, func(c *Config) { c.Database.MaxConnections = 200 }, Descriptors{584, 85, 86, 128}},
		{65536, plain, Descriptors{1000, 500, 63472, 8}},
		{1 << 63, plain, Descriptors{1000, 500, 1<<30 - 64 - 2000, 8}},
	} {
		cfg := Defaults()
		cfg.Listeners = []Listener{{}}
		cfg.Submission.Connections = 1000
		test.change(&cfg)
		got := cfg.Fit(test.limit)
		if got != test.want {
			t.Errorf("%d: %+v, want %+v", test.limit, got, test.want)
		}
		own := ownDescriptors + max(0, got.Database-plainDatabase)
		if all := uint64(got.Connections + 2*got.Deliveries + got.Files + own); test.limit >= 128 && all > test.limit {
			t.Errorf("%d: %d may be open", test.limit, all)
		}
		if cut := cfg.Cuts(got) != ""; cut != (test.limit > 0 && test.limit <= 1024) {
			t.Errorf("%d: %q", test.limit, cfg.Cuts(got))
		}
	}
}

// The page and the check count a node's connections alike.
func TestNodeConnections(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../../docs/postgres.md")
	if err != nil {
		t.Fatal(err)
	}
	c := Defaults()
	all := c.NodeConnections()
	want := fmt.Sprintf("A node takes up to %d connections and those of `database.max_connections`, %d with the defaults, and three more with `[acme]`",
		all-c.Database.MaxConnections, all)
	if !strings.Contains(strings.Join(strings.Fields(string(page)), " "), want) {
		t.Errorf("docs/postgres.md does not say: %s", want)
	}
	c.ACME.Names = []string{"relay.test"}
	if n := c.NodeConnections(); n != all+3 {
		t.Errorf("%d with [acme]", n)
	}
	c.Alerts.Mail = []string{"ops@example.com"}
	if n := c.NodeConnections(); n != all+3+2 {
		t.Errorf("%d with [alerts] as well", n)
	}
}
