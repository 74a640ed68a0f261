package policy

import (
	"math"
	"strings"
	"testing"
	"time"

	"postern/auth"
	"postern/policy/quota"
	"postern/relay/smtp"
)

// What a window can never hold is refused like what one message may not have.
func TestWindowsBoundOneMessage(t *testing.T) {
	t.Parallel()
	id := auth.Identity{Limits: []quota.Limit{
		{Kind: quota.Size, Max: 500, Scope: quota.Default},
		{Kind: quota.Bytes, Window: day, Max: 300, Scope: quota.User},
		{Kind: quota.Bytes, Window: time.Hour, Max: 400, Scope: quota.User},
		{Kind: quota.Recipients, Window: time.Minute, Max: 3, Scope: quota.Credential},
		{Kind: quota.RecipientsOfMessage, Max: 4, Scope: quota.User},
	}}
	if v := Size(id, 301, 1000); v.Allowed || v.Rule != "size 300/d user" || v.Reply.Code != 552 {
		t.Errorf("size: %+v", v)
	}
	if v := Size(id, 300, 1000); !v.Allowed || MaxSize(id, 1000) != 300 || MaxSize(id, 200) != 200 || MaxSize(id, 0) != 300 {
		t.Errorf("size: %+v", v)
	}
	if v := Recipients(id, 4, 100); v.Allowed || v.Rule != "recipients 3/m credential" ||
		v.Reply.String() != "452 4.5.3 Limit of 3 recipients in 1m: a message can have no more, and the others must wait; send them 1 min after these, not together" {
		t.Errorf("recipients: %+v", v)
	}
	if v := Recipients(id, 3, 100); !v.Allowed {
		t.Errorf("recipients: %+v", v)
	}
}

func TestLimitOfNothing(t *testing.T) {
	t.Parallel()
	for _, l := range []quota.Limit{{Kind: quota.Size, Scope: quota.User}, {Kind: quota.Bytes, Window: day, Scope: quota.User}} {
		id := auth.Identity{Limits: []quota.Limit{l}}
		for _, server := range []int64{0, 100} {
			for _, size := range []int64{0, 1} {
				if v := Size(id, size, server); v.Allowed || v.Reply.Code != 552 {
					t.Errorf("%+v: size %d: %+v", l, size, v)
				}
			}
			if got := MaxSize(id, server); got != 0 {
				t.Errorf("%+v: the largest size is %d", l, got)
			}
		}
	}
	for _, l := range []quota.Limit{{Kind: quota.RecipientsOfMessage}, {Kind: quota.Recipients, Window: day}} {
		for _, server := range []int{0, 100} {
			if v := Recipients(auth.Identity{Limits: []quota.Limit{l}}, 1, server); v.Allowed || v.Reply.Code != 452 {
				t.Errorf("%+v: %+v", l, v)
			}
		}
	}
	v := Messages(auth.Identity{Limits: []quota.Limit{{Kind: quota.Messages, Window: day, Scope: quota.User}}}, time.Now())
	if v.Allowed || v.Rule != "limit messages 0/d user" || !strings.HasPrefix(v.Reply.String(), "452 4.7.1 ") {
		t.Errorf("messages: %+v", v)
	}
	if v := Messages(limited(quota.Messages, 1), time.Now()); !v.Allowed {
		t.Errorf("messages: %+v", v)
	}
	if got := MaxSize(auth.Identity{}, 0); got != math.MaxInt64 {
		t.Errorf("without a limit: %d", got)
	}
}

