package keys

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	msgauth "github.com/emersion/go-msgauth/dkim"

	"postern/internal/dnstest"
	"postern/relay/dkim"
	"postern/relay/resolver"
)

// TestRotationForAMonth: every message that is signed in thirty-five days, in whatever state of its
// domain's keys, verifies at delivery and five days later, at all servers of the domain, though the
// admin is slow to publish records, and removes them as soon as 'dkim list' says so.
func TestRotationForAMonth(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	_, err := s.admin.Add(t.Context(), "shop.test", []dkim.Algorithm{dkim.RSA, dkim.Ed25519}, 8)
	must(t, err)
	const step = 3 * time.Hour
	m := month{stage: s, seen: map[string]time.Time{}, signedIn: map[string]int{}}
	for at := time.Duration(0); at < 35*day; at += step {
		list, err := List(t.Context(), s.db.Pool, "shop.test")
		must(t, err)
		m.actAsAdmin(list, at)
		m.send(list, at)
		m.receive(at)
		s.pass(time.Minute) // so that a second look follows the first
		s.pass(step - time.Minute)
	}
	for _, state := range []string{"active", "active, pending", "active, retiring", "active, pending, retiring", "active, retiring, retired"} {
		if m.signedIn[state] == 0 {
			t.Errorf("no message was signed while keys were %s: %v", state, m.signedIn)
		}
	}
	if m.unsigned == 0 || m.unsigned > 20 || m.verified < 800 {
		t.Errorf("%d messages were unsigned, %d signatures verified", m.unsigned, m.verified)
	}
}

// month is what goes on in it.
type month struct {
	*stage
	seen     map[string]time.Time // when the admin saw a key first
	sent     []sent
	signedIn map[string]int // messages, by the states of RSA keys
	unsigned int
	verified int // signatures
}

// sent is a message that arrives now, and is looked at again later.
type sent struct {
	again  time.Duration
	states string
	octets []byte
}

// actAsAdmin publishes a record a day after it was asked for at one server, hours later at the other.
func (m *month) actAsAdmin(list []Key, at time.Duration) {
	for _, k := range list {
		since, seen := m.seen[k.Selector]
		if !seen {
			since = time.Unix(0, 0).Add(at)
			m.seen[k.Selector] = since
		}
		age := at - since.Sub(time.Unix(0, 0))
		switch {
		case k.State == Retired:
			m.world.remove(k, "1", "2")
		case age == 24*time.Hour:
			m.world.publish(k, "1")
		case age == 30*time.Hour:
			m.world.publish(k, "2")
		}
	}
}

// send signs a message, and verifies it as it is delivered.
func (m *month) send(list []Key, at time.Duration) {
	m.Helper()
	signers := m.node.Keys("shop.test")
	if len(signers) == 0 {
		m.unsigned++
		return
	}
	header, body := fmt.Sprintf("From: a@shop.test\r\nTo: b@other.test\r\nSubject: after %s\r\n", at), "the text\r\n"
	hash := dkim.NewBodyHash()
	_, err := io.WriteString(hash, body)
	must(m.T, err)
	fields, err := dkim.Sign([]byte(header), signers, hash.Sum(), time.Now())
	must(m.T, err)
	var states []string
	for _, state := range States() {
		if of(list, dkim.RSA, state) != nil {
			states = append(states, string(state))
		}
	}
	signed := sent{at + 5*day, strings.Join(states, ", "), append(fields, header+"\r\n"+body...)}
	if len(states) > 1 && states[0] == "pending" { // as they are named here
		states[0], states[1] = states[1], states[0]
		signed.states = strings.Join(states, ", ")
	}
	m.signedIn[signed.states]++
	m.verify(signed, at)
	m.sent = append(m.sent, signed)
}

// receive verifies again what was sent five days ago.
func (m *month) receive(at time.Duration) {
	m.Helper()
	for len(m.sent) > 0 && m.sent[0].again <= at {
		m.verify(m.sent[0], at)
		m.sent = m.sent[1:]
	}
}

// verify asks each of the domain's servers.
func (m *month) verify(message sent, at time.Duration) {
	m.Helper()
	for _, server := range []string{"192.0.2.1:53", "192.0.2.2:53"} {
		verdicts, err := msgauth.VerifyWithOptions(bytes.NewReader(message.octets), &msgauth.VerifyOptions{
			LookupTXT: func(name string) ([]string, error) { return textsOf(m.T, m.world.servers[server], name) },
		})
		if err != nil || len(verdicts) == 0 {
			m.Fatalf("after %s: %d signatures, %v", at, len(verdicts), err)
		}
		for _, v := range verdicts {
			if v.Err != nil {
				m.Errorf("after %s, signed while keys were %s: %v by %s", at, message.states, v.Err, server)
			}
			m.verified++
		}
	}
}

func textsOf(t *testing.T, z *dnstest.Zones, name string) ([]string, error) {
	texts, err := z.Resolver().TXT(t.Context(), name)
	if err != nil && !errors.Is(err, resolver.ErrNone) {
		t.Fatal(err)
	}
	return texts, nil
}
