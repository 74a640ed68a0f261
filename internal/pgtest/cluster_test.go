package pgtest

import "testing"

func TestDatabaseURL(t *testing.T) {
	t.Parallel()
	tests := []struct{ admin, want string }{
		{"postgres://u:p@h:5433/postgres?sslmode=disable", "postgres://u:p@h:5433/db?sslmode=disable"},
		{"postgres://u@/?host=%2Ftmp%2Fs", "postgres://u@/db?host=%2Ftmp%2Fs"},
		{"host=/tmp/s user=u dbname=postgres", "host=/tmp/s user=u dbname=postgres dbname=db"},
	}
	for _, test := range tests {
		if got := (cluster{test.admin}).databaseURL("db"); got != test.want {
			t.Errorf("%s: %s, want %s", test.admin, got, test.want)
		}
	}
}
