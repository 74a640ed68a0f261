package relay_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"postern/internal/dkimtest"
	"postern/internal/dnstest"
	"postern/internal/rig"
	"postern/internal/smtptest"
)

// published activates the keys of a domain, as if its servers had answered their records, and returns
// the records.
func published(t *testing.T, r *rig.Rig, domain string) map[string]string {
	t.Helper()
	r.Postern("", "dkim", "add", domain)
	var list []struct {
		Name   string `json:"record_name"`
		Record string `json:"record"`
	}
	if err := json.Unmarshal([]byte(r.Postern("", "dkim", "list", domain, "--json")), &list); err != nil || len(list) != 2 {
		t.Fatalf("%v: %v", list, err)
	}
	// One after the other: the node looks at the same rows, in an order of its own.
	for _, change := range []string{
		`update dkim_domain set next_look_at = now() + interval '1 year' where domain = $1`,
		`update dkim_key set state = 'active', looks = 2 where domain = $1`,
		`update dkim_version set n = n + (select count(*) from dkim_domain where domain = $1)`,
	} {
		if _, err := r.Count(t.Context(), `with c as (`+change+` returning 1) select count(*) from c`, domain); err != nil {
			t.Fatal(err)
		}
	}
	records := map[string]string{}
	for _, k := range list {
		records[k.Name] = k.Record
	}
	return records
}

// mailing is a client that sends to upstreams which write everything down.
type mailing struct {
	t *testing.T
	c *rig.Client
}

// send submits a message and waits until the server that it goes to has one more.
func (m *mailing) send(server *smtptest.Server, to, text string) []byte {
	m.t.Helper()
	n := len(server.Messages())
	m.submit(to, text)
	return server.WaitMessages(m.t, n+1)[n].Data
}

func (m *mailing) submit(to, text string) {
	m.t.Helper()
	want(m.t, openDataTo(m.c, rig.User, to))
	want(m.t, m.c.Write(strings.TrimPrefix(strings.ReplaceAll("\r\n"+text, "\r\n.", "\r\n.."), "\r\n")))
	want(m.t, m.c.Say("dot", 250, "."))
}

const plainText = "From: " + rig.User + "\r\nSubject: hello\r\n\r\nthe text\r\n"

// TestSigned runs the relay with keys: upstreams and MX get what they are set to, notices are signed, a
// retry has the same octets, and no key holds mail up.
func TestSigned(t *testing.T) {
	t.Parallel()
	r := rig.New(t, false)
	ways := map[string]*smtptest.Server{}
	for _, mode := range []string{"both", "rsa", "off", "default", "refuses"} {
		ways[mode] = smtptest.Start(t, smtptest.Config{})
		args := []string{"upstream", "add", mode, "--host", ways[mode].Addr(), "--tls", "none"}
		if mode == "both" || mode == "rsa" || mode == "off" {
			args = append(args, "--dkim", mode)
		}
		r.Postern("", args...)
		r.Postern("", "route", "add", "--recipient-domain", mode+".test", "--via", mode)
	}
	ways["refuses"].On(smtptest.PhaseRcpt, smtptest.Always(smtptest.Reply("550 5.1.1 nobody")))
	ways["mx"] = smtptest.Start(t, smtptest.Config{})
	dns := &dnstest.Zones{}
	dns.AddHost("mx.test", ways["mx"].Host())
	r.Postern("", "route", "add", "--recipient-domain", "mx.test", "--via", "mx")
	r.Postern("", "route", "add", "--via", "both")
	r.Postern("", "upstream", "pause", "both")
	node := r.Node(rig.NodeConfig{Name: "solo", Extra: fmt.Sprintf("[delivery]\nmx_port = %d\nallow_private_mx = true\n[dns]\nservers = [%q]\n",
		ways["mx"].Port(), dns.Serve(t))})
	m := &mailing{t, dial(t, r, node)}
	want(t, m.c.Login(rig.User, rig.Password))

	m.submit("first@both.test", plainText) // before there is a key
	records := dkimtest.Records{}
	for _, domain := range []string{rig.Domain, "solo.test"} {
		for name, record := range published(t, r, domain) {
			records[name] = record
		}
	}
	r.Postern("", "upstream", "resume", "both")
	if early := ways["both"].WaitMessages(t, 1)[0].Data; bytes.Contains(early, []byte("DKIM-Signature")) {
		t.Errorf("a message that was accepted before the key is signed:\n%s", early)
	}
	for !bytes.Contains(m.send(ways["both"], "next@both.test", plainText), []byte("DKIM-Signature")) { // the node follows
	}

	const rsa, ed25519 = "rsa " + rig.Domain, "ed25519 " + rig.Domain
	for way, want := range map[string][]string{"both": {rsa, ed25519}, "rsa": {rsa}, "off": nil, "default": {rsa}, "mx": {rsa, ed25519}} {
		got := m.send(ways[way], "a@"+way+".test", plainText)
		if list := records.Verified(t, got); !slices.Equal(list, want) {
			t.Errorf("to %s, signed by %q, want %q:\n%s", way, list, want, got)
		}
	}

	ways["rsa"].On(smtptest.PhaseDot, smtptest.Once(smtptest.Reply("451 4.3.0 later")))
	before := len(ways["rsa"].Transactions())
	m.submit("again@rsa.test", plainText)
	for len(ways["rsa"].Transactions()) < before+2 {
		r.Postern("", "queue", "retry", "--all")
	}
	if all := ways["rsa"].Transactions()[before:]; len(all) != 2 || !bytes.Equal(all[0].Data, all[1].Data) {
		t.Errorf("%d attempts, or other octets: %s", len(all), all[len(all)-1].Data)
	}

	notices := len(ways["both"].Messages())
	m.submit("nobody@refuses.test", plainText)
	notice := ways["both"].WaitMessages(t, notices+1)[notices]
	if list := records.Verified(t, notice.Data); notice.From() != "" || !slices.Equal(list, []string{"rsa solo.test", "ed25519 solo.test"}) {
		t.Errorf("a notice from %q, signed by %q:\n%s", notice.From(), list, notice.Data)
	}
}

