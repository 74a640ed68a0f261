package config

import (
	"fmt"
	"os"
	"testing"
)

// The file that explains every key must be one that the program takes, with the
// defaults that it claims.
func TestConfigFileHasEveryDefault(t *testing.T) {
	t.Parallel()
	got, err := Read("../../../configs/postern.toml")
	if err != nil {
		t.Fatal(err)
	}
	want := Defaults()
	for _, pair := range []struct {
		name      string
		got, want any
	}{
		{"submission", got.Submission, want.Submission},
		{"queue", got.Queue, want.Queue},
		{"delivery", got.Delivery, want.Delivery},
		{"log", got.Log, want.Log},
		{"admin", got.Admin, want.Admin},
		{"database.max_connections", got.Database.MaxConnections, want.Database.MaxConnections},
	} {
		if fmt.Sprint(pair.got) != fmt.Sprint(pair.want) {
			t.Errorf("%s: the file says %+v, the default is %+v", pair.name, pair.got, pair.want)
		}
	}
}

// Every key of the configuration has its line in the file that explains them.
func TestConfigFileHasEveryKey(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../../configs/postern.toml")
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range configKeys(t) {
		if !hasKey(string(text), key) {
			t.Errorf("configs/postern.toml does not explain %s", key)
		}
	}
}
