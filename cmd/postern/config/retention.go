package config

import (
	"fmt"
	"time"
)

// Retention says how long is kept what is not mail: docs/retention.md.
type Retention struct {
	Audit          Duration `toml:"audit"`
	Correspondents Duration `toml:"correspondents"`
}

// validateRetention refuses what would delete what is still in use. A commit in doubt
// is looked up in the history for a minute, and an hour is of use to a person.
func (c *Config) validateRetention() error {
	for _, k := range []struct {
		key     string
		value   Duration
		atLeast time.Duration
		text    string
	}{
		{"queue.history", c.Queue.History, time.Hour, "1h"},
		{"retention.audit", c.Retention.Audit, 24 * time.Hour, "1d"},
		{"retention.correspondents", c.Retention.Correspondents, 24 * time.Hour, "1d"},
	} {
		if time.Duration(k.value) < k.atLeast {
			return fmt.Errorf("%s must be at least %s", k.key, k.text)
		}
	}
	return nil
}
