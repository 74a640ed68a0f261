package main

import "testing"

// TestL2DescriptorsFit: what may be open fits into the limit, and everybody has some.
func TestL2DescriptorsFit(t *testing.T) {
	t.Parallel()
	plain := func(*config) {}
	for _, test := range []struct {
		limit  uint64
		change func(*config)
		want   descriptors
	}{
		{0, plain, descriptors{1000, 500, 0, 8}},
		{1, plain, descriptors{1, 1, 1, 2}},
		{64, plain, descriptors{1, 1, 1, 8}},
		{256, plain, descriptors{128, 21, 22, 8}},
		{1024, plain, descriptors{704, 85, 86, 8}},
		{1024, func(c *config) { c.Submission.Connections = 100 }, descriptors{100, 286, 288, 8}},
		{1024, func(c *config) { c.Listeners = nil }, descriptors{0, 320, 320, 8}},
		{1024, func(c *config) { c.Database.MaxConnections = 200 }, descriptors{584, 85, 86, 128}},
		{65536, plain, descriptors{1000, 500, 63472, 8}},
		{1 << 63, plain, descriptors{1000, 500, 1<<30 - 64 - 2000, 8}},
	} {
		cfg := defaultConfig()
		cfg.Listeners = []listenerConfig{{}}
		cfg.Submission.Connections = 1000
		test.change(&cfg)
		got := cfg.fit(test.limit)
		if got != test.want {
			t.Errorf("%d: %+v, want %+v", test.limit, got, test.want)
		}
		own := ownDescriptors + max(0, got.database-plainDatabase)
		if all := uint64(got.connections + 2*got.deliveries + got.files + own); test.limit >= 128 && all > test.limit {
			t.Errorf("%d: %d may be open", test.limit, all)
		}
		if cut := cfg.cuts(got) != ""; cut != (test.limit > 0 && test.limit <= 1024) {
			t.Errorf("%d: %q", test.limit, cfg.cuts(got))
		}
	}
}
