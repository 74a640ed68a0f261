package pgtest_test

import (
	"fmt"
	"testing"

	"postern/internal/pgtest"
)

func TestDatabasesAreApart(t *testing.T) {
	t.Parallel()
	for i := range 8 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			for _, db := range []*pgtest.DB{pgtest.New(t), pgtest.Empty(t)} {
				if _, err := db.Pool.Exec(t.Context(), `create table only_here (id integer)`); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func TestNewIsMigratedAndEmptyIsNot(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		db   *pgtest.DB
		want bool
	}{
		"New":   {pgtest.New(t), true},
		"Empty": {pgtest.Empty(t), false},
	}
	for name, test := range tests {
		var got bool
		err := test.db.Pool.QueryRow(t.Context(), `select to_regclass('schema_migration') is not null`).Scan(&got)
		if err != nil {
			t.Fatal(err)
		}
		if got != test.want {
			t.Errorf("%s: has a schema: %t, want %t", name, got, test.want)
		}
	}
}