// TestForeignDKIMVerifiers sends the corpus through the relay. Three foreign programs take all
// signatures of what comes out, and none of what was changed afterwards.
func TestForeignDKIMVerifiers(t *testing.T) {
	t.Parallel()
	r := rig.New(t, false)
	sink := smtptest.Start(t, smtptest.Config{})
	r.Postern("", "upstream", "add", "sink", "--host", sink.Addr(), "--tls", "none", "--dkim", "both")
	r.Postern("", "route", "add", "--via", "sink")
	records := dkimtest.Records(published(t, r, rig.Domain))
	node := r.Node(rig.NodeConfig{Name: "solo"})
	m := &mailing{t, dial(t, r, node)}
	want(t, m.c.Login(rig.User, rig.Password))

	corpus, names := dkimtest.Corpus(rig.Domain, dkimtest.Size), map[string]string{}
	corpus = append(corpus, dkimtest.Message{Name: "to be changed", Octets: []byte("Message-ID: <changed>\r\n" + plainText)})
	id := regexp.MustCompile(`(?m)^Message-ID: (.*)\r$`)
	for _, c := range corpus {
		names[string(id.FindSubmatch(c.Octets)[1])] = c.Name
		m.submit("a@dest.test", string(c.Octets))
	}
	var messages [][]byte
	var labels []string
	changed := 0
	for _, got := range sink.WaitMessages(t, len(corpus)) {
		name := names[string(id.FindSubmatch(got.Data)[1])]
		messages, labels = append(messages, got.Data), append(labels, name)
		if list := records.Verified(t, got.Data); len(list) != 2 {
			t.Errorf("%s: signed by %q", name, list)
		}
		if name != "to be changed" {
			continue
		}
		text := string(got.Data)
		for what, other := range map[string]string{
			"added From": "From: mallory@example.org\r\n" + text, "added Subject": "Subject: other\r\n" + text, "added To": "To: eve@example.org\r\n" + text,
			"byte of the body": strings.Replace(text, "the text", "The text", 1), "appended body": text + "more\r\n",
		} {
			messages, labels = append(messages, []byte(other)), append(labels, "changed: "+what)
			changed++
		}
	}
	if changed != 5 || len(messages) != len(corpus)+changed {
		t.Fatalf("%d messages came out, %d were changed", len(messages)-changed, changed)
	}
	for i, valid := range records.Foreign(t, messages) {
		switch {
		case strings.HasPrefix(labels[i], "changed: "):
			if len(valid) > 0 {
				t.Errorf("%s: still valid for %q", labels[i], valid)
			}
		case !slices.Equal(valid, dkimtest.Good()):
			t.Errorf("%s: valid for %q only", labels[i], valid)
		}
	}
}