func TestOverLimit(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 25, 10, 0, 0, 0, time.UTC)
	limit := func(kind quota.Kind, w time.Duration, most int64, from quota.Scope) quota.Limit {
		return quota.Limit{Kind: kind, Window: w, Max: most, Scope: from}
	}
	tests := []struct {
		e          quota.Over
		text, rule string
	}{
		{quota.Over{Limit: limit(quota.Messages, time.Minute, 100, quota.User), Used: 100, Amount: 1, RetryAt: now.Add(12 * time.Second)},
			"Limit of 100 messages in 1m reached (used 100); try again after 2026-11-25T10:00:12Z (in 12 s)", "limit messages 100/m user"},
		{quota.Over{Limit: limit(quota.Messages, time.Minute, 100, quota.Default), Used: 100, Amount: 1, RetryAt: now.Add(11*time.Second + 1)},
			"Limit of 100 messages in 1m reached (used 100); try again after 2026-11-25T10:00:12Z (in 12 s)", "limit messages 100/m default"},
		{quota.Over{Limit: limit(quota.Recipients, 30*day, 5000, quota.Credential), Used: 4990, Amount: 20, RetryAt: now.Add(3*time.Hour + 19*time.Minute + time.Second)},
			"Limit of 5000 recipients in 30d reached (used 4990); try again after 2026-11-25T13:19:01Z (in 3 h 20 min)", "limit recipients 5000/30d credential"},
		{quota.Over{Limit: limit(quota.Bytes, day, 1e9, quota.User), Used: 999999999, Amount: 2, RetryAt: now.Add(59*time.Minute + 59*time.Second + 1)},
			"Limit of 1000000000 octets in 1d reached (used 999999999); try again after 2026-11-25T11:00:00Z (in 1 h)", "limit bytes 1GB/d user"},
		{quota.Over{Limit: limit(quota.Bytes, day, 1000, quota.User), Used: 0, Amount: 1200, RetryAt: time.Time{}},
			"Limit of 1000 octets in 1d can never hold this message of 1200; make it smaller, or ask the administrator", "limit bytes 1KB/d user"},
		{quota.Over{Limit: limit(quota.Messages, day, 0, quota.User), Used: 0, Amount: 1, RetryAt: time.Time{}},
			"Limit of 0 messages in 1d: nothing may be sent; ask the administrator", "limit messages 0/d user"},
		{quota.Over{Limit: limit(quota.Messages, time.Second, 1, quota.User), Used: 1, Amount: 1, RetryAt: now.Add(-time.Hour)},
			"Limit of 1 message in 1s reached (used 1); try again after 2026-11-25T09:00:00Z (in 1 s)", "limit messages 1/s user"},
	}
	for _, tt := range tests {
		v := OverLimit(&tt.e, now)
		if v.Allowed || v.Reply.String() != "452 4.7.1 "+tt.text || v.Rule != tt.rule {
			t.Errorf("%+v", v)
		}
	}
	domain := quota.Over{Limit: limit(quota.Messages, day, 100, quota.Domain), Used: 100, Amount: 1, RetryAt: now.Add(time.Hour)}
	domain.Subject = "example.com"
	if v := OverLimit(&domain, now); v.Rule != "limit messages 100/d domain" ||
		v.Reply.String() != "452 4.7.1 Limit of 100 messages in 1d for all of example.com reached (used 100); try again after 2026-11-25T11:00:00Z (in 1 h)" {
		t.Errorf("%+v", v)
	}
	longest := quota.Over{Limit: limit(quota.Recipients, 366*day-time.Second, math.MaxInt64, quota.Credential), Used: math.MaxInt64, Amount: math.MaxInt64, RetryAt: now.AddDate(7000, 0, 0)}
	longest.Scope, longest.Subject = quota.Domain, strings.Repeat("x.", 126)+"x"
	if line := OverLimit(&longest, now).Reply.Append(nil); len(line) > 512 || !smtp.IsASCII(string(line)) {
		t.Errorf("reply line of %d octets: %q", len(line), line)
	}
}

func TestHeader(t *testing.T) {
	t.Parallel()
	id := auth.Identity{Name: "alice", Senders: []string{"a@own.example", "*@*.own.example", "<>"}}
	at := func(local, domain string) []smtp.Address { return []smtp.Address{{Local: local, Domain: domain}} }
	own, sub, victim := at("A", "own.example"), at("x", "sub.OWN.example"), at("b", "victim.example")
	tests := []struct {
		name string
		h    HeaderIdentity
		rule string // "header" is allowed
	}{
		{"own", HeaderIdentity{From: own}, "header"},
		{"all own", HeaderIdentity{From: append(own, sub...), Sender: own, ResentFrom: sub, ResentSender: own}, "header"},
		{"second author", HeaderIdentity{From: append(own, victim...)}, "header From"},
		{"sender", HeaderIdentity{From: own, Sender: victim}, "header Sender"},
		{"resent from", HeaderIdentity{From: own, ResentFrom: victim}, "header Resent-From"},
		{"resent sender", HeaderIdentity{From: own, ResentSender: victim}, "header Resent-Sender"},
		{"homograph", HeaderIdentity{From: at("a", "\u043ewn.example")}, "header From"},
		{"null", HeaderIdentity{From: at("", "")}, "header From"},
	}
	for _, tt := range tests {
		v := Header(id, tt.h)
		if v.Rule != tt.rule || v.Allowed != (tt.rule == "header") {
			t.Errorf("%s: %+v", tt.name, v)
		}
		if !v.Allowed && !strings.HasPrefix(v.Reply.String(), "550 5.7.1 ") {
			t.Errorf("%s: %s", tt.name, v.Reply)
		}
	}
	want := "User alice may not write the Sender field as <b@victim.example>; choose another sender, or ask the administrator to allow it"
	if got := Header(id, HeaderIdentity{From: own, Sender: victim}).Reply.Text; got != want {
		t.Errorf("text %q", got)
	}
	long := at(strings.Repeat("x", 64), strings.Repeat("y.", 120)+"z")
	if line := Header(auth.Identity{Name: strings.Repeat("n", 255)}, HeaderIdentity{ResentSender: long}).Reply.Append(nil); len(line) > 512 {
		t.Errorf("reply line of %d octets: %q", len(line), line)
	}
}

