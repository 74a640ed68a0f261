package check

import (
	"fmt"
	"testing"
	"time"

	"postern/cmd/postern/screen"
	"postern/relay/transport"
)

func transportFaults() []fault {
	since, end := time.Date(2026, 11, 20, 9, 0, 0, 0, time.UTC), time.Date(2026, 12, 1, 9, 0, 0, 0, time.UTC)
	ending := func(mode transport.Mode) func(*testing.T, *patient) {
		return func(_ *testing.T, p *patient) {
			p.view.ending = []transport.Kept{{Domain: "bank.test", Mode: mode, ExpiresAt: end, FailingSince: &since, LastError: "its answer is 404"}}
		}
	}
	override := transport.Override{Domain: "bank.test", Level: transport.Encrypted, Reason: "their key", SetBy: "root", ExpiresAt: end}
	return []fault{
		{"transport.ok", "no override", nothing},
		{"transport.ending", fmt.Sprintf("its policy ends on %s, and cannot be renewed since %s: its answer is 404", screen.LocalTime(end), screen.LocalTime(since)), ending(transport.Enforce)},
		{"transport.ending", fmt.Sprintf("its policy ended on %s, and could not be renewed since", screen.LocalTime(end)), ending("")},
		{"transport.override", fmt.Sprintf("encrypted until %s, by root: their key", screen.LocalTime(end)),
			func(_ *testing.T, p *patient) { p.view.overrides = []transport.Override{override} }},
		{"transport.more", "the first 20 are shown", func(_ *testing.T, p *patient) {
			for range mostPolicies + 1 {
				p.view.overrides = append(p.view.overrides, override)
			}
		}},
	}
}

func TestCheckFindsFaultsOfTransport(t *testing.T) {
	t.Parallel()
	find(t, transportFaults(), "transport", viewed)
}

// The check finds the overrides, and the policies that end, in the database.
func TestCheckReadsPolicies(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	p.admit(t)
	o := transport.Override{Domain: "one.test", Level: transport.Verified, Reason: "they can"}
	if _, err := transport.SetOverride(t.Context(), p.pool, "root", o, time.Hour); err != nil {
		t.Fatal(err)
	}
	if _, err := p.pool.Exec(t.Context(), `insert into sts_policy (domain, id, mode, mx, fetched_at, expires_at, failing_since, last_error)
		values ('two.test', '1', 'enforce', '{mx.two.test}', now() - interval '7 days', now() + interval '1 hour', now(), 'no route')`); err != nil {
		t.Fatal(err)
	}
	found := p.look(t.Context(), "transport")
	wantFinding(t, found, "transport.override", "verified until")
	wantFinding(t, found, "transport.ending", "no route")
}
