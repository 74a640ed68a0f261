package desk

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Finding is a setting of the server that may cost accepted mail.
type Finding struct {
	Setting string
	Value   string
	Advice  string
}

// wantedSettings are the settings that durability needs.
var wantedSettings = []struct {
	name   string
	good   []string
	advice string
}{
	{"fsync", []string{"on"}, "set it to on: without it a crash of the machine loses or destroys what was committed"},
	{"full_page_writes", []string{"on"}, "set it to on: without it a crash can tear pages"},
	{"synchronous_commit", []string{"on", "remote_apply"}, "set it to on: Postern asks for it in each of its commits, other programs may not"},
	{"data_sync_retry", []string{"off"}, "set it to off: an fsync that failed must not be tried again"},
	{"server_encoding", []string{"UTF8"}, "create the database with encoding UTF8"},
	{"default_transaction_isolation", []string{"read committed"}, "set it to read committed: others see mail where it was before it moved"},
	{"default_transaction_read_only", []string{"off"}, "this user or database only reads"},
}

// sqlSettings reads settings by name; sqlRecovery tells a standby.
const (
	sqlSettings = `select name, current_setting(name) from unnest($1::text[]) as s(name)`
	sqlRecovery = `select pg_is_in_recovery()`
)

// CheckServer examines whether the server keeps what it commits. No findings means that it
// does.
func CheckServer(ctx context.Context, conn *pgx.Conn) ([]Finding, error) {
	var names []string
	for _, s := range wantedSettings {
		names = append(names, s.name)
	}
	rows, err := conn.Query(ctx, sqlSettings, names)
	if err != nil {
		return nil, fmt.Errorf("check server: %w", err)
	}
	values := make(map[string]string)
	var name, value string
	if _, err := pgx.ForEachRow(rows, []any{&name, &value}, func() error {
		values[name] = value
		return nil
	}); err != nil {
		return nil, fmt.Errorf("check server: %w", err)
	}
	standby := false
	if err := conn.QueryRow(ctx, sqlRecovery).Scan(&standby); err != nil {
		return nil, fmt.Errorf("check server: %w", err)
	}
	return judgeSettings(values, standby), nil
}

func judgeSettings(values map[string]string, standby bool) []Finding {
	var list []Finding
	for _, s := range wantedSettings {
		ok := false
		for _, good := range s.good {
			ok = ok || values[s.name] == good
		}
		if !ok {
			list = append(list, Finding{s.name, values[s.name], s.advice})
		}
	}
	if standby {
		list = append(list, Finding{"pg_is_in_recovery", "true", "this server is a standby: connect to the primary, for instance with target_session_attrs=read-write"})
	}
	return list
}