// Redirecting: who resent a message last by a pattern with the option may pass on what
// is another's; nobody else, and as nobody else.
func TestHeaderResend(t *testing.T) {
	t.Parallel()
	id := auth.Identity{Name: "alice", Senders: []string{"*@own.example", "a@office.example"}, Resend: []string{"a@office.example"}}
	at := func(list ...string) (addrs []smtp.Address) {
		for _, s := range list {
			local, domain, _ := strings.Cut(s, "@")
			addrs = append(addrs, smtp.Address{Local: local, Domain: domain})
		}
		return addrs
	}
	office, own, victim := at("A@OFFICE.example"), at("a@own.example"), at("b@victim.example")
	for name, tt := range map[string]struct {
		h    HeaderIdentity
		rule string
		text string // of the refusal, a part
	}{
		"another's":                  {HeaderIdentity{From: victim, Sender: victim, ResentFrom: office, Redirector: office}, "resend a@office.example", ""},
		"another's, resent before":   {HeaderIdentity{From: victim, ResentFrom: append(office, victim...), ResentSender: victim, Redirector: office}, "resend a@office.example", ""},
		"one's own":                  {HeaderIdentity{From: own, ResentFrom: office, Redirector: office}, "header", ""},
		"by another's Resent-Sender": {HeaderIdentity{From: victim, ResentFrom: office, ResentSender: victim, Redirector: append(office, victim...)}, "header From", "write the From field as"},
		"one without the option":     {HeaderIdentity{From: victim, ResentFrom: append(office, own...), ResentSender: office, Redirector: append(office, own[0], office[0])}, "header From", "resend mail of <b@victim.example>"},
		"a pattern without":          {HeaderIdentity{From: victim, ResentFrom: own, Redirector: own}, "header From", "resend mail of <b@victim.example>"},
		"as another":                 {HeaderIdentity{From: office, ResentFrom: victim, Redirector: victim}, "header Resent-From", "write the Resent-From field as"},
		"not clear by whom":          {HeaderIdentity{From: victim, ResentFrom: office}, "header From", "write the From field as"},
		"not resent":                 {HeaderIdentity{From: victim}, "header From", "write the From field as"},
	} {
		v := Header(id, tt.h)
		if v.Rule != tt.rule || v.Allowed != (tt.text == "") || !strings.Contains(v.Reply.Text, tt.text) {
			t.Errorf("%s: %+v", name, v)
		}
	}
	// The name alone is no pattern with an option, and the envelope is judged as always.
	if v := Header(auth.Identity{Name: "a@own.example"}, HeaderIdentity{From: victim, ResentFrom: own, Redirector: own}); v.Allowed {
		t.Errorf("by the name: %+v", v)
	}
	if v := Sender(id, victim[0]); v.Allowed {
		t.Errorf("in MAIL: %+v", v)
	}
}

func TestNullSender(t *testing.T) {
	t.Parallel()
	if v := Sender(auth.Identity{Name: "a@b", Senders: []string{"a@b", "<>"}}, smtp.Address{}); !v.Allowed || v.Rule != "sender <>" {
		t.Errorf("with the pattern: %+v", v)
	}
	// The pattern is for no address, so the user's own name is still one.
	only := auth.Identity{Name: "a@b", Senders: []string{"<>"}}
	if v := Sender(only, smtp.Address{Local: "a", Domain: "b"}); !v.Allowed || v.Rule != "sender a@b" {
		t.Errorf("the name: %+v", v)
	}
	if v := Sender(only, smtp.Address{Local: "c", Domain: "b"}); v.Allowed {
		t.Errorf("another: %+v", v)
	}
	if v := Sender(auth.Identity{Name: "<>"}, smtp.Address{}); v.Allowed {
		t.Errorf("a name is no pattern: %+v", v)
	}
}

// Too many sessions are refused for now, in the words of the limit that refuses.
func TestTooManySessions(t *testing.T) {
	t.Parallel()
	for scope, by := range map[quota.Scope]string{
		quota.Default: "for you", quota.User: "for you", quota.Credential: "by this credential", quota.Domain: "for all of example.com",
	} {
		over := quota.Over{Limit: quota.Limit{Kind: quota.Sessions, Max: 3, Scope: scope, Subject: "example.com"}, Used: 3, Amount: 1}
		v := OverLimit(&over, time.Now())
		if want := "454 4.7.0 Too many sessions " + by + ": 3 are open, at most 3 are allowed; close one or try again later"; v.Allowed ||
			v.Reply.String() != want || v.Rule != "sessions "+string(scope) {
			t.Errorf("%+v", v)
		}
	}
}

func TestOneMore(t *testing.T) {
	t.Parallel()
	limit := quota.Limit{Kind: quota.Sessions, Max: 1, Scope: quota.User, Subject: "7"}
	if v := OneMore(auth.Identity{Limits: []quota.Limit{limit}}, nil); !v.Allowed || v.Rule != "sessions user" {
		t.Errorf("%+v", v)
	}
	limit.Max = 0
	if v := OneMore(auth.Identity{Limits: []quota.Limit{limit}}, nil); v.Allowed || v.Rule != "sessions user" {
		t.Errorf("%+v", v)
	}
	if v := OneMore(auth.Identity{}, nil); !v.Allowed || v.Rule != "" {
		t.Errorf("without a limit: %+v", v)
	}
}
