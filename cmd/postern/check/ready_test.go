package check

import "testing"

func TestDialable(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"127.0.0.1:5878": "tcp 127.0.0.1:5878", "0.0.0.0:5878": "tcp localhost:5878", "[::]:5878": "tcp localhost:5878",
		":5878": "tcp localhost:5878", "unix:/run/postern/admin.sock": "unix /run/postern/admin.sock",
	} {
		if network, where := dialable(address); network+" "+where != want {
			t.Errorf("%s is reached at %s %s, want %s", address, network, where, want)
		}
	}
}
