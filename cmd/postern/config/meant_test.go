package config

import "testing"

func TestConfigMeant(t *testing.T) {
	t.Parallel()
	if got := configMeant("weather"); got != "" {
		t.Errorf("a key like none: %q", got)
	}
}
